"""The peaks that people measured on their own cards, beside what homelab says the same run takes:

    python bench/fit household

`data/household.jsonl` holds a row for each run: the model, the arguments as homelab would be given them, the
cards, and the most that `nvidia-smi` showed in use, of one card or of each. Where a table tells it in GB, it
is MiB / 1000, as in most of the rows that give both, and because some would not go into the card
otherwise. A GGUF whose header is not at hand is the catalog's, grown or shrunk to the published size of the
file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from homelab.engines import Footprint, Request, Unsupported, engines
from homelab.fit_command import load_catalog
from homelab.models.catalog import Entry, Variant
from homelab.models.header import from_header
from homelab.models.shape import ModelShape
from homelab.models.tensors import ggml_bytes, ggml_type, prediction_layer
from homelab.pipeline import load_cards

MIB = 2**20
DATA = Path(__file__).parent / "data" / "household.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in DATA.read_text().splitlines()]
# Terms for what nobody can count: they are the margin, not a part of the prediction.
MARGIN = frozenset({"reserve"})
# What a vision projector of Qwen3.6 is (its GGUF's metadata), which decides its buffer.
PROJECTOR = {
    "clip.vision.projector_type": "qwen3vl_merger",
    "clip.vision.embedding_length": 1152,
    "clip.vision.attention.head_count": 16,
    "clip.vision.feed_forward_length": 4304,
    "clip.vision.projection_dim": 5120,
    "clip.vision.spatial_merge_size": 2,
    "clip.vision.patch_size": 16,
}


@dataclass(frozen=True)
class Compared:
    """One run, on the card that takes most, in MiB."""

    row: dict[str, Any]
    predicted: float
    margin: float
    published: float
    terms: dict[str, float]

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1

    @property
    def beyond(self) -> float:
        """What the run took beyond prediction and margin together; negative where something was left."""
        return self.published - self.predicted - self.margin


def compared(row: Mapping[str, Any]) -> Compared:
    """What homelab says of a row.

    Raises Unsupported where it would refuse it."""
    footprint = _footprint(row)
    terms = {t.name: t.bytes / MIB for t in footprint.terms if t.where != "host"}
    margin = sum(size for name, size in terms.items() if name in MARGIN)
    predicted = footprint.device_bytes / MIB - margin
    utilization = row["args"].get("gpu-memory-utilization")
    if row["engine"] == "vllm" and utilization and "kv-cache-memory-bytes" not in row["args"]:
        # vLLM fills its budget with cache to the last block, whatever the model needs.
        total = load_cards().entries[row["card"]].reports_bytes / MIB
        outside = sum(t.bytes for t in footprint.terms if t.where == "context") / MIB
        terms["kv_cache"] += total * utilization - footprint.budget_bytes / MIB
        predicted = total * utilization + outside
    peak = row["peak_mib"]
    return Compared(
        row=dict(row),
        predicted=predicted,
        margin=margin,
        published=max(peak) if isinstance(peak, list) else peak,
        terms=terms,
    )


def _footprint(row: Mapping[str, Any]) -> Footprint:
    args = dict(row["args"])
    request = Request(
        kind="chat",
        context=row["context"],
        concurrency=row["concurrency"],
        args=engines()[row["engine"]].canonical(args),
        outputs="slots" if row["engine"] == "llamacpp" else "",
    )
    return engines()[row["engine"]].footprint(
        shape(row), request, load_cards().entries[row["card"]].device(row["count"])
    )


def shape(row: Mapping[str, Any]) -> ModelShape:
    """The model of a row: the catalog's, of the size that its files have."""
    model = row["model"]
    entry = load_catalog().entries[model["catalog"]]
    if changes := model.get("config"):
        entry = changed(entry, changes)
    weights = model["weights"]
    variant = Variant(source=entry.repo, weights=weights)
    document = entry.document(variant)
    size, with_mtp = model.get("bytes"), model.get("bytes_with_mtp", False)
    if variant.format == "gguf":
        if "mtp" in model and with_mtp:
            add_prediction_layer(document, entry.text, model["mtp"])
        if size:
            factor = size / sum(t[3] for t in document["tensors"])
            document["tensors"] = [[*t[:3], int(t[3] * factor)] for t in document["tensors"]]
        if "mtp" in model and not with_mtp:
            add_prediction_layer(document, entry.text, model["mtp"])
        document["file_bytes"] = sum(t[3] for t in document["tensors"])
        if mmproj := row.get("mmproj_bytes"):
            header = {"metadata": PROJECTOR, "tensors": [["v.all", [1], "F16", mmproj]]}
            document["projectors"] = {row["args"]["mmproj"]: header}
        return from_header(document)
    if size:
        factor = size / sum(g[1] for g in document["groups"].values())
        document["groups"] = {n: [g[0], int(g[1] * factor), g[2]] for n, g in document["groups"].items()}
    document["tensor_bytes"] = sum(g[1] for g in document["groups"].values())
    if method := model.get("quant_method"):
        document["config"]["quantization_config"] = {"quant_method": method}
    return from_header(document)


