"""How models are run: the recipes that are shipped, the script that writes them, the rules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from homelab.engines import Device, Request, Unsupported, llamacpp, vllm
from homelab.models import recipes, rules
from homelab.models.recipes import Recipe, too_old, version_of
from homelab.pipeline import load_recipes
from tests.models.examples import GIB, gguf, safetensors

ROOT = Path(__file__).parent.parent.parent
NAMES = yaml.safe_load((Path(__file__).parent / "data" / "vllm_names.yml").read_text())
ADA = Device(vendor="nvidia", name="RTX 4090", total_bytes=int(23.52 * GIB), compute_capability="8.9")
MTP = {"mtp.layers.*.mlp.up_proj.weight": [1, 10**9, "BF16"]}
RECIPE = """\
model: {model_id: Org/M-8B, min_vllm_version: 0.20.0, base_args: [--trust-remote-code]}
features:
  tool_calling: {args: [--enable-auto-tool-choice, --tool-call-parser, hermes]}
  reasoning: {args: [--reasoning-parser=qwen3]}
  spec_decoding: {args: [--speculative-config, '{"method":"mtp","num_speculative_tokens":3}']}
variants:
  default: {precision: bf16, vram_minimum_gb: 20}
  nvfp4:
    model_id: Other/M-8B-NVFP4
    min_vllm_version: 0.24.0
    hardware_overrides: {rtx_5090: {extra_args: [--max-num-seqs, 4]}}
