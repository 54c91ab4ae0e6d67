"""The best choice at one stage, put together from what each node can hold. Pure.

Prices give a bound (`prices.py`). Where it is above the best choice known, what each node can hold is looked at, as far as it may be part of a
better choice, and the nodes are taken one after the other. What matters of the nodes taken so far is only how much they hold, so of all choices
that hold the same the best is enough. A choice that cannot come to what is looked for, whatever the nodes still to come do, is dropped. What is
looked for starts near to the bound, and becomes less until something is found: that is the best there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from homelab.placement.assignment import levels
from homelab.placement.branching import branches
from homelab.placement.columns import Columns
from homelab.placement.node import Guided, Node
from homelab.placement.packing import Budget, OutOfSteps, options_of
from homelab.placement.prices import FULL_PACE, WARM_PACE, Buyer, Prices, whole
from homelab.placement.stage import PARTS, Guide, Stage

# What may be spent on a part of the problem before it is parted again.
ATTEMPTS = 100
# What is looked at of each node for a first good choice.
FEW, ALL = 150, 1 << 60

Column = tuple[int, int, Any]  # counts, value, options


class Combining:
    """The best choice at one stage."""

    def __init__(self, stage: Stage, effort: int, guides: Sequence[Guide], large: bool) -> None:
        self.stage, self.counts, self.effort = stage, stage.counts, effort
        self.guides = [stage.follow(g) for g in guides]
        self.guide: Guide = {}
        self.large = large

    def by_prices(self, known_levels: Sequence[int]) -> int:
        """A bound on all choices that there are."""
        stage = self.stage
        known = stage.worth(known_levels)
        self.nodes, self.prices = self.priced(stage, None, known + stage.grain, known)
        self.guide = stage.guide(self.prices.price[: len(self.counts.limits)])
        self.highest = self._floor(self.prices.bound)
        return self.highest

    def best(
        self, known_levels: Sequence[int], budget: Budget, *, parted: bool = True
    ) -> tuple[list[int] | None, int]:
        """A choice that is better than the one known, if one is found, and a bound on all that there are. Not `parted`: looked at as a whole only."""
        stage, nodes, prices, highest = self.stage, self.nodes, self.prices, self.highest
        self.known = stage.worth(known_levels)
        self.found: list[int] | None = None
        # A good choice first: from the best of what each node can hold.
        for part in (64, 16, 4, 2, 1) if highest > self.known else ():
            self.target = max(self.known + stage.grain, highest - (highest - self.known) // part)
            try:
                self.attempt(stage, nodes, prices, Budget(self.effort // 20), FEW)
            except OutOfSteps:
                break
            if self.found is not None:
                break
        step = max(stage.grain, (highest - self.known) // 64)
        target = highest
        try:
            while highest > self.known:
                self.target = max(self.known + stage.grain, self._floor(target))
                at_least, before = self.target, self.known
                if not parted:
                    self.attempt(stage, nodes, prices, budget, ALL)
                else:
                    self.explore(stage, nodes, prices, budget)
                highest = at_least - stage.grain if self.known == before else self.known
                target, step = highest - step, step * 2
        except OutOfSteps:
            pass
        return self.found, highest

    def explore(self, stage: Stage, nodes: list[Node], prices: Prices, budget: Budget) -> None:
        """Finds the best choice that comes to `target` and fits `stage`, if there is one: at once, or else with a model here, then not here."""
        if prices.bound < self.target:
            return
        budget.spend(prices.looked // 8)
        attempt = Budget(min(budget.steps, self.effort // ATTEMPTS))
        before = attempt.steps
        try:
            self.attempt(stage, nodes, prices, attempt, ALL)
            return
        except OutOfSteps:
            pass
        finally:
            budget.spend(before - max(0, attempt.steps))
        for mine in branches(stage, nodes):
            part = stage.part(mine)
            self.explore(part, *self.priced(part, prices, self.target, self.target), budget)

    def attempt(self, stage: Stage, nodes: list[Node], prices: Prices, budget: Budget, most: int) -> None:
        stages, again = self.columns(stage, nodes, prices, budget, most)
        chosen = self.sweep(stage, stages, again, budget, most) if stages else None
        if chosen is not None:
            self.found = chosen
            self.known = stage.worth(levels(stage.problem, chosen))
            self.target = self.known + self.stage.grain

    def priced(self, stage: Stage, like: Prices | None, target: int, aim: int) -> tuple[list[Node], Prices]:
        """The nodes with what a stage leaves open, and prices for it."""
        by_node: dict[int, list[int]] = {}
        for i in stage.indices:
            by_node.setdefault(stage.problem.options[i].node, []).append(i)
        nodes = [Node(stage, node, mine) for node, mine in sorted(by_node.items())]
        rooms = 2 * len(stage.problem.rooms)
        limits = self.counts.limits
        prices = Prices(
            stage.lows + [0] * rooms, limits + [PARTS] * rooms, [n.buy for n in nodes],
            self._start() + [0] * rooms if like is None else like.price, aim,
            looks=self.effort // (40 if self.large else 4), enough=target - 1, pace=FULL_PACE if like is None else WARM_PACE, parts=[1] * len(limits) + [PARTS] * rooms,
        )  # fmt: skip
        return nodes, prices

    def _floor(self, value: int) -> int:
        return value // self.stage.grain * self.stage.grain

    def _start(self) -> list[int]:
        """What the best placement of each model is worth: prices at which nobody buys."""
        best = [0] * len(self.counts.limits)
        for i, value in self.stage.values.items():
            m = self.stage.problem.options[i].model
            best[m] = max(best[m], value + self.stage.spread)
        return best

    def columns(
        self, stage: Stage, nodes: Sequence[Node], prices: Prices, budget: Budget, most: int
    ) -> tuple[list[list[Column]], Prices]:
        """What each node can hold, as far as it may be part of a choice that comes to `target`; nothing where there is none."""
        found: list[list[Column]] = []
        target = self.target
        led: list[list[Guided]] = [[] for _ in nodes]
        for price in self.guides:
            here = [node.follow(price) for node in nodes]
            slack = whole(price, stage.lows, self.counts.limits) + sum(g.best for g in here)
            if slack < 0:
                return [], prices
            for g, mine in zip(here, led, strict=True):
                g.least = g.best - slack
                mine.append(g)
        for node, mine in zip(nodes, led, strict=True):
            columns = Columns(node, prices.price, budget, mine).best(prices.bound - target, most)
            if not columns:
                return [], prices
            found.append([(held, value, picks) for held, (value, picks) in columns.items()])
        # Once more, with what the nodes hold as a whole. The node with the most to choose from comes first: there is one state before it only.
        found.sort(key=lambda columns: (-len(columns), columns[0][0]))
        again = Prices(
            stage.lows, self.counts.limits, [self._buyer(columns) for columns in found], prices.price[: len(self.counts.limits)], target,
            looks=self.effort // 8, pace=WARM_PACE, enough=target - 1,
        )  # fmt: skip
        if again.bound < target:
            return [], again
        slack = again.bound - target
        stages = []
        for mine_all, earned in zip(found, again.earned, strict=True):
            stages.append([c for c in mine_all if c[1] - self._paid(again.price, c[0]) >= earned - slack])
        return stages, again

    def _parts(self, held: int) -> list[tuple[int, int]]:
        return [(row, n) for row in range(len(self.counts.limits)) if (n := self.counts.of(held, row))]

    def _paid(self, price: Sequence[int], held: int) -> int:
        return sum(p * self.counts.of(held, row) for row, p in enumerate(price) if p)

    def _buyer(self, columns: Iterable[Column]) -> Buyer:
        """A node of which is known all that it can hold."""
        known = [(value, self._parts(held)) for held, value, _ in columns]
        looked = sum(len(parts) for _, parts in known) // 4

        def buy(price: Sequence[int]) -> tuple[int, list[tuple[int, int]], int]:
            best, taken = -1 << 4096, known[0][1]
            for gain, parts in known:
                for row, n in parts:
                    gain -= price[row] * n
                if gain > best:
                    best, taken = gain, parts
            return best, taken, looked

        return buy

    def sweep(
        self, stage: Stage, stages: Sequence[Sequence[Column]], prices: Prices, budget: Budget, most: int
    ) -> list[int] | None:
        """The best choice of one column of each node, if it comes to `target`."""
        counts, bias, guard, target = self.counts, self.counts.bias, self.counts.guard, self.target
        # What the nodes from each one on must still be able to bring.
        missing = list(stage.lows)
        least = [counts.least(missing)]
        for columns in reversed(stages):
            brings = [0] * len(missing)
            for held, _, _ in columns:
                for row, n in self._parts(held):
                    brings[row] = max(brings[row], n)
            missing = [max(0, low - n) for low, n in zip(missing, brings, strict=True)]
            least.append(counts.least(missing))
        least.reverse()
        # What the nodes from each one on may bring by the guides' prices, and what they must.
        led = []
        for price in self.guides:
            tops = [max(-self._paid(price, held) for held, _, _ in columns) for columns in stages]
            led.append(
                (
                    price,
                    [
                        -whole(price, stage.lows, self.counts.limits) - sum(tops[k:])
                        for k in range(len(stages) + 1)
                    ],
                )
            )
        # (earned so far after prices, value, counts before, column taken)
        states: dict[int, tuple[int, int, int, int]] = {0: (0, 0, 0, -1)}
        history = [states]
        total = prices.full + sum(prices.earned)
        for number, (columns, earned) in enumerate(zip(stages, prices.earned, strict=True), 1):
            ranked = sorted(
                (
                    (value - self._paid(prices.price, held) - earned, held, value, at)
                    for at, (held, value, _) in enumerate(columns)
                ),
                reverse=True,
            )
            after: dict[int, tuple[int, int, int, int]] = {}
            enough = least[number]
            for have, (lost, value, _, _) in states.items():
                short = target - total - lost
                steps = 0
                for gain, more, worth, at in ranked:
                    if gain < short:
                        break
                    steps += 1
                    both = have + more
                    if (both + bias) & guard or (both + enough) & guard != guard:
                        continue
                    if both not in after or value + worth > after[both][1]:
                        after[both] = (lost + gain, value + worth, have, at)
                budget.spend(steps + 1)
            for price, needs in led:
                after = {held: s for held, s in after.items() if -self._paid(price, held) >= needs[number]}
            if len(after) > most:
                after = dict(sorted(after.items(), key=lambda s: (-s[1][0], s[0]))[:most])
            states = after
            history.append(states)
        good = [held for held in states if self._complete(held)]
        if not good:
            return None
        last = max(good, key=lambda held: (states[held][1], -held))
        if states[last][1] < target:
            return None
        chosen: list[int] = []
        for columns, now in zip(reversed(stages), reversed(history[1:]), strict=True):
            _, _, before, at = now[last]
            chosen += options_of(columns[at][2])
            last = before
        return chosen

    def _complete(self, held: int) -> bool:
        """Whether as many models have a place as can have one."""
        return all(sum(self.counts.of(held, m) > 0 for m in mine) >= n for mine, n in self.stage.reach_models)
