"""Which model runs on which device of which node, with how many bytes, and why. Pure: the same inventory and survey give the same placements."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from homelab.engines import Device, Engine, Footprint, Launch, Request, Term, Unsupported, engines
from homelab.errors import HomelabError
from homelab.facts import GPU, Facts, Service, Survey, Weights
from homelab.images import IMAGES
from homelab.inventory import Context, Inventory, Model, Node, Variant, slug
from homelab.models import shape as shapes
from homelab.models.shape import ModelShape

GIB = 1024**3
DEFAULT_CONTEXT = 8192
CONTEXT_STEP = 256
# What a desktop may still grow by, where the inventory gives no `reserve`: a browser tab with video is 100-300 MiB.
DISPLAY_RESERVE_BYTES = GIB // 2
# What the operating system keeps of a pool that models share with it.
RAM_RESERVE_BYTES = GIB
# Disk that stays free beside the weights.
DISK_MARGIN_BYTES = GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A device of a node and what is left of it. `gpus` is empty for the machine's RAM."""

    node: str
    gpus: tuple[GPU, ...]
    device: Device
    free_bytes: int
    explained: str

    @property
    def label(self) -> str:
        return " + ".join(f"GPU {g.index}" for g in self.gpus) if self.gpus else "RAM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One instance of a model on one node."""

    model: str
    service: str
    variant: int
    node: str
    engine: str
    runtime: str
    image: str | None
    source: str
    gpus: tuple[str, ...]
    device: Device
    address: str
    port: int
    request: Request
    footprint: Footprint
    gpu_memory_utilization: float | None
    wanted: str
    reason: str
    kept: bool = False

    @property
    def bytes(self) -> int:
        """What each of its devices gives up."""
        if self.gpu_memory_utilization is None:
            return self.footprint.device_bytes
        outside = self.footprint.device_bytes - self.footprint.budget_bytes
        return math.ceil(self.gpu_memory_utilization * self.device.total_bytes) + outside

    def launch(self, *, weights: str, host: str) -> Launch:
        return Launch(
            model=self.model,
            weights=weights,
            host=host,
            port=self.port,
            request=self.request,
            footprint=self.footprint,
            device=self.device,
            gpu_memory_utilization=self.gpu_memory_utilization,
        )

    def numbers(self) -> dict[str, Any]:
        """What must be known to keep this placement as it is; travels as a label of the service."""
        return {
            "variant": self.variant,
            "engine": self.engine,
            "runtime": self.runtime,
            "source": self.source,
            "gpus": list(self.gpus),
            "port": self.port,
            "context": self.request.context,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_bytes": self.footprint.kv_cache_bytes,
            "kv_cache_tokens": self.footprint.kv_cache_tokens,
            "flags": dict(self.footprint.flags),
            "terms": [[t.name, t.bytes, t.grade, t.where] for t in self.footprint.terms],
            "bytes": self.bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplaced:
    """A model (or one of its replicas) that found no place. `unreachable` names nodes that could not be asked."""

    model: str
    reason: str
    details: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The decision: what goes where, what does not, and what each device held before and has left."""

    placements: tuple[Placement, ...]
    unplaced: tuple[Unplaced, ...]
    slots: tuple[Slot, ...]

    def __iter__(self) -> Iterator[Placement]:
        return iter(self.placements)


def place(inventory: Inventory, survey: Survey) -> Layout:
    """Placements for everything asked for, as far as it fits into what is free now plus what our own services hold.

    Models are placed by priority, the larger first, at the smallest context asked for; a healthy placement whose request is unchanged
    stays as it is; contexts then grow, by priority, into what is left. A replica that finds no place is in `unplaced` with the arithmetic."""
    desk = _Desk(inventory, survey)
    order = sorted(inventory.models, key=lambda n: (-inventory.models[n].priority, inventory.models[n].node is None, -desk.smallest(n), n))
    for name in order:
        desk.keep(name)
    for turn in range(max((m.replicas for m in inventory.models.values()), default=0)):
        for name in order:
            if turn < inventory.models[name].replicas and desk.count(name) <= turn:
                desk.add(name)
    for name in order:
        desk.grow(name)
    placed = sorted(desk.placements, key=lambda p: (p.model, p.node, p.service))
    return Layout(placements=tuple(placed), unplaced=tuple(desk.unplaced), slots=tuple(desk.slots))


def unsettled(inventory: Inventory, survey: Survey) -> frozenset[str]:
    """The models that must be planned anew, so whose headers must be known: all but those that stay as they are in every replica."""
    desk = _Desk(inventory, survey)
    for name in inventory.models:
        desk.keep(name)
    return frozenset(n for n, m in inventory.models.items() if desk.count(n) < m.replicas)


def bind_address(inventory: Inventory, node: str, facts: Facts | None) -> str:
    """The address of its own that a node's services listen on and are reached at: never all interfaces."""
    if inventory.is_local:
        return "127.0.0.1"
    spec = inventory.nodes[node]
    for candidate in (spec.address, spec.host):
        if candidate and _is_ip(candidate):
            return candidate
    if facts is not None and facts.server_address:
        return facts.server_address
    return spec.address or spec.host


def runtime_for(node: Node, facts: Facts, *, gpu: bool) -> tuple[str | None, str]:
    """How services run on a node: `docker` or `native`, or None and why neither."""
    if node.runtime == "native":
        return "native", ""
    docker = facts.docker
    if docker is None:
        if node.runtime == "docker":
            return None, "no Docker on this node: install it (https://docs.docker.com/engine/install), or `runtime: native`"
        return "native", ""
    if not docker.reachable:
        return (
            None,
            f"Docker cannot be used: {docker.error or 'no answer'}; `sudo usermod -aG docker {facts.user or '$USER'}` and log in again, or `runtime: native`",
        )
    if not docker.compose_version:
        return None, "no Compose plugin: `sudo apt install docker-compose-plugin` (Debian: docker-compose-v2), or `runtime: native`"
    if gpu and not docker.nvidia_runtime:
        return None, "Docker cannot reach the GPU: install the NVIDIA Container Toolkit and restart Docker"
    return "docker", ""


def image_for(inventory: Inventory, node: str, engine: str, vendor: str) -> str:
    """The pinned image of an engine on a node, or what the inventory puts in its place."""
    override = inventory.nodes[node].images.get(engine) or inventory.images.get(engine)
    pinned = IMAGES.get(engine, {})
    return override or pinned.get(vendor) or next(iter(pinned.values()))


class _Desk:
    """The state of one planning run: what is free on each device as placements are laid on it."""

    def __init__(self, inventory: Inventory, survey: Survey) -> None:
        self.inventory = inventory
        self.survey = survey
        self.placements: list[Placement] = []
        self.unplaced: list[Unplaced] = []
        self.facts = {n: r.facts for n, r in sorted(survey.nodes.items()) if n in inventory.nodes and r.facts is not None}
        self.slots = [slot for name, facts in self.facts.items() for slot in slots_of(inventory, name, facts)]
        self.remembered = {n: f for n, f in sorted(survey.remembered.items()) if n in inventory.nodes and n not in self.facts}
        self._shapes: dict[tuple[str, str], ModelShape | str] = {}

    # -- what is known about a model

    def shape(self, source: str, node: str) -> ModelShape | str:
        """The model's shape as its files on that node (or the hub) give it, or why it is not known."""
        if (source, node) not in self._shapes:
            self._shapes[source, node] = self._read_shape(source, node)
        return self._shapes[source, node]

    def _read_shape(self, source: str, node: str) -> ModelShape | str:
        weights = self.weights(source, node)
        if weights is None:
            return f"nothing is known about {source}"
        if weights.header is None:
            return weights.error or f"{source} is not there"
        try:
            return shapes.from_header(weights.header)
        except HomelabError as e:
            return e.message

    def weights(self, source: str, node: str) -> Weights | None:
        facts = self.facts.get(node)
        local = next((w for w in facts.weights if w.source == source), None) if facts else None
        if local is not None and local.header is not None:
            return local
        return self.survey.models.get(source) or local

    def smallest(self, name: str) -> int:
        """A model's size for the order of placement: the weights of its first readable variant."""
        for variant in self.inventory.models[name].variants:
            for node in self.facts:
                if isinstance(found := self.shape(variant.source, node), ModelShape):
                    return found.weights_bytes
        return 0

    def count(self, name: str) -> int:
        return sum(p.model == name for p in self.placements)

    # -- the three moves

    def keep(self, name: str) -> None:
        """Leave running placements of this request where they are."""
        model = self.inventory.models[name]
        # A node that is briefly away keeps its models: they come back with it, and nothing is downloaded elsewhere meanwhile.
        for node, facts in (*self.facts.items(), *self.remembered.items()):
            if model.node not in (None, node):
                continue
            slots = self.slots if node in self.facts else slots_of(self.inventory, node, facts)
            for service in sorted(facts.services, key=lambda s: s.name):
                if service.cluster == self.inventory.cluster and service.model == name and self.count(name) < model.replicas:
                    kept = self._revive(name, node, facts, service, slots)
                    if kept is not None:
                        self._take(kept)

    def _revive(self, name: str, node: str, facts: Facts, service: Service, slots: Sequence[Slot]) -> Placement | None:
        model = self.inventory.models[name]
        address = bind_address(self.inventory, node, facts)
        if service.labels.get("homelab.wanted") != wanted_hash(model, address) or service.state in ("missing",):
            return None
        try:
            n = json.loads(service.labels["homelab.placement"])
            variant = model.variants[n["variant"]]
            footprint = Footprint(
                terms=tuple(Term(name=t[0], bytes=t[1], grade=t[2], where=t[3]) for t in n["terms"]),
                kv_cache_bytes=n["kv_cache_bytes"],
                kv_cache_tokens=n["kv_cache_tokens"],
                flags=n["flags"],
            )
            slot = next(s for s in slots if s.node == node and tuple(g.uuid for g in s.gpus) == tuple(n["gpus"]))
            runtime, _ = runtime_for(self.inventory.nodes[node], facts, gpu=bool(slot.gpus))
            if runtime is None or runtime != n["runtime"]:
                return None
            return Placement(
                model=name,
                service=service.name,
                variant=n["variant"],
                node=node,
                engine=variant.engine,
                runtime=runtime,
                image=image_for(self.inventory, node, variant.engine, slot.device.vendor) if runtime == "docker" else None,
                source=variant.source,
                gpus=tuple(n["gpus"]),
                device=slot.device,
                address=address,
                port=n["port"],
                request=Request(kind=model.kind, context=n["context"], concurrency=model.concurrency, args=variant.args),
                footprint=footprint,
                gpu_memory_utilization=n["gpu_memory_utilization"],
                wanted=service.labels["homelab.wanted"],
                reason="runs here already" if node in self.facts else "its node does not answer: left as it was",
                kept=True,
            )
        except (KeyError, IndexError, TypeError, ValueError, StopIteration):
            return None  # labels of another version: plan it anew

    def add(self, name: str) -> None:
        """Place one more instance, at the smallest context asked for."""
        model = self.inventory.models[name]
        rejected: list[str] = []
        for index, variant in enumerate(model.variants):
            options: list[tuple[tuple[Any, ...], Placement]] = []
            for slot in self.slots:
                if model.node not in (None, slot.node) or not _gpu_matches(model.gpu, slot) or not _count_matches(variant, slot):
                    continue
                outcome = self._try(name, index, variant, slot)
                if isinstance(outcome, Placement):
                    options.append((self._rank(name, outcome, slot), outcome))
                else:
                    rejected.append(f"{slot.node} {slot.label}: {outcome}")
            if options:
                _, best = min(options, key=lambda o: o[0])
                others = len({(p.node, p.gpus) for _, p in options}) - 1
                why = self._why(name, best, index, len(model.variants), others)
                self._take(replace(best, reason=why))
                return
        down = tuple(
            n
            for n in ([model.node] if model.node else self.inventory.nodes)
            if n in self.survey.nodes and not self.survey.nodes[n].reachable and not self.inventory.nodes[n].away
        )
        rejected += [f"{n}: {self._down(n)}" for n in down]
        if model.node is not None and self.inventory.nodes[model.node].away:
            rejected.append(f"{model.node}: marked as away")
        which = f"replica {self.count(name) + 1} of {model.replicas}" if model.replicas > 1 else "nowhere to put it"
        if not rejected:
            rejected = ["no device matches" + (f" gpu: {model.gpu}" if model.gpu is not None else "")]
        self.unplaced.append(
            Unplaced(
                model=name,
                reason=f"{which}: {rejected[0]}" if len(rejected) == 1 else which,
                details=tuple(dict.fromkeys(rejected)),
                unreachable=down,
            )
        )

    def _down(self, node: str) -> str:
        error = self.survey.nodes[node].error
        return f"not asked: {error.message}" if error else "not asked"

    def grow(self, name: str) -> None:
        """Give the instances of a model the largest context, within what was asked for, that still fits."""
        model = self.inventory.models[name]
        if model.context is None or model.context.min == model.context.max:
            return
        for i, p in enumerate(self.placements):
            if p.model != name or p.kept:
                continue
            slot = next(self.slots_for(p.node, p.gpus))
            self._give_back(p)
            best, low, high = p, p.request.context, model.context.max
            if isinstance(full := self._fit(p, high, slot), Placement):
                best, low = full, high
            while high - low > CONTEXT_STEP:
                middle = (low + high) // 2 // CONTEXT_STEP * CONTEXT_STEP
                if middle <= low:
                    break
                if isinstance(larger := self._fit(p, middle, slot), Placement):
                    best, low = larger, middle
                else:
                    high = middle
            grown = (
                "the largest context asked for"
                if low == model.context.max
                else f"the largest context that fits (asked: up to {model.context.max})"
            )
            self.placements[i] = replace(best, reason=f"{p.reason}; {grown}")
            self._occupy(self.placements[i])

    # -- one candidate

    def _try(self, name: str, index: int, variant: Variant, slot: Slot) -> Placement | str:
        model, engine, facts = self.inventory.models[name], engines()[variant.engine], self.facts[slot.node]
        runtime, why_not = runtime_for(self.inventory.nodes[slot.node], facts, gpu=bool(slot.gpus))
        if runtime is None:
            return why_not
        if slot.device.vendor not in engine.VENDORS:
            return f"{engine.NAME} does not run on {slot.device.vendor}"
        if runtime == "native" and (refusal := _native_refusal(engine, slot, facts)):
            return refusal
        shape = self.shape(variant.source, slot.node)
        if isinstance(shape, str):
            return shape
        if shape.format not in engine.FORMATS:
            return f"{engine.NAME} does not read {shape.format} files"
        if refusal := self._disk_refusal(variant.source, slot.node, shape):
            return refusal
        port = self._port(model, name, slot.node, engine)
        if isinstance(port, str):
            return port
        wanted = model.context or _default_context(shape)
        address = bind_address(self.inventory, slot.node, facts)
        draft = Placement(
            model=name,
            service=self._service(name, slot.node),
            variant=index,
            node=slot.node,
            engine=engine.NAME,
            runtime=runtime,
            image=image_for(self.inventory, slot.node, engine.NAME, slot.device.vendor) if runtime == "docker" else None,
            source=variant.source,
            gpus=tuple(g.uuid for g in slot.gpus),
            device=slot.device,
            address=address,
            port=port,
            request=Request(kind=model.kind, context=wanted.min, concurrency=model.concurrency, args=variant.args),
            footprint=Footprint(terms=(), kv_cache_bytes=0, kv_cache_tokens=0),
            gpu_memory_utilization=None,
            wanted=wanted_hash(model, address),
            reason="",
        )
        return self._fit(draft, wanted.min, slot)

    def _fit(self, draft: Placement, context: int, slot: Slot) -> Placement | str:
        """The draft at this context, or the arithmetic of why not."""
        engine = engines()[draft.engine]
        shape = self.shape(draft.source, slot.node)
        assert isinstance(shape, ModelShape)
        request = replace(draft.request, context=context)
        try:
            footprint = engine.footprint(shape, request, slot.device)
        except Unsupported as e:
            return str(e)
        utilization = None
        if engine.BUDGETED:
            # Rounded up to 0.001: to 0.01 would waste up to 0.24 GiB of a 24 GB card.
            utilization = math.ceil(footprint.budget_bytes / slot.device.total_bytes * 1000) / 1000
        fitted = replace(draft, request=request, footprint=footprint, gpu_memory_utilization=utilization)
        if (utilization or 0) > 1 or fitted.bytes > slot.free_bytes:
            terms = " + ".join(f"{t.name} {gib(t.bytes)}" for t in footprint.terms if t.where != "host" and t.bytes)
            return f"needs {gib(fitted.bytes)} GiB: {terms}; free {gib(slot.free_bytes)} GiB{slot.explained}"
        if footprint.host_bytes and slot.gpus and footprint.host_bytes > self._ram(slot.node):
            return f"needs {gib(footprint.host_bytes)} GiB of RAM beside the GPU, free {gib(self._ram(slot.node))} GiB"
        return fitted

    def _ram(self, node: str) -> int:
        held = sum(p.footprint.host_bytes for p in self.placements if p.node == node and p.gpus)
        return self.facts[node].memory_available_bytes - RAM_RESERVE_BYTES - held

    def _disk_refusal(self, source: str, node: str, shape: ModelShape) -> str | None:
        facts, weights = self.facts[node], self.weights(source, node)
        local = next((w for w in facts.weights if w.source == source), None)
        if source.startswith(("/", "~")) or (local is not None and local.present):
            return None
        needed = (weights.bytes if weights and weights.bytes else shape.weights_bytes) - (local.bytes if local else 0)
        disk = next((d for d in facts.disks if d.purpose == "models"), None)
        if disk is not None and needed + DISK_MARGIN_BYTES > disk.free_bytes:
            return f"disk too small for the weights: {gib(needed)} GiB to fetch, {gib(disk.free_bytes)} GiB free at {disk.path}"
        return None

    def _port(self, model: Model, name: str, node: str, engine: Engine) -> int | str:
        facts = self.facts[node]
        ours = {
            int(s.labels["homelab.port"])
            for s in facts.services
            if s.labels.get("homelab.port", "").isdigit() and s.cluster == self.inventory.cluster
        }
        strangers = {p.port: p.process for p in facts.ports if p.port not in ours}
        taken = {p.port for p in self.placements if p.node == node} | {
            m.port for n, m in self.inventory.models.items() if m.port and n != name
        }
        if node == self.inventory.gateway.node:
            taken.add(self.inventory.gateway.port)
        if model.port is not None:
            if model.port in strangers:
                return f"port {model.port} is in use by {strangers[model.port] or 'another process'}: choose another `port`"
            return model.port
        before = next(
            (
                s.labels.get("homelab.port")
                for s in facts.services
                if s.cluster == self.inventory.cluster and s.name == self._service(name, node)
            ),
            None,
        )
        for port in [int(before)] if before and before.isdigit() else []:
            if port not in taken:
                return port
        return next(p for p in range(engine.PORT, 65536) if p not in strangers and p not in taken and p not in ours)

    def _service(self, name: str, node: str) -> str:
        names = {p.service for p in self.placements if p.node == node}
        base = slug(name)
        return next(s for s in (base, *(f"{base}-{i}" for i in range(2, 1000))) if s not in names)

    def _rank(self, name: str, p: Placement, slot: Slot) -> tuple[Any, ...]:
        """Smaller is better: a GPU before RAM, spread replicas, where it already runs, weights already there, the tightest device that holds it."""
        facts = self.facts[slot.node]
        mates = sum(q.node == slot.node for q in self.placements if q.model == name)
        runs_here = any(s.model == name and s.cluster == self.inventory.cluster for s in facts.services)
        there = any(w.source == p.source and w.present for w in facts.weights)
        return (not slot.gpus, len(slot.gpus), mates, not runs_here, not there, slot.free_bytes - p.bytes, slot.node, slot.label)

    def _why(self, name: str, p: Placement, index: int, variants: int, others: int) -> str:
        parts = []
        if variants > 1:
            parts.append("first choice of variant" if index == 0 else f"variant {index + 1}: the better ones fit nowhere")
        model = self.inventory.models[name]
        if model.node is not None:
            parts.append(f"pinned to {model.node}" + (f" GPU {model.gpu}" if model.gpu is not None else ""))
        elif others > 0:
            parts.append(f"the tightest fit of {others + 1} places")
        else:
            parts.append("the only place that holds it")
        if model.replicas > 1:
            parts.append(f"replica {self.count(name) + 1} of {model.replicas}")
        return ", ".join(parts)

    # -- the books

    def slots_for(self, node: str, gpus: tuple[str, ...]) -> Iterator[Slot]:
        return (s for s in self.slots if s.node == node and tuple(g.uuid for g in s.gpus) == gpus)

    def _take(self, p: Placement) -> None:
        self.placements.append(p)
        self._occupy(p)

    def _occupy(self, p: Placement, sign: int = 1) -> None:
        wanted = set(p.gpus)
        for i, s in enumerate(self.slots):
            held = {g.uuid for g in s.gpus}
            if s.node == p.node and (held & wanted or (not held and not wanted)):
                self.slots[i] = replace(s, free_bytes=s.free_bytes - sign * p.bytes)

    def _give_back(self, p: Placement) -> None:
        self._occupy(p, -1)


def slots_of(inventory: Inventory, name: str, facts: Facts) -> list[Slot]:
    """The devices of a node: each GPU (MIG slices by themselves), groups of like GPUs, and the RAM where there is no GPU that can be planned."""
    node = inventory.nodes[name]
    ours = [s for s in facts.services if s.cluster == inventory.cluster]
    single = [s for gpu in facts.gpus for s in _gpu_slots(name, node, facts, gpu, ours)]
    groups = []
    for size in (2, 4, 8):
        for alike in {g.gpus[0].name for g in single}:
            pool = sorted(
                (s for s in single if s.gpus[0].name == alike and s.device.memory_kind == "dedicated"), key=lambda s: -s.free_bytes
            )
            if len(pool) >= size:
                chosen = sorted(pool[:size], key=lambda s: s.gpus[0].index)
                groups.append(
                    Slot(
                        node=name,
                        gpus=tuple(s.gpus[0] for s in chosen),
                        device=replace(chosen[0].device, total_bytes=min(s.device.total_bytes for s in chosen), count=size),
                        free_bytes=min(s.free_bytes for s in chosen),
                        explained=" on the fullest of them",
                    )
                )
    if single:
        return single + sorted(groups, key=lambda s: (len(s.gpus), s.label))
    held = sum(_planned(s) for s in ours if s.state in ("running", "starting") and s.memory_bytes is None and s.model)
    held += sum(s.memory_bytes or 0 for s in ours if s.model)
    reserve = RAM_RESERVE_BYTES if node.reserve is None else int(node.reserve)
    free = facts.memory_available_bytes + held - reserve
    device = Device(vendor="cpu", name=facts.cpu.model or "CPU", total_bytes=facts.memory_total_bytes, memory_kind="ram", wsl=facts.wsl)
    return [
        Slot(
            node=name,
            gpus=(),
            device=device,
            free_bytes=free,
            explained=f" of {gib(facts.memory_total_bytes)} RAM after a reserve of {gib(reserve)}",
        )
    ]


def _gpu_slots(name: str, node: Node, facts: Facts, gpu: GPU, ours: Sequence[Service]) -> Iterator[Slot]:
    if gpu.mig:
        for slice_ in gpu.mig_devices:
            part = gpu.model_copy(update={"uuid": slice_.uuid, "name": slice_.name})
            device = Device(
                vendor=gpu.vendor,
                name=slice_.name,
                total_bytes=slice_.memory_total_bytes,
                compute_capability=gpu.compute_capability,
                wsl=facts.wsl,
            )
            yield Slot(node=name, gpus=(part,), device=device, free_bytes=slice_.memory_free_bytes, explained=" in this MIG slice")
        return
    if gpu.memory_total_bytes is None or gpu.memory_free_bytes is None:
        return
    labels = {p.service for p in gpu.processes if p.service}
    held = sum(p.memory_bytes or 0 for p in gpu.processes if p.service)
    # A service of ours that NVML shows no process for (another pid namespace): what was planned for it, as far as it is in use.
    hidden = sum(
        _planned(s)
        for s in ours
        if s.state in ("running", "starting", "unhealthy")
        and s.name not in labels
        and gpu.uuid in s.labels.get("homelab.gpus", "").split(",")
    )
    held += min(hidden, max(0, (gpu.memory_total_bytes - gpu.memory_free_bytes) - held))
    if node.reserve is not None:
        reserve = int(node.reserve)
    elif gpu.memory_kind == "unified":
        reserve = RAM_RESERVE_BYTES
    else:
        reserve = DISPLAY_RESERVE_BYTES if gpu.display else 0
    strangers = [p for p in gpu.processes if not p.service and p.memory_bytes]
    told = [f"`{p.name}` holds {gib(p.memory_bytes or 0)}" for p in sorted(strangers, key=lambda p: -(p.memory_bytes or 0))[:3]]
    if reserve:
        told.append(f"{gib(reserve)} reserved for the desktop")
    device = Device(
        vendor=gpu.vendor,
        name=gpu.name,
        total_bytes=gpu.memory_total_bytes,
        memory_kind=gpu.memory_kind,
        compute_capability=gpu.compute_capability,
        wsl=facts.wsl,
    )
    free = gpu.memory_free_bytes + held - reserve
    yield Slot(
        node=name,
        gpus=(gpu,),
        device=device,
        free_bytes=free,
        explained=f" of {gib(gpu.memory_total_bytes)}" + (f" ({', '.join(told)})" if told else ""),
    )


def wanted_hash(model: Model, address: str) -> str:
    """Identifies a request: equal hash, and a running placement keeps its numbers."""
    asked = model.model_dump(mode="json", exclude={"replicas", "priority", "node"})
    return hashlib.sha256(json.dumps([asked, address], sort_keys=True).encode()).hexdigest()[:16]


def gib(size: int) -> str:
    return f"{size / GIB:.2f}" if abs(size) < 10 * GIB else f"{size / GIB:.1f}"


def _planned(service: Service) -> int:
    try:
        return int(json.loads(service.labels.get("homelab.placement", "{}")).get("bytes", 0))
    except (ValueError, AttributeError):
        return 0


def _default_context(shape: ModelShape) -> Context:
    tokens = min(DEFAULT_CONTEXT, shape.max_context or DEFAULT_CONTEXT)
    return Context(min=tokens, max=tokens)


def _gpu_matches(wanted: int | str | None, slot: Slot) -> bool:
    return wanted is None or (len(slot.gpus) == 1 and wanted in (slot.gpus[0].index, slot.gpus[0].uuid))


def _count_matches(variant: Variant, slot: Slot) -> bool:
    """A number of GPUs that the user wrote is kept; else one is tried before several."""
    wanted = variant.args.get("tensor-parallel-size", variant.args.get("tp"))
    return wanted is None or slot.device.count == wanted


def _native_refusal(engine: Engine, slot: Slot, facts: Facts) -> str | None:
    if engine.NAME != "llamacpp":
        return f"{engine.NAME} runs in Docker only, and this node has none in use"
    if slot.gpus and not facts.llama_server:
        return "without Docker the GPU needs a `llama-server` in PATH: homelab's own is built for the CPU"
    return None


def _is_ip(text: str) -> bool:
    parts = text.split(".")
    return ":" in text or (len(parts) == 4 and all(p.isdigit() for p in parts))
