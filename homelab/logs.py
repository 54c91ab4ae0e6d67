"""What engines and the gateway say, from all their instances at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from homelab.deploy import compose, native
from homelab.facts import DeployedService, Survey
from homelab.inventory import Inventory
from homelab.nodes import connect

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
