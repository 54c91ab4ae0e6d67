"""What a model is, as far as memory and limits go: its layers, what each of them caches, and how many bytes
its tensors have.

Built from a header document by `homelab.models.gguf` or `homelab.models.huggingface`; nothing here knows
where the document came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from homelab.errors import InventoryError
from homelab.models.projector import Projector

Format = Literal["gguf", "safetensors"]
Attention = Literal["full", "sliding", "mla", "none"]
Purpose = Literal["chat", "embedding", "rerank"]
MAX_LAYERS = 2048
Pooling = Literal["none", "mean", "cls", "last", "rank"]
Scan = Literal["gated-delta", "kda", "mamba2", "conv", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer: what it keeps for every token (`attention`), whether it keeps a state for every request
    (`recurrent`), and the bytes of its tensors (0 where the header does not say by layer)."""

    attention: Attention
    heads: int = 0
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int | None = None
    recurrent: bool = False
    bytes: int = 0
    expert_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """The state that one recurrent layer keeps for one request, in elements: a convolution window and a
    matrix state. `scan` is how the layer computes it."""

    conv_rows: int
    conv_channels: int
    state_elements: int
    heads: int = 1
    state_dtype_bytes: int = 4
    scan: Scan = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A model's dimensions and the sizes of its tensors, in bytes.

    `weights_bytes` counts every tensor in the files. Parts of it: `embedding_bytes` (the input table),
    `output_bytes` (0 when tied), `lookup_bytes` (further tables that llama.cpp keeps in RAM; `lookup_width`
    elements of them for a token), `vision_bytes`, `mtp_bytes`, `routed_bytes` (experts that tokens choose
    among, where layers do not say), `kv_projection_bytes`, and
    `replicated_bytes` (what tensor parallelism copies to every rank instead of splitting).

    `intermediate` is the widest activation of a token: a dense layer's, or that of all experts which one
    token visits; `expert_intermediate` the latter alone. `kv_cache_dtype` is the cache that the checkpoint's
    quantisation asks for, in vLLM's words."""

    format: Format
    architecture: str
    layers: tuple[Layer, ...]
    hidden: int
    heads: int
    intermediate: int
    vocab: int
    max_context: int | None
    weights_bytes: int
    embedding_bytes: int = 0
    output_bytes: int = 0
    lookup_bytes: int = 0
    lookup_width: int = 0
    vision_bytes: int = 0
    mtp_bytes: int = 0
    routed_bytes: int = 0
    replicated_bytes: int = 0
    kv_projection_bytes: int = 0
    parameters: int | None = None
    experts: int = 0
    experts_used: int = 0
    expert_intermediate: int = 0
    rope_dim: int = 0
    recurrent: Recurrent | None = None
    mtp_layers: int = 0
    projectors: tuple[Projector, ...] = ()
    tied_embeddings: bool = False
    dtype_bytes: int = 2
    quantization: str = "none"
    kv_cache_dtype: str = "auto"
    kind: Purpose = "chat"
    pooling: Pooling | None = None
    causal: bool = True
    has_chat_template: bool = True
    notes: tuple[str, ...] = ()

    @property
    def mla(self) -> bool:
        """Whether its attention keeps one compressed vector for a token instead of keys and values."""
        return any(layer.attention == "mla" for layer in self.layers)

    @property
    def hybrid(self) -> bool:
        """Whether some layers keep a state of fixed size instead of a cache that grows."""
        return any(layer.recurrent for layer in self.layers)

    @property
    def kv_heads(self) -> int:
        """The smallest number of key-value heads of any layer that has some."""
        return min((layer.kv_heads for layer in self.layers if layer.kv_heads), default=0)

    @property
    def expert_bytes(self) -> int:
        """Bytes of the experts that tokens choose among."""
        return sum(layer.expert_bytes for layer in self.layers) or self.routed_bytes

    @property
    def language_bytes(self) -> int:
        """Bytes of the language model alone, without its vision tower and its prediction layers."""
        return self.weights_bytes - self.vision_bytes - self.mtp_bytes

    def kv_bytes_per_token(self, element_bytes: float = 2) -> float:
        """Bytes that every further token of a long request costs: layers that grow, without windows and
        states."""
        return sum(
            (
                layer.key_dim
                if layer.attention == "mla"
                else layer.kv_heads * (layer.key_dim + layer.value_dim)
            )
            * element_bytes
            for layer in self.layers
            if layer.attention in ("full", "mla")
        )


def layer_count(value: Any) -> int:
    """The number of layers, before anything is made for each of them.

    Raises InventoryError when no model has so many."""
    count = int(value)
    if not 0 < count <= MAX_LAYERS:
        raise InventoryError(
            f"The model's header says that it has {str(count)[:40]} layers",
            hint="The file may be damaged. Name another source.",
        )
    return count


def need(mapping: Mapping[str, Any], *keys: str, what: str) -> Any:
    """The value of the first of these keys that is there.

    Raises InventoryError naming the key when none is."""
    for key in keys:
        if (value := mapping.get(key)) is not None:
            return value
    raise InventoryError(
        f"{what} lacks `{'` or `'.join(keys)}`, so its memory cannot be computed",
        hint="The file may be cut off, or not a language model. Fetch it again, or name another source.",
    )
