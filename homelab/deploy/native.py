"""A service as a supervised process on a node: bring its environment, start it, wait until it is healthy,
stop and remove it."""

from __future__ import annotations

import asyncio
import json
import shlex
import time

from homelab.deploy.events import LOG_LINES, Event, Tell, last_words
from homelab.errors import DeployError
from homelab.facts import DeployedService
from homelab.nodes.session import Session
from homelab.program import PythonEnvironment
from homelab.runtimes.compose import SLOWEST_LOAD_BYTES_PER_SECOND, START_SECONDS
from homelab.runtimes.native import link_command, provision_command, supervise
from homelab.service import Service, health_line

POLL_SECONDS = 0.3
# A supervisor that cannot be asked for so long is not there any more.
UNASKED_SECONDS = 10.0


async def fetch(session: Session, service: Service, tell: Tell) -> None:
    """Make the Python environment of an engine if it is not there.

    Raises DeployError with pip's words."""
    program = service.unit.program
    if not isinstance(program, PythonEnvironment):
        return
    last = ""
    async for line in session.lines(f"{provision_command(program, service.unit.python)} 2>&1"):
        last = line or last
        if not line.startswith("{"):
            tell(Event(node=service.node, service=service.name, step="fetch", text=line[:120]))
    try:
        answer = json.loads(last)
    except ValueError:
        answer = {"error": {"message": "it ended without an answer", "cause": last, "hint": ""}}
    if "error" in answer:
        e = answer["error"]
        raise DeployError(
            f"`{service.name}` cannot be installed on node `{service.node}`: {e.get('message', '')}",
            cause=e.get("cause", ""),
            hint=e.get("hint", ""),
        )
    await session.run(link_command(program, answer["directory"]))


async def start(session: Session, service: Service, *, again: bool = False) -> None:
    """Start the supervisor of a service.

    Raises DeployError."""
    if again:
        await _supervise(session, service.name, "stop", service.directory, service.unit.python)
    await _supervise(session, service.name, "start", service.directory, service.unit.python)


async def wait_healthy(session: Session, service: Service, tell: Tell, *, restarts: int = 0) -> None:
    """Return once the service is healthy. `restarts`: how often its supervisor had started it again before.

    Raises DeployError with the last lines of its log."""
    limit = START_SECONDS + service.unit.load_bytes / SLOWEST_LOAD_BYTES_PER_SECOND
    begun, told = time.monotonic(), ""
    answered = begun
    health = health_line(service.unit, service.unit.address)
    log = f"{shlex.quote(service.directory)}/log"
    probe = (
        f"{supervise('status', service.directory, service.unit.python)}; ({health}) >/dev/null 2>&1; "
        f"echo $?; tail -n 1 {log} 2>/dev/null"
    )
    while True:
        done = await session.run(probe)
        status_text, _, rest = done.text.partition("\n")
        code, _, line = rest.partition("\n")
        status = _parse(status_text)
        if status:
            answered = time.monotonic()
        elif time.monotonic() - answered > UNASKED_SECONDS:
            raise DeployError(
                f"Nobody can say how `{service.name}` on node `{service.node}` is",
                cause=last_words(done.stderr) or "its supervisor said nothing",
                hint="homelab deploy",
            )
        # Somebody else on its port may answer as well: it would be given the keys.
        if code.strip() == "0" and status.get("status") == "running" and status.get("listens") is not False:
            return
        dead = status.get("status") in ("failed", "stopped") or status.get("restarts", 0) != restarts
        if dead or time.monotonic() - begun > limit:
            what = (
                f"died at start (exit code {status.get('exit_code')})"
                if dead
                else f"is not healthy after {limit:.0f} s"
            )
            lines = last_words((await session.run(f"tail -n {LOG_LINES} {log}")).text)
            raise DeployError(
                f"`{service.name}` on node `{service.node}` {what}",
                cause=lines or "it said nothing",
                hint=f"homelab logs {service.subject}",
            )
        if (text := line.strip()[:120]) != told:
            told = text
            tell(Event(node=service.node, service=service.name, step="load", text=text))
        await asyncio.sleep(POLL_SECONDS)


async def last_log(session: Session, service: Service) -> str:
    """The last words of a service."""
    log = f"{shlex.quote(service.directory)}/log"
    return last_words((await session.run(f"tail -n {LOG_LINES} {log}")).text)


async def stop(session: Session, actual: DeployedService, *, seconds: int | None = None) -> None:
    """Stop a service. `seconds`: how long it may take to end what it does."""
    await _supervise(session, actual.name, "stop", _directory(session, actual), actual.python, seconds)


async def resume(session: Session, actual: DeployedService) -> None:
    await _supervise(session, actual.name, "start", _directory(session, actual), actual.python)


async def remove(session: Session, actual: DeployedService) -> None:
    await stop(session, actual)


def logs_command(actual: DeployedService, *, follow: bool, tail: int) -> str:
    return shlex.join(["tail", "-n", str(tail), *(["-F"] if follow else []), f"{actual.directory}/log"])


async def _supervise(
    session: Session, name: str, verb: str, directory: str, python: str, seconds: int | None = None
) -> None:
    patience = f" --timeout {seconds}" if seconds is not None else ""
    done = await session.run(supervise(verb, directory, python) + patience)
    if done.exit_status != 0:
        raise DeployError(
            f"`{name}` cannot be {'started' if verb == 'start' else 'stopped'} on node `{session.node}`",
            cause=done.cause,
            hint=f"Look at ~/{directory}/log there",
        )


def _directory(session: Session, actual: DeployedService) -> str:
    if not actual.directory:
        raise DeployError(
            f"`{actual.name}` on node `{session.node}` has no directory",
            hint="homelab discover --json shows what is known of it",
        )
    return actual.directory


def _parse(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
