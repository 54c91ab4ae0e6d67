from __future__ import annotations

import json
from dataclasses import replace

import pytest

from homelab.engines import ArgValue, Device, Footprint, Launch, Load, Request, Unsupported, engines, vllm
from tests.models.examples import GIB, gguf, safetensors

ADA = Device(vendor="nvidia", name="RTX 4090", total_bytes=int(23.52 * GIB), compute_capability="8.9")
HOPPER = Device(vendor="nvidia", name="H100", total_bytes=80 * GIB, compute_capability="9.0")
BLACKWELL = Device(vendor="nvidia", name="RTX 5090", total_bytes=int(31.36 * GIB), compute_capability="12.0")
MTP = '{"method":"mtp","num_speculative_tokens":3}'
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
    experts = terms(vllm.footprint(safetensors("qwen3-30b-a3b"), ask(8192, 256), ADA))["cuda_graphs"]
    assert experts / GIB == pytest.approx(1.4, abs=0.01)  # logged for 256 requests
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
    assert (
        terms(footprint)["reserve"]
        == GIB
        > terms(vllm.footprint(safetensors("qwen3-4b"), ask(), ADA))["reserve"]
    )
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
        (
            replace(safetensors("qwen3-4b"), quantization="fp8"),
            ask(kv_cache_dtype="fp8_e5m2"),
            AMPERE,
            "FP8 themselves",
        ),
        (safetensors("qwen3-4b"), ask(speculative_config=MTP), ADA, "predict tokens ahead"),
        (safetensors("qwen3-4b"), ask(speculative_config="{method: mtp}"), ADA, "JSON"),
        (
            safetensors("qwen3-4b"),
            ask(speculative_config='{"model":"x/dflash","kv_cache_dtype":"tq3"}'),
            ADA,
            "cannot compute",
        ),
        (
            safetensors("qwen3-4b"),
            ask(speculative_config='{"model":"x/y-dflash","draft_tensor_parallel_size":3}'),
            PAIR,
            "one GPU or on all 2",
        ),
        (safetensors("qwen3-4b"), ask(kv_cache_dtype="turboquant_k8v4"), ADA, "cannot compute"),
        (safetensors("qwen3-4b"), ask(max_num_seqs="many"), ADA, "is a number"),
        (safetensors("qwen3-4b"), ask(pp=2), ADA, "does not count pipeline parallelism"),
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


# ---- speculation ----
def drafted(
    shape: object, model: str, drafter: object = None, device: Device = ADA, **more: object
) -> Footprint:
    config = json.dumps({"model": model, "num_speculative_tokens": 3} | more)
    request = replace(ask(speculative_config=config), drafter=drafter)  # type: ignore[arg-type]
    return vllm.footprint(shape, request, device)  # type: ignore[arg-type]


def test_a_drafter_is_loaded_and_cached() -> None:
    target, small = safetensors("qwen3-8b"), safetensors("qwen3-4b")
    plain, fast = vllm.footprint(target, ask(), ADA), drafted(target, "Qwen/Qwen3-4B", small)
    assert terms(fast)["drafter"] == small.weights_bytes + 40960 * 128 * 2
    assert terms(fast)["kv_cache"] == 2 * terms(plain)["kv_cache"]  # both cache 147 456 bytes a token
    grades = {t.name: t.grade for t in fast.terms}
    assert (grades["drafter"], grades["kv_cache"]) == ("bounded", "bounded")
    assert "drafter" not in terms(plain)


