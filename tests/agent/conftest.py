"""The agent is run as a node runs it: the real bundle, unpacked into a folder of its own, under
whatever Python there is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from homelab.nodes import bundle

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "tests" / "lab"


@pytest.fixture(scope="session")
def agent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    archive = bundle.pack(bundle.own_platform())
    subprocess.run(["tar", "-xzf", "-", "-C", folder], input=archive, check=True)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def run_agent(agent_folder: Path, home: Path) -> Callable[..., dict[str, Any]]:
    """Runs the agent on a bare environment and gives its document. Docker is absent
    unless `docker` names a socket."""

    def run(
        request: dict[str, Any] | None = None,
        *,
        docker: str = "/nonexistent/docker.sock",
        python: str = sys.executable,
        wrap: Sequence[str] = (),
        **env: str,
    ) -> dict[str, Any]:
        environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "DOCKER_HOST": f"unix://{docker}"} | env
        argv = [*wrap, python, "-I", str(agent_folder), json.dumps(request or {})]
        done = subprocess.run(argv, env=environment, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stderr == b""
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    return run


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the lab's libnvidia-ml.so.1, which answers from a text file."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    source = LAB / "fakenvml" / "fakenvml.c"
    subprocess.run(
        [
            compiler,
            "-O1",
            "-shared",
            "-fPIC",
            "-Wl,-soname,libnvidia-ml.so.1",
            "-o",
            str(library),
            str(source),
        ],
        check=True,
    )
    return folder
