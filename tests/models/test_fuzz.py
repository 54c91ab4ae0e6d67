"""Headers are written by strangers. Whatever is in them, the parsers answer with a shape or with an error
of ours, in bounded memory."""

from __future__ import annotations

import copy
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agent import gguf as reader
from agent import safetensors as folder
from homelab.engines import Device, Request, Unsupported, llamacpp, vllm
from homelab.errors import InventoryError
from homelab.models.header import from_header
from homelab.models.shape import ModelShape
from tests.models.examples import ARCHITECTURES, DATA, SAFETENSORS, gguf_document, safetensors_document

GPU = Device(vendor="nvidia", name="RTX 4090", total_bytes=24 * 2**30, compute_capability="8.9")
MIB = 2**20
LIMIT = 64 * MIB
NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64 - 1, 10**400]),
    st.floats(),
    st.sampled_from([float("inf"), float("nan")]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=12))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
LONG = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))


def shaped(document: Any) -> ModelShape | None:
    """A shape that both engines can reckon with, or None for an error of ours; memory stays bounded."""
    tracemalloc.start()
    try:
        shape = from_header(document)
        for engine in (llamacpp, vllm):
            for args in ({}, {"flash-attn": "off"} if engine is llamacpp else {"tensor-parallel-size": 2}):
                try:
                    footprint = engine.footprint(
                        shape, Request(kind="chat", context=4096, concurrency=2, args=args), GPU
                    )  # type: ignore[attr-defined]
                    assert all(t.bytes >= 0 for t in footprint.terms)
                except Unsupported:
                    continue
        return shape
    except InventoryError as e:
        assert len(e.message) < 2000
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < LIMIT


def base(name: str) -> dict[str, Any]:
    """A good document, small enough to be damaged often."""
    if name in SAFETENSORS:
        return copy.deepcopy(
            safetensors_document(
                name,
                groups={"model.embed_tokens.weight": [1, 100, "BF16"], "lm_head.weight": [1, 100, "BF16"]},
            )
        )
    return copy.deepcopy(ARCHITECTURES[name]["header"])  # type: ignore[no-any-return]


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value[:6]) if isinstance(value, list) else ()
    )
    return [(*at, k) for k, _ in inner] + [p for k, v in inner for p in paths(v, (*at, k))]


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    document = base(draw(st.sampled_from([*SAFETENSORS, *ARCHITECTURES])))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(paths(document) or [("format",)]))
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        if draw(st.booleans()) or not isinstance(inner, dict):
            inner[path[-1]] = draw(JSON)
        else:
            del inner[path[-1]]
    return document


@QUICK
@given(JSON)
def test_any_json_is_a_shape_or_an_error(document: Any) -> None:
    shaped(document)


@QUICK
@given(
    st.dictionaries(
        st.sampled_from(sorted({k for c in SAFETENSORS.values() for k in c.get("text_config", c)})),
        JSON,
        max_size=20,
    )
)
def test_any_configuration_is_a_shape_or_an_error(config: dict[str, Any]) -> None:
    shaped({"format": "safetensors", "config": config, "tensor_bytes": 10, "groups": {}})


@QUICK
@given(damaged())
def test_a_damaged_document_is_a_shape_or_an_error(document: Any) -> None:
    shaped(document)


@pytest.mark.slow
@LONG
@given(damaged())
def test_many_damaged_documents(document: Any) -> None:
    shaped(document)


def damage(data: bytes, changes: list[tuple[int, bytes]], end: int) -> bytes:
    out = bytearray(data)
    for at, patch in changes:
        at %= len(out)
        out[at : at + len(patch)] = patch
    return bytes(out[: end % (len(out) + 1)]) if end else bytes(out)


PATCHES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([2**64 - 1, 2**63, 2**32, 2**40, 0]).map(lambda n: struct.pack("<Q", n)),
)
CHANGES = st.lists(st.tuples(st.integers(0, 4000), PATCHES), min_size=1, max_size=6)


def read(data: bytes, size: int) -> None:
    tracemalloc.start()
    try:
        document = reader.parse(data, size)
    except (reader.HeaderError, reader.TruncatedError):
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < LIMIT  # never what the header asks for
    json.dumps(document, allow_nan=False)
    shaped(document)


@QUICK
@given(changes=CHANGES, end=st.integers(0, 40000), beyond=st.sampled_from([0, 2**40]))
def test_a_damaged_gguf_is_read_or_refused(changes: list[tuple[int, bytes]], end: int, beyond: int) -> None:
    data = damage((DATA / "gpt-oss-20b.gguf").read_bytes(), changes, end)
    read(data, len(data) + beyond)


@pytest.mark.slow
@LONG
@given(
    name=st.sampled_from(["qwen3-4b", "gemma3-4b", "qwen3.6-27b"]),
    changes=CHANGES,
    end=st.integers(0, 60000),
    beyond=st.sampled_from([0, 2**36]),
)
def test_many_damaged_gguf_files(name: str, changes: list[tuple[int, bytes]], end: int, beyond: int) -> None:
    data = damage((DATA / f"{name}.gguf").read_bytes(), changes, end)
    read(data, len(data) + beyond)


def lie(tensor: dict[str, Any] | bytes, length: int | None = None) -> bytes:
    head = tensor if isinstance(tensor, bytes) else json.dumps(tensor).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head


@QUICK
@given(
    document=st.one_of(JSON.map(lambda v: json.dumps({"a": v}).encode()), st.binary(max_size=60)),
    length=st.none() | st.sampled_from([0, 2**63, 2**30]),
)
def test_a_damaged_safetensors_folder_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, document: bytes, length: int | None
) -> None:
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(SAFETENSORS["qwen3-4b"]))
    (path / "model.safetensors").write_bytes(lie(document, length))
    try:
        shaped(folder.document(str(path)))
    except reader.HeaderError:
        return


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"qwen3.block_count": 2**40}, "layers"),
        ({"qwen3.block_count": -3}, "layers"),
        ({"qwen3.embedding_length": -1}, "hidden"),
        ({"qwen3.embedding_length": "wide"}, "no sense"),
        ({"qwen3.attention.head_count": [2**70] * 36}, "heads"),
    ],
)
def test_absurd_values_are_named(change: dict[str, Any], said: str) -> None:
    document = copy.deepcopy(gguf_document("qwen3-4b"))
    document["metadata"] |= change
    with pytest.raises(InventoryError, match=said):
        from_header(document)


def test_a_header_that_promises_more_than_there_is_costs_nothing(tmp_path: Path) -> None:
    """Counts and lengths near 2**64 are compared with the file before anything is made of them."""
    data = (DATA / "qwen3-4b.gguf").read_bytes()
    for at in (8, 16, 24):  # tensors, pairs, the length of the first key
        path = tmp_path / f"{at}.gguf"
        path.write_bytes(data[:at] + struct.pack("<Q", 2**62) + data[at + 8 :])
        tracemalloc.start()
        with pytest.raises(reader.HeaderError):
            reader.document(str(path))
        assert tracemalloc.get_traced_memory()[1] < MIB
        tracemalloc.stop()
