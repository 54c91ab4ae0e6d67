"""The seam to the machines: all that reaches a node goes through a `Session`, and `connect` opens one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from homelab.inventory import Node
from homelab.nodes.session import Session

CONNECT_TIMEOUT_SECONDS = 5.0


@asynccontextmanager
async def connect(
    name: str, node: Node, *, timeout: float = CONNECT_TIMEOUT_SECONDS
) -> AsyncIterator[Session]:
    """An open session to a node.

    Raises NodeError with the reason that there is none."""
    if node.is_local:
        from homelab.nodes.local import LocalSession

        yield LocalSession(name)
    else:
        from homelab.nodes import ssh

        async with ssh.connect(name, node, timeout=timeout) as session:
            yield session
