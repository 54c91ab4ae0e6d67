"""A deploy while it goes on: on a terminal a live line for each service, elsewhere a line for each event. And
what is said at its end, or where it was interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.text import Text

from homelab import ui
from homelab.deploy.events import AT_WORK, Clock, Event, Step, Took
from homelab.errors import HomelabError
from homelab.plan import Change, Place
from homelab.ui.cells import GAP, GIB, Column, Rows, clip, clip_middle, counted, plain

if TYPE_CHECKING:
    from homelab.ask import Answer

REFRESHES_PER_SECOND = 8
WORDS: Mapping[Step, str] = {"wait": "waits", "healthy": "ready", "rolled-back": "rolled back"}
COLOURS: Mapping[Step, str] = {
    "wait": "dim",
    "healthy": "green",
    "removed": "green",
    "failed": "red",
    "rolled-back": "yellow",
}
MARKS: Mapping[Step, str] = {
    "wait": "·",
    "healthy": "█",
    "removed": "–",
    "failed": "×",
    "rolled-back": "×",
}
PHASE_CELLS = 6  # most of the words, so that the columns stay where they are
TIME_CELLS = 5
BAR_CELLS = 20
LEAST_BAR_CELLS = 4
QUOTED = 200  # characters of an answer, where there is room for them
LEAST_QUOTED = 10


@dataclass(slots=True, kw_only=True)
class Line:
    """Where one service is. `load_seconds` is how long it loaded the last time, None where that is not
    known."""

    step: Step = "wait"
    text: str = ""
    done_bytes: int | None = None
    total_bytes: int | None = None
    load_seconds: float | None = None
    clock: Clock = field(default_factory=Clock)
    is_down: bool = False  # it was stopped, and nothing was started in its place

    def told(self, event: Event, now: float) -> None:
        """What an event says of it. What runs again as before is still said when its failure is told."""
        if (event.step, self.step) == ("failed", "rolled-back"):
            return
        if event.step == "stop":
            self.is_down = True
        elif event.step != "wait":
            self.is_down = False
        self.step = event.step
        self.text = event.error.message if event.error is not None else event.text
        self.done_bytes, self.total_bytes = event.done_bytes, event.total_bytes
        self.clock.told(event.step, now)


@dataclass(slots=True)
class State:
    """All services of a deploy, in the order in which they are shown, and what is done beside them."""

    services: dict[Place, Line] = field(default_factory=dict)
    beside: str = ""

    def told(self, event: Event, now: float) -> None:
        """Take in what an event says. Where a whole node is lost, so is what is not done there."""
        if event.service:
            self.services.setdefault((event.node, event.service), Line()).told(event, now)
        elif event.step == "failed":
            for (node, _), line in self.services.items():
                if node == event.node and line.step in AT_WORK | {"wait"}:
                    line.told(event, now)


def clock_text(seconds: float) -> str:
    """0:42, 12:03, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def lines(state: State, width: int, now: float, rows: int | None = None) -> list[Text]:
    """A line for each service, none wider than `width` cells. Where `rows` are too few for all of them: those
    at work and those that failed, and how many others there are."""
    beside = [Text(clip(state.beside, width), "dim")] if state.beside else []
    shown, rest = _shown(state.services, None if rows is None else max(rows - len(beside), 1))
    if shown:
        widths = _name_widths(state.services, width)  # of all, so that no column moves when another is shown
    made = [_line(place, line, widths, width, now) for place, line in shown.items()]
    if rest:
        made.append(Text(clip(" · ".join(f"{n} {word}" for word, n in rest.items()), width), "dim"))
    return made + beside


def _shown(services: Mapping[Place, Line], rows: int | None) -> tuple[dict[Place, Line], dict[str, int]]:
    """What gets a line of its own, and how many others there are of each kind."""
    if rows is None or len(services) <= rows:
        return dict(services), {}
    urgent = [p for p, line in services.items() if line.step in AT_WORK]
    urgent += [p for p, line in services.items() if line.step in ("failed", "rolled-back")]
    chosen = set(urgent[: max(rows - 1, 0)])
    rest: dict[str, int] = {}
    for name in ("ready", "removed", "at work", "wait", "failed"):
        count = sum(_kind(line) == name for place, line in services.items() if place not in chosen)
        if count:
            rest[name] = count
    return {place: line for place, line in services.items() if place in chosen}, rest


