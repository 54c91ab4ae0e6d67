"""The search against an exact solver on random households, and what must hold of any choice."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from homelab.facts import Facts
from homelab.inventory import Inventory, load
from homelab.placement import place, problem_of
from homelab.placement.assignment import Option, Problem, Room, Want, levels, violations
from homelab.placement.backtracking import Outcome, improve, possible
from homelab.placement.packing import Budget
from homelab.placement.search import solve
from homelab.placement.stage import Stage
from tests.machines import AWQ, GIB, MIB, gpu, machine, qwen3, survey, tiny_gguf
from tests.oracle import best_levels, household

# nodes, GPUs, models, first seed, how many
SIZES = [
    (2, 2, 3, 0, 180),
    (2, 2, 3, 180, 180),
    (2, 3, 4, 0, 55),
    (2, 3, 4, 55, 55),
    (3, 4, 5, 0, 20),
    (3, 4, 5, 20, 20),
    (8, 12, 12, 7, 3),
    (8, 12, 12, 15, 2),
    (8, 12, 12, 18, 1),
    (8, 12, 12, 22, 3),
    (8, 12, 12, 51, 1),
]


@pytest.mark.parametrize(("nodes", "gpus", "models", "first", "count"), SIZES)
def test_random_households_come_to_what_an_exact_solver_finds(
    nodes: int, gpus: int, models: int, first: int, count: int
) -> None:
    for seed in range(first, first + count):
        problem = household(seed, nodes, gpus, models)
        answer = solve(problem)
        assert violations(problem, answer.chosen) == [], seed
        assert answer.levels == best_levels(problem), seed
        assert answer.levels == levels(problem, answer.chosen)
        assert answer.proven, seed
        assert answer.gap(problem) is None


def test_options_that_are_ruled_out_are_in_no_best_choice() -> None:
    ruled_out = 0
    for seed in range(6):
        problem = household(seed, 2, 3, 4)
        answer = solve(problem)
        for level in range(2 * len(problem.classes), len(answer.levels)):
            stage = Stage(problem, range(len(problem.options)), answer.levels[:level], level + 1)
            left = possible(stage, answer.levels, Budget(1_000_000))
            assert set(answer.chosen) <= set(left), (seed, level)
        fewer = replace(problem, options=tuple(problem.options[i] for i in left))
        assert best_levels(fewer) == answer.levels, seed
        ruled_out += len(problem.options) - len(left)
    assert ruled_out > 50


def test_what_is_too_deep_to_be_tried_out_is_left_to_the_others() -> None:
    want = Want(replicas=500)
    options = tuple(Option(model=m, node=0, loads=((0, 1 + m),)) for m in range(2))
    problem = Problem(wants=(want, want), rooms=(Room(ram=0, disk=0),), devices=((0, 900),), options=options)
    known = levels(problem, [0, 1])
    stage = Stage(problem, [0, 1], known[:1], 2)
    assert improve(stage, known, Budget(1_000_000)) == Outcome(None, settled=False)
    assert possible(stage, known, Budget(1_000_000)) == [0, 1]


def test_when_steps_run_out_the_answer_is_allowed_and_says_how_far_it_may_be() -> None:
    for seed in range(10):
        problem = household(seed, 3, 4, 5)
        answer = solve(problem, effort=200)
        assert violations(problem, answer.chosen) == []
        assert answer.bound >= answer.levels
        assert answer.proven == (answer.gap(problem) is None)
        assert answer.bound >= solve(problem).levels >= answer.levels


def random_house(seed: int) -> tuple[Inventory, dict[str, Facts], dict[str, object]]:
    """An inventory and machines, with engines' own arithmetic: models of a few sizes on cards of a few sizes."""
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
            f"m{m}: {{context: {context}, replicas: {rng.choice([1, 1, 2])}, priority: {rng.choice([0, 0, 5])}, "
            f"variants: [{{engine: vllm, source: {source}}}{second}]}}"
        )
    hosts = "\n  ".join(f"{n}: {{host: {f.server_address}}}" for n, f in nodes.items())
    text = f"gateway: {{node: n0}}\nnodes:\n  {hosts}\nmodels:\n  " + "\n  ".join(models) + "\n"
    return load(text, "inventory.yml"), nodes, dict(hub)


def count(inventory: Inventory, layout: object) -> dict[str, int]:
    return {name: sum(p.model == name for p in layout) for name in inventory.models}  # type: ignore[attr-defined]


def test_whole_households_are_placed_as_an_exact_solver_would_and_no_device_is_promised_twice() -> None:
    for seed in range(50):
        inventory, nodes, hub = random_house(seed)
        found = survey(hub, **nodes)  # type: ignore[arg-type]
        layout = place(inventory, found)
        problem = problem_of(inventory, found)
        answer = solve(problem)
        assert answer.levels == best_levels(problem), seed
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
    """The first choice for each by itself would leave one without a place: 14 + 10 on one card, 12 + 12 on the other."""

    def option(model: int, device: int, load: int) -> Option:
        return Option(model=model, node=device, loads=((device, load),), gpus=1, free=24)

    sizes = [14, 12, 12, 10]
    options = tuple(option(m, d, size) for m, size in enumerate(sizes) for d in (0, 1))
    rooms = (Room(ram=0, disk=0), Room(ram=0, disk=0))
    problem = Problem(wants=(Want(),) * 4, rooms=rooms, devices=((0, 24), (1, 24)), options=options)
    answer = solve(problem)
    assert len(answer.chosen) == 4
    assert answer.proven


def test_a_household_too_large_for_an_exact_answer_gets_a_good_one_and_a_bound() -> None:
    problem = household(3, 16, 24, 20)
    answer = solve(problem)
    assert violations(problem, answer.chosen) == []
    assert answer.bound >= answer.levels
    if not answer.proven:
        assert answer.gap(problem)


def test_levels_survive_being_one_number() -> None:
    problem = household(1, 3, 4, 5)
    found = solve(problem).levels
    top = 2 * len(problem.classes)
    stage = Stage(problem, range(len(problem.options)), found[:top], len(found))
    assert tuple(stage.decode(stage.worth(found))) == found[top:]
