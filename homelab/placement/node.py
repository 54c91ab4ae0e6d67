"""One node of a problem: what it would buy, and what it can come to, under prices for everything that is counted. Pure.

What a device earns most with so many bytes comes of its models one after the other; RAM and disk have prices too, where they are short."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from homelab.placement.packing import Counts, options_of
from homelab.placement.stage import PARTS, Stage

FADE = 0.95
# Sets of split models that are told apart when it is asked what a node would buy.
WIDE = 256

# (bytes, (earned, options)): the best that may be earned with so many bytes, each entry better than the one before.
Ladder = tuple[list[int], list[tuple[int, Any]]]
Entry = tuple[int, int, Any]  # bytes, earned, options


@dataclass(slots=True)
class Guided:
    """Prices under which a node must come to `least`: the device ladders, what comes beside each device, and the most in all."""

    price: list[int]
    chains: list[list[Ladder]]
    others: list[int]
    best: int
    known: dict[int, int]
    least: int = 0

    def earned(self, counts: Counts, held: int) -> int:
        if held not in self.known:
            self.known[held] = -sum(p * counts.of(held, row) for row, p in enumerate(self.price) if p)
        return self.known[held]


class Node:
    """One node of a problem, with the options of a stage that lie on it."""

    def __init__(self, stage: Stage, node: int, indices: Sequence[int]) -> None:
        self.stage, self.counts, self.room = stage, stage.counts, stage.problem.rooms[node]
        self.options = {i: stage.problem.options[i] for i in indices}
        wants = stage.problem.wants
        per_node = [want.per_node for want in wants]
        limits = [
            min(limit, per_node[row]) if row < len(wants) else limit
            for row, limit in enumerate(self.counts.limits)
        ]
        self.limits = limits
        self.bias = self.counts.within(limits)
        self.devices = {d: max(0, free) for d, (n, free) in enumerate(stage.problem.devices) if n == node}
        self.place = {d: k for k, d in enumerate(self.devices)}
        self.single: list[dict[int, list[int]]] = [{} for _ in self.devices]
        self.wide: dict[int, list[int]] = {}
        for i, o in self.options.items():
            where = self.single[self.place[o.loads[0][0]]] if len(o.loads) == 1 else self.wide
            where.setdefault(o.model, []).append(i)
        # How often each option was bought of late.
        self.tally = dict.fromkeys(self.options, 0.0)
        # Where nothing that the devices can hold exceeds RAM or disk, neither is counted.
        mine = self.options.values()
        fetched = sum({o.fetch: o.fetch_bytes for o in mine if o.fetch}.values())
        density = max((-(-o.fetch_bytes // max(1, sum(n for _, n in o.loads))) for o in mine), default=0)
        self.tight_disk = min(fetched, density * sum(self.devices.values())) > self.room.disk
        self.tight_ram = self._most_hosted() > self.room.ram
        self.plain = not (self.tight_ram or self.tight_disk)
        # What of RAM and disk is taken, in parts; of weights that several placements may share, each takes its part.
        self.ram_row = len(self.counts.limits) + 2 * node
        shared: Counter[str] = Counter()
        for model, fetch in sorted({(o.model, o.fetch) for o in mine if o.fetch}):
            shared[fetch] += self.limits[model]
        self.shares = {
            o.fetch: o.fetch_bytes * PARTS // (max(1, self.room.disk) * shared[o.fetch])
            for o in mine
            if o.fetch
        }
        self.use = {i: stage.use[i] for i in indices}
        for i, o in self.options.items():
            if self.tight_ram and o.host:
                self.use[i] += ((self.ram_row, self.ram_parts(o.host)),)
            if self.tight_disk and o.fetch:
                self.use[i] += ((self.ram_row + 1, self.shares[o.fetch]),)

    def _most_hosted(self) -> int:
        """A bound on the RAM that placements on this node take: no more of them than the smallest that its devices hold."""
        least: dict[int, int] = {}
        most: dict[int, int] = {}
        for o in self.options.values():
            load = 0 if o.once else sum(n for _, n in o.loads)
            least[o.model] = min(least.get(o.model, load), load)
            most[o.model] = max(most.get(o.model, 0), o.host)
        left, count = sum(self.devices.values()), 0
        for load in sorted(load for m, load in least.items() for _ in range(min(self.limits[m], 100))):
            left -= load
            if left < 0:
                break
            count += 1
        return sum(
            sorted((host for m, host in most.items() for _ in range(min(self.limits[m], 100))), reverse=True)[
                :count
            ]
        )

    def ram_parts(self, host: int) -> int:
        return host * PARTS // max(1, self.room.ram)

    # -- what the node would buy

    def buy(self, price: Sequence[int]) -> tuple[int, list[tuple[int, int]], int]:
        """The most that the node can earn under these prices (or more: RAM, disk and limits are not looked at), and what it takes for it."""
        self.looked = 0
        gains = self.gains(price)
        ladders = [
            self.ladders(k, gains, self.stage.spread, self.stage.beside, keep=False)[0]
            for k in range(len(self.devices))
        ]
        best, picks = -1, []
        for left, (gain, wide) in self.widest(gains, self.stage.spread).items():
            tops = [
                entries[bisect_right(loads, space) - 1]
                for (loads, entries), space in zip(ladders, left, strict=True)
            ]
            total = gain + sum(t[0] for t in tops)
            if total > best:
                best, picks = total, [wide, [t[1] for t in tops]]
        picked = options_of(picks)
        for i in self.tally:
            self.tally[i] *= FADE
        for i in picked:
            self.tally[i] += 1 - FADE
        taken = [part for i in picked for part in self.use[i]]
        return best, taken, self.looked + len(gains)

    def gains(self, price: Sequence[int]) -> dict[int, int]:
        values, use = self.stage.values, self.use
        return {i: values[i] - sum(price[row] * n for row, n in use[i]) for i in self.options}

    def ladders(
        self, k: int, gains: Mapping[int, int], spread: int, beside: int, *, keep: bool
    ) -> list[Ladder]:
        """What device `k` earns from all its models; with `keep` also from those of them that come last, ending with none of them."""
        cap, front = list(self.devices.values())[k], [(0, 0, None)]
        found: list[Ladder] = [([0], [(0, None)])] if keep else []
        for model in sorted(self.single[k], reverse=True):
            for mine, most in self._groups(model, self.single[k][model]):
                base = [(self.load(i), gains[i] + spread, i) for i in mine]
                base = _front([e for e in base if e[1] > 0 and e[0] <= cap])
                several = more = base
                for _ in range(1, most if base else 1):
                    more = _sums(more, [(load, gain - spread - beside, i) for load, gain, i in base], cap)
                    if not more:
                        break
                    several = _front(several + more)
                if base:
                    self.looked += len(front) * len(several)
                    front = _front(front + _sums(front, several, cap))
            if keep:
                found.append(([e[0] for e in front], [(e[1], e[2]) for e in front]))
        return found[::-1] if keep else [([e[0] for e in front], [(e[1], e[2]) for e in front])]

    def _groups(self, model: int, mine: Sequence[int]) -> list[tuple[list[int], int]]:
        """Options of a model, and how often they may be taken together: a running one once."""
        if self.limits[model] == 1:
            return [(list(mine), 1)]
        once = [i for i in mine if self.options[i].once]
        return [*(([i], 1) for i in once), ([i for i in mine if i not in once], self.limits[model])]

    def load(self, i: int) -> int:
        return self.options[i].loads[0][1]

    def widest(self, gains: Mapping[int, int], spread: int) -> dict[tuple[int, ...], tuple[int, Any]]:
        """By what they leave of each device: the best sets of models over several devices."""
        found: dict[tuple[int, ...], tuple[int, Any]] = {tuple(self.devices.values()): (0, None)}
        for model, options in self.wide.items():
            for mine, most in self._groups(model, options):
                fresh = found
                good = [i for i in mine if gains[i] + spread > 0]
                for _ in range(most if good else 0):
                    again: dict[tuple[int, ...], tuple[int, Any]] = {}
                    for left, (gain, picks) in fresh.items():
                        for i in good:
                            rest = self.rest(left, i)
                            total = gain + gains[i] + spread
                            if rest is not None and (rest not in again or total > again[rest][0]):
                                again[rest] = (total, (picks, i))
                    self.looked += len(fresh) * len(good)
                    if not again:
                        break
                    found = found | {r: e for r, e in again.items() if r not in found or e[0] > found[r][0]}
                    fresh = again
            found = self._rounded(found)
        return found

    def _rounded(
        self, found: dict[tuple[int, ...], tuple[int, Any]]
    ) -> dict[tuple[int, ...], tuple[int, Any]]:
        """Not too many of them: where there are, more bytes are said to be left than are, which is no less than what can be earned."""
        caps, steps = list(self.devices.values()), 16
        while len(found) > WIDE:
            rounded: dict[tuple[int, ...], tuple[int, Any]] = {}
            for left, entry in found.items():
                key = tuple(
                    cap - (cap - space) * steps // max(1, cap) * cap // max(1, steps)
                    for cap, space in zip(caps, left, strict=True)
                )
                if key not in rounded or entry[0] > rounded[key][0]:
                    rounded[key] = entry
            found, steps = rounded, steps // 2
        return found

    def rest(self, left: tuple[int, ...], i: int) -> tuple[int, ...] | None:
        rest = list(left)
        for d, load in self.options[i].loads:
            k = self.place[d]
            rest[k] -= load
            if rest[k] < 0 and load:
                return None
        return tuple(rest)

    def follow(self, price: Sequence[int]) -> Guided:
        """What the node can come to by a guide's prices."""
        self.looked = 0
        gains = {i: -sum(price[row] * n for row, n in self.stage.use[i]) for i in self.options}
        chains = [self.ladders(k, gains, 0, 0, keep=True) for k in range(len(self.devices))]
        lefts = {left: gain for left, (gain, _) in self.widest(gains, 0).items()}
        tops = {
            left: [at(chain[0], space) for chain, space in zip(chains, left, strict=True)] for left in lefts
        }
        best = max(gain + sum(tops[left]) for left, gain in lefts.items())
        others = [
            max(gain + sum(tops[left]) - tops[left][k] for left, gain in lefts.items())
            for k in range(len(self.devices))
        ]
        return Guided(list(price), chains, others, best, {})


def at(ladder: Ladder, space: int) -> int:
    """What is earned at the most with so many bytes."""
    loads, entries = ladder
    return entries[bisect_right(loads, space) - 1][0]


def _front(entries: list[Entry]) -> list[Entry]:
    entries.sort(key=lambda e: (e[0], -e[1]))
    found: list[Entry] = []
    for e in entries:
        if not found or e[1] > found[-1][1]:
            found.append(e)
    return found


def _sums(some: Sequence[Entry], others: Sequence[Entry], cap: int) -> list[Entry]:
    return [(a + b, x + y, (p, q)) for a, x, p in some for b, y, q in others if a + b <= cap]
