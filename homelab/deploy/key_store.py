"""The list of people's keys on the gateway's node: read, and put in the place of the one that was read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from homelab import keys
from homelab.errors import DeployError, NodeError
from homelab.inventory import Inventory
from homelab.keys import Key, Keys
from homelab.nodes import connect
from homelab.nodes.bundle import program_command
from homelab.nodes.session import Session

# `flock` and not rename alone: who writes compares first, so that of two changes at once none is lost.
PROGRAM = """\
import fcntl, json, os, sqlite3, sys, tempfile, urllib.request
request = json.load(sys.stdin)
folder, auth = os.path.expanduser("~/" + request["folder"]), os.path.expanduser("~/" + request["auth"])
path = os.path.join(folder, "keys.json")
answer = {"known": os.path.exists(auth)}
def read():
    try:
        with open(path, "rb") as f:
            return f.read()
    except FileNotFoundError:
        return b""
def usage():
    try:
        name = os.path.join(folder, "usage.sqlite")
        if not os.path.exists(name):
            return []
        quoted = urllib.request.pathname2url(name)
        c = sqlite3.connect("file:%s?mode=ro" % quoted, uri=True, timeout=5)
        try:
            return c.execute(
                "SELECT key, day, requests, prompt_tokens, completion_tokens, last_use FROM usage"
            ).fetchall()
        finally:
            c.close()
    except sqlite3.Error as e:
        answer["ledger"] = str(e)
        return []
def writable():
    try:
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(b"\\0" * 65536)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        answer["ledger"] = e.strerror
try:
    if request["write"] is None:
        answer["text"] = read().decode()
        if os.path.isdir(folder):
            writable()
        answer["usage"] = usage()
    elif answer["known"]:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer["text"] = read().decode()
        answer["written"] = answer["text"] == request["expected"]
        if answer["written"]:
            number, aside = tempfile.mkstemp(dir=folder, prefix=".keys.")
            try:
                with os.fdopen(number, "wb") as f:
                    f.write(request["write"].encode())
                    f.flush()
                    os.fsync(f.fileno())
                os.replace(aside, path)
            except BaseException:
                os.unlink(aside)
                raise
except (OSError, ValueError) as e:
    answer = {"error": str(e)}
print(json.dumps(answer))
"""
SECONDS = 30.0
# More would be somebody who changes keys without end.
TRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What lies on the node: the keys, what each has used by its id as the ledger's rows, and why the ledger
    takes nothing, where it does not."""

    keys: Keys
    usage: tuple[tuple[Any, ...], ...]
    ledger_error: str


async def load(inventory: Inventory, auth: str) -> Stored:
    """`auth`: where the file lies by which the running gateway asks for keys, relative to the home.

    Raises NodeError, DeployError."""
    node = inventory.gateway.node
    async with connect(node, inventory.nodes[node]) as session:
        answer = await _ask(session, inventory, auth)
    return Stored(
        keys=keys.from_json(answer["text"]),
        usage=tuple(map(tuple, answer["usage"])),
        ledger_error=answer.get("ledger", ""),
    )


async def change(inventory: Inventory, auth: str, changed: Callable[[Keys], dict[str, Key]]) -> None:
    """Put what `changed` makes of the keys in their place. It is asked again where somebody else was faster.

    Raises what it raises, NodeError, DeployError."""
    node = inventory.gateway.node
    async with connect(node, inventory.nodes[node]) as session:
        text = (await _ask(session, inventory, auth))["text"]
        for _ in range(TRIES):
            wanted = keys.to_json(changed(keys.from_json(text)))
            answer = await _ask(session, inventory, auth, write=wanted, expected=text)
            if answer["written"]:
                return
            text = answer["text"]
    raise DeployError("The list of keys is changed by somebody else all the time", hint="Try it again")


async def _ask(
    session: Session, inventory: Inventory, auth: str, *, write: str | None = None, expected: str = ""
) -> dict[str, Any]:
    request = {"folder": keys.folder(inventory.cluster), "auth": auth, "write": write, "expected": expected}
    command = program_command(PROGRAM, python=inventory.nodes[session.node].python)
    done = await session.run(command, input=json.dumps(request).encode(), timeout=SECONDS)
    try:
        answer = json.loads(done.text)
        failed = answer.get("error", "")
    except (ValueError, AttributeError):
        answer, failed = {}, done.cause
    if failed:
        raise NodeError(
            f"The list of keys on node `{session.node}` cannot be {'written' if write else 'read'}",
            cause=failed,
            hint=f"Is the disk full, or the folder somebody else's? There: ls -la ~/{request['folder']}",
            kind="keys",
        )
    if not answer["known"]:
        raise DeployError(
            "The gateway that runs was deployed by an earlier homelab and knows no keys but its own",
            hint="homelab deploy --upgrade (it restarts the gateway)",
        )
    return dict(answer)
