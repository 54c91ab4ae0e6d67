"""What can be done on a node, whether over SSH or on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from homelab.service import File


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a command ended; `stderr` is text, in the tool's own words."""

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
    """An open connection to one node. Commands run in the user's home under `sh`; paths are relative to it."""

    @property
    def node(self) -> str: ...
    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> Result:
        """Raises NodeError when the connection is lost or the time is up; a failing command is a Result."""
        ...

    async def put(self, files: Sequence[File]) -> None:
        """Write files, each aside and then renamed over its name, with its mode from the first byte on.

        Raises NodeError in the node's own words (no space, no permission)."""
        ...

    async def upload(self, local: str, path: str, progress: Callable[[int], None]) -> None:
        """Copy one large file, aside and then renamed."""
        ...

    def lines(self, command: str) -> AsyncIterator[str]:
        """The output of a command as it comes, both streams; ends with the command."""
        ...

    def socket(self, path: str) -> AbstractAsyncContextManager[str]:
        """A unix socket of the node as a unix socket here."""
        ...
