"""Other estimators on the same cases. Truth is what llama.cpp's `llama-fit-params` and vLLM's logs say,
without the CUDA context, which none of them counts. `hf-mem` and `accelerate` are run (their own code, with
files in the hub's place); of the others only the rule is applied, and the output says why."""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from pathlib import Path
from typing import Any

from homelab import fit_command
from homelab.engines import Device, Request, llamacpp, vllm
from homelab.models.catalog import Entry, Variant
from homelab.models.header import from_header
from homelab.models.shape import ModelShape
from tests.models.examples import DATA, FILE_BYTES, GOLDEN, gguf

GIB = 2**30
MIB = 2**20
HF_MEM = "hf-mem==0.5.6"
# A torch for CPUs: without such a wheel at hand pip would bring gigabytes of CUDA, and the
# rule is applied instead.
ACCELERATE = ("accelerate==1.15.0", "transformers==5.23.0", "torch==2.13.0+cpu")
CATALOGUED = {
    "gemma3-12b": "gemma-3-12b",
    "gemma3-4b": "gemma-3-4b",
}  # where a header is called otherwise than the catalog's entry
CPU = Device(vendor="cpu", name="x", total_bytes=64 * GIB, memory_kind="ram")
CARD = Device(vendor="nvidia", name="x", total_bytes=80 * GIB)
CONTEXTS = (4096, 32768, 131072)
# case, entry, weights, context, args, GiB logged: weights + the cache of one request + activation and
# non-torch where they are logged
LOGGED: list[tuple[str, str, str, int, dict[str, Any], float]] = [
    (
        "Llama-3.1-8B bf16, 20 000 (vllm#10517)",
        "llama-3.1-8b",
        "bf16",
        20000,
        {"max-num-batched-tokens": 20000},
        14.9888 + 3.81 / 1952 * 1250 + 2.07 + 0.35,
    ),
    (
        "Qwen3-30B-A3B FP8, fp8 cache, 100 000 (vllm#25350)",
        "qwen3-30b-a3b",
        "fp8",
        100000,
        {"kv-cache-dtype": "fp8", "hf-overrides": "{}"},
        29.09 + 10.55 / 2.31,
    ),
]


def gpustack(weights: float) -> float:
    """GPUStack 2.3, vLLM: `weights * 1.2 + 2 GiB`, no term for the context."""
    return weights * 1.2 + 2 * GIB


def llmfit(shape: ModelShape, parameters: int, width: float, context: int) -> float:
    """llmfit 1.1: parameters by a number of bytes for the quantisation, a 16-bit cache
    in every layer, half a GB."""
    heads = max(layer.kv_heads for layer in shape.layers)
    dim = max(layer.key_dim for layer in shape.layers)
    return parameters * width + 2 * len(shape.layers) * heads * dim * 2 * context + 0.5e9


