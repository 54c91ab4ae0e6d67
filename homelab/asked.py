"""What somebody asked for, as keys that were really written: what a later release, another default or another
controller adds by itself is no part of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from homelab.hosting import image_written
from homelab.inventory import Inventory, Model

# Says where and how often, not what: a change of it restarts nothing.
ELSEWHERE = frozenset({"node", "replicas", "priority", "long_prompt", "private"})


def of_model(model: Model) -> dict[str, Any]:
    """The keys of one instance of a model, as JSON values."""
    return model.model_dump(mode="json", exclude_unset=True, exclude=set(ELSEWHERE))


def same_model(model: Model, recorded: Any) -> bool:
    """Whether a recorded request is this one: the same keys, or others that mean the same."""
    if recorded == of_model(model):
        return True
    try:
        before = Model.model_validate(recorded)
    except ValidationError:
        return False
    return before.model_dump(exclude=set(ELSEWHERE)) == model.model_dump(exclude=set(ELSEWHERE))


def same(recorded: Mapping[str, Any], wanted: Mapping[str, Any], model: Model | None) -> bool:
    """Whether what is asked of a service now is what was asked when it was started."""
    if model is None or "model" not in recorded:
        return dict(recorded) == dict(wanted)
    rest = [{k: v for k, v in x.items() if k != "model"} for x in (recorded, wanted)]
    return rest[0] == rest[1] and same_model(model, recorded["model"])


def of_place(inventory: Inventory, node: str, program: str) -> dict[str, Any]:
    """What is written about where and as what a program runs: its image, address, runtime."""
    spec = inventory.nodes[node]
    written = {
        "image": image_written(inventory, node, program),
        "address": spec.address,
        "runtime": spec.runtime if spec.runtime != "auto" else None,
    }
    return {key: value for key, value in written.items() if value is not None}
