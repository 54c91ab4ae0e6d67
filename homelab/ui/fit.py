"""Answers of `homelab fit`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from homelab.facts import Measurement
from homelab.fit import Fit, several
from homelab.fit_command import Answer, History, Rows
from homelab.measured import error
from homelab.ui import cells
from homelab.ui.bars import Part, bar, legend
from homelab.ui.cells import GIB, Column, counted, gib, tokens, wrapped
from homelab.ui.why import GRADES, per_second, short_name, speeds

VERDICTS = {"fits": "green", "does-not-fit": "red", "no-device": "cyan"}
TERMS = (Column(head="TERM"), Column(head="GiB", right=True), Column(head="WHERE"), Column(head="HOW SURE"))
CATALOG = (
    Column(head="MODEL", least=14, middle=True),
    Column(head="DEVICE", least=10, middle=True),
    Column(head="VARIANT", least=22),
    Column(head="GiB", right=True),
    Column(head="CONTEXT", right=True),
    Column(head="TOK/S", right=True, drop=2),
    Column(head="LICENCE", least=8, drop=1),
)
# What stands over the models of each kind in a list of all.
KINDS = {
    "chat": "",
    "embedding": "For embeddings (kind: embedding):",
    "rerank": "For reranking (kind: rerank):",
}
MEASURED = (
    Column(head="MODEL", least=12, middle=True),
    Column(head="DEVICE", least=10),
    Column(head="ENGINE", drop=1),
    Column(head="CONTEXT", right=True),
    Column(head="PREDICTED", right=True),
    Column(head="USED GiB", right=True),
    Column(head="ERROR", right=True),
)


def lines(answer: Answer, width: int) -> list[Text]:
    """Whatever `homelab fit` was asked, in lines of at most `width` cells."""
    match answer:
        case Rows():
            return _catalog(answer, width)
        case History(measured=measured):
            return _history(measured, width)
        case _:
            return list(_fit(answer, width))


def _fit(fit: Fit, width: int) -> Iterator[Text]:
    """What was asked, terms, the split of the device, verdict, flags; what would fit instead."""
    name = short_name(fit.place.device.name) if fit.place else ""
    where = f", on {fit.place.label or several(fit.place.device, name)}" if fit.place else ""
    weights = f" as {fit.candidate.quant}" if fit.candidate.quant else ""
    asked = f"{fit.candidate.engine}, {_asked(fit.request.concurrency, fit.request.context)}{where}"
    head = Text.assemble((fit.candidate.source, "bold"), f"{weights}  {asked}")
    yield from wrapped(head, width, rest="  ")
    if fit.footprint.terms:
        device = "RAM" if fit.place and fit.place.device.vendor == "cpu" else "GPU"
        places = {"device": device, "context": f"{device}, outside the budget", "host": "RAM"}
        terms = cells.Rows(TERMS)
        for t in fit.footprint.terms:
            terms.add(
                t.name, f"{t.bytes / GIB:.2f}", places[t.where], GRADES.get(t.grade, t.grade) or t.grade
            )
        yield from terms.lines(width)
        if fit.place:
            yield from _device(fit, width)
    need, colour = fit.footprint.device_bytes / GIB, VERDICTS[fit.verdict]
    free = (
        f", free {fit.place.free_bytes / GIB:.2f} GiB"
        if fit.place
        else ": name a device with --gpu 24GiB or --node NAME to know if it fits"
    )
    if fit.place and fit.place.device.count > 1:
        each = f"each of {several(fit.place.device, name)}"
        said = fit.reason or f"{each} needs {need:.2f} of {fit.place.free_bytes / GIB:.2f} GiB"
    else:
        said = fit.reason or f"needs {need:.2f} GiB{free}"
    yield from wrapped(Text.assemble((fit.verdict, f"bold {colour}"), f"  {said}"), width, rest="  ")
    if fit.speed is not None:
        for number, line in enumerate(speeds(fit.speed)):
            first = Text.assemble(("speed", "cyan"), "  ") if number == 0 else Text("       ")
            yield from wrapped(first.append(line), width, rest="       ")
    for note in fit.notes:
        yield from wrapped(Text.assemble(("note", "yellow"), f"  {note}"), width, rest="  ")
    if fit.flags and fit.verdict != "does-not-fit":
        yield from wrapped(f"flags {' '.join(fit.flags)}", width, rest="  ")
    for a in fit.alternatives:
        ram = f" and {a.footprint.host_bytes / GIB:.2f} GiB of RAM" if a.footprint.host_bytes else ""
        fast = f", about {per_second(a.speed.decode_tokens_per_s)} tokens/s" if a.speed else ""
        yield from wrapped(f"instead: {a.what}: {a.bytes / GIB:.2f} GiB{ram}{fast}", width, rest="  ")
        yield from wrapped(
            f"type {shlex.join(a.typed)}{_inventory(a.written)}", width, first="  ", rest="    "
        )


def _asked(concurrency: int, context: int) -> str:
    return f"{counted(concurrency, 'request')} at once, {tokens(context)} tokens each"


def _inventory(written: Mapping[str, Any]) -> str:
    """The keys of the inventory that say it, as they stand there."""
    keys = ", ".join(f"{key}: {_yaml(value)}" for key, value in written.items())
    return f"    in the inventory {keys}" if keys else ""


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(v)}" for key, v in value.items()) + "}"
    return str(value)


def _device(fit: Fit, width: int) -> Iterator[Text]:
    assert fit.place is not None
    total, free = fit.place.device.total_bytes, fit.place.free_bytes
    ours = [Part(kind="ours", name=t.name, bytes=t.bytes) for t in fit.footprint.terms if t.where != "host"]
    parts = [
        *(part for part in ours if part.bytes),
        Part(kind="others", name="others", bytes=total - free),
        Part(kind="free", name="free", bytes=max(free - fit.footprint.device_bytes, 0)),
    ]
    size = f"{gib(total)} GiB"
    # More than there is room for runs over the end of the device.
    over = fit.footprint.device_bytes > free
    yield bar(parts, min(width - len(size) - 3, 60)).append(f"{'>' if over else ' '} {size}")
    yield from legend(parts, width, 0)


def _catalog(found: Rows, width: int) -> list[Text]:
    """What each device can run of the catalog."""
    said = f"{_asked(found.concurrency, found.context)}, or as many as the model was made for"
    out = [*wrapped(said, width, rest="  ")]
    for kind, title in KINDS.items():
        shown = cells.Rows(CATALOG)
        of_kind = [row for row in found.rows if row.kind == kind]
        for row in of_kind:
            best = row.found
            if best is None:
                shown.add(row.model, row.where, Text(row.shortest, "dim"), "-", "-", "-", row.licence)
            else:
                size = f"{best.footprint.device_bytes / GIB:.1f}"
                context = tokens(best.request.context)
                fast = per_second(best.speed.decode_tokens_per_s) if best.speed else "-"
                shown.add(row.model, row.where, best.candidate.source, size, context, fast, row.licence)
        if of_kind:
            out += [*([Text(title)] if title else []), *shown.lines(width)]
    return [*out, Text("Next: homelab fit MODEL --gpu … --context …")]


def _history(measured: Sequence[Measurement], width: int) -> list[Text]:
    """What was predicted and what is really used, by placement, and how far off the predictions are."""
    if not measured:
        return [Text("Nothing was measured yet: every deploy adds to it")]
    rows = cells.Rows(MEASURED)
    for m in measured:
        off = error(m)
        context = f"{tokens(m.context)} × {m.concurrency}"
        shown = "-" if off is None else f"{off:+.1%}"
        device = short_name(m.device)
        rows.add(m.model, device, m.engine, context, gib(m.planned_bytes), gib(m.used_bytes), shown)
    out = rows.lines(width)
    errors = sorted(abs(e) for m in measured if (e := error(m)) is not None)
    if errors:
        said = (
            f"Median error {errors[len(errors) // 2]:.1%} over {len(errors)} placements; "
            "reserves for later growth are left out of it"
        )
        out += wrapped(said, width)
    return out
