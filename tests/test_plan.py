"""Wanted less actual: every change has its action and its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from homelab.deploy.order import lanes, settle, turns, waves
from homelab.deploy.remove import chosen
from homelab.errors import DeployError
from homelab.facts import Facts, Survey
from homelab.inventory import Inventory, load
from homelab.placement import place
from homelab.plan import Change, Plan, diff, outdated, restarted
from homelab.render import render
from tests.machines import (
    HUB,
    KEYS,
    MIB,
    deployed,
    listening,
    pi,
    qwen3,
    server,
    survey,
    tiny_gguf,
    workstation,
)

TEXT = """\
gateway: {node: workstation}
nodes: {workstation: {host: 192.168.1.10}, server: {host: 192.168.1.11}}
models:
  q: {engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: 8192, node: workstation}
  t: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: server}
front: {}
"""


def make(text: str, found: Survey) -> tuple[Inventory, Plan]:
    inventory = load(text, "inventory.yml")
    layout = place(inventory, found)
    return inventory, diff(inventory, layout, render(inventory, layout, found, KEYS, {}), found)


def fresh() -> Survey:
    return survey(HUB, workstation=workstation(), server=server(weights=(tiny_gguf(),)))


def after(plan: Plan, **states: str) -> Survey:
    """The household once the plan was carried out, some services in another state."""
    nodes = {"workstation": workstation(), "server": server(weights=(tiny_gguf(),))}
    running = {n: deployed(plan.services, n) for n in nodes}
    changed = {
        n: tuple(s.model_copy(update={"state": states.get(s.name, "running")}) for s in found)
        for n, found in running.items()
    }
    return survey(HUB, **{n: facts.model_copy(update={"services": changed[n]}) for n, facts in nodes.items()})


def actions(plan: Plan) -> dict[str, tuple[str, str]]:
    return {c.service: (c.action, c.reason) for c in plan.changes}


def test_an_empty_house_gets_everything() -> None:
    _, plan = make(TEXT, fresh())
    assert actions(plan) == dict.fromkeys(("q", "t", "gateway", "front"), ("create", "not there yet"))


def test_what_is_as_wanted_is_kept() -> None:
    _, plan = make(TEXT, fresh())
    _, again = make(TEXT, after(plan))
    assert {a for a, _ in actions(again).values()} == {"keep"}
    assert not again.todo


def test_a_changed_request_is_replaced_and_says_what_changed() -> None:
    _, plan = make(TEXT, fresh())
    _, changed = make(TEXT.replace("context: 2048", "context: 4096"), after(plan))
    assert actions(changed)["t"] == ("replace", "context 2048 → 4096")
    assert actions(changed)["q"][0] == "keep"
    assert actions(changed)["gateway"][0] == "replace"  # it tells clients the context


def test_the_gateway_stays_when_nothing_that_it_was_told_has_changed() -> None:
    _, plan = make(TEXT, fresh())
    for text in (
        TEXT.replace("context: 2048", "context: 2048, concurrency: 3"),
        TEXT + "images: {vllm: 'vllm/vllm-openai:v0.34.0'}\n",
    ):
        assert text != TEXT
        _, changed = make(text, after(plan))
        assert sorted(a for a, _ in actions(changed).values()) == ["keep", "keep", "keep", "replace"]
        assert actions(changed)["gateway"][0] == "keep"


def test_a_new_image_is_a_replacement_with_its_tags() -> None:
    _, plan = make(TEXT, fresh())
    _, changed = make(TEXT + "images: {vllm: 'vllm/vllm-openai:v0.34.0'}\n", after(plan))
    assert actions(changed)["q"] == ("replace", "image v0.33.0 → v0.34.0")


def test_what_stopped_or_is_unhealthy_is_started_again() -> None:
    _, plan = make(TEXT, fresh())
    _, again = make(TEXT, after(plan, t="stopped", q="unhealthy"))
    assert actions(again)["t"] == ("restart", "stopped")
    assert actions(again)["q"] == ("restart", "unhealthy")


def test_what_still_loads_is_waited_for() -> None:
    _, plan = make(TEXT, fresh())
    _, again = make(TEXT, after(plan, t="starting"))
    assert actions(again)["t"] == ("restart", "still loading: deploy waits until it is healthy")


def test_what_is_no_longer_asked_for_is_removed_and_nothing_of_another_cluster() -> None:
    _, plan = make(TEXT, fresh())
    found = after(plan)
    facts = found.nodes["server"].facts
    assert facts is not None
    stranger = facts.services[0].model_copy(update={"cluster": "other", "name": "theirs"})
    report = found.nodes["server"].model_copy(
        update={"facts": facts.model_copy(update={"services": (*facts.services, stranger)})}
    )
    smaller = "\n".join(line for line in TEXT.splitlines() if "tiny" not in line)
    _, changed = make(smaller, found.model_copy(update={"nodes": {**found.nodes, "server": report}}))
    assert actions(changed)["t"] == ("remove", "not in the inventory any more")
    assert "theirs" not in actions(changed)


def test_a_model_that_changes_its_node_moves() -> None:
    _, plan = make(TEXT.replace("node: workstation}\n  t", "node: server}\n  t"), fresh())
    _, changed = make(TEXT, after(plan))
    moves = {(c.action, c.node): c for c in changed.changes if c.service == "q"}
    assert {place: c.reason for place, c in moves.items()} == {
        ("move", "workstation"): "from server",
        ("remove", "server"): "`q` goes elsewhere",
    }
    # The old one goes last, and nothing has to make room for the new one.
    leaves = moves["remove", "server"]
    assert (leaves.leaves_for, leaves.first) == (("workstation", "q"), False)
    assert leaves not in [c for wave in waves(changed.todo) for c in wave]


def two_that_change_places() -> Plan:
    text = """\
