"""The shape of a model from the header of its GGUF file. Which layers slide, recur or compress is decided
as llama.cpp does (`src/llama-model.cpp`, `src/models/*.cpp`, 0.6.0)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from homelab.errors import InventoryError
from homelab.models.projector import projectors
from homelab.models.shape import Attention, Layer, ModelShape, Pooling, Purpose, Recurrent, layer_count, need

# architecture: (one full layer in so many, whether that one comes first). llama.cpp `load_swa_pattern`;
# only when a window is set.
SLIDING = {
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "exaone-moe": (4, False),
    "exaone4": (4, False),
    "gemma-embedding": (6, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "laguna": (4, True),
    "lfm2": (0, False),
    "llama4": (4, False),
    "mellum": (4, False),
    "modern-bert": (3, True),
    "muse-glimmer": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
# These run without a cache: every token attends to every other once (llama.cpp `llama_model::create_memory`).
CACHELESS = frozenset(
    {
        "bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "eurobert",
        "modern-bert",
        "gemma-embedding",
    }
)
DEFAULT_WINDOW = {"gemma2": 4096}
FIXED_WINDOW = {"llama4": 8192}  # chunks; the key only turns them off
GENERIC = frozenset(
    {
        "llama",
        "qwen2",
        "qwen2moe",
        "qwen3",
        "qwen3moe",
        "qwen3next",
        "qwen35",
        "qwen35moe",
        "deepseek2",
        "glm4",
        "glm4moe",
        "phi3",
        "mistral3",
    }
    | {
        "granite",
        "granitemoe",
        "granitehybrid",
        "nemotron_h",
        "nemotron_h_moe",
        "falcon-h1",
        "lfm2",
        "lfm2moe",
        "jamba",
        "kimi-linear",
    }
    | {
        "gemma4",
        "gemma",
        "minimax-m2",
        "hunyuan-moe",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
        "olmoe",
        "qwen3vl",
        "qwen3vlmoe",
        "mamba",
        "mamba2",
    }
)
POOLING: dict[Any, Pooling] = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
}
FILE_TYPES |= {
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
}
FILE_TYPES |= {
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
}
FILE_TYPES |= {31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE"}


def shape(document: Mapping[str, Any]) -> ModelShape:
    """The shape of a GGUF model.

    Raises InventoryError when the header lacks a key (named), or when it is one part of a split file
    without the others."""
    metadata: Mapping[str, Any] = need(document, "metadata", what="The GGUF header")
    tensors: list[list[Any]] = need(document, "tensors", what="The GGUF header")
    architecture = str(need(metadata, "general.architecture", what="The GGUF header"))
    if (parts := metadata.get("split.count") or 0) > 1 and (metadata.get("split.tensors.count") or 0) > len(
        tensors
    ):
        raise InventoryError(
            f"This GGUF is one of {parts} parts, and only this part's header was read",
            hint="Name the first part, with the others beside it.",
        )
    reader = _Reader(metadata, architecture)
    count = layer_count(reader.need("block_count"))
    by_layer: dict[int, dict[str, tuple[list[int], int]]] = defaultdict(dict)
    outside: dict[str, tuple[list[int], int]] = {}
    for name, dims, _type, size in tensors:
        prefix, _, rest = str(name).partition(".")
        if prefix == "blk":
            index, _, rest = rest.partition(".")
            by_layer[int(index)][rest] = (dims, size)
        else:
            outside[str(name)] = (dims, size)
    embedding = outside.get("token_embd.weight")
    if embedding is None:
        raise InventoryError(
            "The GGUF header lacks the tensor `token_embd.weight`: it is not a language "
            "model (a vision projector?)"
        )
    mtp = min(count, int(reader.get("nextn_predict_layers") or 0))
    layers = tuple(_layer(reader, i, by_layer[i], count - mtp) for i in range(count))
    notes = (
        ()
        if architecture in SLIDING or architecture in GENERIC or architecture in CACHELESS
        else (
            (
                f"architecture {architecture} is not known here: every layer is counted as "
                "full attention, an upper bound"
            ),
        )
    )
    output = outside.get("output.weight", ([], 0))[1]
    routed = _largest(reader.get("expert_used_count")) * _routed(by_layer, reader)
    lookup = outside.get("per_layer_token_embd.weight", ([0], 0))  # Gemma 3n and 4
    # Where encoders look positions and kinds of tokens up (`llama-arch.cpp`: LLM_TENSOR_LAYER_INPUT).
    beside = sum(outside.get(name, ([], 0))[1] for name in ("position_embd.weight", "token_types.weight"))
    return ModelShape(
        format="gguf",
        architecture=architecture,
        layers=layers,
        hidden=int(reader.need("embedding_length")),
        heads=max((layer.heads for layer in layers), default=0),
        intermediate=max(_dense(by_layer, reader), routed),
        expert_intermediate=routed,
        vocab=int(embedding[0][1]),
        max_context=_context(reader),
        weights_bytes=sum(int(t[3]) for t in tensors),
        embedding_bytes=embedding[1],
        output_bytes=output,
        lookup_bytes=lookup[1] + beside,
        lookup_width=lookup[0][0],
        mtp_bytes=sum(layer.bytes for layer in layers[count - mtp :]),
        parameters=sum(_product(t[1]) for t in tensors),
        experts=int(reader.get("expert_count") or 0),
        experts_used=_largest(reader.get("expert_used_count")),
        rope_dim=int(reader.get("rope.dimension_count") or 0),
        recurrent=_recurrent(reader, layers),
        mtp_layers=mtp,
        projectors=projectors(document),
        tied_embeddings=output == 0,
        quantization=FILE_TYPES.get(metadata.get("general.file_type", -1)) or _most(tensors),
        kind=_kind(reader),
        pooling=POOLING.get(reader.get("pooling_type")),
        causal=architecture not in CACHELESS,
        has_chat_template="tokenizer.chat_template" in metadata,
        notes=notes,
    )


class _Reader:
    """Metadata of one architecture, with values that may be one number or one for each layer."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.architecture = architecture

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}")

    def need(self, key: str) -> Any:
        return need(self.metadata, f"{self.architecture}.{key}", what="The GGUF header")

    def at(self, key: str, layer: int) -> Any:
        """The value for a layer; None when absent, or when the array was too long for the document to
        carry."""
        value = self.get(key)
        if isinstance(value, Mapping):
            return None
        if isinstance(value, list):
            return value[layer] if layer < len(value) else None
        return value


