"""Every way to run each model on each device of the household, or why not: what the search chooses from.
Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial

from homelab.engines import Engine, Footprint, Request, Unsupported, engines
from homelab.errors import HomelabError
from homelab.facts import DeployedService, Facts, Survey, Weights
from homelab.hosting import Refused, address_of, choose
from homelab.inventory import Context, Inventory, Model, Variant
from homelab.measured import learned, with_measured
from homelab.models import rules
from homelab.models.header import from_header
from homelab.models.recipes import Recipes, too_old
from homelab.models.sampling import Sampling
from homelab.models.shape import ModelShape
from homelab.placement.devices import (
    GIB,
    RAM_RESERVE_BYTES,
    Slot,
    gib,
    group_of,
    slots_of,
)
from homelab.placement.layout import Placement
from homelab.placement.resume import revive
from homelab.program import image_of
from homelab.service import port_of

DEFAULT_CONTEXT = 8192
CONTEXT_STEP = 256
# How many contexts between the least and the most that is asked for are weighed against each other, these
# two among them.
RUNGS = 6
# Disk that stays free beside the weights.
DISK_MARGIN_BYTES = GIB


def rungs(context: Context) -> list[int]:
    """The contexts that are weighed, in equal ratios: growth beyond them fills what is left."""
    steps = (context.min * (context.max / context.min) ** (i / (RUNGS - 1)) for i in range(1, RUNGS - 1))
    inside = {round(s / CONTEXT_STEP) * CONTEXT_STEP for s in steps}
    return sorted({context.min, context.max, *(s for s in inside if context.min < s < context.max)})


def largest_context(low: int, high: int, fits: Callable[[int], Placement | None]) -> Placement | None:
    """The placement with the most context from `low` to `high` that `fits`, in steps of 256; None where
    none does."""
    if (most := fits(high)) is not None:
        return most
    best = fits(low)
    while best is not None and high - low > CONTEXT_STEP:
        middle = (low + high) // 2 // CONTEXT_STEP * CONTEXT_STEP
        if middle <= low:
            break
        if (larger := fits(middle)) is not None:
            best, low = larger, middle
        else:
            high = middle
    return best


@cache
def _engine(name: str) -> Engine:
    """An engine's module: looking it up by name each time costs more than its arithmetic."""
    return engines()[name]


