"""The best choice of options of a problem. Pure, and bounded by a number of steps, not by time.

The levels are settled one after the other; what is settled is something that a choice must have so much of. At each level prices say whether
there may be more than is known. Then it is tried out (`backtracking.py`), once more without the options that no such choice can have, and
where too much is left to choose from for that, choices are put together from what each node can hold (`combining.py`). When the steps run out,
the bound stays what it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from homelab.placement.assignment import LEVELS, Answer, Problem, levels
from homelab.placement.backtracking import improve, possible
from homelab.placement.combining import Combining
from homelab.placement.exchange import Exchange
from homelab.placement.greedy import Books, Greedy
from homelab.placement.packing import Budget
from homelab.placement.stage import FINE, Guide, Stage, leanest, weights

# Steps of one stage, each about a microsecond.
EFFORT = 5_000_000
# Which part of them it is tried out for: first, and without the options that were ruled out; and which part may be spent on ruling them out.
TRIED, TRIED_AGAIN, RULED_OUT = 32, 4, 2
# And for putting choices together the first time.
QUICK = 10
# Steps of the exchanges: for each option, and at the most.
TRIES, MOST_TRIES = 60, 200_000
# Models × devices: in what is larger all stages together have a part of the steps of one, and beyond the second number there is only a choice
# made better by exchanges, and a bound by prices.
HOUSEHOLD, LARGE = 200, 500
# Of `LEVELS`: these are put together one by one, the rest as one.
TOKENS = 4


def solve(problem: Problem, *, effort: int = EFFORT) -> Answer:
    """The best choice by `LEVELS`, and a bound that no choice exceeds: the same when the search came to its end."""
    search = _Search(problem, effort)
    bound = search.run()
    now = levels(problem, search.best)
    return Answer(chosen=tuple(sorted(search.best)), levels=now, bound=now if bound is None else bound)


def _reaches(stage: Stage, value: int, found: Sequence[int]) -> bool:
    return stage.worth(levels(stage.problem, found)) >= value


class _Search:
    def __init__(self, problem: Problem, effort: int) -> None:
        self.problem = problem
        alone = Books(problem)
        # What a choice better than `best` may have.
        self.options = [i for i in range(len(problem.options)) if alone.fits(i)]
        self.top = 2 * len(problem.classes)
        self.end = self.top + len(LEVELS)
        self.scale = weights(problem, self.options, 0, self.end)
        values = {
            i: sum(w * x for w, x in zip(self.scale[self.top :], problem.options[i].worth, strict=True))
            for i in self.options
        }
        self.heuristic = Greedy(problem, values, self.worth)
        self.exchange = Exchange(problem, self.scale, values)
        self.tries = min(TRIES * len(self.options), MOST_TRIES, effort)
        size = len(problem.wants) * len(problem.devices)
        self.small, self.large = size <= HOUSEHOLD, size > LARGE
        self.effort = effort if self.small or self.large else effort // 5
        self.budget = Budget(self.effort)
        self.guides: list[Guide] = []
        self.exchanges = 3 * MOST_TRIES
        self.highest: int | None = None  # what there may be at the level at hand, as far as prices told
        self.bound: tuple[int, ...] | None = None
        self.best = self.heuristic.greedy()

    def worth(self, chosen: Sequence[int]) -> int:
        return sum(w * x for w, x in zip(self.scale, levels(self.problem, chosen), strict=True))

    def run(self) -> tuple[int, ...] | None:
        """Makes the choice better, level by level; a bound where that did not come to its end."""
        first = 0
        while first < self.end:
            start, last = (first, first + 1) if first < self.top + TOKENS else (self.top + TOKENS, self.end)
            if self.tried(first):
                first += 1
            elif not self.large and self.combined(start, last, parted=False):
                first = last
            elif not self.large and self.tried_again(first):
                first += 1
            elif self.combined(start, last, parted=True):
                first = last
            else:
                self.best = self.exchange.better(self.best, self.tries, lambda _: False)
                return self.bound
        return None

    def stage(self, first: int, last: int) -> Stage:
        use = (
            self.options
            if first >= self.top + TOKENS
            else leanest(self.problem, self.options, max(0, last - self.top))
        )
        return Stage(self.problem, use, levels(self.problem, self.best)[:first], last)

    def take(self, found: Sequence[int] | None) -> None:
        if found is not None:
            self.best = max(self.best, self.heuristic.improved(found), key=self.worth)

    def tried(self, first: int) -> bool:
        """Whether `best` is the best at this level now: by prices, or after some trying."""
        stage, self.highest = self.stage(first, first + 1), None
        if first < self.top + TOKENS:
            combining = Combining(stage, self.effort, self.guides, self.large)
            now = levels(self.problem, self.best)
            more = combining.by_prices(now) - stage.worth(now)
            if combining.guide:
                self.guides.append(combining.guide)
            if more <= 0:
                return True
            self.highest = now[first] + more // FINE
        return self.improved(stage, TRIED)

    def tried_again(self, first: int) -> bool:
        """The same without the options that no better choice has."""
        before = len(self.options)
        for level in range(max(first - 1, self.top), first + 1):
            now = levels(self.problem, self.best)
            every = Stage(self.problem, self.options, now[:level], level + 1)
            self.options = possible(every, now, Budget(self.effort // RULED_OUT))
        return len(self.options) < before and self.improved(self.stage(first, first + 1), TRIED_AGAIN)

    def combined(self, first: int, last: int, *, parted: bool) -> bool:
        """Whether `best` is the best at these levels now: put together from what each node can hold."""
        stage = self.stage(first, last)
        combining = Combining(stage, self.effort, self.guides, self.large)
        highest = combining.by_prices(levels(self.problem, self.best))
        if highest > stage.worth(levels(self.problem, self.best)):
            self.best = self.exchange.better(
                self.best, min(self.tries, self.exchanges), partial(_reaches, stage, highest)
            )
            self.exchanges -= self.tries
        if not self.large:
            budget = (
                Budget(self.effort // QUICK)
                if not parted
                else Budget(self.effort)
                if self.small
                else self.budget
            )
            found, highest = combining.best(levels(self.problem, self.best), budget, parted=parted)
            self.take(found)
        now = levels(self.problem, self.best)
        self.bound = (*now[:first], *stage.decode(highest), *[10**9] * (self.end - last))
        return highest <= stage.worth(now)

    def improved(self, stage: Stage, part: int) -> bool:
        outcome = improve(stage, levels(self.problem, self.best), Budget(self.effort // part), self.highest)
        self.take(outcome.chosen)
        return outcome.settled
