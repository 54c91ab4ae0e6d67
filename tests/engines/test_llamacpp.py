from __future__ import annotations

import ctypes
import shlex
import sys
from dataclasses import replace
from typing import Literal

import pytest

from homelab.engines import ArgValue, Device, Footprint, Launch, Load, Request, Unsupported, engines, llamacpp
from homelab.models.header import from_header
from homelab.models.shape import Layer, ModelShape
from tests.models.examples import ARCHITECTURES, GOLDEN, gguf, safetensors

MIB = 2**20
CPU = Device(vendor="cpu", name="Ryzen", total_bytes=64 * 2**30, memory_kind="ram")
GPU = Device(vendor="nvidia", name="RTX 3090", total_bytes=24 * 2**30, compute_capability="8.6")


# model, flash attention, -c, -np, -ub, and the compute buffer in the log in MiB
SERVED = [
    ("qwen3-4b", "on", 8192, 1, 512, 90.02),
    ("qwen3-4b", "on", 32768, 4, 512, 90.02),
    ("qwen3-4b", "on", 131072, 1, 512, 210.02),
    ("qwen3-4b", "off", 32768, 4, 512, 573.01),
    ("llama-3.1-8b", "on", 32768, 1, 2048, 624.07),
    ("llama-3.1-8b", "off", 4096, 1, 512, 316.01),
    ("gemma3-12b", "on", 32768, 1, 128, 40.19),
    ("gemma3-12b", "on", 131072, 1, 512, 257.03),
    ("gpt-oss-20b", "on", 65536, 1, 512, 160.4),
    ("qwen3-30b-a3b", "on", 131072, 1, 512, 216.02),
    ("qwen3-14b", "on", 4096, 1, 512, 156.02),
    ("qwen3.6-27b", "on", 131072, 1, 512, 280.02),
    ("qwen3.6-27b", "off", 65536, 1, 512, 3290.02),
]


def ask(context: int = 8192, concurrency: int = 1, **args: ArgValue) -> Request:
    return Request(
        kind="chat",
        context=context,
        concurrency=concurrency,
        args=llamacpp.canonical(args),
    )


def terms(footprint: Footprint) -> dict[str, int]:
    return {t.name: t.bytes for t in footprint.terms}


def launch(
    request: Request, footprint: Footprint, weights: str = "/models/m.gguf", device: Device = GPU
) -> list[str]:
    return llamacpp.command(
        Launch(
            model="qwen",
            weights=weights,
            host="0.0.0.0",
            port=8080,
            request=request,
            footprint=footprint,
            device=device,
        )
    )


