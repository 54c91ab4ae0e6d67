"""What can be done on a node, whether over SSH or on this machine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from homelab.errors import NodeError

if TYPE_CHECKING:
    from homelab.service import File


# How long a command that is to end may clean up before it is killed.
GRACE_SECONDS = 3.0
# More than an agent has to say (ANSWER_BYTES in homelab/facts.py): what is longer is no line of anybody's.
LONGEST_LINE_BYTES = 17 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a command ended; `stderr` is text, in the tool's own words.

    One that a signal ended has the status that shells give it: 128 and the signal's number."""

    stdout: bytes
    stderr: str
    exit_status: int

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")

    @property
    def cause(self) -> str:
        """The end of what the command said, for an error."""
        said = (self.stderr.strip() or self.text.strip()).splitlines()
        return "\n".join(said[-8:]) or f"exit status {self.exit_status}"


class Session(Protocol):
    """An open connection to one node. Commands run in the user's home under `sh`; paths are relative to it.

    Who stops waiting for a command, because its time is up or otherwise, ends it."""

    @property
    def node(self) -> str: ...
    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> Result:
        """Raises NodeError when the connection is lost or the time is up; a failing command is a Result."""
        ...

    async def put(self, files: Sequence[File]) -> None:
        """Write files, each aside and then renamed over its name, with its mode from the first byte on.

        Raises NodeError in the node's own words (no space, no permission); nothing half written stays."""
        ...

    async def upload(self, local: str, path: str, progress: Callable[[int], None]) -> None:
        """Copy one large file as `put` does; `progress` is told how many bytes more have gone."""
        ...

    def lines(self, command: str) -> AsyncGenerator[str, None]:
        """The output of a command as it comes, both streams; ends with the command.

        Raises NodeError when the connection is lost."""
        ...

    def socket(self, path: str) -> AbstractAsyncContextManager[str]:
        """A unix socket of the node as a unix socket here."""
        ...


async def lines_of(chunks: AsyncIterable[bytes]) -> AsyncGenerator[str, None]:
    """Output as text, line by line; what has no end of line at the end is a line too. One that grows beyond
    LONGEST_LINE_BYTES comes in pieces: what a node says is kept by nobody without an end."""
    begun: list[bytes] = []
    size = 0
    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            yield b"".join((*begun, end)).decode(errors="replace")
            begun.clear()
            size = 0
        if rest:
            begun.append(rest)
            size += len(rest)
        if size > LONGEST_LINE_BYTES:
            yield b"".join(begun).decode(errors="replace")
            begun.clear()
            size = 0
    if begun:
        yield b"".join(begun).decode(errors="replace")


def took_too_long(node: str, command: str, seconds: float | None) -> NodeError:
    return NodeError(f"Node `{node}` took longer than {seconds:g} s", cause=command[:200], kind="timeout")


def not_written(what: str, cause: str) -> NodeError:
    hint = "Is the disk full, or the folder somebody else's? homelab discover shows what is free"
    return NodeError(what, cause=cause, hint=hint, kind="write")


def source_file(local: str, what: str) -> BinaryIO:
    """The file to copy, open. Raises NodeError."""
    try:
        return open(local, "rb")
    except OSError as e:
        raise NodeError(what, cause=e.strerror or "", hint="It lies on this machine", kind="read") from e