def test_an_unknown_drafter_is_guessed_not_left_out() -> None:
    """z-lab/Qwen3.6-27B-DFlash has 1.75 GB, z-lab/gemma-4-31b-it-dflash 2.9."""
    plain = vllm.footprint(safetensors("gemma-4-31b"), ask(), ADA)
    fast = drafted(safetensors("gemma-4-31b"), "z-lab/gemma-4-31b-it-dflash", method="dflash")
    assert terms(fast)["drafter"] == pytest.approx(2.9e9, rel=0.01)
    assert terms(fast)["kv_cache"] > terms(plain)["kv_cache"]
    grades = {t.name: t.grade for t in fast.terms}
    assert grades["drafter"] == grades["kv_cache"] == "empirical"
    assert terms(drafted(safetensors("qwen3-8b"), "Qwen/Qwen3-0.6B"))["drafter"] == 1_500_000_000


def test_an_assistant_attends_to_the_model_s_own_cache() -> None:
    target = safetensors("gemma-4-12b")
    assistant = replace(safetensors("qwen3-4b"), architecture="Gemma4AssistantForCausalLM")
    fast = drafted(target, "google/gemma-4-12B-it-assistant", assistant)
    assert terms(fast)["kv_cache"] == terms(vllm.footprint(target, ask(), ADA))["kv_cache"]
    assert terms(fast)["drafter"] > 0


def test_a_drafter_with_another_vocabulary_is_refused_as_vllm_refuses_it() -> None:
    target, other = safetensors("qwen3-8b"), safetensors("llama-3.1-8b")
    with pytest.raises(Unsupported, match="128256 entries, and the model's 151936"):
        drafted(target, "meta-llama/Llama-3.2-1B", other)
    drafted(target, "meta-llama/Llama-3.2-1B", other, use_heterogeneous_vocab=True)
    head = replace(other, architecture="LlamaForCausalLMEagle3")  # a head maps its own to the model's
    drafted(target, "x/y", head)
    drafted(target, "x/EAGLE3-Qwen3-8B", other)
    with pytest.raises(Unsupported, match="not GGUF"):
        drafted(target, "x/y", gguf("qwen3-4b"))


def test_a_drafter_is_split_or_whole_over_gpus() -> None:
    target, small = safetensors("qwen3-8b"), safetensors("qwen3-4b")
    split = terms(drafted(target, "Qwen/Qwen3-4B", small, PAIR))["drafter"]
    whole = terms(drafted(target, "Qwen/Qwen3-4B", small, PAIR, draft_tensor_parallel_size=1))["drafter"]
    assert whole > 1.9 * split


def test_own_layers_draft_by_argument_or_by_request() -> None:
    shape = safetensors("qwen3.6-27b", groups={"mtp.layers.*.mlp.up_proj.weight": [1, 10**9, "BF16"]})
    named = vllm.footprint(shape, ask(speculative_config=MTP), ADA)
    asked = vllm.footprint(shape, replace(ask(), speculative=3), ADA)
    assert named.terms == asked.terms
    assert terms(named)["kv_cache"] > terms(vllm.footprint(shape, ask(), ADA))["kv_cache"]


def test_graphs_hold_whole_verifications() -> None:
    """vLLM uses only sizes that are a multiple of the tokens verified at once."""
    flags = vllm.footprint(safetensors("qwen3.6-27b"), ask(8192, 2, speculative_config=MTP), ADA).flags
    assert json.loads(str(flags["compilation-config"])) == {"cudagraph_capture_sizes": [4, 8]}


def test_drafts_without_a_model_take_no_layers() -> None:
    ngram = '{"method":"ngram","num_speculative_tokens":3}'
    plain, fast = (
        vllm.footprint(safetensors("qwen3-8b"), request, ADA)
        for request in (ask(), ask(speculative_config=ngram))
    )
    assert terms(plain)["kv_cache"] == terms(fast)["kv_cache"]
    assert "drafter" not in terms(fast)


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ('{"model":"z-lab/Qwen3.6-27B-DFlash","method":"dflash"}', "z-lab/Qwen3.6-27B-DFlash"),
        (MTP, None),
        ('{"model":"ngram"}', None),
        ("no JSON", None),
        ("[1]", None),
    ],
)
def test_the_drafter_that_arguments_name(config: str, model: str | None) -> None:
    assert vllm.drafter({"speculative-config": config}) == model
    assert vllm.drafter({}) is None


