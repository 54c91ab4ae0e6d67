from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from homelab import discover, inventory, resources
from homelab.errors import HomelabError
from homelab.facts import parse_facts
from homelab.nodes import bundle
from homelab.nodes.bundle import Platform

NAME = "0123456789abcdef"


def sh(command: str, home: Path, *, data: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "DOCKER_HOST": "unix:///nonexistent"} | env
    return subprocess.run(
        ["sh", "-c", command], input=data, env=environment, capture_output=True, timeout=60, check=False
    )


def folder(home: Path) -> Path:
    return home / ".cache" / "homelab" / "agent"


@pytest.fixture
def packed() -> bytes:
    return bundle.pack(bundle.own_platform())


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH of its own that has what every node has, and no python."""
    there = tmp_path / "programs"
    there.mkdir()
    for name in ("sh", "tar", "gzip", "mkdir", "mktemp", "rm", "find", "touch", "uname", "env"):
        (there / name).symlink_to(str(shutil.which(name)))
    return there


def test_the_bundle_holds_the_agent_and_pynvml_and_nothing_of_homelab(packed: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        names = tar.getnames()
        assert {m.mtime for m in tar.getmembers()} == {bundle.TIMESTAMP}
    assert names == sorted(names)
    assert {"__main__.py", "facts.py", "accelerators/nvidia.py", "pynvml.py", "SHA256SUMS"} <= set(names)
    assert not [n for n in names if "homelab" in n or "__pycache__" in n or "/tests/" in n]


def test_the_same_input_gives_the_same_bytes(packed: bytes) -> None:
    assert bundle.pack(bundle.own_platform()) == packed
    bundle.fingerprint.cache_clear()
    bundle._sources.cache_clear()
    first = bundle.fingerprint()
    bundle.fingerprint.cache_clear()
    bundle._sources.cache_clear()
    assert bundle.fingerprint() == first


def test_a_changed_line_of_the_agent_gives_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bundle.fingerprint()
    shutil.copytree(resources.path("agent"), tmp_path / "_agent")
    (tmp_path / "_agent" / "ports.py").write_text("# other\n")
    monkeypatch.setattr(resources, "HERE", tmp_path)
    bundle.fingerprint.cache_clear()
    bundle._sources.cache_clear()
    try:
        assert bundle.fingerprint() != before
    finally:
        monkeypatch.undo()
        bundle.fingerprint.cache_clear()
        bundle._sources.cache_clear()
    assert bundle.fingerprint() == before


def test_an_installation_without_the_agent_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "HERE", tmp_path)
    bundle._sources.cache_clear()
    with pytest.raises(HomelabError, match="not installed completely"):
        bundle.pack(bundle.own_platform())
    bundle._sources.cache_clear()


def test_the_first_time_and_every_time_after(tmp_path: Path, packed: bytes) -> None:
    name = bundle.fingerprint()
    missing = sh(bundle.launch_command(name, "{}"), tmp_path)
    assert missing.returncode == bundle.MISSING
    assert bundle.platform_of(missing.stdout.decode()) == bundle.own_platform()
    installed = sh(bundle.install_command(name), tmp_path, data=packed)
    assert (installed.returncode, installed.stdout, installed.stderr) == (0, b"", b"")
    assert [p.name for p in folder(tmp_path).iterdir()] == [name]

    request = json.dumps({"cluster": "home", "sources": ['/models/it\'s "here" $HOME \\ `x`.gguf']})
    answer = sh(bundle.launch_command(name, request), tmp_path)
    assert (answer.returncode, answer.stderr) == (0, b"")
    facts = parse_facts(answer.stdout)
    assert facts.weights[0].source == '/models/it\'s "here" $HOME \\ `x`.gguf'
    assert [p for p in facts.problems if p.source == "psutil"] == []


def files_of(bundle_folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(bundle_folder).as_posix(): p.read_bytes()
        for p in bundle_folder.rglob("*")
        if p.is_file() and p.suffix != ".pyc"
    }


@pytest.mark.parametrize("python", [None, sys.executable], ids=["quick", "named"])
@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("__main__.py", "gone"),
        ("__main__.py", "empty"),
        *((f, h) for f in ("facts.py", "accelerators/nvidia.py") for h in ("gone", "empty", "changed")),
        *(("SHA256SUMS", h) for h in ("gone", "empty", "changed", "binary")),
    ],
)
def test_a_bundle_that_is_not_whole_says_so_and_is_replaced(
    tmp_path: Path, packed: bytes, file: str, harm: str, python: str | None
) -> None:
    name = bundle.fingerprint()
    launch = bundle.launch_command(name, "{}", python=python)
    install = bundle.install_command(name, python=python)
    assert sh(install, tmp_path, data=packed).returncode == 0
    assert sh(launch, tmp_path).returncode == 0
    there = folder(tmp_path) / name
    before = files_of(there)
    if harm == "gone":
        (there / file).unlink()
    else:
        changed = {"empty": b"", "changed": before[file].replace(b"a", b"b"), "binary": b"\xff\0  \0"}
        (there / file).write_bytes(changed[harm])

    broken = sh(launch, tmp_path)
    assert (broken.returncode, broken.stderr) == (bundle.MISSING, b"")
    assert bundle.platform_of(broken.stdout.decode()) == bundle.own_platform()
    installed = sh(install, tmp_path, data=packed)
    assert (installed.returncode, installed.stdout, installed.stderr) == (0, b"", b"")
    assert files_of(there) == before
    assert [p.name for p in folder(tmp_path).iterdir()] == [name]
    assert sh(launch, tmp_path).returncode == 0


def test_a_cleaner_that_goes_by_age_does_not_take_what_has_just_come(tmp_path: Path, packed: bytes) -> None:
    assert sh(bundle.install_command(NAME), tmp_path, data=packed).returncode == 0
    there = folder(tmp_path) / NAME
    before = files_of(there)
    assert sh("find ~/.cache -mtime +30 -delete", tmp_path).returncode == 0
    assert files_of(there) == before


def test_a_folder_without_sums_is_a_checkout_and_not_checked(tmp_path: Path) -> None:
    copy = shutil.copytree(resources.path("agent"), tmp_path / "agent")
    (copy / "docker.py").write_bytes((copy / "docker.py").read_bytes() + b"# mine\n")
    done = sh(f"{sys.executable} -I {copy} '{{}}'", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert parse_facts(done.stdout).problems == ()


def test_an_archive_that_was_cut_off_leaves_nothing(tmp_path: Path, packed: bytes) -> None:
    done = sh(bundle.install_command(NAME), tmp_path, data=packed[: len(packed) // 2])
    assert done.returncode == bundle.UNPACK_FAILED
    assert done.stderr
    assert list(folder(tmp_path).iterdir()) == []


@pytest.mark.parametrize("broken", [False, True])
def test_several_controllers_at_once_leave_one_whole_bundle(
    tmp_path: Path, packed: bytes, broken: bool
) -> None:
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    if broken:
        (folder(tmp_path) / NAME).mkdir(parents=True)
        (folder(tmp_path) / NAME / "__main__.py").write_text("")
    running = [
        subprocess.Popen(["sh", "-c", bundle.install_command(NAME)], stdin=subprocess.PIPE, env=env)
        for _ in range(4)
    ]
    for process in running:
        process.communicate(packed, timeout=60)
    assert [p.returncode for p in running] == [0, 0, 0, 0]
    assert [p.name for p in folder(tmp_path).iterdir()] == [NAME]
    assert sh(bundle.launch_command(NAME, "{}"), tmp_path).returncode == 0


def test_a_whole_bundle_is_left_where_it_is(tmp_path: Path, packed: bytes) -> None:
    """An agent may be running from it."""
    assert sh(bundle.install_command(NAME), tmp_path, data=packed).returncode == 0
    before = (folder(tmp_path) / NAME).stat().st_ino
    assert sh(bundle.install_command(NAME), tmp_path, data=packed).returncode == 0
    assert (folder(tmp_path) / NAME).stat().st_ino == before


def test_a_home_that_cannot_be_written_is_said(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / ".cache").write_text("a file in the way")
    done = sh(bundle.install_command(NAME), tmp_path, data=packed)
    assert done.returncode == bundle.UNPACK_FAILED
    assert b".cache" in done.stderr


def test_bundles_that_nobody_ran_for_a_week_go(tmp_path: Path, packed: bytes) -> None:
    for name, days in (("old", 9), ("used", 2)):
        (folder(tmp_path) / name).mkdir(parents=True)
        then = time.time() - days * 86400
        os.utime(folder(tmp_path) / name, (then, then))
    assert sh(bundle.install_command(NAME), tmp_path, data=packed).returncode == 0
    assert sorted(p.name for p in folder(tmp_path).iterdir()) == [NAME, "used"]


def test_a_run_counts_as_use(tmp_path: Path, packed: bytes) -> None:
    assert sh(bundle.install_command(NAME), tmp_path, data=packed).returncode == 0
    there = folder(tmp_path) / NAME
    os.utime(there, (0, 0))
    assert sh(bundle.launch_command(NAME, "{}"), tmp_path).returncode == 0
    assert there.stat().st_mtime > time.time() - 60


def test_a_node_without_python_is_told_apart(tmp_path: Path, programs: Path) -> None:
    for command in (bundle.launch_command(NAME, "{}"), bundle.install_command(NAME)):
        done = sh(command, tmp_path, PATH=str(programs))
        assert done.returncode == bundle.NO_PYTHON
        assert done.stderr == b"python3 was not found on this node\n"
    done = sh(bundle.launch_command(NAME, "{}", python="/opt/my python"), tmp_path)
    assert (done.returncode, done.stderr) == (
        bundle.NO_PYTHON,
        b"/opt/my python was not found on this node\n",
    )


def python_that_says(path: Path, status: int) -> None:
    path.write_text(f"#!/bin/sh\necho too old >&2\nexit {status}\n")
    path.chmod(0o755)


def agent_that_says(home: Path, text: str) -> None:
    there = folder(home) / NAME
    there.mkdir(parents=True)
    (there / "__main__.py").write_text(f"print('{text}')\n")
    (there / bundle.SUMS).write_text("what it says is of no matter to this agent\n")


def test_an_old_python_gives_way_to_a_newer_one_beside_it(tmp_path: Path, programs: Path) -> None:
    agent_that_says(tmp_path, "answer")
    python_that_says(programs / "python3", 98)
    done = sh(bundle.launch_command(NAME, "{}"), tmp_path, PATH=str(programs))
    assert (done.returncode, done.stderr) == (bundle.OLD_PYTHON, b"too old\n")
    (programs / "python3.11").symlink_to(sys.executable)
    assert sh(bundle.launch_command(NAME, "{}"), tmp_path, PATH=str(programs)).stdout == b"answer\n"


def test_a_named_python_may_have_spaces_in_its_path_and_lie_in_the_home(tmp_path: Path) -> None:
    agent_that_says(tmp_path, "answer")
    (tmp_path / "my python").symlink_to(sys.executable)
    for named in (str(tmp_path / "my python"), "~/my python"):
        assert sh(bundle.launch_command(NAME, "{}", python=named), tmp_path).stdout == b"answer\n"


def test_the_agents_own_failure_is_passed_on(tmp_path: Path, programs: Path) -> None:
    agent_that_says(tmp_path, "never")
    python_that_says(programs / "python3", 41)
    assert sh(bundle.launch_command(NAME, "{}"), tmp_path, PATH=str(programs)).returncode == 41


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("welcome!\nhomelab-agent-missing Linux aarch64\n", Platform("linux", "aarch64")),
        ("homelab-agent-missing Darwin arm64\n", Platform("darwin", "arm64")),
        ("Permission denied\n", Platform("", "")),
    ],
)
def test_the_platform_is_read_from_what_the_node_said(said: str, expected: Platform) -> None:
    assert bundle.platform_of(said) == expected


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """pip is the network's door: here it delivers a wheel made on the spot, with its hash in the table."""
    asked: list[list[str]] = []
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as z:
        for name in (
            "psutil/__init__.py",
            "psutil/_psutil_osx.abi3.so",
            "psutil/tests/test_x.py",
            "psutil-7.2.2.dist-info/METADATA",
        ):
            z.writestr(name, name)

    def run(command: list[str], **_: Any) -> None:
        asked.append(command)
        (Path(command[command.index("--dest") + 1]) / "psutil.whl").write_bytes(wheel.getvalue())

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sha256 = hashlib.sha256(wheel.getvalue()).hexdigest()
    monkeypatch.setitem(bundle.WHEELS, ("darwin", "arm64"), ("macosx_11_0_arm64", sha256))
    return asked


