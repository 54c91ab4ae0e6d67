"""Where things go, from facts and an inventory, and why not elsewhere."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from homelab.facts import Facts, MigDevice, Process, Survey
from homelab.inventory import Inventory, load
from homelab.placement import Layout, Placement, place, unsettled
from homelab.plan import diff
from homelab.program import PythonEnvironment
from homelab.render import render
from tests.machines import (
    DOCKER,
    GIB,
    HUB,
    KEYS,
    MIB,
    deployed,
    gpu,
    household,
    laptop,
    listening,
    machine,
    pi,
    server,
    survey,
    tiny_gguf,
    workstation,
)


def inventory(
    models: str,
    nodes: str = "workstation: {host: 192.168.1.10}\n  server: {host: 192.168.1.11}",
    gateway: str = "workstation",
) -> Inventory:
    return load(f"gateway: {{node: {gateway}}}\nnodes:\n  {nodes}\nmodels:\n  {models}\n", "inventory.yml")


def only(layout: Layout) -> Placement:
    assert len(layout.placements) == 1, layout.unplaced
    return layout.placements[0]


QWEN4B = "q: {engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: 8192}"
TINY = "t: {engine: llamacpp, source: /models/tiny.gguf, context: 4096}"


def test_a_model_goes_to_the_tightest_device_that_holds_it() -> None:
    found = only(place(inventory(QWEN4B), survey(HUB, workstation=workstation(), server=server())))
    assert found.node == "workstation"  # 22.4 GiB free there, 23.7 on each card of the server
    assert found.gpu_memory_utilization is not None
    assert found.footprint.budget_bytes <= found.gpu_memory_utilization * found.device.total_bytes
    assert found.gpu_memory_utilization * 1000 == pytest.approx(round(found.gpu_memory_utilization * 1000))


@pytest.mark.parametrize("names", [*itertools.permutations("abc")])
def test_of_equal_places_the_first_model_by_name_gets_the_first(names: tuple[str, ...]) -> None:
    like = "{engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 8192}"
    models = "\n  ".join(f"{name}: {like}" for name in names)
    order = "one: {host: 192.168.1.10}\n  two: {host: 192.168.1.11}\n  three: {host: 192.168.1.12}"
    nodes = {
        name: machine(name, gpu(), address=f"192.168.1.{10 + n}")
        for n, name in enumerate(["one", "two", "three"])
    }
    layout = place(inventory(models, order, "one"), survey(HUB, **nodes))
    assert {p.model: p.node for p in layout} == {"a": "one", "b": "three", "c": "two"}


def test_a_better_variant_wins_wherever_it_fits_and_the_next_one_is_taken_where_not() -> None:
    models = (
        "t: {context: 4096, variants: [{engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ}, "
        "{engine: llamacpp, source: /models/tiny.gguf}]}"
    )
    small = laptop(weights=(tiny_gguf(),))
    nodes = "laptop: {host: 192.168.1.12}"
    assert only(place(inventory(models, nodes, "laptop"), survey(HUB, laptop=small))).engine == "llamacpp"
    both = "laptop: {host: 192.168.1.12}\n  workstation: {host: 192.168.1.10}"
    assert (
        only(
            place(inventory(models, both, "laptop"), survey(HUB, laptop=small, workstation=workstation()))
        ).engine
        == "vllm"
    )


def test_what_does_not_fit_is_said_with_the_arithmetic_and_who_holds_the_rest() -> None:
    busy = machine(
        "workstation",
        gpu(free_mib=9000, processes=(Process(pid=1, name="blender", memory_bytes=15000 * MIB),)),
    )
    layout = place(
        inventory(
            "q: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 8192}",
            "workstation: {host: 192.168.1.10}",
        ),
        survey(HUB, workstation=busy),
    )
    assert not layout.placements
    [unplaced] = layout.unplaced
    assert "weights 15.7 + kv_cache 1.50" in unplaced.details[0]
    assert "free 8.79 GiB of 23.5 (`blender` holds 14.6)" in unplaced.details[0]


def test_a_pinned_model_goes_where_it_is_pinned_or_nowhere() -> None:
    pinned = inventory(QWEN4B.replace("}", ", node: server, gpu: 1}"))
    found = only(place(pinned, survey(HUB, workstation=workstation(), server=server())))
    assert (found.node, found.gpus) == ("server", ("GPU-3090-1",))
    gone = place(pinned, survey(HUB, workstation=workstation(), server="Connection refused"))
    assert not gone.placements
    assert gone.unplaced[0].unreachable == ("server",)


def test_replicas_spread_over_nodes_and_then_over_gpus() -> None:
    found = place(
        inventory(QWEN4B.replace("}", ", replicas: 3}")),
        survey(HUB, workstation=workstation(), server=server()),
    )
    assert sorted((p.node, p.gpus[0]) for p in found) == [
        ("server", "GPU-3090-0"),
        ("server", "GPU-3090-1"),
        ("workstation", "GPU-4090-0"),
    ]
    assert len({(p.node, p.service) for p in found}) == 3
    assert len({(p.node, p.port) for p in found}) == 3


def test_priorities_decide_who_stays_outside() -> None:
    big = (
        "a: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 8192, priority: %d}\n  "
        "b: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 8192, priority: %d}"
    )
    one = survey(HUB, workstation=workstation())
    nodes = "workstation: {host: 192.168.1.10}"
    assert only(place(inventory(big % (1, 2), nodes), one)).model == "b"
    assert only(place(inventory(big % (2, 1), nodes), one)).model == "a"


def test_a_context_range_grows_into_what_is_left_after_everybody_has_a_place() -> None:
    each = "{engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: {min: 4096, max: 40960}, concurrency: 4}"
    models = f"a: {each}\n  b: {each}"
    small = machine("workstation", gpu("NVIDIA GeForce RTX 4080", 16000))
    found = {
        p.model: p
        for p in place(inventory(models, "workstation: {host: 192.168.1.10}"), survey(HUB, workstation=small))
    }
    assert set(found) == {"a", "b"}
    assert found["a"].request.context > found["b"].request.context >= 4096
    assert "the largest context that fits" in found["a"].reason
    assert sum(p.bytes for p in found.values()) <= 16000 * MIB


def test_contexts_grow_to_the_most_tokens_in_all() -> None:
    """One model's tokens cost four times the other's: whatever the dear one had, the cheap one has more
    of."""
    models = "\n  ".join(
        (
            f"{name}: {{engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: {{min: 2048, max: "
            f"40960}}, concurrency: {n}, priority: {n}}}"
        )
        for name, n in (("dear", 8), ("cheap", 2))
    )
    for free_mib in range(13_000, 24_001, 1000):
        found = survey(HUB, workstation=machine("workstation", gpu(free_mib=free_mib)))
        layout = place(inventory(models, "workstation: {host: 192.168.1.10}"), found)
        contexts = {p.model: p.request.context for p in layout}
        assert contexts["dear"] < 2048 + 256 or contexts["cheap"] == 40960, (free_mib, contexts)
        assert {p.model: "asked: up to" in p.reason for p in layout} == {
            n: c < 40960 for n, c in contexts.items()
        }


def settled(wanted: Inventory, found: Survey, node: str, facts: Facts) -> Facts:
    services = render(wanted, place(wanted, found), found, KEYS, {})
    return facts.model_copy(update={"services": deployed(services, node)})


def test_a_running_placement_keeps_its_numbers_whatever_is_free_now() -> None:
    wanted = inventory(QWEN4B.replace("8192", "{min: 4096, max: 40960}"), "workstation: {host: 192.168.1.10}")
    before = survey(HUB, workstation=workstation())
    first = only(place(wanted, before))
    crowded = settled(wanted, before, "workstation", machine("workstation", gpu(free_mib=300)))
    after = survey(workstation=crowded)  # and no header is needed for it
    assert unsettled(wanted, after) == frozenset()
    second = only(place(wanted, after))
    assert second.kept
    assert second.numbers() == first.numbers()


def test_a_model_on_a_node_that_is_briefly_away_is_not_placed_anew() -> None:
    wanted = inventory(QWEN4B)
    both = survey(HUB, workstation=workstation(), server=server())
    running = settled(wanted, both, "workstation", workstation())
    away = survey(HUB, workstation="no answer", server=server()).model_copy(
        update={"remembered": {"workstation": running}}
    )
    found = only(place(wanted, away))
    assert (found.node, found.kept) == ("workstation", True)
    assert "does not answer" in found.reason


def test_a_changed_request_is_planned_anew() -> None:
    wanted = inventory(QWEN4B, "workstation: {host: 192.168.1.10}")
    found = survey(HUB, workstation=workstation())
    running = settled(wanted, found, "workstation", workstation())
    changed = inventory(QWEN4B.replace("8192", "16384"), "workstation: {host: 192.168.1.10}")
    again = only(place(changed, survey(HUB, workstation=running)))
    assert (again.kept, again.request.context) == (False, 16384)


def test_ports_of_strangers_are_left_alone() -> None:
    taken = workstation(ports=(listening(8000), listening(8001)))
    assert (
        only(
            place(inventory(QWEN4B, "workstation: {host: 192.168.1.10}"), survey(HUB, workstation=taken))
        ).port
        == 8002
    )
    fixed = place(
        inventory(QWEN4B.replace("}", ", port: 8001}"), "workstation: {host: 192.168.1.10}"),
        survey(HUB, workstation=taken),
    )
    assert "port 8001 is in use by nginx" in fixed.unplaced[0].reason


def test_weights_that_the_disk_cannot_hold_are_refused_unless_they_are_there() -> None:
    full = workstation(disk_gib=2)
    nodes = "workstation: {host: 192.168.1.10}"
    refused = place(inventory(QWEN4B, nodes), survey(HUB, workstation=full))
    assert (
        "disk too small for the weights: 2.50 GiB to fetch, 2.00 GiB free at /home"
        in refused.unplaced[0].reason
    )
    there = full.model_copy(
        update={"weights": (HUB["Qwen/Qwen3-4B-AWQ"].model_copy(update={"present": True}),)}
    )
    assert only(place(inventory(QWEN4B, nodes), survey(HUB, workstation=there)))


DRAFTED = """q:
    engine: vllm
    source: Qwen/Qwen3-4B-AWQ
    args: {speculative-config: '{"model": "MODEL", "num_speculative_tokens": 3}'}"""


def test_the_model_that_drafts_is_known_to_the_engine_and_is_fetched_too() -> None:
    nodes = "workstation: {host: 192.168.1.10}"
    drafted = inventory(DRAFTED.replace("MODEL", "Qwen/Qwen3-0.6B"), nodes)
    assert [s.text for s in drafted.models["q"].variants[0].reads] == ["Qwen/Qwen3-4B-AWQ", "Qwen/Qwen3-0.6B"]
    small = HUB["Qwen/Qwen3-4B-AWQ"].model_copy(update={"source": "Qwen/Qwen3-0.6B"})
    known = survey({**HUB, "Qwen/Qwen3-0.6B": small}, workstation=workstation())
    placed = only(place(drafted, known))
    assert placed.request.drafter is not None
    unknown = only(place(drafted, survey(HUB, workstation=workstation())))
    assert unknown.request.drafter is None
    full = survey({**HUB, "Qwen/Qwen3-0.6B": small}, workstation=workstation(disk_gib=5))
    assert "disk too small for the weights: 5.00 GiB to fetch" in place(drafted, full).unplaced[0].reason


@pytest.mark.parametrize("named", ["ngram", "~/draft", "./draft", "Qwen/Qwen3-4B-AWQ"])
def test_what_is_no_other_model_drafts_nothing(named: str) -> None:
    assert inventory(DRAFTED.replace("MODEL", named)).models["q"].variants[0].drafter is None


def test_a_container_sees_the_file_that_drafts() -> None:
    drafted = TINY.replace("context: 4096", "args: {model-draft: /drafts/small.gguf}")
    seen = survey({}, server=server(weights=(tiny_gguf(),)))
    wanted = inventory(drafted, "server: {host: 192.168.1.11}", "server")
    engine = next(s for s in render(wanted, place(wanted, seen), seen, KEYS, {}) if s.unit.role == "engine")
    assert any("/drafts:/drafts:ro" in f.content for f in engine.files)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (workstation(docker=None), "vllm runs in Docker only"),
        (
            workstation(docker=DOCKER.model_copy(update={"reachable": False, "error": "permission denied"})),
            "sudo usermod -aG docker me",
        ),
        (workstation(docker=DOCKER.model_copy(update={"compose_version": None})), "no Compose plugin"),
        (
            machine("workstation", gpu(container_obstacle="install the NVIDIA Container Toolkit")),
            "NVIDIA Container Toolkit",
        ),
    ],
)
def test_a_node_that_cannot_run_it_says_why_and_what_to_do(facts: Facts, reason: str) -> None:
    layout = place(inventory(QWEN4B, "workstation: {host: 192.168.1.10}"), survey(HUB, workstation=facts))
    assert reason in layout.unplaced[0].reason


def test_a_machine_without_gpu_or_docker_runs_llamacpp_natively_in_its_ram() -> None:
    bare = pi(docker=None, weights=(tiny_gguf(),))
    found = only(place(inventory(TINY, "pi: {host: 192.168.1.2}", "pi"), survey(pi=bare)))
    assert (found.runtime, found.gpus, found.gpu_memory_utilization) == ("native", (), None)
    assert found.program == PythonEnvironment(name="llamacpp", program="llama-server")


def test_a_model_that_no_single_card_holds_is_split_over_two_alike() -> None:
    wide = "q: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 40960, concurrency: 4}"
    found = only(
        place(inventory(wide, "server: {host: 192.168.1.11}", "server"), survey(HUB, server=server()))
    )
    assert found.gpus == ("GPU-3090-0", "GPU-3090-1")
    assert found.device.count == 2


def test_no_order_of_nodes_or_models_changes_the_decision() -> None:
    models = [QWEN4B, TINY, "z: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 8192}"]
    facts = {"workstation": workstation(), "server": server(weights=(tiny_gguf(),))}
    seen = set()
    for order in itertools.permutations(models):
        for nodes in itertools.permutations(facts):
            layout = place(inventory("\n  ".join(order)), survey(HUB, **{n: facts[n] for n in nodes}))
            seen.add(tuple((p.model, p.node, p.gpus, p.port, p.bytes) for p in layout))
    assert len(seen) == 1


def test_nothing_is_ever_promised_twice() -> None:
    models = "\n  ".join(
        (
            f"m{i}: {{engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: {{min: 1024, max: "
            f"40960}}, concurrency: {i + 1}, replicas: 2}}"
        )
        for i in range(6)
    )
    layout = place(inventory(models), survey(HUB, workstation=workstation(), server=server()))
    for slot in layout.slots:
        assert slot.free_bytes >= 0
    used = sum(p.bytes for p in layout if p.gpus == ("GPU-4090-0",))
    assert used <= (24106 - 1200) * MIB - GIB // 2  # less what the desktop may grow by


def test_the_example_household_is_placed_whole() -> None:
    wanted = load(Path("inventory.example.yml").read_text(), "inventory.example.yml")
    layout = place(wanted, household())
    assert not layout.unplaced
    assert {(p.model, p.engine) for p in layout} == {
        ("qwen3-30b", "vllm"),
        ("qwen3-4b", "vllm"),
        ("tiny", "llamacpp"),
    }


SPREAD = """\
gateway: {node: pi}
nodes:
  pi: {host: 192.168.1.2}
  server: {host: 192.168.1.11}
  laptop: {host: 192.168.1.12, away: true}
