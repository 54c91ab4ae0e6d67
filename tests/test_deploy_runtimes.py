"""Deploy uses the Docker engine, the Python and the cache that the agent found."""

from __future__ import annotations

import asyncio
import gc
import json
import shlex
import socketserver
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from homelab.deploy import compose, native
from homelab.deploy.events import Event, last_words
from homelab.errors import DeployError
from homelab.facts import DeployedService
from homelab.inventory import load
from homelab.nodes.local import LocalSession
from homelab.placement import place
from homelab.render import render
from homelab.runtimes.compose import on_engine
from homelab.runtimes.native import provision_command, supervise
from homelab.service import Service
from tests.machines import DOCKER, HUB, KEYS, machine, survey, tiny_gguf, workstation

MODEL = "models: {t: {engine: llamacpp, source: /models/tiny.gguf, context: 2048}}"
FROM_HUB = "models: {q: {engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: 2048}}"


def engine_of(models: str, node: str = "{host: 192.168.1.10}", **facts: Any) -> Service:
    inventory = load(f"gateway: {{node: n}}\nnodes: {{n: {node}}}\n{models}\n", "inventory.yml")
    make = machine if facts.get("docker", DOCKER) is None else workstation
    there = (
        make("n", weights=(tiny_gguf(),), **facts)
        if make is machine
        else workstation(weights=(tiny_gguf(),), **facts)
    )
    found = survey(HUB, n=there)
    layout = place(inventory, found)
    return next(s for s in render(inventory, layout, found, KEYS, {}) if s.role == "engine")


def test_a_users_own_docker_engine_is_the_one_that_runs_it() -> None:
    rootless = DOCKER.model_copy(update={"socket": "/run/user/1000/docker.sock"})
    service = engine_of(MODEL, docker=rootless)
    assert service.unit.socket == "/run/user/1000/docker.sock"
    assert on_engine(service.unit.socket, "docker ps") == (
        "export DOCKER_HOST=unix:///run/user/1000/docker.sock; docker ps"
    )
    assert on_engine("/var/run/docker.sock", "docker ps") == "docker ps"
    assert engine_of(MODEL).spec == service.spec  # which engine it is in is no part of what it is
    there = DeployedService(
        cluster="home",
        name="t",
        spec="1",
        runtime="docker",
        state="running",
        container="abc",
        socket="/x.sock",
    )
    assert compose.logs_command(there, follow=False, tail=5).startswith("export DOCKER_HOST=unix:///x.sock; ")


def test_a_docker_engine_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    service = engine_of(MODEL, docker=DOCKER.model_copy(update={"socket": str(tmp_path / "none.sock")}))
    with pytest.raises(DeployError) as e:
        asyncio.run(compose.fetch(LocalSession("n"), service, lambda _: None))
    assert "cannot be pulled on node `n`" in e.value.message or "does not answer" in e.value.message
    assert e.value.cause
    del e
    with warnings.catch_warnings():
        # docker 7.2.0 (transport/unixconn.py) leaves a socket that could not connect to the collector, which
        # would warn of it in some later test.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_the_nodes_own_python_starts_what_runs_without_docker() -> None:
    given = engine_of(MODEL, "{host: 192.168.1.10, python: /opt/py/bin/python3}", docker=None)
    found = engine_of(MODEL, docker=None, python_path="/usr/local/bin/python3.12")
    assert (given.unit.python, found.unit.python) == ("/opt/py/bin/python3", "/usr/local/bin/python3.12")
    assert shlex.split(supervise("start", "d", found.unit.python))[0] == "/usr/local/bin/python3.12"
    assert (
        shlex.split(provision_command(found.unit.program, found.unit.python))[0]
        == "/usr/local/bin/python3.12"
    )  # type: ignore[arg-type]
    assert given.spec == found.spec
    at_home = engine_of(
        MODEL,
        "{host: 192.168.1.10, python: ~/py/bin/python3}",
        docker=None,
        python_path="/home/me/py/bin/python3",
    )
    assert at_home.unit.python == "/home/me/py/bin/python3"


def test_a_supervisor_that_is_taken_away_meanwhile_is_told_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(native, "UNASKED_SECONDS", 1.0)
    service = engine_of(MODEL, "{host: localhost, runtime: native}", docker=None)
    with pytest.raises(DeployError, match="Nobody can say how `t` on node `n` is") as said:
        asyncio.run(asyncio.wait_for(native.wait_healthy(LocalSession("n"), service, lambda _: None), 30))
    assert "supervise.py" in said.value.cause and "No such file" in said.value.cause


def test_weights_are_mounted_from_where_the_agent_looked_for_them() -> None:
    assert [(m.source, m.target) for m in engine_of(FROM_HUB).unit.mounts] == [
        ("/home/me/.cache/huggingface", "/root/.cache/huggingface")
    ]
    moved = engine_of(FROM_HUB, hub_cache="/data/hf/hub")
    assert [(m.source, m.target) for m in moved.unit.mounts] == [("/data/hf", "/root/.cache/huggingface")]
    bare = engine_of(FROM_HUB, hub_cache="/data/models")
    assert [(m.source, m.target) for m in bare.unit.mounts] == [
        ("/data/models", "/root/.cache/huggingface/hub")
    ]


def test_the_end_of_a_log_comes_with_what_was_wrong_before_it() -> None:
    usage = [f"  --option-{n}  what it does" for n in range(30)]
    assert last_words("\n".join(usage)) == "\n".join(usage[-20:])
    said = ["starting", "error: an earlier one", "error while handling argument: no such file", *usage]
    assert last_words("\n".join(said)).splitlines() == [said[2], *usage[-20:]]
    assert last_words("\n".join([*said, "error: at the end"])).splitlines()[0] == usage[-19]


class Docker(socketserver.ThreadingUnixStreamServer):
    """A Docker engine that pulls one image and never comes to its end."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Engine)
        self.left = threading.Event()  # whoever asked for the image listens no more
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Docker  # type: ignore[assignment]

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return ""

    def do_GET(self) -> None:
        there = self.path == "/version"
        text = json.dumps({"ApiVersion": "1.43"} if there else {"message": "No such image"}).encode()
        self.send_response(200 if there else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for done in range(10_000):
                detail = {"current": done, "total": 1 << 30}
                line = json.dumps({"id": "layer", "status": "Downloading", "progressDetail": detail}) + "\r\n"
                self.wfile.write(f"{len(line):x}\r\n{line}\r\n".encode())
                time.sleep(0.02)
        except OSError:
            self.server.left.set()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for a socket, whose path is short."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_a_pull_that_is_interrupted_ends_at_once(short_path: Path) -> None:
    """Docker ends a pull when nobody listens to it any more."""
    service = engine_of(MODEL, docker=DOCKER.model_copy(update={"socket": str(short_path / "docker.sock")}))
    told: list[Event] = []

    async def interrupted() -> None:
        loop, pulls = asyncio.get_running_loop(), asyncio.Event()

        def tell(event: Event) -> None:
            told.append(event)
            if event.done_bytes:
                loop.call_soon_threadsafe(pulls.set)

        task = asyncio.create_task(compose.fetch(LocalSession("n"), service, tell))
        await pulls.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with Docker(short_path / "docker.sock") as engine:
        begun = time.monotonic()
        asyncio.run(interrupted())  # returns when its threads have ended
        assert time.monotonic() - begun < 10
        gc.collect()
        assert engine.left.wait(10)
        engine.shutdown()
    assert told[-1].total_bytes == 1 << 30
    assert [e.step for e in told] == ["fetch"] * len(told)
