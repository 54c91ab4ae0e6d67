"""What engines and the gateway say, from all their instances at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from homelab.deploy import compose, native
from homelab.facts import DeployedService, Survey
from homelab.inventory import Inventory
from homelab.nodes import connect
from homelab.plan import ALIVE

LOGS = {"docker": compose.logs_command, "native": native.logs_command}


def instances(
    inventory: Inventory, survey: Survey, model: str, node: str | None
) -> list[tuple[str, DeployedService]]:
    """The services of a model (or `gateway`), each with its node."""
    return [
        (name, s)
        for name, report in sorted(survey.nodes.items())
        if report.facts and node in (None, name)
        for s in report.facts.services
        if s.cluster == inventory.cluster and model in (*(s.serves if s.role == "engine" else ()), s.name)
    ]


async def follow(
    inventory: Inventory, survey: Survey, node: str, service: str, tail: int = 200
) -> AsyncGenerator[str, None]:
    """The last lines of one service's log, and then its lines as they come. Closing it ends the command on
    the node.

    Raises NodeError when the node is lost."""
    named = [s for n, s in instances(inventory, survey, service, node) if s.name == service]
    # An old revision may lie beside the one that runs.
    for found in sorted(named, key=lambda s: s.state not in ALIVE)[:1]:
        command = LOGS[found.runtime](found, follow=True, tail=tail)
        async with connect(node, inventory.nodes[node]) as session:
            async with aclosing(session.lines(command)) as lines:
                async for line in lines:
                    yield line


async def show(
    inventory: Inventory,
    services: Sequence[tuple[str, DeployedService]],
    line: Callable[[str], None],
    *,
    follow: bool,
    tail: int,
) -> None:
    """Hand every line to `line`, with its node before it where there are several."""

    async def one(node: str, service: DeployedService) -> None:
        async with connect(node, inventory.nodes[node]) as session:
            async for text in session.lines(LOGS[service.runtime](service, follow=follow, tail=tail)):
                line(f"{node}  {text}" if len(services) > 1 else text)

    results = await asyncio.gather(*(one(n, s) for n, s in services), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
