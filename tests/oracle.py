"""Random households as plain numbers, and the best choice for a small one by looking at all of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from math import comb, prod

from homelab.placement.assignment import Option, Problem, Room, Want, levels, violations


def best_levels(problem: Problem) -> tuple[int, ...]:
    """What the best of all allowed choices comes to."""
    return max(levels(problem, chosen) for chosen in allowed(problem, 0, ()))


def allowed(problem: Problem, model: int, chosen: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every allowed choice that has this for the models before: what takes too much takes no less with more
    in it."""
    if model == len(problem.wants):
        yield chosen
        return
    mine = [i for i, o in enumerate(problem.options) if o.model == model]
    for times in range(problem.wants[model].replicas + 1):
        for more in combinations_with_replacement(mine, times):
            if not violations(problem, (*chosen, *more)):
                yield from allowed(problem, model + 1, (*chosen, *more))


def choices(problem: Problem) -> int:
    """How many choices there are, allowed or not."""
    ways = [sum(o.model == m for o in problem.options) for m in range(len(problem.wants))]
    return prod(comb(n + w.replicas, w.replicas) for n, w in zip(ways, problem.wants, strict=True))


def small(seed: int, nodes: int, gpus: int, models: int, most: int = 3000) -> Problem:
    """A random household with so few of its options, drawn by chance, that all choices can be looked at."""
    problem = household(seed, nodes, gpus, models)
    rng = random.Random(seed)
    while choices(problem) > most:
        ways = [sum(o.model == m for o in problem.options) for m in range(len(problem.wants))]
        out = rng.choice([i for i, o in enumerate(problem.options) if ways[o.model] == max(ways)])
        problem = replace(problem, options=problem.options[:out] + problem.options[out + 1 :])
    return problem


def in_bytes(problem: Problem) -> Problem:
    """The same with sizes as real ones are: tenths of a GB in bytes, each model's a little off, tokens in
    thousands."""

    def size(tenths: int, *whose: int) -> int:
        return tenths * 107_374_182 - (random.Random(repr(whose)).randrange(1_000_000) if tenths else 0)

    options = [
        replace(
            o,
            loads=tuple((d, size(n, o.model, o.rank, o.tokens)) for d, n in o.loads),
            host=size(o.host, o.model, o.rank),
            fetch_bytes=size(o.fetch_bytes, o.model, o.rank),
            tokens=o.tokens * 1024,
            there=size(o.there, o.model, o.rank),
            free=size(o.free, o.loads[0][0], len(o.loads)),
        )
        for o in problem.options
    ]
    return replace(
        problem,
        rooms=tuple(Room(ram=size(r.ram, n), disk=size(r.disk, n)) for n, r in enumerate(problem.rooms)),
        devices=tuple((node, size(free, d)) for d, (node, free) in enumerate(problem.devices)),
        options=tuple(options),
    )


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
