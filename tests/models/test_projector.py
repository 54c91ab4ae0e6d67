"""Vision projectors beside a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from homelab.engines import ArgValue, Device, Request, Term, llamacpp
from homelab.errors import InventoryError
from homelab.models.header import from_header
from homelab.models.projector import UNKNOWN_BYTES, UNKNOWN_COMPUTE, Projector, projectors
from tests.models.examples import gguf, gguf_document

MIB = 2**20
GPU = Device(vendor="nvidia", name="RTX 3090", total_bytes=24 * 2**30)


def header(
    kind: str, hidden: int, wide: int, heads: int, *, gated: bool = False, deepstack: int = 0, **more: Any
) -> dict[str, Any]:
    names = [
        "v.blk.0.ffn_up.weight",
        *(["v.blk.0.ffn_gate.weight"] if gated else []),
        *(f"v.deepstack.{i}.fc2.weight" for i in range(deepstack)),
    ]
    vision = {
        "embedding_length": hidden,
        "feed_forward_length": wide,
        "attention.head_count": heads,
        "projection_dim": 5120,
        "patch_size": 14,
    }
    metadata = {"clip.projector_type": kind} | {
        f"clip.vision.{key}": value for key, value in (vision | more).items()
    }
    return {
        "format": "gguf",
        "file_bytes": 9000,
        "metadata": metadata,
        "tensors": [[n, [10, 100], "F16", 2000] for n in names],
    }


GEMMA3, QWEN3 = (
    header("gemma3", 1152, 4304, 16, projection_dim=3840),
    header("qwen3vl_merger", 1152, 4304, 16, deepstack=3),
)


def one(document: Any) -> Projector:
    (found,) = projectors({"projectors": {"mmproj.gguf": document}})
    return found


@pytest.mark.parametrize(
    ("document", "tokens", "flash", "said_mib"),
    [
        (GEMMA3, None, True, 121.25),
        (GEMMA3, 64, True, 121.25),  # its images have one size
        (GEMMA3, None, False, 1132.0),
        (QWEN3, 2116, True, 417.54),
        (QWEN3, 256, True, 50.52),
        (QWEN3, 2116, False, 4769.39),
        (header("qwen3vl_merger", 1152, 4304, 16), 2116, True, 248.1),
        (
            header("qwen2.5vl_merger", 1280, 3420, 16, gated=True, projection_dim=3584, n_wa_pattern=8),
            2116,
            True,
            569.7,
        ),
        (header("pixtral", 1024, 4096, 16, gated=True, spatial_merge_size=2), 256, True, 64.62),
    ],
)
def test_its_buffer_is_never_larger(
    document: dict[str, Any], tokens: int | None, flash: bool, said_mib: float
) -> None:
    """As `mtmd_get_memory_usage` of llama.cpp b11549 says of projectors with these dimensions, for
    images of so many tokens."""
    assert said_mib <= one(document).compute_bytes(tokens, flash=flash) / MIB <= said_mib * 1.5


def test_the_largest_image_is_counted_unless_the_user_allows_only_smaller_ones() -> None:
    """llama.cpp reserves for 2 116 tokens and grows when a larger image comes."""
    assert one(QWEN3).compute_bytes(None, flash=True) == one(QWEN3).compute_bytes(4096, flash=True)
    larger = one(header("qwen3vl_merger", 1152, 4304, 16, deepstack=3, image_max_pixels=8192 * 28 * 28))
    assert larger.tokens == 8192


@pytest.mark.parametrize(
    "document", [header("a new kind", 1152, 4304, 16), header("gemma3", 0, 0, 0), {"file_bytes": 5}]
)
def test_what_is_not_known_gets_a_gibibyte(document: dict[str, Any]) -> None:
    assert one(document).compute_bytes(None, flash=True) == UNKNOWN_COMPUTE


@pytest.mark.parametrize(
    "beside",
    [
        3,
        {"m": 3},
        {"m": {"tensors": 3, "metadata": {}}},
        {"m": {"file_bytes": -1}},
        {"m": {"file_bytes": "x"}},
    ],
)
def test_a_damaged_one_is_an_error_of_ours(beside: Any) -> None:
    with pytest.raises(InventoryError):
        from_header(gguf_document("qwen3-4b") | {"projectors": beside})


def terms(args: dict[str, ArgValue], *known: Projector) -> dict[str, Term]:
    shape = replace(gguf("gemma3-4b"), projectors=known)
    found = llamacpp.footprint(
        shape, Request(kind="chat", context=4096, concurrency=1, args=llamacpp.canonical(args)), GPU
    ).terms
    return {t.name: t for t in found if t.name.startswith("projector")}


def test_it_is_counted_where_it_lies() -> None:
    near, big = replace(one(GEMMA3), name="mmproj-F16.gguf"), Projector(name="mmproj-F32.gguf", bytes=7000)
    assert terms({}, near) == terms({"no-mmproj": True}, near) == terms({"mmproj-auto": False}, near) == {}
    named = terms({"mmproj": "/models/mmproj-F16.gguf"}, near, big)
    assert (named["projector"].bytes, named["projector"].grade, named["projector"].where) == (
        2000,
        "exact",
        "device",
    )
    assert named["projector_compute"].grade == "bounded"
    assert (
        terms({"--mm": "/models/mmproj-F16.gguf", "no-mmproj-offload": True}, near)["projector"].where
        == "host"
    )
    largest = terms({"mmproj-auto": True}, near, big)
    assert (largest["projector"].bytes, largest["projector"].grade, largest["projector_compute"].grade) == (
        7000,
        "bounded",
        "empirical",
    )
    guess = terms({"mmproj-url": "https://example.org/a.gguf"})
    assert (guess["projector"].bytes, guess["projector"].grade) == (UNKNOWN_BYTES, "empirical")
