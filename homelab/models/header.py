"""From a header document, as the agent and the hub give it, to a model's shape. The document is a
stranger's: whatever is in it, the answer is a shape with numbers that can be reckoned with, or an
InventoryError."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from homelab.errors import InventoryError
from homelab.models import gguf, huggingface
from homelab.models.projector import Projector
from homelab.models.shape import Layer, ModelShape, Recurrent

LARGEST = 1 << 50  # a petabyte, or as many tokens: more is no model
HINT = "The file may be cut off or damaged. Fetch it again, or name another source."


def from_header(document: Mapping[str, Any]) -> ModelShape:
    """The shape of the model whose header document this is.

    Raises InventoryError when the format is unknown, a key is missing (named), or the values make no sense;
    never another exception."""
    if not isinstance(document, Mapping):
        raise InventoryError("A model's header is not a document", hint=HINT)
    try:
        match document.get("format"):
            case "gguf":
                shape = gguf.shape(document)
            case "safetensors":
                shape = huggingface.shape(document)
            case other:
                raise InventoryError(
                    f"A model's header has format {str(other)[:40]!r}; homelab reads gguf and safetensors"
                )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as e:
        raise InventoryError(
            "The model's header makes no sense", cause=f"{type(e).__name__}: {str(e)[:200]}", hint=HINT
        ) from e
    for part in (shape, *shape.layers, *shape.projectors, *((shape.recurrent,) if shape.recurrent else ())):
        _check(part)
    if not (shape.layers and shape.hidden and shape.vocab):
        raise InventoryError(
            "The model's header describes a model without layers or without a vocabulary", hint=HINT
        )
    return shape


def _check(part: ModelShape | Layer | Recurrent | Projector) -> None:
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, int) and not 0 <= value <= LARGEST:
            raise InventoryError(f"The model's header gives {field.name} as {str(value)[:40]}", hint=HINT)
