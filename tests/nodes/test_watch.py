"""A household that is watched: real logins, real agents, engines that answer over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from homelab import watch
from homelab.engines import Load
from homelab.facts import ANSWER_BYTES, Survey
from homelab.inventory import Gateway, Inventory, Node
from homelab.nodes.session import LONGEST_LINE_BYTES, lines_of
from homelab.secrets import Secrets
from homelab.watch import Seen, speeds
from tests.nodes import sshd as real_sshd
from tests.nodes.sshd import Sshd

TICK = 0.2
SECRETS = Secrets(gateway_key=SecretStr("sk-front"), engine_secret=SecretStr("secret"))
Looks = AsyncIterator[Seen]


class House:
    """Nodes that are all this machine, each with a Python of its own: `before` is what it does before it is
    one, with `$watched` where it is asked again and again."""

    def __init__(self, folder: Path, home: Path, sshd: Sshd | None) -> None:
        self.folder, self.home, self.sshd = folder, home, sshd

    def node(self, name: str, before: str = "") -> Node:
        python = self.folder / f"python-{name}"
        python.write_text(
            f'#!/bin/sh\ncase "$*" in *--watch*) watched=1;; *) watched=;; esac\n{before}\n'
            f'exec {shlex.quote(sys.executable)} "$@"\n'
        )
        python.chmod(0o755)
        if self.sshd is None:
            return Node(host="localhost", python=str(python))
        return Node(
            host="127.0.0.1",
            port=self.sshd.port,
            user=self.sshd.user,
            identity=str(self.sshd.identity),
            python=str(python),
        )

    def watch(
        self, nodes: dict[str, Node], work: Callable[[Looks], Awaitable[None]], seconds: float = TICK
    ) -> None:
        inventory = Inventory(gateway=Gateway(node=next(iter(nodes))), nodes=nodes)

        async def opened() -> None:
            async with aclosing(watch.watch(inventory, SECRETS, seconds)) as looks:
                await work(looks)

        asyncio.run(asyncio.wait_for(opened(), 30))

    def agents(self) -> list[int]:
        """What runs of the agent in this home, zombies apart."""
        there = str(self.home / ".cache/homelab/agent")
        return [
            p.pid
            for p in psutil.process_iter(["cmdline", "status"])
            if any(word.startswith(there) for word in p.info["cmdline"] or ())
            and p.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def no_agent_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.agents():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent")
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.2)
    return home


@pytest.fixture
def here(tmp_path: Path, home: Path) -> House:
    return House(tmp_path, home, None)


@pytest.fixture
def there(tmp_path: Path, home: Path) -> Iterator[House]:
    if reason := real_sshd.obstacle():
        pytest.skip(reason)
    with real_sshd.started(tmp_path / "sshd", more=real_sshd.as_account(home, "/bin/sh")) as sshd:
        (home / ".ssh/known_hosts").write_text(sshd.known_hosts("127.0.0.1"))
        yield House(tmp_path, home, sshd)


@pytest.fixture(params=["here", "there"])
def house(request: pytest.FixtureRequest) -> House:
    found: House = request.getfixturevalue(request.param)
    return found


async def until(looks: Looks, true: Callable[[Seen], object]) -> Seen:
    async for seen in looks:
        if true(seen):
            return seen
    raise AssertionError("it ended")


def up(seen: Seen) -> set[str]:
    return {name for name, report in seen.survey.nodes.items() if report.facts}


def test_every_look_has_all_nodes_and_nothing_is_left_behind(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_SECONDS", 20)  # the machine that tests may be busy

    async def work(looks: Looks) -> None:
        seen = [await anext(looks) for _ in range(4)]
        assert [up(s) for s in seen] == [{"a", "b"}] * 4
        assert not any(s.errors for s in seen)
        assert seen[-1].at - seen[0].at > 2.5 * TICK
        first = seen[0].survey.nodes["a"].facts
        await until(looks, lambda s: s.survey.nodes["a"].facts is not first)  # it has looked again
        assert house.agents()

    house.watch({"a": house.node("a"), "b": house.node("b")}, work)
    assert house.agents() == []


def test_a_connection_that_is_cut_leaves_no_agent_and_is_made_anew(
    there: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RETRY_SECONDS", 1.0)

    async def work(looks: Looks) -> None:
        assert not (await anext(looks)).errors
        await until(looks, lambda _: there.agents())
        assert there.sshd
        there.sshd.cut_connections()
        assert there.no_agent_within(4 * TICK)
        lost = await until(looks, lambda s: s.errors)
        assert lost.errors["a"].message == "The connection to node `a` was lost"
        assert lost.survey.nodes["a"].error and not lost.survey.nodes["a"].facts
        assert set(lost.survey.remembered) == {"a"}
        back = await until(looks, up)
        assert not back.errors and not back.survey.remembered

    there.watch({"a": there.node("a")}, work)
    assert there.agents() == []


def test_a_node_that_fails_has_its_error_until_it_is_back_and_the_others_go_on(here: House) -> None:
    broken = here.folder / "broken"

    async def work(looks: Looks) -> None:
        await until(looks, lambda s: up(s) == {"a", "b"})
        broken.touch()
        for process in here.agents():  # of both
            psutil.Process(process).kill()
        # At first it may be the shell's word for what happened to its child.
        lost = await until(looks, lambda s: "a" in s.errors and s.errors["a"].cause == "no more")
        assert lost.errors["a"].message == "The agent failed on node `a`"
        assert lost.survey.nodes["a"].error and lost.survey.nodes["a"].error.cause == "no more"
        broken.unlink()
        await until(looks, lambda s: up(s) == {"a", "b"})

    before = f"[ -e {broken} ] && {{ echo no more >&2; exit 41; }}"
    here.watch({"a": here.node("a", before), "b": here.node("b")}, work)
    assert here.agents() == []


@pytest.mark.parametrize(
    ("says", "error"),
    [
        ("echo '{\"schema_version\": 1}'", "The agent's answer cannot be read"),
        ("echo $$ is no document; sleep 600", "The agent's answer cannot be read"),
        ("head -c 18M /dev/zero | tr '\\0' x; sleep 600", "The agent's answer is too long"),
        ("exit 3", "The agent on node `a` has ended"),
    ],
)
def test_a_line_that_is_no_document_is_the_error_of_its_node(here: House, says: str, error: str) -> None:
    async def work(looks: Looks) -> None:
        seen = await until(looks, lambda s: s.errors and "b" in up(s))
        assert seen.errors["a"].message == error

    before = f'if [ -n "$watched" ]; then {says}; exit 3; fi'
    here.watch({"a": here.node("a", before), "b": here.node("b")}, work)


def test_a_line_without_an_end_is_kept_by_nobody() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 2**20

    async def pieces() -> list[int]:
        return [len(line) async for line in lines_of(endless())]

    assert LONGEST_LINE_BYTES > ANSWER_BYTES
    sizes = asyncio.run(pieces())
    assert sum(sizes) == 50 * 2**20
    assert ANSWER_BYTES < max(sizes) <= LONGEST_LINE_BYTES + 2**20


def test_who_hangs_keeps_the_others_waiting_for_a_moment_only(
    here: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_SECONDS", 0.7)
    marker = str(here.folder / "hangs")

    async def work(looks: Looks) -> None:
        begun = time.monotonic()
        seen = await anext(looks)
        assert 0.6 < time.monotonic() - begun < 3
        assert "a" not in seen.survey.nodes and not seen.errors
        await until(looks, lambda s: up(s) == {"b"})

    (here.folder / "hangs").symlink_to("/bin/sleep")
    here.watch({"a": here.node("a", f"exec {marker} 600"), "b": here.node("b")}, work)
    assert not [p for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or ())]


# ---- engines ----
class Engine(ThreadingHTTPServer):
    """llama-server's /metrics, with a key. Each look finds 100 more tokens, until it hangs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.tokens = 0
        self.hangs = False
        self.keys: list[str | None] = []


