"""The way out to the terminal. What a node, a hub, a log or a model says can steer no terminal, and a stream
that cannot be written fails once, as an error of ours."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from homelab.errors import HomelabError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Control characters but for line feed and tab, line and paragraph separators, and what reorders text that is
# read from left to right.
STEERING = dict.fromkeys(
    c
    for c in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x061C,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    )
    if chr(c) not in "\n\t"
)
COLOUR = re.compile(r"(\x1b\[[0-9;:]*m)")
NO_COLOUR = "\x1b[0m"


def harmless(text: str) -> str:
    """The text without what would steer a terminal; the rest of an escape sequence is left to be seen."""
    return text.translate(STEERING)


def log_line(line: str, *, colours: bool) -> str:
    """A line of a log without what would steer a terminal; with its own colours only where they are asked
    for, and those end with it."""
    parts = COLOUR.split(line.rstrip("\r").replace("\r", " "))
    kept = "".join((part if colours else "") if COLOUR.fullmatch(part) else harmless(part) for part in parts)
    return kept + NO_COLOUR if colours and len(parts) > 1 else kept


class Stream(io.FileIO):
    """Standard output or standard error. When its reader has gone, what is written goes nowhere and nobody is
    the worse for it; that standard output is lost otherwise is an error, once."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.is_lost = False

    def write(self, data: ReadableBuffer, /) -> int:
        size = memoryview(data).nbytes
        if self.is_lost:
            return size
        try:
            return super().write(data)
        except OSError as e:
            self.is_lost = True
            if isinstance(e, BrokenPipeError) or self.fileno() != 1:
                return size
            raise HomelabError("Standard output cannot be written", cause=str(e)) from e


def is_output_lost() -> bool:
    """Whether nobody reads standard output any more."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, Stream) and raw.is_lost


def guard_streams() -> None:
    """Put a `Stream` under standard output and standard error, and /dev/null where one of the three is
    closed."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # Taken by the next file that is opened, this number would get what is meant for the terminal.
            opened = Path(os.devnull).open("w" if descriptor else "r")  # noqa: SIM115 - as long as we live
            setattr(sys, name, opened)
        elif descriptor and stream is getattr(sys, f"__{name}__"):
            text = io.TextIOWrapper(
                io.BufferedWriter(Stream(descriptor)),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
            )
            setattr(sys, name, text)