def add_prediction_layer(document: dict[str, Any], config: Mapping[str, Any], type_: str) -> None:
    """Puts a prediction layer (MTP) of this type of weights behind the others of a GGUF."""
    architecture = document["metadata"]["general.architecture"]
    document["metadata"][f"{architecture}.block_count"] += 1
    document["metadata"][f"{architecture}.nextn_predict_layers"] = 1
    document["tensors"] += _prediction_layer(config, type_)


def _prediction_layer(config: Mapping[str, Any], type_: str) -> list[list[Any]]:
    """The tensors of one prediction layer as a GGUF lists them: a full layer, what joins two vectors, norms
    (llama.cpp `src/models/qwen35.cpp`)."""
    count, own = int(config["num_hidden_layers"]), prediction_layer(config)
    out = []
    for tensor in own:
        flat = ggml_type(tensor, "Q8_0", count, tied=False) == "F32"
        kind = "F32" if flat else type_
        out.append([tensor.full_name, list(tensor.dims), kind, ggml_bytes(tensor, kind)])
    return out


def changed(entry: Entry, changes: Mapping[str, Any]) -> Entry:
    """A model of the same kind with other dimensions."""
    text = {**entry.text, **changes}
    config = {**entry.config, "text_config": text} if "text_config" in entry.config else text
    return replace(entry, config=config)


def results() -> tuple[list[Compared], list[dict[str, Any]], list[tuple[dict[str, Any], str]]]:
    """All rows: compared, left out, and refused with the reason."""
    done, left, refused = [], [], []
    for row in ROWS:
        if "left_out" in row:
            left.append(row)
            continue
        try:
            done.append(compared(row))
        except Unsupported as e:
            refused.append((row, str(e)))
    return done, left, refused


def table() -> str:
    """All of it as Markdown."""
    done, left, refused = results()
    out = ["| run | measured, MiB | homelab | error | margin | within it | source |"]
    out.append("|---|---:|---:|---:|---:|---|---|")
    for c in done:
        within = "yes" if c.beyond <= 0 else f"**{c.beyond:.0f} MiB too little**"
        out.append(
            f"| {c.row['case']} | {_number(c.published)} | {_number(c.predicted)} | {c.error:+.1%} | "
            f"{_number(c.margin)} | {within} | {_source(c.row['source'])} |"
        )
    out.append("")
    for name, engine in (("llama.cpp", "llamacpp"), ("vLLM", "vllm")):
        of = [c for c in done if c.row["engine"] == engine]
        median = statistics.median(abs(c.error) for c in of)
        out.append(
            f"* {name}: {len(of)} runs, median of the sizes of errors {median:.1%}, from "
            f"{min(c.error for c in of):+.1%} to {max(c.error for c in of):+.1%}; beyond the margin: "
            f"{sum(c.beyond > 0 for c in of)}."
        )
    for row, reason in refused:
        out.append(f"* Refused, though it ran: {row['case']}: {reason}")
    out.append("\nLeft out:\n")
    by_reason: dict[str, list[str]] = {}
    for row in left:
        by_reason.setdefault(row["left_out"], []).append(f"{row['case']} ({row['published']})")
    out += [f"* {'; '.join(cases)}: {reason}" for reason, cases in by_reason.items()]
    return "\n".join(out)


def main() -> None:
    print("### People's own cards: the most that was in use, and what is predicted\n")
    print(table())


def _source(source: str) -> str:
    """`BENCHMARKS.md:131` or `club-3090#1380`: the repositories are named once, above the table."""
    name, _, line = source.partition(":")
    if not line:
        return source.rpartition("/")[2]
    return f"{'qwen38-mtp ' if 'qwen38-mtp' in name else ''}{line.rpartition('/')[2]}"


def _number(mib: float) -> str:
    return f"{mib:,.0f}".replace(",", " ")
