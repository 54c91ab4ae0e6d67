"""`homelab top`: the household on one screen. Everything that it shows and does is handed to it; it knows no
SSH. Only this file and `screens.py` import textual, and only `top` imports them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, TypeVar, cast

from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Footer, Static

from homelab import ui
from homelab.board import Board, BoardNode, Seen, Work, board
from homelab.errors import HomelabError
from homelab.inventory import Inventory
from homelab.plan import Place
from homelab.ui.rows import Row, heading, headline, rows
from homelab.ui.screens import Lines, LogScreen, Question, TextScreen, of_error, plain

__all__ = ["Seen", "Top", "Work", "run"]

Look = TypeVar("Look", bound=Seen)
HELP = """\
up, down   move; also page up, page down, home, end
w, enter   why it is where it is; of a node: what is wrong with it
l          its log, followed
r          restart it, after a question
escape     back
q          quit; nothing is left behind on the nodes

MEMORY     █ used   │ where what is planned ends   ░ not used
USED       GiB that are used; of a service, on all its devices
PLAN       GiB that are planned for services of this cluster
TOK/S      tokens in a second, as the engine counts them
QUEUE      requests at work + requests that wait
-          not known
"""


class Table(ScrollView, can_focus=True):
    """Lines with a cursor that stays on what it is on, whatever comes before it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "move(-100000)", show=False),
        Binding("end,G", "move(100000)", show=False),
    ]

    class Chosen(Message):
        """A line was clicked that the cursor was on."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: Sequence[Row] = ()
        self.cursor = 0

    def show(self, lines: Sequence[Row]) -> None:
        """These lines in place of those before."""
        before = self.chosen
        keys = {row.key: number for number, row in enumerate(lines)}
        cursor = max(0, min(keys.get(before.key, self.cursor) if before else 0, len(lines) - 1))
        came_before, self.cursor, self.rows = cursor - self.cursor, cursor, lines
        self.virtual_size = Size(self.scrollable_content_region.width, len(lines))
        if came_before:
            self.scroll_to(y=self.scroll_y + came_before, animate=False, force=True)
        self.refresh()

    @property
    def chosen(self) -> Row | None:
        return self.rows[self.cursor] if self.cursor < len(self.rows) else None

    def render_line(self, y: int) -> Strip:
        number = y + self.scroll_offset.y
        width = self.scrollable_content_region.width
        if number >= len(self.rows):
            return Strip.blank(width, self.rich_style)
        strip = Strip(self.rows[number].text.render(self.app.console))
        strip = strip.crop_extend(0, width, self.rich_style)
        return strip.apply_style(Style(reverse=True) if number == self.cursor else self.rich_style)

    def action_move(self, by: int) -> None:
        self.cursor = max(0, min(self.cursor + by, len(self.rows) - 1))
        self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False, force=True)
        self.refresh()

    def action_page(self, pages: int) -> None:
        self.action_move(pages * max(1, self.size.height - 1))

    def on_click(self, event: events.Click) -> None:
        number = event.y + self.scroll_offset.y
        if number < len(self.rows):
            chosen = number == self.cursor
            self.action_move(number - self.cursor)
            if chosen:
                self.post_message(self.Chosen())


class Top(App[int]):
    """The screen. `looks` are shown as they come, and closed when the screen is. `speeds` gives the tokens
    per second of each service between two looks. `why` gives the reasons for a model's place, `logs` the
    lines of a service's log as they come, `restart` returns when the service is healthy again."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "logs", "Logs"),
        Binding("w,enter", "why", "Why", key_display="w"),
        Binding("r", "restart", "Restart"),
        Binding("question_mark", "keys", "Help", key_display="?"),
        Binding("q", "leave", "Quit"),
        Binding("ctrl+c,ctrl+q", "exit_now", show=False, priority=True),
    ]
    CSS = """
    Screen { overflow: hidden; }
    #headline, #heading { height: 1; text-wrap: nowrap; }
    Table { height: 1fr; overflow-x: hidden; overflow-y: auto; scrollbar-gutter: stable;
            scrollbar-size-vertical: 1; }
    """

    def __init__(
        self,
        inventory: Inventory,
        looks: AsyncIterator[Look],
        *,
        speeds: Callable[[Look, Look], Mapping[Place, float]],
        why: Callable[[str], Awaitable[Lines] | Lines],
        logs: Callable[[str, str], AsyncIterator[str]],
        restart: Callable[[str, str], Awaitable[None]],
    ) -> None:
        if ui.out.no_color:
            os.environ["NO_COLOR"] = "1"  # textual reads nothing else
        super().__init__()
        self.inventory = inventory
        self.looks = cast("AsyncGenerator[Any, None]", looks)
        self.speeds: Callable[[Any, Any], Mapping[Place, float]] = speeds
        self.why, self.logs, self.restart = why, logs, restart
        self.seen: Any = None  # the last look
        self.shown: Board | None = None
        self.notes: dict[Place, str] = {}
        self.restarting: set[asyncio.Task[None]] = set()
        self.following: asyncio.Task[None] | None = None
        self.failure: Exception | None = None
        self.is_warned = False

    def compose(self) -> ComposeResult:
        yield Static(Text("asking …"), id="headline", markup=False)
        yield Static(Text(), id="heading", markup=False)
        yield Table()
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.query_one(Table).focus()
        self.following = asyncio.create_task(self._follow())

    async def on_unmount(self) -> None:
        """Nothing is left behind: what still runs for this screen, here and on the nodes, ends first."""
        tasks = [t for t in (self.following, *self.restarting) if t is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.looks.aclose()  # one that was never begun is not cancelled

    async def _follow(self) -> None:
        try:
            async with aclosing(self.looks):
                async for seen in self.looks:
                    speeds = self.speeds(self.seen, seen) if self.seen is not None else {}
                    self.shown, self.seen = board(self.inventory, seen, speeds), seen
                    self._draw()
        except Exception as e:
            self.failure = e
            self.exit(1)

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        if self.shown is None or not self.screen_stack:
            return
        base = self.screen_stack[0]
        table = base.query_one(Table)
        width = table.scrollable_content_region.width
        if width < 1:  # not laid out yet
            return
        base.query_one("#headline", Static).update(headline(self.shown, self.size.width))
        base.query_one("#heading", Static).update(heading(width))
        table.show(list(rows(self.shown, width, self.notes)))

    # keys

    @property
    def chosen(self) -> Row | None:
        return self.screen_stack[0].query_one(Table).chosen

    def action_why(self) -> None:
        row = self.chosen
        if row is None:
            return
        model = row.model or (row.service.subject if row.service and row.service.role == "engine" else "")
        if model:
            self.push_screen(TextScreen(f"Why {model} is where it is", lambda: self._why(model)))
        elif row.service is None and row.node is not None and (said := _of_node(row.node)):
            self.push_screen(TextScreen(row.node.name, lambda: _at_once(said)))
        else:
            self.notify("There is a why for each model, and for a node that has a problem", markup=False)

    async def _why(self, model: str) -> Lines:
        if inspect.iscoroutinefunction(self.why):
            return cast("Lines", await self.why(model))
        said = await asyncio.to_thread(self.why, model)  # planning takes a while
        return await said if inspect.isawaitable(said) else said

    def action_logs(self) -> None:
        service = row.service if (row := self.chosen) else None
        if service is None:
            self.notify("Only a service has a log", markup=False)
            return
        title = f"{service.subject} on {service.node}"
        self.push_screen(LogScreen(title, lambda: self.logs(service.node, service.service)))

    def action_restart(self) -> None:
        service = row.service if (row := self.chosen) else None
        if service is None:
            self.notify("Only a service can be restarted", markup=False)
            return
        place, name = (service.node, service.service), service.subject
        if self.restarting:  # they would wait for each other's lock
            self.notify("Another restart is still at work", markup=False)
            return

        def answered(yes: bool | None) -> None:
            if yes:
                task = asyncio.create_task(self._restart(place, name))
                self.restarting.add(task)
                task.add_done_callback(self.restarting.discard)

        question = f"Restart {name} on {service.node}? It answers nobody until it has loaded again. y/N"
        self.push_screen(Question(question), answered)

    async def _restart(self, place: Place, name: str) -> None:
        self.notes[place] = "restarting"
        self._draw()
        try:
            await self.restart(*place)
        except HomelabError as e:
            self.notes[place] = "not restarted"
            said = "\n".join(line.plain for line in of_error(e))
            self.notify(said, title="Not restarted", severity="error", timeout=20, markup=False)
        except Exception as e:
            self.failure = e
            self.exit(1)
        else:
            del self.notes[place]
            self.notify(plain(f"{name} on {place[0]} is healthy again").plain, markup=False)
        self.is_warned = False
        self._draw()

    def action_keys(self) -> None:
        self.push_screen(TextScreen("Keys", lambda: _at_once(HELP)))

    def action_leave(self) -> None:
        """Quit; where something is being restarted, only when it is asked for once more."""
        if self.restarting and not self.is_warned:
            self.is_warned = True
            said = "A restart is at work. q again leaves it as far as it is: homelab deploy goes on with it"
            self.notify(said, severity="warning", markup=False)
            return
        self.exit(0)

    def action_exit_now(self) -> None:
        self.exit(0)

    def on_table_chosen(self) -> None:
        self.action_why()

    # A mistake of ours

    def _handle_exception(self, error: Exception) -> None:
        self.failure = self.failure or error
        super()._handle_exception(error)

    def _fatal_error(self) -> None:
        """Whoever runs the screen says what happened; textual would print a page of local variables."""
        self._close_messages_no_wait()


async def _at_once(lines: Lines) -> Lines:
    return lines


def _of_node(node: BoardNode) -> list[Text]:
    """What is wrong with a node."""
    if node.error is not None:
        return of_error(HomelabError(node.error.message, cause=node.error.cause, hint=node.error.hint))
    return [plain(problem) for problem in node.problems]


async def run(top: Top) -> int:
    """Show it until somebody quits or a signal ends it: the exit code.

    Raises what stopped it, NodeError among others."""
    loop = asyncio.get_running_loop()
    codes = {signal.SIGINT: 0, signal.SIGTERM: 143, signal.SIGHUP: 129}
    for number, code in codes.items():
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, top.exit, code)
    try:
        exit_code = await top.run_async()
    finally:
        for number in codes:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
    if top.failure is not None:
        raise top.failure
    return exit_code or 0
