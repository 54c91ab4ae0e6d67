"""Reads a model folder of safetensors files into a document: the configuration, and where the
bytes of the tensors are."""

from __future__ import annotations

import json
import os
import re
import struct
from typing import Any

from .gguf import HeaderError

MAX_HEADER = 100_000_000  # the format's own limit (safetensors 0.5, MAX_HEADER_SIZE)
MAX_JSON = 1 << 26
MAX_NAME = 512
INDEX = "model.safetensors.index.json"
DIGITS = re.compile(r"\d+")


def load(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8", "replace"), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as e:
        raise HeaderError(f"{what} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise HeaderError(f"{what} is not a JSON object")
    return value


def load_file(path: str) -> dict[str, Any]:
    if os.path.getsize(path) > MAX_JSON:
        raise HeaderError(f"{os.path.basename(path)} is larger than {MAX_JSON} bytes")
    with open(path, "rb") as f:
        return load(f.read(MAX_JSON), os.path.basename(path))


def header(path: str) -> dict[str, Any]:
    """The header of one file: name -> {"dtype", "shape", "bytes"}. A tensor that ends
    beyond the file is an error."""
    size, short = os.path.getsize(path), os.path.basename(path)
    with open(path, "rb") as f:
        first = f.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if length > MAX_HEADER or 8 + length > size:
            raise HeaderError(f"{short} is not complete, or not a safetensors file")
        entries = load(f.read(length), short)
    entries.pop("__metadata__", None)
    found = {}
    for name, entry in entries.items():
        try:
            start, end = entry["data_offsets"]
            dtype, shape = entry["dtype"], list(entry["shape"])
            valid = 0 <= start <= end and isinstance(dtype, str)
        except (TypeError, KeyError, ValueError):
            valid = False
        if not valid or len(name) > MAX_NAME:
            raise HeaderError(f"{short}: the entry of tensor {name[:80]} is not valid")
        if 8 + length + end > size:
            raise HeaderError(
                f"{short}: tensor {name[:80]} ends at byte {8 + length + end}, the file has {size}"
            )
        found[name] = {"dtype": dtype, "shape": shape, "bytes": end - start}
    return found


def shards(directory: str) -> list[str]:
    """The files that the index names, else all there are. `consolidated*` are Mistral's second
    copy of the same weights."""
    index = os.path.join(directory, INDEX)
    if os.path.exists(index):
        weight_map = load_file(index).get("weight_map")
        names = sorted({str(v) for v in weight_map.values()}) if isinstance(weight_map, dict) else []
        if not names or any(os.path.basename(n) != n for n in names):
            raise HeaderError(f"{INDEX} names no files")
        return names
    names = sorted(n for n in os.listdir(directory) if n.endswith(".safetensors"))
    return [n for n in names if not n.startswith("consolidated")] or names


def lacking(directory: str) -> list[str]:
    """What the folder needs to be a complete model and does not have."""
    names = ["config.json"] + (shards(directory) or ["*.safetensors"])
    return [n for n in names if not os.path.exists(os.path.join(directory, n))]


def document(directory: str) -> dict[str, Any]:
    missing = lacking(directory)
    if missing:
        raise HeaderError("missing: {}".format(", ".join(missing[:4])))
    config = load_file(os.path.join(directory, "config.json"))
    files: list[list[Any]] = []
    dtypes: dict[str, int] = {}
    groups: dict[str, list[Any]] = {}
    total = 0
    for name in shards(directory):
        path = os.path.join(directory, name)
        files.append([name, os.path.getsize(path)])
        for tensor, entry in header(path).items():
            total += entry["bytes"]
            dtypes[entry["dtype"]] = dtypes.get(entry["dtype"], 0) + entry["bytes"]
            pattern = DIGITS.sub("*", tensor)
            if groups.get(pattern, [0, 0, entry["dtype"]])[2] != entry["dtype"]:
                pattern += " " + entry["dtype"]  # some layers of a quantised model are left as they were
            group = groups.setdefault(pattern, [0, 0, entry["dtype"]])
            group[0] += 1
            group[1] += entry["bytes"]
    found: dict[str, Any] = {
        "format": "safetensors",
        "config": config,
        "tensor_bytes": total,
        "dtypes": dtypes,
        "groups": groups,
        "files": files,
    }
    generation = os.path.join(directory, "generation_config.json")
    if os.path.exists(generation):
        found["generation_config"] = load_file(generation)
    text = config.get("text_config")
    found["quantization"] = config.get("quantization_config") or (
        text.get("quantization_config") if isinstance(text, dict) else None
    )
    return found
