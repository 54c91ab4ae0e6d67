"""llama.cpp's `llama-server`: GGUF files on NVIDIA, AMD, Apple and Intel GPUs, and on plain CPUs.

Formulas from llama.cpp 0.6.0 (`src/llama-kv-cache*.cpp`, `src/llama-memory-recurrent.cpp`,
`src/llama-model.cpp`), checked against its own `llama-fit-params` and against b11549 (`bench/fit`). Flags
checked against the parser of the same release."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
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
from homelab.models.ggml_graph import Graph, pad
from homelab.models.projector import chosen
from homelab.models.shape import Layer, ModelShape
from homelab.program import Offer, PythonEnvironment

NAME = "llamacpp"
FORMATS = frozenset({"gguf"})
RANK = 0
KINDS = frozenset({"chat", "embedding", "rerank"})
VENDORS = frozenset({"nvidia", "amd", "apple", "intel", "cpu"})
# llama.cpp publishes one image per build and accelerator.
OFFER = Offer(
    name=NAME,
    images={
        "cuda": "ghcr.io/ggml-org/llama.cpp:server-cuda12-b9603",
        "cpu": "ghcr.io/ggml-org/llama.cpp:server-b9603",
    },
    environment=PythonEnvironment(name="llamacpp", program="llama-server"),
    executable="llama-server",
)
PORT = 8080
HEALTH = "/health"
CONTEXT_PATH = "/props"
METRICS_PATH = "/metrics"
KEY_VARIABLE = "LLAMA_API_KEY"
BUDGETED = False
IPC_HOST = False
# Its own /v1/messages knows no output format and no named tool (b11549, tests/test_proofs_gateway.py).
MESSAGES = False
CACHES: tuple[str, ...] = ()
# For how many tokens of a batch rows of logits are reserved: `all` is what `llama-fit-params` counts and
# older servers do; `slots` what servers from 0.6.0 on reserve (`server-context.cpp`,
# `server_output_limits`): one for each slot and draft token.
OUTPUTS = ("all", "slots")

MiB = 2**20
# Context, kernels and the pool that grows with use: 0.4-0.6 GiB seen; WSL2 adds about 0.8 GiB. llama.cpp's
# own margin for both is 1 GiB.
GPU_CONTEXT = {"nvidia": 600 * MiB, "amd": 600 * MiB, "intel": 600 * MiB, "apple": 256 * MiB}
WSL_EXTRA = 800 * MiB
PROCESS = 256 * MiB
# llama-server keeps old prompts in RAM, up to 8 GiB by default, and up to 32 snapshots a slot of what
# cannot be rolled back (windows and states: 0.3 GiB each in some models). Both get 1 GiB, less where the
# model itself lies in a small RAM.
CACHE_MIB, SMALLEST_CACHE_MIB = 1024, 128
CHECKPOINTS = 8
UBATCH = 512
BATCH = 2048
DRAFTS = 3  # `common_params_speculative_draft::n_max`
# The margin: the most that runs on people's cards took beyond all that is counted (the household table in
# docs/memory.md; NVIDIA only): 0.16 GiB on an RTX 5090 (b10451); with prediction layers that draft 0.87
# (b9246, a prompt of 138 000 tokens and images).
RESERVE = {"plain": 256 * MiB, "drafts": 1024 * MiB}
# What stands for a drafter whose header is not known: a model of 0.6 billion parameters with its cache.
UNKNOWN_DRAFTER = int(1.5 * 2**30)
# A drafter's vocabulary may differ by so many entries (`common/speculative.cpp`
# SPEC_VOCAB_MAX_SIZE_DIFFERENCE).
VOCABULARY_DIFFERENCE = 128
# Where flash attention reads a cache of another type than f16 for a prompt by converting a whole layer first.
# HIP is CUDA's code; Vulkan, Metal and SYCL have kernels that read quantised blocks.
CONVERTS = frozenset({"nvidia", "amd"})
# Bytes of one element of the cache (`ggml_type_size / ggml_blck_size`).
CACHE_TYPES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
}
CACHE_TYPES |= {"q4_0": 18 / 32, "iq4_nl": 18 / 32}
FLASH_HEADS = frozenset(
    {40, 64, 72, 80, 96, 112, 128, 192, 256, 512, 576}
)  # ggml-cuda `ggml_cuda_flash_attn_ext_supported`
# Fitted to the published runs in `bench/fit/data/speed.jsonl` that are not held out; docs/speed.md says how
# well each holds. No prompt of a mixture is among those on NVIDIA's cards: their `experts` are as elsewhere.
EFFICIENCIES: Mapping[str, Efficiency] = {
    "nvidia": Efficiency(
        decode=0.85,
        layer_us=60,
        spread=0.3,
        prefill=0.7,
        experts=0.5,
        prefill_spread=0.4,
        sources=(
            "XiongjieDai/GPU-Benchmarks-on-LLM-Inference",
            "noonghunna/club-3090",
            "sudoingX/qwen38-mtp",
        ),
    ),
    "nvidia workstation": Efficiency(
        decode=0.9,
        layer_us=80,
        spread=0.15,
        prefill=0.25,
        experts=0.5,
        prefill_spread=0.5,
        sources=("XiongjieDai/GPU-Benchmarks-on-LLM-Inference",),
    ),
    "nvidia datacentre": Efficiency(
        decode=0.8,
        layer_us=150,
        spread=0.2,
        prefill=0.2,
        experts=0.5,
        prefill_spread=0.5,
        sources=("XiongjieDai/GPU-Benchmarks-on-LLM-Inference",),
    ),
    "nvidia unified": Efficiency(
        decode=0.75,
        layer_us=15,
        spread=0.15,
        prefill=0.25,
        experts=0.8,
        prefill_spread=0.35,
        sources=("ggml-org/llama.cpp",),
    ),
    "amd": Efficiency(
        decode=0.9,
        layer_us=150,
        spread=0.3,
        prefill=0.25,
        experts=0.3,
        prefill_spread=0.6,
        sources=("kyuz0/amd-r9700-ai-toolboxes", "sudoingX/qwen38-mtp"),
    ),
    "amd unified": Efficiency(
        decode=0.9,
        layer_us=150,
        spread=0.2,
        prefill=0.25,
        experts=0.5,
        prefill_spread=0.4,
        sources=("kyuz0/amd-strix-halo-toolboxes",),
    ),
    "apple": Efficiency(
        decode=0.8,
        layer_us=150,
        spread=0.3,
        prefill=0.6,
        experts=0.6,
        prefill_spread=0.3,
        drafts=0.05,
        sources=("XiongjieDai/GPU-Benchmarks-on-LLM-Inference", "sudoingX/qwen38-mtp"),
    ),
    # Prompts on Arc lie a factor of ten apart (Vulkan and SYCL, an empty cache and a full one).
    "intel": Efficiency(
        decode=0.5,
        layer_us=300,
        spread=0.5,
        prefill=None,
        experts=1.0,
        prefill_spread=0.0,
        sources=("kyuz0/intel-b70-ai-toolboxes", "alisonbutcher/b580-toolboxes"),
    ),
}
FIT_ARGS: Mapping[str, frozenset[str] | None] = {
    "parallel": None,
    "ubatch-size": None,
    "cache-type-k": frozenset(CACHE_TYPES),
    "cache-type-v": frozenset(CACHE_TYPES),
    "flash-attn": frozenset({"on", "off", "auto"}),
    "n-gpu-layers": None,
    "n-cpu-moe": None,
    "mmproj": None,
}
_SOURCE = "write the model as `source`"
REFUSED = {
    "host": "write where the node's services listen as its `address`",
    "port": "write `port` beside `args`, on the model",
    "api-key": OWN_KEY,
    "api-key-file": OWN_KEY,
    "alias": "clients use the model's name under `models`",
    "model": _SOURCE,
    "model-url": _SOURCE,
    "hf-repo": _SOURCE,
    "hf-file": _SOURCE,
    "docker-repo": _SOURCE,
    "models-dir": _SOURCE,
    "models-preset": _SOURCE,
    "hf-token": "write `hub: {token: env:HF_TOKEN}`",
    "ssl-key-file": NO_TLS,
    "ssl-cert-file": NO_TLS,
    "api-prefix": "leave it out: the gateway and health checks ask under no prefix",
}
# A server of 0 of them, or of fewer, is none; -1 leaves llama.cpp a choice that homelab cannot count.
COUNTS = frozenset({"parallel", "batch-size", "ubatch-size"})
# YAML reads a bare `on` as true, where llama.cpp wants the word.
ON_OR_OFF = frozenset({"flash-attn", "fit"})
WORDS: Mapping[bool, ArgValue] = {True: "on", False: "off"}
# `common/arg.cpp`, b11549: the other spellings of a flag.
SPELLINGS = {
    "ctx-size": "c",
    "parallel": "np",
    "n-gpu-layers": "ngl gpu-layers",
    "batch-size": "b",
    "ubatch-size": "ub",
    "flash-attn": "fa",
    "cache-type-k": "ctk",
    "cache-type-v": "ctv",
    "kv-unified": "kvu",
    "no-kv-unified": "no-kvu",
    "cpu-moe": "cmoe",
    "n-cpu-moe": "ncmoe",
    "alias": "a",
    "model": "m",
    "model-url": "mu",
    "docker-repo": "dr",
    "hf-token": "hft",
    "hf-repo": "hf hfr",
    "hf-file": "hff",
    "cache-ram": "cram",
    "ctx-checkpoints": "ctxcp swa-checkpoints",
    "embeddings": "embedding",
    "reranking": "rerank",
    "split-mode": "sm",
    "tensor-split": "ts",
    "main-gpu": "mg",
    "device": "dev",
    "override-tensor": "ot",
    "mmproj": "mm",
    "mmproj-url": "mmu",
    "no-mmproj": "no-mmproj-auto",
    "spec-draft-model": "md model-draft",
    "spec-draft-hf": "hfd hfrd hf-repo-draft",
    "threads": "t",
    "threads-batch": "tb",
    "n-predict": "n predict",
    "temperature": "temp",
    "seed": "s",
    "log-verbosity": "lv verbosity",
}
SYNONYMS = {other: name for name, others in SPELLINGS.items() for other in others.split()}
# What takes the place of an argument of ours, beside the argument itself.
INSTEAD = {
    "jinja": {"no-jinja"},
    "no-mmproj": {"mmproj", "mmproj-url", "mmproj-auto"},
}


def canonical(args: Mapping[str, ArgValue]) -> dict[str, ArgValue]:
    """The user's arguments under llama.cpp's long names. `flash-attn: auto` is its default, and ours
    decides."""
    named = canonical_names(args, SYNONYMS, REFUSED, COUNTS)
    worded = {n: WORDS[v] if n in ON_OR_OFF and isinstance(v, bool) else v for n, v in named.items()}
    return {n: v for n, v in worded.items() if (n, v) != ("flash-attn", "auto")}


def device_count(args: Mapping[str, ArgValue]) -> int | None:
    """Left open: llama.cpp spreads over whatever it is given."""
    return None


def drafter(args: Mapping[str, ArgValue]) -> str | None:
    """A GGUF file, or a repository with one."""
    named = args.get("spec-draft-model") or args.get("spec-draft-hf")
    return named if isinstance(named, str) else None


def footprint(shape: ModelShape, request: Request, device: Device) -> Footprint:
    """What `llama-server` takes on each device, in bytes. With several devices, the fullest one.

    Raises Unsupported when llama.cpp cannot serve the model there, or the arguments ask for what cannot be
    computed."""
    args = request.args
    _check(shape, request, device, args)
    resolved = _flags(shape, request, device, args)
    asked: dict[str, ArgValue] = {**resolved, **args}
    slots = _number(asked, "parallel")
    unified = _on(args, "kv-unified")
    cells = pad(_number(asked, "ctx-size") // (1 if unified else slots))
    streams = 1 if unified else slots
    batch = (
        min(_number(asked, "batch-size", BATCH), cells * streams)
        if shape.causal
        else _number(asked, "batch-size", BATCH)
    )
    ubatch = min(_number(asked, "ubatch-size", UBATCH), batch)
    window_slots = slots if unified else 1
    drafts = _drafts(asked)
    # Each drafted token can be rolled back to a state of its own (`llama_context_params::n_rs_seq`).
    states = slots * (1 + drafts)
    contexts = [
        _context(shape, layer, asked, cells, streams, states, ubatch, window_slots) for layer in shape.layers
    ]
    mtp = _mtp_cache(shape, request, asked, cells * streams, drafts)
    on_device, on_host, drafts_there = _placed(shape, device, asked, contexts, mtp)
    rows = (
        ubatch
        if request.outputs in ("", "all") or request.kind != "chat"
        else min(ubatch, slots * (1 + drafts))
    )
    flash = asked.get("flash-attn") != "off"
    tokens = (
        -(-ubatch // slots) * slots
    )  # the graph that is reserved has as many of each sequence (`llama_context::graph_reserve`)
    windowed = not _on(asked, "swa-full")
    graph = Graph(
        cells=cells,
        ubatch=tokens,
        outputs=max(rows, slots),
        slots=slots,
        streams=streams,
        flash=flash,
        windowed=windowed,
    )
    compute = graph.bytes(shape) + _copies(shape, device, asked, cells, ubatch)
    # Where RAM is the device, or is shared with it, everything comes out of one pool.
    host: Literal["device", "host"] = (
        "host" if device.memory_kind == "dedicated" and device.vendor != "cpu" else "device"
    )
    terms = [
        # Prediction layers are in the file; newer releases load them only for speculation.
        Term(name="model", bytes=on_device[0], grade="bounded" if shape.mtp_bytes else "exact"),
        Term(name="context", bytes=on_device[1], grade="bounded" if shape.notes else "exact"),
        Term(name="compute", bytes=compute, grade="bounded"),
    ]
    if flash and device.vendor in CONVERTS:
        converted = _conversion(shape, asked, cells * streams)
        terms.append(Term(name="kv_conversion", bytes=converted, grade="bounded"))
    if drafts_there:
        terms += _drafting(shape, request, asked, graph, slots, mtp)
    if device.vendor != "cpu":
        own = GPU_CONTEXT[device.vendor] + (WSL_EXTRA if device.wsl else 0)
        name = "cuda_context" if device.vendor == "nvidia" else "gpu_context"
        terms.append(Term(name=name, bytes=own, grade="empirical", where="context"))
        margin = RESERVE["drafts"] if drafts else RESERVE["plain"]
        terms.append(Term(name="reserve", bytes=margin, grade="empirical", where="context"))
        terms.append(Term(name="model_host", bytes=on_host[0], grade="exact", where=host))
        terms.append(Term(name="context_host", bytes=on_host[1], grade="exact", where=host))
        terms.append(
            Term(
                name="compute_host",
                bytes=ubatch * (cells * 2 + shape.hidden * 8),
                grade="bounded",
                where=host,
            )
        )
    terms += _projector(shape, request.args, host, flash=flash)
    snapshots = _number(asked, "ctx-checkpoints") * slots * _snapshot(shape, asked, ubatch)
    terms.append(
        Term(
            name="prompt_cache", bytes=max(0, _number(asked, "cache-ram")) * MiB, grade="bounded", where=host
        )
    )
    terms.append(Term(name="checkpoints", bytes=snapshots, grade="bounded", where=host))
    terms.append(Term(name="process", bytes=PROCESS, grade="empirical", where=host))
    return Footprint(
        terms=tuple(t for t in terms if t.bytes or t.name in ("model", "context", "compute")),
        kv_cache_bytes=sum(contexts),
        kv_cache_tokens=cells * streams,
        flags={name: value for name, value in resolved.items() if name not in args},
    )


def reading(shape: ModelShape, request: Request, footprint: Footprint, device: Device) -> Reading:
    """Layers that are split over several devices take turns, so these have the bandwidth of one."""
    args = {**footprint.flags, **request.args}
    key, value = (CACHE_TYPES[str(args.get(f"cache-type-{which}", "f16"))] for which in "kv")
    count = len(shape.layers)
    wanted = args.get("n-gpu-layers", 999)
    whole_model = wanted in ("all", "auto", -1, "-1")
    first = 0 if whole_model or device.vendor == "cpu" else max(0, count + 1 - int(str(wanted)))
    on_cpu = count if _on(args, "cpu-moe") else _number(args, "n-cpu-moe")
    drafts, drafting = _drafts(args), 0
    if drafts and drafter(args) is None:
        head = shape.embedding_bytes if shape.tied_embeddings else shape.output_bytes
        drafting = drafts * (shape.mtp_bytes + head) if shape.mtp_layers else 0
        drafts = drafts if shape.mtp_layers else 0
    elif drafts:
        drafting = drafts * (request.drafter.weights_bytes if request.drafter else UNKNOWN_DRAFTER)
    return Reading(
        key_bytes=key,
        value_bytes=value,
        ram_dense_bytes=sum(x.bytes - x.expert_bytes for x in shape.layers[:first]),
        ram_expert_bytes=sum(x.expert_bytes for x in shape.layers[: max(first, on_cpu)]),
        drafts=drafts,
        drafting_bytes=drafting,
        batch=_number(args, "ubatch-size", UBATCH),
    )


def command(launch: Launch) -> list[str]:
    """The arguments of `llama-server`, without the program's own name. The user's arguments come last and
    win."""
    args = launch.request.args
    local = launch.weights.startswith(("/", "~", "."))
    ours: dict[str, ArgValue] = {"model" if local else "hf-repo": launch.weights}
    if not local:
        ours["no-mmproj"] = True  # -hf would fetch and load a vision projector that no plan has counted
    ours |= {"alias": launch.model, "host": launch.host, "port": launch.port}
    ours |= launch.footprint.flags
    # Verbosity 4 tells the sizes of its buffers, and no prompts.
    ours |= {"jinja": True, "metrics": True, "log-verbosity": 4}
    taken = {name for name in ours if name in args or INSTEAD.get(name, set()) & set(args)}
    return flags({name: value for name, value in ours.items() if name not in taken}) + flags(args)


def environment(launch: Launch) -> dict[str, str]:
    """Variables of the server's process that are no secrets. The key goes into KEY_VARIABLE."""
    return {}


