"""The solver against all choices of small households, and what must hold of any choice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homelab.facts import Facts
from homelab.inventory import Inventory, load
from homelab.placement import place, problem_of
from homelab.placement.assignment import LEVELS, Option, Problem, Room, Want, all_kept, levels, violations
from homelab.placement.solver import solve
from tests.machines import AWQ, GIB, MIB, gpu, machine, qwen3, survey, tiny_gguf
from tests.oracle import best_levels, choices, household, in_bytes, small

ROOT = Path(__file__).parent.parent
# nodes, GPUs, models
SIZES = [(1, 1, 3), (2, 2, 3), (2, 3, 4), (3, 4, 5)]


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_random_households_come_to_the_best_of_all_choices(first: int) -> None:
    for seed in range(first, first + 20):
        for size in SIZES:
            problem = small(seed, *size)
            for exact in (problem, in_bytes(problem)):
                answer = solve(exact)
                assert violations(exact, answer.chosen) == [], (seed, size)
                assert answer.levels == levels(exact, answer.chosen)
                assert answer.levels == best_levels(exact), (seed, size)
                assert answer.proven, (seed, size)
                assert answer.gap(exact) is None


# What is better and what is worse at each level of its own: all else equal, the first is taken.
GOOD: dict[str, dict[str, Any]] = {
    "placements kept": {"kept": True, "once": True},
    "needless splits": {"avoidable": False},
    "variant ranks": {"rank": 0},
    "models in RAM": {"in_ram": False},
    "tokens of context": {"tokens": 8193},
    "bytes of weights already there": {"there": 40 * GIB + 1},
    "GPUs": {"gpus": 1},
    "placements on machines that may be away": {"away": False},
    "bytes free on the devices taken": {"free": 40 * GIB - 1},
    "places in the order of names": {"place": 0},
}
BAD: dict[str, dict[str, Any]] = {
    "placements kept": {"kept": False, "once": False},
    "needless splits": {"avoidable": True},
    "variant ranks": {"rank": 1},
    "models in RAM": {"in_ram": True},
    "tokens of context": {"tokens": 8192},
    "bytes of weights already there": {"there": 40 * GIB},
    "GPUs": {"gpus": 2},
    "placements on machines that may be away": {"away": True},
    "bytes free on the devices taken": {"free": 40 * GIB},
    "places in the order of names": {"place": 1},
}


def house(
    *options: Option, wants: tuple[Want, ...] = (Want(),), devices: tuple[int, ...] = (48, 48, 48)
) -> Problem:
    """Options on a node for each device, or all on the first node."""
    rooms = tuple(Room(ram=0, disk=0) for _ in devices)
    return Problem(wants=wants, rooms=rooms, devices=tuple(enumerate(devices)), options=options)


def option(
    device: int = 0, load: int = 24, *, model: int = 0, node: int | None = None, **more: Any
) -> Option:
    return Option(model=model, node=device if node is None else node, loads=((device, load),), **more)


def decides(problem: Problem, level: int, better: tuple[int, ...], worse: tuple[int, ...]) -> None:
    """At this level, and at none before it, the one choice is better than the other; it is the best of
    all."""
    assert violations(problem, better) == violations(problem, worse) == []
    ours, theirs = levels(problem, better), levels(problem, worse)
    assert ours[:level] == theirs[:level]
    assert ours[level] > theirs[level]
    assert levels(problem, solve(problem).chosen) == ours
    assert best_levels(problem) == ours


@pytest.mark.parametrize("level", GOOD)
@pytest.mark.parametrize("turned", [False, True])
def test_each_level_decides_whatever_comes_after_it(level: str, turned: bool) -> None:
    before, after = list(GOOD)[: list(GOOD).index(level)], list(GOOD)[list(GOOD).index(level) + 1 :]
    shared = {k: v for name in before for k, v in GOOD[name].items()}
    better = option(**shared, **GOOD[level], **{k: v for name in after for k, v in BAD[name].items()})
    worse = option(**shared, **BAD[level], **{k: v for name in after for k, v in GOOD[name].items()})
    options = (worse, better) if turned else (better, worse)
    number = next(i for i, name in enumerate(LEVELS) if name == level)
    decides(house(*options), 2 + number, (int(turned),), (1 - int(turned),))


def test_replicas_spread_over_nodes_before_they_spare_gpus_and_places() -> None:
    here = option(0, 48, gpus=1)
    beside = option(1, 48, node=0, gpus=1)
    away = option(2, 48, gpus=2, free=9, place=9)
    problem = house(here, beside, away, wants=(Want(replicas=2),))
    decides(problem, 2 + LEVELS.index("nodes"), (0, 2), (0, 1))


def test_replicas_of_one_node_take_another_gpu_before_they_spare_places() -> None:
    here = option(0, 24, gpus=1)
    beside = option(1, 24, node=0, gpus=2, free=9, place=9)
    problem = house(here, beside, wants=(Want(replicas=2),))
    decides(problem, 2 + LEVELS.index("replicas beside another on one GPU"), (0, 1), (0, 0))


def test_models_and_replicas_come_first_and_by_priority() -> None:
    high, low = Want(priority=5, replicas=2), Want(replicas=2)
    dear, cheap = option(0, 48, rank=2), option(0, 24, model=1, kept=True, once=True, tokens=9)
    decides(house(dear, cheap, wants=(high, low)), 0, (0,), (1,))
    # A model of low priority before the second replica of one of high priority.
    both = (option(0, 24), option(0, 24, model=1, rank=2))
    decides(house(*both, wants=(high, low), devices=(48,)), 1, (0, 1), (0, 0))
    # Three places: the replica of high priority, though the other is kept.
    three = (option(0, 24), option(0, 24, model=1), option(0, 24, model=1, kept=True, once=True))
    decides(house(*three, wants=(high, low), devices=(72,)), 2, (0, 0, 2), (0, 1, 2))
    # Both replicas rather than one that is kept and takes the whole.
    whole = (option(0, 24), option(0, 48, kept=True, once=True))
    decides(house(*whole, wants=(low,), devices=(48,)), 1, (0, 0), (1,))


def test_a_byte_too_much_is_too_much() -> None:
    size = 80 * GIB + 1
    for free, placed in ((2 * size, 2), (2 * size - 1, 1)):
        for problem in (
            house(option(0, size), wants=(Want(replicas=2),), devices=(free,)),
            replace(
                house(option(0, 0, host=size), wants=(Want(replicas=2),)), rooms=(Room(ram=free, disk=0),) * 3
            ),
            replace(
                house(
                    *(option(0, 0, model=m, fetch=f"{m}", fetch_bytes=size) for m in (0, 1)),
                    wants=(Want(),) * 2,
                ),
                rooms=(Room(ram=0, disk=free),) * 3,
            ),
        ):
            answer = solve(problem)
            assert len(answer.chosen) == placed
            assert answer.proven
            assert answer.levels == best_levels(problem)


def test_weights_that_several_share_are_fetched_once() -> None:
    options = tuple(option(0, 1, model=m, fetch=source, fetch_bytes=60) for m, source in enumerate("aab"))
    problem = replace(house(*options, wants=(Want(),) * 3), rooms=(Room(ram=0, disk=100),) * 3)
    assert solve(problem).chosen == (0, 1)


def test_nothing_to_choose_from_is_an_answer() -> None:
    nothing = Problem(wants=(), rooms=(), devices=(), options=())
    for problem in (nothing, replace(nothing, wants=(Want(replicas=3),)), house(), house(option(0, 49))):
        answer = solve(problem)
        assert answer.chosen == ()
        assert answer.proven
        assert answer.levels == best_levels(problem)


def test_what_holds_nothing_may_stay_where_nothing_is_free() -> None:
    """A service of a node whose RAM is used up, on a device that it holds itself: it runs already."""
    kept = option(0, 0, kept=True, once=True)
    more = option(0, 1, host=1)
    problem = house(kept, more, wants=(Want(replicas=2),), devices=(0,))
    problem = replace(problem, rooms=(Room(ram=-GIB, disk=-GIB),))
    assert violations(problem, [0]) == []
    answer = solve(problem)
    assert answer.chosen == (0,)
    assert answer.proven
    assert all_kept(problem) is None


def test_hundreds_of_replicas() -> None:
    options = tuple(
        option(d, 8 * GIB, model=m, tokens=t, free=80 * GIB)
        for m in (0, 1)
        for d in range(12)
        for t in (8, 9)
    )
    problem = house(
        *options, wants=(Want(replicas=1024), Want(replicas=1024, per_node=2)), devices=(80 * GIB,) * 12
    )
    answer = solve(problem)
    assert violations(problem, answer.chosen) == []
    assert answer.proven
    assert len(answer.chosen) == 120
    assert answer.levels[:2] == (2, 120)
    assert answer.levels[2 + LEVELS.index("nodes")] == 24


def running(problem: Problem, chosen: tuple[int, ...]) -> Problem:
    """The same household when this runs: each of it is an option to keep, beside all others."""
    kept = [replace(problem.options[i], kept=True, once=True, fetch="", fetch_bytes=0) for i in chosen]
    return replace(problem, options=(*kept, *problem.options))


def test_what_runs_is_kept_without_the_solver_exactly_where_it_is_the_only_best_choice() -> None:
    without = 0
    for seed in range(60):
        for size in SIZES:
            problem = household(seed, *size)
            problem = replace(problem, options=tuple(o for o in problem.options if not o.kept))
            now = running(problem, solve(problem).chosen)
            kept, answer = all_kept(now), solve(now)
            assert answer.proven
            if kept is None:
                assert len(answer.chosen) < sum(w.replicas for w in now.wants)
                continue
            without += 1
            assert kept == answer, (seed, size)
            fewer = replace(now, wants=tuple(replace(w, replicas=w.replicas - 1) for w in now.wants))
            assert all_kept(fewer) is None  # which of them goes is a choice
            more = replace(now, wants=tuple(replace(w, replicas=w.replicas + 1) for w in now.wants))
            assert all_kept(more) is None or len(more.options) == len(kept.chosen)
    assert 60 < without < 240


def test_what_runs_and_has_no_room_together_is_no_answer() -> None:
    kept = {"kept": True, "once": True}
    problem = house(option(0, 30, **kept), option(0, 30, model=1, **kept), wants=(Want(),) * 2)
    assert all_kept(problem) is None
    assert len(solve(problem).chosen) == 1
    roomy = replace(problem, devices=((0, 60),))
    answer = all_kept(roomy)
    assert answer is not None
    assert answer.chosen == solve(roomy).chosen == (0, 1)


def test_when_the_time_is_up_the_answer_is_allowed_and_says_how_far_it_may_be() -> None:
    unproven = 0
    for seed in range(30):
        problem = small(seed, 3, 4, 5)
        best = best_levels(problem)
        for effort in (0, 0.0001, 0.001, 0.01):
            answer = solve(problem, effort=effort)
            assert violations(problem, answer.chosen) == []
            assert answer.levels == levels(problem, answer.chosen)
            assert answer.bound >= best >= answer.levels, (seed, effort)
            assert answer.proven == (answer.gap(problem) is None)
            unproven += not answer.proven
    assert unproven > 30


def test_a_household_that_is_not_finished_has_what_counts_most() -> None:
    problem = household(0, 20, 40, 30)
    best = solve(problem)
    answer = solve(problem, effort=1)
    assert violations(problem, answer.chosen) == []
    assert answer.bound >= best.levels >= answer.levels
    counts = 2 * len(problem.classes)
    assert answer.levels[:counts] == answer.bound[:counts] == best.levels[:counts]
    assert answer.gap(problem)


@pytest.mark.parametrize("effort", [0.05, 12])
def test_the_same_household_has_the_same_answer_in_every_process(effort: float) -> None:
    code = (
        "from tests.oracle import household\nfrom homelab.placement.solver import solve\n"
        f"print([solve(household(seed, 8, 12, 12), effort={effort}) for seed in (0, 1)])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(answers) == 1


def test_ctrl_c_still_ends_the_program_once_something_was_placed() -> None:
    code = (
        "import os, signal\nfrom tests.oracle import household\nfrom homelab.placement.solver import solve\n"
        "solve(household(0, 3, 4, 5))\n"
        "try: os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "except KeyboardInterrupt: print('said goodbye')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.stdout == "said goodbye\n", ended.stderr


def test_the_order_of_options_makes_no_better_choice() -> None:
    for seed in range(12):
        problem = household(seed, 3, 4, 5)
        options = list(problem.options)
        random.Random(seed).shuffle(options)
        assert solve(replace(problem, options=tuple(options))).levels == solve(problem).levels, seed


def random_house(seed: int) -> tuple[Inventory, dict[str, Facts], dict[str, object]]:
    """An inventory and machines, with engines' own arithmetic: models of a few sizes on cards of a few
    sizes."""
    rng = random.Random(seed)
    cards = [
        ("NVIDIA GeForce RTX 3070", 7970),
        ("NVIDIA GeForce RTX 3060", 12000),
        ("NVIDIA GeForce RTX 4090", 24106),
    ]
    nodes: dict[str, Facts] = {}
    for n in range(rng.randrange(1, 4)):
        name, total = rng.choice(cards)
        found = [
            gpu(name, total, total - rng.choice([0, 0, 900, 5000]), index=i)
            for i in range(rng.choice([0, 1, 1, 2]))
        ]
        nodes[f"n{n}"] = machine(
            f"n{n}",
            *found,
            ram_gib=rng.choice([8, 16, 64]),
            address=f"192.168.1.{n + 10}",
            weights=(tiny_gguf(),),
        )
    hub = {}
    models = []
    for m in range(rng.randrange(1, 5)):
        source = f"Org/Model-{m}"
        hub[source] = qwen3(
            source,
            rng.choice([1.5, 2.5, 5.5, 9.0, 15.6]),
            rng.choice([28, 36, 48]),
            2560,
            rng.choice([4, 8]),
            **AWQ,
        )
        second = ", {engine: llamacpp, source: /models/tiny.gguf}" if rng.random() < 0.3 else ""
        context = rng.choice(["4096", "{min: 2048, max: 32768}", "{min: 4096, max: 16384}"])
        models.append(
            f"m{m}: {{context: {context}, "
            f"replicas: {rng.choice([1, 1, 2])}, priority: {rng.choice([0, 0, 5])}, "
            f"variants: [{{engine: vllm, source: {source}}}{second}]}}"
        )
    hosts = "\n  ".join(f"{n}: {{host: {f.server_address}}}" for n, f in nodes.items())
    text = f"gateway: {{node: n0}}\nnodes:\n  {hosts}\nmodels:\n  " + "\n  ".join(models) + "\n"
    return load(text, "inventory.yml"), nodes, dict(hub)


def count(inventory: Inventory, layout: object) -> dict[str, int]:
    return {name: sum(p.model == name for p in layout) for name in inventory.models}  # type: ignore[attr-defined]


def test_whole_households_are_placed_as_well_as_can_be_and_no_device_is_promised_twice() -> None:
    looked_at = 0
    for seed in range(50):
        inventory, nodes, hub = random_house(seed)
        found = survey(hub, **nodes)  # type: ignore[arg-type]
        layout = place(inventory, found)
        problem = problem_of(inventory, found)
        answer = solve(problem)
        assert violations(problem, answer.chosen) == []
        if choices(problem) < 20_000:
            assert answer.levels == best_levels(problem), seed
            looked_at += 1
        assert layout.gap is None
        assert len(layout.placements) == len(answer.chosen)
        assert len(layout.placements) + len(layout.unplaced) == sum(
            m.replicas for m in inventory.models.values()
        )
        assert sum(p.request.context for p in layout) >= sum(problem.options[i].tokens for i in answer.chosen)
        for name, facts in nodes.items():
            for card in facts.gpus:
                used = sum(p.bytes for p in layout if p.node == name and card.uuid in p.gpus)
                assert used <= (card.memory_free_bytes or 0), (seed, name)
            if facts.gpus:
                assert (
                    sum(p.footprint.host_bytes for p in layout if p.node == name)
                    <= facts.memory_available_bytes
                )
            else:
                assert sum(p.bytes for p in layout if p.node == name) <= facts.memory_available_bytes - GIB
        for p in layout:
            assert p.reason
        assert (
            len({(p.node, p.port) for p in layout})
            == len({(p.node, p.service) for p in layout})
            == len(layout.placements)
        )
    assert looked_at > 25


def by_priority(inventory: Inventory, placed: dict[str, int]) -> list[int]:
    classes = sorted({m.priority for m in inventory.models.values()}, reverse=True)
    models = [sum(placed[n] > 0 for n, m in inventory.models.items() if m.priority == c) for c in classes]
    return models + [sum(placed[n] for n, m in inventory.models.items() if m.priority == c) for c in classes]


def test_more_memory_never_places_less() -> None:
    for seed in range(12):
        inventory, nodes, hub = random_house(seed)
        more = {
            n: f.model_copy(
                update={
                    "gpus": tuple(
                        g.model_copy(
                            update={
                                "memory_total_bytes": g.memory_total_bytes + 3000 * MIB,
                                "memory_free_bytes": g.memory_free_bytes + 3000 * MIB,
                            }
                        )
                        for g in f.gpus
                        if g.memory_total_bytes is not None and g.memory_free_bytes is not None
                    )
                }
            )
            for n, f in nodes.items()
        }
        before = count(inventory, place(inventory, survey(hub, **nodes)))  # type: ignore[arg-type]
        after = count(inventory, place(inventory, survey(hub, **more)))  # type: ignore[arg-type]
        assert by_priority(inventory, after) >= by_priority(inventory, before), seed
    for seed in range(40):
        problem = household(seed, 2, 3, 4)
        wider = replace(problem, devices=tuple((n, free + 50) for n, free in problem.devices))
        assert solve(wider).levels >= solve(problem).levels


def test_nothing_is_left_out_for_want_of_room_elsewhere() -> None:
    """The first choice for each by itself would leave one without a place: 14 + 10 on one card, 12 + 12 on
    the other."""

    def option(model: int, device: int, load: int) -> Option:
        return Option(model=model, node=device, loads=((device, load),), gpus=1, free=24)

    sizes = [14, 12, 12, 10]
    options = tuple(option(m, d, size) for m, size in enumerate(sizes) for d in (0, 1))
    rooms = (Room(ram=0, disk=0), Room(ram=0, disk=0))
    problem = Problem(wants=(Want(),) * 4, rooms=rooms, devices=((0, 24), (1, 24)), options=options)
    answer = solve(problem)
    assert len(answer.chosen) == 4
    assert answer.proven
