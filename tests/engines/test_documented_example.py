"""The worked example in docs/memory.md is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from homelab.engines import Device, Footprint, Request, llamacpp, vllm
from tests.models.examples import gguf, safetensors

CARD = Device(vendor="nvidia", name="RTX 4090", total_bytes=int(23.52 * 2**30), compute_capability="8.9")
REQUEST = Request(kind="chat", context=16384, concurrency=2)
DOCUMENT = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()


@pytest.mark.parametrize(
    "footprint",
    [
        llamacpp.footprint(gguf("qwen3-30b-a3b"), REQUEST, CARD),
        vllm.footprint(safetensors("qwen3-8b"), REQUEST, CARD),
    ],
    ids=["llamacpp", "vllm"],
)
def test_the_numbers_are_those_of_the_code(footprint: Footprint) -> None:
    for count in [t.bytes for t in footprint.terms if t.where != "host"] + [footprint.device_bytes]:
        assert f"{count:,}".replace(",", " ") in DOCUMENT