def reported(log: str) -> dict[str, int]:
    """The buffers that its log tells of at start, in bytes by the names of our terms: those on GPUs, or all
    where there is none."""
    buffers = re.findall(r"(\S+)\s+(model|KV|RS|compute) buffer size\s*=\s*([\d.]+) MiB", log)
    on_gpu = [row for row in buffers if not row[0].startswith("CPU") and not row[0].endswith("_Host")]
    out: dict[str, int] = {}
    for _, kind, mib in on_gpu or buffers:
        name = {"KV": "context", "RS": "context"}.get(kind, kind)
        out[name] = out.get(name, 0) + int(float(mib) * 2**20)
    return out


def trial(model: str, request: Request) -> Trial | None:
    return completion_trial(model, request, cache_prompt=False)


def load(metrics: str) -> Load:
    """`tokens_predicted_total` stands still until a request has ended. So its steps are counted: in each,
    every slot that is at work generates a token (or reads a batch of its prompt; drafts are not counted)."""
    steps = counted(metrics, "llamacpp:n_decode_total")
    slots = counted(metrics, "llamacpp:n_busy_slots_per_decode")
    return Load(
        tokens=counted(metrics, "llamacpp:tokens_predicted_total")
        if steps is None or slots is None
        else steps * slots,
        running=whole(counted(metrics, "llamacpp:requests_processing")),
        waiting=whole(counted(metrics, "llamacpp:requests_deferred")),
    )


