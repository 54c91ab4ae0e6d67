"""By which names models are asked for, and each way by which a prompt can leave the house. Pure."""

from __future__ import annotations

from homelab.fallbacks import in_place_of
from homelab.inventory import Inventory


def names(inventory: Inventory) -> dict[str, str]:
    """Every further name of a model, with the model: aliases and tiers."""
    return {**inventory.aliases, **inventory.tiers}


def ways_out(inventory: Inventory) -> list[str]:
    """Each way by which a prompt can leave the house, as a sentence."""
    out = []
    for name, entry in sorted(inventory.cloud.items()):
        also = [a for a, model in sorted(names(inventory).items()) if model == name]
        asked = f"`{name}`" + (f" (or {', '.join(f'`{a}`' for a in also)})" if also else "")
        out.append(f"to {entry.model}, whenever a client asks for {asked}")
    for model in sorted(inventory.models):
        for chain in in_place_of(inventory.fallbacks, model):
            if chain[-1] in inventory.cloud:
                by = f", by way of {' and '.join(f'`{m}`' for m in chain[1:-1])}" if chain[1:-1] else ""
                to = inventory.cloud[chain[-1]].model
                out.append(f"to {to}, whenever `{model}` cannot answer{by} (`fallbacks`)")
    return out
