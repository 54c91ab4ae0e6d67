"""The household as one screen shows it: nodes, their devices, the services on them, and what they all do
together. Pure. What is not known is None, never 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from homelab.endpoints import url_of
from homelab.facts import GPU, DeployedService, Facts, Failure, MigDevice, Survey
from homelab.inventory import Inventory, Model
from homelab.plan import ALIVE, Place
from homelab.service import numbers_of, read_label

NodeState = Literal["up", "away", "not reached", "asking"]
# So many devices of a node with nothing on them are one line.
COLLAPSED_FROM = 3
# What a driver and a desktop at rest hold of a device on which nothing else runs.
IDLE_BYTES = 512 << 20


class Work(Protocol):
    """What an engine says of the requests that it has."""

    @property
    def running(self) -> int | None: ...
    @property
    def waiting(self) -> int | None: ...


class Seen(Protocol):
    """One look at all nodes. A node that has not answered yet is not in the survey."""

    @property
    def survey(self) -> Survey: ...
    @property
    def loads(self) -> Mapping[Place, Work]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A service. `subject` is what people call it, `devices` are the labels of its GPUs; bytes are those of
    all its devices together."""

    node: str
    service: str
    subject: str
    role: str
    state: str
    detail: str
    devices: tuple[str, ...]
    planned_bytes: int | None
    used_bytes: int | None
    context: int | None
    concurrency: int | None
    tokens_per_second: float | None
    running: int | None
    waiting: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardDevice:
    """A GPU or a MIG slice, with the services that stand under it: one that is on several is under the
    first. `planned_bytes` counts all that are on it."""

    uuid: str
    label: str
    name: str
    total_bytes: int | None
    used_bytes: int | None
    planned_bytes: int | None
    power_watts: float | None
    power_limit_watts: float | None
    temperature_celsius: int | None
    utilization_percent: int | None
    is_idle: bool
    services: tuple[Running, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardNode:
    """A node. `services` are those without a device of their own, `idle` the devices that are shown as one
    line. Of a node that does not answer, what it had when it last did is here, without what it did."""

    name: str
    state: NodeState
    error: Failure | None
    problems: tuple[str, ...] = ()
    ram_total_bytes: int | None = None
    ram_used_bytes: int | None = None
    ram_planned_bytes: int | None = None
    devices: tuple[BoardDevice, ...] = ()
    idle: tuple[BoardDevice, ...] = ()
    services: tuple[Running, ...] = ()

    @property
    def everything(self) -> tuple[Running, ...]:
        return (*(s for d in self.devices for s in d.services), *self.services)


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """All that the screen shows. `missing` are models that run nowhere, once every node has said what it
    has."""

    cluster: str
    nodes: tuple[BoardNode, ...]
    gateway_state: str
    gateway_url: str | None
    missing: tuple[str, ...] = field(default=())

    @property
    def up(self) -> int:
        return sum(n.state == "up" for n in self.nodes)

    @property
    def tokens_per_second(self) -> float | None:
        return _sum(s.tokens_per_second for s in self._services)

    @property
    def running(self) -> int | None:
        return _sum(s.running for s in self._services)

    @property
    def waiting(self) -> int | None:
        return _sum(s.waiting for s in self._services)

    @property
    def _services(self) -> list[Running]:
        return [s for n in self.nodes for s in n.everything]


def board(inventory: Inventory, seen: Seen, speeds: Mapping[Place, float]) -> Board:
    """What a look at all nodes shows, with the tokens per second of each service."""
    nodes = tuple(_node(inventory, seen, speeds, name) for name in sorted(inventory.nodes))
    services = [s for n in nodes for s in n.everything]
    serves = {s.subject for s in services if s.role == "engine"}
    asking = any(n.state == "asking" for n in nodes)
    entrances = [s for s in services if s.role in ("front", "gateway")]
    front = min(entrances, key=lambda s: (s.state == "stopped", s.role != "front"), default=None)
    at = next(n for n in nodes if n.name == inventory.gateway.node)
    return Board(
        cluster=inventory.cluster,
        nodes=nodes,
        gateway_state=front.state if front else "missing" if at.state == "up" else at.state,
        gateway_url=_url(seen.survey, front) if front else None,
        missing=() if asking else tuple(m for m in sorted(inventory.models) if m not in serves),
    )


def _url(survey: Survey, front: Running) -> str | None:
    facts = _facts(survey, front.node)
    return next((url_of(s) for s in facts.services if s.name == front.service), None) if facts else None


def _facts(survey: Survey, name: str) -> Facts | None:
    """What a node says, or said when it last answered."""
    report = survey.nodes.get(name)
    said = report.facts if report is not None else None
    return said or survey.remembered.get(name)


def _node(inventory: Inventory, seen: Seen, speeds: Mapping[Place, float], name: str) -> BoardNode:
    report = seen.survey.nodes.get(name)
    if report is None:
        return BoardNode(name=name, state="asking", error=None)
    is_up = report.facts is not None and report.error is None
    facts = _facts(seen.survey, name)
    error = None if is_up else report.error or Failure(message="no answer")
    state: NodeState = "up" if is_up else "away" if inventory.nodes[name].away else "not reached"
    if facts is None:
        return BoardNode(name=name, state=state, error=error)
    found = _devices(facts, is_up=is_up)
    ours = _ours(inventory, facts)
    placed: dict[str, list[Running]] = {uuid: [] for uuid in found}
    homeless: list[Running] = []
    for service in ours:
        on = [uuid for uuid in found if uuid in _gpus(service)]
        labels = tuple(_label(found[uuid][0]) for uuid in on)
        row = _running(name, service, labels, seen.loads.get((name, service.name)), speeds, is_up=is_up)
        (placed[on[0]] if on else homeless).append(row)
    devices = [
        _device(part, gpu, placed[uuid], [s for s in ours if uuid in _gpus(s)], is_up=is_up)
        for uuid, (part, gpu) in found.items()
    ]
    collapses = sum(d.is_idle for d in devices) >= COLLAPSED_FROM
    return BoardNode(
        name=name,
        state=state,
        error=error,
        problems=_problems(inventory.nodes[name].runtime, facts) if is_up else (),
        ram_total_bytes=facts.memory_total_bytes,
        ram_used_bytes=facts.memory_total_bytes - facts.memory_available_bytes if is_up else None,
        ram_planned_bytes=_sum(s.planned_bytes for s in homeless),
        devices=tuple(d for d in devices if not (collapses and d.is_idle)),
        idle=tuple(d for d in devices if collapses and d.is_idle),
        services=tuple(homeless),
    )


def _problems(runtime: str, facts: Facts) -> tuple[str, ...]:
    """What does not work on a node. Where somebody wrote `runtime: native`, Docker is not our business."""
    unlisted = [
        f"services of {of} cannot be listed: {why}"
        for of, reasons in facts.unlisted.items()
        if (of, runtime) != ("docker", "native")
        for why in reasons
    ]
    return (*(f"{p.source}: {p.message}" for p in facts.problems), *unlisted)


def _ours(inventory: Inventory, facts: Facts) -> list[DeployedService]:
    """The cluster's services by name, of several revisions the one that runs."""
    mine = [s for s in facts.services if s.cluster == inventory.cluster]
    chosen = {s.name: s for s in sorted(mine, key=lambda s: s.state in ALIVE)}
    return [chosen[name] for name in sorted(chosen)]


def _gpus(service: DeployedService) -> list[str]:
    return [uuid for uuid in service.labels.get("homelab.gpus", "").split(",") if uuid]


Part = GPU | MigDevice


def _devices(facts: Facts, *, is_up: bool) -> dict[str, tuple[Part, GPU]]:
    """GPUs, in place of one that is split its slices, each with the GPU that it is of."""
    whole = sorted(facts.gpus, key=lambda g: g.index)
    return {p.uuid: (p, gpu) for gpu in whole for p in (gpu.mig and gpu.mig_devices) or (gpu,)}


def _label(part: Part) -> str:
    return f"GPU {part.index}" if isinstance(part, GPU) else "MIG"


def _device(
    part: Part, gpu: GPU, services: Sequence[Running], on: Sequence[DeployedService], *, is_up: bool
) -> BoardDevice:
    total, free = part.memory_total_bytes, part.memory_free_bytes
    used = part.memory_used_bytes if isinstance(part, GPU) else None
    if used is None and total is not None and free is not None:
        used = max(0, total - free)
    known = is_up and part is gpu
    quiet = used is not None and used < IDLE_BYTES and not (part is gpu and gpu.processes)
    return BoardDevice(
        uuid=part.uuid,
        label=_label(part),
        name=part.name,
        total_bytes=total,
        used_bytes=used if is_up else None,
        planned_bytes=_sum(numbers_of(s.labels).get("bytes") for s in on),
        power_watts=gpu.power_watts if known else None,
        power_limit_watts=gpu.power_limit_watts if known else None,
        temperature_celsius=gpu.temperature_celsius if known else None,
        utilization_percent=gpu.utilization_percent if known else None,
        is_idle=not on and (quiet or not is_up),
        services=tuple(services),
    )


def _running(
    node: str,
    service: DeployedService,
    devices: tuple[str, ...],
    load: Work | None,
    speeds: Mapping[Place, float],
    *,
    is_up: bool,
) -> Running:
    numbers = numbers_of(service.labels)
    each: int | None = numbers.get("bytes")
    on_gpu = bool(_gpus(service))
    return Running(
        node=node,
        service=service.name,
        subject=service.serves[0] if service.role == "engine" and service.serves else service.name,
        role=service.role,
        state=service.state if is_up else "away",
        detail=(service.detail or "") if is_up else "",
        devices=devices,
        planned_bytes=None if each is None else each * max(1, len(_gpus(service))),
        used_bytes=(service.gpu_memory_bytes if on_gpu else service.memory_bytes) if is_up else None,
        context=numbers.get("context"),
        concurrency=_concurrency(service) if "context" in numbers else None,
        tokens_per_second=speeds.get((node, service.name)) if is_up else None,
        running=load.running if load and is_up else None,
        waiting=load.waiting if load and is_up else None,
    )


def _concurrency(service: DeployedService) -> int | None:
    """As it was asked for when the service was started."""
    model: Any = read_label(service.labels, "homelab.asked").get("model")
    if not isinstance(model, dict):
        return None
    asked = model.get("concurrency", Model.model_fields["concurrency"].default)
    return asked if type(asked) is int and asked > 0 else None


Number = TypeVar("Number", int, float)


def _sum(values: Iterable[Number | None]) -> Number | None:
    """The sum of what is known; None where nothing is."""
    known = [v for v in values if v is not None]
    return sum(known[1:], known[0]) if known else None
