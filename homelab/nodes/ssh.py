"""A node over SSH. The only importer of asyncssh, so its exceptions end here."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import os
import re
import shlex
import socket
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import asyncssh

from homelab.errors import NodeError
from homelab.inventory import Node
from homelab.nodes.session import GRACE_SECONDS, Result, lines_of, not_written, source_file, took_too_long

if TYPE_CHECKING:
    from homelab.service import File

logger = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 15
COPY_BYTES = 256 * 1024
READ_BYTES = 64 * 1024
# For the commands that end another one: a node that hangs shall not keep anybody waiting.
END_SECONDS = 3.0
GROUP = b"homelab-process-group "


class _Client(asyncssh.SSHClient):
    """Remembers the host key that was not known, where it was looked for and at which port, and why the
    connection ended."""

    def __init__(self, port: int | None) -> None:
        self.lost: Exception | None = None
        self.port = port or 22
        self.refused: tuple[str, int, asyncssh.SSHKey] | None = None
        self.files: list[Path] = []

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.refused = (host, port, key)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc


COMPARE = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"


class UnknownHostKey(NodeError):
    """A host that was never seen before: its key can be shown to the user and accepted."""

    def __init__(self, name: str, host: str, port: int, key: asyncssh.SSHKey, file: Path, login: str) -> None:
        self.name, self.file, self.login = name, file, login
        self.line = f"{host if port == 22 else f'[{host}]:{port}'} {key.export_public_key().decode().strip()}"
        self.fingerprint = key.get_fingerprint()
        super().__init__(
            f"The host key of node `{name}` is not known yet",
            cause=f"{host} port {port} offers {key.get_algorithm()} {self.fingerprint}",
            hint=f"Compare it on that machine ({COMPARE}), then accept it once: {login}",
            kind="host-key-unknown",
        )


@asynccontextmanager
async def connect(name: str, node: Node, *, timeout: float) -> AsyncIterator[SSHSession]:
    """A session to a node. Host keys are checked against the user's known hosts. Of ~/.ssh/config holds what
    the inventory does not say, but nothing of this machine goes along: no agent, no variables.

    Raises NodeError: refused, timed out, unknown or changed host key, no login."""
    client = _Client(node.port)
    options: dict[str, Any] = {
        **_written(node),
        "connect_timeout": timeout,
        "login_timeout": timeout + 5,
        "keepalive_interval": KEEPALIVE_SECONDS,
        "preferred_auth": "publickey",
        "client_factory": lambda: client,
        "encoding": None,
        "agent_forwarding": False,
        "send_env": [],
        "env": {},
        "request_pty": False,
    }
    if node.identity:
        options["client_keys"] = [os.path.expanduser(node.identity)]
    try:
        client.files, client.port = _known_hosts_files(node)
        known = asyncssh.read_known_hosts([str(f) for f in client.files if _readable(f)])
        connection = await asyncssh.connect(node.host, known_hosts=known, **options)
    except (asyncssh.Error, OSError, ValueError) as e:
        raise _refusal(name, node, client, e) from e
    try:
        yield SSHSession(name, connection, client)
    finally:
        connection.close()
        await connection.wait_closed()


def accept(error: UnknownHostKey) -> None:
    """Write a key that the user has looked at into the file where it was looked for first.

    Raises NodeError when that cannot be written."""
    try:
        error.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(error.file, "a+b", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.seek(0)
            ended = file.read()[-1:] in (b"", b"\n")  # a line that a person wrote may lack its end
            file.write(("" if ended else "\n").encode() + error.line.encode() + b"\n")
    except OSError as e:
        raise NodeError(
            f"The host key of node `{error.name}` cannot be kept",
            cause=str(e),
            hint=error.login,
            kind="write",
        ) from e


def _written(node: Node) -> dict[str, Any]:
    """What the inventory says; asyncssh takes the rest from ~/.ssh/config."""
    return {key: value for key, value in (("port", node.port), ("username", node.user)) if value is not None}


def _known_hosts_files(node: Node) -> tuple[list[Path], int]:
    """Where ssh looks for a node's key, the first is where it writes; and the port that it takes.

    asyncssh itself leaves out the system's file, fails on a file that is not there, and takes
    `UserKnownHostsFile none` as leave to check nothing. A user without a file of known hosts is still asked
    once, not at every command."""
    taken = asyncssh.SSHClientConnectionOptions(
        config=(), client_keys=None, agent_path=None, host=node.host, **_written(node)
    )
    config = taken.config
    mine = [f for f in cast(list[str], config.get("UserKnownHostsFile", [])) if f != os.devnull] or [
        "~/.ssh/known_hosts"
    ]
    everybodys = cast(list[str], config.get("GlobalKnownHostsFile", [])) or ["/etc/ssh/ssh_known_hosts"]
    return [Path(f).expanduser() for f in (*mine, *everybodys)], taken.port


def _readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)


def _refusal(name: str, node: Node, client: _Client, e: Exception) -> NodeError:
    where = f"connect to host {node.host} port {client.port}"
    target = f"{node.user}@{node.host}" if node.user else node.host
    port_option = f"-p {node.port} " if node.port not in (None, 22) else ""
    login = f"ssh {port_option}{target}"
    if client.refused is not None:
        host, port, key = client.refused
        if (file := _known_in(client.files, host, port)) is not None:
            usual = file == Path.home() / ".ssh" / "known_hosts"
            known_in = "~/.ssh/known_hosts" if usual else file
            forget = [
                "ssh-keygen",
                *([] if usual else ["-f", str(file)]),
                "-R",
                host if port == 22 else f"[{host}]:{port}",
            ]
            return NodeError(
                f"The host key of node `{name}` has CHANGED",
                cause=f"{host} port {port} offers {key.get_algorithm()} {key.get_fingerprint()}, "
                f"another one is in {known_in}",
                hint=f"If the machine was installed anew: {shlex.join(forget)}. "
                "If not, somebody stands in between",
                kind="host-key-changed",
            )
        return UnknownHostKey(name, host, port, key, client.files[0], login)
    if isinstance(e, asyncssh.PermissionDenied):
        return NodeError(
            f"Node `{name}` lets nobody in with these keys",
            cause=f"{target}: {e.reason}",
            hint=f"ssh-copy-id {port_option}{target}, or give `user` and `identity` in the inventory",
            kind="login",
        )
    if isinstance(e, ConnectionRefusedError):
        return NodeError(
            f"Cannot reach node `{name}`",
            cause=f"{where}: Connection refused",
            hint="Start sshd there (Debian: sudo apt install openssh-server), "
            f"or write `away: true` under nodes.{name}",
            kind="refused",
        )
    if (
        isinstance(e, TimeoutError | asyncio.TimeoutError)
        or "timed out" in str(e).lower()
        or "timeout" in str(e).lower()
    ):
        return NodeError(
            f"Node `{name}` does not answer",
            cause=f"{where}: no answer in time",
            hint=f"Is it on? If it sleeps often: `away: true` under nodes.{name}",
            kind="timeout",
        )
    if isinstance(e, socket.gaierror):
        return NodeError(
            f"Cannot find node `{name}`",
            cause=f"{node.host}: {e.strerror}",
            hint=f"Check `host` under nodes.{name}: a name needs DNS or mDNS, an address always works",
            kind="name",
        )
    if isinstance(e, FileNotFoundError | asyncssh.KeyImportError | PermissionError) and node.identity:
        return NodeError(
            f"The identity file of node `{name}` cannot be used",
            cause=f"{node.identity}: {e}",
            hint=f"Check `identity` under nodes.{name}; a key with a passphrase must be in ssh-agent",
            kind="identity",
        )
    said = os.strerror(e.errno) if isinstance(e, OSError) and e.errno and e.errno > 0 else str(e)
    if isinstance(e, OSError) and e.errno in (errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH):
        hint = f"Is it on? If it sleeps often: `away: true` under nodes.{name}"
        return NodeError(
            f"Node `{name}` does not answer", cause=f"{where}: {said}", hint=hint, kind="timeout"
        )
    return NodeError(
        f"Cannot reach node `{name}`",
        cause=f"{where}: {said}",
        hint=f"Try by hand: {login}",
        kind="unreachable",
    )


def _known_in(files: Sequence[Path], host: str, port: int) -> Path | None:
    for path in filter(_readable, files):
        if asyncssh.match_known_hosts(asyncssh.read_known_hosts(str(path)), host, "", port)[0]:
            return path
    return None


class SSHSession:
    """One connection, many commands."""

    def __init__(self, node: str, connection: asyncssh.SSHClientConnection, client: _Client) -> None:
        self.node = node
        self._connection = connection
        self._client = client

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> Result:
        logger.info("%s: %s", self.node, " ".join(command.split())[:300])
        try:
            async with asyncio.timeout(timeout), self._started(command, stdin=input is not None) as remote:
                if input is not None:
                    with suppress(BrokenPipeError):  # the command needs no input and has ended already
                        remote.process.stdin.write(input)
                    remote.process.stdin.write_eof()
                result = await self._result(remote)
        except TimeoutError as e:
            raise took_too_long(self.node, command, timeout) from e
        logger.debug("%s: exit %s %s", self.node, result.exit_status, result.stderr[-2000:])
        return result

    async def put(self, files: Sequence[File]) -> None:
        for file in files:
            what = f"Cannot write `~/{file.path}` on node `{self.node}`"
            content = file.content.encode()
            await self._write(what, file.path, file.mode, len(content), io.BytesIO(content), lambda _: None)

    async def upload(self, local: str, path: str, progress: Callable[[int], None]) -> None:
        what = f"Cannot copy `{local}` to node `{self.node}`"
        with source_file(local, what) as source:
            await self._write(what, path, 0o644, os.fstat(source.fileno()).st_size, source, progress)

    async def lines(self, command: str) -> AsyncGenerator[str, None]:
        # On the node both streams are one, in the order in which they are written; SSH carries them apart.
        async with self._started(f"exec 2>&1\n{command}", grace=GRACE_SECONDS) as remote:
            async with aclosing(lines_of(remote.chunks())) as lines:
                async for line in lines:
                    yield line
            await self._result(remote)

    @asynccontextmanager
    async def socket(self, path: str) -> AsyncIterator[str]:
        with tempfile.TemporaryDirectory(prefix="homelab-") as folder:
            here = os.path.join(folder, "engine.sock")
            try:
                listener = await self._connection.forward_local_path(here, path)
            except OSError as e:
                raise NodeError(
                    f"Cannot reach `{path}` on node `{self.node}`",
                    cause=f"{here}: {e.strerror or e}",
                    hint="A socket's path is short: TMPDIR=/tmp",
                    kind="socket",
                ) from e
            try:
                yield here
            finally:
                listener.close()
                await listener.wait_closed()

    async def _write(
        self, what: str, path: str, mode: int, size: int, source: BinaryIO, progress: Callable[[int], None]
    ) -> None:
        """Not by SFTP: there a full disk is no more than "Failure", and not every sshd has it."""
        command = _write_command(path, mode, size)
        async with self._started(command, stdin=True, grace=GRACE_SECONDS) as remote:
            with suppress(BrokenPipeError):  # the command has ended early, and says why
                while chunk := await asyncio.to_thread(source.read, COPY_BYTES):
                    remote.process.stdin.write(chunk)
                    await remote.process.stdin.drain()
                    progress(len(chunk))
            remote.process.stdin.write_eof()
            result = await self._result(remote)
        if result.exit_status != 0:
            raise not_written(what, result.cause)

    @asynccontextmanager
    async def _started(
        self, command: str, *, stdin: bool = False, grace: float = 0
    ) -> AsyncIterator[_Remote]:
        """A running command. If it has not ended with the block, it is ended, with `grace` seconds for it."""
        try:
            process = await self._connection.create_process(
                _for_any_shell(command), stdin=asyncssh.PIPE if stdin else asyncssh.DEVNULL, encoding=None
            )
            remote = _Remote(process)
            try:
                async for line in process.stdout:
                    _, here, group = line.partition(GROUP)
                    if here:  # what the login shell said before is not the command's
                        remote.group, remote.unread = int(group), b""
                        break
                    remote.unread += line
                yield remote
            finally:
                if not remote.ended:
                    await self._end(remote, grace)
        except (asyncssh.Error, OSError) as e:
            raise self._lost(e) from e

    async def _end(self, remote: _Remote, grace: float) -> None:
        """By a second command: OpenSSH (9.2) passes no signal on to what root or a forced command runs."""
        try:
            async with asyncio.timeout(grace + END_SECONDS):
                if grace:
                    await self._signal(remote, "TERM")
                    try:
                        async with asyncio.timeout(grace):
                            await remote.process.communicate()
                            return
                    except TimeoutError:
                        pass
                await self._signal(remote, "KILL")
        except (asyncssh.Error, OSError):
            pass  # the connection is gone, or the node hangs
        finally:
            remote.process.close()

    async def _signal(self, remote: _Remote, name: str) -> None:
        if remote.group is not None:
            await self._connection.run(
                _for_any_shell(f"kill -s {name} -- -{remote.group}"), stdin=asyncssh.DEVNULL
            )

    async def _result(self, remote: _Remote) -> Result:
        """How it ended, with the output that was not read yet."""
        stdout, stderr = await remote.process.communicate()
        remote.ended = True
        status = remote.process.returncode
        if status is None:  # only a connection that ends is no end of a command
            raise self._lost(self._client.lost)
        return Result(
            stdout=remote.unread + stdout,
            stderr=stderr.decode(errors="replace"),
            exit_status=status if status >= 0 else 128 - status,
        )

    def _lost(self, e: Exception | None) -> NodeError:
        return NodeError(
            f"The connection to node `{self.node}` was lost",
            cause=str(e) or type(e).__name__ if e else "it was closed by the node",
            hint="Run the same command again: it goes on where it stopped",
            kind="lost",
        )


@dataclass
class _Remote:
    """A command on a node: its process group, what was read before that was known, whether it is over."""

    process: asyncssh.SSHClientProcess[bytes]
    group: int | None = None
    unread: bytes = b""
    ended: bool = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        if self.unread:
            yield self.unread
            self.unread = b""
        while chunk := await self.process.stdout.read(READ_BYTES):
            yield chunk


# The group is the command's own where the login shell makes way for it, else the login shell's.
START = (
    "kill -s 0 -- -$$ 2>/dev/null && g=$$ || g=$PPID; "
    f'echo "{GROUP.decode()}$g"; '
    'exec sh -c "$(printf %b "$1")"'
)


def _for_any_shell(command: str) -> str:
    """`sh -c COMMAND` as a line that any login shell reads alike; it says its process group first.

    Between single quotes csh knows `!` and takes no end of line, fish knows `\\`: printf makes them."""
    plain = re.sub(r"[\\'!\n]", lambda special: f"\\0{ord(special[0]):03o}", command)
    return f"sh -c '{START}' sh '{plain}'"


# The redirection opens the file before its mode is set, which may not let its owner write. To `cat` the end
# of a lost connection is like any other, so the size is looked at. `mv` moves a file into a folder.
WRITE = """\
mkdir -p -- "$folder" || exit
if [ -d "$path" ]; then echo "$path: Is a directory" >&2; exit 1; fi
aside=$(mktemp "$folder/.$name.XXXXXX") || exit
trap 'rm -f -- "$aside"' EXIT
trap 'exit 1' HUP INT PIPE TERM
{ chmod "$mode" "$aside" && cat; } > "$aside" || exit
if [ -z "$(find "$aside" -size "${size}c")" ]; then echo "it did not come whole: $size bytes" >&2; exit 1; fi
mv -f -- "$aside" "$path"
"""


def _write_command(path: str, mode: int, size: int) -> str:
    """A command for sh that writes its standard input aside and renames it."""
    folder, name = os.path.split(path if path.startswith("/") else f"./{path}")
    values = {
        "folder": folder,
        "name": name,
        "path": f"{folder}/{name}",
        "mode": f"{mode:o}",
        "size": str(size),
    }
    return "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items()) + WRITE
