"""What earlier deploys left is named by the plan, taken away by a deploy, and nothing else is."""

from __future__ import annotations

import asyncio
import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homelab.deploy.prune import is_ours, prune
from homelab.facts import Facts, Leftover, parse_facts
from homelab.inventory import load
from homelab.placement import place
from homelab.plan import Left, Plan, diff, still_left
from homelab.render import render
from homelab.runtimes.native import directories_of, tools_directory
from tests.machines import KEYS, machine, pi, survey, tiny_gguf

HOUSE = """\
gateway: {node: pi}
nodes: {pi: {host: 192.168.1.2, runtime: native}, laptop: {host: 192.168.1.12, runtime: native}}
models: {t: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: pi}}
"""


def planned(*left: Leftover, on: str = "pi") -> Plan:
    inventory = load(HOUSE, "inventory.yml")
    nodes: dict[str, Facts] = {
        "pi": pi(docker=None, weights=(tiny_gguf(),)),
        "laptop": machine("laptop", docker=None, address="192.168.1.12"),
    }
    nodes[on] = nodes[on].model_copy(update={"leftovers": left})
    found = survey(**nodes)
    layout = place(inventory, found)
    return diff(inventory, layout, render(inventory, layout, found, KEYS, {}), found)


def native(*names: str) -> Leftover:
    return Leftover(kind="native", paths=tuple(f"/home/me/.cache/homelab/native/{n}" for n in names))


def test_environments_that_nothing_needs_are_named_and_those_of_this_plan_are_not() -> None:
    old, other = native("litellm-env-0123456789ab", "litellm-aaaaaaaaaaaa"), native("tools-0123456789ab")
    [engine] = [s for s in planned().services if s.role == "engine"]
    needed = [native(Path(d).name) for d in directories_of(engine.unit.program)]
    assert native(Path(tools_directory()).name) in needed
    assert [left.what for left in planned(old, other, *needed).leftovers] == [old, other]


def test_what_somebody_began_to_use_since_the_plan_is_not_taken_away() -> None:
    old, other = native("litellm-aaaaaaaaaaaa"), native("tools-0123456789ab")
    left = planned(old, other).leftovers
    assert [x.what for x in left] == [old, other]
    seen = pi(docker=None).model_copy(update={"leftovers": (other,)})
    assert [x.what for x in still_left(left, survey(pi=seen, laptop=machine("laptop")))] == [other]
    assert still_left(left, survey(pi="it does not answer", laptop=machine("laptop"))) == ()


def test_an_environment_that_is_being_made_is_not_left_over(
    run_agent: Callable[..., dict[str, Any]], home: Path
) -> None:
    """Its link, by which services know it, is made last."""
    cache = home / ".cache/homelab/native"
    for name in ("litellm-111111111111", "llamacpp-222222222222"):
        (cache / name).mkdir(parents=True)
        (cache / f"{name}.lock").touch()
    with (cache / "litellm-111111111111.lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        found = parse_facts(json.dumps(run_agent(request={"cluster": "home"}))).leftovers
        assert [Path(x.paths[0]).name for x in found] == ["llamacpp-222222222222"]


def test_the_keys_of_a_gateway_are_left_over_where_there_is_none_any_more() -> None:
    keys = Leftover(kind="keys", paths=("/home/me/.local/share/homelab/home/secrets.json",))
    assert planned(keys).leftovers == ()
    assert [left.node for left in planned(keys, on="laptop").leftovers] == ["laptop"]


def test_only_what_lies_where_homelab_puts_such_things_is_ever_removed() -> None:
    base = "/home/me/.local/share/homelab/home"
    for path in (f"{base}/weights/1a-2b", f"{base}/secrets.json", "/home/me/.cache/homelab/native/tools-1"):
        assert is_ours("home", path)
    for path in (
        f"{base}/weights", f"{base}/weights/../..", base,
        f"{base}/q/secrets.json", f"{base}/q", "/", "/home/me",
        "/home/me/.cache/homelab/native", "/home/me/.cache/homelab/native/../..", "home/weights/x",
        "/home/me/.local/share/homelab/other/weights/x", "/home/me/.cache/homelab/native/a/b",
    ):  # fmt: skip
        assert not is_ours("home", path), path


def test_the_agent_finds_what_no_service_names_and_prune_removes_it(
    run_agent: Callable[..., dict[str, Any]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = home / ".cache/homelab/native"
    for name in ("litellm-111111111111", "llamacpp-222222222222", "tools-333333333333", "tools-444444444444"):
        (cache / name).mkdir(parents=True)
    (cache / "litellm-env-555555555555").symlink_to("litellm-111111111111")
    (cache / "llamacpp-env-666666666666").symlink_to("llamacpp-222222222222")
    share = home / ".local/share/homelab"
    (share / "home/weights/1a").mkdir(parents=True)
    (share / "home/weights/1a/m.gguf").write_bytes(b"x" * 100)
    service = share / "other/t/abc"
    service.mkdir(parents=True)
    argv = [
        "~/.cache/homelab/native/llamacpp-env-666666666666/bin/python",
        "~/.cache/homelab/native/tools-333333333333/x",
    ]
    (service / "service.json").write_text(json.dumps({"argv": argv, "labels": {"homelab.cluster": "other"}}))
    facts = parse_facts(json.dumps(run_agent(request={"cluster": "home"})))
    left = {(x.kind, *(Path(p).name for p in x.paths)): x for x in facts.leftovers}
    assert set(left) == {
        ("weights", "1a"),
        ("native", "litellm-env-555555555555", "litellm-111111111111"),
        ("native", "tools-444444444444"),
    }
    assert left["weights", "1a"].bytes == 100

    monkeypatch.setenv("HOME", str(home))
    inventory = load("gateway: {node: this}\nnodes: {this: {host: localhost}}\n", "i")
    told: list[Any] = []
    assert (
        asyncio.run(prune(inventory, [Left(node="this", what=x) for x in left.values()], told.append)) == []
    )
    assert sorted(p.name for p in cache.iterdir()) == [
        "llamacpp-222222222222", "llamacpp-env-666666666666", "tools-333333333333",
    ]  # fmt: skip
    assert not (share / "home/weights/1a").exists() and service.exists()
