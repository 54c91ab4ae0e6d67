"""What every session to a machine promises: one suite for this machine itself and for a real sshd."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import stat
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from homelab.errors import NodeError
from homelab.inventory import Node
from homelab.nodes import connect
from homelab.nodes.session import Session
from homelab.service import File
from tests.nodes import sshd as real_sshd
from tests.nodes.sshd import Sshd

MIB = 1024**2
EVERY_BYTE = bytes(range(256))


@dataclass
class Machine:
    """A node as seen from outside. `folder` is the test's own, `path` the same relative to the home."""

    node: Node
    home: Path
    folder: Path
    sshd: Sshd | None = None
    path: str = field(init=False)

    def __post_init__(self) -> None:
        self.path = str(self.folder.relative_to(self.home))

    def use(self, work: Callable[[Session], Awaitable[None]]) -> None:
        async def opened() -> None:
            async with connect("machine", self.node) as session:
                await work(session)

        asyncio.run(asyncio.wait_for(opened(), 60))

    def names(self) -> list[str]:
        """Every file below the folder, hidden ones too."""
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())


@contextlib.contextmanager
def account(folder: Path, home: Path, shell: str) -> Iterator[Sshd]:
    """An sshd with one account: this user with another home and login shell."""
    if reason := real_sshd.obstacle():
        pytest.skip(reason)
    home.mkdir()
    with real_sshd.started(folder, more=real_sshd.as_account(home, shell)) as running:
        yield running


@pytest.fixture
def controller_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    return home


def over_ssh(sshd: Sshd, controller_home: Path) -> Node:
    (controller_home / ".ssh/known_hosts").write_text(sshd.known_hosts("127.0.0.1"))
    return Node(host="127.0.0.1", port=sshd.port, user=sshd.user, identity=str(sshd.identity))


@pytest.fixture
def there(tmp_path: Path, controller_home: Path) -> Iterator[Machine]:
    """This machine over SSH."""
    home = tmp_path / "account"
    with account(tmp_path / "sshd", home, "/bin/sh") as sshd:
        (home / "folder").mkdir()
        yield Machine(over_ssh(sshd, controller_home), home, home / "folder", sshd)


@pytest.fixture(params=["local", "ssh"])
def machine(request: pytest.FixtureRequest, controller_home: Path) -> Machine:
    if request.param == "ssh":
        return request.getfixturevalue("there")
    folder = controller_home / "folder"
    folder.mkdir()
    return Machine(Node(host="localhost"), controller_home, folder)


def endless() -> tuple[str, Callable[[], bool]]:
    """A command that does not end by itself and that no other test runs, and whether it is gone."""
    seconds = f"{uuid.uuid4().int % 10**9 + 10**9}"

    def gone() -> bool:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            if not any(seconds in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])):
                return True
            time.sleep(0.05)
        return False

    return f"sleep {seconds}", gone


# ---- run ----
def test_a_command_runs_in_the_users_home(machine: Machine) -> None:
    async def work(session: Session) -> None:
        done = await session.run('pwd -P; cd; pwd -P; echo "$HOME"')
        home = str(machine.home.resolve())
        assert done.text.splitlines() == [home, home, str(machine.home)]
        assert (done.stderr, done.exit_status) == ("", 0)

    machine.use(work)


AWKWARD = """\
for word in 'it''s' "a\\\\b" 'a\\b' "!x" '%s' '$HOME' '`id`' 'ä€😀' "two
lines" '~' '#' 'x*'; do
  printf '<%s>' "$word"
done
printf '%s' "$#" "${1-none}"
"""
AWKWARD_SAYS = "<its><a\\b><a\\b><!x><%s><$HOME><`id`><ä€😀><two\nlines><~><#><x*>0none"


