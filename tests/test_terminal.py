"""What others say on a real terminal, and streams and folders that cannot be written: through the command."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from homelab import terminal, ui
from homelab.ask import Answer
from homelab.deploy.events import Event
from homelab.errors import DeployError
from homelab.facts import Problem
from homelab.ui.cells import Column, Rows
from homelab.ui.progress import Progress, answers
from tests.e2e.terminal import at_terminal
from tests.machines import household, survey, workstation

ROOT = Path(__file__).parent.parent
# A title, a colour, a line that is gone back over, C1's CSI, an override of the reading direction.
EVIL = "a\x1b]0;title\x07b\x1b[31mc\rd\x9b2Je\u202ef\x7f"
STEERING = "\x1b\x07\r\x9b\u202e\x7f"
ONE_MACHINE = "gateway: {node: a, port: 4999}\nnodes: {a: {host: localhost, runtime: native}}\n"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def env(home: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200"} | more


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with an inventory of this machine alone, and an empty home."""
    (tmp_path / "home").mkdir()
    (tmp_path / "inventory.yml").write_text(ONE_MACHINE)
    return tmp_path


@pytest.fixture
def sh(house: Path) -> Run:
    """A line for bash with `homelab` in it, never with a traceback."""

    def run(line: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = shlex.join([sys.executable, "-m", "homelab"])
        done = subprocess.run(
            ["bash", "-c", f'homelab() {{ {command} "$@"; }}; set -o pipefail; {line}'],
            capture_output=True,
            text=True,
            cwd=house,
            env=env(house / "home", PYTHONPATH=str(ROOT)) | more,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    return run


def steers(text: str) -> bool:
    return any(c in text for c in STEERING)


# what others say


def test_nothing_that_steers_a_terminal_is_left_and_the_rest_is() -> None:
    assert terminal.harmless(EVIL) == "a]0;titleb[31mcd2Jef"
    assert terminal.harmless("× – 漢字 👩‍💻\n\tplain [bold]") == "× – 漢字 👩‍💻\n\tplain [bold]"


def test_a_log_keeps_its_colours_only_if_asked_and_nothing_else() -> None:
    line = "\x1b[32mINFO\x1b[0m ready\x1b[2J\x1b]0;t\x07\r"
    assert terminal.log_line(line, colours=False) == "INFO ready[2J]0;t"
    assert terminal.log_line(line, colours=True) == "\x1b[32mINFO\x1b[0m ready[2J]0;t\x1b[0m"
    assert terminal.log_line("10%\r20%", colours=True) == "10% 20%"


def test_events_errors_and_answers_are_shown_as_they_are_and_steer_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evil = f"[bold]x[/bold] :fire: [/red] {EVIL}"
    Progress()(Event(node="n", service="s", step="fetch", text=evil))
    ui.error(DeployError(evil, cause=evil, hint=evil))
    answer = Answer(model=evil, text=evil, seconds=1.0, first_token_seconds=0.5, served_by=evil)
    ui.show(answers([(evil, answer)], {}, 400))
    ui.error(DeployError(evil))
    ui.say(evil)
    ui.write(evil)
    rows = Rows([Column(head="A")])
    rows.add(evil)
    ui.show(rows.lines(400))
    out, err = capsys.readouterr()
    assert not steers(out + err)
    assert out.count("[bold]x[/bold] :fire: [/red] a]0;titleb[31mcd2Jef") == 4
    # A cause is shown line by line, and `\r` ends one.
    assert err.count("[bold]x[/bold] :fire: [/red] a]0;titleb[31mcd2Jef") == 5
    assert "[bold]x[/bold] :fire: [/red] a]0;titleb[31mc\n  d2Jef\n" in err


def test_a_node_that_says_evil_things_is_planned_and_discovered_on_a_terminal_without_harm(
    house: Path,
) -> None:
    machine = workstation(problems=(Problem(source=EVIL, message="[red]x[/nothing]"),))
    gpu = machine.gpus[0].model_copy(update={"name": f"[bold]{EVIL}"})
    facts = survey(household().models, a=machine.model_copy(update={"gpus": (gpu,)}))
    (house / "facts.json").write_text(facts.model_dump_json())
    (house / "inventory.yml").write_text(
        "gateway: {node: a}\nnodes: {a: {host: 10.0.0.1}}\n"
        "models: {m: {engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: 4096}}\n"
    )
    command = [sys.executable, "-m", "homelab", "plan", "--facts", "facts.json"]
    code, shown = at_terminal(command, [], env=env(house / "home", PYTHONPATH=str(ROOT)), folder=house)
    assert code == 0, shown
    assert "GiB  [bold]a]0;titleb[31mc d2Jef" in shown
    assert not steers(shown)


@pytest.fixture
def answering() -> Iterator[Callable[..., None]]:
    """Puts a gateway that runs without Docker on this machine, as its files and its port show it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    def put(home: Path, log: str = "") -> None:
        folder = home / ".local/share/homelab/home/gateway/0123"
        folder.mkdir(parents=True)
        labels = {
            "homelab.cluster": "home",
            "homelab.service": "gateway",
            "homelab.role": "gateway",
            "homelab.spec": "0123",
            "homelab.address": "127.0.0.1",
            "homelab.port": str(server.server_port),
            "homelab.health": "/health/liveliness",
        }
        (folder / "service.json").write_text(json.dumps({"labels": labels}))
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        alive = {"pid": os.getpid(), "pid_start_ticks": int(ticks), "status": "running"}
        (folder / "state.json").write_text(json.dumps(alive))
        (folder / "log").write_text(log)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield put
        server.shutdown()


def test_status_is_1_without_a_healthy_gateway_and_0_with_one(
    house: Path, sh: Run, answering: Callable[..., None]
) -> None:
    assert sh("homelab status").returncode == 1
    answering(house / "home", log=f"\x1b[32mINFO\x1b[0m {EVIL}{'x' * 2000}\n" * 100)  # more than a pipe holds
    done = sh("homelab status")
    assert (done.returncode, "healthy" in done.stdout) == (0, True), done.stdout + done.stderr
    (house / "inventory.yml").write_text(
        ONE_MACHINE + "models: {m: {engine: llamacpp, source: /m.gguf, context: 2048}}\n"
    )
    assert sh("homelab status").returncode == 1
    plain, coloured = sh("homelab logs gateway"), sh("homelab logs gateway --color")
    assert "INFO" in plain.stdout and not steers(plain.stdout)
    assert coloured.stdout.count("\x1b[32mINFO\x1b[0m") == 100 and "\x1b]" not in coloured.stdout
    followed = sh(
        "timeout 60 bash -c 'exec \"$0\" -m homelab logs -f gateway' $PY | head -n 1", PY=sys.executable
    )
    assert (followed.returncode, followed.stdout[:4], followed.stderr) == (0, "INFO", "")


def test_what_lies_on_a_silent_node_marked_away_is_not_missed(
    house: Path, sh: Run, answering: Callable[..., None]
) -> None:
    (house / "inventory.yml").write_text(
        "gateway: {node: a, port: 4999}\nnodes: {a: {host: localhost, runtime: native, address: 127.0.0.1}, "
        "far: {host: 127.0.0.2, port: 1, away: true}}\n"
        "models: {m: {engine: llamacpp, source: /m.gguf, context: 2048, node: far}}\n"
    )
    answering(house / "home")
    done = sh("homelab status")
    assert done.returncode == 0, done.stdout + done.stderr


# questions


@pytest.mark.parametrize("typed", ["\x04", "y\x04\x04", "n\n"])
def test_the_end_of_the_input_is_a_no(house: Path, typed: str) -> None:
    code, shown = asked(house, typed)
    assert (code, "Cancelled. Nothing was changed" in shown) == (1, True), shown
    assert not (house / "home/.local/state/homelab/home/secrets.json").exists()


def asked(house: Path, typed: str) -> tuple[int, str]:
    """`deploy` at a terminal where exactly this is typed at the question."""
    script = (
        "import os, pty, sys\n"
        "shown = b''\n"
        "pid, master = pty.fork()\n"
        "if pid == 0: os.execv(sys.executable, [sys.executable, '-m', 'homelab', 'deploy'])\n"
        "asked = False\n"
        "while True:\n"
        "    try: data = os.read(master, 65536)\n"
        "    except OSError: break\n"
        "    shown += data\n"
        "    if b'[Y/n] ' in shown and not asked:\n"
        "        asked = True\n"
        "        os.write(master, sys.argv[1].encode())\n"
        "sys.stdout.buffer.write(shown)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, typed],
        capture_output=True,
        text=True,
        cwd=house,
        env=env(house / "home", PYTHONPATH=str(ROOT)),
        timeout=120,
    )
    return done.returncode, done.stdout


# streams


@pytest.mark.parametrize("verb", ["discover", "discover --json", "plan", "--version", "init -i new.yml"])
def test_a_full_device_under_standard_output_is_an_error(sh: Run, verb: str) -> None:
    done = sh(f"homelab {verb} > /dev/full")
    assert done.returncode == 1, done.stderr
    assert "Standard output cannot be written" in done.stderr and "No space left" in done.stderr


@pytest.mark.parametrize(
    "line", ["discover | true", "discover --json | head -c 1", "--help | true", "plan | head -n 1"]
)
def test_a_reader_that_has_gone_is_no_error(sh: Run, line: str) -> None:
    done = sh(f"homelab {line}")
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_streams_and_a_full_standard_error_are_no_error(sh: Run) -> None:
    assert sh("homelab discover >&-").returncode == 0
    assert sh("homelab deploy <&- 2>/dev/full").returncode == 1
    assert sh("homelab discover 2>&-").returncode == 0


# folders


def test_what_cannot_be_written_is_named(house: Path, sh: Run) -> None:
    (house / "file").write_text("")
    done = sh("homelab render -o file")
    assert (done.returncode, "Cannot write `file/a/" in done.stderr) == (1, True), done.stderr
    done = sh("homelab discover --save file/x")
    assert (done.returncode, "Cannot write `file/x`" in done.stderr) == (1, True), done.stderr


def test_without_a_home_there_is_an_error_of_ours(sh: Run) -> None:
    for line in ("plan", "deploy --yes"):
        done = sh(f"homelab {line}", HOME="relative")
        assert (done.returncode, "export HOME=" in done.stderr) == (1, True), done.stderr
    done = sh("unset HOME; homelab plan --facts nowhere")
    assert done.returncode == 2


def test_a_cache_elsewhere_is_used(house: Path, sh: Run) -> None:
    done = sh("homelab discover", XDG_CACHE_HOME=str(house / "cache"))
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="becomes an ordinary user")
def test_an_ordinary_user_goes_on_where_nothing_can_be_saved_and_deploys_nothing() -> None:
    folder = Path("/var/tmp") / f"homelab-test-{os.getpid()}"
    home, theirs = folder / "home", folder / "state"
    home.mkdir(parents=True)
    theirs.mkdir(mode=0o755)
    (folder / "inventory.yml").write_text(ONE_MACHINE)
    os.chown(home, 65534, 65534)
    os.chown(folder, 65534, 65534)
    ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*ordinary, sys.executable, "-m", "homelab", *arguments],
            capture_output=True,
            text=True,
            cwd=folder,
            env=env(home, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1") | more,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    try:
        if run("--version").returncode:
            pytest.skip("an ordinary user cannot read this Python or this checkout")
        for verb, code in (("discover", 0), ("plan", 0), ("status", 1)):
            done = run(verb, XDG_STATE_HOME=str(theirs))
            assert (done.returncode, "is not remembered" in done.stderr) == (code, True), done.stderr
        done = run("deploy", "--yes", XDG_STATE_HOME=str(theirs))
        assert (done.returncode, "Cannot lock" in done.stderr) == (1, True), done.stderr
        assert "Permission denied" in done.stderr
        done = run("init", "-i", str(theirs / "x.yml"))
        assert (done.returncode, "Cannot write" in done.stderr) == (1, True), done.stderr
        home.chmod(0o555)
        done = run("discover")
        assert (done.returncode, "is not remembered" in done.stderr) == (0, True), done.stderr
        shutil.rmtree(home / ".cache")
        done = run("discover")
        assert (done.returncode, "cannot be copied" in done.stderr) == (4, True), done.stderr
        bug = "from homelab import crash; print(crash.write(ValueError('x')))"
        said = subprocess.run(
            [*ordinary, sys.executable, "-c", bug],
            capture_output=True, text=True, cwd=folder, env=env(home, PYTHONPATH=str(ROOT)),
        )  # fmt: skip
        assert "homelab-crash-" in said.stdout, said.stderr
        Path(said.stdout.split()[-1]).unlink()
    finally:
        shutil.rmtree(folder)
