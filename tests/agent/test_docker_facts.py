"""Docker's Engine API is answered by a small server on a unix socket, with what Docker 20.10
said to the same questions."""

from __future__ import annotations

import hashlib
import json
import os
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from agent.accelerators import nvidia
from homelab.facts import parse_facts

Run = Callable[..., dict[str, Any]]
CONTAINER = "bc250a72b22dd93a2deb07a23a197ae920cd0ade2983c16937e3f7a6edf1da3d"
LABELS = {
    "com.docker.compose.project": "home-qwen3-4b-abc",
    "com.docker.compose.project.working_dir": "/home/me/.local/share/homelab/home/qwen3-4b/abc",
    "com.docker.compose.service": "qwen3-4b",
    "homelab.cluster": "home",
    "homelab.role": "engine",
    "homelab.serves": "qwen3-4b",
    "homelab.spec": "abc",
}
RUNNING = {
    "Status": "running",
    "Running": True,
    "Restarting": False,
    "OOMKilled": False,
    "Pid": 28863,
    "ExitCode": 0,
    "Error": "",
}
EXITED = {
    "Status": "exited",
    "Running": False,
    "Restarting": False,
    "OOMKilled": False,
    "Pid": 0,
    "ExitCode": 3,
    "Error": "",
}


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, Answer)
        self.answers: dict[str, Any] = {
            "/version": {"Version": "20.10.24+dfsg1", "ApiVersion": "1.41", "MinAPIVersion": "1.12"},
            "/info": {
                "DockerRootDir": "/var/lib/docker",
                "CgroupVersion": "1",
                "Runtimes": {"runc": {"path": "runc"}},
            },
            "/containers/json?all=1": [],
        }

    def holds(self, state: dict[str, Any], **inspected: Any) -> None:
        self.answers["/containers/json?all=1"] = [
            {
                "Id": CONTAINER,
                "Names": ["/home-qwen3-4b-abc-1"],
                "Labels": LABELS,
                "State": state["Status"],
                "Ports": [
                    {"IP": "10.0.0.9", "PrivatePort": 8000, "PublicPort": 8101, "Type": "tcp"},
                    {"PrivatePort": 9, "Type": "udp"},
                ],
            },
            {"Id": "0" * 64, "Names": ["/somebody-elses"], "Labels": None, "State": "running", "Ports": []},
        ]
        self.answers[f"/containers/{CONTAINER}/json"] = {
            "Id": CONTAINER,
            "Name": "/x",
            "RestartCount": 2,
            "State": state,
        } | inspected
        self.answers[f"/containers/{CONTAINER}/stats?stream=false&one-shot=true"] = {
            "memory_stats": {
                "usage": 5_000_000,
                "stats": {"total_inactive_file": 1_000_000, "inactive_file": 7},
            }
        }


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.server.answers.get(self.path)  # type: ignore[attr-defined]
        body = json.dumps(found if found is not None else {"message": "page not found"}).encode()
        self.send_response(200 if found is not None else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def socket_path() -> Iterator[str]:
    """It holds 107 characters on Linux, and the folder for a test's files may have as many."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield f"{folder}/docker.sock"


@pytest.fixture
def engine(socket_path: str) -> Iterator[Engine]:
    server = Engine(socket_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def asked(run_agent: Run, engine: Engine, **env: str) -> Any:
    return parse_facts(json.dumps(run_agent(docker=str(engine.server_address), **env)))


def test_the_engine_is_described(run_agent: Run, engine: Engine) -> None:
    facts = asked(run_agent, engine)
    docker = facts.docker
    assert (docker.version, docker.api_version, docker.reachable, docker.error) == (
        "20.10.24+dfsg1",
        "1.41",
        True,
        None,
    )
    assert docker.data_root == "/var/lib/docker"
    assert docker.runtimes == ("runc",)
    assert {d.purpose for d in facts.disks} == {"models", "docker", "homelab"}


def test_a_new_runtime_is_known_once_the_engine_is_started_anew(run_agent: Run, engine: Engine) -> None:
    assert "nvidia" not in asked(run_agent, engine).docker.runtimes
    engine.answers["/info"]["Runtimes"]["nvidia"] = {"path": "nvidia-container-runtime"}
    os.utime(str(engine.server_address), (1, 1))  # its socket comes with it
    assert "nvidia" in asked(run_agent, engine).docker.runtimes


def test_containers_get_nvidia_gpus_by_a_runtime_a_device_description_or_a_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("agent.docker.PROGRAM_PATH", ())
    nothing: dict[str, list[str]] = {"runtimes": ["runc"], "cdi": ["vendor.json"]}
    assert "NVIDIA Container Toolkit" in str(nvidia.container_obstacle(nothing))
    assert nvidia.container_obstacle(nothing | {"runtimes": ["nvidia", "runc"]}) is None
    assert nvidia.container_obstacle(nothing | {"cdi": ["nvidia.yaml"]}) is None
    hook = tmp_path / "nvidia-container-runtime-hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    assert nvidia.container_obstacle(nothing) is None


def test_the_compose_plugin_is_asked_for_its_version(run_agent: Run, engine: Engine, home: Path) -> None:
    folder = home / ".docker" / "cli-plugins"
    folder.mkdir(parents=True)
    plugin = folder / "docker-compose"
    answer = json.dumps(
        {
            "SchemaVersion": "0.1.0",
            "Vendor": "Docker Inc.",
            "Version": "v5.6.1",
            "ShortDescription": "Docker Compose",
        }
    )
    plugin.write_text(f"#!/bin/sh\n[ \"$1\" = docker-cli-plugin-metadata ] && echo '{answer}'\n")
    plugin.chmod(0o755)
    assert asked(run_agent, engine).docker.compose_version == "5.6.1"
    plugin.write_text("#!/bin/sh\nexit 1\n")
    assert asked(run_agent, engine).docker.compose_version is None


def test_our_container_is_a_service_and_its_port_has_its_name(run_agent: Run, engine: Engine) -> None:
    engine.holds(RUNNING | {"Health": {"Status": "healthy", "Log": []}})
    facts = asked(run_agent, engine)
    (service,) = facts.services
    assert (service.cluster, service.name, service.serves, service.spec, service.runtime) == (
        "home",
        "qwen3-4b",
        ("qwen3-4b",),
        "abc",
        "docker",
    )
    assert (service.state, service.restarts, service.exit_code, service.memory_bytes) == (
        "running",
        2,
        None,
        4_000_000,
    )
    assert (service.container, service.project, service.pid) == (CONTAINER, "home-qwen3-4b-abc", 28863)
    assert service.directory == LABELS["com.docker.compose.project.working_dir"]
    assert service.labels == LABELS
    assert [(p.address, p.process) for p in facts.ports if p.port == 8101] == [
        ("10.0.0.9", "home-qwen3-4b-abc-1")
    ]


@pytest.mark.parametrize(
    ("state", "expected", "detail", "exit_code"),
    [
        (RUNNING, "running", None, None),
        (RUNNING | {"Health": {"Status": "starting", "Log": []}}, "starting", None, None),
        (
            RUNNING | {"Health": {"Status": "unhealthy", "Log": [{"Output": "curl: (7) refused\n"}]}},
            "unhealthy",
            "curl: (7) refused",
            None,
        ),
        (EXITED, "stopped", "exited, exit code 3", 3),
        (EXITED | {"OOMKilled": True, "ExitCode": 137}, "stopped", "exited, out of memory", 137),
        (
            EXITED | {"Status": "restarting", "Running": True, "Restarting": True},
            "unhealthy",
            "restarting after exit code 3",
            3,
        ),
        (EXITED | {"Status": "created", "ExitCode": 0}, "stopped", "created", 0),
    ],
)
def test_the_state_of_a_container(
    run_agent: Run,
    engine: Engine,
    state: dict[str, Any],
    expected: str,
    detail: str | None,
    exit_code: int | None,
) -> None:
    engine.holds(state)
    (service,) = asked(run_agent, engine).services
    assert (service.state, service.detail, service.exit_code) == (expected, detail, exit_code)


def test_gpu_memory_is_given_to_the_container_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent import processes, services

    monkeypatch.setattr(
        processes,
        "cgroup",
        lambda pid: f"0::/system.slice/docker-{CONTAINER}.scope" if pid == 7 else "0::/user.slice",
    )
    monkeypatch.setattr(processes, "ancestry", lambda pid: [pid, 8])
    ours: list[dict[str, Any]] = [
        {"name": "qwen3-4b", "container": CONTAINER, "pid": 1},
        {"name": "native", "container": None, "pid": 8},
    ]
    gpus = [
        {"processes": [{"pid": 7, "memory_bytes": 100, "service": None}]},
        {"processes": [{"pid": 9, "memory_bytes": 20, "service": None}]},
    ]
    services.attribute(ours[:1], gpus)
    assert [p["service"] for g in gpus for p in g["processes"]] == ["qwen3-4b", None]
    services.attribute(ours[1:], gpus[1:])
    assert gpus[1]["processes"][0]["service"] == "native"
    assert [s["gpu_memory_bytes"] for s in ours] == [100, 20]


def test_the_memory_of_a_container_is_read_from_its_cgroup() -> None:
    """This process stands for one: its cgroup's last name for the container's number."""
    from agent import processes

    line = next(
        ln
        for ln in Path("/proc/self/cgroup").read_text().splitlines()
        if ln.startswith("0::") or ":memory:" in ln
    )
    path = line.split(":", 2)[2]
    folder = processes.cgroup_folder("" if line.startswith("0::") else "memory", path)
    seen = folder is not None and any(
        Path(folder, name).exists() for name in ("memory.current", "memory.usage_in_bytes")
    )
    found = processes.memory_of_container(os.getpid(), path)
    assert (found is not None and found > 0) if seen else found is None
    assert (
        processes.memory_of_container(os.getpid(), CONTAINER) is None
    )  # the same number in another machine is another process


def test_a_user_outside_the_docker_group_is_told_in_dockers_words(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent import docker, httpget

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("DOCKER_HOST", f"unix://{engine.server_address!s}")
    if os.getuid() == 0:  # root may open any socket
        monkeypatch.setattr(httpget, "get_json", denied)
    else:
        os.chmod(str(engine.server_address), 0)
    found = docker.collect([])["docker"]
    assert found["reachable"] is False
    assert found["error"].startswith(
        "permission denied while trying to connect to the Docker daemon socket at unix://"
    )


def test_an_engine_that_is_down_is_told_in_dockers_words(run_agent: Run, socket_path: str) -> None:
    docker = run_agent(docker=socket_path)["docker"]
    assert docker["reachable"] is False
    assert (
        docker["error"]
        == f"Cannot connect to the Docker daemon at unix://{socket_path}. Is the docker daemon running?"
    )


def test_a_machine_without_docker_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent import docker

    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(docker, "find_program", lambda _: None)
    monkeypatch.setattr(docker, "socket_path", lambda: "/nonexistent")
    assert docker.collect([])["docker"] is None


def test_an_engine_that_answers_nonsense_is_an_error_of_docker(run_agent: Run, engine: Engine) -> None:
    del engine.answers["/containers/json?all=1"]
    docker = asked(run_agent, engine).docker
    assert "page not found" in docker.error
    engine.answers["/containers/json?all=1"] = {"not": "a list"}
    docker = asked(run_agent, engine).docker
    assert docker.reachable
    assert docker.error


def test_the_engine_of_the_chosen_context_is_the_one_that_is_asked(
    run_agent: Run, engine: Engine, home: Path
) -> None:
    name = "rootless"
    meta = home / ".docker/contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    meta.mkdir(parents=True)
    host = f"unix://{engine.server_address!s}"
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))
    (home / ".docker/config.json").write_text(json.dumps({"currentContext": name}))
    docker = parse_facts(json.dumps(run_agent(DOCKER_HOST=""))).docker
    assert docker is not None
    assert (docker.socket, docker.reachable) == (str(engine.server_address), True)