@pytest.mark.parametrize(
    ("model", "args", "model_mib", "context_mib", "compute_mib"),
    GOLDEN,
    ids=[f"{g[0]} {g[1]}" for g in GOLDEN],
)
def test_figures_are_those_of_llama_fit_params(
    model: str, args: str, model_mib: int, context_mib: int, compute_mib: int
) -> None:
    words = shlex.split(args)
    asked: dict[str, ArgValue] = dict(zip(words[::2], words[1::2], strict=True))
    tokens, slots = int(str(asked.pop("-c"))), int(str(asked.pop("-np", 1)))
    found = terms(
        llamacpp.footprint(
            gguf(model),
            Request(kind="chat", context=tokens // slots, concurrency=slots, args=llamacpp.canonical(asked)),
            CPU,
        )
    )
    assert abs(found["model"] / MIB - model_mib) <= 1
    assert abs(found["context"] / MIB - context_mib) <= 1
    assert (
        compute_mib - 1 <= int(found["compute"] / MIB) <= compute_mib * 1.03
    )  # an upper bound; the tool cuts off at whole MiB


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_other_architectures(name: str) -> None:
    """Windows, chunks, latent caches, states beside attention, shared caches, prediction layers."""
    shape = from_header(ARCHITECTURES[name]["header"])
    assert not shape.notes
    for tokens, slots, model_mib, context_mib, compute_mib in ARCHITECTURES[name]["said_mib"]:
        request = Request(kind="chat", context=tokens // slots, concurrency=slots, args={"flash-attn": "on"})
        found = terms(llamacpp.footprint(shape, request, CPU))
        # llama.cpp left the prediction layers out; another release loads them.
        assert model_mib <= found["model"] / MIB <= model_mib + shape.mtp_bytes / MIB + 1
        assert abs(found["context"] / MIB - context_mib) <= 1
        assert compute_mib <= int(found["compute"] / MIB) <= compute_mib * 1.03


@pytest.mark.parametrize(
    ("name", "flash", "tokens", "slots", "ubatch", "said_mib"),
    SERVED,
    ids=[f"{s[0]} {s[1:5]}" for s in SERVED],
)
def test_a_server_reserves_logits_for_its_slots_only(
    name: str, flash: str, tokens: int, slots: int, ubatch: int, said_mib: float
) -> None:
    """llama.cpp b11549 with `n_outputs_max = slots`, as its log says it (`bench/fit` asks it anew)."""
    request = Request(
        kind="chat",
        context=tokens // slots,
        concurrency=slots,
        args={"flash-attn": flash, "ubatch-size": ubatch},
    )
    found = terms(llamacpp.footprint(gguf(name), replace(request, outputs="slots"), CPU))["compute"] / MIB
    assert said_mib - 0.01 <= found <= said_mib * (1.001 if flash == "on" else 1.04)


# model, -c, -np, -ub, flash attention, all slots share the cells, rows of logits, and the compute buffer in
# the log in MiB
CROWDED = [
    ("lfm2", 24576, 48, 512, "on", False, "slots", 35.6),
    ("lfm2", 33792, 33, 16, "on", True, "all", 4.58),
    ("lfm2", 24576, 24, 512, "on", True, "slots", 59.83),
    ("lfm2", 16384, 8, 128, "off", False, "slots", 20.25),
    ("gemma2", 24576, 24, 512, "on", True, "slots", 84.59),
    ("gemma2", 16384, 8, 128, "off", False, "slots", 21.13),
    ("gemma4e", 24576, 24, 512, "on", True, "slots", 90.78),
    ("gemma4e", 16384, 8, 128, "off", False, "slots", 23.63),
    ("deepseek2", 24576, 48, 512, "on", False, "slots", 52.09),
    ("deepseek2", 16384, 8, 128, "off", False, "slots", 45.5),
    ("cohere2", 24576, 24, 512, "on", True, "slots", 86.65),
    ("qwen35", 24576, 48, 512, "on", False, "slots", 70.29),
]


@pytest.mark.parametrize(
    ("name", "said_mib"), [("gemma2", 163.53), ("deepseek2", 178.02), ("glm4moe", 162.02), ("llama4", 152.53)]
)
def test_logits_take_the_place_of_a_larger_mask(name: str, said_mib: float) -> None:
    """llama.cpp b11549, 131 072 tokens: a mask of 128 MiB, logits of 62.5."""
    request = Request(
        kind="chat", context=131072, concurrency=1, args={"flash-attn": "on", "ubatch-size": 512}
    )
    found = (
        terms(llamacpp.footprint(from_header(ARCHITECTURES[name]["header"]), request, CPU))["compute"] / MIB
    )
    assert said_mib - 0.01 <= found <= said_mib + 0.1


@pytest.mark.parametrize(
    ("name", "tokens", "slots", "ubatch", "flash", "unified", "outputs", "said_mib"), CROWDED
)
def test_many_slots_never_take_more_than_is_said(
    name: str,
    tokens: int,
    slots: int,
    ubatch: int,
    flash: str,
    unified: bool,
    outputs: Literal["all", "slots"],
    said_mib: float,
) -> None:
    """As llama.cpp b11549 reserves: as many tokens of each slot, a window of each slot where they share the
    cells."""
    args: dict[str, ArgValue] = {"ubatch-size": ubatch, "flash-attn": flash, "kv-unified": unified}
    request = Request(kind="chat", context=tokens // slots, concurrency=slots, args=args)
    found = (
        terms(
            llamacpp.footprint(
                from_header(ARCHITECTURES[name]["header"]), replace(request, outputs=outputs), CPU
            )
        )["compute"]
        / MIB
    )
    assert said_mib - 0.01 <= found <= said_mib * (1.1 if outputs == "slots" else 1.6)


def test_drafts_want_logits_too() -> None:
    """With a micro-batch this small the logits decide."""
    plain, fast = (
        terms(
            llamacpp.footprint(gguf("gemma3-4b"), replace(ask(ubatch_size=16, **more), outputs="slots"), CPU)
        )["compute"]  # type: ignore[arg-type]
        for more in ({}, {"spec_type": "draft", "spec_draft_n_max": 15})
    )
    assert fast - plain > 10 * MIB


def test_values_without_flash_attention_are_all_as_wide_as_the_widest() -> None:
    """Gemma 4 of 12 layers, ten of them 8 heads of 64, two 2 heads of 128."""
    shape = from_header(ARCHITECTURES["gemma4"]["header"])
    on, off = (
        terms(llamacpp.footprint(shape, ask(4096, flash_attn=f), CPU))["context"] for f in ("on", "off")
    )
    assert off - on == 2 * 4096 * (512 - 256) * 2


def test_every_slot_of_a_delta_net_works_on_its_state_twice() -> None:
    one, sixteen = (
        terms(
            llamacpp.footprint(
                gguf("qwen3.6-27b"), replace(ask(256, n, ubatch_size=128), outputs="slots"), CPU
            )
        )["compute"]
        / MIB
        for n in (1, 16)
    )
    assert one < 45
    assert 123.44 <= sixteen <= 123.44 * 1.02  # as b11549 says


def test_on_a_gpu_the_input_table_stays_in_ram() -> None:
    shape = gguf("llama-3.1-8b")
    found = terms(llamacpp.footprint(shape, ask(), GPU))
    assert found["model"] == shape.weights_bytes - shape.embedding_bytes
    assert found["model_host"] == shape.embedding_bytes


def test_a_tied_table_is_on_both_sides() -> None:
    shape = gguf("qwen3-4b")
    found = terms(llamacpp.footprint(shape, ask(), GPU))
    assert found["model"] == shape.weights_bytes
    assert found["model_host"] == shape.embedding_bytes


def test_the_output_layer_is_offloaded_first() -> None:
    shape = gguf("llama-3.1-8b")
    found = terms(llamacpp.footprint(shape, ask(n_gpu_layers=1), GPU))
    assert shape.output_bytes <= found["model"] <= shape.output_bytes + MIB
    assert found["context"] == 0


def hybrid() -> ModelShape:
    """Qwen3.6-27B with a prediction layer."""
    shape = gguf("qwen3.6-27b")
    own = replace(shape.layers[-1], attention="none", recurrent=False)
    return replace(shape, layers=(*shape.layers, own), mtp_layers=1, mtp_bytes=own.bytes)


def test_a_cache_that_is_not_f16_is_converted_a_layer_at_a_time() -> None:
    """b11434, `ggml_cuda_flash_attn_ext_get_alloc_size`; 512 MiB for 128k more cells were seen on an RTX 3090
    Ti."""
    cells = 262144
    layer = cells * 4 * (256 + 256) * 2
    whole, keys = (
        terms(llamacpp.footprint(gguf("qwen3.6-27b"), ask(cells, **a), GPU))["kv_conversion"]
        for a in ({"ctk": "q4_0", "ctv": "q4_0"}, {"ctk": "q8_0"})
    )
    assert (whole, keys) == (layer, layer // 2)
    assert layer == 2**30
    amd, intel = (replace(GPU, vendor=v) for v in ("amd", "intel"))
    quantised = ask(cells, ctk="q8_0", ctv="q8_0")
    assert terms(llamacpp.footprint(gguf("qwen3.6-27b"), quantised, amd))["kv_conversion"] == layer
    for request, device in ((ask(cells), GPU), (quantised, intel), (quantised, CPU)):
        assert "kv_conversion" not in terms(llamacpp.footprint(gguf("qwen3.6-27b"), request, device))


def test_its_own_prediction_layer_has_a_context_of_its_own() -> None:
    """An RTX 3090 Ti took 1 292 MiB more with two drafts at 128k, and 1 932 at 256k (sudoingX/qwen38-mtp)."""
    more = {}
    for cells in (131072, 262144):
        plain, drafts = (
            llamacpp.footprint(hybrid(), ask(cells, ctk="q4_0", ctv="q4_0", **a), GPU)
            for a in ({}, {"spec_type": "draft-mtp", "spec_draft_n_max": 2})
        )
        assert terms(drafts)["mtp_context"] == cells * 4 * 512 * 2  # f16, whatever the model's cache is
        state = terms(drafts)["context"] - terms(plain)["context"]
        assert state / MIB == pytest.approx(2 * 149.6, abs=0.1)
        margin = terms(drafts)["reserve"] - terms(plain)["reserve"]
        more[cells] = (drafts.device_bytes - plain.device_bytes - margin) / MIB
    assert more[262144] - more[131072] == pytest.approx(1932 - 1292, abs=1)
    assert more[131072] == pytest.approx(1292, rel=0.2)
    asked = replace(ask(131072, ctk="q4_0", ctv="q4_0"), speculative=2)
    assert llamacpp.footprint(hybrid(), asked, GPU).flags["spec-draft-n-max"] == 2
    assert terms(llamacpp.footprint(hybrid(), asked, GPU))["mtp_context"] == 131072 * 4 * 512 * 2


def test_another_model_that_drafts_takes_weights_and_a_context_of_its_own() -> None:
    request = replace(ask(16384, md="/models/small.gguf"), drafter=gguf("qwen3-4b"))
    small = gguf("qwen3-4b")
    found = terms(llamacpp.footprint(gguf("qwen3-14b"), request, GPU))
    assert found["drafter"] == small.weights_bytes
    assert found["drafter_context"] == 16384 * 36 * 8 * (128 + 128) * 2
    quantised = replace(
        request, args={**request.args, "spec-draft-type-k": "q8_0", "spec-draft-type-v": "q8_0"}
    )
    less = terms(llamacpp.footprint(gguf("qwen3-14b"), quantised, GPU))
    assert less["drafter_context"] == found["drafter_context"] * 34 // 64
    in_ram = replace(request, args={**request.args, "spec-draft-ngl": 0})
    assert "drafter" not in terms(llamacpp.footprint(gguf("qwen3-14b"), in_ram, GPU))
    guessed = llamacpp.footprint(gguf("qwen3-14b"), replace(request, drafter=None), GPU)
    assert {t.name: t.grade for t in guessed.terms}["drafter"] == "empirical"
    assert any(
        "/models/small.gguf" in n
        for n in llamacpp.notes(gguf("qwen3-14b"), replace(request, drafter=None), GPU)
    )


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        (gguf("llama-3.1-8b"), "128256 entries, and the model's 151936"),
        (safetensors("qwen3-4b"), "GGUF files, too"),
    ],
)
def test_a_drafter_that_cannot_draft_is_refused(named: ModelShape, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        llamacpp.footprint(gguf("qwen3-14b"), replace(ask(md="/models/s.gguf"), drafter=named), GPU)


def test_layers_go_where_tensor_split_says() -> None:
    pair = replace(GPU, count=2)
    shape = gguf("qwen3-14b")
    found = terms(llamacpp.footprint(shape, ask(ts="3,1"), pair))["model"]
    # 40 layers and the output: those whose place is below three quarters of 41.
    assert found == sum(layer.bytes for layer in shape.layers[:31])
    for wrong in ("many", "0,0", "-1,2", "nan"):
        with pytest.raises(Unsupported, match="tensor-split"):
            llamacpp.footprint(gguf("qwen3-14b"), ask(ts=wrong), pair)


def test_the_table_of_an_encoder_stays_in_ram() -> None:
    """It has no output layer: bge-small logs 40.7 MiB on the GPU, of 62.9."""
    encoder = replace(gguf("qwen3-4b"), causal=False, kind="embedding")
    request = replace(ask(512), kind="embedding")
    found = terms(llamacpp.footprint(encoder, request, GPU))
    assert found["model"] == encoder.weights_bytes - encoder.embedding_bytes
    assert found["model_host"] == encoder.embedding_bytes
    # `src/models/gemma-embedding.cpp` makes an output of the table, which is a second copy.
    twice = replace(encoder, architecture="gemma-embedding")
    assert terms(llamacpp.footprint(twice, request, GPU))["model"] == encoder.weights_bytes


def test_experts_can_stay_in_ram() -> None:
    shape = gguf("qwen3-30b-a3b")
    whole = terms(llamacpp.footprint(shape, ask(), GPU))
    half = terms(llamacpp.footprint(shape, ask(n_cpu_moe=24), GPU))
    none = terms(llamacpp.footprint(shape, ask(cpu_moe=True), GPU))
    assert (
        whole["model"] - half["model"] == shape.expert_bytes // 2 == half["model_host"] - whole["model_host"]
    )
    assert whole["model"] - none["model"] == shape.expert_bytes
    assert none["compute"] > whole["compute"]  # a layer's experts are copied over


def test_layers_are_split_over_gpus_of_one_node() -> None:
    one = terms(llamacpp.footprint(gguf("qwen3-14b"), ask(), GPU))
    two = llamacpp.footprint(
        gguf("qwen3-14b"), ask(), Device(vendor="nvidia", name="3090", total_bytes=1, count=2)
    )
    assert 0.5 * one["model"] < terms(two)["model"] < 0.6 * one["model"]
    assert two.flags["tensor-split"] == "1,1"


def test_a_slot_costs_a_recurrent_state() -> None:
    one, four = (terms(llamacpp.footprint(gguf("qwen3.6-27b"), ask(4096, n), GPU))["context"] for n in (1, 4))
    states = 48 * 4 * (3 * 10240 + 786432)
    assert one == 4096 * 65536 + states
    assert four == 4 * one


def test_host_caches_are_bounded() -> None:
    for name in ("gemma3-12b", "qwen3.6-27b", "qwen3-4b"):
        found = terms(llamacpp.footprint(gguf(name), ask(32768, 2), GPU))
        assert found["prompt_cache"] == 1024 * MIB
        assert found.get("checkpoints", 0) <= 1024 * MIB


def test_unified_memory_is_one_pool() -> None:
    mac = Device(vendor="apple", name="M3 Max", total_bytes=48 * 2**30, memory_kind="unified")
    footprint = llamacpp.footprint(gguf("qwen3-4b"), ask(), mac)
    assert footprint.host_bytes == 0
    assert terms(footprint)["gpu_context"] == 256 * MIB


def test_a_small_machine_keeps_a_small_prompt_cache() -> None:
    pi = Device(vendor="cpu", name="Cortex-A76", total_bytes=8 * 2**30, memory_kind="ram")
    assert llamacpp.footprint(gguf("qwen3-4b"), ask(), pi).flags["cache-ram"] == 512


def test_nothing_of_the_gpu_is_counted_on_a_cpu() -> None:
    footprint = llamacpp.footprint(gguf("qwen3-4b"), ask(), CPU)
    assert {t.where for t in footprint.terms} == {"device"}
    assert footprint.flags["n-gpu-layers"] == 0


@pytest.mark.parametrize(
    ("request_", "shape", "device", "reason"),
    [
        (ask(), safetensors("qwen3-4b"), GPU, "GGUF"),
        (ask(262145), gguf("qwen3-4b"), GPU, "made for 262144 tokens"),
        (ask(cache_type_k="fp8"), gguf("qwen3-4b"), GPU, "no cache-type-k fp8"),
        (ask(cache_type_v="q8_0", flash_attn="off"), gguf("qwen3-4b"), GPU, "flash attention"),
        (ask(parallel="many"), gguf("qwen3-4b"), GPU, "is a number"),
        (ask(), gguf("qwen3-4b"), Device(vendor="qualcomm", name="x", total_bytes=1), "no backend"),
    ],
)
def test_what_it_cannot_serve_it_says(request_: Request, shape: object, device: Device, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        llamacpp.footprint(shape, request_, device)  # type: ignore[arg-type]


def test_a_longer_context_is_allowed_with_rope_scaling() -> None:
    assert (
        llamacpp.footprint(gguf("qwen3-4b"), ask(300000, rope_scaling="yarn"), GPU).kv_cache_tokens == 300032
    )


def test_the_command_says_all_that_was_planned() -> None:
    request = ask(8192, 2)
    argv = launch(request, llamacpp.footprint(gguf("qwen3-4b"), request, GPU))
    assert argv[:2] == ["--model", "/models/m.gguf"]
    assert "--ctx-size 16384 --parallel 2 --n-gpu-layers 999 --fit off --flash-attn on" in " ".join(argv)


def test_a_hub_source_brings_no_unplanned_vision_projector() -> None:
    request = ask()
    argv = launch(
        request, llamacpp.footprint(gguf("qwen3-4b"), request, GPU), weights="Qwen/Qwen3-4B-GGUF:Q4_K_M"
    )
    assert argv[:3] == ["--hf-repo", "Qwen/Qwen3-4B-GGUF:Q4_K_M", "--no-mmproj"]


def test_user_arguments_replace_ours_under_any_spelling() -> None:
    request = Request(
        kind="chat",
        context=8192,
        concurrency=2,
        args=llamacpp.canonical({"-c": 4096, "-fa": "off", "--no-jinja": True, "-x": 1}),
    )
    footprint = llamacpp.footprint(gguf("qwen3-4b"), request, GPU)
    argv = launch(request, footprint)
    assert argv[-7:] == ["--ctx-size", "4096", "--flash-attn", "off", "--no-jinja", "-x", "1"]
    assert (argv.count("--ctx-size"), argv.count("--flash-attn"), argv.count("--jinja")) == (1, 1, 0)
    assert footprint.kv_cache_tokens == 4096


def test_a_bare_on_of_yaml_is_a_word() -> None:
    request = Request(
        kind="chat", context=8192, concurrency=2, args=llamacpp.canonical({"flash-attn": True, "fit": False})
    )
    assert launch(request, llamacpp.footprint(gguf("qwen3-4b"), request, GPU))[-4:] == [
        "--flash-attn",
        "on",
        "--fit",
        "off",
    ]


def test_no_secret_and_no_flag_twice() -> None:
    request = ask(4096, 2)
    argv = launch(request, llamacpp.footprint(gguf("qwen3-4b"), request, GPU))
    names = [a for a in argv if a.startswith("--")]
    assert len(names) == len(set(names))
    assert "--api-key" not in names


def test_a_reranker_reads_an_input_in_one_batch() -> None:
    request = Request(kind="rerank", context=8192, concurrency=1)
    footprint = llamacpp.footprint(gguf("qwen3-4b"), request, GPU)
    assert "--reranking --batch-size 8192 --ubatch-size 8192" in " ".join(launch(request, footprint))
    assert terms(footprint)["compute"] == pytest.approx(
        5276 * MIB, rel=0.02
    )  # as `llama-fit-params -b 8192 -ub 8192` says


def test_an_embedder_that_pools_the_last_token_needs_no_such_batch() -> None:
    request = Request(kind="embedding", context=8192, concurrency=1)
    footprint = llamacpp.footprint(gguf("qwen3-4b"), request, GPU)
    argv = " ".join(launch(request, footprint))
    assert "--embeddings --pooling last --jinja --metrics" in argv
    assert terms(footprint)["compute"] < 400 * MIB


@pytest.mark.parametrize(
    ("tokens", "flash", "said_mib"),
    [
        (512, "on", 18),
        (2048, "on", 80),
        (8192, "on", 416),
        (512, "off", 31),
        (2048, "off", 328),
        (8192, "off", 4576),
    ],
)
def test_an_encoder_has_no_cache_and_no_logits(tokens: int, flash: str, said_mib: int) -> None:
    """A BERT of 6 layers, 1024 wide with 16 heads and 4096 between, as `llama-fit-params` says."""
    layers = tuple(Layer(attention="none", heads=16) for _ in range(6))
    shape = ModelShape(
        format="gguf",
        architecture="bert",
        layers=layers,
        hidden=1024,
        heads=16,
        intermediate=4096,
        vocab=32000,
        max_context=8192,
        weights_bytes=233_000_000,
        kind="embedding",
        pooling="cls",
        causal=False,
    )
    found = terms(
        llamacpp.footprint(
            shape, Request(kind="embedding", context=tokens, concurrency=1, args={"flash-attn": flash}), CPU
        )
    )
    assert found["context"] == 0
    assert said_mib <= found["compute"] / MIB <= max(said_mib * 1.05, said_mib + 5)


def test_it_is_found_as_an_engine() -> None:
    assert engines()["llamacpp"].NAME == "llamacpp"


@pytest.mark.parametrize("kind", ["chat", "embedding", "rerank"])
@pytest.mark.parametrize("count", [1, 2])
def test_llama_cpp_parses_every_flag(
    kind: str, count: int, libgomp: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real parser, out of the wheel `xllamacpp`, which carries llama.cpp's own `common_params_parse`."""
    xllamacpp = pytest.importorskip("xllamacpp")
    parse = ctypes.PyDLL(sys.modules["xllamacpp.xllamacpp"].__file__)[
        "_Z19common_params_parseiPPcR13common_params13llama_examplePFviS0_E"
    ]
    parse.restype = ctypes.c_bool
    parse.argtypes = [
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_char_p),
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    sampling = {"temperature": 0.6, "top-p": 0.95, "top-k": 20, "min-p": 0}
    request = Request(kind=kind, context=4096, concurrency=2, sampling=sampling)  # type: ignore[arg-type]
    device = Device(vendor="nvidia", name="3090", total_bytes=1, count=count)
    argv = ["llama-server", *launch(request, llamacpp.footprint(gguf("qwen3-4b"), request, device))]
    array = (ctypes.c_char_p * (len(argv) + 1))(*[a.encode() for a in argv], None)
    parameters = xllamacpp.CommonParams()
    # The wheel keeps llama.cpp's struct right behind Python's object head; 12 is LLAMA_EXAMPLE_SERVER.
    assert parse(len(argv), array, id(parameters) + object.__basicsize__, 12, None), capfd.readouterr().err
    assert (parameters.n_ctx, parameters.n_parallel) == (8192, 2)


# ---- what it does: b11549's own words while it wrote one answer and a second request waited ----
METRICS = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 37
# HELP llamacpp:tokens_predicted_total Number of generation tokens processed
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 0
# HELP llamacpp:tokens_predicted_seconds_total Total time spent generating tokens
# TYPE llamacpp:tokens_predicted_seconds_total counter
llamacpp:tokens_predicted_seconds_total 0
# HELP llamacpp:n_decode_total Total number of llama_decode() calls, excluding speculative decoding and multimodal decoding
# TYPE llamacpp:n_decode_total counter
llamacpp:n_decode_total 387
# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
# HELP llamacpp:requests_deferred Number of requests deferred
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 1
# HELP llamacpp:n_busy_slots_per_decode Average number of busy slots per llama_decode() call
# TYPE llamacpp:n_busy_slots_per_decode gauge
llamacpp:n_busy_slots_per_decode 1
"""  # noqa: E501


def test_the_tokens_of_an_answer_count_while_it_is_written() -> None:
    assert llamacpp.load(METRICS) == Load(tokens=387, running=1, waiting=1)
    busy = METRICS.replace("n_decode_total 387", "n_decode_total 1.23457e+06")
    assert llamacpp.load(busy.replace("per_decode 1\n", "per_decode 2.5\n")).tokens == 1234570 * 2.5


def test_a_server_that_counts_no_steps_is_taken_at_its_total() -> None:
    assert llamacpp.load("llamacpp:tokens_predicted_total 800\n") == Load(tokens=800)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "llamacpp:requests_processing",
        "llamacpp:requests_processing NaN\nllamacpp:n_decode_total +Inf",
        "llamacpp:requests_processing -1\nllamacpp:requests_deferred 1e999",
        "llamacpp:requests_processing " + "9" * 5000,
        "llamacpp:requests_processing_seconds 3\n# llamacpp:requests_processing 3",
        "llamacpp:requests_processing" + "{" * 100_000,
        "llamacpp:requests_processing{" + "} " * 100_000,
        "<html>\0\ud800</html>",
        '{"error": {"code": 501}}',
    ],
)
def test_what_counts_nothing_is_no_load(said: str) -> None:
    assert llamacpp.load(said) == Load()