def _kind(line: Line) -> str:
    if line.step in AT_WORK:
        return "at work"
    return {"wait": "wait", "healthy": "ready", "removed": "removed"}.get(line.step, "failed")


def _name_widths(services: Mapping[Place, Line], width: int) -> tuple[int, int, int]:
    """The cells of service, node and phase, so that something is left behind them."""
    service = max(cell_len(plain(s)) for _, s in services)
    node = max(cell_len(plain(n)) for n, _ in services)
    phase = max(PHASE_CELLS, *(cell_len(_word(line)) for line in services.values()))
    room = width - 2 - phase - TIME_CELLS - 4 * GAP - width // 3
    while service + node > room and max(service, node) > 4:  # the longer one first
        if service >= node:
            service -= 1
        else:
            node -= 1
    return service, node, phase


def _word(line: Line) -> str:
    return WORDS.get(line.step, line.step)


def _line(place: Place, line: Line, widths: tuple[int, int, int], width: int, now: float) -> Text:
    node, service = place
    seconds = line.clock.seconds(now)
    colour = COLOURS.get(line.step, "cyan")
    parts = [
        (_filled(clip_middle(service, widths[0]), widths[0]), "bold"),
        (_filled(clip_middle(node, widths[1]), widths[1]), ""),
        (_filled(_word(line), widths[2]), colour),
        (f"{clock_text(seconds) if seconds or line.step in AT_WORK else '':>{TIME_CELLS}}", ""),
    ]
    text = Text.assemble((MARKS.get(line.step, "→"), colour), " ")
    text.append_text(Text(" " * GAP).join(Text(t, style) for t, style in parts))
    room = width - text.cell_len
    text.append_text(_rest(line, room))
    text.rstrip()
    text.truncate(width, overflow="ellipsis")  # where it is too narrow for anything
    return text


def _filled(text: str, cells: int) -> str:
    return text + " " * max(cells - cell_len(text), 0)


