"""Starts one service again as it lies on its node; everything else is left as it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from homelab import state
from homelab.deploy.apply import deploy
from homelab.deploy.events import Tell
from homelab.deploy.lock import locked
from homelab.inventory import Inventory
from homelab.plan import Plan, restarted
from homelab.secrets import Secrets


async def restart(
    inventory: Inventory,
    node: str,
    service: str,
    plan_now: Callable[[], Awaitable[tuple[Plan, Secrets]]],
    tell: Tell,
) -> None:
    """Return once the service is healthy again. `plan_now` asks the nodes what lies there: it is called when
    nobody else can change it any more.

    Raises DeployError where it is not as it was asked for, does not become healthy, or somebody else is at
    work; NodeError where its node cannot be asked."""
    with state.lock(inventory.cluster):
        async with locked(inventory, [node]):
            plan, secrets = await plan_now()
            outcome = await deploy(inventory, restarted(plan, node, service), secrets, tell)
    if outcome.failed:
        raise outcome.failed[0]
