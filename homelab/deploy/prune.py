"""Takes away what earlier deploys left. Only what lies where homelab puts such things."""

from __future__ import annotations

import asyncio
import posixpath
import shlex
from collections.abc import Sequence

from homelab.deploy.events import Event, Tell
from homelab.errors import HomelabError, NodeError
from homelab.inventory import Inventory
from homelab.nodes import connect
from homelab.plan import Left
from homelab.runtimes.native import CACHE
from homelab.service import cluster_directory


async def prune(inventory: Inventory, leftovers: Sequence[Left], tell: Tell) -> list[HomelabError]:
    """Remove these. What cannot be removed is told and given back; nothing depends on it."""
    failed: list[HomelabError] = []

    async def on(node: str) -> None:
        mine = [left for left in leftovers if left.node == node]
        paths = [p for left in mine for p in left.what.paths if is_ours(inventory.cluster, p)]
        try:
            async with connect(node, inventory.nodes[node]) as session:
                done = await session.run(f"rm -rf -- {shlex.join(paths)}")
                if done.exit_status != 0:
                    raise NodeError(f"What is left over on node `{node}` cannot be removed", cause=done.cause)
                tell(Event(node=node, service="", step="removed", text=f"{len(paths)} left over from before"))
        except NodeError as e:
            failed.append(e)
            tell(Event(node=node, service="", step="failed", error=e))

    async with asyncio.TaskGroup() as group:
        for node in sorted({left.node for left in leftovers}):
            group.create_task(on(node))
    return failed


def is_ours(cluster: str, path: str) -> bool:
    """Whether a path that a node named is one that homelab makes, and nothing above it."""
    if posixpath.normpath(path) != path or not path.startswith("/"):
        return False
    folder, name = posixpath.split(path)
    own = cluster_directory(cluster)
    return bool(name) and (
        folder.endswith((f"/{CACHE}", f"/{own}/weights"))
        or (folder.endswith(f"/{own}") and name == "secrets.json")
    )
