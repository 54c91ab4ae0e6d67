"""The lab's files from the package index, when several processes want the same one at once and nobody has
it yet."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

PROCESSES = 4
SIZE = 32 << 20  # unpacking it takes longer than the processes start apart

A_FILE = """
from tests.lab.engine import STATE
from tests.lab.wheels import file_from_wheel
path = file_from_wheel("tiny==1.0", "/large.bin", STATE / "lib/large.bin")
print(path.stat().st_size, oct(path.stat().st_mode & 0o777))
"""
A_WHEEL = """
from tests.lab.wheels import wheel
print(wheel("tiny==1.0").name)
"""
A_TREE = """
import time
from tests.lab.engine import STATE
from tests.lab.images import Recipe, ensure_tree

def make(target):
    target.mkdir(parents=True)
    with (STATE / "times made").open("a") as log:
        log.write("once ")
    time.sleep(0.5)
    (target / "last").touch()

tree = ensure_tree(Recipe("tiny", "tiny 1.0", make, (), ()))
print((STATE / "times made").read_text(), *(path.name for path in tree.iterdir()))
"""


@pytest.fixture
def fresh(tmp_path: Path) -> dict[str, str]:
    """An environment in which the lab was never used, and where `tiny` is the only package."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tiny-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("tiny/large.bin", bytes(SIZE))
        about = {
            "METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\n",
        }
        for name, text in about.items():
            made.writestr(f"tiny-1.0.dist-info/{name}", text)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "HOMELAB_"))}
    return kept | {
        "HOMELAB_LAB": str(tmp_path / "lab"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }


def all_at_once(script: str, environment: Mapping[str, str]) -> set[str]:
    command = [sys.executable, "-c", script]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in started]
    assert [code for *_, code in ended] == [0] * PROCESSES, "\n".join(err for _, err, _ in ended)
    return {out.strip() for out, *_ in ended}


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (A_FILE, f"{SIZE} 0o755"),
        (A_WHEEL, "tiny-1.0-py3-none-any.whl"),
        (A_TREE, "once  last"),
    ],
    ids=["a file of a wheel", "a wheel", "the packages of an image"],
)
def test_processes_that_want_the_same_thing_at_once_all_get_it(
    script: str, says: str, fresh: dict[str, str]
) -> None:
    assert all_at_once(script, fresh) == {says}
