from __future__ import annotations

import json
from dataclasses import replace

import pytest

from homelab.engines import ArgValue, Device, Footprint, Launch, Load, Request, Unsupported, engines, vllm
from tests.models.examples import GIB, SAFETENSORS, gguf, safetensors

ADA = Device(vendor="nvidia", name="RTX 4090", total_bytes=int(23.52 * GIB), compute_capability="8.9")
AMPERE = Device(vendor="nvidia", name="RTX 3090", total_bytes=int(23.57 * GIB), compute_capability="8.6")
PAIR = Device(
    vendor="nvidia", name="RTX 3090", total_bytes=int(23.57 * GIB), compute_capability="8.6", count=2
)


def ask(context: int = 8192, concurrency: int = 4, **args: ArgValue) -> Request:
    return Request(
        kind="chat",
        context=context,
        concurrency=concurrency,
        args=vllm.canonical(args),
    )


def terms(footprint: Footprint) -> dict[str, int]:
    return {t.name: t.bytes for t in footprint.terms}


def launch(request: Request, footprint: Footprint, weights: str = "Qwen/Qwen3-4B") -> list[str]:
    return vllm.command(
        Launch(
            model="qwen",
            weights=weights,
            host="0.0.0.0",
            port=8000,
            request=request,
            footprint=footprint,
            device=ADA,
            gpu_memory_utilization=0.1513,
        )
    )


def test_terms_and_where_they_lie() -> None:
    footprint = vllm.footprint(safetensors("qwen3-4b"), ask(), ADA)
    assert [(t.name, t.where, t.grade) for t in footprint.terms] == [
        ("weights", "device", "exact"),
        ("kv_cache", "device", "exact"),
        ("activation", "device", "bounded"),
        ("cuda_graphs", "device", "empirical"),
        ("non_torch", "device", "empirical"),
        ("reserve", "device", "empirical"),
        ("cuda_context", "context", "empirical"),
        ("process", "host", "empirical"),
    ]
    assert footprint.device_bytes - footprint.budget_bytes == terms(footprint)["cuda_context"]


def test_the_cache_holds_every_request_at_full_length() -> None:
    footprint = vllm.footprint(safetensors("qwen3-4b"), ask(8192, 4), ADA)
    assert footprint.kv_cache_bytes == (4 * 512 + 1) * 16 * 147456
    assert footprint.kv_cache_tokens == 4 * 8192
    half = vllm.footprint(safetensors("qwen3-4b"), ask(8192, 4, kv_cache_dtype="fp8"), ADA)
    assert half.kv_cache_bytes * 2 == footprint.kv_cache_bytes


def test_the_sampler_is_profiled_with_every_request() -> None:
    """Qwen3-8B with 256 requests: 0.72 GiB logged (LMCache#3430); ours is a bound."""
    found = terms(vllm.footprint(safetensors("qwen3-8b"), ask(16384, 256), ADA))["activation"] / GIB
    assert 0.72 <= found < 0.75


def test_a_forward_pass_of_many_tokens() -> None:
    """Llama-3.1-8B, one batch of 20 000 tokens: a peak of 17.06 - 14.99 GiB (vllm#10517)."""
    found = (
        terms(vllm.footprint(safetensors("llama-3.1-8b"), ask(20000, 1, max_num_batched_tokens=20000), ADA))[
            "activation"
        ]
        / GIB
    )
    assert found == pytest.approx(2.07, rel=0.02)
    assert found >= 2.07


def test_fewer_graphs_for_fewer_requests() -> None:
    few, many, eager = (
        terms(vllm.footprint(safetensors("qwen3-4b"), request, ADA))["cuda_graphs"]
        for request in (ask(8192, 4), ask(8192, 256), ask(8192, 4, enforce_eager=True))
    )
    assert eager == 0 < few < many <= 0.6 * GIB
    flags = vllm.footprint(safetensors("qwen3-4b"), ask(8192, 20), ADA).flags
    assert json.loads(str(flags["compilation-config"])) == {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 20]}


