"""One machine, no Docker, real llama.cpp and real LiteLLM as processes: the quickstart's own way, from
nothing to nothing."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.cells import cell_len

from tests.e2e.terminal import at_terminal

pytestmark = pytest.mark.native
ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "homelab"
Run = Callable[..., subprocess.CompletedProcess[str]]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def cache_in(home: Path) -> None:
    """What is installed in the user's cache already, in a folder of its own: what a deploy takes away there
    as left over is taken from no other test."""
    native = home / ".cache/homelab/native"
    native.mkdir(parents=True)
    (CACHE / "native").mkdir(parents=True, exist_ok=True)
    for folder, into in ((CACHE, native.parent), (CACHE / "native", native)):
        for entry in folder.iterdir():
            if entry.name != "native" and entry.suffix != ".lock":
                known = entry.name if not entry.is_symlink() else os.readlink(entry)
                (into / entry.name).symlink_to(entry if known == entry.name else Path(known).name)


def environment(home: Path) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HOMELAB_"))} | {
        "HOME": str(home)
    }


def deploy_at_terminal(home: Path, typed: Sequence[tuple[str, str]] = ()) -> tuple[int, str]:
    """The exit code and what a terminal of 100 columns is left with, and what it showed meanwhile."""
    code, shown = at_terminal(
        [sys.executable, "-m", "homelab", "deploy", "--yes"],
        typed,
        env=environment(home) | {"COLUMNS": "100", "LINES": "30", "TERM": "xterm"},
        folder=home,
        within=600,
    )
    assert "Traceback" not in shown
    for line in re.split(r"\n|\x1b\[[?\d;]*[A-Za-z]", shown):
        # A path stays whole.
        assert cell_len(line) <= 100 or any(len(word) > 60 for word in line.split()), line
    return code, shown


@pytest.fixture(scope="module")
def machine(libgomp: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, int, Path]]:
    """A fresh home, with what is installed in the user's own cache already."""
    home = tmp_path_factory.mktemp("home")
    cache_in(home)
    subprocess.run([sys.executable, ROOT / "examples/fetch-smollm2"], check=True, capture_output=True)
    port = free_port()
    text = (
        (ROOT / "examples/this-machine.yml")
        .read_text()
        .replace("port: 4000", f"port: {port}")
        .replace("cluster: this-machine", "cluster: test-machine")
    )
    text = text.replace("    concurrency: 2", f"    concurrency: 2\n    port: {free_port()}")
    (home / "inventory.yml").write_text(text)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "homelab", *arguments],
            capture_output=True,
            text=True,
            cwd=home,
            env=environment(home),
            timeout=900,
        )
        assert "Traceback" not in done.stderr  # LiteLLM writes its own into its log
        return done

    yield run, port, home
    run("remove", "--yes")


def ours(home_marker: str) -> list[str]:
    """Processes that some service of this test started."""
    found = []
    for process in psutil.process_iter():
        try:
            if home_marker in process.environ().get("HOMELAB_SERVICE_DIR", ""):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def post(port: int, key: str | None, body: dict[str, Any]) -> tuple[int, str]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read().decode()


