"""A node over SSH. The only importer of asyncssh, so its exceptions end here."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shlex
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import asyncssh

from homelab.errors import NodeError
from homelab.inventory import Node
from homelab.nodes.session import Result

if TYPE_CHECKING:
    from homelab.service import File

logger = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 15


class _Client(asyncssh.SSHClient):
    """Remembers the host key that was not known, where it was looked for and at which port, so that the
    refusal can show it."""

    def __init__(self, port: int | None) -> None:
        self.port = port or 22
        self.refused: tuple[str, int, asyncssh.SSHKey] | None = None
        self.files: list[Path] = []

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.refused = (host, port, key)
        return False


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
    """A session to a node; host keys are checked against the known hosts of the user. Of ~/.ssh/config holds
    what the inventory does not say, but nothing of this machine goes along: no agent, no variables.

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
        yield SSHSession(name, connection)
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
            forget = [
                "ssh-keygen",
                *([] if usual else ["-f", str(file)]),
                "-R",
                host if port == 22 else f"[{host}]:{port}",
            ]
            return NodeError(
                f"The host key of node `{name}` has CHANGED",
                cause=f"{host} port {port} offers {key.get_algorithm()} {key.get_fingerprint()}, another one is in {'~/.ssh/known_hosts' if usual else file}",
                hint=f"If the machine was installed anew: {shlex.join(forget)}. If not, somebody stands in between",
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
            hint=f"Start sshd there (Debian: sudo apt install openssh-server), or write `away: true` under nodes.{name}",
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

    def __init__(self, node: str, connection: asyncssh.SSHClientConnection) -> None:
        self.node = node
        self._connection = connection

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> Result:
        # The login shell may be fish or csh: the command itself is always sh's.
        line = f"sh -c {shlex.quote(command)}"
        logger.info("%s: %s", self.node, " ".join(command.split())[:300])
        try:
            done = await self._connection.run(
                line,
                input=input,
                stdin=asyncssh.DEVNULL if input is None else asyncssh.PIPE,
                encoding=None,
                timeout=timeout,
            )
        except (asyncssh.TimeoutError, TimeoutError) as e:
            raise NodeError(
                f"Node `{self.node}` took longer than {timeout:.0f} s", cause=command[:200], kind="timeout"
            ) from e
        except (asyncssh.Error, OSError) as e:
            raise self._lost(e) from e
        logger.debug(
            "%s: exit %s %s",
            self.node,
            done.exit_status,
            _bytes(done.stderr)[-2000:].decode(errors="replace"),
        )
        status = done.exit_status if done.exit_status is not None and done.exit_status >= 0 else 255
        return Result(
            stdout=_bytes(done.stdout),
            stderr=_bytes(done.stderr).decode(errors="replace"),
            exit_status=status,
        )

    async def put(self, files: Sequence[File]) -> None:
        path = ""
        try:
            async with self._connection.start_sftp_client() as sftp:
                for folder in sorted({os.path.dirname(f.path) for f in files}):
                    path = folder
                    await sftp.makedirs(folder, exist_ok=True)
                for file in files:
                    path = file.path
                    temporary = f"{file.path}.new"
                    if await sftp.exists(temporary):
                        await sftp.remove(temporary)
                    attributes = asyncssh.SFTPAttrs(permissions=file.mode)
                    async with sftp.open(temporary, "wb", attributes) as out:
                        await out.write(file.content.encode())
                    await sftp.posix_rename(temporary, file.path)
        except asyncssh.SFTPError as e:
            raise NodeError(
                f"Cannot write `~/{path}` on node `{self.node}`",
                cause=e.reason,
                hint="Is the disk full? homelab discover shows what is free",
                kind="write",
            ) from e
        except (asyncssh.Error, OSError) as e:
            raise self._lost(e) from e

    async def upload(self, local: str, path: str, progress: Callable[[int], None]) -> None:
        before = 0

        def moved(_source: bytes, _target: bytes, done: int, _total: int) -> None:
            nonlocal before
            progress(done - before)
            before = done

        try:
            async with self._connection.start_sftp_client() as sftp:
                await sftp.makedirs(os.path.dirname(path), exist_ok=True)
                await sftp.put(local, f"{path}.new", progress_handler=moved)
                await sftp.posix_rename(f"{path}.new", path)
        except asyncssh.SFTPError as e:
            raise NodeError(
                f"Cannot copy `{local}` to node `{self.node}`",
                cause=e.reason,
                hint="Is the disk full? homelab discover shows what is free",
                kind="write",
            ) from e
        except (asyncssh.Error, OSError) as e:
            raise self._lost(e) from e

    async def lines(self, command: str) -> AsyncIterator[str]:
        try:
            async with self._connection.create_process(
                f"sh -c {shlex.quote(command)}", stdin=asyncssh.DEVNULL, stderr=asyncssh.STDOUT, encoding=None
            ) as process:
                async for line in process.stdout:
                    if not line:
                        continue  # the end: asyncssh gives it as a line too
                    yield _bytes(line).decode(errors="replace").rstrip("\n")
        except (asyncssh.Error, OSError) as e:
            raise self._lost(e) from e

    @asynccontextmanager
    async def socket(self, path: str) -> AsyncIterator[str]:
        with tempfile.TemporaryDirectory(prefix="homelab-") as folder:
            here = os.path.join(folder, "engine.sock")
            listener = await self._connection.forward_local_path(here, path)
            try:
                yield here
            finally:
                listener.close()
                await listener.wait_closed()

    def _lost(self, e: Exception) -> NodeError:
        return NodeError(
            f"The connection to node `{self.node}` was lost",
            cause=str(e) or type(e).__name__,
            hint="Run the same command again: it goes on where it stopped",
            kind="lost",
        )


def _bytes(data: bytes | str | None) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data or b"")
