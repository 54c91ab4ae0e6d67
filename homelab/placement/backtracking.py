"""A better choice at one level, or that there is none: tried out, the model with the fewest places left first. Pure.

What the levels above are settled to must be had, and at this one more than is known. A place is left out as soon as what it is worth falls
short of that by more than the best places of the other models make up for; a model without places goes without, where it may. Where little is
left to choose this ends after few steps; where much is, the prices (`prices.py`) know more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import ge

from homelab.placement.assignment import BESIDE, SPREAD
from homelab.placement.greedy import Books
from homelab.placement.packing import Budget, OutOfSteps
from homelab.placement.stage import Stage, covers, leanest, seat, seats

# Steps for one option, when it is asked whether it can be part of a choice.
PROBE = 5000
# After so many more that could not be told than three times those that could be left out, the others are not asked.
IN_VAIN = 20
# Options are asked for in a mixed order: those of one model are alike.
MIXED = 7919
# Copies of all models together; each is one call deeper.
DEEPEST = 300


@dataclass(frozen=True, slots=True)
class Waiting:
    """A model that wants `copies` more, and by node the options that still fit."""

    copies: int
    places: Mapping[int, list[int]]

    def every(self) -> list[int]:
        return [i for mine in self.places.values() for i in mine]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best choice that was found, if one is better than what is known; `settled`: there is no better one."""

    chosen: list[int] | None
    settled: bool


def improve(stage: Stage, known: Sequence[int], budget: Budget, highest: int | None = None) -> Outcome:
    """More at the first level of a stage than `known` has, where no choice has more than `highest`."""
    if sum(stage.limits) > DEEPEST:
        return Outcome(None, False)
    search = _Backtracking(stage, [*known[: stage.first], known[stage.first] + 1], budget, highest)
    try:
        search.place(search.waiting, search.counts, [0] * search.own)
    except _Enough:
        pass
    except OutOfSteps:
        return Outcome(search.best, False)
    return Outcome(search.best, True)


def possible(stage: Stage, known: Sequence[int], budget: Budget) -> list[int]:
    """The options of a stage without those that are in no choice which comes to what is `known`, its first level included; as far as a few steps
    each can tell."""
    if sum(stage.limits) > DEEPEST:
        return stage.indices
    problem = stage.problem
    least = known[: stage.first + 1]
    decisive = max(0, len(least) - 2 * len(problem.classes))
    alike = seats(problem, stage.indices, decisive)
    left, untold = set(stage.indices), 0
    asked = leanest(problem, stage.indices, decisive)
    for i in sorted(asked, key=lambda i: i * MIXED % len(problem.options)):
        if budget.steps <= 0 or untold > IN_VAIN:
            break
        steps = Budget(PROBE)
        search = _Backtracking(stage.part(sorted(left)), least, steps, least[-1])
        try:
            search.begin_with(i)
        except _Enough:
            continue
        except OutOfSteps:
            untold += 1
            continue
        finally:
            budget.steps -= PROBE - steps.steps
        untold -= 3
        left.discard(i)
        left -= {
            j
            for j in alike[seat(problem.options[i], decisive)]
            if not problem.options[j].once and covers(problem, i, j)
        }
    return sorted(left)


class _Enough(Exception):
    """Nothing can be better."""


