"""Two models to measure with, made here: the shapes of real ones, with random weights and a vocabulary of
nothing. Memory asks for no more.

`sliding`: Gemma 3's layers, five of six with a window of 1024, eight queries for a key; 1.8 GB.
`hybrid`: Qwen3.6's layers, three of four recurrent, heads of 256, eight queries for a key, and a prediction
layer; 2.3 GB."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import household
import sparse

from homelab.fit_command import load_catalog
from homelab.models.catalog import Variant

VOCABULARY = 32768
LIKE = {"sliding": "gemma-3-4b", "hybrid": "qwen3.6-27b"}
SHAPES: dict[str, dict[str, Any]] = {
    "sliding": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "sliding_window": 1024,
        "max_position_embeddings": 131072,
    },
    "hybrid": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "max_position_embeddings": 131072,
    },
}
# Blocks of Q8_0: one half-precision scale, then 32 signed bytes. 1024 of them, over and over.
_RANDOM = random.Random(3090)
BLOCKS = b"".join(struct.pack("<e", 1e-4) + _RANDOM.randbytes(32) for _ in range(1024))
# `ssm_a` is a decay and must be below zero; norms leave values as they are.
ONE, DECAY = struct.pack("<f", 1.0), struct.pack("<f", -1.0)


def document(name: str, *, layers: int | None = None) -> dict[str, Any]:
    """The GGUF header of a model, with fewer layers where somebody has no time."""
    entry = load_catalog().entries[LIKE[name]]
    changes = {**SHAPES[name], "vocab_size": VOCABULARY} | ({"num_hidden_layers": layers} if layers else {})
    entry = household.changed(entry, changes)
    header = entry.document(Variant(source=entry.repo, weights="Q8_0"))
    if name == "hybrid":
        household.add_prediction_layer(header, entry.text, "Q8_0")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [f"\u2581{number:x}" for number in range(VOCABULARY - len(pieces))]
    header["metadata"] |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(number) for number in range(VOCABULARY)],
        # unknown, control, byte, normal (`llama_token_type`)
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (VOCABULARY - 259)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }
    return header


def write(folder: Path, name: str, header: Mapping[str, Any]) -> Path:
    """The file of it, written once: its name tells its layers."""
    path = folder / f"{name}-{len(header['tensors'])}.gguf"
    if not path.exists():
        sparse.write(path.with_suffix(".part"), header, _weights).replace(path)
    return path


def _weights(name: str, type_: str, size: int) -> Iterator[bytes]:
    pattern = BLOCKS if type_ == "Q8_0" else DECAY if name.endswith("ssm_a") else ONE
    whole, rest = divmod(size, len(pattern))
    for _ in range(whole):
        yield pattern
    yield pattern[:rest]
