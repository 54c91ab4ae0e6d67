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


Tell = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done and what failed; `failed` is empty when all of it worked."""

    done: tuple[tuple[str, str], ...] = ()
    failed: tuple[HomelabError, ...] = ()
