"""From a header document, as the agent and the hub give it, to a model's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homelab.errors import InventoryError
from homelab.models import gguf, huggingface
from homelab.models.shape import ModelShape


def from_header(document: Mapping[str, Any]) -> ModelShape:
    """The shape of the model whose header document this is.

    Raises InventoryError when the format is unknown or the document lacks a key that the shape needs; the message names it."""
    match document.get("format"):
        case "gguf":
            return gguf.shape(document)
        case "safetensors":
            return huggingface.shape(document)
        case other:
            raise InventoryError(f"A model's header has format {other!r}; homelab reads gguf and safetensors")
