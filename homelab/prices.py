"""A bound on what a household can come to, by prices for models. Pure.

If each replica that is still missing costs a price, and every device takes what pays best by itself, whatever the others take, then what they
earn together and the prices of all replicas are no less than what any choice comes to (a Lagrangian bound). Prices go down where a model is
taken too seldom, up where too often, until the bound is near to the best choice known."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from homelab.packing import Counts, Split, Way

ROUNDS = 200
# How far a step goes, in 1024ths of what would close the gap; less where the prices are nearly right.
FULL_PACE, WARM_PACE = 1024, 64
# Entries looked at in all rounds together.
LOOKS = 1_000_000


@dataclass(frozen=True, slots=True)
class Stock:
    """What one node can do: for each device (load, value, counts) of what it can hold, and for each set of splits (value, counts, bytes left
    of each device)."""

    devices: tuple[tuple[tuple[int, int, int], ...], ...]
    splits: tuple[tuple[int, int, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.devices)) + len(self.splits) * len(self.devices)


def stock(filled: Sequence[Mapping[int, Sequence[Way]]], splits: Mapping[Split, Sequence[Way]]) -> Stock:
    whole = len(splits) == 1  # nothing is split: each device has all its bytes
    devices = []
    for sets in filled:
        entries = [(w[0], w[1], held) for held, ways in sets.items() for w in ([max(ways, key=lambda w: w[1])] if whole else ways)]
        devices.append(tuple(sorted(entries)))
    return Stock(tuple(devices), tuple((max(w[1] for w in ways), held, left) for (held, left, _), ways in splits.items()))


class Prices:
    """Prices of models (`price`), and what each node earns under them (`earned`). `first` is what the first of several replicas is worth beyond
    the others: part of it is a gift to every replica, which the price takes back from those that are missing."""

    def __init__(
        self,
        counts: Counts,
        stocks: Sequence[Stock],
        start: tuple[list[int], list[int]],
        known: int,
        first: Sequence[int],
        pace: int = FULL_PACE,
    ) -> None:
        self.counts, self.stocks = counts, stocks
        self._parts: dict[int, tuple[tuple[int, int], ...]] = {}
        asked, gift = start
        self.bound = 1 << 4096
        limits, stale = counts.limits, 0
        recent: int | None = None
        size = sum(s.size for s in stocks)
        rounds = max(20, min(ROUNDS, 10 + size // 10, LOOKS // max(1, size)))
        way = [0] * (2 * len(asked))  # the direction, with some of the last one in it
        for _ in range(rounds):
            price = [p - g for p, g in zip(asked, gift, strict=True)]
            earned, taken = [], [0] * len(price)
            for s in stocks:
                gain, sets = self._best(s, price)
                earned.append(gain)
                for held in sets:
                    for m, n in self.parts(held):
                        taken[m] += n
            full = sum(p * limit + f - g for p, limit, f, g in zip(asked, limits, first, gift, strict=True))
            bound = full + sum(earned)
            if bound < self.bound:
                self.full, self.bound, self.price, self.earned, self.best = full, bound, price, earned, (asked, gift)
            if self.bound <= known:
                break
            recent, stale = (bound, 0) if recent is None or bound < recent else (recent, stale + 1)
            if stale == 6:  # steps are too large to come nearer from here
                pace, recent, stale = max(1, pace // 2), None, 0
            lack = [limit - n for limit, n in zip(limits, taken, strict=True)] + [
                n - 1 if f else 0 for n, f in zip(taken, first, strict=True)
            ]
            way = [100 * x + 7 * w // 10 for x, w in zip(lack, way, strict=True)]
            norm = sum(w * w for w, p in zip(way, asked + gift, strict=True) if w < 0 or p > 0)  # nothing cannot become less
            if not norm:
                break
            step = (bound - known) * 100 * pace
            moved = [max(0, p - step * w // (FULL_PACE * norm)) for p, w in zip(asked + gift, way, strict=True)]
            asked, gift = moved[: len(asked)], [min(g, f) for g, f in zip(moved[len(asked) :], first, strict=True)]

    def parts(self, held: int) -> tuple[tuple[int, int], ...]:
        """(model, how many) of what is in it."""
        if held not in self._parts:
            self._parts[held] = tuple((m, n) for m in range(len(self.counts.limits)) if (n := self.counts.of(held, m)))
        return self._parts[held]

    def cost(self, held: int, price: Sequence[int] | None = None) -> int:
        price = self.price if price is None else price
        return sum(price[m] * n for m, n in self.parts(held))

    def ladder(self, device: Sequence[tuple[int, int, int]], price: Sequence[int] | None = None) -> tuple[list[int], list[tuple[int, int]]]:
        """(loads, (earned, counts)): the best that a device earns with so many bytes, each entry better than the one before."""
        price = self.price if price is None else price
        loads, best = [0], [(0, 0)]
        for load, value, held in device:
            gain = value
            for m, n in self.parts(held):
                gain -= price[m] * n
            if gain > best[-1][0]:
                loads.append(load)
                best.append((gain, held))
        return loads, best

    def _best(self, s: Stock, price: Sequence[int]) -> tuple[int, list[int]]:
        ladders = [self.ladder(d, price) for d in s.devices]
        found: tuple[int, list[int]] = (-1, [])
        for value, held, left in s.splits:
            gain, sets = value - self.cost(held, price), [held]
            for (loads, best), space in zip(ladders, left, strict=True):
                earned, what = best[bisect_right(loads, space) - 1]
                gain += earned
                sets.append(what)
            if gain > found[0]:
                found = (gain, sets)
        return found


def columns_stock(columns: Sequence[tuple[int, int, Any]]) -> Stock:
    """A node as one device: what it can hold in all is known."""
    return Stock((tuple(sorted((0, value, held) for held, value, _ in columns)),), ((0, 0, (0,)),))
