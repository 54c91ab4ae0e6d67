"""The best choice of options of a problem, by OR-tools' CP-SAT.

The levels are settled in groups, each as one objective in which a level outweighs all that come after it.
What a group came to is the least that the next ones must come to, and its choice is where they begin. A
group that runs into its limit leaves the best choice that it had, and a bound that no choice exceeds.

Pure: one worker, a fixed seed, and limits in CP-SAT's deterministic time, which counts its steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ortools.sat.python import cp_model

from homelab.placement.assignment import BESIDE, LEVELS, SPREAD, Answer, Option, Problem, levels

# Deterministic time of one answer. A group may use this part of what is left: a hard one leaves some to the
# next.
EFFORT, SHARE = 6.0, 0.6
# Where groups begin among `LEVELS`; the counts are one of their own. Each costs time to begin. But the
# bound of a sum comes down slowly for the small parts of it: tokens were proven by themselves, and not
# beside all that is above them.
GROUPS = (0, LEVELS.index("tokens of context"), SPREAD)
# What a group may come to (CP-SAT gives its bound as a double), and all its terms (its integers end at 2^63).
MOST_TOGETHER, MOST_IN_TERMS = 1 << 50, 1 << 61

Term = tuple[cp_model.IntVar, int]


def solve(problem: Problem, *, effort: float = EFFORT) -> Answer:
    """The best choice by `levels`, and a bound that no choice exceeds: the same when it is proven."""
    house = _House(problem)
    values = [0] * len(house.variables)  # in the best choice so far
    highest: list[list[int]] = []
    for start, end in pairwise(house.groups()):
        highest.append(house.tops(start, end))
        if not house.aim(start, end) or effort <= 0:
            continue
        limit = effort if end == len(house.goals) else effort * SHARE
        solver = _solver(limit)
        status = solver.solve(house.model)
        effort -= solver.deterministic_time
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            values = [solver.value(v) for v in house.variables]
            house.keep(start, end, values)
            highest[-1] = house.decoded(round(solver.best_objective_bound), start, end)
    chosen = tuple(i for i, v in house.taken.items() for _ in range(values[v.index]))
    now = levels(problem, chosen)
    bound: list[int] = []
    for part in highest:
        # A bound for choices that come to as much before: it says nothing where one may come to more there.
        start, end = len(bound), len(bound) + len(part)
        bound += part if bound == list(now[:start]) else house.tops(start, end)
    return Answer(chosen=chosen, levels=now, bound=tuple(bound))


def _solver(limit: float) -> cp_model.CpSolver:
    solver = cp_model.CpSolver()
    p = solver.parameters
    p.num_workers = 1
    p.random_seed = 1
    p.max_deterministic_time = limit
    # It would take the handler of Ctrl-C away for good (9.15).
    p.catch_sigint_signal = False
    # What takes long is the bound, and that is the relaxation's.
    p.linearization_level = 2
    # With it 9.15.6755 calls choices the best that are not, as in google/or-tools#5293: 2 of 1800 small
    # households.
    p.cp_model_presolve = False
    return solver


def _times(problem: Problem, o: Option) -> int:
    """How often an option may be taken by itself."""
    want, room = problem.wants[o.model], problem.rooms[o.node]
    most = min(1 if o.once else want.replicas, want.per_node)
    for device, load in o.loads:
        free = problem.devices[device][1]
        most = min(most, free // load) if load else most * (free >= 0)
    if o.host:
        most = min(most, room.ram // o.host)
    return 0 if o.fetch and o.fetch_bytes > room.disk else most


def _total(terms: Sequence[Term]) -> cp_model.LinearExprT:
    return cp_model.LinearExpr.weighted_sum([v for v, _ in terms], [n for _, n in terms])


class _House:
    """A problem as a CP-SAT model: how often each option is taken, what limits that, the sum of each
    level."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.model = problem, cp_model.CpModel()
        self.variables: list[cp_model.IntVar] = []
        self.taken = {
            i: self._variable(n) for i, o in enumerate(problem.options) if (n := _times(problem, o)) > 0
        }
        self.by_model: dict[int, list[int]] = defaultdict(list)
        self.by_node: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.by_gpu: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i in self.taken:
            o = problem.options[i]
            self.by_model[o.model].append(i)
            self.by_node[o.model, o.node].append(i)
            if len(o.loads) == 1:
                self.by_gpu[o.model, o.loads[0][0]].append(i)
        self._limit()
        self._limit_fetches()
        # Each level as a sum, how far that may be from zero, and the same of all terms together.
        self.goals: list[list[Term]] = [[] for _ in range(2 * len(problem.classes) + len(LEVELS))]
        self.reach = [0] * len(self.goals)
        self.in_terms = [0] * len(self.goals)
        self._count()

    def _variable(self, most: int) -> cp_model.IntVar:
        self.variables.append(self.model.new_int_var(0, most, ""))
        return self.variables[-1]

    def _sum(self, options: Iterable[int]) -> cp_model.LinearExprT:
        return cp_model.LinearExpr.sum([self.taken[i] for i in options])

    def _limit(self) -> None:
        """No device and no RAM gives more than it has, no model gets more than was asked for."""
        on_device: dict[int, list[Term]] = defaultdict(list)
        in_ram: dict[int, list[Term]] = defaultdict(list)
        for i, times in self.taken.items():
            o = self.problem.options[i]
            for device, load in o.loads:
                on_device[device].append((times, load))
            if o.host:
                in_ram[o.node].append((times, o.host))
        for device, terms in on_device.items():
            self.model.add(_total(terms) <= self.problem.devices[device][1])
        for node, terms in in_ram.items():
            self.model.add(_total(terms) <= self.problem.rooms[node].ram)
        for m, mine in self.by_model.items():
            self.model.add(self._sum(mine) <= self.problem.wants[m].replicas)
        for (m, _), mine in self.by_node.items():
            if self.problem.wants[m].per_node < self.problem.wants[m].replicas:
                self.model.add(self._sum(mine) <= self.problem.wants[m].per_node)

    def _limit_fetches(self) -> None:
        """No disk gets more than it has room for; what several placements need is fetched once."""
        fetches: dict[int, dict[tuple[str, int], dict[int, list[int]]]] = defaultdict(dict)
        for i in self.taken:
            o = self.problem.options[i]
            if o.fetch:
                needed = fetches[o.node].setdefault((o.fetch, o.fetch_bytes), defaultdict(list))
                needed[o.model].append(i)
        for node, sources in fetches.items():
            disk = self.problem.rooms[node].disk
            if sum(size for _, size in sources) <= disk:
                continue
            fetched = [(self._variable(1), size) for _, size in sources]
            self.model.add(_total(fetched) <= disk)
            for (there, _), needed in zip(fetched, sources.values(), strict=True):
                for m, mine in needed.items():
                    replicas = self.problem.wants[m].replicas
                    for part in [mine] if replicas == 1 else [[i] for i in mine]:
                        self.model.add(self._sum(part) <= replicas * there)

    def _count(self) -> None:
        classes, top = self.problem.classes, 2 * len(self.problem.classes)
        for m, mine in self.by_model.items():
            want = self.problem.wants[m]
            first = classes.index(want.priority)
            self._add(first, self._any(mine), 1, want.replicas)
            self._add(first + len(classes), [(self.taken[i], 1) for i in mine], want.replicas, want.replicas)
            worths = [(self.taken[i], self.problem.options[i].worth) for i in mine]
            for level in range(len(LEVELS)):
                terms = [(times, worth[level]) for times, worth in worths if worth[level]]
                reach = max((abs(n) for _, n in terms), default=0) * want.replicas
                self._add(top + level, terms, reach, want.replicas)
            self._add(top + SPREAD, [], want.replicas, 0)
        for mine in self.by_node.values():
            self._add(top + SPREAD, self._any(mine), 0, 1)
        for (m, _), mine in self.by_gpu.items():
            if (most := min(self.problem.wants[m].replicas, self.problem.wants[m].per_node)) > 1:
                beside = self._variable(most - 1)
                self.model.add(beside >= self._sum(mine) - 1)
                self._add(top + BESIDE, [(beside, -1)], most - 1, most - 1)

    def _any(self, options: Sequence[int]) -> list[Term]:
        """1 when any of these options of one model is taken, where that is a goal; else it may be 0."""
        if self.problem.wants[self.problem.options[options[0]].model].replicas == 1:
            return [(self.taken[i], 1) for i in options]
        some = self._variable(1)
        self.model.add(some <= self._sum(options))
        return [(some, 1)]

    def _add(self, level: int, terms: Sequence[Term], reach: int, times: int) -> None:
        self.goals[level] += terms
        self.reach[level] += reach
        self.in_terms[level] += times * sum(abs(n) for _, n in terms)

    # -- what is aimed at

    def groups(self) -> list[int]:
        """The levels where groups begin, and the end."""
        top = len(self.goals) - len(LEVELS)
        begins, together, in_terms = [0], 1, 0
        for level, (reach, terms) in enumerate(zip(self.reach, self.in_terms, strict=True)):
            together, in_terms = together * (reach + 1), in_terms * (reach + 1) + terms
            if level - top in GROUPS or together > MOST_TOGETHER or in_terms > MOST_IN_TERMS:
                begins.append(level)
                together, in_terms = reach + 1, terms
        return [*dict.fromkeys(begins), len(self.goals)]

    def _weights(self, start: int, end: int) -> list[int]:
        """What one of each level of a group counts: more than all that the next ones can come to."""
        weights = [1]
        for reach in reversed(self.reach[start + 1 : end]):
            weights.append(weights[-1] * (reach + 1))
        return weights[::-1]

    def aim(self, start: int, end: int) -> bool:
        """Makes a group of levels the objective, if there is anything to be had at them."""
        goals = zip(self.goals[start:end], self._weights(start, end), strict=True)
        terms = [(v, weight * n) for goal, weight in goals for v, n in goal]
        if terms:
            self.model.maximize(_total(terms))
        return bool(terms)

    def keep(self, start: int, end: int, values: Sequence[int]) -> None:
        """From now on no less than a choice has at these levels; the search begins with that choice."""
        for goal in filter(None, self.goals[start:end]):
            self.model.add(_total(goal) >= sum(n * values[v.index] for v, n in goal))
        self.model.clear_hints()  # type: ignore[no-untyped-call]  # as of ortools 9.15
        for v, value in zip(self.variables, values, strict=True):
            self.model.add_hint(v, value)

    def _least(self, level: int) -> int:
        return -self.reach[level] if any(n < 0 for _, n in self.goals[level]) else 0

    def tops(self, start: int, end: int) -> list[int]:
        """What no choice exceeds at these levels, whatever it is."""
        return [self._least(level) + self.reach[level] for level in range(start, end)]

    def decoded(self, objective: int, start: int, end: int) -> list[int]:
        """The levels of a group that an objective stands for."""
        weights = self._weights(start, end)
        least = [self._least(level) for level in range(start, end)]
        left = objective - sum(w * n for w, n in zip(weights, least, strict=True))
        parts = []
        for w, n in zip(weights, least, strict=True):
            parts.append(n + left // w)
            left %= w
        return parts
