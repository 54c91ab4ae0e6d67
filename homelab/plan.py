"""Wanted less actual: the changes, each with its reason. Pure; knows nothing of SSH or Docker."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from homelab import asked
from homelab.errors import DeployError
from homelab.facts import DeployedService, Leftover, Survey
from homelab.inventory import Inventory
from homelab.placement import Layout, Unplaced
from homelab.program import image_of
from homelab.render import app_choice, gateway_choice
from homelab.runtimes.native import directories_of
from homelab.service import Service, as_it_lies, key_ids, numbers_of, read_label
from homelab.speed import Speed

Action = Literal["create", "replace", "restart", "move", "remove", "keep"]
ALIVE = frozenset({"running", "starting", "unhealthy"})


Place = tuple[str, str]  # node, service


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happens to one service on one node. `wanted` is null for a removal, `actual` for a creation;
    `blocked` says why it cannot be done, `newer` what this homelab would write otherwise.

    A move is two changes: the one that arrives, and the one that `leaves_for` its place. What leaves goes
    last, when the other is healthy and the gateway knows it. `first`: it must be stopped before, for there
    is no memory for both."""

    action: Action
    node: str
    service: str
    reason: str
    wanted: Service | None = None
    actual: tuple[DeployedService, ...] = ()
    blocked: str = ""
    newer: str = ""
    leaves_for: Place | None = None
    first: bool = False

    @property
    def place(self) -> Place:
        return self.node, self.service


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What an earlier deploy left on a node, and nothing needs."""

    node: str
    what: Leftover


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that `homelab plan` shows and `homelab deploy` carries out. `gone` are nodes that are not
    in the inventory any more, with the services of the cluster that they had: nothing here touches them.
    `seen` is what lay on each node that answered, as pairs of service and spec; `speeds` how fast each
    placement will be, as far as that is known, None where nobody asked."""

    layout: Layout
    services: tuple[Service, ...]
    changes: tuple[Change, ...]
    gone: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leftovers: tuple[Left, ...] = ()
    seen: Mapping[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    speeds: Mapping[Place, Speed] | None = None

    @property
    def todo(self) -> tuple[Change, ...]:
        return tuple(c for c in self.changes if c.action != "keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`upgrade`: what runs takes this homelab's images and files too. `keys` is false where real keys are not
    known: then they are not compared."""

    upgrade: bool = False
    keys: bool = True


def diff(
    inventory: Inventory,
    layout: Layout,
    services: Sequence[Service],
    survey: Survey,
    options: Options = Options(),
) -> Plan:
    """The changes from what runs (services that carry this cluster's label) to what should run. What was
    asked for as it is now, and runs where it should, stays: whatever this homelab would write for it."""
    actual: dict[tuple[str, str], list[DeployedService]] = {}
    for node, report in survey.nodes.items():
        for service in report.facts.services if report.facts else ():
            if service.cluster == inventory.cluster:
                actual.setdefault((node, service.name), []).append(service)
    wanted = {(s.node, s.name): s for s in services}
    left = {place: there for place, there in actual.items() if place not in wanted}
    moves = _moves(wanted, actual, left)
    changes = [
        _change(inventory, survey, service, tuple(actual.get(place, ())), moves.get(place), options)
        for place, service in wanted.items()
    ]
    goes_on = {name for s in services for name in _identity(s)}
    targets = {origin: target for target, origin in moves.items()}
    for place, there in left.items():
        change = Change(
            action="remove",
            node=place[0],
            service=place[1],
            reason=_why_removed(inventory, there[0], goes_on),
            actual=tuple(there),
            leaves_for=targets.get(place),
        )
        in_the_way = change.leaves_for is not None and not _room_beside(survey, change, changes)
        changes.append(replace(change, first=in_the_way))
    return Plan(
        layout=_with_others(inventory, layout, services, survey),
        services=tuple(services),
        changes=tuple(sorted(changes, key=lambda c: (c.node, c.action == "remove", c.service))),
        leftovers=tuple(_leftovers(inventory, services, survey)),
        gone={
            node: tuple(sorted(s.name for s in facts.services if s.cluster == inventory.cluster))
            for node, facts in survey.gone.items()
            if node not in inventory.nodes
        },
        seen=_seen(inventory, survey),
    )


def _seen(inventory: Inventory, survey: Survey) -> dict[str, frozenset[tuple[str, str]]]:
    return {
        node: frozenset((s.name, s.spec) for s in report.facts.services if s.cluster == inventory.cluster)
        for node, report in sorted(survey.nodes.items())
        if report.facts is not None
    }


def _moves(
    wanted: Mapping[Place, Service],
    actual: Mapping[Place, Sequence[DeployedService]],
    left: Mapping[Place, Sequence[DeployedService]],
) -> dict[Place, Place]:
    """What arrives at a new place, and the place that the same thing leaves for it, one for one."""
    free = list(left)
    moves: dict[Place, Place] = {}
    for place, service in wanted.items():
        names = set(_identity(service))
        origin = next((o for o in free if names & {n for s in left[o] for n in _identity(s)}), None)
        if place not in actual and origin is not None:
            free.remove(origin)
            moves[place] = origin
    return moves


def _room_beside(survey: Survey, leaves: Change, changes: Sequence[Change]) -> bool:
    """Whether all that is new on the devices of what leaves fits there beside it. Not known is no."""
    facts = survey.nodes[leaves.node].facts
    devices = devices_of(leaves)
    come = [c for c in changes if c.node == leaves.node and c.action in ("create", "move", "replace")]
    come = [c for c in come if devices_of(c) & devices]
    if not come:
        return True
    for device in devices:
        needed = [
            int(c.wanted.unit.numbers.get("bytes", 0)) for c in come if c.wanted and device in devices_of(c)
        ]
        gone = sum(
            int(numbers_of(s.labels).get("bytes", 0)) for c in come for s in c.actual if s.state in ALIVE
        )
        gpu = next((g for g in facts.gpus if g.uuid == device), None) if facts else None
        free = (
            facts.memory_available_bytes
            if facts and device == RAM
            else gpu.memory_free_bytes
            if gpu
            else None
        )
        if free is None or sum(needed) > free + gone:
            return False
    return True


RAM = "ram"


def devices_of(change: Change) -> set[str]:
    """The devices that a change concerns: UUIDs of GPUs, or the node's RAM."""
    devices = set(change.wanted.unit.gpus) if change.wanted else set()
    for old in change.actual:
        devices |= {uuid for uuid in old.labels.get("homelab.gpus", "").split(",") if uuid}
    return devices or {RAM}


def _leftovers(inventory: Inventory, services: Sequence[Service], survey: Survey) -> Iterator[Left]:
    """What no service names and no wanted one needs."""
    files = {s.node: {u.path for u in s.unit.uploads} for s in services}
    programs: dict[str, set[str]] = {}
    for s in services:
        files[s.node] |= {u.path for u in s.unit.uploads}
        if s.runtime == "native":
            programs.setdefault(s.node, set()).update(directories_of(s.unit.program))
    for node, report in sorted(survey.nodes.items()):
        for what in report.facts.leftovers if report.facts else ():
            first = what.paths[0]
            match what.kind:
                case "keys":
                    needed = node == inventory.gateway.node
                case "weights":
                    needed = any(f"/{posixpath.dirname(path)}" in first for path in files.get(node, ()))
                case "native":
                    needed = any(first.endswith(f"/{d}") for d in programs.get(node, ()))
            if not needed:
                yield Left(node=node, what=what)


def still_left(leftovers: Sequence[Left], survey: Survey) -> tuple[Left, ...]:
    """Those that a later look names as well: what somebody began to use since the plan was made stays."""
    return tuple(
        left
        for left in leftovers
        if (facts := survey.nodes[left.node].facts) is not None
        and any((w.kind, w.paths) == (left.what.kind, left.what.paths) for w in facts.leftovers)
    )


def _identity(service: Service | DeployedService) -> tuple[str, ...]:
    """What a service is the same as on another node: an engine by its models, an app by its name, others by
    their role."""
    if service.role == "app":
        return (f"the app `{service.name}`",)
    if service.role != "engine":
        return (f"the {service.role}",)
    return tuple(f"`{name}`" for name in (service.unit if isinstance(service, Service) else service).serves)


def _why_removed(inventory: Inventory, service: DeployedService, goes_on: set[str]) -> str:
    names = _identity(service)
    if elsewhere := [n for n in names if n in goes_on]:
        return f"{elsewhere[0]} goes elsewhere"
    if service.role == "engine" and not any(name in inventory.models for name in service.serves):
        return "not in the inventory any more"
    return "it has no place any more"


def _with_others(inventory: Inventory, layout: Layout, services: Sequence[Service], survey: Survey) -> Layout:
    """The layout, with the gateway and apps among what found no place where their nodes can run nothing."""
    there = {s.name for s in services if s.role in ("gateway", "app")}
    choices = {"gateway": (inventory.gateway.node, gateway_choice)}
    choices |= {
        name: (app.node, partial(app_choice, name=name)) for name, app in sorted(inventory.apps.items())
    }
    unplaced = list(layout.unplaced)
    for name, (node, choice) in choices.items():
        facts = survey.nodes[node].facts if node in survey.nodes else None
        if facts is not None and name not in there:
            unplaced.append(Unplaced(model=name, reason=f"{node}: {choice(inventory, facts=facts)}"))
    return replace(layout, unplaced=tuple(unplaced))


def _change(
    inventory: Inventory,
    survey: Survey,
    service: Service,
    there: tuple[DeployedService, ...],
    origin: Place | None,
    options: Options,
) -> Change:
    def change(action: Action, reason: str, **more: Any) -> Change:
        return Change(
            action=action, node=service.node, service=service.name, reason=reason, wanted=service, **more
        )

    same = next((s for s in there if _is_written(service, s, keys=options.keys)), None)
    newer = ""
    if same is None and not options.upgrade:
        same = next((s for s in there if _is_asked(inventory, service, s, keys=options.keys)), None)
        if same is not None:
            newer = "; ".join(_differences(same, service, keys=options.keys)) or "other files"
    if same is not None and same.spec != service.spec:
        service = as_it_lies(service, same)
    if same is not None and same.state in ("running", "starting"):
        if left := tuple(s for s in there if s.spec != service.spec):
            # It was started, and nobody waited for it and cleaned up after it.
            return change("replace", "an earlier deploy was interrupted", actual=left)
        if same.state == "starting":
            return change("restart", "still loading: deploy waits until it is healthy", actual=there)
        return change("keep", "up to date", actual=there, newer=newer)
    if same is not None:
        why = same.state + (f": {same.detail}" if same.detail else "")
        taken = "" if same.listens else _port_taken(survey, service)
        return change("restart", why, actual=there, blocked=taken)
    blocked = _blocked(inventory, survey, service)
    current = next((s for s in there if s.state in ALIVE), there[0] if there else None)
    if current is not None:
        reason = "; ".join(_differences(current, service, keys=options.keys)) or "its files changed"
        return change("replace", reason, actual=there, blocked=blocked)
    if origin is not None:
        stays = ", where its data stays" if service.role == "app" else ""
        return change("move", f"from {origin[0]}{stays}", blocked=blocked)
    return change("create", "not there yet", blocked=blocked)


def _is_written(service: Service, there: DeployedService, *, keys: bool) -> bool:
    """Whether what is there is what would be written."""
    if keys:
        return there.spec == service.spec
    return there.labels.get("homelab.files") == service.labels["homelab.files"]


def _is_asked(inventory: Inventory, service: Service, there: DeployedService, *, keys: bool) -> bool:
    """Whether what is there is what is asked for, where it is asked for."""
    model = next((inventory.models[n] for n in service.unit.serves if n in inventory.models), None)
    recorded = read_label(there.labels, "homelab.asked")
    places = ("homelab.address", "homelab.gpus", *(() if service.unit.behind_front else ("homelab.port",)))
    return (
        recorded != {}
        and asked.same(recorded, service.unit.asked, model if service.role == "engine" else None)
        and all(there.labels.get(n) == service.labels[n] for n in places)
        and _same_numbers(numbers_of(there.labels), service.unit.numbers)
        and (not keys or read_label(there.labels, "homelab.keys") == key_ids(service.unit))
        and there.runtime == service.runtime
    )


def _same_numbers(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether one placement is the other. What follows from its device's total or is predicted is no part of
    that, nor what only one of two releases writes down."""
    both = (recorded.keys() & wanted.keys()) - {"bytes", "quantization", "prompt_seconds", "tokens_per_s"}
    return all(recorded[key] == wanted[key] for key in both)


def _blocked(inventory: Inventory, survey: Survey, service: Service) -> str:
    """A port that somebody else listens on."""
    facts = survey.nodes[service.node].facts
    ours = {
        s.labels.get("homelab.port")
        for s in (facts.services if facts else ())
        if s.cluster == inventory.cluster
    }
    return "" if str(service.unit.port) in ours else _port_taken(survey, service)


def _port_taken(survey: Survey, service: Service) -> str:
    """Who listens on the port of a service that does not listen itself."""
    facts = survey.nodes[service.node].facts
    port = service.unit.port
    everywhere = (service.unit.address, "0.0.0.0", "::", "*")
    owner = (
        next((p for p in facts.ports if p.port == port and p.address in everywhere), None) if facts else None
    )
    if owner is None:
        return ""
    by = owner.process or "another process"
    return f"port {port} on {service.node} is in use by {by}: stop it, or give another `port`"


def _differences(current: DeployedService, service: Service, *, keys: bool) -> Iterator[str]:
    """What differs, as far as the labels tell, in words."""
    old, new = numbers_of(current.labels), service.unit.numbers
    for key in ("engine", "source", "runtime", "context", "gpu_memory_utilization", "port", "gpus"):
        if old.get(key) != new.get(key):
            yield f"{key.replace('_', '-')} {_short(old.get(key))} → {_short(new.get(key))}"
    image, wanted = current.labels.get("homelab.image"), image_of(service.unit.program)
    if image and wanted and image != wanted:
        yield f"image {image.rpartition(':')[2]} → {wanted.rpartition(':')[2]}"
    if current.labels.get("homelab.address") != service.unit.address:
        yield f"address {current.labels.get('homelab.address')} → {service.unit.address}"
    before, after = set(current.serves), set(service.unit.serves)
    if before != after:
        yield "models " + " ".join(
            [*(f"+{m}" for m in sorted(after - before)), *(f"-{m}" for m in sorted(before - after))]
        )
    elif service.role == "gateway":
        yield from _told_otherwise(current, service)
    recorded = read_label(current.labels, "homelab.keys")
    if keys and recorded and recorded != key_ids(service.unit):
        yield "another key"


def _told_otherwise(current: DeployedService, service: Service) -> Iterator[str]:
    """What the gateway is told of the same models."""
    told = read_label(current.labels, "homelab.asked").get("endpoints")
    before = {
        e["id"]: e
        for e in (told if isinstance(told, list) else ())
        if isinstance(e, dict) and isinstance(e.get("id"), str)
    }
    after = {e["id"]: e for e in service.unit.asked["endpoints"]}
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, {}), after.get(key, {})
        for what in ("url", "context", "kind", "upstream"):
            if old and new and old.get(what) != new.get(what):
                yield f"{what} of {key} {_short(old.get(what))} → {_short(new.get(what))}"
        if not old or not new:
            yield f"{'+' if new else '-'}{key}"
    recorded, wanted = read_label(current.labels, "homelab.asked").get("apps"), service.unit.asked.get("apps")
    was, now = (set(x) if isinstance(x, dict) else set() for x in (recorded, wanted))
    yield from (f"+app {name}" for name in sorted(now - was))
    yield from (f"-app {name}" for name in sorted(was - now))


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(v)[:12] for v in value) or "none"
    return "none" if value is None else str(value)


def restarted(plan: Plan, node: str, service: str) -> Plan:
    """The plan that does one thing: start a service again as it lies there. All else is left alone, also what
    the plan would change elsewhere.

    Raises DeployError where there is no such service, or where the plan would not leave it as it is."""
    change = next((c for c in plan.changes if c.place == (node, service)), None)
    there = change.actual if change is not None else ()
    if change is None or not there:
        raise DeployError(f"No `{service}` is deployed on node `{node}`", hint="homelab status")
    if change.action not in ("keep", "restart"):
        raise DeployError(
            f"`{service}` on node `{node}` is not what it should be: homelab deploy would {change.action} it",
            cause=change.reason,
            hint="homelab plan",
        )
    assert change.wanted is not None
    lies = next(s for s in there if s.spec == change.wanted.spec)
    # What still loads would only be waited for. Somebody who asks for a restart means a new start.
    if lies.state == "starting":
        lies = lies.model_copy(update={"state": "unhealthy"})
    again = replace(
        change,
        action="restart",
        reason="asked for",
        wanted=as_it_lies(change.wanted, lies),
        actual=(lies,),
        newer="",
    )
    return replace(plan, changes=(again,), leftovers=())


def outdated(plan: Plan, inventory: Inventory, survey: Survey) -> list[str]:
    """The nodes where something else lies than the plan was made for."""
    return [
        node for node, there in _seen(inventory, survey).items() if there != plan.seen.get(node, frozenset())
    ]
