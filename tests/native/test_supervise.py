"""templates/native/supervise.py, with real processes, under this Python and under 3.8 where there is one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pythons import MISSING, pythons

SUPERVISE = Path(__file__).resolve().parents[2] / "templates" / "native" / "supervise.py"
LINUX = sys.platform.startswith("linux")


def python38() -> str | None:
    named = [Path(folder, "python3.8") for folder in os.get_exec_path()]
    for path in [*pythons("3.8*"), *named]:
        if (
            path.exists()
            and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
        ):
            return str(path)
    return None


PYTHONS = {"current": sys.executable, "3.8": python38()}


def until(look: Callable[[], Any], seconds: float = 10) -> Any:
    end = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
    return seen


def living(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class House:
    """One service folder and the program on it."""

    def __init__(self, directory: Path, python: str) -> None:
        self.directory, self.python = directory, python
        directory.mkdir()

    def write(self, *argv: str, environment: str | None = None, **more: object) -> None:
        document: dict[str, object] = {
            "argv": list(argv),
            "labels": {"homelab.model": "m"},
            "address": "127.0.0.1",
            "port": 8080,
        } | more
        if environment is not None:
            secret = self.directory / "service.env"
            secret.touch(0o600)
            secret.write_text(environment, encoding="utf-8", newline="")
            document["environment_file"] = "service.env"
        (self.directory / "service.json").write_text(json.dumps(document), encoding="utf-8")

    def __call__(self, verb: str, *more: str, code: int = 0, settings: str = "") -> dict[str, Any]:
        program = [str(SUPERVISE)]
        if settings:
            first = f"import sys; sys.path.insert(0, {str(SUPERVISE.parent)!r}); import supervise"
            program = ["-B", "-c", f"{first}; {settings}; sys.exit(supervise.main())"]
        command = [self.python, *program, verb, str(self.directory), *more]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=40, check=False, stdin=subprocess.DEVNULL
        )
        assert (done.returncode, done.stderr) == (code, ""), done
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    def state(self) -> dict[str, Any]:
        answer = json.loads((self.directory / "state.json").read_text(encoding="utf-8"))
        assert isinstance(answer, dict)
        return answer

    def log(self) -> str:
        return (self.directory / "log").read_text(encoding="utf-8")

    def child_says(self, name: str) -> int:
        """A number that the service has written into its folder."""
        path = self.directory / name
        return int(until(lambda: path.exists() and path.read_text(encoding="utf-8").strip()))


@pytest.fixture(params=PYTHONS)
def house(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[House]:
    python = PYTHONS[request.param]
    if python is None:
        pytest.skip(MISSING)
    house = House(tmp_path / "ser vice", python)
    yield house
    house("stop", "--timeout", "0.2")


def test_starts_reports_and_stops(house: House) -> None:
    house.write(
        "sh",
        "-c",
        'echo "got $SECRET" "$PWD"; exec sleep 100',
        environment='SECRET=a=b "$x" \\ \u2028 #é\r\n# no\n\nB=\n',
    )
    assert house("status") == {
        "status": "stopped",
        "pid": None,
        "restarts": 0,
        "exit_code": None,
        "supervised": False,
        "listens": False,
        "started_at": None,
    }
    began = time.time()
    started = house("start")
    assert (started["status"], started["restarts"], started["exit_code"], started["supervised"]) == (
        "running",
        0,
        None,
        True,
    )
    assert abs(started["started_at"] - began) < 10
    until(lambda: "got" in house.log())
    assert (
        house.directory / "log"
    ).read_bytes().decode() == f'got a=b "$x" \\ \u2028 #é\r {house.directory}\n'
    state = house.state()
    assert {"supervisor_pid", "supervisor_start_ticks", "pid", "pid_start_ticks"} < set(state)
    assert {"started_at", "restarts", "exit_code", "status"} < set(state)
    assert house("status")["pid"] == state["pid"] == started["pid"]
    assert os.getsid(state["supervisor_pid"]) not in (
        os.getsid(0),
        state["supervisor_pid"],
    )  # no terminal can come back to it
    assert os.getpgid(state["pid"]) == state["pid"]
    for name in ("log", "state.json", "lock"):
        assert (house.directory / name).stat().st_mode & 0o077 == 0
    stopped = house("stop")
    assert (stopped["status"], stopped["pid"], stopped["exit_code"]) == ("stopped", None, -15)
    assert not living(state["pid"]) and not living(state["supervisor_pid"])
    assert house("stop")["status"] == "stopped"


def test_gives_the_service_a_small_environment(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere")
    monkeypatch.setenv("LC_TIME", "C")
    house.write("sh", "-c", "env; echo done; exec sleep 100", environment="PATH=/bin:/usr/bin\n")
    house("start")
    until(lambda: "done" in house.log())
    names = {line.partition("=")[0] for line in house.log().splitlines()}
    assert {"HOME", "PATH", "LC_TIME"} <= names and not names & {"HTTPS_PROXY", "SSH_AUTH_SOCK"}
    assert "PATH=/bin:/usr/bin\n" in house.log()


def test_expands_the_home_at_the_start_of_an_argument(house: House) -> None:
    house.write(
        "sh", "-c", 'echo "[$1] [$2]"; exec sleep 100', "sh", "~/model.gguf", "x~/y", working_directory="/"
    )
    house("start")
    assert until(house.log) == f"[{Path.home()}/model.gguf] [x~/y]\n"


def test_starting_twice_is_starting_once(house: House) -> None:
    house.write("sleep", "100")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: house("start"), range(4)))
    assert {answer["pid"] for answer in answers} == {house.state()["pid"]}
    assert all(answer["status"] == "running" for answer in answers)


def test_restarts_and_slows_down(house: House) -> None:
    house.write("sh", "-c", "echo begin; exit 3")
    house("start", settings="supervise.BACKOFF = (0.05, 0.3, 60.0)")
    until(lambda: house("status")["restarts"] == 2 and house("status")["status"] == "backing-off")
    answer = house("status")
    assert (answer["exit_code"], answer["pid"], answer["supervised"]) == (3, None, True)
    assert house.log().count("begin\n") == 3
    assert "next start in 0.3 s" in house.log() and "next start in 60 s" in house.log()
    assert house("start")["status"] == "backing-off"  # a no-op too
    assert house("stop")["status"] == "stopped"


def test_gives_up_after_five_quick_exits(house: House) -> None:
    house.write("false")
    house("start", settings="supervise.BACKOFF = (0.01,)")
    until(lambda: house("status")["status"] == "failed")
    answer = house("status")
    assert (answer["restarts"], answer["exit_code"], answer["pid"]) == (4, 1, None)
    until(lambda: not house("status")["supervised"])
    assert "giving up" in house.log()
    house.write("sleep", "100")
    assert (house("start")["status"], house("status")["restarts"]) == ("running", 0)


def test_a_long_run_is_forgiven(house: House) -> None:
    house.write("sh", "-c", "sleep 0.2; exit 1")
    house(
        "start",
        settings="supervise.BACKOFF = (0.01, 60.0); supervise.HEALTHY_AFTER = 0.1; "
        "supervise.QUICK_EXIT = 0.1",
    )
    until(lambda: house("status")["restarts"] >= 6)
    assert house("status")["supervised"]


def test_a_program_that_is_missing_is_said_at_once(house: House) -> None:
    house.write("/no/such/engine", "--flag")
    assert "cannot start /no/such/engine" in house("start", code=1)["error"]["message"]
    answer = house("status")
    assert (answer["status"], answer["supervised"]) == ("failed", False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot read"),
        ('{"argv": "x"}', "list of strings"),
        ('{"argv": ["x"], "working_directory": "/no"}', "not a folder"),
    ],
)
def test_refuses_what_it_cannot_read(house: House, text: str, says: str) -> None:
    (house.directory / "service.json").write_text(text, encoding="utf-8")
    assert says in house("start", code=1)["error"]["message"]


def test_a_bad_line_of_the_environment_is_named_but_not_shown(house: House) -> None:
    house.write("sleep", "100", environment="A=1\nhunter2\n")
    message = house("start", code=1)["error"]["message"]
    assert "service.env:2" in message and "hunter2" not in message


def test_kills_what_ignores_the_request(house: House) -> None:
    house.write("sh", "-c", "trap '' TERM; echo $$ > me; while :; do sleep 0.1; done")
    house("start")
    pid = house.child_says("me")
    began = time.monotonic()
    assert house("stop", "--timeout", "0.3")["exit_code"] == -9
    assert 0.3 <= time.monotonic() - began < 5 and not living(pid)


def test_a_slow_but_willing_service_is_waited_for(house: House) -> None:
    house.write("sh", "-c", "trap 'sleep 0.5; exit 7' TERM; echo $$ > me; while :; do sleep 0.05; done")
    house("start")
    house.child_says("me")
    assert house("stop")["exit_code"] == 7


def test_leaves_no_grandchild_behind(house: House) -> None:
    house.write("sh", "-c", "sh -c 'trap \"\" TERM; echo $$ > inner; while :; do sleep 0.1; done' & wait")
    house("start")
    inner = house.child_says("inner")
    house("stop", "--timeout", "1")
    until(lambda: not living(inner), 2)


@pytest.mark.skipif(not LINUX, reason="macOS has no parent-death signal")
def test_the_engine_dies_with_its_supervisor_and_stop_clears_up(house: House) -> None:
    house.write("sh", "-c", "setsid sh -c 'echo $$ > inner; exec sleep 100' & echo $$ > me; exec sleep 100")
    house("start")
    pid, inner = house.child_says("me"), house.child_says("inner")
    os.kill(house.state()["supervisor_pid"], signal.SIGKILL)
    until(lambda: not living(pid), 2)
    answer = house("status")
    assert (answer["status"], answer["pid"], answer["supervised"]) == ("stopped", None, False)
    assert house("stop")["status"] == "stopped"
    assert not living(inner)


@pytest.mark.skipif(not LINUX, reason="macOS has no parent-death signal")
def test_starts_again_after_its_supervisor_was_killed(house: House) -> None:
    house.write("sh", "-c", "setsid sh -c 'echo $$ >> inner; exec sleep 100' & exec sleep 100")
    house("start")
    inner, old = house.child_says("inner"), house.state()
    os.kill(old["supervisor_pid"], signal.SIGKILL)
    new = house("start")
    assert new["status"] == "running" and new["pid"] != old["pid"] and not living(inner)


def test_a_killed_engine_comes_back(house: House) -> None:
    house.write("sleep", "100")
    first = house("start", settings="supervise.BACKOFF = (0.05,)")["pid"]
    os.kill(first, signal.SIGKILL)
    answer = until(
        lambda: (seen := house("status"))["restarts"] == 1 and seen["status"] == "running" and seen
    )
    assert answer["pid"] != first and answer["exit_code"] == -9


def test_a_recycled_pid_is_nobody_of_ours(house: House) -> None:
    with subprocess.Popen(["sleep", "100"], start_new_session=True) as stranger:
        state = {
            "supervisor_pid": stranger.pid,
            "supervisor_start_ticks": 1,
            "pid": stranger.pid,
            "pid_start_ticks": 1,
        }
        (house.directory / "state.json").write_text(
            json.dumps(state | {"status": "running"}), encoding="utf-8"
        )
        assert house("status")["status"] == "stopped"
        assert house("stop")["status"] == "stopped"
        assert stranger.poll() is None
        stranger.kill()


def test_turns_the_log_over(house: House) -> None:
    house.write("sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.001; done")
    house("start", settings="supervise.LOG_BYTES = 2000; supervise.LOG_CHECK = 0.1")
    old = house.directory / "log.1"
    until(old.exists)
    first = old.read_text(encoding="utf-8")
    until(lambda: old.exists() and old.read_text(encoding="utf-8") != first)
    assert (house.directory / "log").stat().st_size < 100_000
    assert {path.name for path in house.directory.glob("log*")} <= {"log", "log.1", "log.new"}


def test_holds_none_of_the_callers_files_and_ignores_a_hangup(house: House) -> None:
    house.write("sleep", "100")
    with socket.socket() as kept:
        kept.set_inheritable(True)
        command = [house.python, str(SUPERVISE), "start", str(house.directory)]
        # capture_output would wait for ever if the supervisor kept these pipes open
        done = subprocess.run(command, capture_output=True, timeout=10, check=True, close_fds=False)
        assert done.stderr == b""
        number = kept.fileno()
    state = house.state()
    if LINUX:
        for pid in (state["supervisor_pid"], state["pid"]):
            links = {entry.name: os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
            assert not [link for link in links.values() if link.startswith("socket:")], (number, links)
    os.kill(state["supervisor_pid"], signal.SIGHUP)
    time.sleep(0.1)
    assert house("status")["status"] == "running"


@pytest.mark.native
def test_the_real_pace(house: House) -> None:
    """1 + 2 + 4 + 8 s between five starts, with the program's own numbers."""
    house.write("false")
    began = time.monotonic()
    house("start")
    until(lambda: house("status")["status"] == "failed", 30)
    assert 15 <= time.monotonic() - began < 25


