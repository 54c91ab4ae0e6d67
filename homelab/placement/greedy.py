"""A first choice, quickly: one model after the other, each the best option that is left. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from homelab.placement.assignment import Problem


class Greedy:
    """`values`: what the options that may be taken are worth; `worth`: what a choice comes to."""

    def __init__(
        self, problem: Problem, values: Mapping[int, int], worth: Callable[[Sequence[int]], int]
    ) -> None:
        self.problem, self.values, self.worth = problem, values, worth
        self.models = range(len(problem.wants))

    def greedy(self) -> list[int]:
        """By priority, each model the best option that is left, or the one that takes least; then better ones where they fit."""
        return max((self.improved(self._first(lean)) for lean in (True, False)), key=self.worth)

    def _first(self, lean: bool) -> list[int]:
        wants, options = self.problem.wants, self.problem.options
        size = {i: sum(n for _, n in options[i].loads) for i in self.values}
        by_model = {m: [i for i in self.values if options[i].model == m] for m in self.models}
        least = {m: min((size[i] for i in mine), default=0) for m, mine in by_model.items()}
        for mine in by_model.values():
            mine.sort(key=lambda i: (lean and size[i], -self.values[i], i))
        books = Books(self.problem)
        order = sorted(self.models, key=lambda m: (-wants[m].priority, -least[m], m))
        for kept in (True, False):
            for turn in range(max((w.replicas for w in wants), default=0)):
                for m in (m for m in order if turn < wants[m].replicas):
                    fitting = (i for i in by_model[m] if options[i].kept >= kept and books.fits(i))
                    best = next(fitting, None)
                    if (
                        best is not None and lean
                    ):  # of those that take no more, the one that leaves least beside it
                        alike = [best, *(i for i in fitting if size[i] == size[best])]
                        best = min(alike, key=lambda i: sum(books.free[d] for d, _ in options[i].loads))
                    if best is not None:
                        books.take(best)
        return books.chosen

    def improved(self, chosen: Sequence[int]) -> list[int]:
        """The choice with each option replaced by a better one of the same model where that fits, and what is missing added."""
        books = Books(self.problem)
        for i in chosen:
            books.take(i)
        options = self.problem.options
        alike: dict[tuple[int, frozenset[int]], list[int]] = {}
        for i in self.values:
            alike.setdefault((options[i].model, frozenset(d for d, _ in options[i].loads)), []).append(i)
        for i in chosen:
            books.give_back(i)
            better = alike[options[i].model, frozenset(d for d, _ in options[i].loads)]
            books.take(
                next(
                    (
                        j
                        for j in sorted(better, key=lambda j: (-self.values[j], j))
                        if self.values[j] > self.values[i] and books.fits(j)
                    ),
                    i,
                )
            )
        return max((list(chosen), books.chosen), key=self.worth)


class Books:
    """What is left while options are taken one by one."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.chosen: list[int] = []
        self.free = [free for _, free in problem.devices]
        self.ram = [room.ram for room in problem.rooms]
        self.fetched: list[Counter[tuple[str, int]]] = [Counter() for _ in problem.rooms]
        self.count: Counter[int] = Counter()
        self.count_on: Counter[tuple[int, int]] = Counter()
        self.beside: Counter[tuple[int, int]] = Counter()  # on one GPU, by model and GPU

    def fits(self, i: int) -> bool:
        o = self.problem.options[i]
        want = self.problem.wants[o.model]
        if (
            self.count[o.model] >= want.replicas
            or self.count_on[o.model, o.node] >= want.per_node
            or (o.once and i in self.chosen)
        ):
            return False
        if any(load > self.free[d] for d, load in o.loads) or (o.host and o.host > self.ram[o.node]):
            return False
        there = self.fetched[o.node]
        if not o.fetch or there[o.fetch, o.fetch_bytes]:
            return True
        return (
            o.fetch_bytes + sum(size for (_, size), n in there.items() if n)
            <= self.problem.rooms[o.node].disk
        )

    def take(self, i: int, sign: int = 1) -> None:
        o = self.problem.options[i]
        for d, load in o.loads:
            self.free[d] -= sign * load
        self.ram[o.node] -= sign * o.host
        self.count[o.model] += sign
        self.count_on[o.model, o.node] += sign
        if len(o.loads) == 1:
            self.beside[o.model, o.loads[0][0]] += sign
        if o.fetch:
            self.fetched[o.node][o.fetch, o.fetch_bytes] += sign
        if sign > 0:
            self.chosen.append(i)
        else:
            self.chosen.remove(i)

    def give_back(self, i: int) -> None:
        self.take(i, -1)
