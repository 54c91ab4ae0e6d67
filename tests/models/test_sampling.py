"""Samplers that are passed where a client names none, and the chat templates that recipes ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from homelab.engines import Device, Launch, Request, llamacpp, vllm
from homelab.fit_command import load_catalog, run
from homelab.models.recipes import Recipe
from homelab.models.sampling import SAMPLERS, parse
from homelab.pipeline import load_sampling
from tests.models.examples import GIB, safetensors

CARD = Device(vendor="nvidia", name="RTX 4090", total_bytes=int(23.52 * GIB), compute_capability="8.9")


@pytest.mark.parametrize(
    ("source", "temperature"),
    [
        ("unsloth/Qwen3.6-27B-MTP-GGUF:UD-Q4_K_XL", 0.6),
        ("unsloth/Qwen3.8-27B-GGUF:Q4_K_M", 1.0),
        ("bartowski/google_gemma-4-31B-it-GGUF:Q4_K_M", 1.0),
        ("unsloth/Devstral-Small-2-24B-Instruct-2512-GGUF:Q4_K_M", 0.15),
        ("Qwen/Qwen3-4B-GGUF:Q4_K_M", None),  # an older one, of which nobody said
        ("/models/qwen3.6-27b.gguf", None),  # a file is called as somebody liked
        ("not a source", None),
    ],
)
def test_a_source_is_known_by_its_repository(source: str, temperature: float | None) -> None:
    assert load_sampling().find(source).get("temperature") == temperature


def test_every_model_that_is_named_is_one_of_the_catalog() -> None:
    repos = [v.source.lower() for e in load_catalog().entries.values() for v in e.variants]
    for start in load_sampling().models:
        assert any(load_sampling().find(r) is load_sampling().models[start] for r in repos) or start in (
            "nvidia-nemotron-3.5",
            "nemotron-3.5",
        ), start


@pytest.mark.parametrize(
    "text",
    [
        "sources: {}\nmodels: {a: {source: nobody, temperature: 1}}",
        "sources: {s: x}\nmodels: {a: {source: s, heat: 1}}",
    ],
)
def test_a_file_that_names_no_source_or_another_sampler_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a: "):
        parse(text)


def test_llama_cpp_is_told_and_the_user_s_own_win() -> None:
    found = run("qwen3.6-27b", engine="llamacpp", gpu="RTX 4090", context="8k")
    assert {f"--{name}" for name in SAMPLERS} <= set(found.flags)
    own = replace(found.request, args=llamacpp.canonical({"temp": 0.2}))
    footprint = llamacpp.footprint(found.candidate.shape, own, CARD)
    assert "temperature" not in footprint.flags and footprint.flags["top-k"] == 20
    embeds = replace(found.request, kind="embedding")
    assert "temperature" not in llamacpp.footprint(found.candidate.shape, embeds, CARD).flags


def test_vllm_is_told_the_template_in_its_image() -> None:
    recipe = Recipe(model="google/gemma-4-31B-it", chat_template="examples/tool_chat_template_gemma4.jinja")
    shape = safetensors("qwen3-4b")
    asked = Request(kind="chat", context=4096, concurrency=1, recipe=recipe)
    whole = "/vllm-workspace/examples/tool_chat_template_gemma4.jinja"
    assert vllm.footprint(shape, asked, CARD).flags["chat-template"] == whole
    mine = replace(asked, args={"chat-template": "/mine.jinja"})
    footprint = vllm.footprint(shape, mine, CARD)
    launch = Launch(model="m", weights="w", host="h", port=1, request=mine, footprint=footprint, device=CARD)
    command = vllm.command(launch)
    assert command.count("--chat-template") == 1 and whole not in command