class _Backtracking:
    def __init__(self, stage: Stage, least: Sequence[int], budget: Budget, highest: int | None) -> None:
        """`least`: what must be had of the levels, up to the first of the stage; a choice that has `highest` of that one is good enough."""
        self.options, self.classes = stage.problem.options, len(stage.problem.classes)
        self.budget, self.books, self.highest = budget, Books(stage.problem), highest
        self.least = list(least)
        # How many of `LEVELS` count; none while models and replicas are counted.
        self.own = max(0, len(self.least) - 2 * self.classes)
        self.worth = {i: self.options[i].worth[: self.own] for i in stage.indices}
        self.rank = stage.rank
        places: dict[int, dict[int, list[int]]] = {m: {} for m, n in enumerate(stage.limits) if n}
        for i in stage.indices:
            places[self.options[i].model].setdefault(self.options[i].node, []).append(i)
        self.waiting = {m: Waiting(stage.limits[m], mine) for m, mine in places.items()}
        # Models and replicas, by priority, that have a place or wait for one.
        self.counts = [0] * (2 * self.classes)
        for m, w in self.waiting.items():
            self.counts[self.rank[m]] += 1
            self.counts[self.classes + self.rank[m]] += w.copies
        self.best: list[int] | None = None

    def begin_with(self, i: int) -> None:
        """As `place`, for choices with this option."""
        model, gain = self.options[i].model, self._gain(i)
        self.books.take(i)
        self.place(self._after(self.waiting, model, i, self.waiting[model].every()), self.counts, gain)

    def place(self, waiting: Mapping[int, Waiting], counts: Sequence[int], have: Sequence[int]) -> None:
        """Every way to go on from here that comes to what is asked for; `have`: what the places taken are worth, by level."""
        left = self._worthwhile(waiting, counts, have) if self.own else waiting
        if left is None:
            return
        counts = list(counts)
        for m in waiting:
            if not any(left[m].places.values()):
                left = self._without(left, m, counts)
        if any(n < least for n, least in zip(counts, self.least, strict=False)):
            return
        if not left:
            self.best = list(self.books.chosen)
            found = have[-1] if self.own else counts[len(self.least) - 1]
            if self.highest is not None and found >= self.highest:
                raise _Enough
            self.least[-1] = found + 1
            return
        model = min(left, key=lambda m: (len(left[m].every()), m))
        # The best one, and of those the one that leaves least beside it, comes first, which is at the end.
        untried = sorted(left[model].every(), key=lambda i: (*self._gain(i)[-1:], -self._beside(i), -i))
        while untried:
            i = untried[-1]
            now = [x + y for x, y in zip(have, self._gain(i), strict=True)]
            self.books.take(i)
            self.place(self._after(left, model, i, untried), counts, now)
            self.books.give_back(i)
            untried.pop()
        self.place(self._without(left, model, counts), counts, have)

    def _without(self, waiting: Mapping[int, Waiting], model: int, counts: list[int]) -> dict[int, Waiting]:
        """The others, when a model goes without the copies that it waits for."""
        counts[self.rank[model]] -= not self.books.count[model]
        counts[self.classes + self.rank[model]] -= waiting[model].copies
        return {m: w for m, w in waiting.items() if m != model}

    def _after(
        self, waiting: Mapping[int, Waiting], model: int, taken: int, untried: Sequence[int]
    ) -> dict[int, Waiting]:
        """What waits once an option is taken. What was tried before it is settled for the other copies of the model too."""
        node = self.options[taken].node
        mine: dict[int, list[int]] = {}
        for i in untried:
            mine.setdefault(self.options[i].node, []).append(i)
        found = {}
        for m, w in {**waiting, model: Waiting(waiting[model].copies - 1, mine)}.items():
            if w.copies:
                here = w.places.get(node, [])
                self.budget.spend(len(here) + 1)
                found[m] = Waiting(w.copies, {**w.places, node: [i for i in here if self.books.fits(i)]})
        return found

    def _worthwhile(
        self, waiting: Mapping[int, Waiting], counts: Sequence[int], have: Sequence[int]
    ) -> Mapping[int, Waiting] | None:
        """What waits, without the places that are worth too little; None where all of them together are."""
        most = list(have)
        gains: dict[int, Sequence[int]] = {}
        last: dict[int, list[int]] = {}
        for m, w in waiting.items():
            here = w.every()
            self.budget.spend(1 + len(here) * (1 + self.own // 4))
            gains |= {i: self._gain(i) for i in here}
            row = self.classes + self.rank[m]
            tops = [
                self._tops(w, here, gains, level, counts[row] > self.least[row]) for level in range(self.own)
            ]
            most = [n + sum(top) for n, top in zip(most, tops, strict=True)]
            last[m] = [top[-1] for top in tops]
        slack = [n - least for n, least in zip(most, self.least[2 * self.classes :], strict=True)]
        if min(slack) < 0:
            return None
        found = {}
        for m, w in waiting.items():
            floor = [n - spare for n, spare in zip(last[m], slack, strict=True)]
            places = {n: [i for i in mine if all(map(ge, gains[i], floor))] for n, mine in w.places.items()}
            found[m] = Waiting(w.copies, places)
        return found

    def _tops(
        self, w: Waiting, here: Sequence[int], gains: Mapping[int, Sequence[int]], level: int, spare: bool
    ) -> list[int]:
        """What the copies of a model are worth at the most at one level, the best first; nothing for one that goes without."""
        if level == SPREAD:
            tops = sorted(
                (max(gains[i][level] for i in mine) for mine in w.places.values() if mine), reverse=True
            )[: w.copies]
            tops += [0] * (w.copies - len(tops))
        else:
            # A running one counts once, any other as often as there are copies.
            again = [gains[i][level] for i in here if w.copies == 1 or not self.options[i].once]
            tops = [max(again)] * w.copies if again else []
            if len(again) < len(here):
                tops = sorted(
                    [*tops, *(gains[i][level] for i in here if self.options[i].once)], reverse=True
                )[: w.copies]
        if spare or len(tops) < w.copies:
            tops = sorted((max(0, n) for n in [*tops, *[0] * w.copies][: w.copies]), reverse=True)
        return tops

    def _gain(self, i: int) -> Sequence[int]:
        """What an option adds, by level."""
        if self.own <= SPREAD:
            return self.worth[i]
        o, found = self.options[i], list(self.worth[i])
        found[SPREAD] = int(not self.books.count_on[o.model, o.node])
        if self.own > BESIDE:
            found[BESIDE] = -int(len(o.loads) == 1 and self.books.beside[o.model, o.loads[0][0]] > 0)
        return found

    def _beside(self, i: int) -> int:
        return sum(self.books.free[d] - load for d, load in self.options[i].loads)
