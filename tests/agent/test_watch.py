"""The agent that looks again and again: a document a line, as long as somebody reads them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from agent import docker, facts, httpget
from homelab.facts import parse_facts
from tests.agent.test_agent_facts import NEW, name

Started = subprocess.Popen[bytes]
Start = Callable[..., Started]
TICK = 0.2


@pytest.fixture
def start(agent_folder: Path, home: Path) -> Iterator[Start]:
    begun: list[Started] = []

    def run(*arguments: str, python: str = sys.executable) -> Started:
        env = {"HOME": str(home), "PATH": "/usr/bin:/bin", "DOCKER_HOST": "unix:///nonexistent"}
        argv = [python, "-I", str(agent_folder), *arguments]
        begun.append(subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


def closed(process: Started) -> bytes:
    """What it said on standard error when nobody reads its documents any more."""
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait(10 * TICK) == 0
    return process.stderr.read()


def gone(pid: int) -> bool:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("python", [Path(sys.executable), *NEW], ids=lambda p: name(p) if p else "")
def test_a_document_a_line_until_nobody_reads_them(start: Start, python: Path) -> None:
    process = start("--watch", f"{TICK}", '{"headers": false}', python=str(python))
    assert process.stdout
    process.stdout.readline()
    begun = time.monotonic()
    seen = [parse_facts(process.stdout.readline()) for _ in range(3)]
    assert 2 * TICK < time.monotonic() - begun < 20 * TICK
    assert {f.hostname for f in seen} == {os.uname().nodename}
    assert [p for f in seen for p in f.problems] == []
    assert closed(process) == b""


def test_it_ends_also_while_a_part_hangs(start: Start, home: Path) -> None:
    folder = home / ".local/share/homelab/home/q/abc"
    folder.mkdir(parents=True)
    (folder / "service.json").write_text('{"labels": {}}')
    os.mkfifo(folder / "state.json")  # nobody writes there, and it is read to its end
    process = start("--watch", f"{TICK}")
    time.sleep(3 * TICK)
    assert process.poll() is None
    assert closed(process) == b""


def test_it_ends_with_who_started_it_where_the_output_goes_on(agent_folder: Path, tmp_path: Path) -> None:
    agent = shlex.join([sys.executable, "-I", str(agent_folder), "--watch", f"{TICK}"])
    (tmp_path / "out").touch()
    shell = ["sh", "-c", f"{agent} > {tmp_path}/out 2>&1 & echo $!; exec sleep 1000"]
    with subprocess.Popen(shell, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        try:
            pid = int(parent.stdout.readline())
            while b"\n" not in (tmp_path / "out").read_bytes():
                time.sleep(0.02)
        finally:
            parent.kill()
    assert gone(pid)
    assert b"Traceback" not in (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("words", [[], ["soon"], ["0"], ["nan"], ["-2"], ["1e9"]])
def test_seconds_are_a_number_that_can_be_waited_for(start: Start, words: list[str]) -> None:
    said = start("--watch", *words).communicate(timeout=10)
    assert said == (b"", b"--watch takes seconds, from 0.1 to 3600\n")


def test_what_hangs_is_not_asked_again_and_stays_a_problem() -> None:
    questions, goes_on, calls = facts.Questions(), threading.Event(), []

    def hang(problems: facts.Problems) -> str:
        calls.append(1)
        problems.append({"source": "gpus", "message": "slow"})
        goes_on.wait(10)
        return "late"

    late = {"source": "gpus", "message": "no answer in 0.05 s"}
    for _ in range(3):
        problems: facts.Problems = []
        assert questions.ask("gpus", hang, "none", 0.05).answer(problems) == "none"
        assert problems == [late, {"source": "gpus", "message": "slow"}]
    assert len(calls) == 1
    goes_on.set()
    questions.asked["gpus"].thread.join(5)
    assert questions.ask("gpus", hang, "none").answer([]) == "late"
    assert len(calls) == 2


def test_a_call_to_docker_that_hangs_is_made_once() -> None:
    goes_on, calls = threading.Event(), []

    def hang() -> str:
        calls.append(1)
        goes_on.wait(10)
        return "late"

    assert [docker.in_thread(hang).result(0.01) for _ in range(3)] == [None] * 3
    assert len(calls) == 1
    goes_on.set()
    assert docker.in_thread(hang).result(5) == "late"


def test_an_answer_that_trickles_has_no_more_time_than_another(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    script = (
        "import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen()\n"
        "print(flush=True)\nc, _ = s.accept()\nwhile True: c.send(b'x'); time.sleep(0.01)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as engine:
        assert engine.stdout
        engine.stdout.readline()
        begun = time.monotonic()
        with pytest.raises(OSError, match="timed out"):
            httpget.get(path, "/", 0.3)
        assert time.monotonic() - begun < 3
        engine.kill()
