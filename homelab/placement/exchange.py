"""A better choice out of a good one, by exchanges: some placements are taken out and what is missing is put in again, in another order. Pure.

What comes of it depends on the problem and the number of steps only: the numbers drawn are the same each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from homelab.placement.assignment import BESIDE, SPREAD, Problem
from homelab.placement.greedy import Books

# Exchanges without a better choice before it starts from the best one again.
PATIENCE = 100
# Which share of the options that fit is passed over, so that not the same is done each time.
SKIPPED = 0.12


T = TypeVar("T")


class Draw:
    """Numbers that are the same in every run and with every Python: the minimal standard generator of Park and Miller."""

    def __init__(self) -> None:
        self.state = 1

    def random(self) -> float:
        self.state = self.state * 48271 % 2147483647
        return self.state / 2147483647

    def randrange(self, stop: int) -> int:
        return int(self.random() * stop)

    def choice(self, among: Sequence[T]) -> T:
        return among[self.randrange(len(among))]

    def shuffle(self, these: list[T]) -> None:
        for i in range(len(these) - 1, 0, -1):
            j = self.randrange(i + 1)
            these[i], these[j] = these[j], these[i]


class Exchange:
    """`scale`: what each level weighs; `values`: what the options that may be taken are worth beside their count."""

    def __init__(self, problem: Problem, scale: Sequence[int], values: dict[int, int]) -> None:
        self.problem, self.scale, self.values = problem, scale, values
        classes = problem.classes
        top = 2 * len(classes)
        rank = [classes.index(w.priority) for w in problem.wants]
        self.first = [scale[r] for r in rank]
        self.each = [scale[len(classes) + r] for r in rank]
        self.spread, self.beside = scale[top + SPREAD], scale[top + BESIDE]
        self.rank = rank
        options = problem.options
        self.size = {i: sum(n for _, n in options[i].loads) for i in values}
        mine: dict[int, list[int]] = {}
        here: dict[tuple[int, frozenset[int]], list[int]] = {}
        for i in values:
            mine.setdefault(options[i].model, []).append(i)
            here.setdefault((options[i].model, frozenset(d for d, _ in options[i].loads)), []).append(i)
        best = lambda i: (-values[i], i)  # noqa: E731
        self.here = {key: sorted(found, key=best) for key, found in here.items()}
        self.orders = {
            m: (
                sorted(found, key=best),
                sorted(found, key=lambda i: (not options[i].kept, self.size[i], -values[i], i)),
                sorted(
                    found,
                    key=lambda i: (
                        not options[i].kept,
                        options[i].avoidable,
                        options[i].rank,
                        options[i].in_ram,
                        self.size[i],
                        -values[i],
                        i,
                    ),
                ),
            )
            for m, found in mine.items()
        }
        self.least = {m: self.size[found[1][0]] for m, found in self.orders.items()}

    def gain(self, books: Books, i: int) -> int:
        """What an option adds to what is chosen."""
        o = self.problem.options[i]
        total = self.values[i] + self.each[o.model]
        if not books.count[o.model]:
            total += self.first[o.model]
        if not books.count_on[o.model, o.node]:
            total += self.spread
        if len(o.loads) == 1 and books.beside[o.model, o.loads[0][0]]:
            total -= self.beside
        return total

    def take_in(self, i: int) -> None:
        self.worth += self.gain(self.books, i)
        self.books.take(i)

    def take_out(self, i: int) -> None:
        self.books.give_back(i)
        self.worth -= self.gain(self.books, i)

    def better(self, chosen: Sequence[int], steps: int, enough: Callable[[Sequence[int]], bool]) -> list[int]:
        """The best choice found until it is `enough`, or the steps run out."""
        draw = Draw()
        self.books, self.worth, self.steps = Books(self.problem), 0, steps
        for i in chosen:
            self.take_in(i)
        best, most, stale = list(chosen), self.worth, 0
        every = sorted(self.values)
        while self.steps > 0 and every:
            before, worth = list(self.books.chosen), self.worth
            self.exchange(draw, every)
            stale += 1
            if self.worth > most:
                best, most, stale = list(self.books.chosen), self.worth, 0
                if enough(best):
                    break
            level = draw.randrange(8 * len(self.scale))
            if stale >= PATIENCE:
                self.turn_to(best)
                stale = 0
            elif self.worth < worth and (
                level >= len(self.scale) or self.upto(self.worth, level) < self.upto(worth, level)
            ):
                self.turn_to(before)
        return best

    def upto(self, worth: int, level: int) -> int:
        """What it comes to with the levels below left out."""
        return (2 * worth + self.scale[level]) // (2 * self.scale[level])

    def turn_to(self, chosen: Iterable[int]) -> None:
        left = list(chosen)
        for i in list(self.books.chosen):
            if i in left:
                left.remove(i)
            else:
                self.take_out(i)
        for i in left:
            self.take_in(i)

    def exchange(self, draw: Draw, every: Sequence[int]) -> None:
        """Room is made for some option; then what is missing comes in again, and each gets the best option that its devices leave."""
        options, books = self.problem.options, self.books
        missing = [
            m
            for m, want in enumerate(self.problem.wants)
            if m in self.orders and books.count[m] < want.replicas
        ]
        way = draw.random()
        wanted = (
            draw.choice(self.orders[draw.choice(missing)][0]) if missing and way < 0.5 else draw.choice(every)
        )
        devices = {d for d, _ in options[wanted].loads}
        node = options[wanted].node
        whole = draw.random() < 0.15
        out = [
            i
            for i in books.chosen
            if (options[i].node == node if whole else any(d in devices for d, _ in options[i].loads))
        ]
        rest = [i for i in books.chosen if i not in out]
        for _ in range(min(len(rest), draw.randrange(4))):
            out.append(rest.pop(draw.randrange(len(rest))))
        touched = {options[i].node for i in out} | {node}
        back = {options[i].model for i in out}
        for i in out:
            self.take_out(i)
        if way < 0.25 and books.fits(wanted):
            self.take_in(wanted)
        kind = draw.random()
        key = {
            m: draw.random() if kind < 0.4 else -self.least[m] if kind < 0.8 else self.least[m]
            for m in {*missing, *back}
        }
        lean = draw.random() < 0.5
        waiting = sorted(key, key=lambda m: (books.count[m] > 0, self.rank[m], key[m], m))
        again: list[int] = []
        while waiting:
            for m in waiting:
                if books.count[m] >= self.problem.wants[m].replicas:
                    continue
                found = self.place(draw, m, 1 if lean else draw.randrange(3), None if m in back else touched)
                if found is not None:
                    self.take_in(found)
                    touched.add(options[found].node)
                    again.append(m)
            waiting, again = sorted(again, key=lambda m: (self.rank[m], key[m], m)), []
        mine = [i for i in books.chosen if options[i].node in touched]
        draw.shuffle(mine)
        for i in mine:
            self.improve(i)

    def place(self, draw: Draw, m: int, kind: int, nodes: set[int] | None) -> int | None:
        """An option of a model that fits: the best, or one that takes least; on these nodes, where only they have something free."""
        options, books = self.problem.options, self.books
        found, most, size = None, 0, 0
        for i in self.orders[m][kind]:
            if found is not None and (
                self.values[i] + self.spread + self.beside < self.values[found]
                if not kind
                else self.size[i] > size
            ):
                break
            if nodes is not None and options[i].node not in nodes:
                continue
            self.steps -= 1
            if not books.fits(i) or draw.random() < SKIPPED:
                continue
            gain = self.gain(books, i) if not kind else -sum(books.free[d] for d, _ in options[i].loads)
            if found is None or gain > most:
                found, most, size = i, gain, self.size[i]
        return found

    def improve(self, i: int) -> None:
        """In place of an option the best that its devices leave."""
        o = self.problem.options[i]
        better = self.here[o.model, frozenset(d for d, _ in o.loads)]
        if better[0] == i:
            return
        self.take_out(i)
        for j in better:
            self.steps -= 1
            if j == i or self.books.fits(j):
                self.take_in(j)
                return
