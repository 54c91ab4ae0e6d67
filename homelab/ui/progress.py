"""A deploy while it goes on."""

from __future__ import annotations

import time

from rich.text import Text

from homelab import ui
from homelab.ask import Answer
from homelab.deploy.events import Event
from homelab.errors import HomelabError


class Progress:
    """Events of a deploy, a line each with the time since it began."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._last: dict[tuple[str, str], tuple[str, float]] = {}

    def __call__(self, event: Event) -> None:
        key, now = (event.node, event.service), time.monotonic()
        step, told = self._last.get(key, ("", 0.0))
        if (
            step == event.step
            and event.step in ("load", "fetch", "copy")
            and now - told < (1.0 if ui.err.is_terminal else 5.0)
        ):
            return
        self._last[key] = (event.step, now)
        colour = {"healthy": "green", "failed": "red", "rolled-back": "yellow"}.get(event.step, "cyan")
        ui.err.print(
            Text.assemble(
                (f"{now - self._begun:6.1f} s", "dim"),
                f"  {event.node}  {event.service:<20} ",
                (event.step, colour),
                f"  {event.text}" if event.text else "",
            )
        )
        if event.error is not None:
            ui.error(event.error)


def answered(answer: Answer | HomelabError) -> None:
    """What a model said to the question at the end of a deploy, or why it said nothing."""
    if isinstance(answer, HomelabError):
        ui.error(answer)
    else:
        by = answer.served_by or "unknown"
        ui.write(f"{answer.model} on {by} answers in {answer.seconds:.1f} s: {answer.text[:200]}")
