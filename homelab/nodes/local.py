"""This machine as a node: no SSH."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from homelab.errors import NodeError
from homelab.nodes.session import Result

if TYPE_CHECKING:
    from homelab.service import File

logger = logging.getLogger(__name__)

CHUNK_BYTES = 4 * 1024**2


class LocalSession:
    """Commands as subprocesses, files as files, both in the user's home."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._home = Path.home()

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> Result:
        logger.info("%s: %s", self.node, " ".join(command.split())[:300])
        process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            command,
            cwd=self._home,
            stdin=asyncio.subprocess.PIPE if input is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            stdout, stderr = await asyncio.wait_for(process.communicate(input), timeout)
        except TimeoutError as e:
            raise NodeError(
                f"Node `{self.node}` took longer than {timeout:.0f} s", cause=command[:200], kind="timeout"
            ) from e
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        logger.debug("%s: exit %s %s", self.node, process.returncode, stderr[-2000:].decode(errors="replace"))
        return Result(
            stdout=stdout, stderr=stderr.decode(errors="replace"), exit_status=process.returncode or 0
        )

    async def put(self, files: Sequence[File]) -> None:
        for file in files:
            try:
                with aside(self._home / file.path, file.mode) as out:
                    out.write(file.content.encode())
            except OSError as e:
                raise NodeError(
                    f"Cannot write `~/{file.path}` on node `{self.node}`", cause=str(e), kind="write"
                ) from e

    async def upload(self, local: str, path: str, progress: Callable[[int], None]) -> None:
        try:
            with open(local, "rb") as source, aside(self._home / path, 0o644) as out:
                while chunk := await asyncio.to_thread(source.read, CHUNK_BYTES):
                    out.write(chunk)
                    progress(len(chunk))
        except OSError as e:
            raise NodeError(f"Cannot copy `{local}` to node `{self.node}`", cause=str(e), kind="write") from e

    async def lines(self, command: str) -> AsyncIterator[str]:
        process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            command,
            cwd=self._home,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                yield line.decode(errors="replace").rstrip("\n")
        finally:
            if process.returncode is None:
                try:
                    os.killpg(process.pid, signal.SIGTERM)
                except ProcessLookupError:
                    pass
            await process.wait()

    @asynccontextmanager
    async def socket(self, path: str) -> AsyncIterator[str]:
        yield path


@contextmanager
def aside(path: Path, mode: int) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when all of it is written.

    Raises OSError; then nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
