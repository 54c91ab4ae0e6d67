"""What runs already, read back from the labels of its service: a healthy placement whose request is unchanged keeps its numbers. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

from homelab.engines import Footprint, Request, Term
from homelab.facts import Facts, Service
from homelab.inventory import Inventory, Model
from homelab.placement.devices import Slot, bind_address, image_for, runtime_for
from homelab.placement.layout import Placement


def wanted_hash(model: Model, address: str) -> str:
    """Identifies a request: equal hash, and a running placement keeps its numbers."""
    asked = model.model_dump(mode="json", exclude={"replicas", "priority", "node"})
    return hashlib.sha256(json.dumps([asked, address], sort_keys=True).encode()).hexdigest()[:16]


def revive(
    inventory: Inventory,
    name: str,
    node: str,
    facts: Facts,
    service: Service,
    slot_with: Callable[[Sequence[str]], Slot | None],
) -> Placement | None:
    """The placement that a service was started for; None if another is asked for now, or if its labels are of another version."""
    model = inventory.models[name]
    address = bind_address(inventory, node, facts)
    if service.labels.get("homelab.wanted") != wanted_hash(model, address) or service.state == "missing":
        return None
    try:
        n = json.loads(service.labels["homelab.placement"])
        variant = model.variants[n["variant"]]
        footprint = Footprint(
            terms=tuple(Term(name=t[0], bytes=t[1], grade=t[2], where=t[3]) for t in n["terms"]),
            kv_cache_bytes=n["kv_cache_bytes"],
            kv_cache_tokens=n["kv_cache_tokens"],
            flags=n["flags"],
        )
        slot = slot_with(n["gpus"])
        if slot is None:
            return None
        runtime, _ = runtime_for(inventory.nodes[node], facts, gpu=bool(slot.gpus))
        if runtime is None or runtime != n["runtime"]:
            return None
        return Placement(
            model=name,
            service=service.name,
            variant=n["variant"],
            node=node,
            engine=variant.engine,
            runtime=runtime,
            image=image_for(inventory, node, variant.engine, slot.device.vendor)
            if runtime == "docker"
            else None,
            source=variant.source,
            gpus=tuple(n["gpus"]),
            device=slot.device,
            address=address,
            port=n["port"],
            request=Request(
                kind=model.kind, context=n["context"], concurrency=model.concurrency, args=variant.args
            ),
            footprint=footprint,
            gpu_memory_utilization=n["gpu_memory_utilization"],
            wanted=service.labels["homelab.wanted"],
            reason="runs here already",
            kept=True,
        )
    except (KeyError, IndexError, TypeError, ValueError):
        return None  # labels of another version: plan it anew