class Answer(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.server.keys.append(self.headers["Authorization"])
            while self.server.hangs:
                time.sleep(0.05)
        self.server.tokens += 100
        text = f"llamacpp:tokens_predicted_total {self.server.tokens}\nllamacpp:requests_processing 2\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    """It runs as a service of ours, without Docker."""
    with Engine() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        labels = {"cluster": "home", "role": "engine", "serves": "q", "spec": "abc", "engine": "llamacpp"}
        labels |= {"address": "127.0.0.1", "port": str(server.server_port)}
        folder = home / ".local/share/homelab/home/q/abc"
        folder.mkdir(parents=True)
        named = {f"homelab.{name}": value for name, value in labels.items()}
        (folder / "service.json").write_text(json.dumps({"labels": named}))
        state = {"pid": os.getpid(), "pid_start_ticks": None, "status": "running"}
        (folder / "state.json").write_text(json.dumps(state))
        yield server
        server.hangs = False
        server.shutdown()
        thread.join()


def test_engines_say_what_they_do_to_who_has_their_key(here: House, engine: Engine) -> None:
    async def work(looks: Looks) -> None:
        before = await until(looks, lambda s: s.loads)
        now = await until(looks, lambda s: s.loads)
        assert before.loads[("a", "q")].running == 2
        assert before.loads[("a", "q")].waiting is None
        speed = speeds(before, now)[("a", "q")]
        assert speed == pytest.approx(100 / (now.at - before.at))

    here.watch({"a": here.node("a")}, work)
    assert set(engine.keys) == {f"Bearer {SECRETS.engine_key('a', 'q').get_secret_value()}"}


def test_an_engine_that_hangs_delays_no_look_for_long(
    here: House, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "METRICS_SECONDS", 0.5)

    async def work(looks: Looks) -> None:
        await until(looks, lambda s: s.loads)
        engine.hangs = True
        for _ in range(2):
            begun = time.monotonic()
            seen = await anext(looks)
            assert time.monotonic() - begun < 1.5
            assert up(seen) == {"a"} and not seen.loads
        engine.hangs = False
        await until(looks, lambda s: s.loads)

    here.watch({"a": here.node("a")}, work)


def look(at: float, **tokens: float | None) -> Seen:
    loads = {("n", service): Load(tokens=value) for service, value in tokens.items()}
    return Seen(at=at, survey=Survey(), errors={}, loads=loads)


def test_a_speed_is_what_two_looks_differ_by() -> None:
    before = look(10.0, grows=100, rests=7, restarted=500, gone=1, silent=None)
    now = look(12.0, grows=150, rests=7, restarted=20, new=5, silent=9)
    assert speeds(before, now) == {("n", "grows"): 25.0, ("n", "rests"): 0.0}
    assert speeds(now, now) == {}
