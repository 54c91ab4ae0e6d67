"""The live screen, headless: what it shows in every size, its keys, and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import pytest
from rich.cells import cell_len
from rich.text import Text
from textual.pilot import Pilot

from homelab.errors import DeployError
from homelab.facts import GPU, DeployedService, Facts, Problem, Process, Survey
from homelab.inventory import Inventory, load
from homelab.plan import Place
from homelab.ui.screens import LogScreen, Question, TextScreen
from homelab.ui.top import Table, Top, run
from tests.machines import GIB, gpu, machine, survey

TEXT = """\
gateway: {node: pi}
nodes:
  workstation: {host: 192.168.1.10}
  server: {host: 192.168.1.11}
  laptop: {host: 192.168.1.12, away: true}
  pi: {host: 192.168.1.2}
models:
  coder: {engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: 8192, concurrency: 4}
  tiny: {engine: llamacpp, source: /models/tiny.gguf}
  lost: {engine: llamacpp, source: /models/lost.gguf}
"""


@dataclass(frozen=True)
class Load:
    tokens: float | None = None
    running: int | None = None
    waiting: int | None = None


@dataclass(frozen=True)
class Look:
    survey: Survey
    loads: Mapping[Place, Load] = field(default_factory=dict)


def service(name: str, *gpus: str, role: str = "engine", port: int = 8000, **more: object) -> DeployedService:
    numbers = f'{{"bytes": {8 * GIB}, "context": 8192}}' if role == "engine" else "{}"
    return DeployedService.model_validate(
        {
            "cluster": "home",
            "name": name,
            "role": role,
            "serves": (name,) if role == "engine" else (),
            "spec": "abc",
            "runtime": "docker",
            "state": "running",
            "listens": True,
            "labels": {
                "homelab.gpus": ",".join(gpus),
                "homelab.placement": numbers,
                "homelab.asked": '{"model": {"concurrency": 4}}',
                "homelab.address": "192.168.1.2",
                "homelab.port": str(port),
            },
            "gpu_memory_bytes": 7 * GIB if gpus else None,
            "memory_bytes": None if gpus else GIB // 2,
            **more,
        }
    )


def house(**more: Facts | str) -> Survey:
    card = gpu(free_mib=16000, power_watts=250.4, power_limit_watts=450.0, temperature_celsius=64)
    pair = [gpu("NVIDIA GeForce RTX 3090", 24266, free_mib=17000, index=i) for i in (0, 1)]
    coder = service("coder", pair[0].uuid, pair[1].uuid)
    nodes: dict[str, Facts | str] = {
        "workstation": machine("workstation", card, services=(service("tiny", card.uuid),)),
        "server": machine("server", *pair, services=(coder,)),
        "laptop": "no route to host",
        "pi": machine("pi", ram_gib=8, services=(service("gateway", role="gateway", port=4000),)),
    }
    return survey(None, **(nodes | more))


class Looks:
    """What the nodes say, as far as it was given; says whether it was closed."""

    def __init__(self, *looks: Look) -> None:
        self.queue: asyncio.Queue[Look] = asyncio.Queue()
        for look in looks:
            self.queue.put_nowait(look)
        self.is_closed = False

    async def __call__(self) -> AsyncIterator[Look]:
        try:
            while True:
                yield await self.queue.get()
        finally:
            await asyncio.sleep(0.01)  # as saying goodbye to nodes does
            self.is_closed = True


@dataclass
class Asked:
    """What was asked through the screen, and what it gets."""

    restarted: list[Place] = field(default_factory=list)
    error: Exception | None = None
    lines: tuple[str, ...] = ("first line", "second line")
    is_log_closed: bool = False
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def why(self, model: str) -> list[Text]:
        return [Text(f"{model} fits nowhere else", "green"), Text("[bold]not markup[/bold]\x1b[2J")]

    async def logs(self, node: str, name: str) -> AsyncIterator[str]:
        try:
            for line in (f"log of {name} on {node}", *self.lines):
                yield line
            await asyncio.Event().wait()
        finally:
            self.is_log_closed = True

    async def restart(self, node: str, name: str) -> None:
        self.restarted.append((node, name))
        await self.go_on.wait()
        if self.error is not None:
            raise self.error


class Scene:
    """A running screen, what it was given, and what is on it."""

    def __init__(self, pilot: Pilot[int], top: Top, looks: Looks, asked: Asked) -> None:
        self.pilot, self.top, self.looks, self.asked = pilot, top, looks, asked

    @property
    def text(self) -> str:
        """The whole screen, line by line."""
        lines = self.top.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in lines)

    def line(self, *words: str) -> str:
        """The one line with these words."""
        (found,) = [x for x in self.text.splitlines() if all(w in x for w in words)]
        return found

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, true: Callable[[], object]) -> None:
        for _ in range(300):
            if true():
                return
            await self.pilot.pause(0.01)
        raise AssertionError(self.text)

    async def go_to(self, *words: str) -> None:
        """Move the cursor to the line with these words."""
        table = self.top.screen_stack[0].query_one(Table)
        numbers = [i for i, r in enumerate(table.rows) if all(w in r.text.plain for w in words)]
        table.action_move(numbers[0] - table.cursor)
        await self.pilot.pause()

    async def show(self, look: Look) -> None:
        before = self.top.shown
        self.looks.queue.put_nowait(look)
        await self.until(lambda: self.top.shown is not before)
        await self.pilot.pause()


def on_screen(
    play: Callable[[Scene], Awaitable[None]],
    *looks: Look,
    size: tuple[int, int] = (120, 30),
    text: str = TEXT,
    speeds: Mapping[Place, float] | None = None,
) -> tuple[Top, Looks, Asked]:
    """Play a scene; nothing of it may be left when it is over."""
    inventory: Inventory = load(text, "inventory.yml")

    async def main() -> tuple[Top, Looks, Asked]:
        asked, given = Asked(), Looks(*(looks or (Look(house()),)))
        top = Top(
            inventory,
            given(),
            speeds=lambda before, now: speeds or {},
            why=asked.why,
            logs=asked.logs,
            restart=asked.restart,
        )
        async with top.run_test(size=size, notifications=True) as pilot:
            scene = Scene(pilot, top, given, asked)
            await scene.until(lambda: top.shown)
            await pilot.pause()
            await play(scene)
        assert given.is_closed
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [t for t in others if "tests.test_top" in repr(t) or "homelab" in repr(t)]
        if top.failure is not None:
            raise top.failure
        return top, given, asked

    return asyncio.run(main())


TABLE_WIDTHS = (40, 60, 80, 100, 120, 200)


@pytest.mark.parametrize("width", TABLE_WIDTHS)
def test_nodes_devices_and_services_are_there_in_every_size(width: int) -> None:
    async def play(scene: Scene) -> None:
        for line in scene.text.splitlines():
            assert cell_len(line) == width
        words = scene.line("RTX 4090").split()
        assert words[:4] == ["GPU", "0", "RTX", "4090"]
        assert scene.line("    tiny").index("tiny") == 4
        assert scene.line("    coder on GPU 0+1")
        assert scene.line("  gateway ")
        assert "running" in scene.line("    tiny")
        assert "missing" in scene.line("lost")
        titles = scene.line("NODE / DEVICE").split()
        shown = {
            40: [],
            60: ["USED", "TOK/S", "QUEUE"],
            80: ["MEMORY", "USED", "OF", "GiB", "TOK/S", "QUEUE"],
            100: ["MEMORY", "USED", "PLAN", "OF", "GiB", "TOK/S", "QUEUE", "POWER"],
        }
        assert titles[5:] == [*shown[min(width, 100)], "STATE"]
        assert "q Quit" in scene.text

    on_screen(play, size=(width, 24))


def test_the_numbers_and_what_is_not_known() -> None:
    async def play(scene: Scene) -> None:
        assert "- tok/s" in scene.text
        await scene.show(Look(house(), {("server", "coder"): Load(1, 3, 1), ("pi", "gateway"): Load()}))
        assert scene.line("home").split()[1:] == (
            ["http://192.168.1.2:4000", "running", "3/4", "nodes", "up", "41.2", "tok/s", "queue", "3+1"]
        )
        coder = scene.line("coder on GPU").split()
        assert coder[-8:] == ["7.0", "16.0", "41.2", "3+1", "running,", "8k", "×", "4"]
        card = scene.line("RTX 4090").split()
        assert set(card[4]) == {"█", "░"}  # more is used than was planned
        assert card[5:] == ["7.9", "8.0", "23.5", "250/450", "W", "64", "°C"]
        assert scene.line("  gateway ").split()[-5:] == ["0.5", "-", "-", "-", "running"]

    on_screen(play, size=(120, 24), speeds={("server", "coder"): 41.23})


def test_a_node_that_is_not_reached_says_why_in_its_line_and_comes_back() -> None:
    asking = house()
    asking = asking.model_copy(update={"nodes": {k: v for k, v in asking.nodes.items() if k != "server"}})

    async def play(scene: Scene) -> None:
        assert "asking …" in scene.line("server")
        assert "lost" not in scene.text  # it may run on the one that has not answered yet
        await scene.show(Look(house(server="[red]Connection[/red] refused\x1b[2J")))
        assert "not reached: [red]Connection[/red] refused[2J" in scene.line("server")
        assert "away: no route to host" in scene.line("laptop")
        await scene.go_to("server")
        await scene.press("enter")
        assert isinstance(scene.top.screen, TextScreen)
        await scene.until(lambda: "error: [red]Connection[/red] refused[2J" in scene.text)
        await scene.press("escape")
        await scene.show(Look(house()))
        assert "refused" not in scene.text

    on_screen(play, Look(asking))


def test_what_a_lost_node_had_is_shown_without_what_it_did() -> None:
    def gone(found: Survey) -> Survey:
        facts = found.nodes["server"].facts
        assert facts is not None
        return house(server="refused").model_copy(update={"remembered": {"server": facts}})

    async def play(scene: Scene) -> None:
        coder = scene.line("coder on GPU 0+1").split()
        assert coder[-8:-3] == ["-", "16.0", "-", "-", "away,"]
        assert scene.line("GPU 1 RTX 3090").split()[-4:] == ["-", "8.0", "23.7", "-"]

    look = Look(gone(house()), {("server", "coder"): Load(1, 2, 3)})
    on_screen(play, look, speeds={("server", "coder"): 5.0})


def test_the_log_is_followed_until_it_is_closed() -> None:
    async def play(scene: Scene) -> None:
        scene.asked.lines = (
            "[bold]no markup[/bold]",
            "steers \x1b[31mred\x1b[0m \x1b[2J\x07 and \u202eturns",
            "漢字" * 90,
        )
        await scene.go_to("coder")
        await scene.press("l")
        assert isinstance(scene.top.screen, LogScreen)
        await scene.until(lambda: "漢字" in scene.text)
        assert "log of coder on server" in scene.text
        assert "[bold]no markup[/bold]" in scene.text
        assert "漢字" in scene.text.splitlines()[5]
        assert cell_len(scene.text.splitlines()[5].rstrip()) > 110  # all of the width is used
        assert "steers red [2J and turns" in scene.text
        assert not scene.asked.is_log_closed
        await scene.press("escape")
        assert scene.asked.is_log_closed
        assert not isinstance(scene.top.screen, LogScreen)
        await scene.go_to("server")
        await scene.press("l")
        await scene.until(lambda: "Only a service has a log" in scene.text)

    on_screen(play)


def test_a_log_that_cannot_be_had_says_why() -> None:
    async def play(scene: Scene) -> None:
        async def nothing(node: str, name: str) -> AsyncIterator[str]:
            raise DeployError("No log", cause="permission [b]denied", hint="homelab status")
            yield ""

        scene.top.logs = nothing
        await scene.go_to("tiny")
        await scene.press("l")
        await scene.until(
            lambda: "permission [b]denied" in scene.text and "hint: homelab status" in scene.text
        )

    on_screen(play)


def test_quitting_closes_the_log_too() -> None:
    async def play(scene: Scene) -> None:
        await scene.go_to("tiny")
        await scene.press("l")
        await scene.until(lambda: "second line" in scene.text)
        await scene.press("ctrl+c")

    _, _, asked = on_screen(play)
    assert asked.is_log_closed


@pytest.mark.parametrize("key", ["w", "enter"])
def test_why(key: str) -> None:
    async def play(scene: Scene) -> None:
        await scene.go_to("tiny")
        await scene.press(key)
        await scene.until(lambda: "tiny fits nowhere else" in scene.text)
        assert "[bold]not markup[/bold][2J" in scene.text
        await scene.press("q")
        await scene.go_to("lost")
        await scene.press(key)
        await scene.until(lambda: "lost fits nowhere else" in scene.text)
        await scene.press("escape")
        await scene.go_to("  gateway")
        await scene.press(key)
        await scene.until(lambda: "There is a why for each model" in scene.text)

    on_screen(play)


def test_why_may_wait_for_nodes_and_fail() -> None:
    async def play(scene: Scene) -> None:
        async def why(model: str) -> str:
            raise DeployError(f"{model} cannot be planned", cause="no keys")

        scene.top.why = why
        await scene.go_to("tiny")
        await scene.press("w")
        await scene.until(lambda: "error: tiny cannot be planned" in scene.text and "no keys" in scene.text)

    on_screen(play)


@pytest.mark.parametrize("key", ["n", "escape", "q", "enter"])
def test_a_restart_is_asked_about(key: str) -> None:
    async def play(scene: Scene) -> None:
        await scene.go_to("coder")
        await scene.press("r")
        assert isinstance(scene.top.screen, Question)
        assert "Restart coder on server? It answers nobody until it" in scene.text
        await scene.press(key)
        assert not isinstance(scene.top.screen, Question)
        assert scene.asked.restarted == []

    on_screen(play, size=(80, 24))


def test_a_restart_is_seen_in_its_line_until_it_is_done() -> None:
    async def play(scene: Scene) -> None:
        await scene.go_to("coder")
        await scene.press("r", "y")
        assert "restarting, running" in scene.line("coder on GPU")
        assert scene.asked.restarted == [("server", "coder")]
        await scene.go_to("tiny")
        await scene.press("r")
        await scene.until(lambda: "Another restart is still at work" in scene.text)
        scene.asked.go_on.set()
        await scene.until(lambda: "coder on server is healthy again" in scene.text)
        assert "restarting" not in scene.line("coder on GPU")

    on_screen(play)


def test_a_restart_that_fails_says_what_happened() -> None:
    async def play(scene: Scene) -> None:
        scene.asked.error = DeployError(
            "coder [b]died", cause="out of \x1b[2Jmemory", hint="homelab logs coder"
        )
        scene.asked.go_on.set()
        await scene.go_to("coder")
        await scene.press("r", "y")
        await scene.until(lambda: "not restarted" in scene.text)
        for said in ("coder [b]died", "out of [2Jmemory", "hint: homelab logs coder"):
            assert said in scene.text

    on_screen(play)


def test_quitting_while_something_restarts_takes_two_keys() -> None:
    async def play(scene: Scene) -> None:
        await scene.go_to("coder")
        await scene.press("r", "y", "q")
        await scene.until(lambda: "q again leaves it" in scene.text)
        assert scene.top.is_running
        await scene.press("q")

    top, _, _ = on_screen(play)
    assert top.return_code == 0


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
def test_it_quits_and_the_looks_are_closed(key: str) -> None:
    async def play(scene: Scene) -> None:
        await scene.press(key)

    on_screen(play)


def test_the_cursor_stays_on_what_it_is_on() -> None:
    async def play(scene: Scene) -> None:
        table = scene.top.query_one(Table)
        await scene.press("end", "up", "up", "down")
        assert table.chosen is not None
        assert table.chosen.text.plain.startswith("    tiny")
        cards = tuple(gpu(f"RTX {n}", index=n, free_mib=1000) for n in range(8))
        await scene.show(Look(house(laptop=machine("laptop", *cards))))
        assert table.chosen.key == ("workstation", "service", "tiny")
        assert scene.line("  tiny")  # it is still to be seen
        await scene.show(Look(house(workstation="gone")))
        assert table.chosen is not None

    on_screen(play, size=(80, 14))


def test_help() -> None:
    async def play(scene: Scene) -> None:
        await scene.press("question_mark")
        await scene.until(lambda: "requests at work + requests that wait" in scene.text)
        assert all(cell_len(line) == 80 for line in scene.text.splitlines())

    on_screen(play, size=(80, 24))


def test_text_of_a_node_is_no_markup_and_steers_nothing() -> None:
    evil = "[red]Mark\x1b[2J\u202eup[/red]\nnext"
    card = gpu(index=0, processes=(Process(pid=1, name="x", memory_bytes=GIB),), free_mib=9000)
    card = card.model_copy(update={"name": evil})
    bad = service("tiny", card.uuid, state="unhealthy", detail=evil)
    facts = machine("workstation", card, services=(bad,), problems=(Problem(source="nvidia", message=evil),))

    async def play(scene: Scene) -> None:
        assert "GPU 0 [red]Mark[2Jup[/red] next" in scene.text
        assert "unhealthy: [red]Mark[2Jup[/red] next" in scene.line("tiny")
        assert "nvidia: [red]Mark[2Jup[/red] next" in scene.text
        assert not set(scene.text) & {"\x1b", "\u202e"}
        await scene.go_to("workstation")
        await scene.press("w")
        await scene.until(lambda: scene.line("nvidia: [red]Mark[2Jup[/red]"))

    on_screen(play, Look(house(workstation=facts)), size=(200, 24))


@pytest.mark.parametrize("width", [80, 81, 100])
def test_wide_and_long_names_are_cut_by_cells(width: int) -> None:
    wide = gpu(free_mib=9000).model_copy(update={"name": "漢字漢字漢字漢字漢字漢字漢字漢字漢字"})
    long = "a" * 63
    found = house(workstation=machine("workstation", wide, services=(service(long, wide.uuid),)))

    async def play(scene: Scene) -> None:
        lines = scene.text.splitlines()
        assert {cell_len(line) for line in lines} == {width}
        (name,) = [line for line in lines if "aaaa" in line]
        assert "a… " in name
        assert "running" in name
        assert "…" in scene.line("漢字")

    on_screen(play, Look(found), size=(width, 24))


def many() -> tuple[str, Survey]:
    nodes = [f"node{n:02}" for n in range(20)]
    text = f"gateway: {{node: {nodes[0]}}}\nnodes:\n" + "".join(f"  {n}: {{host: {n}}}\n" for n in nodes)
    found: dict[str, Facts | str] = {}
    for node in nodes:
        cards: list[GPU] = [
            gpu("NVIDIA H100", 81000, index=i, free_mib=80_700 if i > 1 else 9000) for i in range(40)
        ]
        found[node] = machine(node, *cards, services=tuple(service(f"m{i}", cards[i].uuid) for i in range(2)))
    return text, survey(None, **found)


def test_a_large_house_stays_readable() -> None:
    text, found = many()

    async def play(scene: Scene) -> None:
        assert scene.text.count("38 more GPUs free") == 4  # of the five nodes that are to be seen
        table = scene.top.query_one(Table)
        assert len(table.rows) == 20 * 6
        await scene.press("end")
        assert "node19" in scene.text
        for _ in range(5):
            await scene.show(Look(found))
        assert "node19" in scene.text

    on_screen(play, Look(found), text=text, size=(100, 30))


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    from homelab import ui

    colours: dict[bool, bool] = {}

    async def play(scene: Scene) -> None:
        strips = scene.top.screen._compositor.render_strips()
        found = [
            colour.triplet
            for strip in strips
            for segment in strip
            if segment.style
            for colour in (segment.style.color, segment.style.bgcolor)
            if colour and colour.triplet
        ]
        assert found
        colours[scene.top.no_color] = any(len(set(triplet)) > 1 for triplet in found)

    monkeypatch.setattr(ui.out, "no_color", False)
    on_screen(play)  # the tests have NO_COLOR
    monkeypatch.delenv("NO_COLOR")
    on_screen(play)
    assert colours == {True: False, False: True}
    monkeypatch.setattr(ui.out, "no_color", True)  # --no-color
    monkeypatch.setenv("NO_COLOR", "")
    colours.clear()
    on_screen(play)
    assert colours == {True: False}


def test_what_breaks_is_raised_and_not_shown() -> None:
    async def broken() -> AsyncIterator[Look]:
        yield Look(house())
        raise DeployError("The looks are over")

    async def main() -> int:
        asked = Asked()
        top = Top(
            load(TEXT, "inventory.yml"),
            broken(),
            speeds=lambda before, now: {},
            why=asked.why,
            logs=asked.logs,
            restart=asked.restart,
        )
        top.run_async = lambda: type(top).run_async(top, headless=True)  # type: ignore[method-assign]
        return await run(top)

    with pytest.raises(DeployError, match="The looks are over"):
        asyncio.run(main())


PROGRAM = """\
import asyncio, sys
from homelab.inventory import load
from homelab.ui.top import Top, run
from tests.test_top import TEXT, Asked, Look, Looks, house
async def main():
    asked, given = Asked(), Looks(Look(house()))
    looks, speeds = given(), lambda before, now: {}
    top = Top(
        load(TEXT, "i.yml"), looks, speeds=speeds, why=asked.why, logs=asked.logs, restart=asked.restart
    )
    code = await run(top)
    print("closed:", given.is_closed)
    return code
sys.exit(asyncio.run(main()))
"""
END_OF_SCREEN = b"\x1b[?1049l"


@pytest.mark.parametrize(
    ("end", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0), (b"q", 0), (b"\x03", 0)],
)
def test_a_terminal_is_left_as_it_was(end: signal.Signals | bytes, code: int) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=theirs, stdout=theirs, stderr=theirs
    ) as program:
        try:
            said = b""
            while b"workstation" not in said:
                said += os.read(ours, 65536)
            if isinstance(end, bytes):
                os.write(ours, end)
            else:
                program.send_signal(end)
            while b"closed: True" not in said.partition(END_OF_SCREEN)[2]:
                assert b"Traceback" not in said, said.decode()
                said += os.read(ours, 65536)
            assert program.wait(20) == code
            assert termios.tcgetattr(theirs) == before
        finally:
            program.kill()
            os.close(ours)
            os.close(theirs)
