"""Services without Docker: real processes, real health endpoints, the supervisor's files written by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from homelab.facts import DeployedService, parse_facts

Run = Callable[..., dict[str, Any]]


def ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.communicate()


@pytest.fixture
def seen(run_agent: Run, home: Path) -> Callable[..., DeployedService]:
    def see(state: dict[str, Any] | None, **labels: str) -> DeployedService:
        folder = home / ".local/share/homelab/home/qwen3-4b/abc"
        folder.mkdir(parents=True, exist_ok=True)
        named = {
            "homelab.cluster": "home",
            "homelab.role": "engine",
            "homelab.serves": "qwen3-4b",
            "homelab.spec": "abc",
        } | {f"homelab.{k}": v for k, v in labels.items()}
        (folder / "service.json").write_text(json.dumps({"labels": named}))
        if state is not None:
            (folder / "state.json").write_text(json.dumps(state))
        (service,) = (s for s in parse_facts(json.dumps(run_agent())).services if s.runtime == "native")
        assert service.directory == str(folder)
        return service

    return see


def running(pid: int) -> dict[str, Any]:
    return {
        "supervisor_pid": 1,
        "supervisor_start_ticks": 0,
        "pid": pid,
        "pid_start_ticks": ticks(pid),
        "restarts": 1,
        "exit_code": None,
        "status": "running",
    }


def test_a_living_process_is_running(seen: Callable[..., DeployedService], sleeper: int) -> None:
    service = seen(running(sleeper))
    assert (service.cluster, service.name, service.serves, service.spec) == (
        "home",
        "qwen3-4b",
        ("qwen3-4b",),
        "abc",
    )
    assert (service.state, service.pid, service.restarts, service.exit_code) == ("running", sleeper, 1, None)
    rss = psutil.Process(sleeper).memory_info().rss
    assert service.memory_bytes is not None
    assert abs(service.memory_bytes - rss) < 1 << 20


def test_another_process_under_the_old_number_is_not_ours(
    seen: Callable[..., DeployedService], sleeper: int
) -> None:
    service = seen(running(sleeper) | {"pid_start_ticks": ticks(sleeper) - 1})
    assert (service.state, service.pid, service.detail) == ("stopped", None, "its supervisor is gone")


def test_a_service_that_was_never_started_is_stopped(seen: Callable[..., DeployedService]) -> None:
    assert seen(None).state == "stopped"


@pytest.mark.parametrize(
    ("status", "state", "detail"),
    [
        ("backing-off", "unhealthy", "starts again soon, exit code 1"),
        ("failed", "stopped", "failed, exit code 1"),
        ("stopped", "stopped", "stopped, exit code 1"),
        ("running", "starting", None),
    ],
)
def test_what_the_supervisor_says_counts_while_it_lives(
    seen: Callable[..., DeployedService], sleeper: int, status: str, state: str, detail: str | None
) -> None:
    dead = {"pid": 2**22 + 1, "pid_start_ticks": 5, "restarts": 3, "exit_code": 1, "status": status}
    service = seen({"supervisor_pid": sleeper, "supervisor_start_ticks": ticks(sleeper)} | dead)
    assert (service.state, service.detail, service.exit_code, service.restarts) == (state, detail, 1, 3)


@pytest.mark.parametrize(("status", "state"), [(200, "running"), (503, "starting"), (500, "unhealthy")])
def test_the_health_endpoint_decides(
    seen: Callable[..., DeployedService], sleeper: int, status: int, state: str
) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        service = seen(running(sleeper), health="/health", address="127.0.0.1", port=str(server.server_port))
        server.shutdown()
    assert service.state == state


def test_a_port_that_is_not_open_yet_is_starting(seen: Callable[..., DeployedService], sleeper: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert seen(running(sleeper), health="/health", port=str(port)).state == "starting"


def test_an_engine_that_says_nothing_is_busy_and_not_dead(
    seen: Callable[..., DeployedService], sleeper: int
) -> None:
    """A busy gateway on a small machine was restarted after one second of silence."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        service = seen(
            running(sleeper), health="/health", address="127.0.0.1", port=str(silent.getsockname()[1])
        )
    assert service.state == "running"
    assert service.detail == "busy: no answer from /health in 3 s"


def test_one_bad_answer_is_asked_about_again(seen: Callable[..., DeployedService], sleeper: int) -> None:
    answers = iter([500, 200])

    class Once(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(next(answers))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Once) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        service = seen(
            running(sleeper), health="/health", address="127.0.0.1", port=str(server.server_address[1])
        )
        server.shutdown()
    assert (service.state, service.detail) == ("running", None)


def test_whoever_listens_on_a_services_port_is_told_apart(
    seen: Callable[..., DeployedService], sleeper: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = str(stranger.getsockname()[1])
        assert seen(running(sleeper), address="127.0.0.1", port=port).listens is False
        assert seen(running(os.getpid()), address="127.0.0.1", port=port).listens is True
    assert seen(running(sleeper), address="127.0.0.1", port=port).listens is False


def test_a_service_whose_files_cannot_be_read_is_not_taken_for_none(run_agent: Run, home: Path) -> None:
    folder = home / ".local/share/homelab/home/a/1"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "service.json")  # to open it would wait for ever
    document = run_agent()
    assert document["services"] == []
    [why] = document["unlisted"]["native"]
    assert f"{folder / 'service.json'} cannot be read" in why and "not a file" in why


def test_files_that_cannot_be_read_are_a_problem(run_agent: Run, home: Path) -> None:
    folder = home / ".local/share/homelab/home/a/1"
    folder.mkdir(parents=True)
    (folder / "service.json").write_text("[]")
    document = run_agent()
    assert [p["source"] for p in document["problems"]] == ["services"]
    assert document["unlisted"]["native"] == [document["problems"][0]["message"]]
    assert str(folder / "service.json") in document["problems"][0]["message"]
