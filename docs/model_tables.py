"""The tables of models.md, from the catalog, the recipes and the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from homelab.fit_command import load_catalog, load_notes, load_scores
from homelab.models.catalog import Entry, parameter_count
from homelab.models.scores import PURPOSES, Score, best
from homelab.models.tensors import tensors
from homelab.pipeline import load_recipes

GIB = 2**30
CHAT = ("coding", "chat", "agents")


def parts() -> Mapping[str, str]:
    """Every generated part of models.md by its name."""
    return {f"models for {purpose}": by_purpose(purpose) for purpose in PURPOSES} | {
        "weights of models": weights(),
        "models with vLLM": with_vllm(),
        "notes on models": notes(),
        "sources of scores": sources(),
    }


def by_purpose(purpose: str) -> str:
    """The models that have a score for a purpose: of the benchmark that most have first, the best first."""
    entries = [e for e in load_catalog().entries.values() if (e.kind == "chat") == (purpose in CHAT)]
    entries = [e for e in entries if e.kind in ("chat", purpose)]
    scored = [(e, found) for e in entries if (found := best(load_scores().get(e.name, ()), purpose))]
    often = Counter(score.benchmark for _, score in scored)
    scored.sort(key=lambda pair: (-often[pair[1].benchmark], pair[1].benchmark, -pair[1].value))
    rows = [
        f"| {entry.name} | {score.value:g} | {score.benchmark} | {others(entry, score)} "
        f"| {parameters(entry)} | {context(entry)} | {entry.licence} | {sizes(entry)} |"
        for entry, score in scored
    ]
    out = table("Model | Score | Benchmark | Others | Parameters | Context | Licence | Weights, GiB", rows)
    if unknown := [
        e.name for e in entries if e.name not in {scored_entry.name for scored_entry, _ in scored}
    ]:
        out += f"\nUnknown: {', '.join(unknown)}.\n"
    return out


def weights() -> str:
    """Every variant with its size."""
    rows = [
        f"| {entry.name} | `{variant.source}` | {variant.weights} | {size(entry, i):.1f} | {variant.engine} |"
        for entry in load_catalog().entries.values()
        for i, variant in enumerate(entry.variants)
    ]
    return table("Model | Source | Weights | GiB | Engine", rows)


def with_vllm() -> str:
    """What vLLM's recipes say of the models that they know."""
    rows = []
    for entry in load_catalog().entries.values():
        if (recipe := load_recipes().find(entry.repo)) is None:
            continue
        drafts = f"{recipe.method}, {recipe.drafts}" if recipe.method else ""
        named = [recipe.min_vllm, recipe.tool_parser, recipe.reasoning_parser]
        rows.append(f"| {entry.name} | {' | '.join(n or '' for n in named)} | {drafts} |")
    return table("Model | vLLM from | Tool calls | Thinking | Drafts", rows)


def notes() -> str:
    """What people saw, by model."""
    same: dict[tuple[str, str, str], list[str]] = {}
    for name, listed in load_notes().items():
        for note in listed:
            same.setdefault((note.text, note.source, note.date), []).append(name)
    rows = [
        f"| {', '.join(names)} | {text} | {source}, {date} |" for (text, source, date), names in same.items()
    ]
    return table("Model | What was seen | Where", rows)


def sources() -> str:
    """Where the scores are from."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, listed in load_scores().items():
        if name not in load_catalog().entries:
            continue
        for score in listed:
            models = found.setdefault((score.source, score.date), [])
            if name not in models:
                models.append(name)
    rows = [f"| {source} | {date} | {', '.join(names)} |" for (source, date), names in sorted(found.items())]
    return table("Source | Date | For", rows)


def others(entry: Entry, first: Score) -> str:
    """The further scores of a model for the same purpose."""
    listed = load_scores()[entry.name]
    return ", ".join(
        f"{s.benchmark} {s.value:g}" for s in listed if s.purpose == first.purpose and s != first
    )


def parameters(entry: Entry) -> str:
    """All of them, and those that one token is multiplied with where they are fewer: without the experts
    that it does not visit and the table that it is looked up in."""
    config = entry.text
    experts = config.get("num_experts") or config.get("n_routed_experts") or config.get("num_local_experts")
    if not experts:
        return billions(entry.parameters)
    routed = sum(t.elements for t in tensors(config) if "_exps." in t.name)
    used = config["num_experts_per_tok"]
    table = 0 if config.get("tie_word_embeddings") else config["vocab_size"] * config["hidden_size"]
    active = parameter_count(entry) - table - routed * (experts - used) // experts
    return f"{billions(entry.parameters)}, {billions(active)} active"


def billions(count: float) -> str:
    return f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"


def context(entry: Entry) -> str:
    tokens = int(entry.text["max_position_embeddings"])
    return f"{tokens / 1024:.0f}k" if tokens >= 1024 else str(tokens)


def sizes(entry: Entry) -> str:
    """Each quantisation with its size, the largest first, and of several repositories the first."""
    found: dict[str, float] = {}
    for i, variant in enumerate(entry.variants):
        found.setdefault(variant.weights, size(entry, i))
    return ", ".join(f"{w} {s:.1f}" for w, s in sorted(found.items(), key=lambda pair: -pair[1]))


def size(entry: Entry, variant: int) -> float:
    document = entry.document(entry.variants[variant])
    return float(document.get("file_bytes", document.get("tensor_bytes"))) / GIB


def table(head: str, rows: list[str]) -> str:
    columns = len(head.split(" | "))
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *rows]) + "\n"
