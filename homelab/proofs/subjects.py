"""Which models are proven, as they run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from homelab import endpoints
from homelab.errors import DeployError, InventoryError
from homelab.facts import DeployedService, Survey
from homelab.inventory import Inventory, did_you_mean
from homelab.proofs import Subject
from homelab.service import numbers_of


def subjects(inventory: Inventory, survey: Survey, names: Sequence[str] = ()) -> tuple[Subject, ...]:
    """The models of these names, else all of the house that chat. One outside the house is proven only where
    it is named: its prompts leave the house, and cost.

    Raises InventoryError for a name that is none or does not chat, DeployError where it does not run."""
    check_names(inventory, names)
    running = endpoints.running(inventory, survey)
    services = {f"{node}/{s.name}": s for node, s in endpoints.deployed(inventory, survey)}
    chat = list(dict.fromkeys(e.name for e in running if e.kind == "chat"))
    for name in names:
        if name not in chat:
            raise DeployError(f"Model `{name}` does not run", hint="homelab status")
    house = [n for n in chat if any(e.name == n and e.origin != "cloud" for e in running)]
    wanted = list(dict.fromkeys(names)) or house
    if not wanted:
        raise DeployError("No model that chats runs", hint="homelab status")
    found = []
    for name in wanted:
        mine = [e for e in running if e.name == name]
        contexts = [e.context for e in mine if e.context is not None]
        service = services.get(mine[0].id)
        source = str(numbers_of(service.labels).get("source") or "") if service else ""
        found.append(
            Subject(
                name=name,
                context=min(contexts) if len(contexts) == len(mine) else None,
                ids=frozenset(e.id for e in mine),
                engine=mine[0].engine,
                source=source,
                image=service.labels.get("homelab.image", "") if service else "",
                args=_args(inventory, name, service),
            )
        )
    return tuple(found)


def check_names(inventory: Inventory, names: Sequence[str]) -> None:
    """Raises InventoryError for a name that is none, or is of a model that does not chat."""
    known = [*inventory.models, *inventory.cloud]
    for name in names:
        if name not in known:
            raise InventoryError(
                f"No model `{name}`{did_you_mean(name, known)}", hint=f"There are: {', '.join(known)}"
            )
        if name in inventory.models and inventory.models[name].kind != "chat":
            raise InventoryError(
                f"Model `{name}` does not chat", hint=f"Ask it: homelab ask {name}, which knows its kind"
            )


def _args(inventory: Inventory, name: str, service: DeployedService | None) -> Mapping[str, Any]:
    """What the inventory tells the engine, of the variant that runs."""
    model = inventory.models.get(name)
    if model is None or service is None:
        return {}
    numbers = numbers_of(service.labels)
    for variant in model.variants:
        if (variant.engine, variant.source) == (numbers.get("engine"), numbers.get("source")):
            drafts = {"speculative": n} if (n := numbers.get("speculative")) else {}
            return {**variant.args, **drafts}
    return {}
