"""A service in Docker Compose on a node: bring its image, start it, wait until it is healthy, stop and
remove it."""

from __future__ import annotations

import asyncio
import shlex
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import docker
import docker.errors
import requests

from homelab.deploy.events import LOG_LINES, Event, Tell, last_words
from homelab.errors import DeployError, NodeError
from homelab.facts import DeployedService
from homelab.nodes.session import Result, Session
from homelab.program import image_of
from homelab.runtimes.compose import (
    SLOWEST_LOAD_BYTES_PER_SECOND,
    SOCKET,
    START_SECONDS,
    compose_command,
    create_network_command,
    on_engine,
)
from homelab.service import Service

POLL_SECONDS = 0.5
# For what Compose does with images that are there: it waits for an engine that hangs for ever.
COMPOSE_SECONDS = 300.0


@asynccontextmanager
async def engine(session: Session, socket: str | None) -> AsyncIterator[docker.DockerClient]:
    """The Engine API of a node, over the forwarded socket that the agent found.

    Raises DeployError."""
    async with session.socket(socket or SOCKET) as path:
        with _engine_errors(
            f"The Docker engine of node `{session.node}` does not answer", "homelab discover"
        ):
            client = await asyncio.to_thread(docker.DockerClient, base_url=f"unix://{path}", timeout=60)
        try:
            yield client
        finally:
            client.close()


async def fetch(session: Session, service: Service, tell: Tell) -> None:
    """Bring the image onto the node if it is not there.

    Raises DeployError with the registry's words."""
    image = image_of(service.unit.program) or ""
    async with engine(session, service.unit.socket) as client:
        given_up = threading.Event()
        try:
            await asyncio.to_thread(_pull, client, image, service, tell, given_up)
        finally:
            given_up.set()


def _pull(
    client: docker.DockerClient, image: str, service: Service, tell: Tell, given_up: threading.Event
) -> None:
    """Pull an image that is not there. Docker ends a pull that nobody listens to any more; a thread can only
    end itself."""
    with _engine_errors(
        f"Image `{image}` cannot be pulled on node `{service.node}`",
        (
            "Check the tag, and that the node can reach the registry: `images:` in the "
            "inventory takes another one"
        ),
    ):
        try:
            client.images.get(image)
            return
        except docker.errors.ImageNotFound:
            pass
        tell(Event(node=service.node, service=service.name, step="fetch", text=f"image {image}"))
        layers: dict[str, tuple[int, int]] = {}
        told = 0.0
        for line in client.api.pull(image, stream=True, decode=True):
            if given_up.is_set():
                return
            if "error" in line:
                raise DeployError(
                    f"Image `{image}` cannot be pulled on node `{service.node}`",
                    cause=line["error"],
                    hint="Check the tag under `images:` in the inventory",
                )
            detail = line.get("progressDetail") or {}
            if detail.get("total") and line.get("status") == "Downloading":
                layers[line["id"]] = (detail["current"], detail["total"])
            elif line.get("status") == "Download complete" and line.get("id") in layers:
                layers[line["id"]] = (layers[line["id"]][1],) * 2
            if layers and time.monotonic() - told > 1:
                told = time.monotonic()
                done, total = (sum(x) for x in zip(*layers.values(), strict=True))
                tell(
                    Event(
                        node=service.node,
                        service=service.name,
                        step="fetch",
                        text=f"image {done / 2**30:.2f} of {total / 2**30:.2f} GiB",
                        done_bytes=done,
                        total_bytes=total,
                    )
                )


async def start(session: Session, service: Service, *, again: bool = False) -> None:
    """`docker compose up` of the revision; with `again` its containers are made anew.

    Raises DeployError with Compose's words."""
    arguments = ["up", "--detach", "--no-build", *(["--force-recreate"] if again else [])]
    if not service.unit.is_loopback:
        made = await _run(
            session, on_engine(service.unit.socket, create_network_command(service.unit.cluster))
        )
        if made.exit_status != 0:
            raise DeployError(
                f"Docker on node `{service.node}` cannot make a network",
                cause=made.cause,
                hint="Many networks of old projects? docker network prune",
            )
    compose = compose_command(service.project, service.directory, *arguments)
    done = await _run(session, on_engine(service.unit.socket, compose))
    if done.exit_status != 0:
        raise DeployError(
            f"`{service.name}` cannot be started on node `{service.node}`",
            cause=done.cause,
            hint=f"homelab logs {service.name}",
        )


async def wait_healthy(session: Session, service: Service, tell: Tell, *, restarts: int = 0) -> None:
    """Return once the container is healthy. `restarts`: how often Docker had started it again before.

    Raises DeployError with the container's last lines when it dies, is unhealthy, or takes longer than a
    slow download would."""
    limit = START_SECONDS + service.unit.load_bytes / SLOWEST_LOAD_BYTES_PER_SECOND
    async with engine(session, service.unit.socket) as client:
        begun, told = time.monotonic(), ""
        while True:
            container = await asyncio.to_thread(_container, client, service)
            state, health, restarted = _state(container)
            if state == "running" and health == "healthy":
                return
            # Docker calls a container unhealthy too when it has just exited.
            died = state in ("exited", "dead", "missing", "restarting") or restarted > restarts
            if died or health == "unhealthy" or time.monotonic() - begun > limit:
                what = (
                    f"died at start{_exit_code(container)}"
                    if died
                    else f"is not healthy after {time.monotonic() - begun:.0f} s"
                )
                lines = await asyncio.to_thread(_last_lines, container)
                raise DeployError(
                    f"`{service.name}` on node `{service.node}` {what}",
                    cause=lines,
                    hint=_advice(lines, service),
                )
            if (text := await asyncio.to_thread(_last_line, container)) != told:
                told = text
                tell(Event(node=service.node, service=service.name, step="load", text=text))
            await asyncio.sleep(POLL_SECONDS)


