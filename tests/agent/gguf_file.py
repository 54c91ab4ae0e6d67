"""Writes small GGUF files, byte by byte, so that tests need no library and can lie where they want."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

BOOL, FLOAT32, UINT32, STRING, ARRAY, UINT64 = 7, 6, 4, 8, 9, 10
CODES = {BOOL: "?", FLOAT32: "f", UINT32: "I", UINT64: "Q"}
F32, Q4_K, MXFP4 = 0, 12, 39


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind: int, item: Any) -> bytes:
    return text(item) if kind == STRING else struct.pack("<" + CODES[kind], item)


def pair(key: str, kind: int, item: Any) -> bytes:
    return text(key) + struct.pack("<I", kind) + value(kind, item)


def array(key: str, kind: int, items: Sequence[Any]) -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, kind, len(items)) + b"".join(value(kind, i) for i in items)


def tensor(name: str, dimensions: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


def header(pairs: Sequence[bytes], tensors: Sequence[bytes], version: int = 3) -> bytes:
    return (
        b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    )


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment)


PAIRS = (
    pair("general.architecture", STRING, "llama"),
    pair("llama.block_count", UINT32, 2),
    pair("llama.rope.freq_base", FLOAT32, float("inf")),
    array("llama.attention.head_count_kv", UINT32, [8, 4]),
    array("llama.sliding", BOOL, [True, False]),
    array("tokenizer.ggml.tokens", STRING, [f"token {i}" for i in range(300)]),
    array("tokenizer.ggml.token_type", UINT32, [1] * 3000),
)
TENSORS = (
    tensor("token_embd.weight", [256, 10], Q4_K, 0),
    tensor("output_norm.weight", [256], F32, 1440),
    tensor("blk.0.ffn_gate_exps.weight", [64, 2, 3], MXFP4, 2464),
)
TENSOR_BYTES = 2464 + 64 * 2 * 3 // 32 * 17


def small() -> bytes:
    """A whole file: one header, three tensors, their bytes."""
    return padded(header(PAIRS, TENSORS)) + bytes(TENSOR_BYTES)
