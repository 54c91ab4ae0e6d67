"""vLLM 0.33.0: safetensors models on NVIDIA GPUs, one process, one paged pool.

Formulas from its own code (`v1/worker/gpu_worker.py`, `v1/core/kv_cache_planning.py`), checked against
figures that it logged on people's machines; `docs/memory.md` says how well each holds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from homelab.engines import (
    NO_TLS,
    OWN_KEY,
    ArgValue,
    Device,
    Efficiency,
    Footprint,
    Grade,
    Launch,
    Load,
    Offload,
    Reading,
    Request,
    Term,
    Trial,
    Unsupported,
    completion_trial,
    counted,
    flags,
    whole,
)
from homelab.engines import canonical as canonical_names
from homelab.models import rules
from homelab.models.paged_kv import Draft, Element, Paging, Pool, pool, prediction_layers
from homelab.models.shape import Layer, ModelShape
from homelab.program import Offer

NAME = "vllm"
FORMATS = frozenset({"safetensors"})
RANK = 0
KINDS = frozenset({"chat", "embedding", "rerank"})
VENDORS = frozenset({"nvidia"})
OFFER = Offer(name=NAME, images={"cuda": "vllm/vllm-openai:v0.33.0"})
PORT = 8000
HEALTH = "/health"
CONTEXT_PATH = "/v1/models"
METRICS_PATH = "/metrics"
KEY_VARIABLE = "VLLM_API_KEY"
BUDGETED = True
IPC_HOST = True
# It may put two calls into one chunk, when it drafts tokens, and LiteLLM 1.106.2 runs their arguments
# together on the way back (tests/test_proofs_gateway.py).
MESSAGES = True
CACHES = ("/root/.cache/vllm",)
OUTPUTS: tuple[str, ...] = ()

GiB = 2**30
BATCHED_TOKENS = 2048
SAMPLER_BYTES = 20  # an element of `requests * vocab`; from one published log, so rounded up from there
# Measured on other people's machines; see docs/memory.md for each.
NON_TORCH, NON_TORCH_PARALLEL = int(0.15 * GiB), int(0.38 * GiB)
CUDA_CONTEXT, CUDA_CONTEXT_WSL, NCCL = int(0.5 * GiB), int(1.3 * GiB), int(0.3 * GiB)
# What an instance took beyond its budget and its context, at most, after long prompts (club-3090, releases
# 0.22 to 0.27 at `max-num-batched-tokens` 4096 and 8192): 0.16 GiB of Gemma-4-31B, 0.47 with experts
# (Gemma-4-26B-A4B), 0.58 of a hybrid (Qwen3.6-35B-A3B), 1.31 of one with speculation (27B), whose scratch is
# profiled only in part (vllm#44209); on Blackwell 2.40 on each of two GPUs, 3.31 on one.
RESERVE = {"dense": int(0.3 * GiB), "experts": GiB // 2, "hybrid": GiB, "hybrid, speculative": int(1.4 * GiB)}
RESERVE_BLACKWELL, RESERVE_BLACKWELL_PARALLEL = int(3.4 * GiB), int(2.5 * GiB)
VISION_PROFILE = GiB
PROCESS = 2 * GiB  # RAM of the server and of each further rank: libraries, tokenizer, what is loading
# Quantisations whose layers look for scales of the cache; with e5m2 they are refused
# (`layers/attention/attention.py`).
SCALED_CACHE = frozenset({"fp8", "modelopt", "modelopt_fp4", "modelopt_mixed"})
DTYPES = {
    "auto": Element(),
    "bfloat16": Element(),
    "float16": Element(),
    "nvfp4": Element(bytes=0.5 + 1 / 16),
}
DTYPES |= {name: Element(bytes=1) for name in ("fp8", "fp8_e4m3", "fp8_e5m2")}
DTYPES |= {
    "int8_per_token_head": Element(bytes=1, scale_bytes=4),
    "fp8_per_token_head": Element(bytes=1, scale_bytes=4),
}
DTYPES |= {"int4_per_token_head": Element(bytes=0.5, scale_bytes=4)}
STATE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Fitted to the published runs in `bench/fit/data/speed.jsonl` that are not held out: RTX 3090 and 5090 with
# weights of four and eight bits. docs/speed.md says how well it holds.
EFFICIENCIES: Mapping[str, Efficiency] = {
    "nvidia": Efficiency(
        decode=0.9,
        layer_us=50,
        parallel_us=60,
        spread=0.3,
        prefill=0.8,
        experts=0.55,
        prefill_spread=0.4,
        sources=("noonghunna/club-3090",),
    )
}
FIT_ARGS = {"kv-cache-dtype": frozenset(DTYPES)}
REFUSED = {
    "host": "write where the node's services listen as its `address`",
    "port": "write `port` beside `args`, on the model",
    "uds": "leave it out: the gateway reaches engines over the network",
    "api-key": OWN_KEY,
    "served-model-name": "clients use the model's name under `models`",
    "model": "write the model as `source`",
    "model-tag": "write the model as `source`",
    "config": "write its lines as `args`: homelab counts what they change",
    "hf-token": "write `hub: {token: env:HF_TOKEN}`",
    "ssl-keyfile": NO_TLS,
    "ssl-certfile": NO_TLS,
    "ssl-ca-certs": NO_TLS,
    "ssl-cert-reqs": NO_TLS,
    "enable-ssl-refresh": NO_TLS,
    "root-path": "leave it out: the gateway and health checks ask under no prefix",
    "headless": "leave it out: without its server nobody reaches the model",
}
COUNTS = frozenset(
    {
        "tensor-parallel-size",
        "pipeline-parallel-size",
        "data-parallel-size",
        "max-num-seqs",
        "max-num-batched-tokens",
        "block-size",
    }
)
# `engine/arg_utils.py`, vLLM 0.32: the short forms, and one long one.
SYNONYMS = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
    "ep": "enable-expert-parallel",
    "cc": "compilation-config",
    "sc": "speculative-config",
    "ac": "attention-config",
    "q": "quantization",
    "O": "optimization-level",
    "device-memory-utilization": "gpu-memory-utilization",
}
# What takes the place of an argument of ours, beside the argument itself.
INSTEAD = {"enable-auto-tool-choice": "no-enable-auto-tool-choice"}
# What stands for a drafter whose header is not known, from the sizes of published ones: bytes of an EAGLE or
# DFlash head or an assistant for the square of the model's hidden width (1.75 GB for Qwen3.6-27B, 2.9 for
# Gemma-4-31B, 0.85 for Gemma-4-12B), and its layers. Another model that drafts is taken for Qwen3-0.6B.
DRAFTER_BYTES, DRAFTER_LAYERS = 100, {"eagle": 1, "eagle3": 1, "dflash": 5, "dspark": 5, "mtp": 0}
SMALL_MODEL_BYTES, SMALL_MODEL_LAYERS = int(1.5e9), 28
# Without a parser named, vLLM returns a model's tool calls as plain text, and its thoughts as its answer. By
# the start of the architecture's name, the longer ones first; names as 0.33.0 registers them
# (`tool_parsers/__init__.py`, `reasoning/__init__.py`).
TOOL_PARSERS = {
    "Qwen3_5": "qwen3_coder",
    "Qwen3Next": "qwen3_coder",
    "Qwen": "hermes",
    "GptOss": "openai",
    "Llama4": "llama4_pythonic",
}
TOOL_PARSERS |= {
    "Llama": "llama3_json",
    "Mistral": "mistral",
    "Glm4MoeLite": "glm47",
    "Glm4Moe": "glm45",
    "Gemma4": "gemma4",
}
TOOL_PARSERS |= {
    "DeepseekV41": "deepseek_v41",
    "DeepseekV4": "deepseek_v4",
    "DeepseekV3": "deepseek_v3",
    "KimiLinear": "kimi_k2",
    "MiniMaxM3": "minimax_m3",
    "MiniMaxM2": "minimax_m2",
    "SeedOss": "seed_oss",
    "Lfm2": "lfm2",
}
TOOL_PARSERS |= {"GraniteMoeHybrid": "granite4", "Granite": "granite", "Olmo3": "olmo3", "Jamba": "jamba"}
TOOL_PARSERS |= {
    "NemotronH": "qwen3_coder",  # 0.33: `qwen3_xml` is the same class
    "Laguna": "poolside_v1",
    "MuseGlimmer": "muse_glimmer",
    "Step3p5": "step3p5",
    "Step3p7": "step3p5",
}
# Only generations of which every model thinks in the same way: a parser that waits for the end of thoughts
# that never began swallows the answer.
REASONING_PARSERS = {
    "Qwen3_5": "qwen3",
    "GptOss": "openai_gptoss",
    "Glm4Moe": "glm45",
    "Gemma4": "gemma4",
    "DeepseekV41": "deepseek_v41",
    "DeepseekV4": "deepseek_v4",
    "MiniMaxM3": "minimax_m3",
    "MiniMaxM2": "minimax_m2",
    "SeedOss": "seed_oss",
    "Laguna": "poolside_v1",
    "MuseGlimmer": "muse_glimmer",
    "Step3p5": "step3p5",
    "Step3p7": "step3p5",
}
# Where vLLM's image has the folder `examples`, with chat templates among it (`docker/Dockerfile`).
IMAGE_FOLDER = "/vllm-workspace"
# Of a recipe's further arguments those without which answers come out wrong; the rest is about speed.
NEEDED = ("tokenizer-mode", "config-format", "reasoning-config")


def canonical(args: Mapping[str, ArgValue]) -> dict[str, ArgValue]:
    """The user's arguments under vLLM's long names; its parser takes underscores for dashes."""
    return canonical_names(args, SYNONYMS, REFUSED, COUNTS)


def device_count(args: Mapping[str, ArgValue]) -> int | None:
    """The GPUs that tensor parallelism asks for."""
    return _number(args, "tensor-parallel-size", 1) if "tensor-parallel-size" in args else None


def footprint(shape: ModelShape, request: Request, device: Device) -> Footprint:
    """What one vLLM instance takes on each GPU, in bytes, by terms: what its budget must hold, and the CUDA
    context outside of it.

    Raises Unsupported when vLLM would refuse the model, the length or the arguments, whatever the memory."""
    given, forced = request.args, _forced(shape, request)
    args = {**given, **forced}
    request = replace(request, args=args)
    tp = _number(args, "tensor-parallel-size", device.count)
    context = _number(args, "max-model-len", request.context)
    seqs = _number(args, "max-num-seqs", request.concurrency)
    _check(shape, request, device, args, context, tp)
    drafts = _speculation(args, request)
    if drafts:
        _check_drafts(shape, request, drafts, tp)
    draft = _draft(shape, request, args, drafts, tp) if drafts else None
    batched = _number(
        args,
        "max-num-batched-tokens",
        BATCHED_TOKENS if request.kind == "chat" else max(BATCHED_TOKENS, context),
    )

    def cache_pool(batched: int) -> Pool:
        if not shape.causal:
            return Pool(block_bytes=0, blocks_per_request=0, block_tokens=16)
        return pool(shape, context, _paging(shape, request, device, drafts, tp, batched), draft)

    # A prompt's chunk ends on a block, so a hybrid's large block must fit into a batch.
    kv = cache_pool(batched)
    rows = seqs * (1 + (drafts.tokens if drafts else 0))
    if "max-num-batched-tokens" not in args:
        batched = max(batched, rows, kv.block_tokens if shape.hybrid else 0)
        kv = cache_pool(batched)
    cache = kv.bytes(seqs)
    if "kv-cache-memory-bytes" in args:
        cache = _number(args, "kv-cache-memory-bytes", cache)
    sizes = _graph_sizes(args, seqs, drafts.tokens if drafts else 0)
    ours: dict[str, ArgValue] = {
        "max-model-len": context,
        "max-num-seqs": seqs,
        "max-num-batched-tokens": batched,
    }
    if cache:
        ours["kv-cache-memory-bytes"] = cache
    if sizes is not None and "compilation-config" not in args:
        ours["compilation-config"] = json.dumps({"cudagraph_capture_sizes": sizes}, separators=(",", ":"))
    if tp > 1:
        ours["tensor-parallel-size"] = tp
    ours |= _kind_flags(shape, request, args)
    ours |= forced
    weights = _weights(shape, args, tp, drafts)
    offloaded = min(weights, int(_fraction(args, "cpu-offload-gb") * GiB))
    host: Literal["context", "host"] = "host" if device.memory_kind == "dedicated" else "context"
    known = drafts is None or drafts.model is None or request.drafter is not None
    terms = (
        Term(name="weights", bytes=weights - offloaded, grade="exact" if tp == 1 else "bounded"),
        Term(
            name="drafter",
            bytes=_drafter_weights(shape, request, drafts, tp) if drafts else 0,
            grade="bounded" if known else "empirical",
        ),
        Term(name="kv_cache", bytes=cache, grade=_cache_grade(shape, drafts) if known else "empirical"),
        Term(
            name="activation", bytes=_activation(shape, request, drafts, rows, batched, tp), grade="bounded"
        ),
        Term(name="vision", bytes=VISION_PROFILE if _sees(shape, args) else 0, grade="empirical"),
        Term(name="cuda_graphs", bytes=_graphs(shape, sizes), grade="empirical"),
        Term(name="non_torch", bytes=NON_TORCH_PARALLEL if tp > 1 else NON_TORCH, grade="empirical"),
        Term(name="reserve", bytes=_reserve(shape, device, drafts, tp), grade="empirical"),
        Term(
            name="cuda_context",
            bytes=(CUDA_CONTEXT_WSL if device.wsl else CUDA_CONTEXT) + (NCCL if tp > 1 else 0),
            grade="empirical",
            where="context",
        ),
        Term(name="weights_host", bytes=offloaded * tp, grade="bounded", where=host),
        Term(name="process", bytes=PROCESS * tp, grade="empirical", where=host),
    )
    return Footprint(
        terms=tuple(t for t in terms if t.bytes or t.name not in ("drafter", "vision", "weights_host")),
        kv_cache_bytes=cache,
        kv_cache_tokens=context * seqs if cache else 0,
        flags={name: value for name, value in ours.items() if name not in given},
    )


def reading(shape: ModelShape, request: Request, footprint: Footprint, device: Device) -> Reading:
    """Tensor parallelism reads on all GPUs at once. What is looked up in the text (`ngram`) is not counted
    on: it gains only where the text repeats itself."""
    args = {**request.args, **_forced(shape, request)}
    tp = _number(args, "tensor-parallel-size", device.count)
    element = DTYPES[_cache_dtype(shape, args)].bytes
    found = _speculation(args, request)
    drafts, drafting = found.tokens if found else 0, 0
    if found is not None and found.own_layers:
        drafting = drafts * (shape.mtp_bytes + (shape.output_bytes or shape.embedding_bytes))
    elif found is not None and found.model is not None:
        # A block of tokens comes out of one pass of DFlash and DSpark, of the others one at a time.
        passes = 1 if found.method in ("dflash", "dspark") else drafts
        drafting = passes * _drafter_weights(shape, request, found, 1)
    else:
        drafts = 0
    return Reading(
        key_bytes=element,
        value_bytes=element,
        ram_dense_bytes=sum(t.bytes for t in footprint.terms if t.name == "weights_host"),
        parallel=tp,
        drafts=drafts,
        drafting_bytes=drafting,
        batch=_number(args, "max-num-batched-tokens", BATCHED_TOKENS),
    )


def drafter(args: Mapping[str, ArgValue]) -> str | None:
    """The other model that canonical arguments name to draft tokens, None without one."""
    try:
        return _speculative_config(args).model
    except Unsupported:
        return None


def command(launch: Launch) -> list[str]:
    """The arguments after `vllm serve`, which is the image's entry point. The user's arguments come last,
    and ours give way to them."""
    args = launch.request.args
    ours: dict[str, ArgValue] = {"served-model-name": launch.model, "host": launch.host, "port": launch.port}
    ours |= launch.footprint.flags
    if (
        "coder" in launch.weights.lower()
        and ours.get("tool-call-parser") == "hermes"
        and "qwen3" in launch.weights.lower()
    ):
        ours["tool-call-parser"] = "qwen3_coder"  # same architecture as Qwen3, another way to write calls
    if launch.gpu_memory_utilization is not None:
        ours["gpu-memory-utilization"] = f"{launch.gpu_memory_utilization:.3f}"
    ours = {name: v for name, v in ours.items() if name not in args and INSTEAD.get(name) not in args}
    return [launch.weights, *flags(ours), *flags(args)]


def environment(launch: Launch) -> dict[str, str]:
    """Variables of the server's process that are no secrets. The key goes into KEY_VARIABLE."""
    return {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def reported(log: str) -> dict[str, int]:
    """What its log tells of its memory at start, in bytes by the names of our terms (vLLM 0.32:
    `v1/worker/gpu/model_runner.py`; the longer line of `gpu_worker.py` comes only without
    `--kv-cache-memory-bytes`)."""
    patterns = {
        "weights": r"Model loading took ([\d.]+) GiB",
        "cuda_graphs": r"Graph capturing finished in [\d.]+ secs, took ([\d.]+) GiB",
        "activation": r"([\d.]+) GiB for peak activation",
    }
    lines = {name: re.search(pattern, log) for name, pattern in patterns.items()}
    return {name: int(float(m[1]) * GiB) for name, m in lines.items() if m}


def trial(model: str, request: Request) -> Trial | None:
    return completion_trial(model, request)


def load(metrics: str) -> Load:
    """A series for each copy of the model under data parallelism."""
    return Load(
        tokens=counted(metrics, "vllm:generation_tokens_total", "vllm:generation_tokens"),
        running=whole(counted(metrics, "vllm:num_requests_running")),
        waiting=whole(counted(metrics, "vllm:num_requests_waiting")),
    )


def smaller_cache(device: Device) -> dict[str, ArgValue]:
    """FP8, in the form that the GPU has: e4m3 needs compute capability 8.9."""
    modern = device.compute_capability is None or float(device.compute_capability) >= 8.9
    return {"kv-cache-dtype": "fp8" if modern else "fp8_e5m2"}


def offloads(shape: ModelShape, device: Device) -> tuple[Offload, ...]:
    """None is offered: with `cpu-offload-gb` weights cross the bus for every token."""
    return ()


def notes(shape: ModelShape, request: Request, device: Device) -> Iterator[str]:
    yield from shape.notes
    if (named := drafter(request.args)) is not None and request.drafter is None:
        yield f"what {named} takes, which drafts for this model, is a guess: its header could not be read"
    yield from rules.reasons(NAME, shape, request.speculative or rules.drafts_of(request.args), request.args)


def _forced(shape: ModelShape, request: Request) -> dict[str, ArgValue]:
    """What speculation and the rules ask for, as far as the user's own arguments leave it open."""
    args = request.args
    out: dict[str, ArgValue] = {}
    if request.speculative and "speculative-config" not in args:
        # 0.33, `config/speculative.py`: `mtp` is the method of every architecture with prediction layers.
        written = {"method": "mtp", "num_speculative_tokens": request.speculative}
        out["speculative-config"] = json.dumps(written, separators=(",", ":"))
    drafts = rules.drafts_of({**args, **out})
    return out | rules.settings(NAME, shape, drafts, args)


def served_context(document: Any) -> int | None:
    """The longest request it takes, from the answer to `CONTEXT_PATH` (vLLM 0.33:
    ModelCard.max_model_len)."""
    try:
        return int(document["data"][0]["max_model_len"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _check(
    shape: ModelShape, request: Request, device: Device, args: Mapping[str, ArgValue], context: int, tp: int
) -> None:
    if shape.format not in FORMATS:
        raise Unsupported(
            "vLLM 0.33 reads safetensors, not GGUF: name the original repository or an "
            "AWQ, GPTQ or FP8 one, or use llamacpp"
        )
    if device.vendor not in VENDORS:
        raise Unsupported(f"homelab runs vLLM on NVIDIA GPUs only, and {device.name} is {device.vendor}")
    capability = float(device.compute_capability or 9)
    if capability < 7.5:
        raise Unsupported(
            f"vLLM needs compute capability 7.5, and {device.name} has {device.compute_capability}"
        )
    dtype = _cache_dtype(shape, args)
    if dtype in ("fp8", "fp8_e4m3", "fp8_per_token_head") and not (
        capability >= 8.9 or (capability >= 8 and dtype != "fp8_per_token_head" and _flashinfer(shape))
    ):
        raise Unsupported(
            f"an FP8 (e4m3) KV cache needs compute capability 8.9 for this model, and {device.name} has "
            f"{device.compute_capability}: use `kv-cache-dtype: fp8_e5m2` or int8_per_token_head"
        )
    if dtype == "fp8_e5m2" and shape.quantization in SCALED_CACHE:
        raise Unsupported(
            "vLLM refuses `kv-cache-dtype: fp8_e5m2` for checkpoints that are FP8 themselves: use `fp8`, or "
            "int8_per_token_head where the GPU has no e4m3"
        )
    if dtype not in DTYPES:
        raise Unsupported(
            f"homelab cannot compute the memory of `kv-cache-dtype: {dtype}`; it can for "
            f"{', '.join(sorted(DTYPES))}"
        )
    if shape.max_context and context > shape.max_context and not {"hf-overrides", "rope-scaling"} & set(args):
        raise Unsupported(
            f"vLLM refuses {context} tokens for this model: it was made for {shape.max_context}; "
            "lower `context`, choose a variant with a longer one, or set `hf-overrides` in `args`"
        )
    if _number(args, "pipeline-parallel-size", 1) > 1:
        raise Unsupported(
            "homelab does not count pipeline parallelism: leave `pipeline-parallel-size` out; several GPUs "
            "of one machine are used by `tensor-parallel-size`"
        )
    if tp > 1 and shape.heads % tp:
        raise Unsupported(f"its {shape.heads} attention heads cannot be split over {tp} GPUs")
    if tp > 1 and shape.recurrent and shape.recurrent.heads % tp:
        raise Unsupported(
            f"its {shape.recurrent.heads} linear-attention heads cannot be split over {tp} GPUs"
        )
    if request.kind == "chat" and shape.kind != "chat":
        raise Unsupported(
            f"this model is for {shape.kind}, and the inventory says chat: write `kind: {shape.kind}`"
        )
    if request.kind == "rerank" and shape.kind == "chat" and not {"convert", "hf-overrides"} & set(args):
        raise Unsupported(
            "vLLM reranks with classifiers, and this model generates text: name a "
            "variant for classification, or set `hf-overrides`"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Speculation:
    """How tokens are drafted: how many at a time, by what `method`, by which other `model` (None: by layers
    of the model's own, or without a model), in what cache."""

    tokens: int = 0
    method: str = ""
    model: str | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel: int | None = None
    any_vocabulary: bool = False

    @property
    def own_layers(self) -> bool:
        return self.model is None and self.method.endswith("mtp")


def _speculative_config(args: Mapping[str, ArgValue]) -> _Speculation:
    """`speculative-config` as vLLM reads it (0.33: `config/speculative.py`)."""
    if "speculative-config" not in args:
        return _Speculation()
    try:
        config = json.loads(str(args["speculative-config"]))
        tokens, parallel = config.get("num_speculative_tokens"), config.get("draft_tensor_parallel_size")
        tokens, parallel = int(tokens or 0), int(parallel or 0) or None
    except (ValueError, TypeError, AttributeError):
        raise Unsupported(
            "vLLM's `speculative-config` is JSON with whole numbers, such as "
            '\'{"method":"mtp","num_speculative_tokens":2}\'; homelab must read it to compute the memory'
        ) from None
    model = str(config["model"]) if config.get("model") else None
    method = str(config.get("method") or "")
    if model in ("ngram", "[ngram]") or method in ("ngram", "ngram_gpu", "suffix", "custom_class"):
        model, method = None, method or "ngram"
    lower = (model or "").lower()
    if model and not method:
        kinds = {"eagle-": "eagle", "eagle3": "eagle3", "dflash": "dflash", "dspark": "dspark"}
        method = next((m for part, m in kinds.items() if part in lower), "")
        method = method or ("mtp" if "assistant" in lower or "-mtp" in lower else "draft_model")
    return _Speculation(
        tokens=tokens,
        method=method,
        model=model,
        kv_cache_dtype=str(config["kv_cache_dtype"]) if config.get("kv_cache_dtype") else None,
        tensor_parallel=parallel,
        any_vocabulary=bool(config.get("use_heterogeneous_vocab")),
    )


def _speculation(args: Mapping[str, ArgValue], request: Request) -> _Speculation | None:
    if "speculative-config" in args:
        return _speculative_config(args)
    return _Speculation(tokens=request.speculative, method="mtp") if request.speculative else None


def _check_drafts(shape: ModelShape, request: Request, drafts: _Speculation, tp: int) -> None:
    """What vLLM 0.33 refuses of speculation (`config/speculative.py`)."""
    if drafts.own_layers:
        if not shape.mtp_layers:
            raise Unsupported(
                "this model has no layers that predict tokens ahead, so `method: mtp` has nothing to draft "
                "with: leave `speculative-config` out, or name a drafter as its `model`"
            )
        if drafts.tokens > shape.mtp_layers and drafts.tokens % shape.mtp_layers:
            raise Unsupported(
                f"its {shape.mtp_layers} prediction layers draft a multiple of {shape.mtp_layers} tokens, "
                f"not {drafts.tokens}"
            )
    if drafts.tensor_parallel not in (None, 1, tp):
        raise Unsupported(
            f"a drafter runs on one GPU or on all {tp}: `draft_tensor_parallel_size` is not "
            f"{drafts.tensor_parallel}"
        )
    if (other := request.drafter) is None or drafts.model is None:
        return
    if other.format not in FORMATS:
        raise Unsupported("vLLM 0.33 reads drafters as safetensors, not GGUF: name another repository")
    if _drafts_as_model(drafts, other) and other.vocab != shape.vocab and not drafts.any_vocabulary:
        raise Unsupported(
            f"{drafts.model} cannot draft for this model: its vocabulary has {other.vocab} entries, and the "
            f"model's {shape.vocab}; name a drafter of the same family"
        )


def _drafts_as_model(drafts: _Speculation, other: ModelShape) -> bool:
    """Whether the drafter is a language model by itself, not a head for this one."""
    heads = ("Eagle", "DFlash", "DSpark", "MTP", "Assistant")
    return drafts.method == "draft_model" and not any(part in other.architecture for part in heads)


def _draft(
    shape: ModelShape, request: Request, args: Mapping[str, ArgValue], drafts: _Speculation, tp: int
) -> Draft | None:
    """What speculation caches beside the model, at the drafter's own type where one is set
    (`v1/spec_decode/llm_base_proposer.py`)."""
    dtype = _cache_dtype(shape, args)
    if drafts.own_layers:
        return Draft(layers=prediction_layers(shape), element=DTYPES[dtype], tensor_parallel=tp)
    if drafts.model is None:
        return None
    if (own := drafts.kv_cache_dtype or dtype) not in DTYPES:
        raise Unsupported(
            f"homelab cannot compute the memory of `kv_cache_dtype: {own}` in `speculative-config`; it can "
            f"for {', '.join(sorted(DTYPES))}"
        )
    if request.drafter is None:
        layers = _guessed_layers(shape, drafts)
    elif request.drafter.architecture.startswith("Gemma4") and "Assistant" in request.drafter.architecture:
        layers = ()  # its layers attend to the model's own cache (`models/gemma4_mtp.py`)
    else:
        layers = request.drafter.layers
    return Draft(layers=layers, element=DTYPES[own], tensor_parallel=drafts.tensor_parallel or tp)


def _guessed_layers(shape: ModelShape, drafts: _Speculation) -> tuple[Layer, ...]:
    count = DRAFTER_LAYERS.get(drafts.method, SMALL_MODEL_LAYERS)
    return (Layer(attention="full", heads=16, kv_heads=8, key_dim=128, value_dim=128),) * count


def _drafter_weights(shape: ModelShape, request: Request, drafts: _Speculation, tp: int) -> int:
    """Bytes of another model's tensors on one rank. What it shares with the model after loading, its input
    table and output layer, is counted: both are there at the peak."""
    if drafts.model is None:
        return 0
    ranks = drafts.tensor_parallel or tp
    if other := request.drafter:
        rope = (other.max_context or 0) * other.rope_dim * other.dtype_bytes
        split = other.weights_bytes - other.replicated_bytes
        return math.ceil(split / ranks) + other.replicated_bytes + rope
    head = drafts.method in DRAFTER_LAYERS
    return math.ceil((DRAFTER_BYTES * shape.hidden**2 if head else SMALL_MODEL_BYTES) / ranks)


def _cache_dtype(shape: ModelShape, args: Mapping[str, ArgValue]) -> str:
    """The type of the cache: what is set, else what the checkpoint's quantisation asks for (0.33:
    `utils/torch_utils.py` resolve_kv_cache_dtype_string, `layers/attention/attention.py`)."""
    dtype = str(args.get("kv-cache-dtype", "auto"))
    return shape.kv_cache_dtype if dtype == "auto" else dtype


def _flashinfer(shape: ModelShape) -> bool:
    """Whether FlashInfer serves every layer: on Ampere it alone reads an e4m3 cache (0.33:
    `v1/attention/backends/flashinfer.py`, `platforms/cuda.py`)."""
    return (
        not shape.mla
        and not shape.architecture.startswith(("GptOss", "Gemma"))
        and all(layer.key_dim in (64, 128, 256, 512) for layer in shape.layers if layer.attention != "none")
    )


def _paging(
    shape: ModelShape,
    request: Request,
    device: Device,
    drafts: _Speculation | None,
    tp: int,
    batched: int,
) -> Paging:
    args = request.args
    states, alignment = _states(shape, args, device)
    return Paging(
        element=DTYPES[_cache_dtype(shape, args)],
        dtype_bytes=shape.dtype_bytes,
        tensor_parallel=tp,
        in_flight=_batches(request) * batched,
        states=states,
        speculative=drafts.tokens if drafts else 0,
        alignment=alignment,
        block=_number(args, "block-size", 64 if shape.mla else 16),
        hybrid_manager=not _on(args, "disable-hybrid-kv-cache-manager"),
        state_dtype_bytes=STATE_BYTES.get(str(args.get("mamba-ssm-cache-dtype"))),
        conv_dtype_bytes=STATE_BYTES.get(str(args.get("mamba-cache-dtype"))),
    )


def _batches(request: Request) -> int:
    """Batches under way at once: two with asynchronous scheduling, which is on for text generation
    (`config/vllm.py` max_concurrent_batches)."""
    asynchronous = request.args.get("async-scheduling", True) and not _on(request.args, "no-async-scheduling")
    return 2 if request.kind == "chat" and asynchronous else 1


def _states(shape: ModelShape, args: Mapping[str, ArgValue], device: Device) -> tuple[int, int]:
    """The recurrent states that one request holds, and what a hybrid's block is rounded up to.

    Without prefix caching one. With it the running state, the one before it, and a checkpoint inside a
    prompt where the layers can write one: Mamba 2 always, Qwen's gated delta rule where FlashInfer computes
    it, in steps of 64 tokens (compute capability 9, 10 or 12), Kimi's likewise (`v1/kv_cache_interface.py`
    MambaSpec, `layers/mamba/`, `platforms/interface.py` _align_hybrid_block_size)."""
    if (
        shape.recurrent is None
        or _on(args, "no-enable-prefix-caching")
        or args.get("enable-prefix-caching") is False
    ):
        return 1, 16
    scan = shape.recurrent.scan
    major = int(float(device.compute_capability or 9))
    backend = str(args.get("gdn-prefill-backend", "auto"))
    if scan == "gated-delta" and backend in ("auto", "flashinfer") and major in (9, 10, 12):
        return 3, 64
    if scan == "kda" and major in (9, 10, 12):
        return 3, 16
    return (3 if scan in ("mamba2", "other") else 2), 16


def _reserve(shape: ModelShape, device: Device, drafts: _Speculation | None, tp: int) -> int:
    if not shape.hybrid:
        return RESERVE["experts" if shape.experts else "dense"]
    if not drafts:
        return RESERVE["hybrid"]
    if float(device.compute_capability or 0) >= 10:
        return RESERVE_BLACKWELL if tp == 1 else RESERVE_BLACKWELL_PARALLEL
    return RESERVE["hybrid, speculative"]


def _weights(shape: ModelShape, args: Mapping[str, ArgValue], tp: int, drafts: _Speculation | None) -> int:
    """Bytes of the tensors that one rank loads, and its table of rotary embeddings."""
    loaded = shape.weights_bytes
    if drafts is None or not drafts.own_layers:
        loaded -= shape.mtp_bytes
    vision = shape.vision_bytes if _sees(shape, args) else 0
    loaded -= shape.vision_bytes - vision
    rope = (shape.max_context or 0) * shape.rope_dim * shape.dtype_bytes
    if tp == 1:
        return loaded + rope
    # The vision tower is split like the rest, unless each rank is to hold a whole one (`config/multimodal.py`
    # mm_encoder_tp_mode).
    whole = shape.replicated_bytes + (vision if args.get("mm-encoder-tp-mode") == "data" else 0)
    copies = (
        shape.kv_projection_bytes * (tp - shape.kv_heads) // (tp * shape.kv_heads)
        if 0 < shape.kv_heads < tp
        else 0
    )
    return math.ceil((loaded - whole) / tp) + whole + copies + rope


def _activation(
    shape: ModelShape, request: Request, drafts: _Speculation | None, rows: int, batched: int, tp: int
) -> int:
    """The larger of the peaks that vLLM profiles one after another: a forward pass over a full batch, that of
    a drafter over the same batch with the model's hidden states at hand, and sampling for every request at
    once, `rows` with the drafted tokens."""
    forward = _forward(shape, batched, tp)
    if drafts and (drafts.model or drafts.own_layers):
        other = request.drafter if drafts.model else None
        inputs = 3 if drafts.method == "eagle3" else 1
        hidden = batched * shape.hidden * shape.dtype_bytes * (1 + inputs)
        forward = max(
            forward, hidden + (_forward(other, batched, drafts.tensor_parallel or tp) if other else 0)
        )
    return max(forward, rows * shape.vocab * SAMPLER_BYTES) if request.kind == "chat" else forward


def _forward(shape: ModelShape, batched: int, tp: int) -> int:
    query = (
        max(
            (layer.heads * layer.key_dim for layer in shape.layers if layer.attention in ("full", "sliding")),
            default=0,
        )
        // tp
    )
    width = (
        6 * max(shape.hidden, query)
        + 6 * math.ceil(shape.intermediate / tp)
        + 2 * shape.experts_used * shape.hidden
    )
    forward = batched * width * 102 // 100  # logged peaks were up to 0.5 % above the formula
    if r := shape.recurrent:  # the chunked scan's scratch, which profiling sees only in part
        forward += batched * (r.state_elements // 64 + 2 * r.conv_channels) * 2 // tp
    return forward


def _graph_sizes(args: Mapping[str, ArgValue], seqs: int, speculative: int) -> list[int] | None:
    """Batch sizes to capture, no larger than the number of requests; None when there are no graphs. With
    speculation a request is as many tokens as are verified at once, and only multiples of that are used
    (`config/vllm.py`, `config/compilation.py` adjust_cudagraph_sizes_for_spec_decode)."""
    if _on(args, "enforce-eager"):
        return None
    if isinstance(text := args.get("compilation-config"), str):
        try:
            sizes = json.loads(text).get("cudagraph_capture_sizes")
        except (ValueError, AttributeError):
            sizes = None
        return [int(s) for s in sizes] if isinstance(sizes, list) else list(range(51))
    steps = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    requests = [s for s in steps if s < seqs] + [seqs] if seqs <= 512 else steps
    return [n * (1 + speculative) for n in requests]


def _graphs(shape: ModelShape, sizes: list[int] | None) -> int:
    """From logs of 0.19 to 0.27: dense, 0.10 GiB for 8 sizes and 0.55 for 51; with recurrent layers, 0.25 to
    0.49 for 3 to 5; experts, 1.4 for the 35 sizes of 256 requests. Not better than a third of a GiB."""
    if not sizes:
        return 0
    start = 0.35 if shape.hybrid else 0.1
    return int((start + (0.037 if shape.experts else 0.01) * len(sizes)) * GiB)


def _cache_grade(shape: ModelShape, drafts: _Speculation | None) -> Grade:
    return "bounded" if shape.hybrid or shape.notes or drafts else "exact"


def _sees(shape: ModelShape, args: Mapping[str, ArgValue]) -> bool:
    return bool(shape.vision_bytes) and not _on(args, "language-model-only")


def _kind_flags(shape: ModelShape, request: Request, args: Mapping[str, ArgValue]) -> dict[str, ArgValue]:
    if request.kind != "chat":
        return {"runner": "pooling"}
    recipe, architecture = request.recipe, shape.architecture
    tools = (recipe and recipe.tool_parser) or _by_start(TOOL_PARSERS, architecture)
    thoughts = (recipe and recipe.reasoning_parser) or _by_start(REASONING_PARSERS, architecture)
    out: dict[str, ArgValue] = {}
    if tools and "tool-call-parser" not in args:
        out |= {"enable-auto-tool-choice": True, "tool-call-parser": tools}
    if thoughts:
        out["reasoning-parser"] = thoughts
    if recipe is not None:
        if recipe.chat_template:
            out["chat-template"] = f"{IMAGE_FOLDER}/{recipe.chat_template}"
        out |= {name: recipe.args[name] for name in NEEDED if name in recipe.args}
        if recipe.args.get("load-format") == "mistral":
            out["load-format"] = "mistral"
    return out


def _by_start(parsers: Mapping[str, str], architecture: str) -> str | None:
    return next((parser for start, parser in parsers.items() if architecture.startswith(start)), None)


def _on(args: Mapping[str, Any], name: str) -> bool:
    return name in args and args[name] is not False


def _fraction(args: Mapping[str, Any], name: str) -> float:
    try:
        return float(args.get(name) or 0)
    except (TypeError, ValueError):
        raise Unsupported(f"vLLM's `{name}` is a number, not {args[name]!r}") from None


def _number(args: Mapping[str, Any], name: str, default: int) -> int:
    """A count as vLLM reads it: 32k is 32 000, 32K is 32 768 (`human_readable_int`)."""
    value = args.get(name, default)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)(?:iB)?", str(value).strip())
    if match is None or isinstance(value, bool):
        raise Unsupported(
            f"vLLM's `{name}` is a number, not {value!r}; homelab must know it to compute the memory"
        )
    power = "kmgt".find(match[2].lower()) + 1 if match[2] else 0
    return int(float(match[1]) * (1000 if match[2].islower() else 1024) ** power)
