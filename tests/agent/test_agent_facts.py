from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent import host, netlink, ports, processes
from homelab.facts import parse_facts
from tests.agent.conftest import LAB, ROOT
from tests.pythons import MISSING, pythons

Run = Callable[..., dict[str, Any]]
NO_PYTHON = [pytest.param(Path("/no/such/python"), marks=pytest.mark.skip(MISSING))]
NEW = [p for p in pythons() if not p.parts[-3].startswith(("2.", "3.6", "3.7"))] or NO_PYTHON
OLD = [p for p in pythons() if p.parts[-3].startswith(("2.", "3.6", "3.7"))] or NO_PYTHON


def name(python: Path) -> str:
    return python.parts[-3]


@pytest.mark.parametrize("python", NEW, ids=name)
def test_the_bundle_runs_on_every_python_from_3_8_on(run_agent: Run, python: Path) -> None:
    facts = parse_facts(
        json.dumps(run_agent({"cluster": "home", "sources": ["/no/such.gguf"]}, python=str(python)))
    )
    assert facts.schema_version == 1
    assert facts.problems == ()
    assert facts.python == name(python)
    assert facts.weights[0].error == "no such file on this node"


@pytest.mark.parametrize("python", OLD, ids=name)
def test_an_older_python_is_told_so(agent_folder: Path, python: Path) -> None:
    done = subprocess.run([str(python), str(agent_folder), "{}"], capture_output=True, text=True, check=False)
    assert done.returncode == 98
    assert done.stdout == ""
    assert done.stderr == "homelab agent needs Python 3.8 or newer, this node has {}.{}\n".format(
        *name(python).split(".")
    )


def test_memory_processors_and_names_agree_with_psutil(run_agent: Run, home: Path) -> None:
    facts = parse_facts(json.dumps(run_agent(SSH_CONNECTION="10.0.0.2 50000 10.0.0.9 22")))
    memory = psutil.virtual_memory()
    assert facts.memory_total_bytes == memory.total
    assert abs(facts.memory_available_bytes - memory.available) < 1 << 29
    assert facts.cpu.threads == psutil.cpu_count()
    assert facts.cpu.cores == psutil.cpu_count(logical=False)
    assert (facts.hostname, facts.arch, facts.home) == (os.uname().nodename, os.uname().machine, str(home))
    assert facts.user == psutil.Process().username()
    assert facts.server_address == "10.0.0.9"
    assert {d.purpose: d.path for d in facts.disks} == {
        "models": str(home),
        "homelab": str(home),
        "docker": "/var/lib/docker",
    } or facts.docker
    for disk in facts.disks:
        usage = psutil.disk_usage(disk.path)
        assert disk.total_bytes > 0
        assert abs(disk.free_bytes - usage.free) < 1 << 30
    shown = {i.name for i in facts.interfaces}
    assert shown <= set(psutil.net_if_addrs()) - {"lo", "docker0"}


def test_a_listening_port_is_seen_with_its_process(run_agent: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = [p for p in run_agent()["ports"] if p["port"] == port]
    me = {"process": psutil.Process().name(), "pid": os.getpid(), "uid": os.getuid()}
    assert found == [{"port": port, "address": "127.0.0.1", **me}]


def test_a_port_on_ipv6_is_seen_by_the_kernels_list_and_by_proc() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        inode = os.fstat(server.fileno()).st_ino
        for listeners in (netlink.listeners, ports.listeners):
            assert [found for found in listeners() if found[0] == port] == [(port, "::1", inode, os.getuid())]


def test_ports_are_those_of_psutil() -> None:
    """Others may open and close ports meanwhile: what psutil sees before and after must be there, and nothing
    that it never sees."""
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("::", 0), family=socket.AF_INET6):
        before, found, after = (
            {(p["port"], p["address"], p["process"]) for p in ask()}
            for ask in (by_psutil, ports.by_kernel, by_psutil)
        )
    assert before & after <= found <= before | after
    assert len(found) >= 2


def by_psutil() -> list[dict[str, Any]]:
    return ports.by_psutil([])


def test_ports_are_known_where_the_kernel_has_no_list_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> list[tuple[int, str, int]]:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(netlink, "listeners", refuses)
    test_ports_are_those_of_psutil()


def test_a_long_process_name_is_whole(tmp_path: Path) -> None:
    program = tmp_path / "a-program-with-a-long-name"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "30"]) as process:
        while psutil.Process(process.pid).name() != program.name:
            time.sleep(0.01)
        assert processes.name(process.pid) == program.name
        process.kill()


def test_interfaces_are_those_of_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[dict[str, str]] = []
    monkeypatch.setattr(
        host, "is_virtual", lambda name: name.startswith(("veth", "br-"))
    )  # containers of other tests come and go
    found = host.interfaces(problems)
    monkeypatch.setattr(host, "LINUX", False)
    assert found == host.interfaces(problems)
    assert "127.0.0.1" in next(i["addresses"] for i in found if i["name"] == "lo")
    assert problems == []


@pytest.mark.parametrize(
    "name", ["lo", "lo0", "docker0", "docker_gwbridge", "br-0123456789ab", "veth12ab", "virbr0", "cni0"]
)
def test_an_interface_inside_the_machine_is_left_out(name: str) -> None:
    assert host.is_virtual(name)


@pytest.mark.parametrize(
    "name", ["eth0", "wlp2s0", "br-lan", "br-office-floor", "br0", "docker", "lan", "tailscale0"]
)
def test_a_network_interface_is_kept(name: str) -> None:
    assert not host.is_virtual(name)


