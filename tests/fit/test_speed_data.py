"""The published speeds that predictions are fitted to and checked with: that every row says enough to be
predicted, and nothing that cannot be."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from homelab.fit_command import load_catalog
from homelab.models.shape import ModelShape
from homelab.pipeline import load_cards

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench" / "fit"))
household = importlib.import_module("household")

DATA = ROOT / "bench" / "fit" / "data" / "speed.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in DATA.read_text().splitlines()]
COUNTED = [row for row in ROWS if "left_out" not in row]
BACKENDS = {"llamacpp": {"CUDA", "ROCm", "Vulkan", "Metal", "SYCL", "CPU"}, "vllm": {"CUDA", "ROCm"}}
VENDORS = {"CUDA": {"nvidia"}, "ROCm": {"amd"}, "Metal": {"apple"}, "SYCL": {"intel"}}
# What decides how many bytes a token reads, of a model that the catalog does not have.
DIMENSIONS = ("parameters", "active", "layers", "kv_heads", "head_dim", "hidden", "vocab", "bytes")
# A source is a repository at a commit with a file, an issue, or a page.
SOURCE = re.compile(r"[\w.-]+/[\w.-]+(@[0-9a-f]{7,40}:\S+|#\d+)|https://\S+")


def _case(row: dict[str, Any]) -> str:
    return str(row["case"])


def _gb_per_s(row: dict[str, Any]) -> float | None:
    """What is known of the memory: of a CPU perhaps nothing."""
    return load_cards().entries[row["card"]].gb_per_s if row["card"] else row["cpu"]["gb_per_s"]


def _read(row: dict[str, Any]) -> float:
    """The least that one token reads: weights without input table and idle experts, no cache."""
    model = row["model"]
    if "catalog" not in model:
        table = 0 if model.get("tied") else model["vocab"] * model["hidden"] / model["parameters"]
        return float(model["bytes"] * (1 - table) * model["active"] / model["parameters"])
    shape = household.shape(row)
    if shape.experts and not shape.expert_bytes:  # safetensors do not say which bytes are experts'
        same = household.shape({**row, "model": {"catalog": model["catalog"], "weights": "BF16"}})
        return float(shape.weights_bytes * _active_bytes(same) / same.weights_bytes)
    return _active_bytes(shape)


def _active_bytes(shape: ModelShape) -> float:
    used = shape.experts_used / shape.experts if shape.experts else 1
    idle = shape.lookup_bytes + shape.vision_bytes + shape.mtp_bytes
    idle += 0 if shape.tied_embeddings else shape.embedding_bytes
    return shape.weights_bytes - idle - shape.expert_bytes * (1 - used)


def test_there_are_enough_rows_of_enough_cards_and_of_every_backend() -> None:
    assert len(COUNTED) >= 80
    assert len({row["card"] for row in COUNTED}) >= 15
    assert {(row["engine"], row["backend"]) for row in COUNTED} >= {
        ("llamacpp", backend) for backend in ("CUDA", "ROCm", "Vulkan", "Metal")
    } | {("vllm", "CUDA")}
    assert len({(row["source"], row["case"]) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", COUNTED, ids=_case)
def test_a_row_says_what_was_measured_on_what(row: dict[str, Any]) -> None:
    assert SOURCE.match(row["source"]), row["source"]
    assert row["date"] is None or date.fromisoformat(row["date"])
    assert row["backend"] in BACKENDS[row["engine"]]
    if row["card"] is None:
        assert row["backend"] == "CPU" and row["cpu"]["name"] and row["cpu"]["gb_per_s_source"]
    else:
        card = load_cards().entries[row["card"]]
        assert card.vendor in VENDORS.get(row["backend"], {card.vendor})
    assert row["count"] >= 1 and row["concurrency"] == 1 and row["speculative"] >= 0
    assert isinstance(row["context_tokens"], int) and row["context_tokens"] >= 0
    speeds = [row[name] for name in ("decode", "prefill") if row[name] is not None]
    assert speeds and all(speed > 0 for speed in speeds)
    if row["prefill"] is not None:
        assert row["prefill_tokens"] > 0 and row["prefill_context_tokens"] >= 0


@pytest.mark.parametrize("row", COUNTED, ids=_case)
def test_a_model_is_the_catalogs_or_described_in_full(row: dict[str, Any]) -> None:
    model = row["model"]
    if "catalog" not in model:
        assert model["name"] and model["weights"] and all(model[name] for name in DIMENSIONS)
        assert model["active"] <= model["parameters"]
        return
    assert model["catalog"] in load_catalog().entries
    shape = household.shape(row)
    if model["bytes"] and "mtp" not in model:
        assert shape.weights_bytes == pytest.approx(model["bytes"], rel=1e-3)


@pytest.mark.parametrize("row", [r for r in COUNTED if r["decode"] and _gb_per_s(r)], ids=_case)
def test_no_card_reads_faster_than_its_memory(row: dict[str, Any]) -> None:
    """A wrong model, quantisation or card shows here: each pass gives at most what was drafted and one
    more, and reads at least the active weights."""
    passes = row["decode"] / (row["speculative"] + 1)
    assert passes * _read(row) < (_gb_per_s(row) or 0) * 1e9 * row["count"]


def test_a_row_is_left_out_for_as_long_as_its_reason_holds() -> None:
    for row in ROWS:
        if row.get("left_out") == "cards.yml does not have its card":
            assert row["card"] not in load_cards().entries, f"{row['case']} can be counted now"


def test_rows_are_held_out_by_what_they_measure() -> None:
    """By a hash of card, engine, backend and model, so that rows that differ in the context alone are on
    one side, and nobody's figures decide."""
    for row in ROWS:
        model = row["model"]
        name = row["card"] or row["cpu"]["name"]
        key = f"{name} {row['engine']} {row['backend']} {model.get('catalog') or model['name']}"
        assert row["held_out"] is (hashlib.sha256(key.encode()).digest()[0] % 2 == 1), row["case"]
    assert 0.3 < sum(row["held_out"] for row in COUNTED) / len(COUNTED) < 0.7
