"""How long the gateway waits for a replica and how much each of several gets, from where they were placed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from homelab import gateway
from homelab.endpoints import Endpoint, placed, running
from homelab.inventory import Inventory, load
from homelab.pace import paced
from homelab.pipeline import load_cards
from homelab.placement import Layout, Placement, place
from homelab.plan import Plan, diff
from homelab.render import render
from homelab.service import numbers_of
from tests.machines import HUB, KEYS, deployed, gpu, machine, server, survey, tiny_gguf, workstation

HOUSE = """\
gateway: {node: workstation}
nodes: {workstation: {host: 192.168.1.10}, server: {host: 192.168.1.20}}
models:
  q: {engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: %s, concurrency: %d}
"""
RAM = """\
gateway: {node: server}
nodes: {server: {host: 192.168.1.20}}
models: {t: {engine: llamacpp, source: /models/tiny.gguf, context: 4096, concurrency: 2}}
"""


def one(context: int, concurrency: int = 1, card: str = "NVIDIA GeForce RTX 3090") -> Placement:
    inventory = load(HOUSE % (context, concurrency), "inventory.yml")
    found = survey(HUB, workstation=machine("workstation", gpu(name=card)), server="no answer")
    layout = paced(place(inventory, found), load_cards())
    assert len(layout.placements) == 1, layout.unplaced
    return layout.placements[0]


def endpoint(name: str, number: int, **more: object) -> Endpoint:
    basis = Endpoint(
        name=name,
        kind="chat",
        url="http://h:1",
        key="",
        context=32768,
        id=f"n{number}/{name}",
        node="n",
        origin="placed",
        upstream=name,
    )
    return replace(basis, **more)  # type: ignore[arg-type]


def params(*endpoints: Endpoint) -> list[dict[str, object]]:
    models = gateway.configuration(endpoints, {}, None)["model_list"]
    return [model["litellm_params"] for model in models]


def test_longer_contexts_and_more_at_once_take_longer_to_read() -> None:
    short, long, many = one(4096), one(32768), one(4096, 8)
    assert short.prompt_seconds and long.prompt_seconds and many.prompt_seconds
    assert long.prompt_seconds > 8 * short.prompt_seconds  # attention grows faster than the prompt
    assert many.prompt_seconds == pytest.approx(8 * short.prompt_seconds, rel=0.1)
    assert short.tokens_per_s and long.tokens_per_s and short.tokens_per_s > long.tokens_per_s


def test_on_a_card_that_nobody_knows_a_bound_from_bytes_is_waited_for() -> None:
    known, unknown = one(32768), one(32768, card="NVIDIA Prototype X1")
    assert known.prompt_seconds and unknown.prompt_seconds
    assert unknown.prompt_seconds > known.prompt_seconds
    assert unknown.tokens_per_s is None


def test_what_lies_in_ram_has_a_bound_and_a_rate() -> None:
    inventory = load(RAM, "inventory.yml")
    found = survey(server=machine("server", weights=(tiny_gguf(),)))
    [p] = paced(place(inventory, found), load_cards())
    assert not p.gpus and p.prompt_seconds and p.tokens_per_s
    assert p.prompt_seconds == pytest.approx(2 * 4096 / p.tokens_per_s, rel=0.05)


def test_short_waits_keep_the_floor_and_long_ones_go_up_in_steps() -> None:
    def waits(prompt_seconds: float | None, tokens_per_s: float | None = None) -> tuple[object, object]:
        [found] = params(endpoint("m", 1, prompt_seconds=prompt_seconds, tokens_per_s=tokens_per_s))
        return found["stream_timeout"], found["timeout"]

    assert waits(None) == waits(3.0, 100.0) == (300, 600)
    assert waits(450.0, 100.0) == waits(590.0, 110.0) == (600, 1200)
    assert waits(400.0, 5.0) == (600, 7200)
    assert waits(1e9, 0.001) == (3600, 7200)


def test_an_estimate_that_is_a_little_other_writes_the_same_file() -> None:
    def written(factor: float) -> object:
        return params(
            endpoint("m", 1, prompt_seconds=350 * factor, tokens_per_s=100 * factor),
            endpoint("m", 2, prompt_seconds=350.0, tokens_per_s=50.0),
        )

    assert written(0.9) == written(1.0) == written(1.1)


@pytest.mark.parametrize(
    ("rates", "weights"),
    [
        ((100.0, 100.0), (None, None)),
        ((100.0, 95.0), (None, None)),
        ((100.0, 50.0), (4, 2)),
        ((30.0, 100.0, 76.0), (1, 4, 3)),
        ((100.0, 24.0), (4, 0)),  # a second place
        ((100.0, None), (None, None)),  # unknown is not slow
        ((50.0,), (None,)),
    ],
)
def test_shares_follow_speed(rates: tuple[float | None, ...], weights: tuple[int | None, ...]) -> None:
    found = params(*(endpoint("m", n, tokens_per_s=rate) for n, rate in enumerate(rates)))
    assert tuple(p.get("weight") for p in found) == weights


def test_other_models_and_the_cloud_have_no_share_in_it() -> None:
    outside = replace(endpoint("m", 3), origin="cloud", id="cloud/m")
    found = params(endpoint("m", 1, tokens_per_s=100.0), endpoint("other", 2, tokens_per_s=10.0), outside)
    assert not any("weight" in p for p in found)


TWO = (HOUSE % ("4096", 1)).replace("concurrency: 1", "replicas: 2")


def house(text: str = TWO) -> tuple[Inventory, Layout]:
    inventory = load(text, "inventory.yml")
    layout = place(inventory, survey(HUB, workstation=workstation(), server=server()))
    return inventory, layout


def plan(inventory: Inventory, first: Layout, *, cards: bool) -> Plan:
    """What is planned over a household of `first`."""
    before = survey(HUB, workstation=workstation(), server=server())
    services = render(inventory, first, before, KEYS, {})
    there = survey(
        HUB,
        workstation=workstation(services=deployed(services, "workstation")),
        server=server(services=deployed(services, "server")),
    )
    layout = place(inventory, there)
    layout = paced(layout, load_cards()) if cards else layout
    return diff(inventory, layout, render(inventory, layout, there, KEYS, {}), there)


def test_endpoints_that_run_have_what_was_placed() -> None:
    inventory, layout = house()
    layout = paced(layout, load_cards())
    before = survey(HUB, workstation=workstation(), server=server())
    services = render(inventory, layout, before, KEYS, {})
    there = survey(
        workstation=workstation(services=deployed(services, "workstation")),
        server=server(services=deployed(services, "server")),
    )
    pace = [(e.id, e.prompt_seconds, e.tokens_per_s) for e in placed(inventory, layout.placements)]
    assert pace == [(e.id, e.prompt_seconds, e.tokens_per_s) for e in running(inventory, there)]
    assert all(e[1] and e[2] for e in pace) and len(pace) == 2


def test_a_second_plan_changes_nothing_and_writes_the_same() -> None:
    inventory, layout = house()
    again = plan(inventory, paced(layout, load_cards()), cards=True)
    assert {(c.action, c.newer) for c in again.changes} == {("keep", "")}


def test_a_household_of_a_release_without_it_keeps_running_as_it_is() -> None:
    inventory, layout = house()
    again = plan(inventory, layout, cards=True)
    assert {(c.action, c.newer) for c in again.changes} == {("keep", "")}
    assert all(p.prompt_seconds is None for p in again.layout)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1, 0, "7", True, None, [1]])
def test_a_label_that_cannot_be_a_speed_is_not_believed(bad: object) -> None:
    numbers = {"context": 1, "tokens_per_s": bad}
    assert numbers_of({"homelab.placement": json.dumps(numbers)}) == {}