class Tool:
    """A tool itself, in a virtual environment of its own; `why` says why it could not be installed."""

    def __init__(self, folder: Path, *requirements: str) -> None:
        self.why = ""
        builder = venv.EnvBuilder(with_pip=True)
        builder.create(folder)
        self.python = folder / "bin" / "python"
        done = subprocess.run(
            [self.python, "-m", "pip", "install", "-q", *requirements],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            self.why = f"{requirements[-1]} cannot be installed"


class Accelerate(Tool):
    """`accelerate estimate-memory`: the size of the parameters in a type; its documentation adds
    up to 20 % for inference."""

    def ask(self, entry: Entry, width: float) -> float | None:
        if self.why:
            return entry.parameters * width * 1.2
        dtype = {2.0: "float16", 1.0: "int8", 0.5: "int4"}[width]
        with tempfile.TemporaryDirectory() as folder:
            config = {
                k: v for k, v in entry.config.items() if k != "rope_scaling"
            }  # the catalog has but the part that counts here
            (Path(folder) / "config.json").write_text(json.dumps(config))
            argv = [str(self.python), str(Path(__file__).with_name("accelerate_offline.py")), folder, dtype]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return None if done.returncode else float(done.stdout.split()[-1]) * 1.2


class HfMem(Tool):
    def ask(self, folder: Path, context: int) -> float | None:
        if self.why:
            return None
        argv = [
            str(self.python),
            str(Path(__file__).with_name("hf_mem_offline.py")),
            str(folder),
            str(context),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            return None
        found = json.loads(done.stdout.splitlines()[-1])
        return float(
            sum(
                sum(v.values()) if isinstance(v, dict) else v or 0
                for v in (found["memory"], found["kv_cache"])
            )
        )


def safetensors_folder(folder: Path, entry: Entry, variant: Variant) -> Path:
    """A repository as the hub would show it: a configuration, and a file of the right size with
    nothing but its header in it."""
    document = entry.document(variant)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(document["config"] | {"torch_dtype": "bfloat16"}))
    header, at = {}, 0
    for name, (_, size, _) in document["groups"].items():
        small = variant.weights == "fp8" and any(part in name for part in ("proj", "experts"))
        dtype, width = ("F8_E4M3", 1) if small else ("BF16", 2)
        header[name.replace("*", "0")] = {
            "dtype": dtype,
            "shape": [size // width],
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + at)
    return folder


def main() -> None:
    errors: dict[str, list[float]] = defaultdict(list)
    names = ("homelab", "hf-mem", "accelerate", "GPUStack", "llmfit")
    print("### Side by side: total without the CUDA context, error of each\n")
    print("| case | truth, GiB | " + " | ".join(names) + " |\n|---|---:" + "|---:" * len(names) + "|")

    def row(case: str, truth: float, found: dict[str, float | None]) -> None:
        cells = []
        for name in names:
            value = found[name]
            if value is None:
                cells.append("gives up")
            else:
                errors[name].append(value / truth - 1)
                cells.append(f"{value / truth - 1:+.1%}")
        print(f"| {case} | {truth / GIB:.2f} | " + " | ".join(cells) + " |")

    with tempfile.TemporaryDirectory() as place:
        tool = HfMem(Path(place) / "venv", HF_MEM)
        accelerate = Accelerate(Path(place) / "accelerate", *ACCELERATE)
        for model in sorted(FILE_BYTES):
            shape = gguf(model)
            folder = Path(place) / model
            folder.mkdir()
            (folder / "model.gguf").write_bytes((DATA / f"{model}.gguf").read_bytes())
            os.truncate(folder / "model.gguf", FILE_BYTES[model])
            for context in CONTEXTS:
                said = next((g for g in GOLDEN if g[0] == model and g[1] == f"-c {context} -fa on"), None)
                if said is None:
                    continue
                request = Request(kind="chat", context=context, concurrency=1, args={"flash-attn": "on"})
                own = {t.name: t.bytes for t in llamacpp.footprint(shape, request, CPU).terms}
                parameters = shape.parameters or 0
                found = {
                    "homelab": float(own["model"] + own["context"] + own["compute"]),
                    "hf-mem": tool.ask(folder, context),
                    "accelerate": accelerate.ask(
                        fit_command.load_catalog().entries[CATALOGUED.get(model, model)], 0.5
                    ),
                    "GPUStack": gpustack(shape.weights_bytes),
                    "llmfit": llmfit(shape, parameters, 0.58, context),
                }
                row(f"{model} GGUF, " + f"{context:,}".replace(",", " "), sum(said[2:]) * MIB, found)
        for case, name, weights, context, args, logged in LOGGED:
            entry = fit_command.load_catalog().entries[name]
            variant = next(v for v in entry.variants if v.weights == weights)
            shape = from_header(entry.document(variant))
            terms = {
                t.name: t.bytes
                for t in vllm.footprint(
                    shape, Request(kind="chat", context=context, concurrency=1, args=args), CARD
                ).terms
            }
            whole = "weights", "kv_cache", *(("activation", "non_torch") if name == "llama-3.1-8b" else ())
            width = 2.0 if weights == "bf16" else 1.0
            found = {
                "homelab": float(sum(terms[t] for t in whole)),
                "hf-mem": tool.ask(safetensors_folder(Path(place) / "hub" / name, entry, variant), context),
                "accelerate": accelerate.ask(entry, width),
                "GPUStack": gpustack(shape.weights_bytes),
                "llmfit": llmfit(shape, int(entry.parameters), width, context),
            }
            row(case, logged * GIB, found)
    print(
        "| **median of the sizes of errors** | | "
        + " | ".join(f"**{statistics.median(map(abs, errors[n])):.1%}**" if errors[n] else "-" for n in names)
        + " |"
    )
    print(
        "| **worst** | | "
        + " | ".join(f"{max(errors[n], key=abs):+.1%}" if errors[n] else "-" for n in names)
        + " |"
    )
    print(
        f"\n`hf-mem`: {tool.why or f'{HF_MEM} itself, `--experimental`, with the hub answered from files'}."
    )
    ran = accelerate.why and f"{accelerate.why}: its rule, parameters times bytes"
    print(
        f"accelerate: {ran or f'{ACCELERATE[0]} itself, `estimate-memory` of a config.json'}, plus the 20 % "
        "that its documentation adds."
    )
    print("Only the rule was applied of:\n")
    print("* GPUStack: the scheduler's rule for vLLM; for GGUF it runs gguf-parser.")
    print("* llmfit: the wheel holds a program for glibc 2.39; its rule from its documentation.")
    print(
        "* gguf-parser: a Go program without a package on PyPI (the one of that name there only reads "
        "headers): left out."
    )


if __name__ == "__main__":
    sys.exit("python bench/fit others")