def _layer(reader: _Reader, index: int, tensors: Mapping[str, tuple[list[int], int]], trunk: int) -> Layer:
    size = sum(t[1] for t in tensors.values())
    experts = sum(t[1] for name, t in tensors.items() if "_exps" in name)
    heads = int(reader.at("attention.head_count", index) or 0)
    recurrent = any(name.startswith(("ssm_", "shortconv", "time_mix_")) for name in tensors)
    # The trunk never attends to the prediction layers, and without a draft they have no cache (llama.cpp
    # filters `il < n_layer`).
    attends = any(name.startswith(("attn_k.", "attn_kv", "attn_k_b", "attn_k_norm")) for name in tensors) or (
        "attn_qkv.weight" in tensors and not recurrent
    )
    if index >= trunk or not attends or reader.architecture in CACHELESS or not _has_cache(reader, index):
        return Layer(
            attention="none",
            heads=heads,
            recurrent=recurrent and index < trunk,
            bytes=size,
            expert_bytes=experts,
        )
    window = _window(reader, index)
    suffix = "_swa" if window else ""
    key = reader.at(f"attention.key_length{suffix}", index) or reader.at("attention.key_length", index)
    value = reader.at(f"attention.value_length{suffix}", index) or reader.at("attention.value_length", index)
    fallback = int(reader.need("embedding_length")) // heads if heads else 0
    key, value = int(key or fallback), int(value or fallback)
    if "attn_kv_a_mqa.weight" in tensors:
        latent = int(reader.need("attention.kv_lora_rank")) + int(reader.get("rope.dimension_count") or 0)
        if "attn_k_b.weight" in tensors:
            return Layer(
                attention="mla",
                heads=heads,
                kv_heads=1,
                key_dim=latent,
                value_dim=0,
                bytes=size,
                expert_bytes=experts,
            )
        # Files from before llama.cpp knew MLA carry `attn_kv_b` and cache whole keys and values.
    kv_heads = reader.at("attention.head_count_kv", index)
    if kv_heads is None:
        kv_heads = tensors["attn_k.weight"][0][1] // key if "attn_k.weight" in tensors and key else heads
    attention: Attention = "sliding" if window else "full"
    return Layer(
        attention=attention
        if kv_heads
        else "none",  # none: Kimi Linear's delta layers have keys, and no cache of them
        heads=heads,
        kv_heads=int(kv_heads),
        key_dim=key,
        value_dim=value,
        window=window,
        recurrent=recurrent,
        bytes=size,
        expert_bytes=experts,
    )