# ---- what depends on the card, the arguments, the checkpoint ----
def test_states_of_a_request_by_card_and_prefix_caching() -> None:
    """0.33: one without prefix caching, two with it, three where FlashInfer writes a checkpoint."""
    shape = safetensors("qwen3.6-27b")
    ada, hopper, off = (
        vllm.footprint(shape, request, device).kv_cache_bytes
        for request, device in (
            (ask(), ADA),
            (ask(), HOPPER),
            (ask(no_enable_prefix_caching=True), ADA),
        )
    )
    assert off < ada < hopper
    triton = vllm.footprint(shape, ask(gdn_prefill_backend="triton"), HOPPER).kv_cache_bytes
    assert triton == ada


def test_states_may_be_kept_in_16_bits() -> None:
    shape = safetensors("qwen3.6-27b")
    half = vllm.footprint(shape, ask(mamba_ssm_cache_dtype="float16"), ADA).kv_cache_bytes
    assert half < vllm.footprint(shape, ask(), ADA).kv_cache_bytes


def test_one_batch_is_under_way_without_asynchronous_scheduling() -> None:
    shape = safetensors("gpt-oss-120b")
    two, one, off = (
        vllm.footprint(shape, request, ADA).kv_cache_bytes
        for request in (ask(), ask(no_async_scheduling=True), ask(async_scheduling=False))
    )
    assert off == one < two


def test_a_checkpoint_s_own_cache_is_counted_unless_another_is_set() -> None:
    shape = replace(safetensors("qwen3-8b"), kv_cache_dtype="fp8")
    whole = vllm.footprint(safetensors("qwen3-8b"), ask(), ADA).kv_cache_bytes
    assert vllm.footprint(shape, ask(), ADA).kv_cache_bytes * 2 == whole
    assert vllm.footprint(shape, ask(kv_cache_dtype="bfloat16"), ADA).kv_cache_bytes == whole


def test_ampere_reads_an_e4m3_cache_where_flashinfer_serves_the_model() -> None:
    """2 × RTX 3090, fp8_e4m3: club-3090 BENCHMARKS.md:357."""
    assert vllm.footprint(safetensors("qwen3.6-27b"), ask(kv_cache_dtype="fp8_e4m3"), PAIR)


def test_more_is_outside_torch_over_several_gpus() -> None:
    one, two = (terms(vllm.footprint(safetensors("qwen3-8b"), ask(), d))["non_torch"] for d in (AMPERE, PAIR))
    assert 0.34 * GIB <= two <= 0.39 * GIB
    assert one < two


def test_the_margin_is_of_what_was_seen() -> None:
    """Beyond budget and context, MiB: 2 461 and 3 392 of Qwen3.6-27B with MTP on RTX 5090s (two, one), 1 346
    on two RTX 3090s, 598 of Qwen3.6-35B-A3B without (club-3090 BENCHMARKS.md)."""
    mtp = ask(speculative_config=MTP)
    dense = safetensors("qwen3.6-27b")
    two = replace(BLACKWELL, count=2)
    cases = ((mtp, two, 2461), (mtp, BLACKWELL, 3392), (mtp, PAIR, 1346), (ask(), two, 598))
    for request, device, seen in cases:
        reserve = terms(vllm.footprint(dense, request, device))["reserve"]
        assert seen * 2**20 <= reserve <= seen * 2**20 + GIB // 2


def test_a_vision_tower_is_split_unless_each_gpu_holds_one() -> None:
    shape = safetensors("gemma-4-31b", groups={"model.vision_tower.x": [1, 10**9, "BF16"]})
    split, whole = (
        terms(vllm.footprint(shape, request, PAIR))["weights"]
        for request in (ask(), ask(mm_encoder_tp_mode="data"))
    )
    assert whole - split == 10**9 // 2
