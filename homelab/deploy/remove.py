"""Takes a cluster, or some of its models, off the machines again. Only what carries the cluster's label is touched; caches stay."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence

from homelab import facts as f
from homelab.deploy.apply import drop
from homelab.deploy.events import Event, Outcome, Tell
from homelab.errors import HomelabError, NodeError
from homelab.inventory import Inventory
from homelab.nodes import connect
from homelab.nodes.session import Session
from homelab.runtimes import compose, native
from homelab.service import cluster_directory


async def remove(
    inventory: Inventory, found: Sequence[tuple[str, f.Service]], tell: Tell, *, everything: bool
) -> Outcome:
    """Remove these services, each given with its node; with `everything` also what else lies in the cluster's folder on their nodes."""
    done: list[tuple[str, str]] = []
    failed: list[HomelabError] = []

    async def on(node: str) -> None:
        try:
            async with connect(node, inventory.nodes[node]) as session:
                mine = [s for n, s in found if n == node]
                if any(s.runtime == "native" for s in mine):
                    # Its supervisor stops a service; the cached copy may have been cleaned away.
                    await session.put(native.tool_files())
                for service in sorted(
                    mine, key=lambda s: s.model is not None
                ):  # the gateway first: no request meets a dead engine
                    await _one(session, service)
                if everything and not any(e for e in failed if isinstance(e, NodeError)):
                    await session.run(compose.remove_network_command(inventory.cluster))
                    await session.run(
                        f"rm -rf -- {shlex.quote(cluster_directory(inventory.cluster))}; rmdir .local/share/homelab 2>/dev/null; true"
                    )
        except NodeError as e:
            failed.append(e)
            tell(Event(node=node, service="", step="failed", error=e))

    async def _one(session: Session, service: f.Service) -> None:
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

    nodes = sorted({n for n, _ in found} | ({inventory.gateway.node} if everything else set()))
    await asyncio.gather(*(on(n) for n in nodes))
    return Outcome(done=tuple(sorted(done)), failed=tuple(failed))
