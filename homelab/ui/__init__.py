"""All that is shown. stdout is data (tables, plan, JSON), stderr is talk (progress, questions, errors).
Words carry the meaning, colour decorates."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from homelab import terminal
from homelab.errors import HomelabError, InventoryError
from homelab.ui.cells import wrapped

# Wide enough for anything, where nobody watches.
UNBOUNDED = 400
# For a terminal that has no others.
ASCII = str.maketrans(
    {"█": "#", "▓": "%", "▚": "@", "▒": "=", "░": ":", "·": ".", "×": "x", "–": "-", "…": "~", "→": ">"}
)


class Screen(Console):
    """The one way out: a text is never read as markup, and what would steer a terminal is left out of it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:  # made by rich, of no text
                yield segment
                continue
            text = terminal.harmless(segment.text)
            yield segment._replace(text=text if self.encoding.startswith("utf") else text.translate(ASCII))


out = Screen(soft_wrap=True)
err = Screen(stderr=True, soft_wrap=True)


def no_color() -> None:
    """Colour off, as NO_COLOR does."""
    for console in (out, err):
        console.no_color = True


def width(console: Screen | None = None) -> int:
    """How many cells a line may have: as many as the terminal has, or as COLUMNS says."""
    console, columns = console or out, os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    if console.is_terminal:
        return console.width
    # `homelab plan | less`: somebody reads it on the terminal that errors go to.
    if err.is_terminal and stat.S_ISFIFO(os.fstat(1).st_mode):
        return err.width
    return UNBOUNDED


def show(lines: Iterable[Text]) -> None:
    """Lines of data, made to fit already."""
    for line in lines:
        out.print(line)


def error(e: HomelabError) -> None:
    """What happened, why in the other tool's own words, and what to type next."""
    room = width(err) if err.is_terminal else UNBOUNDED * 10
    shown = wrapped(Text.assemble(("error:", "bold red"), " ", e.message), room, rest="  ")
    for line in (isinstance(e, InventoryError) and e.mistakes) or e.cause.splitlines():
        shown += wrapped(line, room, first="  ", rest="    ")
    if e.hint:
        shown += wrapped(Text.assemble(("hint:", "cyan"), " ", e.hint), room, rest="  ")
    for text in shown:
        err.print(text)


def sentence(text: str) -> None:
    """Prose among the data, broken at spaces."""
    show(wrapped(text, width(), rest="  "))


def next_steps(*steps: str) -> None:
    """What to type next, in one line where that fits, else a line for each."""
    line = "Next: " + "    ".join(steps)
    if len(line) <= width():
        return write(line)
    for i, step in enumerate(steps):
        write(("Next: " if i == 0 else "      ") + step)
    return None


def print_json(document: Any) -> None:
    # JSON escapes every control character but DEL, and so do we all that is not ASCII.
    sys.stdout.write(json.dumps(document, indent=2).replace("\x7f", "\\u007f") + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line of talk."""
    err.print(text)


def write(text: str = "") -> None:
    """A line of data."""
    out.print(text)


def log_line(line: str, *, colours: bool) -> None:
    """A line of a log. Ends the program when nobody reads it any more: a log that is followed has no end of
    its own."""
    sys.stdout.write(terminal.log_line(line, colours=colours) + "\n")
    sys.stdout.flush()
    if terminal.is_output_lost():
        raise SystemExit(0)


def confirm(question: str, *, default: bool = False) -> bool:
    """Ask on stderr, so that stdout stays clean. The end of the input is a no."""
    err.print(f"{question} [{'Y/n' if default else 'y/N'}] ", end="")
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        say("")
        return False
    answer = line.strip().lower()
    return default if not answer else answer in (b"y", b"yes")


def is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
