"""Text that fits: in cells of a terminal, not in characters. Nothing is broken inside a word, and no table
wraps: what is too long ends in `…`, and columns that matter least are left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.text import Text

GIB = 1024**3
GAP = 2
WORD = re.compile(r"\s*\S+\s*")


def gib(size: int | None) -> str:
    """GiB with one decimal, `-` for unknown."""
    return "-" if size is None else f"{size / GIB:.1f}"


def tokens(count: int) -> str:
    """A number of tokens as people say it: 8k, 23.2k."""
    if count < 1024:
        return str(count)
    return f"{count / 1024:.1f}".removesuffix(".0") + "k"


def counted(count: int, what: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def plain(text: str) -> str:
    """One line: what would start another one is a space."""
    return " ".join(text.split())


def clip(text: str, width: int) -> str:
    """The text in at most so many cells; what is left out at the end leaves `…`."""
    text = plain(text)
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)).rstrip() + "…"[:width]


def clip_middle(text: str, width: int) -> str:
    """As `clip`, but both ends are kept: names of models differ at their end."""
    text = plain(text)
    if cell_len(text) <= width:
        return text
    if width < 3:
        return clip(text, width)
    tail = width // 2
    kept = text[len(text) - tail :]
    while cell_len(kept) > tail:
        kept = kept[1:]
    return set_cell_size(text, width - 1 - cell_len(kept)).rstrip() + "…" + kept


def wrapped(text: Text | str, width: int, *, first: str = "", rest: str = "") -> list[Text]:
    """The text in lines of at most `width` cells, broken at spaces; `first` stands before the first of them,
    `rest` before the others. A word that is wider stays whole, so that it can be copied, unless it is of a
    script that has no spaces."""
    text = Text(text) if isinstance(text, str) else text
    # What starts a line of its own would be taken for ours.
    text.plain = text.plain.replace("\n", " ").replace("\t", " ")
    ends, used, room = [], 0, max(width - cell_len(first), 8)
    for word in WORD.finditer(text.plain):
        size = cell_len(word[0].rstrip())
        if used and used + size > room:
            ends.append(word.start())
            used, room = 0, max(width - cell_len(rest), 8)
        if size > room and size > len(word[0]):
            at = word.start()
            for part in chop_cells(word[0], room)[:-1]:
                at += len(part)
                ends.append(at)
            used, room = 0, max(width - cell_len(rest), 8)
            size = cell_len(text.plain[at : word.end()].rstrip())
        used += size + cell_len(word[0]) - cell_len(word[0].rstrip())
    lines = text.divide(ends)
    for line in lines:
        line.rstrip()
    return [Text.assemble(first if i == 0 else rest, line) for i, line in enumerate(lines)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`least` is what it may be narrowed to, 0 for never; those that give `first` are narrowed before the
    others. `drop` is the order in which columns are left out where that is not enough, the highest first, 0
    for never. `middle`: cut there and not at the end."""

    head: str = ""
    right: bool = False
    least: int = 0
    first: bool = False
    drop: int = 0
    middle: bool = False
    style: str = ""


@dataclass(slots=True)
class Rows:
    """A table: aligned lines, none of them wider than the terminal."""

    columns: Sequence[Column]
    rows: list[list[Text]] = field(default_factory=list)

    def add(self, *cells: str | Text) -> None:
        made = (c if isinstance(c, Text) else Text(c) for c in cells)
        self.rows.append([Text(plain(t.plain), t.style) if {"\n", "\t"} & set(t.plain) else t for t in made])

    def natural(self) -> int:
        """How wide it is with nothing cut."""
        widest = [
            max([cell_len(c.head), *(row[i].cell_len for row in self.rows)])
            for i, c in enumerate(self.columns)
        ]
        return sum(widest) + GAP * (len(widest) - 1)

    def widths(self, width: int) -> list[int]:
        """How wide each column is shown; 0 where it is left out."""
        widths = [
            max([cell_len(c.head), *(row[i].cell_len for row in self.rows)])
            for i, c in enumerate(self.columns)
        ]

        def over() -> int:
            shown = [w for w in widths if w]
            return sum(shown) + GAP * (len(shown) - 1) - width

        # The widest first, one cell at a time: no column pays for all the others.
        while over() > 0:
            able = [i for i, c in enumerate(self.columns) if c.least and widths[i] > c.least]
            if able:
                i = max(able, key=lambda i: (self.columns[i].first, widths[i] - self.columns[i].least))
                widths[i] -= 1
                continue
            droppable = [i for i, c in enumerate(self.columns) if c.drop and widths[i]]
            if not droppable:
                break
            widths[max(droppable, key=lambda i: self.columns[i].drop)] = 0
        return widths

    def lines(self, width: int, *, indent: int = 0, head: bool = True) -> list[Text]:
        """The rows, with the names of the columns above them."""
        return [line for number, line in enumerate(self._lines(width - indent, indent)) if head or number]

    def _lines(self, width: int, indent: int) -> Iterable[Text]:
        widths = self.widths(width)
        heads = [Text(c.head, "bold") for c in self.columns]
        for row in (heads, *self.rows):
            cells = [
                self._cell(text, column, size)
                for text, column, size in zip(row, self.columns, widths, strict=True)
                if size
            ]
            line = Text(" " * indent).append_text(Text(" " * GAP).join(cells))
            line.rstrip()
            yield line

    def _cell(self, text: Text, column: Column, size: int) -> Text:
        if text.cell_len > size:
            cut = clip_middle if column.middle else clip
            text = Text(cut(text.plain, size), text.style or (text.spans[0].style if text.spans else ""))
        else:
            text = text.copy()
        space = " " * (size - text.cell_len)
        if column.style and not text.style:
            text.style = column.style
        return Text.assemble(space, text) if column.right else Text.assemble(text, space)
