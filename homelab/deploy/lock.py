"""One deploy or remove at a time for a cluster, whichever controller it comes from.

On each node that is changed a small program of ours holds a lock for as long as the connection lasts: it
ends with the controller, and what a dead connection leaves behind says who it was and since when, for
`homelab unlock`. A controller whose lock was taken away stops: another one may be at work."""

from __future__ import annotations

import asyncio
import getpass
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from homelab.errors import DeployError, NodeError
from homelab.inventory import Inventory
from homelab.nodes import connect
from homelab.nodes.bundle import program_command
from homelab.nodes.session import took_too_long

HOLD = """\
import errno, fcntl, json, os, select, signal, sys, time
path, owner, token, patience = os.path.expanduser(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
def ours():
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except OSError as e:
        return e.errno != errno.ENOENT
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
    except OSError as e:
        if e.errno not in (errno.EAGAIN, errno.EACCES):
            sys.exit(str(e))
        if time.monotonic() > until:
            file.seek(0)
            print("held " + (file.read().strip() or "{}"), flush=True)
            sys.exit(75)
        time.sleep(0.1)
    file.close()
since, host = time.strftime("%Y-%m-%d %H:%M:%S"), os.uname()[1]
text = json.dumps({"owner": owner, "since": since, "pid": os.getpid(), "host": host, "token": token})
try:
    os.ftruncate(file.fileno(), 0)
    os.write(file.fileno(), text.encode())
except OSError:
    pass  # the disk is full: it is held all the same
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
    else:
        print("taken", flush=True)
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
    try:
        if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            os.unlink(path)
    except OSError:
        pass
    print("held " + (text or "{}"))
    try:
        held = json.loads(text)
        if held["host"] == os.uname()[1]:
            os.kill(held["pid"], signal.SIGTERM)
    except (OSError, ValueError, KeyError, TypeError):
        pass
"""
# A controller that was killed a moment ago is not at work: its connection is about to close.
PATIENCE_SECONDS = 2.0
# For an answer; a home that hangs gives none.
ANSWER_SECONDS = 30.0
AGAIN_SECONDS = 5.0


def lock_file(cluster: str) -> str:
    """Beside the cluster's folder, which `remove` takes away."""
    return f"~/.local/share/homelab/{cluster}.lock"


def owner() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


@asynccontextmanager
async def locked(inventory: Inventory, nodes: Sequence[str]) -> AsyncIterator[None]:
    """Hold the cluster's lock on these nodes. Where it is taken away, what is done under it is cancelled.

    Raises DeployError with who holds it and since when, or that it was taken away; NodeError where a node
    cannot be asked."""
    working = asyncio.current_task()
    assert working is not None
    taken_away: list[DeployError] = []
    over = False

    def lose(error: DeployError) -> None:
        if not over:
            taken_away.append(error)
            working.cancel()

    ours = _Ours(inventory, secrets.token_hex(8), lose)
    try:
        async with AsyncExitStack() as stack:
            for name in sorted(nodes):  # in one order, so that two do not wait for each other
                first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                stack.push_async_callback(_stop, asyncio.create_task(ours.keep(name, first)))
                await first
            try:
                yield
            finally:
                over = True
    except asyncio.CancelledError:
        if not taken_away:
            raise
        for _ in taken_away:
            working.uncancel()
        raise taken_away[0] from None


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


class _Held(DeployError):
    """Somebody else holds the lock."""


@dataclass(frozen=True, slots=True)
class _Ours:
    """The locks of one deploy; `token` tells them from those of others."""

    inventory: Inventory
    token: str
    lose: Callable[[DeployError], None]

    async def keep(self, name: str, first: asyncio.Future[None]) -> None:
        """Hold the lock on a node until it is taken away. Where its connection or its holder is lost, it is
        taken again once the node can be reached. `first`: that it is held, or why it cannot be."""
        while True:
            try:
                async with self._held(name) as beats:
                    if not first.done():
                        first.set_result(None)
                    last = ""
                    async for beat in beats:
                        last = beat  # no more is kept: a node may say as much as it likes
                if last == "taken":
                    self.lose(_taken_away(name, self.inventory.cluster))
                    return
            except Exception as e:
                if not first.done():
                    first.set_exception(e)
                    return
                if isinstance(e, _Held):
                    self.lose(e)
                    return
                if not isinstance(e, (NodeError, DeployError)):
                    raise
            await asyncio.sleep(AGAIN_SECONDS)

    @asynccontextmanager
    async def _held(self, name: str) -> AsyncIterator[AsyncIterator[str]]:
        """The lock on a node, as what its holder says while it holds it.

        Raises DeployError, _Held with who else holds it, NodeError."""
        node, cluster = self.inventory.nodes[name], self.inventory.cluster
        words = [lock_file(cluster), owner(), self.token, str(PATIENCE_SECONDS)]
        command = program_command(HOLD, *words, python=node.python)
        async with (
            connect(name, node) as session,
            aclosing(session.lines(command)) as beats,
        ):
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    said = await anext(beats, "")
            except TimeoutError:
                raise took_too_long(name, "lock", ANSWER_SECONDS) from None
            # By another name of this machine, or for a connection of ours that it does not know to be gone.
            mine = _parse(said.removeprefix("held ")).get("token") == self.token
            if said != "locked" and not mine:
                raise _refusal(name, cluster, said)
            yield beats


def _taken_away(node: str, cluster: str) -> DeployError:
    return DeployError(
        f"The lock of cluster `{cluster}` on node `{node}` was taken away: all work has stopped where it was",
        cause="somebody ran homelab unlock",
        hint="Once nobody else is at work: homelab plan",
    )


def _refusal(node: str, cluster: str, said: str) -> DeployError:
    held = _parse(said.removeprefix("held "))
    if not said.startswith("held "):
        return DeployError(
            f"Cluster `{cluster}` cannot be locked on node `{node}`",
            cause=said or "no answer",
            hint="Is the disk full, or the home not writable?",
        )
    return _Held(
        f"Another homelab is changing cluster `{cluster}` on node `{node}`",
        cause=f"{held.get('owner', 'unknown')}, since {held.get('since', 'unknown')} by that machine's clock",
        hint="Wait for it to end. If it is gone and its connection was never closed: homelab unlock",
    )


async def unlock(inventory: Inventory, nodes: Sequence[str]) -> tuple[dict[str, str], dict[str, NodeError]]:
    """Take the cluster's lock from whoever holds it: by node, who that was, and which nodes could not be
    asked."""
    held: dict[str, str] = {}
    errors: dict[str, NodeError] = {}

    async def on(name: str) -> None:
        python = inventory.nodes[name].python
        try:
            async with connect(name, inventory.nodes[name]) as session:
                command = program_command(RELEASE, lock_file(inventory.cluster), python=python)
                said = (await session.run(command, timeout=ANSWER_SECONDS)).text
        except NodeError as e:
            errors[name] = e
            return
        if said.startswith("held "):
            was = _parse(said.removeprefix("held "))
            held[name] = f"{was.get('owner', 'unknown')}, since {was.get('since', 'unknown')}"

    await asyncio.gather(*(on(n) for n in nodes))
    return held, errors


def _parse(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
