"""Reads what a healthy engine itself reports of its memory, and keeps it beside what was planned."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from collections.abc import Collection

from homelab import state
from homelab.engines import engines
from homelab.errors import HomelabError, NodeError
from homelab.facts import DeployedService, Measurement, Survey
from homelab.inventory import Inventory
from homelab.measured import merged
from homelab.nodes import connect
from homelab.placement import Layout, Placement
from homelab.runtimes.compose import on_engine

logger = logging.getLogger(__name__)

START_LINES = 600  # sizes are told while a model is loaded


async def measure(
    inventory: Inventory, layout: Layout, survey: Survey, services: Collection[tuple[str, str]]
) -> tuple[Measurement, ...]:
    """Measure these services (node, name), as the survey taken after their start shows them, and keep the
    figures.

    A node that is gone again is passed over, and so is a cache that cannot be written: what was deployed is
    not worse for it."""
    wanted = [p for p in layout if (p.node, p.service) in services]
    measured = await asyncio.gather(*(_one(inventory, p, survey) for p in wanted))
    new = tuple(m for m in measured if m is not None)
    try:
        state.save_measurements(inventory.cluster, merged(state.load_measurements(inventory.cluster), new))
    except HomelabError as e:
        logger.warning("What was measured is not remembered: %s: %s", e.message, e.cause)
    return new


async def _one(inventory: Inventory, p: Placement, survey: Survey) -> Measurement | None:
    facts = survey.nodes[p.node].facts
    service = (
        next((s for s in facts.services if s.cluster == inventory.cluster and s.name == p.service), None)
        if facts
        else None
    )
    if service is None or service.state != "running":
        return None
    try:
        async with connect(p.node, inventory.nodes[p.node]) as session:
            log = (await session.run(_beginning(service))).text
    except NodeError:
        return None
    terms = [t for t in p.footprint.terms if t.where != "host"]
    used = service.gpu_memory_bytes if p.gpus else service.memory_bytes
    return Measurement(
        device=p.device.name,
        engine=p.engine,
        version=p.version,
        source=p.source,
        model=p.model,
        node=p.node,
        context=p.request.context,
        concurrency=p.request.concurrency,
        flags=json.dumps(dict(p.request.args), sort_keys=True),
        predicted={t.name: t.bytes for t in terms},
        grades={t.name: t.grade for t in terms},
        reported=engines()[p.engine].reported(log),
        planned_bytes=p.footprint.device_bytes,
        used_bytes=used // max(len(p.gpus), 1) if used else None,
    )


def _beginning(service: DeployedService) -> str:
    if service.runtime == "docker":
        logs = f"docker logs {shlex.quote(service.container or '')} 2>&1 | head -n {START_LINES}"
        return on_engine(service.socket, logs)
    return shlex.join(["head", "-n", str(START_LINES), f"{service.directory}/log"])
