"""What a deploy tells while it runs, as values: the terminal decides how they look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from homelab.errors import HomelabError

Step = Literal["fetch", "copy", "stop", "start", "load", "healthy", "removed", "rolled-back", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step of one service. `text` says more (bytes, percent), `error` is set when it failed."""

    node: str
    service: str
    step: Step
    text: str = ""
    error: HomelabError | None = None


LOG_LINES = 200
LAST_LINES = 20


def last_words(log: str) -> str:
    """The end of a log of `LOG_LINES`, for an error. Where it does not say `error`, the last line before it
    that does comes first: llama-server prints a page of usage after what is wrong."""
    lines = log.strip().splitlines()
    before, last = lines[:-LAST_LINES], lines[-LAST_LINES:]
    if not any("error" in line.lower() for line in last):
        last = [line for line in before if "error" in line.lower()][-1:] + last
    return "\n".join(last)


Tell = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done and what failed; `failed` is empty when all of it worked."""

    done: tuple[tuple[str, str], ...] = ()
    failed: tuple[HomelabError, ...] = ()
