"""Wanted less actual: the changes, each with its reason. Pure; knows nothing of SSH or Docker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from homelab import facts as f
from homelab.facts import Survey
from homelab.inventory import Inventory
from homelab.placement import Layout, Unplaced
from homelab.placement.devices import runtime_for
from homelab.service import Service, numbers_of

Action = Literal["create", "replace", "restart", "move", "remove", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happens to one service on one node. `wanted` is null for a removal, `actual` for a creation; `blocked` says why it cannot be done."""

    action: Action
    node: str
    service: str
    reason: str
    wanted: Service | None = None
    actual: tuple[f.Service, ...] = ()
    blocked: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that `homelab plan` shows and `homelab deploy` carries out."""

    layout: Layout
    services: tuple[Service, ...]
    changes: tuple[Change, ...]

    @property
    def todo(self) -> tuple[Change, ...]:
        return tuple(c for c in self.changes if c.action != "keep")


def diff(inventory: Inventory, layout: Layout, services: Sequence[Service], survey: Survey) -> Plan:
    """The changes from what runs (services that carry this cluster's label) to what should run; equal spec means no change."""
    actual: dict[tuple[str, str], list[f.Service]] = {}
    for node, report in survey.nodes.items():
        for service in report.facts.services if report.facts else ():
            if service.cluster == inventory.cluster:
                actual.setdefault((node, service.name), []).append(service)
    wanted = {(s.node, s.name): s for s in services}
    moved: dict[str | None, str] = {
        s.model: node
        for (node, name), found in actual.items()
        if (node, name) not in wanted
        for s in found
        if s.model
    }
    changes = [_change(inventory, survey, wanted[k], tuple(actual.get(k, ())), moved) for k in wanted]
    stays = {s.model for s in services}
    for (node, name), found in actual.items():
        if (node, name) not in wanted:
            model = found[0].model
            reason = (
                f"`{model}` goes elsewhere"
                if model in stays
                else "it has no place any more"
                if model in inventory.models
                else "not in the inventory any more"
                if model or name != "gateway"
                else "the gateway goes elsewhere"
            )
            changes.append(
                Change(action="remove", node=node, service=name, reason=reason, actual=tuple(found))
            )
    return Plan(
        layout=_with_gateway(inventory, layout, services, survey),
        services=tuple(services),
        changes=tuple(sorted(changes, key=lambda c: (c.node, c.action == "remove", c.service))),
    )


def _with_gateway(
    inventory: Inventory, layout: Layout, services: Sequence[Service], survey: Survey
) -> Layout:
    """The layout, with the gateway among what found no place where its node can run nothing."""
    node = inventory.gateway.node
    facts = survey.nodes[node].facts if node in survey.nodes else None
    if facts is None or any(s.model is None for s in services):
        return layout
    _, why = runtime_for(inventory.nodes[node], facts, gpu=False)
    return replace(layout, unplaced=(*layout.unplaced, Unplaced(model="gateway", reason=f"{node}: {why}")))


def _change(
    inventory: Inventory,
    survey: Survey,
    service: Service,
    found: tuple[f.Service, ...],
    moved: Mapping[str | None, str],
) -> Change:
    same = next((s for s in found if s.spec == service.spec), None)
    current = next(
        (s for s in found if s.state in ("running", "starting", "unhealthy")), found[0] if found else None
    )
    if same is not None and (same.state in ("running", "starting")):
        if left := tuple(s for s in found if s.spec != service.spec):
            # It was started, and nobody waited for it and cleaned up after it.
            why = "an earlier deploy was interrupted"
            return Change(
                action="replace",
                node=service.node,
                service=service.name,
                reason=why,
                wanted=service,
                actual=left,
            )
        if same.state == "starting":
            why = "still loading: deploy waits until it is healthy"
            return Change(
                action="restart",
                node=service.node,
                service=service.name,
                reason=why,
                wanted=service,
                actual=found,
            )
        return Change(
            action="keep",
            node=service.node,
            service=service.name,
            reason="up to date",
            wanted=service,
            actual=found,
        )
    if same is not None:
        why = same.state + (f": {same.detail}" if same.detail else "")
        return Change(
            action="restart",
            node=service.node,
            service=service.name,
            reason=why,
            wanted=service,
            actual=found,
        )
    blocked = _blocked(inventory, survey, service, found)
    if current is not None:
        reason = "; ".join(_differences(current, service)) or (
            "its configuration changed"
            if service.model is None
            else "its command line or environment changed"
        )
        return Change(
            action="replace",
            node=service.node,
            service=service.name,
            reason=reason,
            wanted=service,
            actual=found,
            blocked=blocked,
        )
    if service.model is not None and service.model in moved:
        return Change(
            action="move",
            node=service.node,
            service=service.name,
            reason=f"from {moved[service.model]}",
            wanted=service,
            blocked=blocked,
        )
    return Change(
        action="create",
        node=service.node,
        service=service.name,
        reason="not there yet",
        wanted=service,
        blocked=blocked,
    )


def _blocked(inventory: Inventory, survey: Survey, service: Service, found: tuple[f.Service, ...]) -> str:
    """A port that somebody else listens on."""
    facts = survey.nodes[service.node].facts
    ours = {
        s.labels.get("homelab.port")
        for s in (facts.services if facts else ())
        if s.cluster == inventory.cluster
    }
    port = service.unit.port
    if str(port) in ours or facts is None:
        return ""
    owner = next(
        (
            p
            for p in facts.ports
            if p.port == port and p.address in (service.unit.address, "0.0.0.0", "::", "*")
        ),
        None,
    )
    if owner is None:
        return ""
    return f"port {port} on {service.node} is in use by {owner.process or 'another process'}: stop it, or give another `port`"


def _differences(current: f.Service, service: Service) -> Iterator[str]:
    """What differs, as far as the labels tell, in words."""
    old, new = numbers_of(current.labels), numbers_of(service.labels)
    for key in ("engine", "source", "runtime", "context", "gpu_memory_utilization", "port", "gpus"):
        if old.get(key) != new.get(key):
            yield f"{key.replace('_', '-')} {_short(old.get(key))} → {_short(new.get(key))}"
    image = current.labels.get("homelab.image")
    if image and service.unit.image and image != service.unit.image:
        yield f"image {image.rpartition(':')[2]} → {service.unit.image.rpartition(':')[2]}"
    if current.labels.get("homelab.address") != service.labels.get("homelab.address"):
        yield f"address {current.labels.get('homelab.address')} → {service.labels.get('homelab.address')}"
    if service.model is None:
        before, after = current.labels.get("homelab.models", ""), service.labels.get("homelab.models", "")
        if before != after:
            added, gone = (
                set(after.split(",")) - set(before.split(",")),
                set(before.split(",")) - set(after.split(",")),
            )
            yield "models " + " ".join(
                [f"+{m}" for m in sorted(added - {""})] + [f"-{m}" for m in sorted(gone - {""})]
            )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(v)[:12] for v in value) or "none"
    return "none" if value is None else str(value)
