"""What to run: the household that is suggested, what would come next for each purpose, what to write down."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from homelab.placement import Placement
from homelab.suggest import Option, Pick, Suggestion, written
from homelab.ui import cells
from homelab.ui.cells import Column, gib, tokens, wrapped
from homelab.ui.why import per_second, short_name

PICKS = (
    Column(head="MODEL", least=14, middle=True),
    Column(head="FOR"),
    Column(head="WHERE", least=16, middle=True, drop=1),
    Column(head="WEIGHTS", least=10),
    Column(head="CONTEXT", right=True),
    Column(head="GiB", right=True, drop=2),
    Column(head="TOK/S", right=True),
    Column(head="SCORE", right=True),
)
OTHERS = (
    Column(head="MODEL", least=14, middle=True),
    Column(head="WEIGHTS", least=10, drop=1),
    Column(head="CONTEXT", right=True, drop=2),
    Column(head="TOK/S", right=True),
    Column(head="SCORE", right=True),
    Column(head="TRADE", least=20),
)


def lines(found: Suggestion, width: int, *, inventory: bool = True) -> list[Text]:
    """The suggestion in lines of at most `width` cells; with the lines for the inventory, where those are
    not written there at once."""
    out: list[Text] = []
    if found.beside:
        out += wrapped(f"Beside what the inventory asks for already: {', '.join(found.beside)}", width)
    if found.without_place:
        said = f"of these without a place, or not known yet: {', '.join(found.without_place)}"
        out += wrapped(Text(said, "yellow"), width, rest="  ")
    if found.picks:
        out += [*_picks(found, width), Text()]
    for purpose, options in found.others.items():
        if options:
            out += _others(found, purpose, options, width)
        unscored = [n for n in found.unscored.get(purpose, ()) if n not in {p.name for p in found.picks}]
        if unscored and purpose != "embedding":
            benchmark = found.benchmarks.get(purpose)
            whose = f"their {benchmark}" if benchmark else f"a score for {purpose}"
            out += wrapped(
                f"For {purpose} these fit too, but nobody has published {whose}: {', '.join(unscored)}",
                width,
                rest="  ",
            )
            out.append(Text())
    for purpose, why in found.missing.items():
        out += wrapped(Text.assemble((f"nothing for {purpose}", "yellow"), f": {why}"), width, rest="  ")
    if found.picks:
        out += wrapped(
            "Scores are as published, mostly by the models' makers, and of weights as they were trained: "
            "docs/models.md has each with its source and date. Speeds are predicted: docs/speed.md",
            width,
        )
    if found.picks and inventory:
        out += [Text(), Text("models:")]
        out += [Text(f"  {line}") for line in written(found.picks).splitlines()]
    return out


def _picks(found: Suggestion, width: int) -> list[Text]:
    alone = len({slot.node for slot in found.layout.slots}) == 1
    places = {_where(p, alone=alone) for pick in found.picks for p, _ in pick.placements}
    columns = [c for c in PICKS if c.head != "WHERE" or len(places) > 1 or not alone]
    table = cells.Rows(columns)
    for pick in found.picks:
        scores = ", ".join(f"{s.value:g}" for s in pick.scores) or "-"
        for number, (p, speed) in enumerate(pick.placements):
            first = number == 0
            where = [_where(p, alone=alone)] if len(columns) == len(PICKS) else []
            table.add(
                pick.name if first else "",
                ", ".join(pick.purposes) if first else "",
                *where,
                pick.weights,
                f"{tokens(p.request.context)} × {p.request.concurrency}",
                gib(p.bytes),
                per_second(speed.decode_tokens_per_s) if speed else "-",
                scores if first else "",
            )
    return table.lines(width)


def _where(p: Placement, *, alone: bool) -> str:
    several = f"{p.device.count} × " if p.device.count > 1 else ""
    device = f"{several}{short_name(p.device.name)}" if p.gpus else "RAM"
    return device if alone else f"{p.node} {device}"


def _others(found: Suggestion, purpose: str, options: tuple[Option, ...], width: int) -> Iterator[Text]:
    """What would come next for a purpose, with what one gains and loses against what is suggested."""
    pick = next((p for p in found.picks if purpose in p.purposes), None)
    benchmark = next((o.score.benchmark for o in options if o.score), "")
    instead = f"Instead of {pick.name} for {purpose}" if pick else f"For {purpose}, alone"
    if pick and not any(s.benchmark == benchmark for s in pick.scores):
        instead += f" (nobody has published its {benchmark})"
    yield from wrapped(f"{instead}, by {benchmark}:", width)
    table = cells.Rows(OTHERS)
    for o in options:
        table.add(
            o.name,
            o.weights,
            tokens(o.placement.request.context),
            per_second(o.speed.decode_tokens_per_s) if o.speed else "-",
            f"{o.score.value:g}" if o.score else "-",
            _trade(pick, purpose, o),
        )
    yield from table.lines(width, indent=2, head=False)
    yield Text()


def _trade(pick: Pick | None, purpose: str, o: Option) -> str:
    """`-9.9, 4.2 × the speed`; empty where there is nothing to compare with."""
    if pick is None or o.score is None:
        return ""
    mine = next((s for s in pick.scores if s.purpose == purpose and s.benchmark == o.score.benchmark), None)
    said = []
    if mine is not None:
        said.append(f"{o.score.value - mine.value:+.1f}")
    speeds = [s.decode_tokens_per_s for _, s in pick.placements if s is not None]
    if speeds and o.speed is not None:
        ratio = o.speed.decode_tokens_per_s / min(speeds)
        said.append("as fast" if 0.9 <= ratio <= 1.1 else f"{ratio:.1f} × the speed")
    return ", ".join(said)