def _rest(line: Line, room: int) -> Text:
    """What is behind the elapsed time, in at most so many cells."""
    made = Text()
    if line.step in ("fetch", "copy") and line.done_bytes is not None and line.total_bytes:
        amount = _amount(line.done_bytes, line.total_bytes)
        cells = min(room - cell_len(amount) - GAP - 1, BAR_CELLS)
        if cells >= LEAST_BAR_CELLS:
            full = min(line.done_bytes * cells // line.total_bytes, cells)
            made = Text.assemble(" " * GAP, ("█" * full, "cyan"), ("░" * (cells - full), "dim"), " ", amount)
        elif room >= cell_len(amount) + GAP:
            made = Text(" " * GAP + amount)
        return made
    if line.step in ("start", "load") and line.load_seconds is not None:
        expected = (line.clock.start_seconds or 0.0) + line.load_seconds
        made = Text(f" of about {clock_text(expected)}")
        if made.cell_len > room:
            made = Text()
    if line.text and line.step != "healthy" and room - made.cell_len - GAP >= 4:
        made.append(" " * GAP)
        made.append(clip(line.text, room - made.cell_len), "dim")
    return made


def _amount(done: int, total: int) -> str:
    """`1.2 of 3.4 GiB`, `120 of 512 MiB`."""
    done = min(done, total)
    if total >= GIB:
        return f"{done / GIB:.1f} of {total / GIB:.1f} GiB"
    return f"{done / 2**20:.0f} of {total / 2**20:.0f} MiB"


class Progress:
    """Takes the events of a deploy and shows them on stderr: live lines on a terminal while it is entered,
    else a line for each with the time since it began. `places` are all that a line is shown for from the
    beginning, `took` how long they took the last time. May be told from any thread."""

    def __init__(self, places: Iterable[Place] = (), took: Mapping[Place, Took] | None = None) -> None:
        self._begun = time.monotonic()
        self._last: dict[Place, tuple[Step | Literal[""], float]] = {}
        self.state = State({p: Line() for p in places})
        for place, before in (took or {}).items():
            if place in self.state.services:
                self.state.services[place].load_seconds = before.load_seconds
        self._live: Live | None = None
        self._is_ending = False
        # Never held while something is printed: the thread that refreshes would wait for it, and it for that.
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        if ui.err.is_interactive and self.state.services:
            self._live = Live(
                get_renderable=self._render,
                console=ui.err,
                refresh_per_second=REFRESHES_PER_SECOND,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._is_ending, self.state.beside = True, ""
            self._live.stop()
            self._live = None

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        with self._lock:
            self.state.told(event, now)
        if self._live is None:
            self._print(event, now)
        if event.error is not None:
            ui.error(event.error)

    def asks(self, model: str) -> None:
        """A model is asked its first question."""
        with self._lock:
            self.state.beside = f"asks `{model}` one question"

    def _render(self) -> Group:
        # All of them at the end: what does not fit then goes up, and can be looked at.
        rows = None if self._is_ending else ui.err.height - 1
        with self._lock:
            return Group(*lines(self.state, ui.err.width, time.monotonic(), rows))

    def _print(self, event: Event, now: float) -> None:
        """A line for an event; what only says again that it goes on is not printed each time."""
        if event.step == "wait" or (event.step == "load" and not event.text):
            return
        key = (event.node, event.service)
        step, told = self._last.get(key, ("", 0.0))
        often = 1.0 if ui.err.is_terminal else 5.0
        if step == event.step and event.step in ("load", "fetch", "copy") and now - told < often:
            return
        self._last[key] = (event.step, now)
        ui.err.print(
            Text.assemble(
                (f"{now - self._begun:6.1f} s", "dim"),
                f"  {event.node}  {event.service:<20} ",
                (event.step, COLOURS.get(event.step, "cyan")),
                f"  {event.text}" if event.text else "",
            )
        )


def answers(
    said: Sequence[tuple[str, Answer | HomelabError]], took: Mapping[Place, Took], width: int
) -> list[Text]:
    """A line for each model at the end of a deploy: where it answered, how long that service took to be ready
    in this deploy, when its first token came, and what it said."""
    ready = {"/".join(place): t for place, t in took.items()}
    rows = Rows(
        [
            Column(least=8, middle=True, style="bold"),
            Column(least=8, middle=True, drop=3),
            Column(drop=1),
            Column(drop=2),
        ]
    )
    quoted: list[str] = []
    for model, answer in said:
        if isinstance(answer, HomelabError):
            rows.add(model, "no answer", "", "")
            quoted.append("")
            continue
        by = answer.served_by or "unknown"
        time_to_ready = f"ready in {ready[by].seconds:.1f} s" if by in ready else ""
        first = answer.first_token_seconds
        token = f"first token {first:.2f} s" if first is not None else f"answer {answer.seconds:.2f} s"
        rows.add(model, f"on {by}", time_to_ready, token)
        text = plain(answer.text)[:QUOTED]
        quoted.append(text if first is None else f'"{text}"')
    made = rows.lines(width, head=False)
    room = width - max((line.cell_len for line in made), default=0) - GAP
    for line, text in zip(made, quoted, strict=True):
        if room >= LEAST_QUOTED and text:
            line.append(" " * (width - room - line.cell_len))
            cut = clip(text[1:-1], room - 2) if text[0] == '"' else clip(text, room)
            line.append(f'"{cut}"' if text[0] == '"' else cut)
    return made


def left_as(state: State, changes: Sequence[Change], again: str) -> list[str]:
    """What becomes of a deploy that was interrupted: what goes on by itself and how to look at it, what has
    stopped, what is down, and how much was not made. `again` is the option of the inventory."""
    said: list[str] = []
    unmade = 0
    for change in changes:
        line = state.services.get(change.place, Line())
        name = f"`{change.service}` on `{change.node}`"
        subject = change.wanted.subject if change.wanted is not None else change.service
        if line.step == "load":
            alone = ", and nothing puts the one before back if it fails" if change.action == "replace" else ""
            said.append(f"{name} goes on loading by itself{alone}: homelab logs {subject} -f{again}")
        elif line.step == "start":
            said.append(f"{name} was being started: where it was, it loads by itself")
        elif line.is_down and change.leaves_for is not None:
            said.append(f"{name} was stopped to make room: it is down until the next deploy")
        elif line.is_down:
            said.append(f"{name} was stopped to be replaced: it is down until the next deploy")
        elif line.step in ("fetch", "copy"):
            said.append(f"{name}: what was being brought has stopped, and nothing was started")
        elif line.step == "wait":
            unmade += 1
    if unmade:
        said.append(f"{unmade} of {counted(len(changes), 'change')} not made")
    return said or ["Every change was tried; the models were not all asked"]
