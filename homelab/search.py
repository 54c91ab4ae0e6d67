"""The best choice of options of a problem. Pure, and bounded by a number of steps, not by time.

The nodes are taken one after the other. What matters of the nodes taken so far is only how many of each model they hold, so of all choices
that hold the same the best is enough. A choice that cannot reach the best one known, even if all that is missing got its best place, is
dropped. When the steps run out, the least promising are dropped too; the best that they could have come to is the bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from homelab.assignment import LEVELS, Answer, Option, Problem, Scale, levels
from homelab.columns import Budget, Node, options_of
from homelab.greedy import Books, Greedy
from homelab.packing import Counts
from homelab.prices import WARM_PACE, Prices, Stock, columns_stock

# Steps of the search, each about a microsecond or two.
EFFORT = 20_000_000

# Models × devices; in what is larger not all that a device can hold is looked at.
HOUSEHOLD = 400
# Of what a node can hold, so much is looked at for a first good choice and a second.
FEW, MORE = 150, 1000

State = tuple[int, int, int]  # value, counts before, column taken
Column = tuple[int, int, Any]  # counts, value, options


def solve(problem: Problem, *, effort: int = EFFORT) -> Answer:
    """The best choice by `LEVELS`, and a bound that no choice exceeds: the same when the search came to its end."""
    alone = Books(problem)
    every = [i for i in range(len(problem.options)) if alone.fits(i)]
    # First what has a place at all, what is kept and what must be split for it: of each model the leanest options do for that.
    coarse = replace(problem, options=tuple(_coarse(o) for o in problem.options))
    first = _Search(coarse, Scale(coarse, fine=False), _leanest(problem, every), effort).answer([], 0)
    decisive = len(first.levels) - len(LEVELS) + 2
    splits = first.levels[decisive - 1]
    use = every if splits or not first.proven else [i for i in every if not problem.options[i].avoidable]
    scale = Scale(problem)
    floor = scale.encode([*first.levels[:decisive], *[0] * (len(first.levels) - decisive)]) - scale.weights[decisive - 1] // 2
    answer = _Search(problem, scale, use, effort).answer(list(first.chosen), floor)
    if first.proven and not answer.proven:
        # The first part is certain, however far the second came.
        answer = replace(answer, bound=min(answer.bound, (*first.levels[:decisive], *answer.bound[decisive:])))
    return answer


def _coarse(o: Option) -> Option:
    return replace(o, rank=0, in_ram=False, tokens=0, there=0, gpus=0, free=0, place=0)


def _leanest(problem: Problem, indices: Sequence[int]) -> list[int]:
    """The options that no other of the same model on the same devices makes needless, as far as having a place goes."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i in indices:
        o = problem.options[i]
        groups.setdefault((o.model, o.node, tuple(d for d, _ in o.loads), o.once, o.kept, o.avoidable), []).append(i)
    found = []
    for mine in groups.values():
        lean: list[int] = []
        for i in sorted(mine, key=lambda i: (problem.options[i].loads, problem.options[i].host, problem.options[i].fetch, i)):
            o = problem.options[i]
            if o.once or not any(_covers(problem.options[j], o) for j in lean):
                lean.append(i)
        found += lean
    return sorted(found)


def _covers(one: Option, other: Option) -> bool:
    loads = all(x <= y for (_, x), (_, y) in zip(one.loads, other.loads, strict=True))
    return loads and one.host <= other.host and one.fetch in ("", other.fetch)


