"""All that one node can hold, and the best way to hold it: {how much of each thing counted: (value, options)}. Pure; the search combines nodes.

A GPU is filled model by model. Of the ways to put the same on it only those stay that take less or are worth more than the others, and only as
long as what still fits beside them may bring what the node must earn. The GPUs of a node are then joined, under each set of models that is
split over several of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from homelab.placement.node import Guided, Ladder, Node, at
from homelab.placement.packing import NONE, NOTHING, Budget, Split, Way
from homelab.placement.stage import PARTS


class Columns:
    """What one node can hold under these prices."""

    def __init__(self, node: Node, price: Sequence[int], budget: Budget, guides: Sequence[Guided]) -> None:
        """`guides`: what the node must come to by other prices."""
        self.node, self.price, self.budget, self.guides = node, price, budget, guides
        self.stage, self.counts, self.bias = node.stage, node.counts, node.bias
        self.tight_ram, self.tight_disk, self.plain = node.tight_ram, node.tight_disk, node.plain
        self._costs: dict[int, int] = {}

    def best(self, slack: int, most: int) -> dict[int, tuple[int, Any]]:
        """The best way to hold each multiset of models that the node can hold, of those that earn after their prices no more than `slack` less
        than the most that it can earn; no more than `most` at any time, those that earn most."""
        price = self.price
        gains = self.node.gains(price)
        chains = [
            self.node.ladders(k, gains, self.stage.spread, self.stage.beside, keep=True)
            for k in range(len(self.node.devices))
        ]
        ladders = [chain[0] for chain in chains]
        wide = self.node.widest(gains, self.stage.spread)
        lefts = {
            left: gain + sum(at(ladder, space) for ladder, space in zip(ladders, left, strict=True))
            for left, (gain, _) in wide.items()
        }
        least = max(lefts.values()) - slack
        rent = PARTS * sum(price[self.node.ram_row : self.node.ram_row + 2])
        splits = self._splits(gains, ladders, least)
        # What the other devices and the splits bring, where this device has its bytes.
        filled = []
        for k, chain in enumerate(chains):
            beside = []
            for (held, left), ways in splits.items():
                total = self._best(held, ways) + sum(
                    at(x, space) for x, space in zip(ladders, left, strict=True)
                )
                beside.append((total - at(ladders[k], left[k]), left[k]))
            cap = max((space for _, space in beside), default=0)
            filled.append(self._fill(k, chain, cap, least - max((b for b, _ in beside), default=-1 << 4096)))
        ranked = [
            sorted(
                ((self._best(held, ways), held, ways) for held, ways in sets.items()),
                key=lambda r: (-r[0], r[1]),
            )[:most]
            for sets in filled
        ]
        exact = [self._exact(sets) for sets in filled]
        best: dict[int, tuple[int, Any]] = {}
        for (held, left), ways in splits.items():
            hopes = [0]
            for (loads, earned), space in zip(reversed(exact), reversed(left), strict=True):
                hopes.append(hopes[-1] + earned[bisect_right(loads, space) - 1])
            hopes.reverse()
            if self._best(held, ways) + hopes[0] < least:
                continue
            joined: dict[int, list[Way]] = {held: ways}
            for k, (sets, space, hope) in enumerate(zip(ranked, left, hopes[1:], strict=True), 1):
                joined = {
                    h: ws
                    for h, ws in self._join(joined, sets, space, least - hope).items()
                    if self._led(h, left, k)
                }
                if len(joined) > most:
                    joined = dict(
                        sorted(joined.items(), key=lambda j: (-self._best(j[0], j[1]), j[0]))[:most]
                    )
            for held_now, found in joined.items():
                _, value, _, _, picks = max(found, key=lambda w: w[1])
                if value - self._cost(held_now) >= least + rent and (
                    held_now not in best or value > best[held_now][0]
                ):
                    best[held_now] = (value, picks)
        if len(best) > most:
            best = dict(sorted(best.items(), key=lambda b: (self._cost(b[0]) - b[1][0], b[0]))[:most])
        return best

    def _led(self, held: int, left: Sequence[int], k: int) -> bool:
        """Whether the devices from `k` on may still bring what the guides ask for."""
        return all(
            g.earned(self.counts, held)
            + sum(at(chain[0], space) for chain, space in zip(g.chains[k:], left[k:], strict=True))
            >= g.least
            for g in self.guides
        )

    def _cost(self, held: int) -> int:
        if held not in self._costs:
            self._costs[held] = sum(
                p * self.counts.of(held, row)
                for row, p in enumerate(self.price[: len(self.counts.limits)])
                if p
            )
        return self._costs[held]

    def _best(self, held: int, ways: Sequence[Way]) -> int:
        if self.plain:
            return max(w[1] for w in ways) - self._cost(held)
        return max(w[1] - self._room(w) for w in ways) - self._cost(held)

    def _room(self, way: Way) -> int:
        """The price of the RAM and the disk that it takes."""
        if self.plain:
            return 0
        ram, disk = self.price[self.node.ram_row : self.node.ram_row + 2]
        return (ram * self.node.ram_parts(way[2]) if ram else 0) + (
            disk * sum(self.node.shares[name] for name, _ in way[3]) if disk else 0
        )

    def _exact(self, sets: Mapping[int, list[Way]]) -> tuple[list[int], list[int]]:
        """(bytes, earned): as a ladder, of what the device can really hold."""
        loads, earned = [0], [0 if 0 in sets else -1 << 4096]
        for load, gain in sorted(
            (w[0], w[1] - self._room(w) - self._cost(held)) for held, ways in sets.items() for w in ways
        ):
            if gain > earned[-1]:
                loads.append(load)
                earned.append(gain)
        return loads, earned

    def _allowed(self, host: int, fetch: frozenset[tuple[str, int]]) -> bool:
        return (not host or host <= self.node.room.ram) and (
            not fetch or sum(size for _, size in fetch) <= self.node.room.disk
        )

    def _way(self, i: int, gain: int) -> Way:
        o = self.node.options[i]
        fetch = frozenset({(o.fetch, o.fetch_bytes)}) if o.fetch and self.tight_disk else NONE
        load = o.loads[0][1] if len(o.loads) == 1 else 0
        return (load, self.stage.values[i] + gain, o.host if self.tight_ram else 0, fetch, i)

    def _fill(self, k: int, chain: Sequence[Ladder], cap: int, least: int) -> dict[int, list[Way]]:
        """What one device can hold in so many bytes, with every way to hold it that is not worse than another: where it earns enough."""
        unit, spread, beside = self.stage.unit, self.stage.spread, self.stage.beside
        found: dict[int, list[Way]] = {0: [NOTHING]}
        for step, (model, (loads, tops)) in enumerate(
            zip(sorted(self.node.single[k]), chain[1:], strict=True), 1
        ):
            mine = sorted(
                (i for i in self.node.single[k][model] if self.node.load(i) <= cap),
                key=lambda i: not self.node.options[i].once,
            )

            def useful(
                held: int,
                ways: list[Way],
                step: int = step,
                loads: list[int] = loads,
                tops: list[tuple[int, Any]] = tops,
            ) -> list[Way]:
                for g in self.guides:
                    if (
                        g.earned(self.counts, held) + at(g.chains[k][step], cap - ways[0][0])
                        < g.least - g.others[k]
                    ):
                        return []
                need = least + self._cost(held)
                return [
                    w
                    for w in ways
                    if w[1] - self._room(w) + tops[bisect_right(loads, cap - w[0]) - 1][0] >= need
                ]

            grown = {(held, -1): ways for held, ways in found.items()}
            total = dict(found)
            for count in range(self.node.limits[model]):
                again: dict[tuple[int, int], list[Way]] = {}
                for (held, last), ways in grown.items():
                    for turn, i in enumerate(mine):
                        # In one order only; a running one no more than once.
                        if turn < last or (turn == last and self.node.options[i].once):
                            continue
                        both = held + unit[i]
                        if (both + self.bias) & self.counts.guard:
                            continue
                        joined = self._product(ways, self._way(i, -beside if count else spread), cap)
                        if joined:
                            again.setdefault((both, turn), []).extend(joined)
                grown = {}
                for (held, turn), ways in again.items():
                    ways = self._front(ways)
                    grown[held, turn] = ways
                    total[held] = self._front(total.get(held, []) + ways)
                if not grown or count + 1 == self.node.limits[model]:
                    break
            found = {held: kept for held, ways in total.items() if (kept := useful(held, ways))}
        return found

    def _product(self, ways: Sequence[Way], more: Way, cap: int) -> list[Way]:
        self.budget.spend(len(ways))
        found = []
        load2, value2, host2, fetch2, picks2 = more
        for load, value, host, fetch, picks in ways:
            if load + load2 <= cap:
                both = fetch | fetch2 if fetch2 else fetch
                if not (host2 or fetch2) or self._allowed(host + host2, both):
                    found.append((load + load2, value + value2, host + host2, both, (picks, picks2)))
        return found

    def _front(self, ways: list[Way]) -> list[Way]:
        """Without those that take no less and are worth no more than another."""
        if len(ways) < 2:
            return ways
        ways.sort(key=lambda w: (w[0], -w[1]))
        found: list[Way] = []
        if not self.plain:
            self.budget.spend(len(ways) * len(ways) // 20)
        for way in ways:
            if not self.plain:
                if any(w[1] >= way[1] and w[2] <= way[2] and w[3] <= way[3] for w in found):
                    continue
            elif found and way[1] <= found[-1][1]:
                continue
            found.append(way)
        return found

    def _splits(
        self, gains: Mapping[int, int], ladders: Sequence[Ladder], least: int
    ) -> dict[Split, list[Way]]:
        """Sets of models over several devices (or none): by what they are and what they leave of each device."""
        found: dict[Split, list[Way]] = {(0, tuple(self.node.devices.values())): [NOTHING]}
        order = list(self.node.wide)
        spread = self.stage.spread
        tops = [
            self.node.limits[m] * max(0, spread + max(gains[i] for i in self.node.wide[m])) for m in order
        ]
        for number, model in enumerate(order):
            later = sum(tops[number + 1 :])
            for i in sorted(self.node.wide[model], key=lambda i: not self.node.options[i].once):
                unit = self.stage.unit[i]
                fresh = found
                while fresh:
                    again: dict[Split, list[Way]] = {}
                    for (held, left), ways in fresh.items():
                        rest = self.node.rest(left, i)
                        self.budget.spend(1)
                        if rest is None or (held + unit + self.bias) & self.counts.guard:
                            continue
                        new = not self.counts.models(held) & self.counts.models(unit)
                        joined = self._product(ways, (0, *self._way(i, spread * new)[1:]), 0)
                        # More of the same model may still come.
                        hope = (
                            later
                            + tops[number]
                            + sum(at(x, space) for x, space in zip(ladders, rest, strict=True))
                        )
                        need = least + self._cost(held + unit) - hope
                        if joined := [w for w in joined if w[1] - self._room(w) >= need]:
                            again[held + unit, rest] = self._front(joined)
                    for key, ways in again.items():
                        found = found | {key: self._front(found.get(key, []) + ways)}
                    fresh = {} if self.node.options[i].once else again
        kept = {}
        for (held, left), ways in found.items():
            need = (
                least + self._cost(held) - sum(at(x, space) for x, space in zip(ladders, left, strict=True))
            )
            good = [w for w in ways if w[1] - self._room(w) >= need]
            if good and self._led(held, left, 0):
                kept[held, left] = good
        return kept

    def _join(
        self,
        held: Mapping[int, list[Way]],
        device: Sequence[tuple[int, int, list[Way]]],
        space: int,
        least: int,
    ) -> dict[int, list[Way]]:
        """What is held already, with one more device filled as far as `space` bytes, as far as it earns enough. `device`: those that earn most
        first."""
        here: list[tuple[int, int, int, list[Way]]] = []
        for earned, more, ways in device:
            fitting = [(0, *w[1:]) for w in ways if w[0] <= space]
            if fitting:
                here.append(
                    (
                        earned,
                        more,
                        self.counts.models(more),
                        [fitting[-1]] if self.plain else self._front(fitting),
                    )
                )
        found: dict[int, list[Way]] = {}
        bias, guard, spread = self.bias, self.counts.guard, self.stage.spread
        for have, ways in held.items():
            there = self.counts.models(have)
            short = least - self._best(have, ways)
            paid = self._cost(have)
            steps = 0
            for earned, more, models, others in here:
                if earned < short:
                    break
                steps += len(ways) * len(others)
                both = have + more
                if (both + bias) & guard:
                    continue
                # What it is worth must make up for its prices, which are those of its parts.
                need = least + paid + self._cost(more) + (twice := (there & models).bit_count() * spread)
                if self.plain:
                    value = ways[0][1] + others[0][1]
                    if value >= need and (both not in found or value - twice > found[both][0][1]):
                        found[both] = [(0, value - twice, 0, NONE, (ways[0][4], others[0][4]))]
                    continue
                joined = [
                    (0, w[1] + v[1] - twice, w[2] + v[2], w[3] | v[3], (w[4], v[4]))
                    for w in ways
                    for v in others
                    if w[1] + v[1] >= need
                ]
                joined = [
                    w for w in joined if self._allowed(w[2], w[3]) and w[1] - self._room(w) + twice >= need
                ]
                if both in found:
                    joined += found[both]
                if joined:
                    found[both] = self._front(joined)
            self.budget.spend(steps)
        return found
