"""What clients are told of the house: its models with the context that they serve. Pure."""

from __future__ import annotations

from homelab import endpoints, gateway
from homelab.clients import Access, Model
from homelab.errors import InventoryError
from homelab.facts import Survey
from homelab.inventory import Inventory, did_you_mean
from homelab.service import numbers_of


def models(inventory: Inventory, survey: Survey) -> tuple[Model, ...]:
    """What runs, and what is outside the house, by name. The gateway gives a request to any instance, so the
    context is that of the least."""
    found = {}
    running = endpoints.running(inventory, survey)
    for name in dict.fromkeys(e.name for e in running):
        mine = [e for e in running if e.name == name]
        contexts = [e.context for e in mine if e.context is not None]
        found[name] = Model(
            name=name,
            kind=mine[0].kind,
            context=min(contexts) if len(contexts) == len(mine) else None,
            cloud=all(e.origin == "cloud" for e in mine),
            silence_seconds=max(map(gateway.silence_seconds, mine)),
        )
    return tuple(found.values())


def access(inventory: Inventory, survey: Survey, key_file: str, model: str | None = None) -> Access:
    """How clients reach the house, with `model` to start with, else the first by priority and name.

    Raises InventoryError for a model that does not run, or does not chat."""
    there = models(inventory, survey)
    chat = {m.name: m for m in there if m.kind == "chat"}
    if model is None:
        first = endpoints.first_choice(inventory, endpoints.running(inventory, survey))
        chosen = chat.get(first) or Model(name=first)
    elif model in chat:
        chosen = chat[model]
    else:
        known = model in inventory.models or model in inventory.cloud
        why = "is not for chat" if any(m.name == model for m in there) else "does not run"
        raise InventoryError(
            f"Model `{model}` {why}" if known else f"No model `{model}`{did_you_mean(model, list(chat))}",
            hint=f"There are: {', '.join(chat) or 'none; see homelab status'}",
        )
    volume, quality = (chat.get(inventory.tiers.get(tier, "")) for tier in ("volume", "quality"))
    small = volume or _small(inventory, survey, chosen, chat)
    return Access(
        url=endpoints.gateway_url(inventory, survey),
        key_file=key_file,
        model=chosen,
        small=small if small != chosen else None,
        quality=quality,
        models=there,
    )


def _small(inventory: Inventory, survey: Survey, chosen: Model, chat: dict[str, Model]) -> Model | None:
    """The model of the house that takes the least memory, if that is less than the chosen one takes."""
    sizes: dict[str, int] = {}
    for _, service in endpoints.deployed(inventory, survey):
        size = numbers_of(service.labels).get("bytes")
        for name in service.serves:
            if service.role == "engine" and name in chat and size:
                sizes[name] = max(sizes.get(name, 0), size)
    least = min(sizes, key=lambda n: (sizes[n], n), default=None)
    if least is None or chosen.name not in sizes or sizes[least] >= sizes[chosen.name]:
        return None
    return chat[least]
