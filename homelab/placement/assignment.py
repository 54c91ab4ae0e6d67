"""What may be put where, as plain numbers, and which of two choices is the better one. Pure.

A problem has nodes (RAM and disk), devices (bytes free) and options: an option is one way to run one model,
with the bytes that it takes on each device. A choice of options is allowed when no device, RAM or disk gives
more than it has, no model gets more than was asked for, and no running service is counted twice. Choices are
compared by `LEVELS`, the first that differs decides; `solver.py` finds the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What is compared after the models and replicas that have a place, in this order. More is better: a cost is
# negative.
LEVELS = (
    "placements kept",
    "needless splits",  # over several GPUs, where one of them would hold it were it empty
    "variant ranks",
    "models in RAM",
    "tokens of context",
    "bytes of weights already there",
    "nodes",  # over which the replicas of each model spread
    "replicas beside another on one GPU",
    "GPUs",
    "placements on machines that may be away",
    "bytes free on the devices taken",  # the tightest device that holds it
    "places in the order of names",
)
SPREAD, BESIDE = 6, 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """How much of a model is asked for; `per_node` on one node at the most (a fixed port: one)."""

    priority: int = 0
    replicas: int = 1
    per_node: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a node has beside its devices, in bytes: RAM for engines, disk for weights to fetch."""

    ram: int
    disk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to run a model: on `node`, taking `loads` (device, bytes). `fetch` names weights that must be
    there and are not; several placements share them. A running service may be kept `once`."""

    model: int
    node: int
    loads: tuple[tuple[int, int], ...]
    host: int = 0
    fetch: str = ""
    fetch_bytes: int = 0
    once: bool = False
    kept: bool = False
    avoidable: bool = False
    rank: int = 0
    in_ram: bool = False
    tokens: int = 0
    there: int = 0
    gpus: int = 0
    away: bool = False
    free: int = 0
    place: int = 0

    @property
    def worth(self) -> tuple[int, ...]:
        """Its part in each of `LEVELS`; the spread of replicas is no option's own."""
        wanted = (int(self.kept), -int(self.avoidable), -self.rank, -int(self.in_ram), self.tokens)
        return (*wanted, self.there, 0, 0, -self.gpus, -int(self.away), -self.free, -self.place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`devices` are (node, bytes free)."""

    wants: tuple[Want, ...]
    rooms: tuple[Room, ...]
    devices: tuple[tuple[int, int], ...]
    options: tuple[Option, ...]

    @property
    def classes(self) -> list[int]:
        """The priorities, the highest first."""
        return sorted({w.priority for w in self.wants}, reverse=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Indices of the options chosen, and what they come to by level. No choice comes to more than `bound`."""

    chosen: tuple[int, ...]
    levels: tuple[int, ...]
    bound: tuple[int, ...]

    @property
    def proven(self) -> bool:
        return self.levels == self.bound

    def gap(self, problem: Problem) -> str | None:
        """How far from the bound it may be at the first level where they differ; None when it is the best."""
        if self.proven:
            return None
        names = (
            ["models with a place"] * len(problem.classes)
            + ["replicas with a place"] * len(problem.classes)
            + list(LEVELS)
        )
        level = next(i for i, (x, y) in enumerate(zip(self.levels, self.bound, strict=True)) if x != y)
        return f"{abs(self.bound[level] - self.levels[level])} {names[level]}"


def levels(problem: Problem, chosen: Iterable[int]) -> tuple[int, ...]:
    """What a choice comes to: models with a place by priority, replicas by priority, then `LEVELS`."""
    options = [problem.options[i] for i in chosen]
    counts = Counter(o.model for o in options)
    classes = problem.classes
    models = [sum(problem.wants[m].priority == c for m in counts) for c in classes]
    replicas = [sum(n for m, n in counts.items() if problem.wants[m].priority == c) for c in classes]
    sums = [sum(column) for column in zip(*(o.worth for o in options), strict=True)] or [0] * len(LEVELS)
    sums[SPREAD] = len({(o.model, o.node) for o in options})
    sums[BESIDE] = -sum(
        n - 1 for n in Counter((o.model, o.loads[0][0]) for o in options if len(o.loads) == 1).values()
    )
    return (*models, *replicas, *sums)


def violations(problem: Problem, chosen: Sequence[int]) -> list[str]:
    """What a choice takes too much of; empty when it is allowed."""
    options = [problem.options[i] for i in chosen]
    used: Counter[int] = Counter()
    for o in options:
        used.update(dict(o.loads))
    broken = [f"device {d}" for d, n in used.items() if n > problem.devices[d][1]]
    for node, room in enumerate(problem.rooms):
        here = [o for o in options if o.node == node]
        # What holds nothing there (it runs already, or needs none) is no violation of a node that has none.
        if any(o.host for o in here) and sum(o.host for o in here) > room.ram:
            broken.append(f"RAM of node {node}")
        fetched = {o.fetch: o.fetch_bytes for o in here if o.fetch}
        if fetched and sum(fetched.values()) > room.disk:
            broken.append(f"disk of node {node}")
        broken += [
            f"model {m} on node {node}"
            for m, n in Counter(o.model for o in here).items()
            if n > problem.wants[m].per_node
        ]
    broken += [
        f"model {m}" for m, n in Counter(o.model for o in options).items() if n > problem.wants[m].replicas
    ]
    broken += [f"option {i} twice" for i, n in Counter(chosen).items() if n > 1 and problem.options[i].once]
    return broken


def all_kept(problem: Problem) -> Answer | None:
    """What runs already, where that is all that is asked for; None where there is something to choose.

    No choice is better: each model has as many places as it can have, all of them kept ones, and nothing
    else has as many of those. `placements kept` is compared before all that tells one place from
    another."""
    chosen = tuple(i for i, o in enumerate(problem.options) if o.kept)
    ways, kept = Counter(o.model for o in problem.options), Counter(problem.options[i].model for i in chosen)
    if any(kept[m] != min(ways[m], want.replicas) for m, want in enumerate(problem.wants)):
        return None
    if violations(problem, chosen) or not all(problem.options[i].once for i in chosen):
        return None
    now = levels(problem, chosen)
    return Answer(chosen=chosen, levels=now, bound=now)