def test_a_command_arrives_as_it_was_written(machine: Machine) -> None:
    async def work(session: Session) -> None:
        assert (await session.run(AWKWARD)).text == AWKWARD_SAYS

    machine.use(work)


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish", "tcsh"])
def test_commands_are_shs_whatever_the_login_shell(shell: str, tmp_path: Path, controller_home: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    home = tmp_path / "account's home"
    command, gone = endless()
    with account(tmp_path / "sshd", home, shell) as running:
        machine = Machine(over_ssh(running, controller_home), home, home)

        async def work(session: Session) -> None:
            done = await session.run(f"{AWKWARD}\npwd")
            assert (done.text, done.stderr) == (f"{AWKWARD_SAYS}{home}\n", "")
            assert [x async for x in session.lines("echo '!\\\\!'\npwd")] == ["!\\!", str(home)]
            await session.put([File(path="a file!", content="a\\b")])
            assert (home / "a file!").read_text() == "a\\b"
            with pytest.raises(NodeError, match="took longer than"):
                await session.run(f"{command}; true", timeout=0.5)
            assert gone()

        machine.use(work)


def test_what_a_login_shell_says_is_not_the_commands(tmp_path: Path, controller_home: Path) -> None:
    shell = tmp_path / "talkative"
    shell.write_text("#!/bin/sh\necho Welcome; printf 'homelab> '\nexec /bin/sh \"$@\"\n")
    shell.chmod(0o755)
    with account(tmp_path / "sshd", tmp_path / "account", str(shell)) as running:

        async def work(session: Session) -> None:
            assert (await session.run("cat", input=b"asked\n")).text == "asked\n"
            assert await all_lines(session, "echo asked") == ["asked"]

        Machine(over_ssh(running, controller_home), tmp_path, tmp_path).use(work)


def test_an_account_that_may_not_log_in_says_so(tmp_path: Path, controller_home: Path) -> None:
    shell = tmp_path / "nologin"
    shell.write_text("#!/bin/sh\necho 'This account is currently not available.'\nexit 1\n")
    shell.chmod(0o755)
    with account(tmp_path / "sshd", tmp_path / "account", str(shell)) as running:

        async def work(session: Session) -> None:
            done = await session.run("echo asked")
            assert (done.exit_status, done.cause) == (1, "This account is currently not available.")
            assert await all_lines(session, "echo asked") == ["This account is currently not available."]

        Machine(over_ssh(running, controller_home), tmp_path, tmp_path).use(work)


@pytest.mark.parametrize("content", [b"", EVERY_BYTE, EVERY_BYTE * 20_000], ids=["none", "bytes", "large"])
def test_standard_input_arrives_and_ends(machine: Machine, content: bytes) -> None:
    async def work(session: Session) -> None:
        assert (await session.run("cat", input=content, timeout=20)).stdout == content

    machine.use(work)


def test_without_input_there_is_nothing_to_read(machine: Machine) -> None:
    async def work(session: Session) -> None:
        assert (await session.run("cat; echo end", timeout=20)).stdout == b"end\n"

    machine.use(work)


def test_input_that_nobody_reads_is_no_error(machine: Machine) -> None:
    async def work(session: Session) -> None:
        done = await session.run("exec <&-; echo enough; exit 3", input=bytes(20 * MIB), timeout=20)
        assert (done.stdout, done.exit_status) == (b"enough\n", 3)

    machine.use(work)


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("exit 3", 3, "exit status 3"),
        ("no-such-program-here", 127, "not found"),
        ("kill -9 $$", 137, ""),
        ("kill -TERM $$", 143, ""),
    ],
)
def test_a_command_that_fails_is_a_result(machine: Machine, command: str, status: int, says: str) -> None:
    async def work(session: Session) -> None:
        done = await session.run(command)
        assert done.exit_status == status
        assert says in done.cause

    machine.use(work)


def test_output_need_not_be_text(machine: Machine) -> None:
    async def work(session: Session) -> None:
        done = await session.run(r"printf 'a\377\0b'; printf 'c\377d' >&2")
        assert (done.stdout, done.text, done.stderr) == (b"a\xff\0b", "a\ufffd\0b", "c\ufffdd")

    machine.use(work)


def test_much_output_comes_whole_on_both_streams(machine: Machine) -> None:
    async def work(session: Session) -> None:
        done = await session.run(
            f"head -c {12 * MIB} /dev/zero & head -c {8 * MIB} /dev/zero | tr '\\0' x >&2; wait", timeout=50
        )
        assert done.stdout == bytes(12 * MIB)
        assert done.stderr == "x" * 8 * MIB

    machine.use(work)