def test_a_machine_becomes_an_endpoint_stays_as_it_is_and_is_taken_down(
    machine: tuple[Run, int, Path],
) -> None:
    run, port, home = machine
    code, first = deploy_at_terminal(home)
    assert code == 0, first
    for phase in ("waits", "load", "ready"):
        assert re.search(rf"gateway  this  {phase}", first), first
    assert "asks `smollm2` one question" in first
    times = json.loads((home / ".local/state/homelab/test-machine/times.json").read_text())
    assert times.keys() == {"this/smollm2", "this/gateway"}
    assert all(0 < t["load_seconds"] <= t["seconds"] for t in times.values())
    assert re.search(
        r'smollm2  on this/smollm2  ready in [\d.]+ s  first token [\d.]+ s  ".+"$',
        first,
        re.MULTILINE,
    )
    key_file = re.search(r"key in (\S+)", first)
    assert key_file is not None
    assert Path(key_file[1]).stat().st_mode & 0o777 == 0o600
    key = Path(key_file[1]).read_text().strip()
    assert key not in first

    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
    status, text = post(port, key, body)
    assert status == 200
    assert json.loads(text)["choices"][0]["message"]["content"]
    assert post(port, None, body)[0] == 401
    status, text = post(port, key, body | {"stream": True})
    assert status == 200
    assert text.count("data: ") > 2
    assert text.rstrip().endswith("[DONE]")

    document = json.loads(run("status", "--json").stdout)
    assert document["gateway"] == {
        "node": "this",
        "url": f"http://127.0.0.1:{port}",
        "state": "running",
        "healthy": True,
        "key_file": key_file[1],
    }
    [model] = document["models"]
    assert (model["healthy"], model["context"]) == (True, 2048)
    assert model["placements"][0]["planned_bytes"] > model["placements"][0]["used_bytes"] > 100 * 2**20
    listening = {
        (c.laddr.ip, c.laddr.port) for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid
    }
    assert ("127.0.0.1", port) in listening
    assert not {ip for ip, p in listening if p == port} - {"127.0.0.1"}

    before = set(ours("test-machine"))
    made = run("key", "add", "anna", "--models", "smollm2", "--tokens-per-day", "100000")
    assert made.returncode == 0, made.stderr
    anna = made.stdout.strip()
    assert re.fullmatch(r"sk-[0-9a-f]{64}", anna)
    assert post(port, anna, body)[0] == 200
    rotated = run("key", "rotate", "anna").stdout.strip()
    assert [post(port, k, body)[0] for k in (anna, rotated)] == [200, 200]
    until = time.monotonic() + 20
    while json.loads(run("key", "list", "--json").stdout)["keys"][0]["requests"] < 3:
        assert time.monotonic() < until
    [listed] = json.loads(run("key", "list", "--json").stdout)["keys"]
    assert (listed["name"], listed["models"], listed["state"]) == ("anna", ["smollm2"], "works")
    assert listed["tokens_today"] > 30 and listed["last_use"] > time.time() - 60
    assert "anna" in run("key", "list").stdout
    files = [p for p in (home / ".local").rglob("*") if p.is_file()]
    assert not [p for p in files if anna.encode() in p.read_bytes() or rotated.encode() in p.read_bytes()]
    again = run("deploy", "--yes")
    assert again.returncode == 0
    assert "Everything is up to date" in again.stdout
    assert set(ours("test-machine")) == before
    assert run("ask", "smollm2", "What is a home?").stdout.strip()
    assert "llama" in run("logs", "smollm2", "-n", "200").stdout
    assert key not in run("logs", "gateway").stdout

    # Another context: the engine starts anew, and so does the gateway, which is told of it.
    text = (home / "inventory.yml").read_text()
    (home / "inventory.yml").write_text(text.replace("context: 2048", "context: 1024"))
    # Between the words are colours.
    code, interrupted = deploy_at_terminal(home, [(r"gateway.{,40}load.{,20} of about \d", "\x03")])
    assert code == 130
    assert "Interrupted. Running the same command again goes on from here" in interrupted
    said = " ".join(interrupted.partition("Interrupted.")[2].split())
    assert "`gateway` on `this` goes on loading by itself, and nothing puts the one before back" in said
    assert "homelab logs gateway -f" in said
    assert "hint: homelab status" in interrupted
    done = run("deploy", "--yes")
    assert done.returncode == 0, done.stderr
    assert re.search(r'^smollm2  on this/smollm2  first token [\d.]+ s  ".+"$', done.stdout, re.MULTILINE)
    assert post(port, rotated, body)[0] == 200  # another revision of the gateway knows the same keys
    assert run("key", "revoke", "anna").returncode == 0
    code, text = post(port, rotated, body)
    assert code == 403 and "revoked" in text
    assert json.loads(run("key", "list", "--json").stdout)["keys"] == []

    gone = run("remove", "--yes")
    assert gone.returncode == 0, gone.stderr
    assert ours("test-machine") == []
    assert not (home / ".local/share/homelab").exists()
    assert not Path(key_file[1]).exists()
    assert "Nothing to remove" in run("remove", "--yes").stdout
