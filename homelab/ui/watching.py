"""A screen that is shown anew as the house changes, until somebody has seen enough."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.text import Text

from homelab import ui

QUIT = (b"q", b"Q", b"\x04")


@contextmanager
def _keys(pressed: Callable[[bytes], None]) -> Iterator[None]:
    """Single keys as they are pressed; ^C stays what it is. The terminal is as it was afterwards."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, lambda: pressed(os.read(descriptor, 64)))
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def watching(screens: AsyncIterator[Callable[[int], Sequence[Text]]]) -> int:
    """Show each screen, made for the terminal's width, in place of the one before, until q or ^C; the last
    one stays in the terminal. Gives back the exit status: that of the signal that ended it, else 0."""
    enough, code = asyncio.Event(), 0
    last: Callable[[int], Sequence[Text]] | None = None

    async def show(live: Live) -> None:
        nonlocal last
        async for last in screens:
            room = max(ui.out.size.height - 1, 1)
            lines = list(last(ui.width()))
            more = [Text(f"… {len(lines) - room + 1} more lines", "dim")] if len(lines) > room else []
            clock = f"{time.strftime('%H:%M:%S')}   q to quit"
            shown = [*lines[: room - len(more)], *more, Text(clock, "dim")]
            live.update(Group(*(_unwrapped(line) for line in shown)), refresh=True)

    def pressed(keys: bytes) -> None:
        if not keys or any(key in keys for key in QUIT):
            enough.set()

    def signalled(number: int) -> None:
        nonlocal code
        code = 128 + number
        enough.set()

    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, signalled, number)
    try:
        with Live(console=ui.out, screen=True, auto_refresh=False) as live, _keys(pressed):
            showing = asyncio.create_task(show(live))
            waiting = asyncio.create_task(enough.wait())
            try:
                await asyncio.wait([showing, waiting], return_when=asyncio.FIRST_COMPLETED)
            finally:
                # What they hold is let go of before the terminal is given back.
                stopped = [task for task in (showing, waiting) if task.cancel()]
                await asyncio.gather(*stopped, return_exceptions=True)
            if showing not in stopped:
                showing.result()
    finally:
        if last is not None:
            ui.show(last(ui.width()))
    return code


def _unwrapped(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "ellipsis"
    return line
