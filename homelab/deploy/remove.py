"""Takes a cluster, or some of its models, off the machines again. Only what carries the cluster's label is
touched; caches stay."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Collection, Sequence

from homelab.deploy.apply import drop
from homelab.deploy.events import Event, Outcome, Tell
from homelab.deploy.lock import locked
from homelab.errors import HomelabError, InventoryError, NodeError
from homelab.facts import DeployedService, Survey
from homelab.inventory import Inventory
from homelab.nodes import connect
from homelab.nodes.session import Session
from homelab.runtimes import compose, native
from homelab.service import ROLES, cluster_directory


def chosen(
    inventory: Inventory, survey: Survey, models: Collection[str]
) -> list[tuple[str, DeployedService]]:
    """The services to take away, with their nodes: the engines of these models and these apps, or all of the
    cluster.

    Raises InventoryError for a name that is neither asked for nor deployed."""
    ours = [
        (node, s)
        for node, report in survey.nodes.items()
        if report.facts
        for s in report.facts.services
        if s.cluster == inventory.cluster
    ]
    served = {name for _, s in ours for name in _names(s)}
    known = sorted({*inventory.models, *inventory.apps})
    for name in models:
        if name not in known and name not in served:
            raise InventoryError(f"No model or app `{name}`", hint=f"There are: {', '.join(known)}")
    return [(n, s) for n, s in ours if not models or set(_names(s)) & set(models)]


def _names(service: DeployedService) -> tuple[str, ...]:
    """What it is removed by, one by one: the models of an engine, the name of an app."""
    if service.role == "app":
        return (service.name,)
    return tuple(service.serves) if service.role == "engine" else ()


async def remove(
    inventory: Inventory,
    services: Sequence[tuple[str, DeployedService]],
    tell: Tell,
    *,
    clear: Collection[str] = (),
) -> Outcome:
    """Remove these services, each given with its node. `clear`: nodes that have listed all that they run, and
    where the cluster's whole folder goes too."""
    done: list[tuple[str, str]] = []
    failed: list[HomelabError] = []

    async def on(node: str) -> None:
        try:
            async with connect(node, inventory.nodes[node]) as session:
                mine = [s for n, s in services if n == node]
                if any(s.runtime == "native" for s in mine):
                    # Its supervisor stops a service; the cached copy may have been cleaned away.
                    await session.put(native.tool_files())
                for service in sorted(mine, key=_order):
                    await _one(session, service)
                # Where something could not be stopped its files stay: they are what shows it.
                if node in clear and all((node, s.name) in done for s in mine):
                    await session.run(compose.remove_network_command(inventory.cluster))
                    await session.run(f"rm -rf -- {shlex.quote(cluster_directory(inventory.cluster))}; true")
        except NodeError as e:
            failed.append(e)
            tell(Event(node=node, service="", step="failed", error=e))

    async def _one(session: Session, service: DeployedService) -> None:
        try:
            await drop(session, inventory.cluster, service)
        except NodeError:
            raise
        except HomelabError as e:
            failed.append(e)
            tell(Event(node=session.node, service=service.name, step="failed", error=e))
            return
        done.append((session.node, service.name))
        tell(Event(node=session.node, service=service.name, step="removed"))

    nodes = sorted({n for n, _ in services} | set(clear))
    async with locked(inventory, nodes):
        async with asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(on(node))
    return Outcome(done=tuple(sorted(done)), failed=tuple(failed))


def _order(service: DeployedService) -> int:
    """The gateway before the engines: no request meets a dead one."""
    roles: tuple[str, ...] = ROLES
    return -roles.index(service.role) if service.role in roles else 0