class Candidates:
    """What is known of the household, and what follows for one model on one device."""

    def __init__(
        self,
        inventory: Inventory,
        survey: Survey,
        recipes: Recipes | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.inventory, self.survey, self.recipes, self.sampling = inventory, survey, recipes, sampling
        self.facts = {
            n: r.facts
            for n, r in sorted(survey.nodes.items())
            if n in inventory.nodes and r.facts is not None
        }
        self.remembered = {
            n: f for n, f in sorted(survey.remembered.items()) if n in inventory.nodes and n not in self.facts
        }
        self.slots = [slot for name, facts in self.facts.items() for slot in slots_of(inventory, name, facts)]
        self._weights = {n: {w.source: w for w in f.weights} for n, f in self.facts.items()}
        self._shapes: dict[int, ModelShape | str] = {}
        self._footprints: dict[tuple[object, ...], Footprint | str] = {}
        self._drafts: dict[tuple[str, int, str, str], Placement | str] = {}
        self._away = {n: slots_of(inventory, n, f) for n, f in self.remembered.items()}

    # -- what is known about a model

    def weights(self, source: str, node: str) -> Weights | None:
        """The weights as that node has them, else as the hub describes them."""
        local = self._weights.get(node, {}).get(source)
        return (
            local
            if local is not None and local.header is not None
            else self.survey.models.get(source) or local
        )

    def shape(self, source: str, node: str) -> ModelShape | str:
        """The model's shape as its files on that node (or the hub) give it, or why it is not known."""
        weights = self.weights(source, node)
        if weights is None:
            return f"nothing is known about {source}"
        if weights.header is None:
            error = weights.error or "it is not there"
            return error if source in error else f"{source}: {error}"
        if id(weights) not in self._shapes:
            try:
                self._shapes[id(weights)] = from_header(weights.header)
            except HomelabError as e:
                self._shapes[id(weights)] = e.message
        return self._shapes[id(weights)]

    def drafter(self, variant: Variant, node: str) -> ModelShape | None:
        """The shape of the model that drafts for this one; None where none does, or nobody can read it."""
        source = variant.drafter
        shape = self.shape(source.text, node) if source is not None else None
        return shape if isinstance(shape, ModelShape) else None

    def there(self, source: str, node: str) -> int:
        """Bytes of the weights if they lie on that node."""
        local = self._weights.get(node, {}).get(source)
        return local.bytes if local is not None and local.present else 0

    def fetch(self, source: str, node: str) -> int:
        """Bytes of the weights that the node would have to fetch."""
        local = self._weights.get(node, {}).get(source)
        if source.startswith(("/", "~")) or (local is not None and local.present):
            return 0
        shape, weights = self.shape(source, node), self.weights(source, node)
        size = (
            weights.bytes
            if weights and weights.bytes
            else shape.weights_bytes
            if isinstance(shape, ModelShape)
            else 0
        )
        return max(0, size - (local.bytes if local else 0))

    def fetch_all(self, variant: Variant, node: str) -> int:
        """The same for all that it loads."""
        return sum(self.fetch(s.text, node) for s in variant.reads)

    def disk(self, node: str) -> int:
        """Bytes that weights may still take on a node; without bound where its disk is not known. Never less
        than nothing: what must fetch nothing fits a full disk."""
        disk = next((d for d in self.facts[node].disks if d.purpose == "models"), None)
        return max(0, disk.free_bytes - DISK_MARGIN_BYTES) if disk is not None else 1 << 62

    def ram(self, node: str) -> int:
        """Bytes of RAM for what engines hold beside their GPU."""
        return self.facts[node].memory_available_bytes - RAM_RESERVE_BYTES

    # -- what runs already

    def running(self, name: str) -> Iterator[tuple[Placement, DeployedService]]:
        """Placements of this request as they are now, with their service. A node that is briefly away keeps
        its models: they come back with it, and nothing is downloaded elsewhere meanwhile."""
        model = self.inventory.models[name]
        for node, facts in (*self.facts.items(), *self.remembered.items()):
            if model.node not in (None, node):
                continue
            for service in sorted(facts.services, key=lambda s: s.name):
                if service.cluster == self.inventory.cluster and name in service.serves:
                    kept = revive(self.inventory, name, node, facts, service, partial(self.slot, node))
                    if kept is not None:
                        yield (
                            kept
                            if node in self.facts
                            else replace(
                                kept,
                                reason="its node does not answer: left as it was",
                                summary="its node does not answer",
                            ),
                            service,
                        )

    def slot(self, node: str, gpus: Sequence[str]) -> Slot | None:
        """The slot of a node with exactly these GPUs."""
        slots = self._away[node] if node in self._away else [s for s in self.slots if s.node == node]
        exact = next((s for s in slots if [g.uuid for g in s.gpus] == list(gpus)), None)
        single = [s for s in slots if len(s.gpus) == 1 and s.gpus[0].uuid in gpus]
        return exact or (group_of(single) if len(single) == len(gpus) > 1 else None)

    # -- one model on one device

    def matching(self, name: str, variant: Variant) -> list[Slot]:
        """The devices that what the user wrote leaves for this variant."""
        model = self.inventory.models[name]
        return [
            s
            for s in self.slots
            if model.node in (None, s.node) and _gpu_matches(model.gpu, s) and _count_matches(variant, s)
        ]

    def draft(self, name: str, index: int, slot: Slot) -> Placement | str:
        """A placement without its numbers, or why there can be none whatever the memory."""
        key = (name, index, slot.node, slot.key)
        if key not in self._drafts:
            self._drafts[key] = self._draft(name, index, slot)
        return self._drafts[key]

    def _draft(self, name: str, index: int, slot: Slot) -> Placement | str:
        model, facts = self.inventory.models[name], self.facts[slot.node]
        variant = model.variants[index]
        engine = _engine(variant.engine)
        if slot.device.vendor not in engine.VENDORS:
            return f"{engine.NAME} does not run on {slot.device.vendor}"
        try:
            choice = choose(self.inventory, slot.node, facts, engine.OFFER, slot.device.vendor, slot.gpus)
            address = address_of(self.inventory, slot.node, facts)
        except Refused as e:
            return str(e)
        shape = self.shape(variant.source, slot.node)
        if isinstance(shape, str):
            return shape
        if shape.format not in engine.FORMATS:
            return f"{engine.NAME} does not read {shape.format} files"
        if (needed := self.fetch_all(variant, slot.node)) > self.disk(slot.node):
            disk = next(d for d in facts.disks if d.purpose == "models")
            return (
                f"disk too small for the weights: {gib(needed)} GiB to fetch, "
                f"{gib(disk.free_bytes)} GiB free at {disk.path}"
            )
        if refusal := self._port_refusal(model, facts):
            return refusal
        # Recipes are for vLLM.
        recipe = self.recipes.find(variant.source) if self.recipes and engine.NAME == "vllm" else None
        if recipe and (old := too_old(recipe, image_of(choice.program))):
            return old
        try:
            advised = recipe.drafts if recipe else None
            drafts = rules.drafts_for(engine.NAME, shape, model.speculative, variant.args, advised)
        except ValueError as e:
            return str(e)
        return Placement(
            model=name,
            service="",
            variant=index,
            node=slot.node,
            engine=engine.NAME,
            runtime=choice.runtime,
            program=choice.program,
            hosting=choice.hosting,
            source=variant.source,
            gpus=tuple(g.uuid for g in slot.gpus),
            device=slot.device,
            address=address,
            port=0,
            request=Request(
                kind=model.kind,
                context=self.context(model, shape).min,
                concurrency=model.concurrency,
                args=variant.args,
                drafter=self.drafter(variant, slot.node),
                speculative=drafts,
                recipe=recipe,
                sampling=self.sampling.find(variant.source) if self.sampling else {},
            ),
            footprint=Footprint(terms=(), kv_cache_bytes=0, kv_cache_tokens=0),
            gpu_memory_utilization=None,
            reason="",
            quantization=shape.quantization
            if shape.quantization != "none"
            else f"{shape.dtype_bytes * 8}-bit",
        )

    def context(self, model: Model, shape: ModelShape) -> Context:
        tokens = min(DEFAULT_CONTEXT, shape.max_context or DEFAULT_CONTEXT)
        return model.context or Context(min=tokens, max=tokens)

    def sized(self, draft: Placement, context: int, *, concurrency: int | None = None) -> Placement | str:
        """The draft with its numbers at this context, or why the engine refuses."""
        request = replace(
            draft.request, context=context, concurrency=concurrency or draft.request.concurrency
        )
        shape = self.shape(draft.source, draft.node)
        assert isinstance(shape, ModelShape)
        key = (
            draft.model,
            draft.variant,
            draft.device,
            draft.version,
            id(shape),
            id(request.drafter),
            context,
            request.concurrency,
        )
        if key not in self._footprints:
            try:
                footprint = _engine(draft.engine).footprint(shape, request, draft.device)
                known = learned(self.survey.measured, draft.device.name, draft.engine, draft.version)
                self._footprints[key] = with_measured(footprint, known)
            except Unsupported as e:
                self._footprints[key] = str(e)
        sized = self._footprints[key]
        if isinstance(sized, str):
            return sized
        utilization = None
        if _engine(draft.engine).BUDGETED:
            # Rounded up to 0.001: to 0.01 would waste up to 0.24 GiB of a 24 GB card.
            utilization = math.ceil(sized.budget_bytes / max(1, draft.device.total_bytes) * 1000) / 1000
        return replace(draft, request=request, footprint=sized, gpu_memory_utilization=utilization)

    def _port_refusal(self, model: Model, facts: Facts) -> str | None:
        if model.port is None or model.port not in (strangers := self.strangers(facts)):
            return None
        return (
            f"port {model.port} is in use by {strangers[model.port] or 'another process'}: "
            "choose another `port`"
        )

    def own_ports(self, facts: Facts) -> set[int]:
        ports = (port_of(s.labels) for s in facts.services if s.cluster == self.inventory.cluster)
        return {port for port in ports if port is not None}

    def strangers(self, facts: Facts) -> dict[int, str | None]:
        """Ports that others listen on."""
        ours = self.own_ports(facts)
        return {p.port: p.process for p in facts.ports if p.port not in ours}


def too_large(p: Placement, free: int, explained: str, ram: int) -> str | None:
    """The arithmetic of why a sized placement does not fit into what is free; None where it does."""
    if (p.gpu_memory_utilization or 0) > 1 or p.bytes > free:
        terms = " + ".join(
            f"{t.name} {gib(t.bytes)}" for t in p.footprint.terms if t.where != "host" and t.bytes
        )
        return f"needs {gib(p.bytes)} GiB: {terms}; free {gib(free)} GiB{explained}"
    if p.gpus and p.footprint.host_bytes > max(0, ram):
        return f"needs {gib(p.footprint.host_bytes)} GiB of RAM beside the GPU, free {gib(ram)} GiB"
    return None


def _gpu_matches(wanted: int | str | None, slot: Slot) -> bool:
    return wanted is None or (len(slot.gpus) == 1 and wanted in (slot.gpus[0].index, slot.gpus[0].uuid))


def _count_matches(variant: Variant, slot: Slot) -> bool:
    """A number of devices that the user wrote is kept; what is no number is refused with its reason later."""
    try:
        wanted = _engine(variant.engine).device_count(variant.args)
    except Unsupported:
        return True
    return wanted is None or slot.device.count == wanted
