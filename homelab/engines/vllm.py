"""vLLM 0.33.0: safetensors models on NVIDIA GPUs, one process, one paged pool.

Formulas from its own code (`v1/worker/gpu_worker.py`, `v1/core/kv_cache_planning.py`), checked against
figures that it logged on people's machines; `docs/memory.md` says how well each holds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from homelab.engines import (
    NO_TLS,
    OWN_KEY,
    ArgValue,
    Device,
    Footprint,
    Grade,
    Launch,
    Load,
    Offload,
    Request,
    Term,
    Unsupported,
    counted,
    flags,
    whole,
)
from homelab.engines import canonical as canonical_names
from homelab.models.paged_kv import Element, Paging, Pool, pool
from homelab.models.shape import ModelShape
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
CACHES = ("/root/.cache/vllm",)
OUTPUTS: tuple[str, ...] = ()

GiB = 2**30
BATCHED_TOKENS = 2048
# With asynchronous scheduling, the default, two batches are under way at once (`config/vllm.py`
# max_concurrent_batches).
BATCHES = 2
SAMPLER_BYTES = 20  # an element of `requests * vocab`; from one published log, so rounded up from there
# Measured on other people's machines; see docs/memory.md for each.
NON_TORCH = int(0.15 * GiB)
CUDA_CONTEXT, CUDA_CONTEXT_WSL, NCCL = int(0.5 * GiB), int(1.3 * GiB), int(0.3 * GiB)
RESERVE, RESERVE_HYBRID = int(0.3 * GiB), GiB
VISION_PROFILE = GiB
PROCESS = 2 * GiB  # RAM of the server and of each further rank: libraries, tokenizer, what is loading
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
# Without a parser named, vLLM returns a model's tool calls as plain text. By the start of the
# architecture's name.
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
    "DeepseekV3": "deepseek_v3",
    "KimiLinear": "kimi_k2",
    "MiniMaxM2": "minimax_m2",
    "SeedOss": "seed_oss",
    "Lfm2": "lfm2",
}
TOOL_PARSERS |= {"GraniteMoeHybrid": "granite4", "Granite": "granite", "Olmo3": "olmo3", "Jamba": "jamba"}


def canonical(args: Mapping[str, ArgValue]) -> dict[str, ArgValue]:
    """The user's arguments under vLLM's long names; its parser takes underscores for dashes."""
    return canonical_names(args, SYNONYMS, REFUSED, COUNTS)


def device_count(args: Mapping[str, ArgValue]) -> int | None:
    """The GPUs that tensor parallelism asks for."""
    return _number(args, "tensor-parallel-size", 1) if "tensor-parallel-size" in args else None


def drafter(args: Mapping[str, ArgValue]) -> str | None:
    """The `model` of `speculative-config`."""
    try:
        named = json.loads(str(args.get("speculative-config"))).get("model")
    except (ValueError, AttributeError, RecursionError):
        return None
    return named if isinstance(named, str) else None


def footprint(shape: ModelShape, request: Request, device: Device) -> Footprint:
    """What one vLLM instance takes on each GPU, in bytes, by terms: what its budget must hold, and the CUDA
    context outside of it.

    Raises Unsupported when vLLM would refuse the model, the length or the arguments, whatever the memory."""
    args = request.args
    tp = _number(args, "tensor-parallel-size", device.count)
    context = _number(args, "max-model-len", request.context)
    seqs = _number(args, "max-num-seqs", request.concurrency)
    _check(shape, request, device, args, context, tp)
    batched = _number(
        args,
        "max-num-batched-tokens",
        BATCHED_TOKENS if request.kind == "chat" else max(BATCHED_TOKENS, context),
    )
    # A prompt's chunk ends on a block, so a hybrid's large block must fit into a batch.
    kv = (
        pool(shape, context, _paging(shape, args, tp, batched))
        if shape.causal
        else Pool(block_bytes=0, blocks_per_request=0, block_tokens=16)
    )
    if "max-num-batched-tokens" not in args:
        batched = max(batched, seqs, kv.block_tokens if shape.hybrid else 0)
        kv = pool(shape, context, _paging(shape, args, tp, batched)) if shape.causal else kv
    cache = kv.bytes(seqs)
    if "kv-cache-memory-bytes" in args:
        cache = _number(args, "kv-cache-memory-bytes", cache)
    sizes = _graph_sizes(args, seqs)
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
    weights = _weights(shape, args, tp)
    offloaded = min(weights, int(_fraction(args, "cpu-offload-gb") * GiB))
    host: Literal["context", "host"] = "host" if device.memory_kind == "dedicated" else "context"
    terms = (
        Term(name="weights", bytes=weights - offloaded, grade="exact" if tp == 1 else "bounded"),
        Term(name="kv_cache", bytes=cache, grade=_cache_grade(shape, args)),
        Term(name="activation", bytes=_activation(shape, request, seqs, batched, tp), grade="bounded"),
        Term(name="vision", bytes=VISION_PROFILE if _sees(shape, args) else 0, grade="empirical"),
        Term(name="cuda_graphs", bytes=_graphs(sizes), grade="empirical"),
        Term(name="non_torch", bytes=NON_TORCH, grade="empirical"),
        Term(name="reserve", bytes=RESERVE_HYBRID if shape.hybrid else RESERVE, grade="empirical"),
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
        terms=tuple(t for t in terms if t.bytes or t.name not in ("vision", "weights_host")),
        kv_cache_bytes=cache,
        kv_cache_tokens=context * seqs if cache else 0,
        flags={name: value for name, value in ours.items() if name not in args},
    )


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
    dtype = str(args.get("kv-cache-dtype", "auto"))
    if dtype in ("fp8", "fp8_e4m3", "fp8_per_token_head") and capability < 8.9:
        raise Unsupported(
            f"an FP8 (e4m3) KV cache needs compute capability 8.9, and {device.name} has "
            f"{device.compute_capability}: use `kv-cache-dtype: fp8_e5m2` or int8_per_token_head"
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


def _paging(shape: ModelShape, args: Mapping[str, ArgValue], tp: int, batched: int) -> Paging:
    caching = not _on(args, "no-enable-prefix-caching")
    speculative = _speculative(args)
    return Paging(
        element=DTYPES[str(args.get("kv-cache-dtype", "auto"))],
        dtype_bytes=shape.dtype_bytes,
        tensor_parallel=tp,
        in_flight=BATCHES * batched,
        # Prefix caching holds the running state, the one before it, and (0.33) a checkpoint inside a prompt.
        states=3 if caching else 1,
        speculative=speculative,
        alignment=64 if caching else 16,
        block=_number(args, "block-size", 64 if shape.mla else 16),
        hybrid_manager=not _on(args, "disable-hybrid-kv-cache-manager"),
    )


def _weights(shape: ModelShape, args: Mapping[str, ArgValue], tp: int) -> int:
    """Bytes of the tensors that one rank loads, and its table of rotary embeddings."""
    loaded = shape.weights_bytes
    if "speculative-config" not in args:
        loaded -= shape.mtp_bytes
    if not _sees(shape, args):
        loaded -= shape.vision_bytes
    rope = (shape.max_context or 0) * shape.rope_dim * shape.dtype_bytes
    if tp == 1:
        return loaded + rope
    split = loaded - shape.replicated_bytes
    copies = (
        shape.kv_projection_bytes * (tp - shape.kv_heads) // (tp * shape.kv_heads)
        if 0 < shape.kv_heads < tp
        else 0
    )
    return math.ceil(split / tp) + shape.replicated_bytes + copies + rope


def _activation(shape: ModelShape, request: Request, seqs: int, batched: int, tp: int) -> int:
    """The larger of two peaks that vLLM profiles: a forward pass over a full batch, and sampling for every
    request at once."""
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
    return max(forward, seqs * shape.vocab * SAMPLER_BYTES) if request.kind == "chat" else forward


def _graph_sizes(args: Mapping[str, ArgValue], seqs: int) -> list[int] | None:
    """Batch sizes to capture, no larger than the number of requests; None when there are no graphs."""
    if _on(args, "enforce-eager"):
        return None
    if isinstance(text := args.get("compilation-config"), str):
        try:
            sizes = json.loads(text).get("cudagraph_capture_sizes")
        except (ValueError, AttributeError):
            sizes = None
        return [int(s) for s in sizes] if isinstance(sizes, list) else list(range(51))
    steps = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    return [s for s in steps if s < seqs] + [seqs] if seqs <= 512 else steps


def _graphs(sizes: list[int] | None) -> int:
    """0.11 GiB was seen for 4 sizes, 0.36 for 16, 0.52 for 51 (twice captured); not better than a third of
    a GiB."""
    return int(min(0.6, 0.1 + 0.02 * len(sizes)) * GiB) if sizes else 0


def _cache_grade(shape: ModelShape, args: Mapping[str, ArgValue]) -> Grade:
    return "bounded" if shape.hybrid or shape.notes or "speculative-config" in args else "exact"


def _sees(shape: ModelShape, args: Mapping[str, ArgValue]) -> bool:
    return bool(shape.vision_bytes) and not _on(args, "language-model-only")


def _kind_flags(shape: ModelShape, request: Request, args: Mapping[str, ArgValue]) -> dict[str, ArgValue]:
    if request.kind != "chat":
        return {"runner": "pooling"}
    parser = next(
        (parser for start, parser in TOOL_PARSERS.items() if shape.architecture.startswith(start)), None
    )
    if parser is None or "tool-call-parser" in args:
        return {}
    return {"enable-auto-tool-choice": True, "tool-call-parser": parser}


def _speculative(args: Mapping[str, ArgValue]) -> int:
    match = re.search(r'"num_speculative_tokens"\s*:\s*(\d+)', str(args.get("speculative-config", "")))
    return int(match[1]) if match else 0


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
