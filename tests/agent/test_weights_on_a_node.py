from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import gguf, safetensors, weights
from tests.agent import gguf_file

COMMIT = "0" * 40


def safetensors_file(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    head = json.dumps(entries).encode()
    return struct.pack("<Q", len(head)) + head + bytes(position)


def model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "num_hidden_layers": 2,
        "quantization_config": {"quant_method": "awq"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    first = {f"model.layers.{i}.mlp.down_proj.qweight": ("I32", [8, 4], 128) for i in range(2)}
    (folder / "model-00001-of-00002.safetensors").write_bytes(safetensors_file(first))
    second = {
        "model.embed_tokens.weight": ("BF16", [16, 4], 128),
        "model.layers.0.mlp.gate.weight": ("F32", [4], 16),
        "model.layers.1.mlp.gate.weight": ("BF16", [4], 8),
    }
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors_file(second))
    index = dict.fromkeys(first, "model-00001-of-00002.safetensors") | dict.fromkeys(
        second, "model-00002-of-00002.safetensors"
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def into_hub(hub: Path, repository: str, files: dict[str, bytes]) -> Path:
    """Files as huggingface_hub lays them: blobs, and a snapshot of links to them."""
    folder = hub / ("models--" + repository.replace("/", "--"))
    snapshot = folder / "snapshots" / COMMIT
    for i, (name, content) in enumerate(files.items()):
        blob = folder / "blobs" / f"{i:064x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path / "hf" / "hub"


def test_a_folder_of_safetensors_is_read(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    found = weights.look(str(folder))
    assert (found["present"], found["error"], found["path"]) == (True, None, str(folder))
    header = found["header"]
    assert header["tensor_bytes"] == 2 * 128 + 128 + 16 + 8
    assert header["dtypes"] == {"I32": 256, "BF16": 136, "F32": 16}
    assert header["groups"] == {
        "model.layers.*.mlp.down_proj.qweight": [2, 256, "I32"],
        "model.embed_tokens.weight": [1, 128, "BF16"],
        "model.layers.*.mlp.gate.weight": [1, 16, "F32"],
        "model.layers.*.mlp.gate.weight BF16": [1, 8, "BF16"],
    }
    assert header["quantization"] == {"quant_method": "awq"}
    assert header["generation_config"] == {"temperature": 0.6}
    assert sum(size for _, size in header["files"]) == found["bytes"]


def test_a_gguf_is_found_under_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(gguf_file.small())
    found = weights.look("~/m.gguf")
    assert (found["path"], found["bytes"]) == (str(tmp_path / "m.gguf"), len(gguf_file.small()))
    assert found["header"]["metadata"]["general.architecture"] == "llama"
    assert weights.look(str(tmp_path))["path"] == str(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("/no/such.gguf", "no such file on this node"),
        ("/no/such/folder", "no such file on this node"),
        ("what is this", "neither a path nor a repository"),
    ],
)
def test_what_is_not_there_is_said(source: str, error: str) -> None:
    found = weights.look(source)
    assert (found["present"], found["error"]) == (False, error)


def test_a_model_that_lacks_a_shard_is_not_complete(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert weights.look(str(folder))["error"] == "missing: model-00002-of-00002.safetensors"


def test_a_repository_in_the_cache_is_present_when_it_is_complete(hub: Path, tmp_path: Path) -> None:
    assert weights.look("Org/Repo") == {
        "source": "Org/Repo",
        "path": None,
        "present": False,
        "bytes": 0,
        "header": None,
        "error": None,
    }
    files = {p.name: p.read_bytes() for p in model(tmp_path / "m").iterdir()}
    snapshot = into_hub(hub, "Org/Repo", files)
    found = weights.look("Org/Repo")
    assert (found["present"], found["path"], found["bytes"]) == (
        True,
        str(snapshot),
        sum(map(len, files.values())),
    )
    assert found["header"]["config"]["num_hidden_layers"] == 2

    unfinished = hub / "models--Org--Repo" / "blobs" / "abc.incomplete"
    unfinished.write_bytes(bytes(100))
    found = weights.look("Org/Repo")
    assert (found["present"], found["bytes"]) == (False, sum(map(len, files.values())) + 100)
    os.utime(unfinished, (1, 1))
    assert weights.look("Org/Repo")["present"]
    unfinished.unlink()
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    assert weights.look("Org/Repo")["present"] is False


def test_a_quantisation_is_present_when_its_own_file_is(hub: Path) -> None:
    whole = gguf_file.small()
    files = {
        "m-Q8_0.gguf": whole + b"longer",
        "m-q4_k_m.gguf": whole,
        "mmproj-m-Q4_K_M.gguf": b"GGUF",
        "README.md": b"x",
        "config.json": b"{}",
    }
    snapshot = into_hub(hub, "Org/Repo-GGUF", files)
    (hub / "models--Org--Repo-GGUF" / "blobs" / "other.incomplete").write_bytes(b"x")
    found = weights.look("Org/Repo-GGUF:Q4_K_M")
    assert (found["present"], found["path"], found["bytes"]) == (
        True,
        str(snapshot / "m-q4_k_m.gguf"),
        len(whole),
    )
    assert found["header"]["format"] == "gguf"
    assert weights.look("Org/Repo-GGUF")["path"] == str(snapshot / "m-q4_k_m.gguf")
    missing = weights.look("Org/Repo-GGUF:Q5_K_M")
    assert (missing["present"], missing["bytes"], missing["error"]) == (False, 0, None)


def test_projectors_beside_a_model_are_described(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_file.small())
    (tmp_path / "mmproj-F16.gguf").write_bytes(gguf_file.small())
    (tmp_path / "mmproj-cut.gguf").write_bytes(gguf_file.small()[:40])
    found = weights.look(str(tmp_path / "m.gguf"))["header"]["projectors"]
    assert found["mmproj-F16.gguf"]["tensors"][0][0] == "token_embd.weight"
    assert found["mmproj-cut.gguf"] == {"file_bytes": 40}


def test_a_repository_that_has_both_is_the_safetensors_one(hub: Path, tmp_path: Path) -> None:
    files = {p.name: p.read_bytes() for p in model(tmp_path / "m").iterdir()}
    into_hub(hub, "Org/Both", files | {"m-Q8_0.gguf": gguf_file.small()})
    assert weights.look("Org/Both")["header"]["format"] == "safetensors"
    assert weights.look("Org/Both:Q8_0")["header"]["format"] == "gguf"


def test_a_split_quantisation_needs_all_its_parts(hub: Path) -> None:
    files = {}
    for i, name in enumerate(("token_embd.weight", "output.weight")):
        head = gguf_file.header(gguf_file.PAIRS[:2], [gguf_file.tensor(name, [256], gguf_file.F32, 0)])
        files[f"Q4_K_M/m-Q4_K_M-{i + 1:05d}-of-00002.gguf"] = gguf_file.padded(head) + bytes(1024)
    snapshot = into_hub(hub, "Org/Big", files)
    found = weights.look("Org/Big:Q4_K_M")
    assert found["present"]
    assert found["bytes"] == sum(map(len, files.values()))
    (snapshot / "Q4_K_M" / "m-Q4_K_M-00002-of-00002.gguf").unlink()
    found = weights.look("Org/Big:Q4_K_M")
    assert (found["present"], found["bytes"]) == (False, len(next(iter(files.values()))))


def test_a_cut_off_file_is_an_error(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_file.small()[:-1])
    assert "ends at byte" in weights.look(str(tmp_path / "m.gguf"))["error"]
    (tmp_path / "m.gguf").write_bytes(gguf_file.small()[:200])
    assert "beyond the end of the file" in weights.look(str(tmp_path / "m.gguf"))["error"]


HEADERS = {
    "a header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "no JSON": struct.pack("<Q", 2) + b"{]",
    "deep JSON": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "a list": struct.pack("<Q", 2) + b"[]",
    "an entry that is none": struct.pack("<Q", 9) + b'{"a":[1]}',
    "a tensor beyond the file": safetensors_file({"a": ("F32", [4], 16)})[:-1],
    "nothing": b"",
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_strange_safetensors_file_is_refused_in_words(what: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(HEADERS[what])
    with pytest.raises(gguf.HeaderError, match=r"m\.safetensors"):
        safetensors.header(str(tmp_path / "m.safetensors"))


def test_an_index_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../../etc/passwd"}})
    )
    assert "names no files" in weights.look(str(folder))["error"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=8), c, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=1000)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}) | JSON,
        max_size=3,
    )
)
def test_any_safetensors_header_ends_in_tensors_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, Any]
) -> None:
    head = json.dumps(entries).encode()
    file = tmp_path_factory.getbasetemp() / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(head)) + head)
    try:
        safetensors.header(str(file))
    except gguf.HeaderError:
        pass


def test_what_a_config_holds_beyond_json_does_not_reach_the_answer(
    run_agent: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = model(tmp_path / "m")
    (folder / "config.json").write_text('{"a": NaN, "b": Infinity, "c": "\\ud800"}')
    config = run_agent({"sources": [str(folder)]})["weights"][0]["header"]["config"]
    assert config == {"a": None, "b": None, "c": "?"}