def test_commands_of_one_session_run_side_by_side(machine: Machine) -> None:
    fifo = machine.folder / "fifo"
    os.mkfifo(fifo)

    async def work(session: Session) -> None:
        reader, writer = await asyncio.gather(
            session.run(f"cat {machine.path}/fifo", timeout=20),
            session.run(f"echo met > {machine.path}/fifo", timeout=20),
        )
        assert (reader.stdout, writer.exit_status) == (b"met\n", 0)

    machine.use(work)


@pytest.mark.parametrize("form", ["{}", "{} & wait", "{} & true", "trap '' TERM HUP; {}; true", "{} | cat"])
def test_a_command_that_takes_too_long_is_an_error_and_is_ended(machine: Machine, form: str) -> None:
    command, gone = endless()

    async def work(session: Session) -> None:
        with pytest.raises(NodeError, match=r"Node `machine` took longer than 0\.5 s") as refused:
            await session.run(form.format(command), timeout=0.5)
        assert refused.value.kind == "timeout"
        assert command in refused.value.cause
        assert gone()
        assert (await session.run("echo on")).text == "on\n"

    machine.use(work)


def test_a_command_that_nobody_waits_for_any_more_is_ended(machine: Machine) -> None:
    command, gone = endless()

    async def work(session: Session) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await session.run(command)
        assert gone()

    machine.use(work)


@pytest.mark.parametrize("how", ["run", "lines"])
def test_given_up_at_whatever_moment_nothing_is_left_open(controller_home: Path, how: str) -> None:
    machine, (command, gone) = Machine(Node(host="localhost"), controller_home, controller_home), endless()

    async def work(session: Session) -> None:
        async def asked() -> None:
            if how == "run":
                await session.run(command)
            else:
                async with aclosing(session.lines(command)) as lines:
                    async for _ in lines:
                        pass

        for steps in range(30):
            for cancels in (1, 2):
                task = asyncio.create_task(asked())
                for _ in range(steps):
                    await asyncio.sleep(0)
                for _ in range(cancels):
                    task.cancel()
                    await asyncio.sleep(0)
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        assert gone()

    open_before = psutil.Process().num_fds()
    machine.use(work)
    gc.collect()  # what was left open is told now, and fails this test
    assert psutil.Process().num_fds() <= open_before


def test_a_home_that_is_gone_is_an_error_of_the_node(controller_home: Path) -> None:
    shutil.rmtree(controller_home)

    async def work(session: Session) -> None:
        with pytest.raises(NodeError, match="Cannot run a command on node `machine`") as refused:
            await session.run("true")
        assert "No such file or directory" in refused.value.cause
        with pytest.raises(NodeError, match="Cannot run a command on node `machine`"):
            [x async for x in session.lines("true")]

    Machine(Node(host="localhost"), controller_home, controller_home).use(work)


# ---- put ----
def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_are_put_with_their_modes_into_folders_that_are_made(machine: Machine) -> None:
    before = os.umask(0o022)
    files = [
        File(path=f"{machine.path}/a/b/plain.txt", content="ä\n"),
        File(path=f"{machine.path}/a/b/key", content="secret", mode=0o600),
        File(path=f'{machine.path}/a/c/it\'s a "tool"!\\n', content="#!/bin/sh\n", mode=0o755),
        File(path=f"{machine.path}/-n", content="", mode=0o444),
    ]

    async def work(session: Session) -> None:
        await session.put(files)

    try:
        machine.use(work)
    finally:
        os.umask(before)
    assert [(machine.home / f.path).read_bytes() for f in files] == [f.content.encode() for f in files]
    assert [mode_of(machine.home / f.path) for f in files] == [f.mode for f in files]
    assert mode_of(machine.folder / "a/b") == 0o755
    assert machine.names() == ["-n", "a/b/key", "a/b/plain.txt", 'a/c/it\'s a "tool"!\\n']


