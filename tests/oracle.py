"""Random households as plain numbers, and the best choice for each by OR-tools' CP-SAT: what `homelab/placement/search.py` is held against."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from ortools.sat.python import cp_model

from homelab.placement.assignment import BESIDE, LEVELS, SPREAD, Option, Problem, Room, Want


def best_levels(problem: Problem, *, workers: int = 1, seconds: float = 120) -> tuple[int, ...] | None:
    """The levels of a best choice, proven, one group of levels after the other; None where that took too long."""
    model = cp_model.CpModel()
    x = [
        model.new_bool_var("") if o.once else model.new_int_var(0, problem.wants[o.model].replicas, "")
        for o in problem.options
    ]
    of_model, of_pair, of_single, of_device = (
        defaultdict(list),
        defaultdict(list),
        defaultdict(list),
        defaultdict(list),
    )
    host, fetches = defaultdict(list), defaultdict(dict)
    for i, o in enumerate(problem.options):
        of_model[o.model].append(x[i])
        of_pair[o.model, o.node].append(x[i])
        if len(o.loads) == 1:
            of_single[o.model, o.loads[0][0]].append(x[i])
        for d, load in o.loads:
            of_device[d].append(load * x[i])
        if o.host:
            host[o.node].append(o.host * x[i])
        if o.fetch:
            needed = fetches[o.node].setdefault((o.fetch, o.fetch_bytes), model.new_bool_var(""))
            model.add(x[i] <= problem.wants[o.model].replicas * needed)
    for d, loads in of_device.items():
        model.add(sum(loads) <= max(0, problem.devices[d][1]))
    for node, loads in host.items():
        model.add(sum(loads) <= max(0, problem.rooms[node].ram))
    for node, needed in fetches.items():
        model.add(sum(size * var for (_, size), var in needed.items()) <= max(0, problem.rooms[node].disk))
    placed, on_node = {}, {}
    for m, mine in of_model.items():
        model.add(sum(mine) <= problem.wants[m].replicas)
        placed[m] = model.new_bool_var("")
        model.add(placed[m] <= sum(mine))
    for (m, node), mine in of_pair.items():
        model.add(sum(mine) <= problem.wants[m].per_node)
        on_node[m, node] = model.new_bool_var("")
        model.add(on_node[m, node] <= sum(mine))
    beside = []
    for (m, _), mine in of_single.items():
        if problem.wants[m].replicas > 1:
            beside.append(model.new_int_var(0, problem.wants[m].replicas, ""))
            model.add(beside[-1] >= sum(mine) - 1)
    classes = problem.classes
    goals = [sum(v for m, v in placed.items() if problem.wants[m].priority == c) for c in classes]
    goals += [
        sum(v for m, mine in of_model.items() if problem.wants[m].priority == c for v in mine)
        for c in classes
    ]
    for level in range(len(LEVELS)):
        goals.append(
            sum(o.worth[level] * v for o, v in zip(problem.options, x, strict=True) if o.worth[level])
        )
    goals[2 * len(classes) + SPREAD] = sum(on_node.values())
    goals[2 * len(classes) + BESIDE] = -sum(beside)
    most = sum(w.replicas for w in problem.wants)
    tops = [most] * (2 * len(classes)) + [
        most * max((abs(o.worth[k]) for o in problem.options), default=0) for k in range(len(LEVELS))
    ]
    tops[2 * len(classes) + SPREAD] = tops[2 * len(classes) + BESIDE] = most
    # As many levels at once as the solver's integers hold.
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.max_time_in_seconds = seconds
    start = 0
    found: list[int] = []
    while start < len(goals):
        end, size = start, 1
        while end < len(goals) and size * (2 * tops[end] + 1) < 1 << 44:
            size *= 2 * tops[end] + 1
            end += 1
        end = max(end, start + 1)
        weights, weight = [], 1
        for top in reversed(tops[start:end]):
            weights.append(weight)
            weight *= 2 * top + 1
        group = [
            (w, g) for w, g in zip(reversed(weights), goals[start:end], strict=True) if not isinstance(g, int)
        ]
        if group:
            model.maximize(sum(w * g for w, g in group))
            if solver.solve(model) != cp_model.OPTIMAL:
                return None
        for g in goals[start:end]:
            found.append(g if isinstance(g, int) else solver.value(g))
            if not isinstance(g, int):
                model.add(g == found[-1])
        start = end
    return tuple(found)


def household(seed: int, nodes: int, gpus: int, models: int, *, load: float | None = None) -> Problem:
    """A random household: `load` is what the models need at the least, as a part of what the GPUs have."""
    rng = random.Random(seed)
    where = sorted(rng.randrange(nodes) for _ in range(gpus))
    sizes = [rng.choice([8, 8, 12, 16, 24, 24, 24, 32, 48]) * 10 for _ in range(gpus)]
    devices = tuple(
        (n, max(0, size - rng.choice([0, 0, 3, 11, 40]))) for n, size in zip(where, sizes, strict=True)
    )
    rooms = tuple(
        Room(ram=rng.choice([120, 300, 600, 600]), disk=rng.choice([400, 4000, 4000])) for _ in range(nodes)
    )
    cpu_only = [n for n in range(nodes) if n not in where and rng.random() < 0.6]
    devices += tuple((n, rooms[n].ram) for n in cpu_only)
    wanted = load or rng.choice([0.4, 0.7, 0.9, 1.1])
    mean = wanted * sum(sizes) / models
    wants, options = [], []
    for m in range(models):
        replicas = rng.choice([1, 1, 1, 1, 2, 3] if models < 8 else [1] * 8 + [2, 3])
        wants.append(
            Want(priority=rng.choice([0, 0, 0, 5]), replicas=replicas, per_node=rng.choice([9, 9, 9, 1]))
        )
        size = max(5, int(mean * rng.choice([0.2, 0.5, 0.8, 1.2, 2.2])))
        lowest = rng.choice([4, 8, 16])
        rungs = sorted({lowest, *(lowest * f for f in rng.sample([2, 3, 4, 6, 8], rng.randrange(0, 4)))})
        pinned = rng.randrange(nodes) if rng.random() < 0.1 else None
        for rank in range(rng.choice([1, 2, 2, 3])):
            weights = int(size * 0.6**rank) + 1
            kv = rng.choice([1, 2, 3, 5]) * max(1, size // 60)
            on_cpu, splits = rng.random() < 0.5, rng.random() < 0.5
            there = [rng.random() < 0.3 for _ in range(nodes)]
            for place, slot in enumerate(_slots(devices, cpu_only, splits)):
                node = devices[slot[0]][0]
                in_ram = node in cpu_only
                if (in_ram and not on_cpu) or pinned not in (None, node):
                    continue
                for tokens in rungs:
                    need = weights // len(slot) + 6 * (len(slot) > 1) + kv * tokens // (4 * len(slot))
                    alone = weights + kv * tokens // 4
                    if need > min(devices[d][1] for d in slot):
                        continue
                    options.append(
                        Option(
                            model=m,
                            node=node,
                            loads=tuple((d, need) for d in slot),
                            host=0 if in_ram else rng.choice([20, 20, 32]),
                            fetch="" if there[node] else f"{m}.{rank}",
                            fetch_bytes=0 if there[node] else weights,
                            avoidable=len(slot) > 1 and any(devices[d][1] >= alone for d in slot),
                            rank=rank,
                            in_ram=in_ram,
                            tokens=tokens,
                            there=weights if there[node] else 0,
                            gpus=len(slot),
                            free=min(devices[d][1] for d in slot),
                            place=place,
                        )
                    )
        if rng.random() < 0.3 and options and options[-1].model == m:
            like = options[-1]
            if not like.avoidable:
                options.append(
                    Option(
                        **{f: getattr(like, f) for f in like.__slots__}
                        | {"once": True, "kept": True, "fetch": "", "fetch_bytes": 0}
                    )
                )
    return Problem(wants=tuple(wants), rooms=rooms, devices=devices, options=tuple(options))


def _slots(
    devices: Sequence[tuple[int, int]], cpu_only: Sequence[int], splits: bool
) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [(d,) for d in range(len(devices))]
    if splits:  # pairs that share no GPU, as homelab forms them
        for node in sorted({n for n, _ in devices} - set(cpu_only)):
            mine = [d for d, (n, _) in enumerate(devices) if n == node]
            found += list(zip(mine[::2], mine[1::2], strict=False))
    return found
