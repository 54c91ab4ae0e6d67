"""Which model runs on which device of which node, with how many bytes, and why. Pure: the same inventory and survey give the same placements."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from homelab.devices import GIB, RAM_RESERVE_BYTES, Slot, bind_address, gib, image_for, runtime_for, slots_of
from homelab.engines import Device, Engine, Footprint, Launch, Request, Term, Unsupported, engines
from homelab.errors import HomelabError
from homelab.facts import GPU, Facts, Service, Survey, Weights
from homelab.inventory import Context, Inventory, Model, Variant, slug
from homelab.models.header import from_header
from homelab.models.shape import ModelShape

DEFAULT_CONTEXT = 8192
CONTEXT_STEP = 256
# Disk that stays free beside the weights.
DISK_MARGIN_BYTES = GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One instance of a model on one node: `reason` says why there, `elsewhere` why not in the places that were better or as good."""

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
    elsewhere: tuple[str, ...] = ()
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
    left = tuple(replace(slot, free_bytes=desk.free(slot)) for slot in desk.slots)
    return Layout(placements=tuple(placed), unplaced=tuple(desk.unplaced), slots=left)


def unsettled(inventory: Inventory, survey: Survey) -> frozenset[str]:
    """The models that must be planned anew, so whose headers must be known: all but those that stay as they are in every replica."""
    desk = _Desk(inventory, survey)
    for name in inventory.models:
        desk.keep(name)
    return frozenset(n for n, m in inventory.models.items() if desk.count(n) < m.replicas)


class _Desk:
    """The state of one planning run: what is free on each device as placements are laid on it."""

    def __init__(self, inventory: Inventory, survey: Survey) -> None:
        self.inventory = inventory
        self.survey = survey
        self.placements: list[Placement] = []
        self.unplaced: list[Unplaced] = []
        self.facts = {n: r.facts for n, r in sorted(survey.nodes.items()) if n in inventory.nodes and r.facts is not None}
        self.slots = [slot for name, facts in self.facts.items() for slot in slots_of(inventory, name, facts)]
        self._free = {(s.node, device): s.free_bytes for s in self.slots if len(s.gpus) <= 1 for device in _devices(s.gpus)}
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
            return from_header(weights.header)
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
                    if kept is not None and (service.state in ("running", "starting") or node in self.remembered or self._still_fits(kept)):
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

    def _still_fits(self, p: Placement) -> bool:
        """Whether what a stopped service gave up is still free."""
        return all(p.bytes <= self._free[p.node, device] for device in _devices(p.gpus))

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
                    which = f" ({variant.engine})" if len(model.variants) > 1 else ""
                    rejected.append(f"{slot.node} {slot.label}{which}: {outcome}")
            if options:
                _, best = min(options, key=lambda o: o[0])
                others = len({(p.node, p.gpus) for _, p in options}) - 1
                why = self._why(name, best, index, len(model.variants), others)
                self._take(replace(best, reason=why, elsewhere=tuple(dict.fromkeys(rejected))))
                return
        down = tuple(
            n
            for n in ([model.node] if model.node else self.inventory.nodes)
            if n in self.survey.nodes and not self.survey.nodes[n].reachable and not self.inventory.nodes[n].away
        )
        rejected += [f"{n}: {self._down(n)}" for n in down]
        if model.node is not None and model.node not in self.facts and self.inventory.nodes[model.node].away:
            rejected.append(f"{model.node}: marked as away")
            down = (model.node,)  # it waits for that node, as for one that does not answer
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
            slot = next(s for s in self.slots if s.node == p.node and tuple(g.uuid for g in s.gpus) == p.gpus)
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
        if (utilization or 0) > 1 or fitted.bytes > self.free(slot):
            terms = " + ".join(f"{t.name} {gib(t.bytes)}" for t in footprint.terms if t.where != "host" and t.bytes)
            return f"needs {gib(fitted.bytes)} GiB: {terms}; free {gib(self.free(slot))} GiB{slot.explained}"
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
        """Smaller is better: a GPU before RAM, no replica beside another, where it already runs, weights already there, the tightest device."""
        facts = self.facts[slot.node]
        mates = [q for q in self.placements if q.model == name and q.node == slot.node]
        beside = sum(bool(set(q.gpus) & set(p.gpus)) or not p.gpus for q in mates)
        runs_here = any(s.model == name and s.cluster == self.inventory.cluster for s in facts.services)
        there = any(w.source == p.source and w.present for w in facts.weights)
        return (
            not slot.gpus,
            len(slot.gpus),
            beside,
            len(mates),
            not runs_here,
            not there,
            self.free(slot) - p.bytes,
            slot.node,
            slot.label,
        )

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

    def free(self, slot: Slot) -> int:
        """What is left of a slot: of several GPUs, what the fullest of them has left."""
        return min(self._free[slot.node, device] for device in _devices(slot.gpus))

    def _take(self, p: Placement) -> None:
        self.placements.append(p)
        self._occupy(p)

    def _occupy(self, p: Placement, sign: int = 1) -> None:
        for device in _devices(p.gpus):
            if (p.node, device) in self._free:
                self._free[p.node, device] -= sign * p.bytes

    def _give_back(self, p: Placement) -> None:
        self._occupy(p, -1)


def wanted_hash(model: Model, address: str) -> str:
    """Identifies a request: equal hash, and a running placement keeps its numbers."""
    asked = model.model_dump(mode="json", exclude={"replicas", "priority", "node"})
    return hashlib.sha256(json.dumps([asked, address], sort_keys=True).encode()).hexdigest()[:16]


def _devices(gpus: Sequence[GPU | str]) -> list[str]:
    """The names of a slot's devices in the books."""
    return [g if isinstance(g, str) else g.uuid for g in gpus] or ["ram"]


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