@contextlib.contextmanager
def seen_in(folder: Path) -> Iterator[set[tuple[str, int, int]]]:
    """Name, mode and size of each file that has at least a byte, as they are while something happens."""
    seen: set[tuple[str, int, int]] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    if status.st_size:
                        seen.add((entry.name, stat.S_IMODE(status.st_mode), status.st_size))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_file_has_its_mode_from_the_first_byte_and_its_name_from_the_last(
    machine: Machine, mode: int
) -> None:
    content = "x" * 24 * MIB

    async def work(session: Session) -> None:
        with seen_in(machine.folder) as seen:
            await session.put([File(path=f"{machine.path}/large", content=content, mode=mode)])
        assert {m for _, m, _ in seen} == {mode}
        assert {name for name, _, _ in seen} - {"large"}  # it was seen where it was written
        assert {size for name, _, size in seen if name == "large"} <= {len(content)}

    machine.use(work)
    assert (machine.folder / "large").stat().st_size == len(content)


def test_a_file_that_is_there_is_replaced_and_not_written_into(machine: Machine) -> None:
    old = machine.folder / "file"
    old.write_text("old and longer")
    old.chmod(0o644)
    (machine.folder / "linked").symlink_to(old)
    reader = old.open()

    async def work(session: Session) -> None:
        await session.put(
            [
                File(path=f"{machine.path}/file", content="new", mode=0o600),
                File(path=f"{machine.path}/linked", content="no link any more"),
            ]
        )

    machine.use(work)
    with reader:
        assert reader.read() == "old and longer"
    assert (old.read_text(), mode_of(old)) == ("new", 0o600)
    assert (machine.folder / "linked").read_text() == "no link any more"
    assert machine.names() == ["file", "linked"]


Write = Callable[[Session, str, Path], Awaitable[None]]


async def by_put(session: Session, path: str, _: Path) -> None:
    await session.put([File(path=path, content="x" * MIB)])


async def by_upload(session: Session, path: str, source: Path) -> None:
    source.write_bytes(bytes(8 * MIB))
    await session.upload(str(source), path, lambda _: None)


WRITES = pytest.mark.parametrize("write", [by_put, by_upload])