@pytest.mark.skipif(not LINUX, reason="macOS takes such a limit and does not enforce it")
def test_a_service_gets_no_more_memory_than_it_may_have(house: House) -> None:
    take = "import sys\ntry: bytearray(200 << 20); print('more')\n"
    take += "except MemoryError: print('no more', flush=True)"
    house.write(sys.executable, "-c", f"{take}\nimport time; time.sleep(60)", memory_limit_bytes=128 << 20)
    house("start")
    until(lambda: "more" in house.log())
    assert "no more" in house.log()


@pytest.mark.parametrize("limit", [0, -1, "1g", True])
def test_a_memory_limit_that_is_none_is_refused(house: House, limit: object) -> None:
    house.write("sleep", "60", memory_limit_bytes=limit)
    assert "memory_limit_bytes" in house("start", code=1)["error"]["message"]


def test_a_port_that_another_process_holds_is_said_and_nothing_is_started(house: House) -> None:
    """LiteLLM would listen on another one and say nothing of it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        house.write(sys.executable, "-c", "open('started', 'w')", port=port)
        said = house("start", code=1)["error"]["message"]
        assert f"port {port} of 127.0.0.1 is in use by another process" in said
        assert not (house.directory / "started").exists()
        assert house("status")["status"] == "failed"
    house.write(sys.executable, "-c", "import time; time.sleep(60)", port=port)
    assert house("start")["status"] == "running"
    house("stop")


def test_a_port_that_is_taken_between_two_runs_is_waited_for(house: House) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    house.write(sys.executable, "-c", "import time; time.sleep(60)", port=port)
    pid = house("start")["pid"]
    with socket.create_server(("127.0.0.1", port)):
        os.kill(pid, signal.SIGKILL)
        until(lambda: "is in use" in (house.directory / "log").read_text())
        assert house("status")["status"] == "backing-off"
    until(lambda: house("status")["status"] == "running", 15)
    house("stop")
