"""What a deploy tells while it runs, as values: the terminal decides how they look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from homelab.errors import HomelabError

Step = Literal[
    "fetch", "copy", "wait", "stop", "start", "load", "healthy", "removed", "rolled-back", "failed"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step of one service. `text` says more, `error` is set when it failed. `done_bytes` and
    `total_bytes` are of what is brought, None where nobody knows them. `wait` is what a service does that has
    all it needs, until its turn comes. A `load` without a text says that it was started."""

    node: str
    service: str
    step: Step
    text: str = ""
    done_bytes: int | None = None
    total_bytes: int | None = None
    error: HomelabError | None = None


BEFORE_START: frozenset[Step] = frozenset({"fetch", "copy", "stop"})
AT_WORK: frozenset[Step] = BEFORE_START | {"start", "load"}
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
class Took:
    """How long a service was worked on until it was healthy, and how much of that since its start."""

    seconds: float
    load_seconds: float


@dataclass(slots=True)
class Clock:
    """How long a service has been worked on: where it waits for its turn, its time stands still."""

    spent_seconds: float = 0.0
    since: float | None = None  # None while it stands
    start_seconds: float | None = None  # how much was spent before the start; None before that

    def told(self, step: Step, now: float) -> None:
        """A step has begun at `now`, seconds of any one clock."""
        self.spent_seconds, self.since = self.seconds(now), None
        if step in AT_WORK:
            self.since = now
        if step == "start":
            self.start_seconds = self.spent_seconds
        elif step in BEFORE_START:
            self.start_seconds = None

    def seconds(self, now: float) -> float:
        """What was spent until `now`."""
        return self.spent_seconds + (0.0 if self.since is None else max(now - self.since, 0.0))

    def took(self, now: float) -> Took:
        """The times of what is healthy `now`."""
        seconds = self.seconds(now)
        return Took(seconds=seconds, load_seconds=seconds - (self.start_seconds or 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done and what failed; `failed` is empty when all of it worked. `took` has what was started and
    became healthy."""

    done: tuple[tuple[str, str], ...] = ()
    failed: tuple[HomelabError, ...] = ()
    took: Mapping[tuple[str, str], Took] = field(default_factory=dict)
