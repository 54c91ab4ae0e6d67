"""The verb itself: files, catalog, hub, exit codes, JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from homelab import fit_command
from homelab.errors import InventoryError
from homelab.fit_command import load_catalog
from homelab.ui.fit import KINDS
from homelab.ui.fit import lines as ui_lines
from tests.models.examples import DATA, FILE_BYTES, SAFETENSORS
from tests.models.stand_in_hub import serving

GIB = 2**30


NOBODY = "http://127.0.0.1:9"  # listens there


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def grown(folder: Path, name: str) -> Path:
    """A header file at the size of the whole model, with nothing in it."""
    path = folder / f"{name}.gguf"
    shutil.copyfile(DATA / f"{name}.gguf", path)
    os.truncate(path, FILE_BYTES[name])
    return path


def command(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    env = os.environ | {
        "HF_ENDPOINT": NOBODY,
        "XDG_CACHE_HOME": str(cwd),
        "XDG_STATE_HOME": str(cwd),
        "NO_COLOR": "1",
    }
    argv = [sys.executable, "-m", "homelab", "fit", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=cwd, env=env, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "context", "mib"),
    [
        ("qwen3-4b", 32768, (2254, 4608, 381)),
        ("gemma3-12b", 4096, (6561, 736, 555)),
        ("gpt-oss-20b", 8192, None),
        ("qwen3.6-27b", 32768, None),
    ],
)
def test_a_header_grown_to_its_full_size_gives_the_golden_figures(
    tmp_path: Path, name: str, context: int, mib: tuple[int, ...] | None
) -> None:
    from tests.models.examples import GOLDEN

    said = next(g[2:] for g in GOLDEN if g[0] == name and g[1] == f"-c {context} -fa on")
    found = fit_command.run(
        str(grown(tmp_path, name)),
        context=str(context),
        concurrency=1,
        args={"flash-attn": "on", "n-gpu-layers": 999},
        outputs="all",
    )
    terms = {t.name: t.bytes / 2**20 for t in found.footprint.terms}
    input_table = terms["model_host"]
    shape = found.candidate.shape
    whole = terms["model"] + (0 if shape.tied_embeddings else input_table)
    assert abs(whole - said[0]) <= 1.1
    assert abs(terms["context"] - said[1]) <= 1
    assert int(terms["compute"]) <= said[2] * 1.03
    assert mib is None or mib[:2] == said[:2]


def test_a_folder_of_safetensors_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SAFETENSORS["qwen3-4b"]))
    head = json.dumps(
        {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [10, 10], "data_offsets": [0, 200]}}
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(200))
    found = fit_command.run(str(tmp_path), gpu="24GiB", context="4k")
    assert (found.candidate.engine, found.verdict) == ("vllm", "fits")
    assert not found.candidate.catalogued


def test_a_name_of_the_catalog_needs_no_network() -> None:
    found = fit_command.run("qwen3-14b", gpu="RTX 4090", context="32k", concurrency=1)
    assert found.verdict == "fits"
    assert found.candidate.catalogued


def test_a_repository_of_the_catalog_is_answered_without_a_network() -> None:
    assert fit_command.run("Qwen/Qwen3-4B-GGUF:Q4_K_M", endpoint=NOBODY).candidate.catalogued
    assert (
        fit_command.run(
            "meta-llama/Llama-3.1-8B-Instruct", engine="llamacpp", endpoint=NOBODY
        ).candidate.engine
        == "llamacpp"
    )


def test_a_gated_repository_is_answered_from_the_catalog_and_a_wrong_quantisation_is_not() -> None:
    with serving() as hub:
        hub.answer["meta-llama/Llama-3.1-8B-Instruct"] = (403, "GatedRepo")
        hub.add("Qwen/Qwen3-4B-GGUF", "Qwen3-4B-Q8_0.gguf", b"GGUF")
        assert "is gated" in " ".join(
            fit_command.run("meta-llama/Llama-3.1-8B-Instruct", endpoint=hub.url).notes
        )
        with pytest.raises(InventoryError, match="Q4_K_M"):
            fit_command.run("Qwen/Qwen3-4B-GGUF:Q4_K_M", endpoint=hub.url)


def test_a_header_of_a_chat_model_that_was_trained_to_embed_is_known_by_its_name() -> None:
    head = json.dumps({"model.norm.weight": {"dtype": "BF16", "shape": [1024], "data_offsets": [0, 2048]}})
    config = load_catalog().entries["qwen3-embedding-0.6b"].config
    with serving() as hub:
        for repo in ("Qwen/Qwen3-Embedding-0.6B", "marvin/Embedding-0.6B"):
            hub.add(repo, "config.json", json.dumps(dict(config)).encode())
            file = len(head).to_bytes(8, "little") + head.encode() + bytes(2048)
            hub.add(repo, "model.safetensors", file)
        known = fit_command.run("Qwen/Qwen3-Embedding-0.6B", gpu="24GiB", endpoint=hub.url)
        other = fit_command.run("marvin/Embedding-0.6B", gpu="24GiB", endpoint=hub.url)
    assert not known.candidate.catalogued
    assert (known.request.kind, known.footprint.flags["runner"]) == ("embedding", "pooling")
    assert other.request.kind == "chat"


def test_other_repositories_need_one() -> None:
    with pytest.raises(InventoryError, match="cannot be read") as caught:
        fit_command.run("marvin/Paranoid-7B", endpoint=NOBODY)
    assert "online" in caught.value.hint


def test_the_best_device_of_a_node_is_taken() -> None:
    from homelab.engines import Device
    from homelab.fit import Place

    small, large = (
        Place(
            device=Device(vendor="nvidia", name=f"{g}", total_bytes=g * GIB, compute_capability="8.9"),
            free_bytes=g * GIB,
        )
        for g in (8, 24)
    )
    found = fit_command.run("qwen3-14b", engine="llamacpp", places=[small, large])
    assert found.place == large


def test_what_can_this_house_run() -> None:
    rows = fit_command.what(fit_command.places_named("RTX 4090"))
    assert len(rows) == len(fit_command.load_catalog().entries)
    fits = {r.model: r.found for r in rows}
    assert fits["qwen3-30b-a3b"] is not None
    assert fits["llama-3.3-70b"] is None
    assert next(r for r in rows if r.model == "llama-3.3-70b").shortest.startswith("needs")
    assert json.dumps(fit_command.what_document(rows))
    assert {r.kind for r in rows} == {"chat", "embedding", "rerank"}
    # A reranker on the hub that is a chat model's classifier runs with vLLM as it stands.
    assert all(fits[r.model] is not None for r in rows if r.kind != "chat")
    shown = [
        line.plain for line in ui_lines(fit_command.Rows(rows=tuple(rows), context=32768, concurrency=2), 120)
    ]
    at = [
        next(i for i, line in enumerate(shown) if word in line)
        for word in ("qwen3-4b", "bge-m3", "reranker-v2")
    ]
    assert at == sorted(at)
    assert [line for line in shown if line.endswith(":")] == list(KINDS.values())[1:]


@pytest.mark.parametrize(
    "name", [n for n, e in fit_command.load_catalog().entries.items() if e.kind != "chat"]
)
def test_what_embeds_or_reranks_is_asked_about_as_such(name: str) -> None:
    for engine in {v.engine for v in fit_command.load_catalog().entries[name].variants}:
        found = fit_command.run(name, engine=engine, gpu="24GiB")
        assert found.verdict == "fits", (name, engine, found.reason)
        wanted = {"vllm": {"runner"}, "llamacpp": {"embeddings", "reranking"}}[engine]
        assert wanted & set(found.footprint.flags)


@pytest.mark.parametrize(
    "arguments",
    [
        {"source": None},
        {"source": "x", "what": True},
        {"source": "x", "engine": "ollama"},
        {"source": "x", "gpu": "1GiB", "node": "n"},
        {"source": "x", "outputs": "none"},
    ],
)
def test_options_that_do_not_go_together(arguments: dict[str, Any]) -> None:
    given = {"what": False, "engine": None, "gpu": None, "node": None, "outputs": "slots"} | arguments
    with pytest.raises(InventoryError):
        fit_command.check(**given)


def test_an_engine_s_own_options_choose_the_engine() -> None:
    assert fit_command.run("qwen3-4b", args={"cache-type-k": "q8_0"}).candidate.engine == "llamacpp"
    assert fit_command.run("qwen3-4b", args={"kv-cache-dtype": "fp8"}).candidate.engine == "vllm"
    for engine, args in (
        (None, {"kv-cache-dtype": "fp8", "ubatch-size": 64}),
        ("vllm", {"cache-type-k": "q8_0"}),
    ):
        with pytest.raises(InventoryError, match="take"):
            fit_command.run("qwen3-4b", engine=engine, args=args)


@pytest.mark.parametrize(
    "given", [{"cache-type-k": "fp8"}, {"kv-cache-dtype": "q8_0"}, {"flash-attn": "maybe"}]
)
def test_a_value_that_no_engine_has(given: dict[str, Any]) -> None:
    with pytest.raises(InventoryError, match="not known"):
        fit_command.arguments(given)
    assert fit_command.arguments({"flash-attn": "auto", "ubatch-size": None}) == {"flash-attn": "auto"}


def test_exit_codes_and_json(tmp_path: Path) -> None:
    path = str(grown(tmp_path, "qwen3-4b"))
    status, out, _ = command(
        path, "--gpu", "8GiB", "--context", "8k", "--concurrency", "1", "--json", cwd=tmp_path
    )
    document = json.loads(out)
    assert (status, document["verdict"]) == (0, "fits")
    assert {
        "engine",
        "terms",
        "total_bytes",
        "device_bytes",
        "kv_cache_tokens",
        "flags",
        "alternatives",
    } <= set(document)
    status, out, _ = command(path, "--gpu", "4GiB", "--context", "32k", "--json", cwd=tmp_path)
    document = json.loads(out)
    assert (status, document["verdict"]) == (3, "does-not-fit")
    assert document["alternatives"]
    assert all(a["total_bytes"] <= 4 * GIB for a in document["alternatives"])
    status, out, _ = command(path, cwd=tmp_path)
    assert (status, "no-device" in out) == (0, True)


def test_the_split_of_the_device_is_drawn(tmp_path: Path) -> None:
    _, fits, _ = command("qwen3-4b", "--engine", "vllm", "--gpu", "24GiB", cwd=tmp_path)
    assert (
        re.search(r"^█+▓.*·+ +24.0 GiB$", fits, re.MULTILINE)
        and re.search(r"^█ weights \d", fits, re.MULTILINE)
        and re.search(r"· free \d", fits)
        and "flags --max-model-len" in fits
    )
    _, short, _ = command("qwen3-32b", "--engine", "vllm", "--gpu", "16GiB", cwd=tmp_path)
    assert (
        re.search(r"^█+.*> 16.0 GiB$", short, re.MULTILINE) and "· free" not in short and "flags" not in short
    )


def test_bad_input_is_2_and_one_sentence(tmp_path: Path) -> None:
    whole = (DATA / "qwen3-4b.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:3000])
    (tmp_path / "lies.gguf").write_bytes(whole)  # tensors far beyond the end of the file
    (tmp_path / "noise.gguf").write_bytes(os.urandom(4096))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{")
    for source in (
        "cut.gguf",
        "lies.gguf",
        "noise.gguf",
        "folder",
        "not-there.gguf",
        "marvin/Paranoid-7B",
        "a b",
    ):
        name = f"./{source}" if (tmp_path / source).exists() or source.endswith(".gguf") else source
        status, out, said = command(name, cwd=tmp_path)
        assert (status, out) == (2, ""), (source, said)
        assert said.startswith("error:")
        assert "Traceback" not in said


def test_a_projector_beside_the_model_is_counted(tmp_path: Path) -> None:
    from agent.gguf import parse
    from tests.agent import gguf_file

    path, beside = grown(tmp_path, "gemma3-4b"), tmp_path / "mmproj-F16.gguf"
    beside.write_bytes(gguf_file.small())
    size = sum(t[3] for t in parse(beside.read_bytes(), beside.stat().st_size)["tensors"])
    _, out, _ = command(str(path), "--mmproj", str(beside), "--json", cwd=tmp_path)
    found = {t["name"]: t for t in json.loads(out)["terms"]}
    assert (found["projector"]["bytes"], found["projector"]["grade"]) == (size, "exact")
    assert found["projector_compute"]["bytes"] == GIB
    _, out, _ = command(str(path), "--mmproj", "elsewhere.gguf", "--json", cwd=tmp_path)
    assert "is a guess" in " ".join(json.loads(out)["notes"])
