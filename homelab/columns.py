"""All that one node can hold, and the best way to hold it: {how many of each model: (value, options)}. Pure; the search combines nodes.

A GPU is filled model by model. Of the ways to put the same models on it only those stay that take less or are worth more than the others.
The GPUs of a node are then joined, under each set of models that is split over several of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from homelab.assignment import NEEDLESS_SPLITS, Problem, Scale
from homelab.packing import NONE, NOTHING, Counts, Split, Way
from homelab.prices import Prices, Stock, stock


@dataclass(slots=True)
class Budget:
    """Steps that may still be taken; `cut` says that something was left out for want of them."""

    steps: int
    keep: int = 1 << 30  # ways to keep of each set of models
    sets: int = 1 << 30  # sets of models to keep
    cut: bool = False

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0 and self.keep > 4:
            self.keep, self.sets, self.cut = 2, 30, True


def options_of(picks: Any) -> list[int]:
    """The options in nested pairs."""
    found, rest = [], [picks]
    while rest:
        pick = rest.pop()
        if isinstance(pick, int):
            found.append(pick)
        elif pick is not None:
            rest += pick
    return found


class Node:
    """One node of a problem, with the options that lie on it."""

    def __init__(
        self, problem: Problem, scale: Scale, counts: Counts, node: int, indices: Sequence[int], budget: Budget, least: Callable[[int], int]
    ) -> None:
        """`least`: what a way to hold so many of each model must be worth to be of use."""
        self.least = least
        self.scale, self.counts, self.budget = scale, counts, budget
        self.room = problem.rooms[node]
        self.wants = problem.wants
        self.options = {i: problem.options[i] for i in indices}
        self.limits = [min(limit, want.per_node) for limit, want in zip(counts.limits, problem.wants, strict=True)]
        self.bias = counts.within(self.limits)
        self.devices = {d: max(0, free) for d, (n, free) in enumerate(problem.devices) if n == node}
        # Where nothing that the devices can hold exceeds RAM or disk, neither is counted.
        mine = self.options.values()
        fetched = sum({o.fetch: o.fetch_bytes for o in mine if o.fetch}.values())
        density = max((-(-o.fetch_bytes // max(1, sum(n for _, n in o.loads))) for o in mine), default=0)
        self.tight_disk = min(fetched, density * sum(self.devices.values())) > self.room.disk
        self.tight_ram = self._most_hosted() > self.room.ram

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
        return sum(sorted((host for m, host in most.items() for _ in range(min(self.limits[m], 100))), reverse=True)[:count])

    def fill(self) -> Stock:
        """What each device can hold by itself, and what can be split over several."""
        by_device: dict[int, list[int]] = {d: [] for d in self.devices}
        wide = []
        for i, o in self.options.items():
            if len(o.loads) == 1:
                by_device[o.loads[0][0]].append(i)
            else:
                wide.append(i)
        self.filled = [self._fill(d, mine) for d, mine in by_device.items()]
        self.splits = self._splits(wide)
        return stock(self.filled, self.splits)

    def columns(self, prices: Prices, mine: Stock, least: int, most: int = 1 << 30) -> dict[int, tuple[int, Any]]:
        """The best way to hold each multiset of models that the node can hold, of those that earn at least so much after their prices; no more
        than `most` at any time, those that earn most."""
        ladders = [prices.ladder(d) for d in mine.devices]
        ranked = [_ranked(sets, prices)[:most] for sets in self.filled]
        best: dict[int, tuple[int, Any]] = {}
        for (held, left, _), ways in self.splits.items():
            # What the devices from each one on can earn.
            hopes = [0]
            for (loads, earned), space in zip(reversed(ladders), reversed(left), strict=True):
                hopes.append(hopes[-1] + earned[bisect_right(loads, space) - 1][0])
            hopes.reverse()
            if max(w[1] for w in ways) - prices.cost(held) + hopes[0] < least:
                continue
            joined: dict[int, list[Way]] = {held: ways}
            for sets, space, hope in zip(ranked, left, hopes[1:], strict=True):
                joined = {h: ws for _, h, ws in _ranked(self._join(joined, sets, space, prices, least - hope), prices)[:most]}
            for held_now, found in joined.items():
                _, value, _, _, picks = max(found, key=lambda w: w[1])
                if held_now not in best or value > best[held_now][0]:
                    best[held_now] = (value, picks)
        return dict(sorted(best.items(), key=lambda b: (prices.cost(b[0]) - b[1][0], b[0]))[:most])

    def _allowed(self, host: int, fetch: frozenset[tuple[str, int]]) -> bool:
        return (not host or host <= self.room.ram) and (not fetch or sum(size for _, size in fetch) <= self.room.disk)

    def _way(self, i: int) -> Way:
        o = self.options[i]
        fetch = frozenset({(o.fetch, o.fetch_bytes)}) if o.fetch and self.tight_disk else frozenset()
        return (o.loads[0][1] if len(o.loads) == 1 else 0, self.scale.value(o), o.host if self.tight_ram else 0, fetch, i)

    def _fill(self, device: int, indices: Iterable[int]) -> dict[int, list[Way]]:
        """What one device can hold, with every way to hold it that is not worse than another."""
        cap = self.devices[device]
        by_model: dict[int, list[int]] = {}
        for i in indices:
            by_model.setdefault(self.options[i].model, []).append(i)
        found: dict[int, list[Way]] = {0: [NOTHING]}
        for model in sorted(by_model):
            bundles = self._bundles(model, by_model[model], cap)
            unit = self.counts.unit[model]
            added: dict[int, list[Way]] = {}
            for held, ways in found.items():
                for count, more in bundles.items():
                    if joined := self._useful(held + count * unit, self._product(ways, more, cap)):
                        added[held + count * unit] = joined
            found |= added
            if len(found) > self.budget.sets:
                found = self._thinned(found)
        return found

    def _bundles(self, model: int, indices: Sequence[int], cap: int) -> dict[int, list[Way]]:
        """One and more of a model on one device. A running one is taken at most once."""
        limit = self.limits[model]
        found: dict[int, list[Way]] = {0: [NOTHING]}
        for i in indices:
            if self.options[i].once:
                way = [self._way(i)]
                for count in sorted(found, reverse=True):
                    if count < limit and (joined := self._product(found[count], way, cap)):
                        found[count + 1] = self._front(found.get(count + 1, []) + joined)
        fresh = self._front([self._way(i) for i in indices if not self.options[i].once and self.options[i].loads[0][1] <= cap])
        again, count = fresh, 1
        kept = dict(found)
        while again and count <= limit:
            for k, ways in kept.items():
                if k + count <= limit and (joined := self._product(ways, again, cap)):
                    found[k + count] = self._front(found.get(k + count, []) + joined)
            again, count = self._product(again, fresh, cap), count + 1
        s = self.scale
        return {
            count: [(load, value + s.spread - (count - 1) * s.beside, host, fetch, picks) for load, value, host, fetch, picks in ways]
            for count, ways in found.items()
            if count
        }

    def _product(self, ways: Sequence[Way], more: Sequence[Way], cap: int) -> list[Way]:
        self.budget.spend(len(ways) * len(more))
        found = []
        for load, value, host, fetch, picks in ways:
            for load2, value2, host2, fetch2, picks2 in more:
                if load + load2 <= cap:
                    both = fetch | fetch2 if fetch2 else fetch
                    if not (host2 or fetch2) or self._allowed(host + host2, both):
                        found.append((load + load2, value + value2, host + host2, both, (picks, picks2)))
        return self._front(found)

    def _front(self, ways: list[Way]) -> list[Way]:
        """Without those that take no less and are worth no more than another."""
        if len(ways) < 2:
            return ways
        ways.sort(key=lambda w: (w[0], -w[1]))
        found: list[Way] = []
        if self.tight_ram or self.tight_disk:
            self.budget.spend(len(ways) * len(ways) // 20)
        for way in ways:
            if self.tight_ram or self.tight_disk:
                if any(w[1] >= way[1] and w[2] <= way[2] and w[3] <= way[3] for w in found):
                    continue
            elif found and way[1] <= found[-1][1]:
                continue
            found.append(way)
        if len(found) > self.budget.keep:
            found = [*found[: self.budget.keep // 2], *found[-(self.budget.keep // 2) :]]
        return found

    def _useful(self, held: int, ways: list[Way]) -> list[Way]:
        """Those with which the whole may still become better than what is known."""
        if not ways or self.budget.cut:
            return ways
        least = self.least(held)
        return [w for w in ways if w[1] >= least]

    def _thinned(self, found: Mapping[int, list[Way]]) -> dict[int, list[Way]]:
        """The sets worth most, and with them those of one model."""
        self.budget.cut = True
        order = sorted(found, key=lambda held: (self.counts.models(held).bit_count() > 1, -found[held][-1][1], held))
        return {held: found[held] for held in order[: self.budget.sets]}

    def _splits(self, indices: Sequence[int]) -> dict[Split, list[Way]]:
        """Sets of models over several devices (or none): by what they are and what they leave of each device."""
        place = {d: i for i, d in enumerate(self.devices)}
        found: dict[Split, list[Way]] = {(0, tuple(self.devices.values()), 0): [NOTHING]}
        for i in indices:
            o = self.options[i]
            unit, way = self.counts.unit[o.model], self._way(i)
            fresh = found
            while fresh:
                again: dict[Split, list[Way]] = {}
                for (held, left, needless), ways in fresh.items():
                    if needless + o.avoidable > NEEDLESS_SPLITS:
                        continue
                    rest = list(left)
                    for d, load in o.loads:
                        rest[place[d]] -= load
                    if min(rest, default=0) < 0 and any(rest[place[d]] < 0 for d, _ in o.loads):
                        continue
                    if (held + unit + self.bias) & self.counts.guard:
                        continue
                    new = not self.counts.models(held) & self.counts.models(unit)
                    gain = (0, way[1] + self.scale.spread * new, *way[2:])
                    if joined := self._useful(held + unit, self._product(ways, [gain], 0)):
                        again[held + unit, tuple(rest), needless + o.avoidable] = joined
                for key, ways in again.items():
                    found = found | {key: self._front(found.get(key, []) + ways)}
                if len(found) > self.budget.sets:
                    self.budget.cut = True
                    found = dict(list(found.items())[: self.budget.sets])
                fresh = {} if o.once else again
        return found

    def _join(
        self, held: Mapping[int, list[Way]], device: Sequence[tuple[int, int, list[Way]]], space: int, prices: Prices, least: int
    ) -> dict[int, list[Way]]:
        """What is held already, with one more device filled as far as `space` bytes, as far as it earns enough. `device`: those that earn most
        first."""
        here: list[tuple[int, int, int, list[Way]]] = []
        plain = not (self.tight_ram or self.tight_disk)
        for earned, more, ways in device:
            fitting = [(0, *w[1:]) for w in ways if w[0] <= space]
            if fitting:
                here.append((earned, more, self.counts.models(more), [fitting[-1]] if plain else self._front(fitting)))
        costs = {more: prices.cost(more) for _, more, _, _ in here}
        found: dict[int, list[Way]] = {}
        bias, guard, spread = self.bias, self.counts.guard, self.scale.spread
        for have, ways in held.items():
            there = self.counts.models(have)
            paid = prices.cost(have)
            short = least - (max(w[1] for w in ways) - paid)
            steps = 0
            for earned, more, models, others in here:
                if earned < short:
                    break
                steps += len(ways) * len(others)
                both = have + more
                if (both + bias) & guard:
                    continue
                # What it is worth must make up for its prices, which are those of its parts.
                need = least + paid + costs[more] + (twice := (there & models).bit_count() * spread)
                if plain:
                    value = ways[0][1] + others[0][1]
                    if value >= need and (both not in found or value - twice > found[both][0][1]):
                        found[both] = [(0, value - twice, 0, NONE, (ways[0][4], others[0][4]))]
                    continue
                joined = [
                    (0, w[1] + v[1] - twice, w[2] + v[2], w[3] | v[3], (w[4], v[4])) for w in ways for v in others if w[1] + v[1] >= need
                ]
                joined = [w for w in joined if self._allowed(w[2], w[3])]
                if both in found:
                    joined += found[both]
                if joined:
                    found[both] = self._front(joined)
            self.budget.spend(steps)
            if self.budget.cut:
                break
        return found


def _ranked(sets: Mapping[int, list[Way]], prices: Prices) -> list[tuple[int, int, list[Way]]]:
    """(earned after prices, counts, ways), those that earn most first."""
    return sorted(((max(w[1] for w in ways) - prices.cost(held), held, ways) for held, ways in sets.items()), key=lambda r: (-r[0], r[1]))
