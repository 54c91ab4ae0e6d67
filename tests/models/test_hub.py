"""Against a hub of our own on this machine: the few addresses that reading a header takes."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab.errors import InventoryError, NodeError
from homelab.models import hub
from homelab.models.header import from_header
from tests.models.examples import DATA, FILE_BYTES, SAFETENSORS
from tests.models.stand_in_hub import Hub, serving


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving() as made:
        yield made


def safetensors_file(tensors: dict[str, list[int]]) -> tuple[bytes, int]:
    at, entries = 0, {}
    for name, shape in tensors.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header, 8 + len(header) + at


def put_gguf(house: Hub, repo: str, name: str, model: str = "qwen3-4b") -> None:
    house.add(repo, name, (DATA / f"{model}.gguf").read_bytes(), FILE_BYTES[model])


def test_a_quantisation_is_read_by_ranges(house: Hub, tmp_path: Path) -> None:
    put_gguf(house, "Qwen/Q-GGUF", "Q-Q4_K_M.gguf")
    put_gguf(house, "Qwen/Q-GGUF", "Q-Q8_0.gguf", "qwen3-14b")
    document = hub.read_header("Qwen/Q-GGUF:q4_k_m", endpoint=house.url, cache_dir=tmp_path)
    assert document["file_bytes"] == FILE_BYTES["qwen3-4b"]
    assert document["files"] == [["Q-Q4_K_M.gguf", FILE_BYTES["qwen3-4b"]]]
    assert from_header(document).hidden == 2560
    assert house.sent < 6 * 2**20


def test_a_server_without_ranges_is_not_read_to_the_end(house: Hub, tmp_path: Path) -> None:
    house.ranges = False
    house.add("a/b", "b-Q4_K_M.gguf", (DATA / "qwen3-4b.gguf").read_bytes(), FILE_BYTES["qwen3-4b"])
    house.files["a/b"]["b-Q4_K_M.gguf"] = (house.files["a/b"]["b-Q4_K_M.gguf"][0], 40 * 2**20)
    with pytest.raises(InventoryError, match="not a GGUF") as error:
        hub.read_header("a/b:Q4_K_M", endpoint=house.url, cache_dir=tmp_path)
    assert "ends at byte" in error.value.cause  # the header says more than these 40 MB


def test_more_is_fetched_until_the_header_is_whole(
    house: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "FIRST_BYTES", 1000)
    put_gguf(house, "a/b", "b-Q4_K_M.gguf")
    assert hub.read_header("a/b:Q4_K_M", endpoint=house.url, cache_dir=tmp_path)["version"] == 3
    assert sum("resolve" in path for path in house.asked) > 3


def test_all_parts_of_a_split_file_are_joined(house: Hub, tmp_path: Path) -> None:
    for i in (1, 2):
        put_gguf(house, "a/b", f"Q4_K_M/b-Q4_K_M-0000{i}-of-00002.gguf")
    document = hub.read_header("a/b:Q4_K_M", endpoint=house.url, cache_dir=tmp_path)
    assert document["file_bytes"] == 2 * FILE_BYTES["qwen3-4b"]
    assert len(document["tensors"]) == 2 * 398
    del house.files["a/b"]["Q4_K_M/b-Q4_K_M-00002-of-00002.gguf"]
    with pytest.raises(InventoryError, match="lacks parts"):
        hub.read_header("a/b:Q4_K_M", endpoint=house.url, cache_dir=tmp_path / "other")


def test_safetensors_headers_make_the_agents_document(house: Hub, tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": [1000, 8],
        **{f"model.layers.{i}.mlp.experts.{j}.up_proj.weight": [8, 8] for i in (0, 1) for j in range(4)},
    }
    house.add("Qwen/Q", "config.json", json.dumps(SAFETENSORS["qwen3-4b"]).encode())
    house.add("Qwen/Q", "model.safetensors", *safetensors_file(tensors))
    document = hub.read_header("Qwen/Q", endpoint=house.url, cache_dir=tmp_path)
    assert document["groups"] == {
        "model.embed_tokens.weight": [1, 16000, "BF16"],
        "model.layers.*.mlp.experts.*.up_proj.weight": [8, 1024, "BF16"],
    }
    assert document["tensor_bytes"] == 17024
    assert from_header(document).weights_bytes == 17024


def test_a_second_reading_asks_only_for_the_commit(house: Hub, tmp_path: Path) -> None:
    put_gguf(house, "a/b", "b-Q4_K_M.gguf")
    first = hub.read_header("a/b:Q4_K_M", endpoint=house.url, cache_dir=tmp_path)
    house.asked.clear()
    assert hub.read_header("a/b:Q4_K_M", endpoint=house.url, cache_dir=tmp_path) == first
    assert house.asked == ["/api/models/a/b"]


def test_without_network_the_last_reading_is_the_answer(house: Hub, tmp_path: Path) -> None:
    put_gguf(house, "a/b", "b-Q4_K_M.gguf")
    first = hub.read_header("a/b:Q4_K_M", endpoint=house.url, cache_dir=tmp_path)
    nowhere = "http://127.0.0.1:9"
    assert hub.read_header("a/b:Q4_K_M", endpoint=nowhere, cache_dir=tmp_path) == first
    with pytest.raises(NodeError, match=r"cannot be read from http://127\.0\.0\.1:9") as error:
        hub.read_header("a/other:Q4_K_M", endpoint=nowhere, cache_dir=tmp_path)
    assert error.value.cause


def test_a_missing_quantisation_names_those_there_are(house: Hub, tmp_path: Path) -> None:
    put_gguf(house, "a/b", "b-Q4_K_M.gguf")
    put_gguf(house, "a/b", "b.Q8_0-00001-of-00002.gguf")
    house.add("a/b", "mmproj-F16.gguf", b"")
    with pytest.raises(InventoryError, match="Q5_K_M") as error:
        hub.read_header("a/b:Q5_K_M", endpoint=house.url, cache_dir=tmp_path)
    assert error.value.cause == "It has Q4_K_M, Q8_0"


@pytest.mark.parametrize(
    ("status", "code", "message", "hint"),
    [
        (404, "RepoNotFound", "is not on the hub", "spelling"),
        (401, "RepoNotFound", "is not on the hub", "HF_TOKEN"),
        (403, "GatedRepo", "is gated", "Accept its licence"),
        (500, "", "cannot be read", "online"),
    ],
)
def test_refusals_say_what_to_do(
    house: Hub, tmp_path: Path, status: int, code: str, message: str, hint: str
) -> None:
    house.answer["a/b"] = (status, code)
    with pytest.raises((InventoryError, NodeError), match=message) as error:
        hub.read_header("a/b", endpoint=house.url, cache_dir=tmp_path)
    assert hint in error.value.hint
    assert error.value.cause


def test_a_repository_without_weights(house: Hub, tmp_path: Path) -> None:
    house.add("a/b", "README.md", b"#")
    with pytest.raises(InventoryError, match="no model weights"):
        hub.read_header("a/b", endpoint=house.url, cache_dir=tmp_path)


def test_a_file_on_this_machine(tmp_path: Path) -> None:
    whole = tmp_path / "m.gguf"
    whole.write_bytes((DATA / "qwen3-4b.gguf").read_bytes())
    with whole.open("r+b") as file:
        file.truncate(FILE_BYTES["qwen3-4b"])  # sparse
    assert hub.read_file(whole)["file_bytes"] == FILE_BYTES["qwen3-4b"]
    other = tmp_path / "other.gguf"
    other.write_bytes(b"no model")
    with pytest.raises(InventoryError, match="not a model"):
        hub.read_file(other)


@pytest.mark.parametrize(
    ("names", "quant", "chosen"),
    [
        (["a-Q4_K_M.gguf", "a-Q8_0.gguf"], None, ["a-Q4_K_M.gguf"]),
        (["a-Q8_0.gguf", "a-F16.gguf"], None, ["a-Q8_0.gguf"]),
        (["a-F16.gguf"], None, ["a-F16.gguf"]),
        (["a-UD-Q4_K_XL.gguf", "a-Q4_K_M.gguf"], "Q4_K_XL", ["a-UD-Q4_K_XL.gguf"]),
        (["mmproj-Q8_0.gguf", "a-Q8_0.gguf"], "Q8_0", ["a-Q8_0.gguf"]),
        (["Q8_0/a-00001-of-00002.gguf"], "Q8_0", []),  # llama.cpp wants `.` or `-` after the name
        (
            ["a-Q8_0-00002-of-00002.gguf", "a-Q8_0-00001-of-00002.gguf"],
            "q8_0",
            ["a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"],
        ),
    ],
)
def test_the_file_that_llama_cpp_would_take(names: list[str], quant: str | None, chosen: list[str]) -> None:
    assert hub.choose_gguf(names, quant) == chosen


@pytest.mark.parametrize("sha", ["../../../escaped", "0123456789abcdef/..", "main", 5, "G" * 40])
def test_a_hub_that_names_no_commit_writes_nothing_anywhere(house: Hub, tmp_path: Path, sha: object) -> None:
    put_gguf(house, "a/b", "b-Q4_K_M.gguf")
    house.sha = sha
    with pytest.raises(NodeError, match="cannot be read") as error:
        hub.read_header("a/b:Q4_K_M", endpoint=house.url, cache_dir=tmp_path / "a/b/cache")
    assert "commit" in error.value.cause
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("less", [1, 2**30])
def test_a_range_that_comes_short_or_empty_is_an_error_and_not_asked_for_again(
    house: Hub, tmp_path: Path, less: int
) -> None:
    put_gguf(house, "a/b", "b-Q4_K_M.gguf")
    house.short_by = less
    with pytest.raises(NodeError, match="cannot be read") as error:
        hub.read_header("a/b:Q4_K_M", endpoint=house.url, cache_dir=tmp_path)
    assert f"of {4 * 2**20} bytes" in error.value.cause
    assert len(house.asked) == 2


def test_a_hub_that_drips_is_left_after_a_time(
    house: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(hub, "SLOWEST_BYTES_PER_S", 2**40)
    put_gguf(house, "a/b", "b-Q4_K_M.gguf")
    house.drip_seconds = 0.05
    begun = time.monotonic()
    with pytest.raises(NodeError, match="cannot be read") as error:
        hub.read_header("a/b:Q4_K_M", endpoint=house.url, cache_dir=tmp_path)
    assert "took longer than" in error.value.cause
    assert time.monotonic() - begun < 5


def test_a_header_of_safetensors_that_claims_more_than_there_is_is_refused(
    house: Hub, tmp_path: Path
) -> None:
    house.add("a/b", "config.json", b"{}")
    house.add("a/b", "model.safetensors", struct.pack("<Q", 2**40) + b"{}", 2**41)
    with pytest.raises(InventoryError, match="not safetensors") as error:
        hub.read_header("a/b", endpoint=house.url, cache_dir=tmp_path)
    assert "header" in error.value.cause
    assert house.sent < 2**20


def test_the_parts_of_a_safetensors_model_are_read_by_its_index(house: Hub, tmp_path: Path) -> None:
    house.add("a/b", "config.json", json.dumps(SAFETENSORS["qwen3-4b"]).encode())
    for part in ("1", "2"):
        house.add("a/b", f"{part}.safetensors", *safetensors_file({f"{part}.weight": [1000, 8]}))
    index = {"weight_map": {"1.weight": "1.safetensors", "2.weight": "2.safetensors"}}
    house.add("a/b", "model.safetensors.index.json", json.dumps(index).encode())
    document = hub.read_header("a/b", endpoint=house.url, cache_dir=tmp_path)
    assert [name for name, _ in document["files"]] == ["1.safetensors", "2.safetensors"]
    assert document["tensor_bytes"] == 32000
    del house.files["a/b"]["2.safetensors"]
    with pytest.raises(InventoryError, match="lacks parts"):
        hub.read_header("a/b", endpoint=house.url, cache_dir=tmp_path / "other")