def _dense(by_layer: Mapping[int, Mapping[str, tuple[list[int], int]]], reader: _Reader) -> int:
    """Width of the widest feed-forward part that is not of experts. Some files give one in their metadata
    that no layer has."""
    widths = [t["ffn_up.weight"][0][-1] for t in by_layer.values() if "ffn_up.weight" in t]
    experts = any("_exps" in name for t in by_layer.values() for name in t)
    return max(widths, default=0 if experts else _largest(reader.get("feed_forward_length")))


def _routed(by_layer: Mapping[int, Mapping[str, tuple[list[int], int]]], reader: _Reader) -> int:
    """Width of one expert."""
    widths = [t["ffn_down_exps.weight"][0][0] for t in by_layer.values() if "ffn_down_exps.weight" in t]
    return max(widths, default=_largest(reader.get("expert_feed_forward_length")))


def _has_cache(reader: _Reader, index: int) -> bool:
    """The last layers of Gemma 3n and 4 read the cache of earlier ones."""
    if reader.architecture == "gemma3n":
        return index < 20
    shared = int(reader.get("attention.shared_kv_layers") or 0)
    return index < int(reader.need("block_count")) - shared


def _window(reader: _Reader, index: int) -> int | None:
    window = reader.get("attention.sliding_window")
    if window is None or (reader.architecture in FIXED_WINDOW and window != 0):
        window = FIXED_WINDOW.get(reader.architecture, DEFAULT_WINDOW.get(reader.architecture))
    pattern = reader.get("attention.sliding_window_pattern")
    if not isinstance(window, int) or not window:
        return None
    if isinstance(pattern, list):
        return window if index < len(pattern) and pattern[index] else None
    if reader.architecture not in SLIDING:
        return None
    every, dense_first = SLIDING[reader.architecture]
    every = pattern if isinstance(pattern, int) and not isinstance(pattern, bool) else every
    if every == 0:
        return window
    place = index % every
    return window if (place != 0 if dense_first else place < every - 1) else None


def _recurrent(reader: _Reader, layers: tuple[Layer, ...]) -> Recurrent | None:
    if not any(layer.recurrent for layer in layers):
        return None
    hidden, heads = int(reader.need("embedding_length")), int(reader.at("attention.head_count", 0) or 1)
    if wkv := reader.get("wkv.head_size"):
        return Recurrent(
            conv_rows=int(reader.get("token_shift_count") or 2),
            conv_channels=hidden,
            state_elements=hidden * int(wkv),
        )
    if cache := reader.get("shortconv.l_cache"):
        return Recurrent(conv_rows=int(cache) - 1, conv_channels=hidden, state_elements=0)
    rows = int(reader.get("ssm.conv_kernel") or 1) - 1
    if kda := reader.get("kda.head_dim"):
        return Recurrent(
            conv_rows=rows,
            conv_channels=3 * heads * int(kda),
            state_elements=int(kda) ** 2 * heads,
            heads=heads,
        )
    inner, state = int(reader.need("ssm.inner_size")), int(reader.need("ssm.state_size"))
    groups = int(reader.get("ssm.group_count") or 0)
    return Recurrent(
        conv_rows=rows,
        conv_channels=inner + 2 * groups * state,
        state_elements=inner * state,
        heads=int(reader.get("ssm.time_step_rank") or 1),
    )


def _context(reader: _Reader) -> int | None:
    value = reader.get("context_length")
    return int(value) if isinstance(value, int) else None


def _kind(reader: _Reader) -> Purpose:
    pooling = reader.get("pooling_type")
    if pooling == 4:
        return "rerank"
    return "embedding" if pooling in (1, 2, 3) or reader.architecture in CACHELESS else "chat"


def _most(tensors: list[list[Any]]) -> str:
    sizes: dict[str, int] = defaultdict(int)
    for _name, _dims, dtype, size in tensors:
        sizes[str(dtype)] += int(size)
    return max(sizes, key=lambda t: sizes[t]) if sizes else "none"


def _largest(value: Any) -> int:
    if isinstance(value, list):
        return max((int(v) for v in value), default=0)
    return int(value) if isinstance(value, int) else 0


def _product(dims: list[int]) -> int:
    out = 1
    for d in dims:
        out *= d
    return out
