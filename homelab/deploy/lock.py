"""One deploy or remove at a time for a cluster, whichever controller it comes from.

On each node that is changed a small program of ours holds a lock for as long as the connection lasts: it
ends with the controller, and what a dead connection leaves behind says who it was and since when, for
`homelab unlock`. A controller whose lock was taken away stops: another one may be at work."""

from __future__ import annotations

import asyncio
import getpass
import json
import secrets
import shlex
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from homelab.errors import DeployError, NodeError
from homelab.inventory import Inventory
from homelab.nodes import connect

HOLD = """\
import errno, fcntl, json, os, select, signal, sys, time
path, owner, token, patience = os.path.expanduser(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
def ours():
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except OSError:
        return False
until = time.monotonic() + patience
while True:
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        file = open(path, "a+")
    except OSError as e:
        # Whoever was here before may have taken the empty folder away between the two.
        if e.errno != errno.ENOENT or time.monotonic() > until:
            sys.exit(str(e))
        continue
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if ours():
            break
    except OSError:
        if time.monotonic() > until:
            file.seek(0)
            print("held " + (file.read().strip() or "{}"), flush=True)
            sys.exit(75)
        time.sleep(0.1)
    file.close()
file.truncate(0)
since = time.strftime("%Y-%m-%d %H:%M:%S")
file.write(json.dumps({"owner": owner, "since": since, "pid": os.getpid(), "token": token}))
file.flush()
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: sys.exit())
gone = select.poll()
gone.register(1, 0)  # nothing is asked for: only that nobody reads any more
try:
    print("locked", flush=True)
    while ours() and not gone.poll(1000):
        print(".", flush=True)
except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
finally:
    if ours():
        os.unlink(path)
        try:
            os.rmdir(os.path.dirname(path))
        except OSError:
            pass
"""
RELEASE = """\
import fcntl, json, os, signal, sys
path = os.path.expanduser(sys.argv[1])
try:
    file = open(path, "r+")
except OSError:
    sys.exit(0)
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    text = file.read()
    os.unlink(path)
    try:
        os.kill(json.loads(text)["pid"], signal.SIGTERM)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    print(text)
"""


# A controller that was killed a moment ago is not at work: its connection is about to close.
PATIENCE_SECONDS = 2.0


def lock_file(cluster: str) -> str:
    """Beside the cluster's folder, which `remove` takes away."""
    return f"~/.local/share/homelab/{cluster}.lock"


def owner() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


@asynccontextmanager
async def locked(inventory: Inventory, nodes: Sequence[str]) -> AsyncIterator[None]:
    """Hold the cluster's lock on these nodes. Where it is taken away, what is done under it is cancelled.

    Raises DeployError with who holds it and since when, or who took it; NodeError where a node cannot be
    asked."""
    working = asyncio.current_task()
    assert working is not None
    taken_away: list[DeployError] = []

    def lose(error: DeployError) -> None:
        taken_away.append(error)
        working.cancel()

    ours = _Ours(inventory, secrets.token_hex(8), lose)
    try:
        async with AsyncExitStack() as stack:
            for name in sorted(nodes):  # in one order, so that two do not wait for each other
                beats = await stack.enter_async_context(ours.held(name))
                stack.push_async_callback(_stop, asyncio.create_task(ours.keep(name, beats)))
            yield
    except asyncio.CancelledError:
        if not taken_away:
            raise
        for _ in taken_away:
            working.uncancel()
        raise taken_away[0] from None


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class _HeldByUs(Exception):
    """The node has not noticed yet that a connection is gone, and keeps the lock for it."""


@dataclass(frozen=True, slots=True)
class _Ours:
    """The locks of one deploy; `token` tells them from those of others."""

    inventory: Inventory
    token: str
    lose: Callable[[DeployError], None]

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[AsyncIterator[str]]:
        """The lock on a node for as long as what is given back goes on.

        Raises DeployError with who else holds it, NodeError."""
        node, cluster = self.inventory.nodes[name], self.inventory.cluster
        words = [node.python or "python3", "-c", HOLD, lock_file(cluster), owner(), self.token]
        async with (
            connect(name, node) as session,
            aclosing(session.lines(shlex.join([*words, str(PATIENCE_SECONDS)]))) as beats,  # type: ignore[type-var]
        ):
            first = await anext(beats, "")
            if _parse(first.removeprefix("held ")).get("token") == self.token:
                raise _HeldByUs
            if first != "locked":
                raise _refusal(name, cluster, first)
            yield beats

    async def keep(self, name: str, beats: AsyncIterator[str]) -> None:
        """Until the lock is taken away. Where its connection is lost it is taken again; a node that cannot be
        reached is left to the work there, which fails by itself."""
        try:
            async for _ in beats:
                pass
        except NodeError:
            with suppress(NodeError, _HeldByUs):
                try:
                    async with self.held(name) as again:
                        await self.keep(name, again)
                except DeployError as e:
                    self.lose(e)
            return
        self.lose(
            DeployError(
                f"The lock of cluster `{self.inventory.cluster}` on node `{name}` was taken away: all work "
                "has stopped where it was",
                cause="somebody ran homelab unlock",
                hint="Once nobody else is at work: homelab plan",
            )
        )


def _refusal(node: str, cluster: str, said: str) -> DeployError:
    held = _parse(said.removeprefix("held "))
    if not said.startswith("held "):
        return DeployError(
            f"Cluster `{cluster}` cannot be locked on node `{node}`",
            cause=said or "no answer",
            hint="Is the disk full, or the home not writable?",
        )
    return DeployError(
        f"Another homelab is changing cluster `{cluster}` on node `{node}`",
        cause=f"{held.get('owner', 'unknown')}, since {held.get('since', 'unknown')} by that machine's clock",
        hint="Wait for it to end. If it is gone and its connection was never closed: homelab unlock",
    )


async def unlock(inventory: Inventory, nodes: Sequence[str]) -> dict[str, str]:
    """Take the cluster's lock from whoever holds it; by node, who that was.

    Raises NodeError."""

    async def on(name: str) -> tuple[str, str]:
        async with connect(name, inventory.nodes[name]) as session:
            python = inventory.nodes[name].python or "python3"
            words = [python, "-c", RELEASE, lock_file(inventory.cluster)]
            held = _parse((await session.run(shlex.join(words))).text)
            return name, f"{held['owner']}, since {held.get('since', 'unknown')}" if "owner" in held else ""

    return {name: was for name, was in await asyncio.gather(*(on(n) for n in nodes)) if was}


def _parse(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