def test_weights_are_split_and_copied_over_ranks() -> None:
    groups = {
        "model.layers.*.input_layernorm.weight": [36, 1000, "BF16"],
        "model.layers.*.self_attn.k_proj.weight": [36, 40000, "BF16"],
    }
    shape = safetensors("qwen3-4b", groups=groups)
    whole, half = (terms(vllm.footprint(shape, ask(), d))["weights"] for d in (AMPERE, PAIR))
    rope = 40960 * 128 * 2
    assert half - rope == -(-(whole - rope - 1000) // 2) + 1000
    assert vllm.footprint(shape, ask(), PAIR).flags["tensor-parallel-size"] == 2


def test_weights_are_those_that_vllm_logged() -> None:
    """Llama-3.1-8B on one GPU 14.9888 GiB (vllm#10517), Qwen3-30B-A3B on four 14.2474 each (vllm#17327)."""
    one = vllm.footprint(safetensors("llama-3.1-8b", tensor_bytes=16_060_522_496), ask(), ADA)
    assert terms(one)["weights"] / GIB == pytest.approx(14.9888, abs=0.0001)
    four = Device(vendor="nvidia", name="x", total_bytes=1, count=4)
    groups = {"model.layers.*.mlp.gate.weight": [48, 48 * 2048 * 128 * 2, "BF16"]}
    shape = safetensors("qwen3-30b-a3b", tensor_bytes=61_064_245_248, groups=groups)
    assert terms(vllm.footprint(shape, ask(), four))["weights"] / GIB == pytest.approx(14.2474, rel=0.0005)


def test_weights_in_ram_are_counted_there() -> None:
    plain, offloaded = (
        vllm.footprint(safetensors("qwen3-4b"), request, ADA) for request in (ask(), ask(cpu_offload_gb=2))
    )
    assert plain.device_bytes - offloaded.device_bytes == 2 * GIB == offloaded.host_bytes - plain.host_bytes


def test_prediction_layers_are_loaded_only_for_speculation() -> None:
    shape = safetensors("qwen3.6-27b", groups={"mtp.layers.*.mlp.up_proj.weight": [1, 10**9, "BF16"]})
    plain, fast = (
        terms(vllm.footprint(shape, request, ADA))
        for request in (ask(), ask(speculative_config='{"method":"mtp","num_speculative_tokens":2}'))
    )
    assert fast["weights"] - plain["weights"] == 10**9
    assert fast["kv_cache"] > plain["kv_cache"]


def test_a_hybrid_has_the_larger_reserve_and_a_batch_that_holds_a_block() -> None:
    footprint = vllm.footprint(safetensors("qwen3.6-27b"), ask(kv_cache_dtype="fp8"), ADA)
    assert terms(footprint)["reserve"] == GIB
    assert int(str(footprint.flags["max-num-batched-tokens"])) >= 1600
    assert next(t.grade for t in footprint.terms if t.name == "kv_cache") == "bounded"


def test_images_cost_unless_they_are_off() -> None:
    shape = safetensors("gemma-4-31b", groups={"model.vision_tower.x": [1, 10**9, "BF16"]})
    seeing, blind = (
        vllm.footprint(shape, request, ADA) for request in (ask(), ask(language_model_only=True))
    )
    assert terms(seeing)["weights"] - terms(blind)["weights"] == 10**9
    assert "vision" in terms(seeing)
    assert "vision" not in terms(blind)


def test_where_ram_is_the_gpus_memory_everything_is_counted_there() -> None:
    spark = Device(
        vendor="nvidia", name="GB10", total_bytes=120 * GIB, memory_kind="unified", compute_capability="12.1"
    )
    footprint = vllm.footprint(safetensors("qwen3-4b"), ask(), spark)
    assert footprint.host_bytes == 0
    assert (
        footprint.device_bytes - footprint.budget_bytes
        == terms(footprint)["cuda_context"] + terms(footprint)["process"]
    )


MTP = '{"method": "mtp", "num_speculative_tokens": 3}'
DRAFTER = '{"model": "Org/Small", "num_speculative_tokens": 3}'


def test_layers_of_its_own_that_draft_are_loaded_and_cached() -> None:
    shape = replace(safetensors("qwen3.6-27b"), mtp_bytes=850_000_000)
    plain, asked = (vllm.footprint(shape, ask(**a), ADA) for a in ({}, {"speculative_config": MTP}))
    assert terms(asked)["weights"] - terms(plain)["weights"] == 850_000_000
    assert terms(asked)["kv_cache"] > terms(plain)["kv_cache"] * 1.05
    key = vllm.footprint(shape, replace(ask(), speculative=3), ADA)
    assert terms(key) == terms(asked)
    with pytest.raises(Unsupported, match="no layers that predict"):
        vllm.footprint(safetensors("qwen3-4b"), ask(speculative_config=MTP), ADA)


def test_another_model_that_drafts_takes_weights_and_cache_of_its_own() -> None:
    shape, small = safetensors("qwen3-8b"), replace(safetensors("qwen3-4b"), weights_bytes=8_000_000_000)
    plain = vllm.footprint(shape, ask(), ADA)
    asked = vllm.footprint(shape, replace(ask(speculative_config=DRAFTER), drafter=small), ADA)
    rotary = 40960 * 128 * 2
    assert terms(asked)["drafter"] == 8_000_000_000 + rotary
    assert terms(asked)["kv_cache"] == pytest.approx(
        2 * terms(plain)["kv_cache"], rel=0.001
    )  # 36 more layers
    own = ask(speculative_config=DRAFTER[:-1] + ', "kv_cache_dtype": "fp8"}')
    less = vllm.footprint(shape, replace(own, drafter=small), ADA)
    assert terms(less)["kv_cache"] < terms(asked)["kv_cache"]


def test_a_drafter_that_nobody_could_read_is_guessed_and_not_nothing() -> None:
    guessed = vllm.footprint(safetensors("qwen3-8b"), ask(speculative_config=DRAFTER), ADA)
    assert terms(guessed)["drafter"] > GIB
    assert {t.name: t.grade for t in guessed.terms}["drafter"] == "empirical"
    (note,) = vllm.notes(safetensors("qwen3-8b"), ask(speculative_config=DRAFTER), ADA)
    assert "Org/Small" in note


def test_a_drafter_of_another_vocabulary_is_refused() -> None:
    request = replace(ask(speculative_config=DRAFTER), drafter=safetensors("llama-3.1-8b"))
    with pytest.raises(Unsupported, match="128256 entries, and the model's 151936"):
        vllm.footprint(safetensors("qwen3-8b"), request, ADA)


@pytest.mark.parametrize("written", ["{", "[]", '{"num_speculative_tokens": "many"}', "mtp"])
def test_speculation_that_cannot_be_read_is_refused(written: str) -> None:
    with pytest.raises(Unsupported, match="speculative-config"):
        vllm.footprint(safetensors("qwen3-8b"), ask(speculative_config=written), ADA)
    assert vllm.drafter({"speculative-config": written}) is None


@pytest.mark.parametrize(
    ("config", "model"),
    [(DRAFTER, "Org/Small"), (MTP, None), ('{"method": "ngram"}', None), ('{"model": "[ngram]"}', None)],
)
def test_the_model_that_drafts_is_named(config: str, model: str | None) -> None:
    assert vllm.drafter({"speculative-config": config}) == model


def test_states_depend_on_prefix_caching_and_on_what_computes_them() -> None:
    """0.33 `MambaSpec.max_memory_usage_bytes`: a checkpoint in a prompt only where FlashInfer writes one."""
    shape = safetensors("qwen3.6-27b")
    blackwell = replace(ADA, compute_capability="12.0")
    one, two, three = (
        terms(vllm.footprint(shape, ask(**a), device))["kv_cache"]
        for a, device in (({"no_enable_prefix_caching": True}, ADA), ({}, ADA), ({}, blackwell))
    )
    assert one < two < three


def test_fp8_cache_on_ampere_is_for_models_that_flashinfer_serves() -> None:
    assert vllm.footprint(safetensors("qwen3.6-27b"), ask(kv_cache_dtype="fp8"), AMPERE)


def test_a_checkpoint_may_ask_for_its_cache() -> None:
    asked = {"kv_cache_scheme": {"num_bits": 8, "type": "float"}, "quant_method": "compressed-tensors"}
    shape = safetensors("qwen3-8b", config=SAFETENSORS["qwen3-8b"] | {"quantization_config": asked})
    half, whole = (
        terms(vllm.footprint(shape, ask(**a), ADA))["kv_cache"] for a in ({}, {"kv_cache_dtype": "bfloat16"})
    )
    assert half == pytest.approx(whole / 2, rel=0.001)


def test_tensor_parallel_takes_more_outside_of_torch_and_graphs_grow_with_their_number() -> None:
    shape = safetensors("qwen3.6-35b-a3b")
    few, many = (terms(vllm.footprint(shape, ask(concurrency=n), PAIR)) for n in (4, 256))
    assert few["non_torch"] == int(0.38 * GIB)
    assert many["cuda_graphs"] == pytest.approx(1.4 * GIB, rel=0.1)


def test_the_context_is_larger_on_wsl() -> None:
    wsl = Device(vendor="nvidia", name="RTX 4090", total_bytes=1, compute_capability="8.9", wsl=True)
    assert terms(vllm.footprint(safetensors("qwen3-4b"), ask(), wsl))["cuda_context"] == int(1.3 * GIB)


@pytest.mark.parametrize(
    ("shape", "request_", "device", "reason"),
    [
        (gguf("qwen3-4b"), ask(), ADA, "not GGUF"),
        (safetensors("qwen3-4b"), ask(65536), ADA, "made for 40960"),
        (
            safetensors("qwen3-4b"),
            ask(),
            Device(vendor="amd", name="R9700", total_bytes=1),
            "NVIDIA GPUs only",
        ),
        (safetensors("gemma-4-31b"), ask(kv_cache_dtype="fp8"), AMPERE, "capability 8.9"),
        (safetensors("qwen3-4b"), ask(kv_cache_dtype="fp8_per_token_head"), AMPERE, "capability 8.9"),
        (safetensors("qwen3-4b"), ask(kv_cache_dtype="turboquant_k8v4"), ADA, "cannot compute"),
        (safetensors("qwen3-4b"), ask(max_num_seqs="many"), ADA, "is a number"),
        (
            safetensors("qwen3-4b"),
            ask(),
            Device(vendor="nvidia", name="P40", total_bytes=1, compute_capability="6.1"),
            "7.5",
        ),
        (
            safetensors("glm-4.7-flash"),
            ask(),
            Device(vendor="nvidia", name="x", total_bytes=1, count=3),
            "20 attention heads",
        ),
        (safetensors("bge-reranker"), ask(512), ADA, "kind: rerank"),
        (safetensors("qwen3-4b"), Request(kind="rerank", context=512, concurrency=1), ADA, "classif"),
    ],
)
def test_what_it_cannot_serve_it_says(shape: object, request_: Request, device: Device, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        vllm.footprint(shape, request_, device)  # type: ignore[arg-type]


def test_a_longer_context_is_allowed_with_overrides() -> None:
    assert (
        vllm.footprint(safetensors("qwen3-4b"), ask(65536, hf_overrides="{}"), ADA).kv_cache_tokens
        == 4 * 65536
    )


def test_the_command() -> None:
    request = ask(8192, 2)
    assert launch(request, vllm.footprint(safetensors("qwen3-4b"), request, ADA)) == [
        "Qwen/Qwen3-4B",
        *("--served-model-name", "qwen", "--host", "0.0.0.0", "--port", "8000"),
        *("--max-model-len", "8192", "--max-num-seqs", "2", "--max-num-batched-tokens", "2048"),
        *("--kv-cache-memory-bytes", str((2 * 512 + 1) * 16 * 147456)),
        *("--compilation-config", '{"cudagraph_capture_sizes":[1,2]}'),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--gpu-memory-utilization", "0.151"),
    ]


def test_user_arguments_replace_ours_and_are_counted() -> None:
    request = Request(
        kind="chat",
        context=8192,
        concurrency=4,
        args=vllm.canonical({"max_num_seqs": 2, "--max-model-len": "4K", "tool-call-parser": "pythonic"}),
    )
    footprint = vllm.footprint(safetensors("qwen3-4b"), request, ADA)
    argv = launch(request, footprint)
    assert argv[-6:] == ["--max-num-seqs", "2", "--max-model-len", "4K", "--tool-call-parser", "pythonic"]
    assert argv.count("--max-model-len") == 1
    assert argv.count("--max-num-seqs") == 1
    assert footprint.kv_cache_tokens == 2 * 4096


def test_a_coder_writes_its_calls_in_another_way() -> None:
    request = ask()
    argv = launch(
        request,
        vllm.footprint(safetensors("qwen3-30b-a3b"), request, ADA),
        "Qwen/Qwen3-Coder-30B-A3B-Instruct",
    )
    assert argv[argv.index("--tool-call-parser") + 1] == "qwen3_coder"


@pytest.mark.parametrize("kind", ["embedding", "rerank"])
def test_other_kinds_pool(kind: str) -> None:
    request = Request(kind=kind, context=512, concurrency=8)  # type: ignore[arg-type]
    footprint = vllm.footprint(safetensors("bge-reranker"), request, ADA)
    assert footprint.flags["runner"] == "pooling"
    assert footprint.kv_cache_bytes == 0
    assert "kv-cache-memory-bytes" not in footprint.flags


def test_no_secret_in_argv_and_nothing_is_reported_home() -> None:
    request = ask()
    footprint = vllm.footprint(safetensors("qwen3-4b"), request, ADA)
    assert "--api-key" not in launch(request, footprint)
    made = Launch(model="m", weights="w", host="h", port=1, request=request, footprint=footprint, device=ADA)
    assert vllm.environment(made)["VLLM_NO_USAGE_STATS"] == "1"


def test_it_is_found_as_an_engine() -> None:
    assert engines()["vllm"].BUDGETED


# ---- what it does: as vLLM's metrics are, of two copies under data parallelism ----
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="qwen3-4b"} 5.0
vllm:num_requests_running{engine="1",model_name="qwen3-4b"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="qwen3-4b"} 2.0
vllm:num_requests_waiting{engine="1",model_name="qwen3-4b"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="qwen3-4b",reason="capacity"} 2.0
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="qwen3-4b"} 4.5476058e+07
vllm:generation_tokens_total{engine="1",model_name="qwen3-4b"} 210549.0
# HELP vllm:generation_tokens_created Number of generation tokens processed.
# TYPE vllm:generation_tokens_created gauge
vllm:generation_tokens_created{engine="0",model_name="qwen3-4b"} 1.743859381e+09
# HELP vllm:request_generation_tokens Number of generation tokens processed.
# TYPE vllm:request_generation_tokens histogram
vllm:request_generation_tokens_sum{engine="0",model_name="qwen3-4b"} 210549.0
"""


def test_the_load_is_that_of_all_copies_together() -> None:
    assert vllm.load(METRICS) == Load(tokens=45476058 + 210549, running=8, waiting=2)
    assert vllm.load(METRICS.replace("tokens_total{", "tokens{")).tokens == 45476058 + 210549


def test_a_label_may_hold_anything() -> None:
    odd = 'vllm:num_requests_running{model_name="a} 7 \\"{"} 2.0 1699000000000'
    assert vllm.load(odd) == Load(running=2)


@pytest.mark.parametrize(
    "said", ["", "vllm:num_requests_running NaN", "{" * 10**6, "vllm:num_requests_running 1_0"]
)
def test_what_counts_nothing_is_no_load(said: str) -> None:
    assert vllm.load(said) == Load()
