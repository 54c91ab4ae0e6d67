"""What was proven: a table for each model, then why what does not work does not."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from homelab.proofs import TITLES, Outcome, Result, Subject
from homelab.proofs.wire import PROTOCOLS
from homelab.ui.cells import Column, Rows, counted, tokens, wrapped

WORDS: dict[Outcome, tuple[str, str]] = {
    "works": ("works", "green"),
    "broken": ("broken", "red"),
    "model": ("not done", "yellow"),
    "lacks": ("not there", "yellow"),
    "unknown": ("unknown", "yellow"),
    "skipped": ("-", ""),
}
MARKS = ("broken", "model", "lacks", "unknown")


def lines(subject: Subject, results: Sequence[Result], width: int) -> list[Text]:
    """One model: what works by which protocol, and the reasons of what does not."""
    of = [subject.engine or "outside the house"]
    of += [f"context {tokens(subject.context)}"] if subject.context else []
    out = wrapped(Text.assemble((subject.name, "bold"), f"  {', '.join(of)}"), width, rest="  ")
    rows = Rows(
        (
            Column(head="PROOF", least=8, first=True),
            *(Column(head=TITLES[p].upper(), least=8) for p in PROTOCOLS),
        )
    )
    for name in dict.fromkeys(r.proof for r in results):
        by = {r.protocol: r for r in results if r.proof == name}
        cells = [Text(*WORDS[by[p].verdict.outcome]) if p in by else Text("") for p in PROTOCOLS]
        rows.add(name, *cells)
    out += rows.lines(width)
    for outcome in MARKS:
        for alike in _alike([r for r in results if r.verdict.outcome == outcome]):
            out += _reason(alike, width)
    for alike in _alike([r for r in results if r.verdict.outcome in ("works", "skipped") and r.verdict.why]):
        out += wrapped(f"{_where(alike)}: {alike[0].verdict.why}", width, rest="  ")
    return out


def summary(proven: Sequence[tuple[Subject, Sequence[Result]]], width: int) -> list[Text]:
    """What does not work, in a line; or that all does."""
    wrong = [
        f"`{subject.name}` ({counted(len(bad), 'proof')})"
        for subject, results in proven
        if (bad := {r.proof for r in results if r.verdict.outcome in ("broken", "model")})
    ]
    if not wrong:
        return wrapped("All works that an agent needs", width)
    return wrapped(f"Not all works: {', '.join(wrong)}", width, rest="  ")


def _alike(results: Sequence[Result]) -> list[list[Result]]:
    """Those of one proof with one reason, together."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for r in results:
        groups.setdefault((r.proof, r.verdict.why, r.mend), []).append(r)
    return list(groups.values())


def _where(alike: Sequence[Result]) -> str:
    return f"{alike[0].proof} by {', '.join(TITLES[r.protocol] for r in alike)}"


def _reason(alike: Sequence[Result], width: int) -> list[Text]:
    first = alike[0]
    word, colour = WORDS[first.verdict.outcome]
    tries = " (tried twice)" if any(r.tries > 1 for r in alike) else ""
    said = Text.assemble((f"{_where(alike)}: {word}{tries}", colour), f": {first.verdict.why}")
    out = wrapped(said, width, rest="  ")
    if first.mend:
        out += wrapped(Text.assemble(("mend:", "cyan"), f" {first.mend}"), width, first="  ", rest="    ")
    return out