def _container(client: docker.DockerClient, service: Service) -> Any:
    with _engine_errors(
        f"The Docker engine of node `{service.node}` does not answer", "homelab discover shows what it says"
    ):
        containers = client.containers.list(
            all=True, filters={"label": [f"homelab.spec={service.spec}", f"homelab.service={service.name}"]}
        )
        return containers[0] if containers else None


def _state(container: Any) -> tuple[str, str, int]:
    if container is None:
        return "missing", "", 0
    state = container.attrs.get("State", {})
    return (
        state.get("Status", "missing"),
        (state.get("Health") or {}).get("Status", ""),
        container.attrs.get("RestartCount", 0),
    )


def _exit_code(container: Any) -> str:
    """` (exit code 1)`; nothing where Docker has started it again, which makes the code 0."""
    state = container.attrs.get("State", {}) if container is not None else {}
    return (
        ""
        if state.get("Status") == "running" or "ExitCode" not in state
        else f" (exit code {state['ExitCode']})"
    )


def _last_lines(container: Any) -> str:
    if container is None:
        return "its container is gone"
    with _engine_errors("The container's log cannot be read", ""):
        text = last_words(container.logs(tail=LOG_LINES).decode(errors="replace"))
    return text or (container.attrs.get("State", {}).get("Error") or "it said nothing")


def _last_line(container: Any) -> str:
    if container is None:
        return ""
    with _engine_errors("The container's log cannot be read", ""):
        lines = container.logs(tail=1).decode(errors="replace").strip().splitlines()
    return lines[-1][:120] if lines else ""


def _advice(lines: str, service: Service) -> str:
    low = lines.lower()
    if "out of memory" in low or "free memory on device" in low or "no available memory for the cache" in low:
        return (
            "Something else took GPU memory meanwhile: homelab discover shows who; or give "
            f"`{service.subject}` less `context`"
        )
    if "gated" in low or "401" in low or "403" in low:
        return "The hub refuses: accept the licence there and give `hub: {token: env:HF_TOKEN}`"
    return f"homelab logs {service.subject}"


async def last_log(session: Session, service: Service) -> str:
    """The last words of a service.

    Raises DeployError."""
    async with engine(session, service.unit.socket) as client:
        return await asyncio.to_thread(lambda: _last_lines(_container(client, service)))


async def stop(session: Session, actual: DeployedService, *, seconds: int | None = None) -> None:
    """Stop a service's containers and keep them. `seconds`: how long they may take to end what they do.

    Raises DeployError."""
    patience = [] if seconds is None else ["--timeout", str(seconds)]
    await _compose(session, actual, "stop", *patience, more_seconds=seconds or 0)


async def resume(session: Session, actual: DeployedService) -> None:
    """Start the containers that `stop` kept."""
    await _compose(session, actual, "start")


async def remove(session: Session, actual: DeployedService) -> None:
    """Remove a service's containers and networks; named caches stay."""
    await _compose(session, actual, "down", "--remove-orphans")


async def _compose(session: Session, actual: DeployedService, *arguments: str, more_seconds: int = 0) -> None:
    if not actual.project:
        raise DeployError(
            f"`{actual.name}` on node `{session.node}` belongs to no Compose project",
            hint=f"Remove it by hand: docker rm -f {actual.container}",
        )
    command = shlex.join(["docker", "compose", "--project-name", actual.project, *arguments])
    done = await _run(session, on_engine(actual.socket, command), COMPOSE_SECONDS + more_seconds)
    if done.exit_status != 0:
        raise DeployError(
            f"docker compose {arguments[0]} failed for `{actual.name}` on node `{session.node}`",
            cause=done.cause,
            hint="homelab status",
        )


async def _run(session: Session, command: str, seconds: float = COMPOSE_SECONDS) -> Result:
    try:
        return await session.run(command, timeout=seconds)
    except NodeError as e:
        if e.kind != "timeout":
            raise
        raise DeployError(e.message, cause=e.cause, hint="Is Docker well there? docker ps") from e


def logs_command(actual: DeployedService, *, follow: bool, tail: int) -> str:
    words = ["docker", "logs", "--tail", str(tail), *(["--follow"] if follow else []), actual.container or ""]
    return on_engine(actual.socket, f"{shlex.join(words)} 2>&1")


@contextmanager
def _engine_errors(message: str, hint: str) -> Iterator[None]:
    try:
        yield
    except docker.errors.APIError as e:
        raise DeployError(message, cause=str(e.explanation or e), hint=hint) from e
    except (docker.errors.DockerException, requests.RequestException, OSError) as e:
        raise DeployError(message, cause=str(e), hint=hint) from e