class _Search:
    def __init__(self, problem: Problem, scale: Scale, indices: Sequence[int], effort: int) -> None:
        self.problem, self.scale, self.effort = problem, scale, effort
        self.indices = list(indices)
        self.values = {i: scale.value(problem.options[i]) for i in self.indices}
        self.counts = Counts([w.replicas for w in problem.wants])
        self.models = range(len(problem.wants))
        self.prices: Prices | None = None

    def everything(self) -> list[list[int]]:
        """[model][how many it has]: what the model could still come to if all that is missing got its best place."""
        best: list[int | None] = [None] * len(self.models)
        for i, value in self.values.items():
            m = self.problem.options[i].model
            best[m] = max(best[m] or value, value)
        return self._most([None if v is None else v + self.scale.spread for v in best], self.counts.limits)

    def answer(self, warm: list[int], floor: int) -> Answer:
        """`floor`: the best choice is known to come to more than this."""
        heuristic = Greedy(self.problem, self.values, self.worth)
        best = max((heuristic.greedy(), heuristic.improved(warm)), key=self.worth)
        self.known = self.worth(best)
        self.floor = max(floor, self.known)
        rows = self.everything()
        bound = self._hope(0, rows)
        if bound > self.known:
            nodes, stocks, cut = self.nodes(rows)
            prices = Prices(self.counts, stocks, (self.best_values(), [0] * len(self.models)), self.known, self.scale.first)
            bound = bound if cut else min(bound, prices.bound)
            reached = self.known
            for most, effort in ((FEW, self.effort // 50), (MORE, self.effort // 20), (1 << 30, self.effort)):
                if bound <= self.known or (cut and self.prices is not None):
                    break
                if self.prices is not None:  # the first look has found prices that are nearly right, and more to aim at
                    again = Prices(self.counts, stocks, self.prices.best, self.known, self.scale.first, pace=WARM_PACE)
                    prices = min(prices, again, key=lambda p: p.bound)
                    bound = bound if cut else min(bound, prices.bound)
                    if bound <= self.known:
                        break
                stages, reached = self.stages(nodes, stocks, prices, most)
                if stages:
                    found, reached = self.sweep(stages, self.reach(stages), effort)
                    if found is not None and self.worth(found) > self.known:
                        best = heuristic.improved(found)
                        self.known = self.worth(best)
                        self.floor = max(self.floor, self.known)
            cut = cut or any(node.budget.cut for node in nodes)
            bound = bound if cut else min(bound, max(reached, self.known))
        return Answer(chosen=tuple(sorted(best)), levels=levels(self.problem, best), bound=self.scale.decode(max(bound, self.known)))

    def worth(self, chosen: Sequence[int]) -> int:
        return self.scale.worth(levels(self.problem, chosen))

    # -- the search itself

    def best_values(self) -> list[int]:
        """What the best placement of each model is worth: prices at which nobody buys."""
        best = [0] * len(self.models)
        for i, value in self.values.items():
            m = self.problem.options[i].model
            best[m] = max(best[m], value + self.scale.spread)
        return best

    def nodes(self, rows: Sequence[Sequence[int]]) -> tuple[list[Node], list[Stock], bool]:
        """The nodes, what their devices can hold, and whether something was left out of that for want of steps."""
        by_node: dict[int, list[int]] = {}
        for i in self.indices:
            by_node.setdefault(self.problem.options[i].node, []).append(i)
        large = len(self.models) * len(self.problem.devices) > HOUSEHOLD

        def budget() -> Budget:
            return Budget(steps=-1, keep=2, sets=30, cut=True) if large else Budget(steps=self.effort // len(by_node))

        found = [
            Node(
                self.problem, self.scale, self.counts, node, mine,
                budget(), lambda held: self.floor - self._hope(held, rows),
            )
            for node, mine in sorted(by_node.items())
        ]  # fmt: skip
        stocks = [node.fill() for node in found]
        return found, stocks, any(node.budget.cut for node in found)

    def stages(self, nodes: Sequence[Node], stocks: Sequence[Stock], prices: Prices, most: int) -> tuple[list[list[Column]], int]:
        """What each node can hold, as far as it may be part of something better than what is known, and a bound; nothing where nothing may."""
        found = []
        for node, mine, earned in zip(nodes, stocks, prices.earned, strict=True):
            columns = node.columns(prices, mine, self.floor - (prices.bound - earned), most)
            found.append([(held, value, picks) for held, (value, picks) in columns.items()])
        if not all(found):
            return [], self.known
        # Once more, with what the nodes hold as a whole. The node with the most to choose from comes first: there is one state before it only.
        found.sort(key=lambda columns: (-len(columns), columns[0][0]))
        self.prices = prices = Prices(
            self.counts, [columns_stock(columns) for columns in found], prices.best, self.known, self.scale.first, pace=WARM_PACE
        )
        self.ahead = [sum(prices.earned[k:]) for k in range(len(found) + 1)]
        stages = []
        for mine_all, earned in zip(found, prices.earned, strict=True):
            least = self.floor - (prices.bound - earned)
            stages.append(sorted((c for c in mine_all if c[1] - prices.cost(c[0]) >= least), key=lambda c: (-c[1], c[0])))
        return (stages, prices.bound) if all(stages) else ([], self.known)

    def reach(self, stages: Sequence[Sequence[Column]]) -> list[list[list[int]]]:
        """[stage][model][how many are placed before it]: the most that the model can still come to."""
        best: list[int | None] = [None] * len(self.models)
        most = [0] * len(self.models)
        table = [self._most(best, most)]
        for columns in reversed(stages):
            for m in self.models:
                most[m] += max(self.counts.of(held, m) for held, _, _ in columns)
            for _, _, picks in columns:
                for i in options_of(picks):
                    m, value = self.problem.options[i].model, self.values[i] + self.scale.spread
                    if (known := best[m]) is None or value > known:
                        best[m] = value
            table.append(self._most(best, most))
        return table[::-1]

    def _most(self, best: Sequence[int | None], most: Sequence[int]) -> list[list[int]]:
        table = []
        for m in self.models:
            row, value, first = [], best[m], self.scale.first[m]
            for placed in range(self.counts.limits[m] + 1):
                more = min(self.counts.limits[m] - placed, most[m]) if value is not None else 0
                row.append((first if placed or more else 0) + more * (value or 0))
            table.append(row)
        return table

    def sweep(
        self, stages: Sequence[Sequence[Column]], reach: Sequence[Sequence[Sequence[int]]], effort: int
    ) -> tuple[list[int] | None, int]:
        """A choice that is better than the one known, if there is one, and a bound on all that there are."""
        bias, guard = self.counts.bias, self.counts.guard
        prices = self.prices
        assert prices is not None

        def hope(held: int, stage: int) -> int:
            return min(self._hope(held, reach[stage]), prices.full - prices.cost(held) + self.ahead[stage])

        each = effort // max(1, len(stages))
        states: dict[int, State] = {0: (0, 0, -1)}
        history, bound = [states], 0
        for stage, columns in enumerate(stages):
            hopes = sorted(((value + hope(held, stage), held, value) for held, (value, _, _) in states.items()), reverse=True)
            use = columns
            if len(columns) > each:
                use, bound = columns[: max(each, 1)], max(bound, hopes[0][0] if hopes else 0)
            room = max(1, each // len(use))
            if len(hopes) > room:
                bound = max(bound, hopes[room][0])
                hopes = hopes[:room]
            after: dict[int, State] = {}
            for _, held, value in hopes:
                for number, (more, gain, _) in enumerate(use):
                    both = held + more
                    if (both + bias) & guard:
                        continue
                    if both not in after or value + gain > after[both][0]:
                        after[both] = (value + gain, held, number)
            states = {held: s for held, s in after.items() if s[0] + hope(held, stage + 1) > self.floor}
            history.append(states)
        if not states:
            return None, bound
        last = max(states, key=lambda held: (states[held][0] + self._hope(held, reach[-1]), -held))
        total, chosen = states[last][0] + self._hope(last, reach[-1]), []
        for columns, before in zip(reversed(stages), reversed(history[1:]), strict=True):
            _, held, number = before[last]
            chosen += options_of(columns[number][2])
            last = held
        return chosen, max(bound, total)

    def _hope(self, held: int, rows: Sequence[Sequence[int]]) -> int:
        counts = self.counts
        return sum(row[(held & mask) // unit] for row, mask, unit in zip(rows, counts.mask, counts.unit, strict=True))
