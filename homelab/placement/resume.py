"""What runs already, read back from the labels of its service: a healthy placement whose request is
unchanged keeps its numbers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from homelab import asked
from homelab.engines import Footprint, Request, Term, engines
from homelab.facts import DeployedService, Facts
from homelab.hosting import Refused, address_of, choose
from homelab.inventory import Inventory
from homelab.placement.devices import Slot
from homelab.placement.layout import Placement
from homelab.service import numbers_of, read_label


def revive(
    inventory: Inventory,
    name: str,
    node: str,
    facts: Facts,
    service: DeployedService,
    slot_with: Callable[[Sequence[str]], Slot | None],
) -> Placement | None:
    """The placement that a service was started for; None if another is asked for now, or if its labels
    cannot be read."""
    model = inventory.models[name]
    recorded = read_label(service.labels, "homelab.asked").get("model")
    if service.state == "missing" or not asked.same_model(model, recorded):
        return None
    n = numbers_of(service.labels)
    try:
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
        choice = choose(
            inventory,
            node,
            facts,
            engines()[variant.engine].OFFER,
            slot.device.vendor,
            slot.gpus,
            running=n["runtime"],
        )
        return Placement(
            model=name,
            service=service.name,
            variant=n["variant"],
            node=node,
            engine=variant.engine,
            runtime=choice.runtime,
            program=choice.program,
            hosting=choice.hosting,
            source=variant.source,
            gpus=tuple(n["gpus"]),
            device=slot.device,
            address=address_of(inventory, node, facts),
            port=n["port"],
            request=Request(
                kind=model.kind,
                context=n["context"],
                concurrency=model.concurrency,
                args=variant.args,
                speculative=drafts if isinstance(drafts := n.get("speculative"), int) else 0,
            ),
            footprint=footprint,
            gpu_memory_utilization=n["gpu_memory_utilization"],
            reason="runs here already",
            summary="runs here already",
            quantization=str(n.get("quantization", ""))[:32],
            kept=True,
            prompt_seconds=n.get("prompt_seconds"),
            tokens_per_s=n.get("tokens_per_s"),
        )
    except Refused:
        return None
    except (KeyError, IndexError, TypeError, ValueError):
        return None  # labels of another program: plan it anew