def names_in(archive: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {n for n in tar.getnames() if n.startswith("psutil")}


def test_psutil_for_another_platform_is_fetched_once(pip: list[list[str]]) -> None:
    mac = Platform("darwin", "arm64")
    assert names_in(bundle.pack(mac)) == {"psutil/__init__.py", "psutil/_psutil_osx.abi3.so"}
    bundle.pack(mac)
    (command,) = pip
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"macosx_11_0_arm64", "--no-deps", "--only-binary=:all:", f"psutil=={bundle.PSUTIL}"} <= set(
        command
    )


def test_several_that_fetch_the_same_wheel_at_once_all_get_it(tmp_path: Path, pip: list[list[str]]) -> None:
    """As two homelabs do, or one that meets two such nodes."""
    mac = Platform("darwin", "arm64")
    whole = bundle.pack(mac)
    for _ in range(8):
        shutil.rmtree(tmp_path / "cache")
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(bundle.pack, [mac] * 8)) == {whole}
    assert [p.suffix for p in (tmp_path / "cache/homelab/wheels").iterdir()] == [".whl"]


def test_a_wheel_with_another_hash_is_not_used(pip: list[list[str]]) -> None:
    assert names_in(bundle.pack(Platform("darwin", "x86_64"))) == set()
    assert len(pip) == 1


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "armv7l"])
def test_linux_reads_the_kernel_and_gets_no_psutil(pip: list[list[str]], machine: str) -> None:
    assert names_in(bundle.pack(Platform("linux", machine))) == set()
    assert pip == []