def smaller_cache(device: Device) -> dict[str, ArgValue]:
    """Eight bits an element, and a scale for 32."""
    return {"cache-type-k": "q8_0", "cache-type-v": "q8_0"}


def offloads(shape: ModelShape, device: Device) -> tuple[Offload, ...]:
    """Experts of as few layers as possible, or whole layers, in the RAM beside the GPUs. Of several GPUs the
    first holds the first layers, so the others gain only once as many layers have left it."""
    if device.vendor == "cpu" or device.memory_kind == "unified":
        return ()
    count = len(shape.layers)
    gpus = "GPU" if device.count == 1 else "GPUs"
    experts = [(n, f"the experts of {n} of {count} layers in RAM") for n in range(1, count)]
    layers = [(n, f"{n} of {count + 1} layers on the {gpus}") for n in range(count, 0, -1)]
    ways = [Offload(argument="n-gpu-layers", steps=tuple(layers))]
    if shape.expert_bytes:
        ways.insert(0, Offload(argument="n-cpu-moe", steps=(*experts, (count, "all experts in RAM"))))
    return tuple(ways)


def notes(shape: ModelShape, request: Request, device: Device) -> Iterator[str]:
    yield from shape.notes
    yield from rules.reasons(NAME, shape, request.speculative, request.args)
    if (named := drafter(request.args)) is not None and request.drafter is None:
        yield f"what {named} takes, which drafts for this model, is a guess: its header could not be read"
    terms = footprint(shape, request, device)
    if any(t.name == "projector" and t.grade == "empirical" for t in terms.terms):
        yield "the vision projector (mmproj) is a guess: its file was not found beside the model"
    if request.outputs == "slots":
        most = footprint(shape, replace(request, outputs="all"), device).device_bytes - terms.device_bytes
        if most > 0:
            size = f"{most / 2**30:.2f} GiB"
            yield (
                f"older servers (before 0.6.0) reserve up to {size} more, and `homelab "
                "plan` counts that: --outputs all"
            )