gateway: {node: pi}
nodes: {workstation: {host: 192.168.1.10}, server: {host: 192.168.1.11}, pi: {host: 192.168.1.2}}
models:
  a: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 8192, node: workstation}
  b: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 4096, node: server, gpu: 0}
"""

    def with_room(free_mib: int) -> dict[str, Facts]:
        def filled(facts: Facts) -> Facts:
            cards = [g.model_copy(update={"memory_free_bytes": free_mib * MIB}) for g in facts.gpus]
            return facts.model_copy(update={"gpus": tuple(cards)})

        return {"workstation": filled(workstation()), "server": filled(server()), "pi": pi()}

    _, plan = make(text, survey(HUB, **with_room(23000)))
    now = {
        n: f.model_copy(update={"services": deployed(plan.services, n)}) for n, f in with_room(2000).items()
    }
    swapped = text.replace("8192, node: workstation", "8192, node: server, gpu: 0")
    swapped = swapped.replace("4096, node: server, gpu: 0", "4096, node: workstation")
    return make(swapped, survey(HUB, **now))[1]


def test_what_leaves_a_full_card_is_stopped_first_and_started_again_when_the_other_cannot_come() -> None:
    plan = two_that_change_places()
    leaving = {c.service: c for c in plan.todo if c.leaves_for}
    assert {c.service: c.first for c in leaving.values()} == {"a": True, "b": True}
    a, b = leaving["a"], leaving["b"]
    assert (a.node, a.leaves_for) == ("workstation", ("server", "a"))
    stopped = {a.place: (), b.place: ()}
    both = {("server", "a"), ("workstation", "b"), ("pi", "gateway")}
    # All of it worked: both go.
    assert settle(plan.todo, both, stopped, gateway=True).drop == (b, a)
    # `b` did not start on the workstation: it goes on where it was, so `a` that came there gives way again.
    only_a = settle(plan.todo, {("server", "a")}, stopped, gateway=True)
    assert {c.service for c in only_a.resume} == {"a", "b"}
    assert [c.place for c in only_a.undo] == [("server", "a")]
    assert only_a.drop == ()
    # The gateway could not be told: nobody leaves.
    untold = settle(plan.todo, both, stopped, gateway=False)
    assert ({c.service for c in untold.resume}, untold.drop) == ({"a", "b"}, ())


def test_replicas_of_a_model_are_replaced_one_after_the_other() -> None:
    text = TEXT.replace("8192, node: workstation}", "8192, replicas: 3}")
    _, plan = make(text, fresh())
    _, changed = make(text.replace("context: 8192", "context: 4096"), after(plan))
    wave = waves(changed.todo)[0]
    assert sorted(c.service for c in wave) == ["q", "q", "q-2"]
    assert [len(turn) for turn in turns(wave)] == [1, 1, 1]
    assert [len(turn) for turn in turns(waves(plan.todo)[0])] == [4]  # new ones wait for nobody


@pytest.mark.parametrize(("owner", "more"), [("front", "front: {}\n"), ("gateway", "front: false\n")])
def test_a_port_that_a_stranger_holds_blocks_who_would_have_it(owner: str, more: str) -> None:
    taken = survey(
        HUB, workstation=workstation(ports=(listening(4000, "caddy"),)), server=server(weights=(tiny_gguf(),))
    )
    _, plan = make(TEXT.replace("front: {}\n", more), taken)
    [blocked] = [c for c in plan.changes if c.blocked]
    assert blocked.service == owner
    assert "port 4000 on workstation is in use by caddy" in blocked.blocked


def test_changes_that_share_a_gpu_are_one_lane_and_others_are_not() -> None:
    text = TEXT.replace("front: {}\n", "") + "".join(
        f"  {name}: {{engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: 4096, node: server, gpu: {gpu}}}\n"
        for name, gpu in (("a", 0), ("b", 0), ("c", 1))
    )
    text = text.replace("context: 2048, node: server", "context: 2048, node: server, gpu: 1")
    _, plan = make(text, fresh())
    on_server: list[Change] = [c for c in plan.changes if c.node == "server"]
    assert sorted(sorted(c.service for c in lane) for lane in lanes(on_server)) == [["a", "b"], ["c", "t"]]


def test_a_plan_holds_as_long_as_each_node_has_what_it_was_made_for() -> None:
    """Of an interrupted replacement, both revisions lie there, and the plan is about the old one only."""
    inventory, plan = make(TEXT, fresh())
    found = after(plan)
    facts, workstation_facts = (found.nodes[n].facts for n in ("server", "workstation"))
    assert facts is not None and workstation_facts is not None
    old = facts.services[0].model_copy(update={"spec": "0" * 12, "state": "exited"})
    both = facts.model_copy(update={"services": (*facts.services, old)})
    interrupted = survey(HUB, workstation=workstation_facts, server=both)
    inventory, plan = make(TEXT, interrupted)
    assert [c.reason for c in plan.todo] == ["an earlier deploy was interrupted"]
    assert outdated(plan, inventory, interrupted) == []
    assert outdated(plan, inventory, found) == ["server"]
    assert outdated(plan, inventory, fresh()) == ["server", "workstation"]


def test_roles_are_started_in_their_order_and_what_waits_for_nobody_at_once() -> None:
    _, plan = make(TEXT, fresh())
    order = [["q", "t"], ["gateway"], ["front"]]
    assert [sorted(c.service for c in wave) for wave in waves(plan.todo)] == order
    _, plan = make(TEXT.replace("front: {}", "front: false"), fresh())
    assert [sorted(c.service for c in wave) for wave in waves(plan.todo)] == order[:2]
    found = {c.service: c for c in plan.todo}
    gateway = found["gateway"].wanted
    assert gateway is not None
    front = replace(gateway, unit=replace(gateway.unit, name="front", role="front", after=("gateway",)))
    watcher = replace(gateway, unit=replace(gateway.unit, name="watcher", role="observer", after=()))
    more = [replace(found["gateway"], wanted=s, service=s.name) for s in (front, watcher)]
    order = [sorted(c.service for c in wave) for wave in waves([*plan.todo, *more])]
    assert order == [["q", "t", "watcher"], ["gateway"], ["front"]]
    assert [c.service for c in waves([found["gateway"]])[0]] == ["gateway"]


def test_a_front_that_is_not_wanted_any_more_goes_when_the_gateway_can_have_its_port() -> None:
    _, plan = make(TEXT, fresh())
    _, changed = make(TEXT.replace("2048", "4096").replace("front: {}", "front: false"), after(plan))
    assert actions(changed)["front"][0] == "remove" and actions(changed)["gateway"][0] == "replace"
    assert [sorted(c.service for c in w) for w in waves(changed.todo)] == [["t"], ["front", "gateway"]]


def test_a_model_is_removed_without_the_gateway_that_serves_it_too() -> None:
    inventory, plan = make(TEXT, fresh())
    assert {s.name for _, s in chosen(inventory, after(plan), ["q"])} == {"q"}
    assert {s.name for _, s in chosen(inventory, after(plan), [])} == {"q", "t", "gateway", "front"}


def test_a_node_that_does_not_answer_loses_nothing() -> None:
    _, plan = make(TEXT, fresh())
    found = after(plan)
    report = found.nodes["server"]
    assert report.facts is not None
    gone = survey(HUB, workstation=found.nodes["workstation"].facts or "", server="no answer").model_copy(
        update={"remembered": {"server": report.facts}}
    )
    _, again = make(TEXT, gone)
    assert not again.todo
    assert not again.layout.unplaced


def test_one_service_is_started_again_as_it_lies_and_nothing_else() -> None:
    _, plan = make(TEXT, fresh())
    found = after(plan)
    _, again = make(TEXT.replace("context: 8192", "context: 4096"), found)
    assert actions(again)["q"][0] == "replace"
    one = restarted(again, "server", "t")
    (change,) = one.changes
    assert (change.action, change.place, change.blocked) == ("restart", ("server", "t"), "")
    assert change.wanted is not None
    assert change.wanted.already and not change.wanted.files
    assert [(s.name, s.spec) for s in change.actual] == [("t", change.wanted.spec)]
    assert one.seen == again.seen


def test_what_lies_there_is_started_under_the_revision_of_whoever_put_it_there() -> None:
    _, plan = make(TEXT, fresh())
    found = after(plan)
    facts = found.nodes["server"].facts
    assert facts is not None
    (there,) = facts.services
    old = there.model_copy(update={"spec": "0123456789ab", "directory": "somewhere/t", "project": "old"})
    report = found.nodes["server"].model_copy(update={"facts": facts.model_copy(update={"services": (old,)})})
    _, again = make(TEXT, found.model_copy(update={"nodes": {**found.nodes, "server": report}}))
    wanted = restarted(again, "server", "t").changes[0].wanted
    assert wanted is not None
    assert (wanted.spec, wanted.directory, wanted.project) == ("0123456789ab", "somewhere/t", "old")


def test_what_loads_or_is_stopped_can_be_started_again_too() -> None:
    _, plan = make(TEXT, fresh())
    for state in ("starting", "stopped", "unhealthy"):
        _, again = make(TEXT, after(plan, t=state))
        (change,) = restarted(again, "server", "t").changes
        # One that loads would only be waited for.
        assert [s.state for s in change.actual] == [state if state != "starting" else "unhealthy"]


def test_what_deploy_would_change_otherwise_is_not_restarted() -> None:
    _, plan = make(TEXT, fresh())
    _, changed = make(TEXT.replace("context: 2048", "context: 4096"), after(plan))
    with pytest.raises(DeployError, match="homelab deploy would replace it") as e:
        restarted(changed, "server", "t")
    assert (e.value.cause, e.value.hint) == ("context 2048 → 4096", "homelab plan")
    smaller = "\n".join(line for line in TEXT.splitlines() if "tiny" not in line)
    _, changed = make(smaller, after(plan))
    with pytest.raises(DeployError, match="homelab deploy would remove it"):
        restarted(changed, "server", "t")


def test_what_is_not_there_cannot_be_restarted() -> None:
    _, plan = make(TEXT, fresh())
    _, kept = make(TEXT, after(plan))
    for decided, node, name in ((plan, "server", "t"), (kept, "workstation", "t"), (kept, "server", "x")):
        with pytest.raises(DeployError, match=f"No `{name}` is deployed on node `{node}`"):
            restarted(decided, node, name)


def test_a_change_of_speculation_replaces_and_none_keeps() -> None:
    """Written out or not, `off` is the default, and what runs since before there was the key stays."""
    _, plan = make(TEXT, fresh())
    for word in ("off", "auto"):  # it has no prediction layers: `auto` changes nothing either
        _, again = make(TEXT.replace("context: 8192", f"context: 8192, speculative: {word}"), after(plan))
        assert {a for a, _ in actions(again).values()} == {"keep"}
    source = "Qwen/Qwen3-4B-AWQ"
    models = {**HUB, source: qwen3(source, 2.5, 36, 2560, 8, num_nextn_predict_layers=1)}
    drafting = TEXT.replace("context: 8192", "context: 8192, speculative: auto")
    _, other = make(drafting, after(plan).model_copy(update={"models": models}))
    assert actions(other)["q"][0] == "replace"
    (q,) = (p for p in other.layout if p.model == "q")
    assert q.request.speculative == 2
    assert "vllm#39598" in q.reason
    nodes = {"workstation": workstation(), "server": server(weights=(tiny_gguf(),))}
    there = {n: f.model_copy(update={"services": deployed(other.services, n)}) for n, f in nodes.items()}
    _, same = make(drafting, survey(models, **there))
    assert {a for a, _ in actions(same).values()} == {"keep"}
    (kept,) = (p for p in same.layout if p.model == "q")
    assert kept.kept
    assert kept.request.speculative == 2


def test_a_number_of_drafts_without_prediction_layers_is_refused_with_the_reason() -> None:
    _, plan = make(TEXT.replace("context: 8192", "context: 8192, speculative: 2"), fresh())
    (missing,) = plan.layout.unplaced
    assert "needs prediction layers" in " ".join([missing.reason, *missing.details])
