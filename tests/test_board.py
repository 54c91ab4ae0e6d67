"""What the live screen shows, as values."""

from __future__ import annotations

import time
from typing import Any

import pytest

from homelab.board import Board, BoardNode, board
from homelab.facts import MigDevice, Problem, Process
from homelab.inventory import load
from homelab.plan import Place
from homelab.ui.rows import bar, fitted, heading, headline, queue, rate, rows, widths
from tests.machines import GIB, MIB, gpu, machine, survey
from tests.test_top import TEXT, Load, Look, house, many, service


def seen(look: Look, speeds: dict[Place, float] | None = None, text: str = TEXT) -> Board:
    return board(load(text, "inventory.yml"), look, speeds or {})


def node(found: Board, name: str) -> BoardNode:
    (one,) = [n for n in found.nodes if n.name == name]
    return one


def test_nodes_by_name_with_their_state() -> None:
    found = seen(Look(house()))
    assert [(n.name, n.state) for n in found.nodes] == [
        ("laptop", "away"),
        ("pi", "up"),
        ("server", "up"),
        ("workstation", "up"),
    ]
    assert (found.cluster, found.up) == ("home", 3)
    assert (found.gateway_state, found.gateway_url) == ("running", "http://192.168.1.2:4000")
    assert found.missing == ("lost",)
    laptop = node(found, "laptop")
    assert laptop.error is not None
    assert laptop.error.message == "no route to host"
    assert (laptop.ram_total_bytes, laptop.devices, laptop.services) == (None, (), ())
    pi = node(found, "pi")
    assert (pi.ram_used_bytes, pi.ram_total_bytes) == (8 * GIB - 8 * GIB * 9 // 10, 8 * GIB)


def test_before_anybody_has_answered_nothing_is_missing() -> None:
    found = seen(Look(survey()))
    assert {n.state for n in found.nodes} == {"asking"}
    assert (found.missing, found.gateway_state, found.gateway_url) == ((), "asking", None)
    assert (found.tokens_per_second, found.running, found.waiting) == (None, None, None)


def test_a_service_stands_under_its_first_gpu_and_is_planned_on_all() -> None:
    server = node(seen(Look(house())), "server")
    first, second = server.devices
    (coder,) = first.services
    assert second.services == ()
    assert coder.devices == ("GPU 0", "GPU 1")
    assert (coder.planned_bytes, coder.used_bytes) == (16 * GIB, 7 * GIB)
    assert (coder.context, coder.concurrency, coder.state) == (8192, 4, "running")
    assert (first.planned_bytes, second.planned_bytes) == (8 * GIB, 8 * GIB)
    assert (first.total_bytes, first.used_bytes) == (24266 * MIB, 7266 * MIB)
    assert (first.power_watts, first.temperature_celsius) == (None, None)


def test_a_service_in_ram_stands_under_its_node() -> None:
    facts = machine("pi", services=(service("tiny"), service("gateway", role="gateway", port=4000)))
    pi = node(seen(Look(house(pi=facts))), "pi")
    gateway, tiny = pi.services
    assert (tiny.subject, tiny.role, tiny.planned_bytes, tiny.used_bytes) == (
        "tiny",
        "engine",
        8 * GIB,
        GIB // 2,
    )
    assert (gateway.subject, gateway.planned_bytes, gateway.context) == ("gateway", None, None)
    assert pi.ram_planned_bytes == 8 * GIB


def test_work_is_what_the_engines_say_and_its_sum_counts_what_is_known() -> None:
    look = Look(house(), {("server", "coder"): Load(9, 3, 1), ("workstation", "tiny"): Load(9, 2, None)})
    found = seen(look, {("server", "coder"): 40.5, ("workstation", "tiny"): 0.0})
    assert (found.tokens_per_second, found.running, found.waiting) == (40.5, 5, 1)
    ((tiny,),) = [d.services for d in node(found, "workstation").devices]
    assert (tiny.tokens_per_second, tiny.running, tiny.waiting) == (0.0, 2, None)


def test_of_two_revisions_the_one_that_runs_is_shown() -> None:
    card = gpu(free_mib=9000)
    old = service("tiny", card.uuid, state="stopped", spec="0")
    facts = machine("workstation", card, services=(service("tiny", card.uuid), old))
    (device,) = node(seen(Look(house(workstation=facts))), "workstation").devices
    assert [s.state for s in device.services] == ["running"]
    assert device.planned_bytes == 8 * GIB


def test_services_of_other_clusters_are_not_ours() -> None:
    facts = machine("workstation", gpu(), services=(service("tiny", cluster="theirs"),))
    found = node(seen(Look(house(workstation=facts))), "workstation")
    assert found.everything == ()


@pytest.mark.parametrize(("idle", "lines"), [(2, 0), (3, 3), (38, 38)])
def test_many_devices_with_nothing_on_them_are_one_line(idle: int, lines: int) -> None:
    cards = [gpu("H100", 81000, index=i, free_mib=80_700) for i in range(idle)]
    busy = gpu("H100", 81000, index=60, free_mib=80_999, processes=(Process(pid=1, name="x"),))
    full = gpu("H100", 81000, index=61, free_mib=60_000)
    unknown = gpu("H100", 81000, index=62).model_copy(
        update={"memory_used_bytes": None, "memory_free_bytes": None}
    )
    found = node(seen(Look(house(server=machine("server", *cards, busy, full, unknown)))), "server")
    assert len(found.idle) == lines
    assert [d.label for d in found.devices][-3:] == ["GPU 60", "GPU 61", "GPU 62"]
    assert found.devices[-1].used_bytes is None


def test_slices_stand_for_their_gpu() -> None:
    part = MigDevice(uuid="MIG-1", name="1g.12gb", memory_total_bytes=11 * GIB, memory_free_bytes=3 * GIB)
    whole = gpu("H100", 81000, mig=True, mig_devices=(part,), power_watts=300.0)
    facts = machine("server", whole, services=(service("coder", "MIG-1"),))
    (device,) = node(seen(Look(house(server=facts))), "server").devices
    assert (device.label, device.name, device.used_bytes) == ("MIG", "1g.12gb", 8 * GIB)
    assert (device.power_watts, device.services[0].subject) == (None, "coder")


def test_a_lost_node_keeps_what_it_had_without_what_it_did() -> None:
    facts = house().nodes["server"].facts
    assert facts is not None
    found = house(server="refused").model_copy(update={"remembered": {"server": facts}})
    look = Look(found, {("server", "coder"): Load(9, 3, 1)})
    server = node(seen(look, {("server", "coder"): 4.0}), "server")
    assert (server.state, server.ram_used_bytes, server.ram_total_bytes) == ("not reached", None, 64 * GIB)
    (coder,) = server.devices[0].services
    assert (coder.state, coder.planned_bytes, coder.used_bytes) == ("away", 16 * GIB, None)
    assert (coder.tokens_per_second, coder.running, coder.waiting) == (None, None, None)
    assert server.devices[0].used_bytes is None


def test_what_a_node_cannot_list_is_a_problem_of_it() -> None:
    facts = machine("pi", problems=(Problem(source="df", message="no"),), unlisted={"docker": ("down",)})
    pi = node(seen(Look(house(pi=facts))), "pi")
    assert pi.problems == ("df: no", "services of docker cannot be listed: down")
    native = TEXT.replace("{host: 192.168.1.2}", "{host: 192.168.1.2, runtime: native}")
    assert node(seen(Look(house(pi=facts)), text=native), "pi").problems == ("df: no",)


def test_a_gateway_that_is_not_there_is_missing_and_of_a_silent_node_not_known() -> None:
    assert seen(Look(house(pi=machine("pi")))).gateway_state == "missing"
    assert seen(Look(house(pi="off"))).gateway_state == "not reached"


@pytest.mark.parametrize(
    ("used", "planned", "total", "drawn"),
    [
        (None, None, 10, ""),
        (5, None, None, ""),
        (0, None, 10, "░░░░░"),
        (10, None, 10, "█████"),
        (99, 99, 10, "█████"),
        (2, 8, 10, "█░░│░"),
        (None, 8, 10, "░░░│░"),
        (0, 1, 1000, "│░░░░"),
    ],
)
def test_a_bar(used: int | None, planned: int | None, total: int | None, drawn: str) -> None:
    assert bar(used, planned, total, 5) == drawn


def test_numbers_as_people_read_them() -> None:
    assert [rate(None), rate(0.0), rate(41.23), rate(1234.5)] == ["-", "0.0", "41.2", "1234"]
    assert [queue(None, None), queue(3, 0), queue(3, None)] == ["-", "3+0", "3+-"]
    assert [fitted("漢字漢", 6), fitted("漢字漢", 5), fitted("漢", 3, right=True)] == [
        "漢字漢",
        "漢字…",
        " 漢",
    ]


def test_every_line_is_as_wide_as_the_terminal() -> None:
    found = seen(Look(house(workstation="no [b]route")))
    for width in range(30, 240):
        assert sum(widths(width).values()) + len(widths(width)) - 1 == width
        lines: list[Any] = [r.text for r in rows(found, width, {("server", "coder"): "restarting"})]
        assert {t.cell_len for t in (heading(width), headline(found, width), *lines)} == {width}


def test_a_large_house_is_quick() -> None:
    text, survey_of_many = many()
    begun = time.perf_counter()
    found = seen(Look(survey_of_many), text=text)
    lines = list(rows(found, 120, {}))
    assert len(lines) == 120
    assert time.perf_counter() - begun < 1.0
