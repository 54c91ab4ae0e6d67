"""This machine as a node: no SSH."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from homelab.errors import NodeError
from homelab.nodes.session import GRACE_SECONDS, Result, lines_of, not_written, source_file, took_too_long

if TYPE_CHECKING:
    from homelab.service import File

logger = logging.getLogger(__name__)

COPY_BYTES = 4 * 1024**2
READ_BYTES = 64 * 1024


class LocalSession:
    """Commands as subprocesses, files as files, both in the user's home."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._home = Path.home()

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> Result:
        logger.info("%s: %s", self.node, " ".join(command.split())[:300])
        process = await self._start(command, stdin=DEVNULL if input is None else PIPE, stderr=PIPE)
        ended = False
        try:
            async with asyncio.timeout(timeout):
                stdout, stderr = await process.communicate(input)
            ended = True
        except TimeoutError as e:
            raise took_too_long(self.node, command, timeout) from e
        finally:
            if not ended:
                await _to_its_end(_kill(process))
        # communicate() has waited for the end, so there is a status; a negative one is a signal's number.
        status = process.returncode or 0
        logger.debug("%s: exit %s %s", self.node, status, stderr[-2000:].decode(errors="replace"))
        return Result(
            stdout=stdout,
            stderr=stderr.decode(errors="replace"),
            exit_status=status if status >= 0 else 128 - status,
        )

    async def put(self, files: Sequence[File]) -> None:
        for file in files:
            try:
                with aside(self._home / file.path, file.mode) as out:
                    out.write(file.content.encode())
            except OSError as e:
                what = f"Cannot write `~/{file.path}` on node `{self.node}`"
                raise not_written(what, e.strerror or "") from e

    async def upload(self, local: str, path: str, progress: Callable[[int], None]) -> None:
        what = f"Cannot copy `{local}` to node `{self.node}`"
        with source_file(local, what) as source:
            try:
                with aside(self._home / path, 0o644) as out:
                    while chunk := await asyncio.to_thread(source.read, COPY_BYTES):
                        out.write(chunk)
                        progress(len(chunk))
            except OSError as e:
                raise not_written(what, e.strerror or "") from e

    async def lines(self, command: str) -> AsyncGenerator[str, None]:
        process = await self._start(command, stdin=DEVNULL, stderr=STDOUT)
        ended = False
        try:
            async with aclosing(_chunks(process)) as chunks, aclosing(lines_of(chunks)) as lines:
                async for line in lines:
                    yield line
            await process.wait()
            ended = True
        finally:
            if not ended:
                await _to_its_end(_end(process))

    @asynccontextmanager
    async def socket(self, path: str) -> AsyncIterator[str]:
        yield path

    async def _start(self, command: str, *, stdin: int, stderr: int) -> Process:
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                "sh", "-c", command,
                cwd=self._home, stdin=stdin, stdout=PIPE, stderr=stderr, start_new_session=True,
            )
        )  # fmt: skip
        try:
            # CPython 3.11 to 3.14 lose a pipe of a start that is cancelled (base_subprocess._connect_pipes).
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await _to_its_end(_drop(starting))
            raise
        except OSError as e:
            raise NodeError(
                f"Cannot run a command on node `{self.node}`",
                cause=f"{e.filename}: {e.strerror}" if e.filename else str(e.strerror),
                kind="run",
            ) from e


async def _chunks(process: Process) -> AsyncGenerator[bytes, None]:
    assert process.stdout is not None
    while chunk := await process.stdout.read(READ_BYTES):
        yield chunk


async def _end(process: Process) -> None:
    _signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            assert process.stdout is not None
            while await process.stdout.read(READ_BYTES):
                pass  # its output ends when all that it started has ended
            await process.wait()
    except TimeoutError:
        await _kill(process)


async def _kill(process: Process) -> None:
    """Ends it, and closes its pipes: what has left its process group may hold their other ends."""
    _signal(process, signal.SIGKILL)
    for fd in range(3):  # asyncio's Process has no public way to its transport
        if pipe := process._transport.get_pipe_transport(fd):  # type: ignore[attr-defined]
            pipe.close()
    await process.wait()


async def _drop(starting: asyncio.Future[Process]) -> None:
    with suppress(OSError):
        await _kill(await starting)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Awaits it also where the caller is cancelled meanwhile: who leaves before leaves a process behind."""
    task, cancelled = asyncio.ensure_future(work), None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as e:
            cancelled = e
    if cancelled is not None:
        raise cancelled


def _signal(process: Process, number: int) -> None:
    """To the command and all that it started: its shell may have ended before them."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


@contextmanager
def aside(path: Path, mode: int) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when all of it is written.

    Raises OSError; then nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():  # rename(2) would put a file in the place of a link to a folder
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
