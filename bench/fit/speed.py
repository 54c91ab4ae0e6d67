"""The speeds that people published, beside what homelab predicts of the same run:

    python bench/fit speed

`data/speed.jsonl` holds a row for each: the model, the card, the tokens in the cache, tokens per second of
one request. Efficiencies were fitted to the rows that are not `held_out`; the others check them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import household

from homelab.engines import Device, Request, Unsupported, engines
from homelab.models.shape import Layer, ModelShape
from homelab.pipeline import load_cards
from homelab.speed import Speed, backend, predict

DATA = Path(__file__).parent / "data" / "speed.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in DATA.read_text().splitlines()]
WITHIN = 0.3  # what counts as right
Measure = Literal["decode", "prefill"]


@dataclass(frozen=True)
class Compared:
    """One published speed, in tokens/s."""

    row: dict[str, Any]
    measure: Measure
    predicted: float
    published: float
    spread: float

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1


def _tokens(row: Mapping[str, Any], measure: Measure) -> tuple[int, int]:
    """How many tokens lay in the cache before, and how many were read or are there now."""
    if measure == "decode":
        return 0, row["context_tokens"]
    return row.get("prefill_context_tokens") or 0, row.get("prefill_tokens") or 512


def device(row: Mapping[str, Any]) -> Device:
    if row["card"] is not None:
        return load_cards().entries[row["card"]].device(row["count"])
    return Device(
        vendor="cpu",
        name=row["cpu"]["name"],
        total_bytes=64 << 30,
        memory_kind="ram",
        gb_per_s=row["cpu"]["gb_per_s"],
    )


@cache
def _catalogued(row: str) -> ModelShape:
    return household.shape(json.loads(row))


def shape(row: Mapping[str, Any]) -> ModelShape:
    """The model of a row: the catalog's, or one that the row describes."""
    model = row["model"]
    if "catalog" in model:
        if "mtp" in str(row["args"].get("spec-type")):
            model = {"mtp": "Q8_0", "bytes_with_mtp": True, **model}
        return _catalogued(json.dumps({"model": model, "args": {}}))
    share = model["active"] / model["parameters"]
    dense = (model["vocab"] * model["hidden"]) / model["parameters"] * model["bytes"]
    layers, used = model["layers"], model.get("experts_used", 0)
    # What is left of the active parameters beside attention, as one wide layer.
    rows = model.get("heads", model["hidden"] // model["head_dim"]) * model["head_dim"]
    attention = model["hidden"] * 2 * (rows + model["kv_heads"] * model["head_dim"])
    wide = (
        ((model["active"] - 2 * model["vocab"] * model["hidden"]) / layers - attention) / 3 / model["hidden"]
    )
    experts = model.get("experts", 0)
    expert_bytes = int(model["bytes"] * (1 - share) / (1 - used / experts)) if experts else 0
    layer = Layer(
        attention="full",
        heads=rows // model["head_dim"],
        kv_heads=model["kv_heads"],
        key_dim=model["head_dim"],
        value_dim=model["head_dim"],
        bytes=int((model["bytes"] - 2 * dense) / layers),
        expert_bytes=expert_bytes // layers,
    )
    return ModelShape(
        format="gguf" if row["engine"] == "llamacpp" else "safetensors",
        architecture=model["name"],
        layers=(layer,) * layers,
        hidden=model["hidden"],
        heads=layer.heads,
        intermediate=int(wide),
        vocab=model["vocab"],
        max_context=None,
        weights_bytes=model["bytes"],
        embedding_bytes=int(dense),
        output_bytes=int(dense),
        experts=experts,
        experts_used=used,
    )


def speed(row: Mapping[str, Any], context: int) -> Speed | None:
    """What homelab predicts of a row with so many tokens in its cache.

    Raises Unsupported where it would refuse it."""
    engine = engines()[row["engine"]]
    request = Request(
        kind="chat",
        context=max(context, 1),
        concurrency=1,
        args=engine.canonical(dict(row.get("args") or {})),
        outputs="slots" if row["engine"] == "llamacpp" else "",
    )
    of, on = shape(row), device(row)
    return predict(of, request, engine.footprint(of, request, on), on, engine=row["engine"])


def compared(row: Mapping[str, Any]) -> Iterator[Compared]:
    """Both speeds of a row, as far as they are published and predicted.

    Raises Unsupported where homelab would refuse it."""
    for measure in ("decode", "prefill"):
        if (published := _number(row.get(measure))) is None:
            continue
        before, tokens = _tokens(row, measure)
        found = speed(row, before + tokens)
        if found is None:
            continue
        value, spread = found.decode_tokens_per_s, found.spread
        if measure == "prefill":
            value, spread = None, found.prefill_spread
            whole, first = found.prompt_seconds(before + tokens), found.prompt_seconds(before)
            if whole is not None and first is not None:
                value = tokens / (whole - first)
        if value is not None and spread is not None:
            yield Compared(
                row=dict(row), measure=measure, predicted=value, published=published, spread=spread
            )


def results() -> tuple[list[Compared], list[tuple[dict[str, Any], str]]]:
    """All that can be compared, and the rows that cannot, with the reason."""
    done: list[Compared] = []
    left: list[tuple[dict[str, Any], str]] = []
    for row in ROWS:
        if "left_out" in row:
            left.append((row, row["left_out"]))
            continue
        try:
            found = list(compared(row))
        except Unsupported as e:
            left.append((row, str(e)))
            continue
        done += found
        if not found:
            left.append((row, f"homelab predicts none for {row['engine']} on {backend(device(row))}"))
    return done, left


def summary(done: list[Compared]) -> list[str]:
    """By engine, kind of device and measure, of what was held out by itself."""
    out = ["| engine, device | speed | runs | median error | in ±30 % | held out | median error | in ±30 % |"]
    out.append("|---|---|---:|---:|---:|---:|---:|---:|")
    groups: dict[tuple[str, Measure], list[Compared]] = {}
    for c in done:
        groups.setdefault((f"{c.row['engine']}, {backend(device(c.row))}", c.measure), []).append(c)
    for key, of in [
        *sorted(groups.items()),
        *((("all", m), [c for c in done if c.measure == m]) for m in ("decode", "prefill")),
    ]:
        held = [c for c in of if c.row["held_out"]]
        out.append(f"| {key[0]} | {key[1]} | {_shares(of)} | {_shares(held)} |")
    return out


def _shares(of: list[Compared]) -> str:
    if not of:
        return "0 | - | -"
    median = statistics.median(abs(c.error) for c in of)
    return f"{len(of)} | {median:.0%} | {sum(abs(c.error) <= WITHIN for c in of) / len(of):.0%}"


def table() -> str:
    """All of it as Markdown."""
    done, left = results()
    out = [*summary(done), ""]
    out.append("| run | card | tokens | speed | published | homelab | error | source |")
    out.append("|---|---|---:|---|---:|---:|---:|---|")
    for c in done:
        count = f"{c.row['count']} × " if c.row["count"] > 1 else ""
        tokens = sum(_tokens(c.row, c.measure))
        held = " (held out)" if c.row["held_out"] else ""
        out.append(
            f"| {c.row['case']}{held} | {count}{c.row['card']} | {tokens} | {c.measure} | "
            f"{c.published:.4g} | {c.predicted:.4g} | {c.error:+.0%} | {c.row['source']} |"
        )
    return "\n".join([*out, "", *left_out(left)])


def left_out(left: list[tuple[dict[str, Any], str]]) -> list[str]:
    """What could not be compared, by reason."""
    by_reason: dict[str, list[str]] = {}
    for row, reason in left:
        by_reason.setdefault(reason, []).append(row["case"])
    return ["Left out:", "", *(f"* {'; '.join(cases)}: {reason}" for reason, cases in by_reason.items())]


def main() -> None:
    print("### Published speeds, and what is predicted\n")
    print(table())


def _number(value: Any) -> float | None:
    """A speed, or the middle of what several prompts gave."""
    if isinstance(value, list):
        return statistics.fmean(value)
    return None if value is None else float(value)