def refuses(machine: Machine, write: Write, path: str, source: Path) -> NodeError:
    errors: list[NodeError] = []

    async def work(session: Session) -> None:
        with pytest.raises(NodeError) as refused:
            await write(session, f"{machine.path}/{path}", source)
        errors.append(refused.value)
        assert (await session.run("echo on")).text == "on\n"

    machine.use(work)
    assert errors[0].kind == "write"
    assert "node `machine`" in errors[0].message
    return errors[0]


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A file system of 256 KiB of its own there."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", ",".join(("size=256k", *options)), "homelab-test", folder]
    said = subprocess.run(mounting, capture_output=True, text=True)
    if said.returncode:
        pytest.skip(f"nothing can be mounted here: {said.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@WRITES
def test_a_full_disk_is_said_and_nothing_half_written_stays(
    machine: Machine, write: Write, tmp_path: Path
) -> None:
    with mounted(machine.folder / "small"):
        (machine.folder / "small/file").write_text("before")
        said = refuses(machine, write, "small/file", tmp_path / "source")
        assert "No space left on device" in said.cause
        assert machine.names() == ["small/file"]
        assert (machine.folder / "small/file").read_text() == "before"


@WRITES
def test_a_file_system_that_takes_nothing_is_said(machine: Machine, write: Write, tmp_path: Path) -> None:
    with mounted(machine.folder / "fixed", "ro"):
        for path in ("fixed/file", "fixed/new/file"):
            assert "Read-only file system" in refuses(machine, write, path, tmp_path / "source").cause


@WRITES
def test_a_folder_of_somebody_else_is_said(machine: Machine, write: Write, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (machine.folder / "closed").mkdir(mode=0o555)
    for path in ("closed/file", "closed/new/file"):
        assert "Permission denied" in refuses(machine, write, path, tmp_path / "source").cause


@WRITES
def test_what_stands_in_the_way_is_said(machine: Machine, write: Write, tmp_path: Path) -> None:
    (machine.folder / "file").write_text("here before")
    (machine.folder / "taken/inside").mkdir(parents=True)
    (machine.folder / "link").symlink_to("taken")
    source = tmp_path / "source"
    blocked = refuses(machine, write, "file/below/it", source).cause
    assert "Not a directory" in blocked or "File exists" in blocked
    assert "directory" in refuses(machine, write, "taken", source).cause
    assert "directory" in refuses(machine, write, "link", source).cause
    assert machine.names() == ["file"]


# ---- upload ----
def test_a_large_file_is_uploaded_with_its_progress(machine: Machine, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    content = os.urandom(MIB) * 33 + b"end"
    source.write_bytes(content)
    moved: list[int] = []

    async def work(session: Session) -> None:
        await session.upload(str(source), f"{machine.path}/weights/model.gguf", moved.append)

    machine.use(work)
    assert sum(moved) == len(content)
    assert len(moved) > 4
    assert all(n > 0 for n in moved)
    assert (machine.folder / "weights/model.gguf").read_bytes() == content
    assert mode_of(machine.folder / "weights/model.gguf") == 0o644
    assert machine.names() == ["weights/model.gguf"]


def test_an_empty_file_is_uploaded(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    async def work(session: Session) -> None:
        await session.upload(str(tmp_path / "empty"), f"{machine.path}/empty", lambda _: None)

    machine.use(work)
    assert (machine.folder / "empty").read_bytes() == b""


def test_a_file_that_is_not_here_is_no_fault_of_the_connection(machine: Machine, tmp_path: Path) -> None:
    async def work(session: Session) -> None:
        with pytest.raises(NodeError, match="Cannot copy") as refused:
            await session.upload(str(tmp_path / "none"), f"{machine.path}/none", lambda _: None)
        assert (refused.value.kind, refused.value.cause) == ("read", "No such file or directory")

    machine.use(work)
    assert machine.names() == []


def test_an_upload_that_is_given_up_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(64 * MIB))
    (machine.folder / "file").write_text("before")

    def stop(_: int) -> None:
        raise asyncio.CancelledError

    async def work(session: Session) -> None:
        with pytest.raises(asyncio.CancelledError):
            await session.upload(str(source), f"{machine.path}/file", stop)

    machine.use(work)
    until = time.monotonic() + 10
    while machine.names() != ["file"] and time.monotonic() < until:
        time.sleep(0.05)
    assert machine.names() == ["file"]
    assert (machine.folder / "file").read_text() == "before"


# ---- lines ----
async def all_lines(session: Session, command: str) -> list[str]:
    return [line async for line in session.lines(command)]


def test_lines_come_as_they_are_said(machine: Machine) -> None:
    os.mkfifo(machine.folder / "go")

    async def work(session: Session) -> None:
        async with aclosing(
            as_generator(session.lines(f"echo first; read x < {machine.path}/go; echo $x"))
        ) as said:
            assert await anext(said) == "first"
            (machine.folder / "go").write_text("second\n")
            assert await anext(said) == "second"
            with pytest.raises(StopAsyncIteration):
                await anext(said)

    machine.use(work)


def as_generator(lines: AsyncIterator[str]) -> Any:
    return lines


def test_lines_of_both_streams_whatever_their_bytes_and_their_end(machine: Machine) -> None:
    async def work(session: Session) -> None:
        said = await all_lines(session, r"printf 'a\n\n'; printf 'b\r\n\377\n' >&2; printf 'no end'; exit 4")
        assert said == ["a", "", "b\r", "\ufffd", "no end"]
        assert await all_lines(session, "true") == []

    machine.use(work)


def test_lines_may_be_of_any_length(machine: Machine) -> None:
    lengths = [65535, 65536, 65537, 5 * MIB]

    async def work(session: Session) -> None:
        command = "; ".join(f"head -c {n} /dev/zero | tr '\\0' x; echo" for n in lengths)
        assert [len(line) for line in await all_lines(session, f"{command}; echo end")] == [*lengths, 3]

    machine.use(work)


def test_many_lines_come_whole_and_in_order(machine: Machine) -> None:
    async def work(session: Session) -> None:
        assert await all_lines(session, "seq 200000") == [str(n) for n in range(1, 200001)]

    machine.use(work)


@pytest.mark.parametrize(
    "form", ["echo on; {}", "trap '' TERM HUP PIPE; echo on; {}; true", "echo on; {} | cat", "{} & echo on"]
)
def test_who_stops_reading_lines_ends_the_command(machine: Machine, form: str) -> None:
    command, gone = endless()

    async def work(session: Session) -> None:
        async with aclosing(as_generator(session.lines(form.format(command)))) as lines:
            assert await anext(lines) == "on"
        assert gone()
        assert (await session.run("echo on")).text == "on\n"

    machine.use(work)


# ---- socket ----
def test_a_unix_socket_of_the_node_is_one_here(machine: Machine) -> None:
    content = EVERY_BYTE * 10_000
    folder = tempfile.mkdtemp()  # a socket's path has 107 bytes at most
    path = f"{folder}/engine.sock"

    held = asyncio.Event()

    async def reversed_(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(1)
        if first == b"h":
            held.set()
        writer.write((first + await reader.read())[::-1])
        writer.write_eof()
        await writer.drain()
        writer.close()

    async def ask(here: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(here)
        writer.write(content)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def work(session: Session) -> None:
        server = await asyncio.start_unix_server(reversed_, path)
        async with server, session.socket(path) as here:
            assert await asyncio.gather(ask(here), ask(here)) == [content[::-1]] * 2
            # A client that hangs on does not keep the end from coming.
            _, left = await asyncio.open_unix_connection(here)
            left.write(b"hold")
            await held.wait()
        left.close()
        await left.wait_closed()
        assert Path(here).exists() == (here == path)

    machine.use(work)
    shutil.rmtree(folder)


def test_a_folder_for_sockets_whose_path_is_too_long_is_said(
    there: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))

    async def work(session: Session) -> None:
        with pytest.raises(NodeError, match="Cannot reach `/run/engine") as refused:
            async with session.socket("/run/engine.sock"):
                pass
        assert "too long" in refused.value.cause
        assert "TMPDIR" in refused.value.hint

    there.use(work)


# ---- a connection that ends in the middle ----
def lost(there: Machine, work: Callable[[Session, Callable[[], None]], Awaitable[None]]) -> None:
    assert there.sshd is not None
    cut = there.sshd.cut_connections

    async def until_it_is_cut(session: Session) -> None:
        with pytest.raises(NodeError, match="The connection to node `machine` was lost") as refused:
            await work(session, cut)
        assert refused.value.kind == "lost"
        assert refused.value.cause
        with pytest.raises(NodeError, match="was lost"):
            await session.run("true", timeout=20)

    there.use(until_it_is_cut)


def test_a_connection_lost_during_a_command_is_an_error(there: Machine) -> None:
    async def work(session: Session, cut: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(0.3, cut)
        await session.run("echo begun; sleep 3", timeout=20)

    lost(there, work)


def test_a_connection_lost_between_lines_is_an_error(there: Machine) -> None:
    async def work(session: Session, cut: Callable[[], None]) -> None:
        async for line in session.lines("echo begun; sleep 3; echo end"):
            assert line == "begun"
            cut()

    lost(there, work)


def test_a_connection_lost_during_an_upload_leaves_what_was_there(there: Machine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(64 * MIB))
    (there.folder / "file").write_text("before")

    async def work(session: Session, cut: Callable[[], None]) -> None:
        await session.upload(str(source), f"{there.path}/file", lambda _: cut())

    lost(there, work)
    until = time.monotonic() + 10
    while there.names() != ["file"] and time.monotonic() < until:
        time.sleep(0.05)
    assert there.names() == ["file"]
    assert (there.folder / "file").read_text() == "before"


def test_a_connection_lost_before_files_are_put_is_an_error(there: Machine) -> None:
    async def work(session: Session, cut: Callable[[], None]) -> None:
        cut()
        await session.put([File(path=f"{there.path}/file", content="x")])

    lost(there, work)
    assert there.names() == []
