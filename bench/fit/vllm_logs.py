"""vLLM's own figures, logged on people's machines, beside what homelab computes. No GPU is needed:
cache memory in, tokens out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from homelab.engines import Device, Request, vllm
from homelab.models.paged_kv import Draft, Element, Paging, Pool, pool, prediction_layers
from tests.models.examples import safetensors

GIB = 2**30
ROWS = [json.loads(line) for line in (Path(__file__).parent / "data" / "vllm.jsonl").read_text().splitlines()]


def compared(row: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(what, logged, ours) of one case."""
    options = dict(row.get("paging", {}))
    scale = options.pop("scale_bytes", 0)
    element = Element(bytes=1, scale_bytes=scale) if options.pop("fp8", False) or scale else Element()
    shape, paging = safetensors(row["model"]), Paging(element=element, **options)
    draft = Draft(layers=prediction_layers(shape), element=element, tensor_parallel=paging.tensor_parallel)
    found = pool(shape, row["context"], paging, draft if row.get("prediction") else None)
    out = []
    if "tokens" in row or "concurrency" in row:
        requests = int(row["available_gib"] * GIB) // found.block_bytes / found.blocks_per_request
        if "tokens" in row:
            out.append(("tokens", float(row["tokens"]), requests * row["context"]))
        else:
            out.append(("requests at once", row["concurrency"], requests))
    if "needed_gib" in row:
        out.append(("GiB needed", row["needed_gib"], found.block_bytes * found.blocks_per_request / GIB))
    if "longest" in row:
        out.append(
            (
                "longest context",
                float(row["longest"]),
                float(_longest(row, found)),
            )
        )
    return out


def _longest(row: dict[str, Any], found: Pool) -> int:
    """The longest request that the available memory holds, where only full layers and states take blocks."""
    fixed = found.blocks_per_request - -(-row["context"] // found.block_tokens)
    return (int(row["available_gib"] * GIB) // found.block_bytes - fixed) * found.block_tokens


def shown(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value > 1000 else f"{value:.2f}"


def main() -> None:
    print("### vLLM: cache memory to tokens, and what refusals asked for\n")
    print("| case | kind | figure | logged | homelab | error | source |\n|---|---|---|---:|---:|---:|---|")
    for row in ROWS:
        if "left_out" in row:
            continue
        for what, logged, ours in compared(row):
            mark = " *" if "note" in row else ""
            print(
                f"| {row['case']}{mark} | {row['kind']} | {what} | {shown(logged)} | {shown(ours)} | "
                f"{ours / logged - 1:+.2%} | {row['source']} |"
            )
    print("\n\\* Not every setting is in the log:\n")
    for row in ROWS:
        if "note" in row:
            print(f"* {row['case']}: {row['note']}")
    device = Device(vendor="nvidia", name="x", total_bytes=1)
    one = vllm.footprint(
        safetensors("llama-3.1-8b", tensor_bytes=16_060_522_496),
        Request(kind="chat", context=20000, concurrency=1),
        device,
    )
    groups = {"model.layers.*.mlp.gate.weight": [48, 48 * 2048 * 128 * 2, "BF16"]}
    four = vllm.footprint(
        safetensors("qwen3-30b-a3b", tensor_bytes=61_064_245_248, groups=groups),
        Request(kind="chat", context=8192, concurrency=1),
        Device(vendor="nvidia", name="x", total_bytes=1, count=4),
    )
    print("\n| weights | logged GiB | homelab | error | source |\n|---|---:|---:|---:|---|")
    for case, logged, found, source in (
        ("Llama-3.1-8B bf16", 14.9888, one, "vllm-project/vllm#10517"),
        ("Qwen3-30B-A3B bf16, each of 4 GPUs", 14.2474, four, "vllm-project/vllm#17327"),
    ):
        ours = found.terms[0].bytes / GIB
        print(f"| {case} | {logged:.4f} | {ours:.4f} | {ours / logged - 1:+.2%} | {source} |")
    print("\nLeft out:\n")
    for row in ROWS:
        if "left_out" in row:
            print(f"* {row['case']} ({row['source']}): {row['left_out']}")
