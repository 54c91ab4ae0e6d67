"""The real Open WebUI, as homelab deploys it without Docker, before the real LiteLLM and llama.cpp, used in a
real browser. It takes what nobody has by chance:

    uv venv --python 3.11 DIR && uv pip install --python DIR/bin/python open-webui==0.12.4 playwright
    apt-get install chromium
    OPEN_WEBUI=DIR pytest tests/test_open_webui.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from homelab.apps import open_webui
from tests.test_native_household import CACHE, ROOT, cache_in, environment, free_port

pytestmark = [pytest.mark.slow, pytest.mark.native]
FOLDER = Path(os.environ.get("OPEN_WEBUI", CACHE / "tests/open-webui"))
CHROMIUM = Path("/usr/bin/chromium")
QUESTION = "What is a home? Answer in one sentence."


class House:
    """This machine with smollm2, the gateway and the app."""

    def __init__(self, home: Path) -> None:
        self.home, self.page, self.gateway, self.engine = home, free_port(), free_port(), free_port()
        cache_in(home)
        (home / ".local/bin").mkdir(parents=True)
        (home / ".local/bin/open-webui").symlink_to(FOLDER / "bin/open-webui")
        self.write()

    def write(self, more: str = "") -> None:
        text = (ROOT / "examples/this-machine.yml").read_text()
        text = text.replace("port: 4000", f"port: {self.gateway}").replace("this-machine", "test-page")
        text = text.replace("    concurrency: 2", f"    concurrency: 2\n    port: {self.engine}")
        (self.home / "inventory.yml").write_text(
            f"{text}apps:\n  page: {{node: this, port: {self.page}{more}}}\n"
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "homelab", *words],
            capture_output=True,
            text=True,
            cwd=self.home,
            env=environment(self.home) | {"PYTHONPATH": str(ROOT)},
            timeout=900,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def browse(self, verb: str, name: str, question: str = "") -> dict[str, Any]:
        """What somebody sees, and what the browser asked of others."""
        command = [FOLDER / "bin/python", ROOT / "tests/browse_open_webui.py"]
        done = subprocess.run(
            [*command, verb, f"http://127.0.0.1:{self.page}", name, question],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return dict(json.loads(done.stdout))

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if "test-page/page" in process.environ().get("HOMELAB_SERVICE_DIR", ""):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


@pytest.fixture(scope="module")
def house(libgomp: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    if not CHROMIUM.exists() or not (FOLDER / "bin/open-webui").exists():
        pytest.skip(f"needs {CHROMIUM} and Open WebUI in {FOLDER}: this file says how")
    subprocess.run([sys.executable, ROOT / "examples/fetch-smollm2"], check=True, capture_output=True)
    made = House(tmp_path_factory.mktemp("home"))
    yield made
    made.run("remove", "--yes")


def test_a_family_has_its_page_and_keeps_it_when_the_gateway_moves(house: House) -> None:
    done = house.run("deploy", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Open WebUI  http://127.0.0.1:{house.page}   who signs up first" in done.stdout
    assert f"app page  http://127.0.0.1:{house.page}  on this  healthy" in house.run("status").stdout

    anna = house.browse("sign-up", "Anna", QUESTION)
    assert len(anna["answer"].split()) > 3 and "Error" not in anna["answer"], anna["answer"]
    assert "smollm2" in anna["page"]
    # The browser went nowhere else, and neither did anything on the machine that runs it.
    assert anna["outside"] == []
    # The door is closed behind the first: nobody makes himself an account.
    with pytest.raises(AssertionError, match="Timeout"):
        house.browse("sign-up", "Bert")

    until = time.monotonic() + 30
    listed: list[dict[str, Any]] = []
    while not any(k["requests"] for k in listed):
        assert time.monotonic() < until, listed
        listed = json.loads(house.run("key", "list", "--json").stdout)["keys"]
    assert [k["name"] for k in listed] == ["app:page"]
    used = sum(p.memory_info().rss for p in house.processes())
    print(f"Open WebUI holds {used / 2**20:.0f} MiB")
    assert used < open_webui.MEMORY_LIMIT_BYTES

    # Another address of the gateway: it is found there, the account and what was said are kept.
    house.gateway = free_port()
    house.write()
    done = house.run("deploy", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    again = house.browse("log-in", "Anna", QUESTION)
    assert len(again["answer"].split()) > 3 and "Error" not in again["answer"], again["answer"]
    assert again["page"].count(QUESTION) > 1, again["page"]

    # Taken away and brought back, it has its data still.
    assert house.run("remove", "page", "--yes").returncode == 0
    assert house.processes() == []
    assert house.run("deploy", "--yes").returncode == 0
    assert QUESTION in house.browse("log-in", "Anna")["page"]
