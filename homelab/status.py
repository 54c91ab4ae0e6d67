"""Health of what should run: the gateway, every model's instances, memory planned and used, and the context really served."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from homelab import facts as f
from homelab import gateway
from homelab.ask import get
from homelab.engines import engines
from homelab.facts import NodeReport, Survey
from homelab.inventory import Inventory
from homelab.secrets import Secrets
from homelab.service import host_in_url, numbers_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One instance of a model. `state` is the service's, or `away` where its node does not answer. Bytes are per device."""

    node: str
    service: str
    engine: str
    state: str
    detail: str | None
    url: str | None
    context: int | None
    planned_context: int | None
    planned_bytes: int | None
    used_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """`context` is the smallest that a healthy instance really serves: what a client may count on."""

    name: str
    kind: str
    instances: tuple[Instance, ...]

    @property
    def healthy(self) -> bool:
        return any(i.state == "running" for i in self.instances)

    @property
    def context(self) -> int | None:
        return min((i.context for i in self.instances if i.context is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    node: str
    url: str | None
    state: str
    healthy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    gateway: GatewayStatus
    models: tuple[ModelStatus, ...]
    nodes: Mapping[str, NodeReport]


async def status(inventory: Inventory, survey: Survey, secrets: Secrets | None) -> Status:
    """What the survey shows of our services, completed by what gateway and engines answer."""
    running = [
        (node, s, "")
        for node, report in survey.nodes.items()
        if report.facts
        for s in report.facts.services
        if s.cluster == inventory.cluster
    ]
    away = [
        (node, s, "away")
        for node, facts in survey.remembered.items()
        for s in facts.services
        if s.cluster == inventory.cluster
    ]
    models = []
    for name, model in sorted(inventory.models.items()):
        mine = [_instance(node, s, state) for node, s, state in (*running, *away) if s.model == name]
        models.append(
            ModelStatus(
                name=name, kind=model.kind, instances=tuple(sorted(mine, key=lambda i: (i.node, i.service)))
            )
        )
    front = next(
        ((n, s, state) for n, s, state in (*running, *away) if s.name == gateway.SERVICE and s.model is None),
        None,
    )
    served, healthy = await asyncio.gather(_served(models, secrets), _gateway(inventory, front))
    return Status(gateway=healthy, models=tuple(served), nodes=survey.nodes)


def _instance(node: str, s: f.Service, state: str) -> Instance:
    numbers = numbers_of(s.labels)
    address, port = s.labels.get("homelab.address"), s.labels.get("homelab.port")
    return Instance(
        node=node,
        service=s.name,
        engine=s.labels.get("homelab.engine", "unknown"),
        state=state or s.state,
        detail=s.detail,
        url=f"http://{host_in_url(address)}:{port}" if address and port else None,
        context=None,
        planned_context=numbers.get("context"),
        planned_bytes=numbers.get("bytes"),
        used_bytes=s.gpu_memory_bytes if s.labels.get("homelab.gpus") else s.memory_bytes,
    )


async def _served(models: list[ModelStatus], secrets: Secrets | None) -> list[ModelStatus]:
    async def one(i: Instance) -> Instance:
        if i.state != "running" or i.url is None or secrets is None or i.engine not in engines():
            return i
        engine = engines()[i.engine]
        code, document = await get(
            i.url + engine.CONTEXT_PATH, secrets.engine_key(i.node, i.service).get_secret_value()
        )
        return replace(i, context=engine.served_context(document) if code == 200 else None)

    return [replace(m, instances=tuple(await asyncio.gather(*(one(i) for i in m.instances)))) for m in models]


async def _gateway(inventory: Inventory, front: tuple[str, f.Service, str] | None) -> GatewayStatus:
    node = inventory.gateway.node
    if front is None:
        return GatewayStatus(node=node, url=None, state="missing", healthy=False)
    node, service, state = front
    address, port = service.labels.get("homelab.address"), service.labels.get("homelab.port")
    url = f"http://{host_in_url(address)}:{port}" if address and port else None
    code = (await get(url + gateway.HEALTH))[0] if url and not state else 0
    return GatewayStatus(node=node, url=url, state=state or service.state, healthy=code == 200)