def test_without_a_network_the_bundle_goes_without_psutil(
    pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(subprocess, "run", fails)
    assert names_in(bundle.pack(Platform("darwin", "arm64"))) == set()


def test_the_installed_psutil_is_the_one_of_the_table() -> None:
    import psutil

    assert psutil.__version__ == bundle.PSUTIL


def test_the_name_costs_no_time() -> None:
    bundle.fingerprint.cache_clear()
    bundle._sources.cache_clear()
    started = time.perf_counter()
    bundle.fingerprint()
    assert time.perf_counter() - started < 0.2


def test_fetching_psutil_does_not_use_up_the_nodes_time(
    tmp_path: Path, pip: list[list[str]], programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that calls itself a Mac, and an index that takes longer than a node may take to answer."""
    (programs / "uname").unlink()
    (programs / "uname").write_text('#!/bin/sh\n[ "$1" = -s ] && echo Darwin || echo arm64\n')
    (programs / "uname").chmod(0o755)
    fetch = subprocess.run

    def slowly(*arguments: Any, **keywords: Any) -> Any:
        time.sleep(4)
        return fetch(*arguments, **keywords)

    monkeypatch.setattr(subprocess, "run", slowly)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent")
    text = "cluster: home\ngateway: {node: mac, port: 4000}\nnodes:\n  mac: {host: localhost}\nmodels: {}\n"
    seen = asyncio.run(discover.discover(inventory.load(text, "inventory.yml"), answer_seconds=3.0))
    assert seen.errors == {}
    assert seen.survey.nodes["mac"].reachable
    assert len(pip) == 1