"""


def convert(folder: Path, *more: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    output = folder / "out.yml"
    argv = [sys.executable, str(ROOT / "tools" / "recipes.py"), str(folder), "--output", str(output), *more]
    return subprocess.run(argv, capture_output=True, text=True, check=False), output


def checkout(folder: Path, text: str) -> Path:
    (folder / "models" / "Org").mkdir(parents=True)
    (folder / "models" / "Org" / "M-8B.yaml").write_text(text)
    return folder


def test_a_checkout_becomes_facts(tmp_path: Path) -> None:
    done, output = convert(checkout(tmp_path, RECIPE), "--commit", "c0ffee")
    assert done.returncode == 0, done.stderr
    known = recipes.parse(output.read_text())
    assert known.commit == "c0ffee"
    own, other = known.find("Org/M-8B"), known.find("Other/M-8B-NVFP4")
    assert own is not None and other is not None
    assert (own.tool_parser, own.reasoning_parser, own.method, own.drafts) == ("hermes", "qwen3", "mtp", 3)
    assert (own.min_vllm, own.vram_gb, own.args) == ("0.20.0", 20, {"trust-remote-code": True})
    assert (other.min_vllm, other.cards) == ("0.24.0", {"rtx_5090": {"args": {"max-num-seqs": "4"}}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {model_id: Org/M\n", "models/Org/M-8B.yaml:2: "),
        ("meta: {}\n", "models/Org/M-8B.yaml:1: `model.model_id` is missing"),
        ("[1, 2]\n", "models/Org/M-8B.yaml:1: is a mapping"),
        ("model: {model_id: a/b, base_args: [x]}\n", "`x` stands before any argument's name"),
        ("model: {model_id: a/b, base_args: --x}\n", "arguments are a list of words"),
    ],
)
def test_a_broken_recipe_is_named_and_nothing_is_written(tmp_path: Path, text: str, said: str) -> None:
    done, output = convert(checkout(tmp_path, text), "--commit", "c0ffee")
    assert (done.returncode, output.exists()) == (2, False)
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    done, output = convert(tmp_path)
    assert (done.returncode, output.exists()) == (2, False)
    assert "no checkout of vllm-project/recipes" in done.stderr


def test_a_checkout_whose_commit_nobody_knows(tmp_path: Path) -> None:
    done, _ = convert(checkout(tmp_path, RECIPE))
    assert done.returncode == 2
    assert "name it with --commit" in done.stderr


def entries() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, entry in load_recipes().models.items():
        found.append((name, dict(entry)))
        found += [(name, dict(v)) for v in entry.get("variants", ())]
        found += [
            (name, dict(c)) for e in (entry, *entry.get("variants", ())) for c in e.get("cards", {}).values()
        ]
    return found


def test_every_parser_is_one_that_the_pinned_vllm_has() -> None:
    assert f"v{NAMES['version']}" in vllm.OFFER.images["cuda"]
    tools, thoughts = set(NAMES["tool_parsers"]), set(NAMES["reasoning_parsers"])
    assert {e["tool_parser"] for _, e in entries() if "tool_parser" in e} <= tools
    assert {e["reasoning_parser"] for _, e in entries() if "reasoning_parser" in e} <= thoughts
    assert set(vllm.TOOL_PARSERS.values()) <= tools
    assert set(vllm.REASONING_PARSERS.values()) <= thoughts


def test_every_flag_that_a_plan_takes_from_a_recipe_is_one_that_vllm_has() -> None:
    ours = {"reasoning-parser", "tool-call-parser", "speculative-config", "no-enable-prefix-caching"}
    for flag in {*ours, *vllm.NEEDED}:
        assert flag.removeprefix("no-") in NAMES["flags"], flag


@pytest.mark.parametrize(
    ("source", "model"),
    [
        ("Qwen/Qwen3.6-27B", "Qwen/Qwen3.6-27B"),
        ("qwen/qwen3.6-27b", "Qwen/Qwen3.6-27B"),
        ("nvidia/Qwen3.6-27B-NVFP4", "Qwen/Qwen3.6-27B"),
        ("somebody/Qwen3.6-27B-AWQ", "Qwen/Qwen3.6-27B"),
        ("somebody/Qwen3.6-27B-int4-AutoRound", "Qwen/Qwen3.6-27B"),
        ("somebody/Qwen3.6-27B-abliterated", None),  # trained on, and nobody knows what it writes
        ("somebody/Qwen3.6-27B", None),
        ("/models/Qwen3.6-27B", None),
    ],
)
def test_which_recipe_a_source_has(source: str, model: str | None) -> None:
    found = load_recipes().find(source)
    assert (found and found.model) == model


def test_versions() -> None:
    assert version_of("v0.27.1") == version_of("0.27.1-cu129") == (0, 27, 1)
    assert [version_of(t) for t in ("nightly", "latest", "0.27.1rc1", "sha256", "")] == [None] * 5
    recipe = Recipe(model="a/b", min_vllm="0.27.1")
    assert "needs vLLM 0.27.1 or newer" in too_old(recipe, "vllm/vllm-openai:v0.24.0")
    for image in ("vllm/vllm-openai:v0.33.0", "vllm/vllm-openai:nightly", "x@sha256:1f", None):
        assert too_old(recipe, image) == ""


def request(args: dict[str, Any] | None = None, **more: Any) -> Request:
    return Request(kind="chat", context=8192, concurrency=1, args=args or {}, **more)


def test_parsers_go_by_recipe_then_generation_and_the_user_wins() -> None:
    qwen = safetensors("qwen3.6-27b")
    flags = vllm.footprint(qwen, request(), ADA).flags
    assert (flags["tool-call-parser"], flags["reasoning-parser"]) == ("qwen3_coder", "qwen3")
    recipe = Recipe(model="a/b", tool_parser="qwen3_xml", reasoning_parser="nemotron_v3")
    flags = vllm.footprint(qwen, request(recipe=recipe), ADA).flags
    assert (flags["tool-call-parser"], flags["reasoning-parser"]) == ("qwen3_xml", "nemotron_v3")
    mine = request({"reasoning-parser": "seed_oss", "tool-call-parser": "hermes"}, recipe=recipe)
    flags = vllm.footprint(qwen, mine, ADA).flags
    assert not {"reasoning-parser", "tool-call-parser", "enable-auto-tool-choice"} & set(flags)
    # A Qwen3 may be one that does not think: its parser would take the answer for thoughts.
    assert "reasoning-parser" not in vllm.footprint(safetensors("qwen3-4b"), request(), ADA).flags


def test_a_hybrid_that_speculates_has_no_prefix_cache_and_says_why() -> None:
    shape = safetensors("qwen3.6-27b", groups=MTP)
    plain, drafting = request(), request(speculative=3)
    assert "no-enable-prefix-caching" not in vllm.footprint(shape, plain, ADA).flags
    footprint = vllm.footprint(shape, drafting, ADA)
    assert footprint.flags["no-enable-prefix-caching"] is True
    written = json.loads(str(footprint.flags["speculative-config"]))
    assert written == {"method": "mtp", "num_speculative_tokens": 3}
    assert any("vllm#43559" in n for n in vllm.notes(shape, drafting, ADA))
    assert list(vllm.notes(shape, plain, ADA)) == list(shape.notes)
    # The user's own word on it stands, and is not contradicted.
    kept = request({"enable-prefix-caching": True}, speculative=3)
    assert "no-enable-prefix-caching" not in vllm.footprint(shape, kept, ADA).flags
    assert not any("vllm#43559" in n for n in vllm.notes(shape, kept, ADA))
    # What drafts by the user's own arguments is known as such.
    own = request({"speculative-config": '{"method":"mtp","num_speculative_tokens":1}'})
    assert vllm.footprint(shape, own, ADA).flags["no-enable-prefix-caching"] is True
    assert "speculative-config" not in vllm.footprint(shape, own, ADA).flags


@pytest.mark.parametrize(("least", "said"), [(None, True), (2, True), (8, False)])
def test_ngrams_that_are_too_short_are_said(least: int | None, said: bool) -> None:
    written = {"method": "ngram", "num_speculative_tokens": 4} | (
        {} if least is None else {"prompt_lookup_min": least}
    )
    notes = vllm.notes(safetensors("qwen3-4b"), request({"speculative-config": json.dumps(written)}), ADA)
    assert any("prompt_lookup_min" in n for n in notes) == said


def test_llama_cpp_drafts_and_refuses_what_crashes() -> None:
    shape = gguf("qwen3-4b")
    object.__setattr__(shape, "mtp_layers", 1)
    flags = llamacpp.footprint(shape, request(speculative=2), ADA).flags
    assert (flags["spec-type"], flags["spec-draft-n-max"]) == ("draft-mtp", 2)
    assert "spec-type" not in llamacpp.footprint(shape, request(), ADA).flags
    with pytest.raises(Unsupported, match="split-mode"):
        llamacpp.footprint(shape, request({"split-mode": "tensor"}), ADA)
    assert any("q8_0" in n for n in llamacpp.notes(shape, request({"cache-type-k": "q4_0"}), ADA))


def test_what_speculative_comes_to() -> None:
    plain, mtp = safetensors("qwen3-4b"), gguf("qwen3-4b")
    object.__setattr__(mtp, "mtp_layers", 1)

    def depth(shape: Any, wanted: int | str, args: dict[str, Any] | None = None, advised: Any = None) -> int:
        return rules.drafts_for("llamacpp", shape, wanted, args or {}, advised)

    assert [depth(plain, w) for w in ("off", "auto")] == [0, 0]
    assert [depth(mtp, w) for w in ("off", "auto", 4)] == [0, 2, 4]
    assert depth(mtp, "auto", advised=3) == 3
    assert depth(mtp, "auto", {"split-mode": "tensor"}) == 0
    with pytest.raises(ValueError, match="these files have none"):
        depth(plain, 2)
    with pytest.raises(ValueError, match="split-mode"):
        depth(mtp, 2, {"split-mode": "tensor"})
