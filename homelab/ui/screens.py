"""The screens that `homelab top` opens over its table: a text, a log that goes on, a question. All that they
show came as values; they know no node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, RichLog, Static
from textual.worker import Worker, WorkerCancelled, WorkerFailed

from homelab.errors import HomelabError
from homelab.terminal import harmless, log_line

KEPT_LINES = 5000  # of a log that is followed for days
Lines = str | Sequence[Text]


def plain(text: str | Text) -> Text:
    """A text that steers no terminal and is read as no markup; its colours stay where nothing was taken out
    of it."""
    said = text if isinstance(text, str) else text.plain
    safe = harmless(said)
    return text if isinstance(text, Text) and safe == said else Text(safe)


def of_error(e: HomelabError) -> list[Text]:
    """What happened, why, and what to type next, as lines."""
    lines = [Text.assemble(("error: ", "bold red"), plain(e.message))]
    lines += [Text("  ") + plain(cause) for cause in e.cause.splitlines()]
    return lines + ([Text.assemble(("hint: ", "cyan"), plain(e.hint))] if e.hint else [])


class _Over(ModalScreen[bool]):
    """A screen over the table, with one line that says what it is."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "leave", "Back"),
        ("q", "leave", "Back"),
    ]
    CSS = """
    .title { height: 1; text-style: bold; text-wrap: nowrap; text-overflow: ellipsis; }
    VerticalScroll, RichLog { height: 1fr; background: $background; }
    VerticalScroll > Static { height: auto; }
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self.heading = plain(title)

    def action_leave(self) -> None:
        self.dismiss(False)


class TextScreen(_Over):
    """A text to read. It may come later: `lines` is asked for it once the screen is there."""

    def __init__(self, title: str, lines: Callable[[], Awaitable[Lines]]) -> None:
        super().__init__(title)
        self.lines = lines

    def compose(self) -> ComposeResult:
        yield Static(self.heading, classes="title", markup=False)
        with VerticalScroll():
            yield Static(Text("…"), id="text", markup=False)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self.run_worker(self._load())

    async def _load(self) -> None:
        try:
            lines = await self.lines()
        except HomelabError as e:
            lines = of_error(e)
        text = plain(lines) if isinstance(lines, str) else Text("\n").join(plain(line) for line in lines)
        self.query_one("#text", Static).update(text)


class LogScreen(_Over):
    """A log, and what comes to it while the screen is open."""

    def __init__(self, title: str, follow: Callable[[], AsyncIterator[str]]) -> None:
        super().__init__(title)
        self.follow = follow
        self.reading: Worker[None] | None = None

    def compose(self) -> ComposeResult:
        yield Static(self.heading, classes="title", markup=False)
        yield RichLog(max_lines=KEPT_LINES, min_width=1, wrap=True, markup=False, highlight=False)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.query_one(RichLog).focus()
        self.reading = self.run_worker(self._read())

    async def on_unmount(self) -> None:
        """The command on the node has ended when the screen has."""
        if self.reading is not None:
            self.reading.cancel()
            with contextlib.suppress(WorkerCancelled, WorkerFailed):
                await self.reading.wait()

    async def _read(self) -> None:
        log, count = self.query_one(RichLog), 0
        try:
            async with aclosing(self.follow()) as lines:  # type: ignore[type-var]
                async for line in lines:
                    log.write(Text(log_line(line, colours=False)), expand=True)
                    count += 1
                    if count % 100 == 0:
                        await asyncio.sleep(0)  # keys are heard, however much the log says
            log.write(Text("The log has ended.", "dim"))
        except HomelabError as e:
            for said in of_error(e):
                log.write(said)


class Question(_Over):
    """True for a `y`, nothing else."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "agree", "Yes"),
        ("n", "leave", "No"),
        ("enter", "leave", "No"),
    ]
    CSS = """
    Question { align: center middle; }
    Question > Static { width: 60; max-width: 100%; height: auto; padding: 1 2; border: round $warning; }
    """

    def compose(self) -> ComposeResult:
        yield Static(self.heading, markup=False)
        yield Footer(compact=True)

    def action_agree(self) -> None:
        self.dismiss(True)
