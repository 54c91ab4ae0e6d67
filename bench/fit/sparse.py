"""Writes a GGUF header document back into a file of the model's full size, all holes: enough for whatever
asks only what a model would take; or with weights, for what runs."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.ggml import TYPES

NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
ALIGNMENT = 32


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Type and value; whole numbers as uint32, in lists as int32, mostly as llama.cpp's own converter."""
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, list):
        items = [_value(v) for v in value]
        numbers = not items or items[0][:4] == struct.pack("<I", 4)
        kind = struct.pack("<I", 5) if numbers else items[0][:4]
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(items)) + b"".join(i[4:] for i in items)
    return _value(0)  # a list that the document could not carry


def write(
    path: Path,
    document: Mapping[str, Any],
    data: Callable[[str, str, int], Iterator[bytes]] | None = None,
) -> Path:
    """A file of this header, grown to the size that its tensors need; `data` gives a tensor's bytes for its
    name, type and size."""
    metadata = {k: v for k, v in document["metadata"].items() if v is not None and not isinstance(v, Mapping)}
    out, offset = b"", 0
    for name, dimensions, word, size in document["tensors"]:
        out += _text(name) + struct.pack(
            f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, NUMBERS[word], offset
        )
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    pairs = b"".join(_text(key) + _value(value) for key, value in metadata.items())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(document["tensors"]), len(metadata)) + pairs + out
    with path.open("wb") as file:
        file.write(head)
        start = -(-len(head) // ALIGNMENT) * ALIGNMENT
        file.truncate(start + offset)
        for name, _, word, size in document["tensors"] if data else ():
            file.seek(start)
            assert data is not None
            file.writelines(data(name, word, size))
            start += -(-size // ALIGNMENT) * ALIGNMENT
    return path