def served_context(document: Any) -> int | None:
    """The tokens of one slot, from the answer to `CONTEXT_PATH`: `-c` is shared out among the slots."""
    try:
        return int(document["default_generation_settings"]["n_ctx"])
    except (KeyError, TypeError, ValueError):
        return None


def _flags(
    shape: ModelShape, request: Request, device: Device, args: Mapping[str, ArgValue]
) -> dict[str, ArgValue]:
    slots = _number(args, "parallel", request.concurrency)
    out: dict[str, ArgValue] = {"ctx-size": pad(request.context) * slots, "parallel": slots}
    out["n-gpu-layers"] = 0 if device.vendor == "cpu" else 999
    if device.count > 1:
        out |= {"split-mode": "layer", "tensor-split": ",".join(["1"] * device.count)}
    # `--fit` is on by default and would shrink what was planned without a word, or give up and start all
    # the same.
    out |= {"fit": "off", "flash-attn": "on" if _flash(shape, args) else "off"}
    cache = (
        CACHE_MIB
        if device.vendor != "cpu"
        else max(SMALLEST_CACHE_MIB, min(CACHE_MIB, device.total_bytes // (16 * MiB)))
    )
    if request.speculative and not {"spec-type", "spec-draft-model"} & set(args):
        out |= {"spec-type": "draft-mtp", "spec-draft-n-max": request.speculative}
    if request.kind == "chat":
        out |= request.sampling
    out["cache-ram"] = cache if request.kind == "chat" else 0
    snapshot = _snapshot(shape, args, _number(args, "ubatch-size", UBATCH)) * slots
    fits = min(CHECKPOINTS, max(1, cache * MiB // snapshot)) if snapshot else CHECKPOINTS
    out["ctx-checkpoints"] = fits if request.kind == "chat" else 0
    if request.kind == "embedding":
        pooling = str(
            args.get("pooling")
            or (shape.pooling if shape.pooling not in (None, "none") else "last" if shape.causal else "mean")
        )
        out["embeddings"] = True
        if shape.pooling != pooling:
            out["pooling"] = pooling
    elif request.kind == "rerank":
        pooling, out["reranking"] = "rank", True
    if request.kind != "chat" and (not shape.causal or pooling != "last"):
        # Such an input cannot be split: `input is too large to process. increase the physical batch size`
        # (server `can_split`).
        size = max(UBATCH, request.context)
        out |= {"batch-size": size, "ubatch-size": size}
    return out


def _check(shape: ModelShape, request: Request, device: Device, args: Mapping[str, ArgValue]) -> None:
    if shape.format not in FORMATS:
        raise Unsupported(
            "llama.cpp reads GGUF files; name a GGUF repository with a quantisation, "
            "like Org/Repo-GGUF:Q4_K_M"
        )
    if device.vendor not in VENDORS:
        raise Unsupported(f"llama.cpp has no backend here for a {device.vendor} device")
    stretched = any(name.startswith(("rope-", "yarn-")) for name in args)
    if shape.max_context and request.context > shape.max_context and not stretched:
        raise Unsupported(
            f"the model was made for {shape.max_context} tokens and {request.context} are "
            "asked; lower `context`, or set `rope-scaling` and `yarn-orig-ctx` in `args`"
        )
    for name in ("cache-type-k", "cache-type-v"):
        if str(args.get(name, "f16")) not in CACHE_TYPES:
            raise Unsupported(f"llama.cpp has no {name} {args[name]}; it has {', '.join(CACHE_TYPES)}")
    if CACHE_TYPES[str(args.get("cache-type-v", "f16"))] < 2 and args.get("flash-attn") == "off":
        raise Unsupported(
            "llama.cpp needs flash attention for a quantised V cache: leave `flash-attn` "
            "out, or `cache-type-v`"
        )
    other = request.drafter
    if other is not None and other.format not in FORMATS:
        raise Unsupported("llama.cpp reads drafters as GGUF files, too: name another one")
    if other is not None and abs(other.vocab - shape.vocab) > VOCABULARY_DIFFERENCE:
        raise Unsupported(
            f"{drafter(args)} cannot draft for this model: its vocabulary has {other.vocab} entries, and the "
            f"model's {shape.vocab}; name a drafter of the same family"
        )
    if refused := rules.refusal(NAME, shape, request.speculative, args):
        raise Unsupported(refused)
    if request.kind == "chat" and shape.kind != "chat":
        raise Unsupported(
            f"this model is for {shape.kind}, and the inventory says chat: write `kind: {shape.kind}`"
        )


def _context(
    shape: ModelShape,
    layer: Layer,
    args: Mapping[str, Any],
    cells: int,
    streams: int,
    states: int,
    ubatch: int,
    window_slots: int,
) -> int:
    """Bytes of one layer's cache and of its states for all slots."""
    size = 0
    if layer.attention != "none":
        own = cells
        if layer.window and not _on(args, "swa-full"):
            own = pad(min(cells, layer.window * window_slots + ubatch))
        # Without flash attention values lie transposed, and where layers differ all are as wide as the
        # widest (`n_embd_v_gqa_max`).
        values = (
            max(x.kv_heads * x.value_dim for x in shape.layers)
            if args.get("flash-attn") == "off" and not shape.mla
            else None
        )
        size = int(own * streams * _cell_bytes(layer, args, values))
    if layer.recurrent and shape.recurrent:
        size += states * _state(shape)
    return size


def _cell_bytes(layer: Layer, args: Mapping[str, Any], values: int | None = None) -> float:
    key, value = (CACHE_TYPES[str(args.get(f"cache-type-{which}", "f16"))] for which in "kv")
    return (
        layer.kv_heads * layer.key_dim * key
        + (layer.kv_heads * layer.value_dim if values is None else values) * value
    )


def _conversion(shape: ModelShape, args: Mapping[str, Any], cells: int) -> int:
    """Bytes of one layer's keys and values in f16: what flash attention reads of a prompt, converted whole
    from any other type (b11434, `ggml-cuda/fattn-common.cuh` get_f16_extra_data; newer builds reserve it
    within the compute buffer, older ones take it from the pool). Only single tokens are read as they lie."""
    other = {which: str(args.get(f"cache-type-{which}", "f16")) != "f16" for which in "kv"}
    return max(
        (
            2 * cells * layer.kv_heads * (layer.key_dim * other["k"] + layer.value_dim * other["v"])
            for layer in shape.layers
            if layer.attention in ("full", "mla")
        ),
        default=0,
    )


def _drafts(args: Mapping[str, Any]) -> int:
    """Tokens that are drafted at a time; 0 without speculation by a model."""
    if not {"spec-type", "spec-draft-model", "spec-draft-hf"} & set(args) or args.get("spec-type") == "none":
        return 0
    return _number(args, "spec-draft-n-max", DRAFTS)


def _mtp_cache(shape: ModelShape, request: Request, args: Mapping[str, Any], cells: int, drafts: int) -> int:
    """Bytes of the cache of the model's own prediction layers; 0 where they do not draft."""
    if not drafts or not shape.mtp_layers or drafter(request.args) or "mtp" not in str(args.get("spec-type")):
        return 0
    return shape.mtp_layers * int(cells * _cell_bytes(_predicts(shape), _draft_types(args)))


def _predicts(shape: ModelShape) -> Layer:
    """A prediction layer attends as the last layer of the model does."""
    return next(x for x in reversed(shape.layers) if x.attention != "none")


def _draft_types(args: Mapping[str, Any]) -> dict[str, Any]:
    return {f"cache-type-{which}": args.get(f"spec-draft-type-{which}", "f16") for which in "kv"}


def _drafting(
    shape: ModelShape, request: Request, args: Mapping[str, Any], graph: Graph, slots: int, mtp_cache: int
) -> Iterator[Term]:
    """What drafts tokens beside the model: a context for its own prediction layers, or another model with
    one. Both cache in f16 unless told otherwise (b11434, `common/speculative.cpp`,
    `tools/server/server-context.cpp`)."""
    types, other = _draft_types(args), request.drafter
    if drafter(request.args) is None:
        if mtp_cache:
            one = replace(shape, layers=(_predicts(shape),), recurrent=None)
            yield Term(name="mtp_context", bytes=mtp_cache, grade="bounded")
            yield Term(name="mtp_compute", bytes=replace(graph, outputs=slots).bytes(one), grade="bounded")
    elif other is None:
        yield Term(name="drafter", bytes=UNKNOWN_DRAFTER, grade="empirical")
    else:
        cells = graph.cells * graph.streams
        on_gpu = args.get("spec-draft-ngl") not in (0, "0")
        cache = sum(int(cells * _cell_bytes(x, types)) for x in other.layers if x.attention != "none")
        weights = other.weights_bytes - (0 if other.tied_embeddings else other.embedding_bytes)
        if on_gpu:
            yield Term(name="drafter", bytes=weights, grade="bounded")
            yield Term(name="drafter_context", bytes=cache, grade="bounded")
        yield Term(name="drafter_compute", bytes=replace(graph, outputs=slots).bytes(other), grade="bounded")


def _state(shape: ModelShape) -> int:
    """Bytes of one recurrent layer's state for one slot, always f32."""
    r = shape.recurrent
    return 4 * (r.conv_rows * r.conv_channels + r.state_elements) if r else 0


def _snapshot(shape: ModelShape, args: Mapping[str, Any], ubatch: int) -> int:
    """Bytes of one context checkpoint: the states and windows, which cannot be rolled back."""
    states = sum(_state(shape) for layer in shape.layers if layer.recurrent)
    windows = sum(
        (layer.window + ubatch) * _cell_bytes(layer, args)
        for layer in shape.layers
        if layer.window and not _on(args, "swa-full")
    )
    return states + int(windows)


def _placed(
    shape: ModelShape, device: Device, args: Mapping[str, Any], contexts: list[int], beside_last: int
) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """(weights, context) on the fullest device, and in host RAM beside it; and whether that device is the
    last one, where `beside_last` more bytes lie."""
    if device.vendor == "cpu":
        # Gemma 4 makes its output from the input table before the table itself, which gives a second copy
        # even in RAM.
        second = shape.embedding_bytes if shape.architecture == "gemma4" and shape.tied_embeddings else 0
        return (shape.weights_bytes + second, sum(contexts)), (0, 0), True
    count = len(shape.layers)
    wanted = args["n-gpu-layers"]
    offloaded = (
        count + 1 if wanted in ("all", "auto", -1, "-1") else min(_number(args, "n-gpu-layers"), count + 1)
    )
    first = count + 1 - offloaded  # the output layer is offloaded first (`i_gpu_start`)
    on_cpu = count if _on(args, "cpu-moe") else _number(args, "n-cpu-moe")
    layers_total = sum(layer.bytes for layer in shape.layers)
    # With tied embeddings the table is kept twice: in RAM to look tokens up, on the device to give the
    # output.
    # Encoders have no output layer: their table is looked up only (bge-small: 40.7 MiB on the GPU of 62.9).
    # EmbeddingGemma asks for one all the same (b11434, `src/models/gemma-embedding.cpp`).
    causal = shape.causal or shape.architecture == "gemma-embedding"
    tied = shape.embedding_bytes if causal else 0
    output = tied if shape.tied_embeddings else shape.output_bytes
    rest = (
        shape.weights_bytes - layers_total - shape.embedding_bytes - shape.output_bytes - shape.lookup_bytes
    )
    weights, context = [0] * device.count, [0] * device.count
    shares = _shares(args, device.count)
    for i in range(first, count + 1):
        # The first device whose layers end behind this one (`src/llama-model.cpp`, get_layer_buft_list).
        place = next((d for d, end in enumerate(shares) if (i - first) / offloaded < end), device.count - 1)
        if i == count:
            weights[place] += output + rest
        else:
            layer = shape.layers[i]
            weights[place] += layer.bytes - (layer.expert_bytes if i < on_cpu else 0)
            context[place] += contexts[i]
    context[-1] += beside_last
    fullest = max(range(device.count), key=lambda d: weights[d] + context[d])
    context[-1] -= beside_last
    host = shape.embedding_bytes + shape.lookup_bytes + sum(layer.bytes for layer in shape.layers[:first])
    host += sum(layer.expert_bytes for i, layer in enumerate(shape.layers) if first <= i < on_cpu) + (
        0 if offloaded else output + rest
    )
    return (weights[fullest], context[fullest]), (host, sum(contexts[:first])), fullest == device.count - 1


def _shares(args: Mapping[str, Any], count: int) -> list[float]:
    """Where each device's share of the layers ends, of 1."""
    written = [part for part in re.split(r"[,/]+", str(args.get("tensor-split", ""))) if part]
    try:
        parts = [float(part) for part in written][:count]
    except ValueError:
        raise Unsupported(
            f"llama.cpp's `tensor-split` is a list of numbers like 3,1, not {args['tensor-split']!r}"
        ) from None
    parts += [0.0] * (count - len(parts)) if written else [1.0] * count
    if not all(math.isfinite(p) and p >= 0 for p in parts) or not sum(parts):
        raise Unsupported(f"llama.cpp's `tensor-split` must give some device a part, not {written}")
    return [sum(parts[: d + 1]) / sum(parts) for d in range(count)]


def _copies(shape: ModelShape, device: Device, args: Mapping[str, Any], cells: int, ubatch: int) -> int:
    """Experts kept in RAM are copied to the device a layer at a time; a pipeline over devices keeps up to
    four copies of its inputs."""
    in_ram = device.vendor != "cpu" and (_on(args, "cpu-moe") or _number(args, "n-cpu-moe") > 0)
    experts = max((layer.expert_bytes for layer in shape.layers), default=0) if in_ram else 0
    return experts + (3 * ubatch * (cells * 2 + shape.hidden * 8) if device.count > 1 else 0)


def _flash(shape: ModelShape, args: Mapping[str, ArgValue]) -> bool:
    """Whether flash attention has a kernel for every head; a quantised V cache needs it in any case."""
    quantised = CACHE_TYPES[str(args.get("cache-type-v", "f16"))] < 2
    return quantised or all(
        layer.key_dim in FLASH_HEADS for layer in shape.layers if layer.attention != "none"
    )


def projector(args: Mapping[str, ArgValue]) -> str | None:
    """The vision projector that canonical arguments ask for: a path, or `auto` where llama.cpp looks for
    one; None without."""
    wanted = {
        name: args[name]
        for name in ("mmproj", "mmproj-url", "mmproj-auto")
        if args.get(name, False) is not False
    }
    named = [
        str(v) for name, v in wanted.items() if name != "mmproj-auto" and v is not None and v is not True
    ]
    return named[0] if named else "auto" if "mmproj-auto" in wanted else None


def _projector(
    shape: ModelShape, args: Mapping[str, ArgValue], host: Literal["device", "host"], *, flash: bool
) -> list[Term]:
    """A vision projector lies on the first GPU, or in RAM with `--no-mmproj-offload`."""
    wanted = projector(args)
    if wanted is None:
        return []
    where = host if _on(args, "no-mmproj-offload") else "device"
    known = chosen(shape.projectors, wanted)
    fast = flash and known.head_dim in FLASH_HEADS
    compute = known.compute_bytes(_number(args, "image-max-tokens") or None, flash=fast)
    sizes: Grade = "exact" if known.read else "bounded" if known in shape.projectors else "empirical"
    return [
        Term(name="projector", bytes=known.bytes, grade=sizes, where=where),
        Term(
            name="projector_compute",
            bytes=compute,
            grade="bounded" if known.floats else "empirical",
            where=where,
        ),
    ]


def _on(args: Mapping[str, Any], name: str) -> bool:
    return name in args and args[name] is not False


def _number(args: Mapping[str, Any], name: str, default: int = 0) -> int:
    value = args.get(name, default)
    try:
        return int(value)
    except (TypeError, ValueError):
        raise Unsupported(f"llama.cpp's `{name}` is a number, not {value!r}") from None