models:
  q: {engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: {min: 4096, max: 40960}, node: laptop}
"""


def test_a_model_on_a_machine_that_sleeps_can_be_asked_about() -> None:
    inventory = load(SPREAD, "i")
    found = survey(HUB, pi=pi(), server=server(), laptop=laptop())
    plan = diff(
        inventory, place(inventory, found), render(inventory, place(inventory, found), found, KEYS, {}), found
    )
    there = laptop(services=deployed(plan.services, "laptop"))
    asleep = survey(HUB, pi=pi(), server=server(), laptop="asleep").model_copy(
        update={"remembered": {"laptop": there}}
    )
    layout = place(inventory, asleep)
    assert layout.explains is not None
    (p,) = layout
    assert p.kept
    found_out = layout.explains.because(p)
    assert "its node does not answer: left as it was" in found_out.here
    assert found_out.change == ()


def test_two_slices_of_a_gpu_are_two_places() -> None:
    slices = tuple(
        MigDevice(
            uuid=f"MIG-{n}", name="MIG 3g.20gb", memory_total_bytes=20 * GIB, memory_free_bytes=20 * GIB
        )
        for n in (0, 1)
    )
    card = gpu("NVIDIA A100-SXM4-40GB", 40000).model_copy(update={"mig": True, "mig_devices": slices})
    inventory = load(
        SPREAD.replace("node: laptop}", "node: server, replicas: 2}").replace("max: 40960", "max: 36864"), "i"
    )
    layout = place(inventory, survey(HUB, pi=pi(), server=machine("server", card), laptop="asleep"))
    assert sorted(p.gpus for p in layout) == [("MIG-0",), ("MIG-1",)]
    assert layout.explains is not None
    for p in layout:
        assert all("has another replica" in line for line in layout.explains.because(p).elsewhere)


def test_what_a_suggestion_says_comes_true() -> None:
    """`node: … puts it there`, and for what has no place `context: N` and `concurrency: 1`."""
    text = (
        SPREAD.replace(", node: laptop}", "}").replace("{min: 4096, max: 40960}", "8192")
        + "  r: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 40960, node: server, gpu: 1}\n"
    )
    house = survey(HUB, pi=pi(), server=server(), laptop=laptop())
    layout = place(load(text, "i"), house)
    assert layout.explains is not None
    (q,) = layout
    pins = [c for c in layout.explains.because(q).change if "puts it there" in c]
    assert pins
    for line in pins:
        there = re.search(r"`(node: .*)` puts it there", line)
        assert there is not None
        pinned = load(text.replace("context: 8192}", f"context: 8192, {there[1]}}}"), "i")
        (moved,) = (p for p in place(pinned, house) if p.model == "q")
        assert line.startswith(f"{moved.node} ") and (moved.node, moved.gpus) != (q.node, q.gpus)
    ways = layout.explains.missing("r").change
    shorter = [re.search(r"`(context: \d+)`", line) for line in ways]
    assert shorter and shorter[0] is not None
    again = load(text.replace("context: 40960", shorter[0][1]), "i")
    assert {p.model for p in place(again, house)} == {"q", "r"}
