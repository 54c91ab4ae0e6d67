"""What is often promised for a card of this or that size, planned as homelab would: python bench/fit cards

The cards report what CUDA reports on them, with nothing else in their memory; the models are those of the
catalog."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

import homelab
from homelab.cards import parse_gpu
from homelab.facts import Survey, Weights
from homelab.inventory import load
from homelab.models.catalog import Catalog, parse
from homelab.models.header import from_header
from homelab.pipeline import load_cards
from homelab.placement import Layout, Placement, place
from homelab.speed import predict
from tests.machines import gpu, machine

# Cards of usual sizes. All are of compute capability 8.9.
CARDS = {8: "RTX 4060", 16: "RTX 4060 Ti 16GB", 24: "RTX 4090", 48: "RTX 6000 Ada"}
FP8 = {"kv-cache-dtype": "fp8"}
Q8 = {"cache-type-k": "q8_0", "cache-type-v": "q8_0"}


@dataclass(frozen=True)
class Ask:
    """One model of the catalog, as one of its weights, with one request of so much context."""

    model: str
    weights: str
    context: int
    small_cache: bool = False

    def __str__(self) -> str:
        return f"{self.model} {self.weights} at {self.context // 1024}k" + (
            ", 8-bit cache" if self.small_cache else ""
        )


ROWS: list[tuple[int, tuple[Ask, ...]]] = [
    (8, (Ask("qwen3-4b", "bf16", 8192),)),
    (8, (Ask("qwen3-4b", "fp8", 16384, True),)),
    (8, (Ask("qwen3-4b", "awq", 32768, True),)),
    (8, (Ask("qwen3-4b", "Q4_K_M", 32768, True),)),
    (16, (Ask("qwen3-14b", "bf16", 8192),)),
    (16, (Ask("qwen3-14b", "fp8", 8192),)),
    (16, (Ask("qwen3-14b", "awq", 32768, True),)),
    (16, (Ask("qwen3-14b", "Q4_K_M", 32768, True),)),
    (16, (Ask("qwen3-4b", "bf16", 8192), Ask("qwen3-8b", "bf16", 8192))),
    (16, (Ask("qwen3-4b", "awq", 32768, True), Ask("qwen3-8b", "awq", 32768, True))),
    (24, (Ask("qwen3-4b", "bf16", 40960), Ask("qwen3-30b-a3b", "bf16", 40960))),
    (24, (Ask("qwen3-4b", "fp8", 40960, True), Ask("qwen3-30b-a3b", "fp8", 40960, True))),
    (24, (Ask("qwen3-4b", "awq", 40960, True), Ask("qwen3-30b-a3b", "awq", 40960, True))),
    (24, (Ask("qwen3-4b", "awq", 8192, True), Ask("qwen3-30b-a3b", "awq", 16384, True))),
    (24, (Ask("qwen3-30b-a3b", "Q4_K_M", 32768),)),
    (24, (Ask("qwen3-30b-a3b", "Q4_K_M", 32768), Ask("qwen3-4b", "Q4_K_M", 8192))),
    (48, (Ask("qwen3-30b-a3b", "awq", 40960, True), Ask("qwen3-30b-a3b", "awq", 40960, True))),
    (48, (Ask("qwen3-30b-a3b", "fp8", 40960, True), Ask("qwen3-30b-a3b", "fp8", 40960, True))),
    (48, (Ask("llama-3.3-70b", "bf16", 16384, True),)),
    (48, (Ask("llama-3.3-70b", "awq", 16384, True), Ask("qwen3-4b", "awq", 8192, True))),
    (48, (Ask("llama-3.3-70b", "Q4_K_M", 16384, True),)),
]


@cache
def catalog() -> Catalog:
    return parse((Path(homelab.__file__).parent / "models/catalog.yml").read_text())


def planned(size: int, asks: tuple[Ask, ...]) -> Layout:
    """The plan for one machine with one card."""
    device = parse_gpu(CARDS[size], load_cards())
    card = gpu(f"NVIDIA {device.name}", device.total_bytes // 2**20).model_copy(
        update={"compute_capability": device.compute_capability}
    )
    models, known = {}, {}
    for number, ask in enumerate(asks):
        entry = catalog().entries[ask.model]
        variant = next(v for v in entry.variants if v.weights == ask.weights)
        small = (FP8 if variant.engine == "vllm" else Q8) if ask.small_cache else {}
        models[f"{ask.model}-{number}"] = {
            "engine": variant.engine,
            "source": variant.source,
            "context": ask.context,
            "concurrency": 1,
            "args": small,
        }
        known[variant.source] = Weights(source=variant.source, header=entry.document(variant), bytes=1)
    text = yaml.safe_dump(
        {"gateway": {"node": "box"}, "nodes": {"box": {"host": "192.168.1.10"}}, "models": models}
    )
    return place(
        load(text, "inventory.yml"),
        Survey.model_validate(
            {"nodes": {"box": {"reachable": True, "facts": machine("box", card)}}, "models": known}
        ),
    )


def fast(p: Placement) -> str:
    """Predicted tokens per second of a placement."""
    entry = next(e for e in catalog().entries.values() for v in e.variants if v.source == p.source)
    shape = from_header(entry.document(next(v for v in entry.variants if v.source == p.source)))
    device = load_cards().known(p.device)
    speed = predict(shape, p.request, p.footprint, device, engine=p.engine)
    return f"{speed.decode_tokens_per_s:.0f}" if speed else "?"


def table() -> str:
    """The rows with a verdict, what each model takes, and what is left or missing."""
    lines = [
        "| card | asked for | verdict | GiB | `--gpu-memory-utilization` | tokens/s | left, or why not |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, asks in ROWS:
        layout = planned(size, asks)
        placed = sorted(layout, key=lambda p: p.model)
        needs = " + ".join(f"{p.bytes / 2**30:.2f}" for p in placed)
        splits = " + ".join(
            f"{p.gpu_memory_utilization:.3f}" for p in placed if p.gpu_memory_utilization is not None
        )
        why = "; ".join(
            dict.fromkeys(u.details[0].partition(": ")[2].partition(" of ")[0] for u in layout.unplaced)
        )
        left = f"{next(s.free_bytes for s in layout.slots if s.gpus) / 2**30:.2f} GiB left"
        verdict = "no" if layout.unplaced else "yes"
        lines.append(
            f"| {size} GB | {' + '.join(map(str, asks))} | **{verdict}** | {needs or '-'} "
            f"| {splits or '-'} | {' + '.join(map(fast, placed)) or '-'} | {why or left} |"
        )
    return "\n".join(lines)
