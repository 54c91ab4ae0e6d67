"""A device's memory as a bar of block characters with its legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.text import Text

from homelab.ui.cells import GIB, clip_middle, gib

Kind = Literal["ours", "others", "reserve", "free"]
OURS = (("█", "cyan"), ("▓", "magenta"), ("▚", "blue"), ("█", "green"), ("▓", "bright_cyan"), ("▚", "white"))
GLYPHS = {"others": ("▒", "yellow"), "reserve": ("░", "bright_black"), "free": ("·", "dim")}
SHOWN_BYTES = GIB // 20  # less than what one decimal shows is no part of a legend


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    kind: Kind
    name: str
    bytes: int


def _glyphs(parts: Sequence[Part]) -> list[tuple[str, str]]:
    number, found = 0, []
    for part in parts:
        if part.kind == "ours":
            found.append(OURS[number % len(OURS)])
            number += 1
        else:
            found.append(GLYPHS[part.kind])
    return found


def bar(parts: Sequence[Part], width: int) -> Text:
    """The parts side by side in `width` cells, each with at least one where there is room for that."""
    sizes = [max(part.bytes, 0) for part in parts]
    whole = sum(sizes)
    if whole <= 0:
        return Text("·" * width, "dim")
    cells = [size * width // whole for size in sizes]
    # What rounding has left goes to the largest remainders; what is there at all is seen where it can be.
    order = sorted(range(len(sizes)), key=lambda i: -(sizes[i] * width % whole))
    for i in order[: width - sum(cells)]:
        cells[i] += 1
    for i, size in enumerate(sizes):
        widest = max(range(len(cells)), key=lambda j: cells[j])
        if size and not cells[i] and cells[widest] > 1:
            cells[i], cells[widest] = 1, cells[widest] - 1
    return Text.assemble(*((g * n, style) for n, (g, style) in zip(cells, _glyphs(parts), strict=True)))


def legend(parts: Sequence[Part], width: int, indent: int) -> list[Text]:
    """What each glyph stands for, with its GiB; broken between entries only."""
    lines: list[Text] = []
    for part, (glyph, style) in zip(parts, _glyphs(parts), strict=True):
        if part.bytes < SHOWN_BYTES and part.kind != "ours":
            continue
        size = gib(part.bytes)
        name = clip_middle(part.name, max(width - indent - len(size) - 3, 4))
        entry = Text.assemble((glyph, style), f" {name} {size}")
        if lines and lines[-1].cell_len + 3 + entry.cell_len <= width:
            lines[-1].append("   ").append_text(entry)
        else:
            lines.append(Text(" " * indent).append_text(entry))
    return lines
