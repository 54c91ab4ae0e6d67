"""Reads the header of a GGUF file (versions 2 and 3) into a document: metadata, and each tensor's name,
dimensions, type and bytes.

The file is a stranger's: a count or a length in it is compared with the bytes that are there
before anything is made of it."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import sys
from typing import Any

from .ggml import TYPES

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_ELEMENTS = (
    1 << 23
)  # of all string arrays together; the largest vocabularies have 2**18 tokens and twice as many merges
MAX_NAME = 1 << 16
MAX_TEXT = 1 << 20
MAX_HEADER = 1 << 28
KEPT_NUMBERS, KEPT_STRINGS = 1024, 64  # a list with one number a layer is kept, a vocabulary is not
FIRST_READ = 1 << 24
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
TRUNCATED_STATUS, INVALID_STATUS, USAGE_STATUS = 3, 1, 2


class HeaderError(Exception):
    """Not a model file that can be used; the text says why."""


class TruncatedError(Exception):
    """The header goes on beyond the bytes at hand; at least `need_bytes` of the file are wanted."""

    def __init__(self, need_bytes: int) -> None:
        super().__init__(f"the header is not complete: at least {need_bytes} bytes are needed")
        self.need_bytes = need_bytes


class Reader:
    """A cursor over the first bytes of a file that has `size` bytes in all."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data = data
        self.size = size
        self.position = 0
        self.elements = 0

    def take(self, count: int) -> int:
        """Steps over `count` bytes and says where they begin."""
        start = self.position
        end = start + count
        if end > len(self.data):
            if end > self.size:
                raise HeaderError(
                    f"the header points beyond the end of the file ({end} of {self.size} bytes)"
                )
            raise TruncatedError(end)
        self.position = end
        return start

    def number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize(code)))[0]

    def text(self, longest: int) -> Any:
        length = self.number("Q")
        start = self.take(length)
        if length > longest:
            return {"type": "string", "length": length}
        return self.data[start : start + length].decode("utf-8", "replace")

    def name(self) -> str:
        name = self.text(MAX_NAME)
        if not isinstance(name, str):
            raise HeaderError(f"a name of {name['length']} bytes")
        return name

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text(MAX_TEXT)
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            raise HeaderError(f"metadata of the unknown type {kind}")
        return finite(self.number("b") != 0 if kind == 7 else self.number(SCALARS[kind]))

    def array(self) -> Any:
        kind = self.number("I")
        count = self.number("Q")
        if kind == STRING:
            return self.strings(count)
        if kind not in SCALARS:
            raise HeaderError(f"an array of the unknown type {kind}")
        code = "B" if kind == 7 else SCALARS[kind]
        start = self.take(count * struct.calcsize(code))
        if count > KEPT_NUMBERS:
            return {"type": "array", "length": count}
        values = struct.unpack_from(f"<{count}{code}", self.data, start)
        return [bool(v) if kind == 7 else finite(v) for v in values]

    def strings(self, count: int) -> Any:
        self.elements += count
        if self.elements > MAX_ELEMENTS:
            raise HeaderError(f"arrays of {self.elements} strings")
        if self.position + 8 * count > self.size:
            raise HeaderError(f"an array of {count} strings in a file of {self.size} bytes")
        if count <= KEPT_STRINGS:
            return [self.text(MAX_TEXT) for _ in range(count)]
        data, position, end, number = self.data, self.position, len(self.data), int.from_bytes
        for done in range(count):  # a tight loop: a vocabulary has 300 000 of them
            position += 8 + number(data[position : position + 8], "little")
            if position > end:
                self.position = position
                self.take(8 * (count - done - 1))
                raise TruncatedError(position)
        self.position = position
        return {"type": "array", "length": count}


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse(data: bytes, size: int) -> dict[str, Any]:
    """The header in `data`, the first bytes of a file of `size` bytes.

    Raises TruncatedError when more bytes would help and HeaderError when they would not."""
    reader = Reader(data, size)
    if data[:4] != b"GGUF"[: len(data)]:
        raise HeaderError(f"not a GGUF file: it begins with {data[:4]!r}")
    reader.take(4)
    version = reader.number("I")
    if version not in (2, 3):
        raise HeaderError(
            "big-endian GGUF" if version & 0xFFFF == 0 and version else f"GGUF version {version} is not known"
        )
    tensor_count, pair_count = reader.number("Q"), reader.number("Q")
    if tensor_count > MAX_TENSORS or pair_count > MAX_PAIRS:
        raise HeaderError(
            f"{tensor_count} tensors and {pair_count} metadata pairs are more than any model has"
        )
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = reader.name()
        metadata[key] = reader.value(reader.number("I"))
    raw = [tensor(reader) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or isinstance(alignment, bool)
        or not 8 <= alignment <= 1 << 20
        or alignment & (alignment - 1)
    ):
        raise HeaderError(f"general.alignment is {alignment!r}")
    start = -(-reader.position // alignment) * alignment
    return {
        "format": "gguf",
        "version": version,
        "file_bytes": size,
        "metadata": metadata,
        "tensors": measured(raw, start, size),
    }


def tensor(reader: Reader) -> tuple[str, list[int], int, int]:
    name = reader.name()
    dimensions = reader.number("I")
    if not 0 < dimensions <= 4:
        raise HeaderError(f"tensor {name[:80]} has {dimensions} dimensions")
    return name, [reader.number("Q") for _ in range(dimensions)], reader.number("I"), reader.number("Q")


def measured(raw: list[tuple[str, list[int], int, int]], start: int, size: int) -> list[list[Any]]:
    """Each tensor with its bytes. A type newer than the table is as long as the way to its neighbour."""
    offsets = sorted({offset for _, _, _, offset in raw} | {max(0, size - start)})
    following = dict(zip(offsets, offsets[1:]))
    found: list[list[Any]] = []
    for name, dimensions, kind, offset in raw:
        elements = 1
        for d in dimensions:
            elements *= d
        if not 0 < elements < 1 << 62:
            raise HeaderError(f"tensor {name[:80]} has the dimensions {dimensions}")
        if kind in TYPES:
            word, block, block_bytes = TYPES[kind]
            if dimensions[0] % block:
                raise HeaderError(
                    f"tensor {name[:80]}: rows of {dimensions[0]} "
                    f"do not divide into blocks of {block} ({word})"
                )
            count = elements // block * block_bytes
        else:
            word, count = f"type-{kind}", following.get(offset, offset) - offset
        if start + offset + count > size:
            raise HeaderError(
                f"tensor {name[:80]} ends at byte {start + offset + count}, the file has {size}"
            )
        found.append([name, dimensions, word, count])
    return found


def header(path: str, size: int = 0) -> dict[str, Any]:
    """The header of one file. `size`: its true size, when it holds only the beginning."""
    with open(path, "rb") as f:
        there = os.fstat(f.fileno()).st_size
        size = size or there
        data, wanted = b"", FIRST_READ
        while True:
            data += f.read(min(wanted, there) - len(data))
            try:
                return parse(data, size)
            except TruncatedError as e:
                if len(data) >= there:
                    raise
                if e.need_bytes > MAX_HEADER:
                    raise HeaderError(f"a header of more than {MAX_HEADER} bytes") from e
                wanted = max(2 * wanted, e.need_bytes)


def document(path: str) -> dict[str, Any]:
    """The header of a file, or of all parts of a split one, joined."""
    part = PART.search(path)
    if not part or int(part.group(2)) < 2:
        return header(path)
    count = int(part.group(2))
    if count > 1000:
        raise HeaderError(f"a file in {count} parts")
    paths = [f"{path[: part.start()]}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    lacking = [os.path.basename(p) for p in paths if not os.path.exists(p)]
    if lacking:
        raise HeaderError("part missing: {}".format(", ".join(lacking[:4])))
    parts = [header(p) for p in paths]
    whole = parts[0]
    whole["tensors"] = [t for p in parts for t in p["tensors"]]
    whole["files"] = [[os.path.basename(p), h["file_bytes"]] for p, h in zip(paths, parts)]
    whole["file_bytes"] = sum(h["file_bytes"] for h in parts)
    return whole


def main(arguments: list[str]) -> int:
    """`gguf FILE [--size N]`: prints the header document; 3 and `need_bytes` when the file holds too little
    of it, 1 when it is no use."""
    size = 0
    if len(arguments) == 3 and arguments[1] == "--size" and arguments[2].isdigit():
        size = int(arguments[2])
    elif len(arguments) != 1:
        sys.stderr.write("usage: gguf FILE [--size N]\n")
        return USAGE_STATUS
    status = 0
    answer: dict[str, Any]
    try:
        answer = header(arguments[0], size) if size else document(arguments[0])
    except TruncatedError as e:
        status, answer = TRUNCATED_STATUS, {"error": str(e), "need_bytes": e.need_bytes}
    except (HeaderError, OSError) as e:
        status, answer = INVALID_STATUS, {"error": str(e)}
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    return status
