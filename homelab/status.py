"""Health of what should run: the gateway, every model's instances, memory planned and used, and the context
really served."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from homelab import gateway
from homelab.apps import apps
from homelab.ask import get
from homelab.endpoints import Endpoint, deployed, entrance, entrance_url, is_behind, running, url_of
from homelab.engines import engines
from homelab.facts import DeployedService, NodeReport, Survey
from homelab.inventory import Inventory
from homelab.secrets import Secrets
from homelab.service import numbers_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One instance of a model. `state` is the service's, or `away` where its node does not answer. Bytes
    are per device."""

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
    """`context` is the smallest that a healthy instance really serves: what a client may count on. `node` is
    the one that it is tied to."""

    name: str
    kind: str
    instances: tuple[Instance, ...]
    node: str | None = None

    @property
    def nodes(self) -> set[str]:
        """Where it is, or would have to be."""
        return {i.node for i in self.instances} | ({self.node} if self.node else set())

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
class AppStatus:
    name: str
    node: str
    url: str | None
    state: str
    healthy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """`away` are the nodes that do not answer, and need not."""

    gateway: GatewayStatus
    models: tuple[ModelStatus, ...]
    nodes: Mapping[str, NodeReport]
    away: frozenset[str] = frozenset()
    apps: tuple[AppStatus, ...] = ()

    @property
    def unhealthy(self) -> tuple[str, ...]:
        """What should run and is not healthy: models, apps, and the gateway. What lies on nodes that need not
        answer does not count."""
        models = [m.name for m in self.models if not m.healthy and not (m.nodes and m.nodes <= self.away)]
        front = self.gateway
        models += [a.name for a in self.apps if not a.healthy and a.node not in self.away]
        return (*models, *(("gateway",) if not front.healthy and front.node not in self.away else ()))


async def status(
    inventory: Inventory, survey: Survey, secrets: Secrets | None, *, ca_file: str | None = None
) -> Status:
    """What the survey shows of our services, completed by what gateway and engines answer."""
    here = list(deployed(inventory, survey))
    silent = frozenset(node for node, report in survey.nodes.items() if report.facts is None)
    models = []
    for name, model in sorted(inventory.models.items()):
        mine = [_instance(n, s, away=n in silent) for n, s in here if s.role == "engine" and name in s.serves]
        instances = tuple(sorted(mine, key=lambda i: (i.node, i.service)))
        models.append(ModelStatus(name=name, kind=model.kind, instances=instances, node=model.node))
    front = entrance(inventory, survey)
    behind = next((s for _, s in here if s.role == "gateway" and is_behind(s)), None)
    served, healthy, pages = await asyncio.gather(
        _served(models, running(inventory, survey), secrets),
        _gateway(inventory, front, behind, silent, ca_file),
        asyncio.gather(*(_app(inventory, name, here, silent) for name in sorted(inventory.apps))),
    )
    return Status(
        gateway=healthy,
        models=tuple(served),
        nodes=survey.nodes,
        away=frozenset(n for n in silent if inventory.nodes[n].away),
        apps=tuple(pages),
    )


def _instance(node: str, s: DeployedService, *, away: bool) -> Instance:
    numbers = numbers_of(s.labels)
    return Instance(
        node=node,
        service=s.name,
        engine=s.labels.get("homelab.engine", "unknown"),
        state="away" if away else s.state,
        detail=s.detail,
        url=url_of(s),
        context=None,
        planned_context=numbers.get("context"),
        planned_bytes=numbers.get("bytes"),
        used_bytes=s.gpu_memory_bytes if s.labels.get("homelab.gpus") else s.memory_bytes,
    )


async def _served(
    models: list[ModelStatus], endpoints: Sequence[Endpoint], secrets: Secrets | None
) -> list[ModelStatus]:
    """The contexts that running instances say they serve."""
    by_id = {e.id: e for e in endpoints if e.listens}

    async def one(i: Instance) -> Instance:
        endpoint = by_id.get(f"{i.node}/{i.service}")
        if i.state != "running" or endpoint is None or secrets is None or endpoint.engine not in engines():
            return i
        engine, key = engines()[endpoint.engine], secrets.resolve(endpoint.key, {})
        code, document = await get(
            endpoint.url + engine.CONTEXT_PATH, key.get_secret_value() if key else None
        )
        return replace(i, context=engine.served_context(document) if code == 200 else None)

    return [replace(m, instances=tuple(await asyncio.gather(*(one(i) for i in m.instances)))) for m in models]


async def _gateway(
    inventory: Inventory,
    front: tuple[str, DeployedService] | None,
    behind: DeployedService | None,
    away: Collection[str],
    ca_file: str | None,
) -> GatewayStatus:
    """Of what answers clients, and of the gateway `behind` it where that is something else."""
    if front is None:
        state = "not reached" if inventory.gateway.node in away else "missing"
        return GatewayStatus(node=inventory.gateway.node, url=None, state=state, healthy=False)
    node, service = front
    url = entrance_url(inventory, service)
    # A stranger on its port may answer, too.
    code = (
        (await get(url + gateway.HEALTH, ca_file=ca_file))[0]
        if url and service.listens and node not in away
        else 0
    )
    state = service.state
    if service.role == "front" and state == "running":
        state = behind.state if behind is not None else "missing"
    if node in away:
        state = "away"
    return GatewayStatus(node=node, url=url, state=state, healthy=code == 200)


async def _app(
    inventory: Inventory, name: str, here: Sequence[tuple[str, DeployedService]], away: Collection[str]
) -> AppStatus:
    """An app as its node shows it, and whether it answers."""
    wanted = inventory.apps[name]
    # An old revision may lie beside the one that runs.
    found = [(n, s) for n, s in here if (s.role, s.name) == ("app", name)]
    mine = sorted(found, key=lambda at: at[1].state == "stopped")
    there = next(iter(mine), None)
    if there is None:
        state = "not reached" if wanted.node in away else "missing"
        return AppStatus(name=name, node=wanted.node, url=None, state=state, healthy=False)
    node, service = there
    url = url_of(service)
    code = 0
    if url and service.listens and node not in away:
        code, _ = await get(url + apps()[wanted.module].HEALTH)
    state = "away" if node in away else service.state
    return AppStatus(name=name, node=node, url=url, state=state, healthy=code == 200)
