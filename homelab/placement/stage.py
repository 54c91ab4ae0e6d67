"""One stage of the search: what is still open of the levels, as one number, with the levels above as things to be had so much of. Pure."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from copy import copy

from homelab.placement.assignment import BESIDE, LEVELS, SPREAD, Option, Problem
from homelab.placement.packing import Counts

# Values are this many times what they stand for, so that prices can be parts of it.
FINE = 1 << 24
# RAM and disk of a node are counted in so many parts.
PARTS = 64


# Prices by what they are for, and whether they are for a part of it as counted (or for one of what the level counts).
Guide = dict[tuple[str, int], tuple[int, int]]


class Stage:
    """The levels from `first` up to `last`, where those before are `settled`: `values` of the options, and what they `use` of what is counted
    (models, then levels settled), of which there must be between `lows` and `counts.limits`."""

    def __init__(self, problem: Problem, indices: Iterable[int], settled: Sequence[int], last: int) -> None:
        self.problem, self.settled = problem, settled
        self.first, self.last = len(settled), last
        classes = problem.classes
        top = 2 * len(classes)
        self.own = range(self.first - top, last - top)  # of `LEVELS`, where there are some
        ranks = {c: k for k, c in enumerate(classes)}
        self.rank = rank = [ranks[w.priority] for w in problem.wants]
        only_models = self.first < len(classes)
        self.indices = [
            i for i in indices if self._open(problem.options[i], rank[problem.options[i].model], only_models)
        ]
        options = {i: problem.options[i] for i in self.indices}
        # Models, as far as the levels settled say how many.
        # More than one of each matters only once their number is settled or to be settled.
        self.limits = [
            1 if len(classes) + r > self.first else w.replicas
            for w, r in zip(problem.wants, rank, strict=True)
        ]
        self.lows = [0] * len(self.limits)
        uses: list[dict[int, int]] = []
        bounds: list[int] = []
        self.names: list[tuple[str, int]] = [("model", m) for m in range(len(rank))]
        grains: dict[int, int] = {}
        self.reach_models: list[tuple[list[int], int]] = []
        for c in range(len(classes)):
            mine = [m for m, r in enumerate(rank) if r == c]
            if c < self.first and settled[c] == len(mine):
                for m in mine:
                    self.lows[m] = 1
            elif c < self.first and all(self.limits[m] == 1 for m in mine):
                uses.append({i: 1 for i, o in options.items() if rank[o.model] == c})
                bounds.append(settled[c])
                self.names.append(("class", c))
            elif c < self.first:
                self.reach_models.append((mine, settled[c]))
            if len(classes) + c < self.first:
                if settled[len(classes) + c] == sum(problem.wants[m].replicas for m in mine):
                    for m in mine:
                        self.lows[m] = self.limits[m]
                elif not all(problem.wants[m].replicas == 1 for m in mine):
                    uses.append({i: 1 for i, o in options.items() if rank[o.model] == c})
                    bounds.append(settled[len(classes) + c])
                    self.names.append(("class", c))
        for level, total in enumerate(settled[top:]):
            used = {i: abs(o.worth[level]) for i, o in options.items() if o.worth[level]}
            if total and used:
                grain = math.gcd(*used.values())
                uses.append({i: n // grain for i, n in used.items()})
                bounds.append(abs(total) // grain)
                self.names.append(("level", level))
                grains[level] = grain if total > 0 else -grain
        self.grains = grains
        self.counts = Counts(self.limits + bounds, len(self.limits))
        self.lows += bounds
        self.use = {
            i: ((o.model, 1), *((len(rank) + row, used[i]) for row, used in enumerate(uses) if i in used))
            for i, o in options.items()
        }
        self.unit = {i: sum(n * self.counts.unit[row] for row, n in use) for i, use in self.use.items()}
        # What counts now.
        self.weights = weights(problem, self.indices, self.first, last)
        own = [(level, self.weights[level + top - self.first]) for level in self.own if level >= 0]
        self.values = {i: FINE * sum(w * o.worth[level] for level, w in own) for i, o in options.items()}
        if self.first < top:
            level = self.first % len(classes)
            self.values = {i: FINE * (rank[o.model] == level) for i, o in options.items()}
        of = dict(own)
        self.spread, self.beside = FINE * of.get(SPREAD, 0), FINE * of.get(BESIDE, 0)
        self.grain = math.gcd(*self.values.values(), self.spread, self.beside) or FINE

    def guide(self, price: Sequence[int]) -> Guide:
        """The prices of this stage, for later ones: what was to be had so much of then is counted there, and so is what this stage settles."""
        found = {name: (p, 1) for name, p in zip(self.names, price, strict=False) if p}
        top = 2 * len(self.problem.classes)
        if self.first >= top:
            return found | {
                ("level", level): (-FINE * self.weights[level + top - self.first], 0) for level in self.own
            }
        return {}

    def follow(self, guide: Guide) -> list[int]:
        """A guide as prices of what is counted here. No value is left in them: all is settled."""
        found = []
        for name in self.names:
            p, kind = guide.get(name, (0, 1))
            found.append(p if kind else p * self.grains[name[1]])
        return found

    def part(self, indices: list[int]) -> Stage:
        """The same with some of its options only."""
        found = copy(self)
        found.indices = indices
        return found

    def _open(self, o: Option, rank: int, only_models: bool) -> bool:
        """Whether an option may be used where the levels settled are what they are."""
        if only_models:
            return rank <= self.first
        return not any(
            not total and o.worth[level]
            for level, total in enumerate(self.settled[2 * len(self.problem.classes) :])
            if level not in (SPREAD, BESIDE)
        )

    def worth(self, found: Sequence[int]) -> int:
        return FINE * sum(w * x for w, x in zip(self.weights, found[self.first : self.last], strict=True))

    def decode(self, value: int) -> list[int]:
        """The levels of this stage that a value stands for."""
        found = []
        value //= FINE
        for weight in self.weights:
            x = (2 * value + weight) // (2 * weight)  # to the nearest: what is below may be negative
            found.append(x)
            value -= x * weight
        return found


def weights(problem: Problem, indices: Iterable[int], first: int, last: int) -> list[int]:
    """What each level weighs, from `first` up to `last`: more than everything that the lower ones can come to."""
    most = sum(w.replicas for w in problem.wants)
    top = 2 * len(problem.classes)
    tops = [
        most * max((abs(x) for x in column), default=0)
        for column in zip(*(problem.options[i].worth for i in indices), strict=True)
    ]
    tops = [most] * top + (tops or [0] * len(LEVELS))
    tops[top + SPREAD] = tops[top + BESIDE] = most
    found, weight = [], 1
    for most_of_it in reversed(tops[first:last]):
        found.append(weight)
        weight *= 2 * most_of_it + 1
    return found[::-1]


def leanest(problem: Problem, indices: Sequence[int], decisive: int) -> list[int]:
    """The options that no other on the same devices makes needless, as far as the first levels go."""
    found = []
    for mine in seats(problem, indices, decisive).values():
        lean: list[int] = []
        for i in sorted(
            mine,
            key=lambda i: (problem.options[i].loads, problem.options[i].host, problem.options[i].fetch, i),
        ):
            if problem.options[i].once or not any(covers(problem, j, i) for j in lean):
                lean.append(i)
        found += lean
    return sorted(found)


def seat(o: Option, decisive: int) -> Hashable:
    """What options have in common that differ in what they take only, as far as the first levels go."""
    return (o.model, o.node, tuple(d for d, _ in o.loads), o.once, o.worth[:decisive])


def seats(problem: Problem, indices: Iterable[int], decisive: int) -> dict[Hashable, list[int]]:
    """Options by their seat."""
    found: dict[Hashable, list[int]] = {}
    for i in indices:
        found.setdefault(seat(problem.options[i], decisive), []).append(i)
    return found


def covers(problem: Problem, i: int, j: int) -> bool:
    """Whether an option takes no more than another of the same seat."""
    one, other = problem.options[i], problem.options[j]
    loads = all(x <= y for (_, x), (_, y) in zip(one.loads, other.loads, strict=True))
    return loads and one.host <= other.host and one.fetch in ("", other.fetch)