def test_linux_is_read_without_the_imports_that_cost_most(
    agent_folder: Path, home: Path, fake_nvml: Path
) -> None:
    """Each costs as much as everything that the agent reads; one line anywhere brings it back."""
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin", "DOCKER_HOST": f"unix://{home}/none.sock"}
    env |= {
        "LD_LIBRARY_PATH": str(fake_nvml),
        "FAKE_NVML": str(LAB / "gpus" / "rtx4090"),
        "FAKE_NVML_HELD": str(home),
    }
    argv = [sys.executable, "-I", "-S", "-X", "importtime", str(agent_folder / "__main__.py"), "{}"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert parse_facts(done.stdout).gpus
    assert {"pynvml", "agent.netlink"} <= imported
    assert not imported & {
        "psutil",
        "socket",
        "subprocess",
        "importlib.util",
        "ctypes.util",
        "datetime",
        "agent.gguf",
    }


def test_without_psutil_nothing_is_missing(agent_folder: Path, tmp_path: Path) -> None:
    """As on a machine for which psutil has no wheel."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for p in agent_folder.iterdir():
        if p.name not in ("psutil", "__pycache__"):
            (folder / p.name).symlink_to(p)
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(folder), "{}"],
        capture_output=True,
        check=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    facts = parse_facts(done.stdout)
    assert facts.memory_total_bytes == psutil.virtual_memory().total
    assert {i.name for i in facts.interfaces} == {i["name"] for i in host.interfaces([])}
    assert facts.problems == ()


def test_a_request_that_is_no_json_is_a_problem(agent_folder: Path, home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", str(agent_folder), "{no"],
        capture_output=True,
        check=True,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )
    assert parse_facts(done.stdout).problems[0].message.startswith("the request cannot be read")


def test_a_part_that_raises_or_hangs_is_a_problem() -> None:
    from agent.facts import Question

    def broken(problems: list[dict[str, str]]) -> list[str]:
        raise RuntimeError("odd hardware")

    problems: list[dict[str, str]] = []
    assert Question("gpus", broken, []).answer(problems) == []
    started = time.perf_counter()
    assert Question("disks", lambda _: time.sleep(30), [], deadline_s=0.1).answer(problems) == []
    assert time.perf_counter() - started < 5
    assert problems == [
        {"source": "gpus", "message": "RuntimeError: odd hardware"},
        {"source": "disks", "message": "no answer in 0.1 s"},
    ]


def test_the_agent_imports_the_standard_library_itself_and_what_it_carries() -> None:
    allowed = set(sys.stdlib_module_names) | {"agent", "psutil", "pynvml", "__future__"}
    for path in (ROOT / "agent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            assert {n.split(".")[0] for n in names} <= allowed, path


def test_no_module_of_the_agent_hides_one_of_pythons() -> None:
    """Its folder is the first on the path where it runs."""
    assert not {p.stem for p in (ROOT / "agent").iterdir() if p.suffix == ".py"} & (
        set(sys.stdlib_module_names) - {"__main__", "__init__"}
    )


def test_a_written_name_is_looked_up_on_the_node_and_an_unknown_one_is_empty(run_agent: Run) -> None:
    document = run_agent({"resolve": ["localhost", "no-such-name.invalid", "a" * 70 + ".lan"]})
    assert "127.0.0.1" in document["resolved"]["localhost"]
    assert document["resolved"]["no-such-name.invalid"] == []
    assert document["resolved"]["a" * 70 + ".lan"] == []
    assert run_agent()["resolved"] == {}


@pytest.mark.skipif(not os.path.exists("/proc/net/route"), reason="no /proc/net/route here")
def test_the_interface_of_the_default_route_is_marked(run_agent: Run) -> None:
    shown = subprocess.run(
        ["ip", "-4", "route", "show", "default"], capture_output=True, text=True, check=True
    )
    named = [line.split()[line.split().index("dev") + 1] for line in shown.stdout.splitlines()]
    marked = [i["name"] for i in run_agent()["interfaces"] if i["default_route"]]
    assert marked == named[:1]


def test_a_mac_without_psutil_says_what_could_not_be_read(agent_folder: Path, home: Path) -> None:
    """Without the package index the bundle comes without it. The rest is told as ever."""
    as_mac = (
        "import os, sys; sys.platform = 'darwin'; sys.path.insert(0, sys.argv[1])\n"
        "sys.argv[0] = os.path.join(sys.argv.pop(1), '__main__.py'); __file__ = sys.argv[0]\n"
        "exec(compile(open(__file__).read().replace('os._exit', 'sys.exit'), __file__, 'exec'))"
    )
    service = home / ".local/share/homelab/home/qwen/0123"
    service.mkdir(parents=True)
    labels = {"homelab.cluster": "home", "homelab.service": "qwen", "homelab.spec": "0123"}
    document = {"argv": ["sleep"], "port": 1, "address": "127.0.0.1", "labels": labels}
    (service / "service.json").write_text(json.dumps(document))
    (service / "state.json").write_text(json.dumps({"pid": os.getpid(), "supervisor_pid": os.getpid()}))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", as_mac, agent_folder, '{"cluster": "home"}'],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "DOCKER_HOST": "unix:///nonexistent"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    answer = json.loads(done.stdout)
    said = "\n".join(p["message"] for p in answer["problems"] if "psutil" in p["message"])
    for lost in ("memory is not known", "ports in use are not known", "network addresses are not known"):
        assert lost in said
    assert said.count("pip install psutil") == len(said.splitlines()) == 3
    assert answer["unlisted"]["native"] == []
    assert [(s["name"], s["memory_bytes"]) for s in answer["services"]] == [("qwen", None)]
