"""Which model runs on which device of which node, with how many bytes, and why. Pure: the same inventory
and survey give the same placements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from homelab.engines import engines
from homelab.facts import DeployedService, Survey
from homelab.inventory import Context, Inventory, slug
from homelab.models.recipes import Recipes
from homelab.models.sampling import Sampling
from homelab.models.shape import ModelShape
from homelab.placement.assignment import Answer, Option, Problem, Room, Want, all_kept
from homelab.placement.candidates import Candidates, largest_context, rungs, too_large
from homelab.placement.devices import Slot, names_of
from homelab.placement.explain import Explainer
from homelab.placement.layout import Layout, Placement, Unplaced
from homelab.service import port_of

__all__ = ["Layout", "Placement", "Slot", "Unplaced", "place", "problem_of", "unsettled"]


def place(
    inventory: Inventory,
    survey: Survey,
    recipes: Recipes | None = None,
    sampling: Sampling | None = None,
) -> Layout:
    """Placements for everything asked for, as far as it fits into what is free now plus what our own
    services hold.

    The best choice in this order: models with a place, by priority; replicas, by priority; running
    placements kept; better variants; larger contexts; weights that are there; replicas spread over nodes.
    Contexts then grow into what is left. What finds no place is in `unplaced` with the arithmetic; `gap`
    says how far from the best a household too large for an exact answer may be."""
    known = Candidates(inventory, survey, recipes, sampling)
    choices = _Choices(known)
    answer = all_kept(choices.problem)
    if answer is None:
        from homelab.placement.solver import solve  # a second to load, for nothing where all is as it was

        answer = solve(choices.problem)
    plan = _Finisher(known, choices, answer)
    return plan.layout()


def problem_of(inventory: Inventory, survey: Survey) -> Problem:
    """The household as plain numbers, as the solver takes it."""
    return _Choices(Candidates(inventory, survey)).problem


def unsettled(inventory: Inventory, survey: Survey) -> frozenset[str]:
    """The models whose headers must be known: none as long as everything asked for stays as it is, else
    all, for anything may have to give."""
    known = Candidates(inventory, survey)
    devices = {(s.node, n): s.free_bytes for s in known.slots if len(s.gpus) <= 1 for n in names_of(s.gpus)}
    for name, model in inventory.models.items():
        stays = 0
        for p, service in known.running(name):
            idle = service.state not in ("running", "starting") and p.node in known.facts
            if idle and any(p.bytes > devices.get((p.node, n), 0) for n in names_of(p.gpus)):
                continue
            if idle:
                for n in names_of(p.gpus):
                    devices[p.node, n] -= p.bytes
            stays += 1
        if stays < model.replicas:
            return frozenset(inventory.models)
    return frozenset()


class _Choices:
    """The options of the household, each with the placement that it stands for."""

    def __init__(self, known: Candidates) -> None:
        self.known = known
        self.names = sorted(known.inventory.models)
        self.nodes = [*known.facts, *known.remembered]
        self.slots = known.slots
        self.device = {
            (s.node, n): i
            for i, (s, n) in enumerate(
                (s, n) for s in self.slots if len(s.gpus) <= 1 for n in names_of(s.gpus)
            )
        }
        self.single = {(s.node, n): s for s in self.slots if len(s.gpus) <= 1 for n in names_of(s.gpus)}
        # The order of names, the last thing that decides: the first model gets the first of two places.
        self.order = {
            (s.node, s.key): i
            for i, s in enumerate(sorted(self.slots, key=lambda s: (s.node, len(s.gpus), s.label)))
        }
        self.placements: list[Placement] = []
        self.options: list[Option] = []
        self.refused: dict[tuple[str, int, str, str], str] = {}
        self.keepable: dict[str, int] = Counter()
        self.full = self._running()
        for number, name in enumerate(self.names):
            self._fresh(number, name)
        self.problem = Problem(
            wants=tuple(
                Want(priority=m.priority, replicas=m.replicas, per_node=1 if m.port is not None else 1024)
                for m in (known.inventory.models[n] for n in self.names)
            ),
            rooms=tuple(
                Room(ram=known.ram(n), disk=known.disk(n)) if n in known.facts else Room(ram=0, disk=0)
                for n in self.nodes
            ),
            devices=tuple((self.nodes.index(s.node), max(0, s.free_bytes)) for s in self.single.values()),
            options=tuple(self.options),
        )

    def _running(self) -> set[tuple[str, str]]:
        """Options for what runs; the devices whose running services hold more than is free take nothing
        new, and keep what they have."""
        services = [
            (number, p, s) for number, name in enumerate(self.names) for p, s in self.known.running(name)
        ]
        alive = {p.service + "@" + p.node for _, p, s in services if s.state in ("running", "starting")}
        left = {key: max(0, slot.free_bytes) for key, slot in self.single.items()}
        full = set()
        ram = {n: max(0, self.known.ram(n)) for n in self.known.facts}
        for number, p, service in services:
            loads = []
            runs = p.service + "@" + p.node in alive
            for n in names_of(p.gpus) if p.node in self.known.facts else ():
                load = p.bytes
                if runs:
                    if load > left[p.node, n]:
                        full.add((p.node, n))
                        load = left[p.node, n]
                    left[p.node, n] -= load
                loads.append((self.device[p.node, n], load))
            host = p.footprint.host_bytes if p.gpus and p.node in self.known.facts else 0
            if runs:  # what it holds is not free any more: only what it may still grow by counts
                host = min(
                    max(0, host - service.memory_bytes) if service.memory_bytes is not None else 0,
                    ram[p.node] if loads else 0,
                )
                ram[p.node] = ram.get(p.node, 0) - host
            self.keepable[p.model] += 1
            self._add(number, p, tuple(loads), host=host, free=0, place=0)
        return full

    def _fresh(self, number: int, name: str) -> None:
        known, model = self.known, self.known.inventory.models[name]
        for index, variant in enumerate(model.variants):
            for slot in known.matching(name, variant):
                draft = known.draft(name, index, slot)
                if isinstance(draft, str):
                    self.refused[name, index, slot.node, slot.key] = draft
                    continue
                if any((slot.node, n) in self.full for n in names_of(slot.gpus)):
                    self.refused[name, index, slot.node, slot.key] = (
                        "what runs there holds more than is free: nothing new beside it"
                    )
                    continue
                shape = known.shape(variant.source, slot.node)
                assert isinstance(shape, ModelShape)
                for context in rungs(known.context(model, shape)):
                    p = known.sized(draft, context)
                    if isinstance(p, str):
                        self.refused.setdefault((name, index, slot.node, slot.key), p)
                        break
                    if too_large(p, slot.free_bytes, "", known.ram(slot.node)):
                        break
                    self.refused.pop((name, index, slot.node, slot.key), None)
                    self._add(
                        number,
                        p,
                        tuple((self.device[slot.node, n], p.bytes) for n in names_of(slot.gpus)),
                        host=p.footprint.host_bytes if slot.gpus else 0,
                        free=max(0, slot.free_bytes),
                        place=self.order[slot.node, slot.key] * (len(self.names) - number),
                        avoidable=len(slot.gpus) > 1 and self._alone(p, slot),
                    )

    def _alone(self, p: Placement, slot: Slot) -> bool:
        """Whether one of these GPUs would hold it, were it empty."""
        for gpu in slot.gpus:
            one = self.single[slot.node, gpu.uuid]
            draft = self.known.draft(p.model, p.variant, one)
            sized = self.known.sized(draft, p.request.context) if isinstance(draft, Placement) else draft
            if isinstance(sized, Placement) and not too_large(
                sized, one.free_bytes, "", self.known.ram(slot.node)
            ):
                return engines()[p.engine].device_count(p.request.args) is None
        return False

    def _add(
        self,
        number: int,
        p: Placement,
        loads: tuple[tuple[int, int], ...],
        *,
        host: int,
        free: int,
        place: int,
        avoidable: bool = False,
    ) -> None:
        variant = self.known.inventory.models[p.model].variants[p.variant]
        fetch = self.known.fetch_all(variant, p.node) if not p.kept else 0
        self.placements.append(p)
        self.options.append(
            Option(
                model=number,
                node=self.nodes.index(p.node),
                loads=loads,
                host=host,
                fetch=p.source if fetch else "",
                fetch_bytes=fetch,
                once=p.kept,
                kept=p.kept,
                avoidable=avoidable,
                rank=p.variant,
                in_ram=not p.gpus,
                tokens=p.request.context,
                there=self.known.there(p.source, p.node) if p.node in self.known.facts else 0,
                gpus=len(p.gpus),
                away=self.known.inventory.nodes[p.node].away,
                free=free,
                place=place,
            )
        )


class _Finisher:
    """Makes placements of the options chosen: names, ports, contexts grown into what is left, reasons."""

    def __init__(self, known: Candidates, choices: _Choices, answer: Answer) -> None:
        self.known, self.choices, self.answer = known, choices, answer
        self.inventory = known.inventory
        self.free = {key: slot.free_bytes for key, slot in choices.single.items()}
        self.ram = {n: known.ram(n) for n in known.facts}
        self.placements: list[Placement] = []

    def layout(self) -> Layout:
        chosen = sorted(self.answer.chosen, key=lambda i: self._order(self.choices.placements[i]))
        for i in chosen:
            p, option = self.choices.placements[i], self.choices.options[i]
            if not p.kept:
                p = self._named(p)
            self.placements.append(p)
            for n in names_of(p.gpus):
                if (p.node, n) in self.free:
                    self.free[p.node, n] -= p.bytes
            if p.node in self.ram:
                self.ram[p.node] -= option.host
        short = self._grow_all()
        explainer = Explainer(
            self.known, self.choices.refused, self.placements, self.free, self.ram, self.choices.keepable
        )
        explained = [
            replace(p, reason="; ".join([p.reason, *explainer.may_be_away(p)]))
            if p.kept
            else explainer.explained(p, short=i in short)
            for i, p in enumerate(self.placements)
        ]
        count = Counter(p.model for p in explained)
        order = sorted(self.choices.names, key=lambda n: (-self.inventory.models[n].priority, n))
        missing = [
            explainer.unplaced(n, k)
            for n in order
            for k in range(count[n], self.inventory.models[n].replicas)
        ]
        slots = tuple(
            replace(s, free_bytes=min(self.free[s.node, n] for n in names_of(s.gpus)))
            for s in self.choices.slots
        )
        placed = tuple(sorted(explained, key=lambda p: (p.model, p.node, p.service)))
        return Layout(
            placements=placed,
            unplaced=tuple(missing),
            slots=slots,
            gap=self.answer.gap(self.choices.problem),
            explains=explainer,
        )

    def _order(self, p: Placement) -> tuple[object, ...]:
        """What is kept has its name and port already; the rest by priority."""
        return (not p.kept, -self.inventory.models[p.model].priority, p.model, p.node, p.gpus)

    def _named(self, p: Placement) -> Placement:
        taken = {q.service for q in self.placements if q.node == p.node}
        base = slug(p.model)
        service = next(s for s in (base, *(f"{base}-{i}" for i in range(2, 2000))) if s not in taken)
        return replace(p, service=service, port=self._port(p, service))

    def _port(self, p: Placement, service: str) -> int:
        model, facts = self.inventory.models[p.model], self.known.facts[p.node]
        if model.port is not None:
            return model.port
        taken = {q.port for q in self.placements if q.node == p.node} | {
            m.port for m in self.inventory.models.values() if m.port
        }
        # Services that are kept are all among the placements by now; what else of ours listens is about to
        # go.
        if p.node == self.inventory.gateway.node:
            taken.add(self.inventory.gateway.port)
        taken |= {app.at for app in self.inventory.apps.values() if app.node == p.node}
        before = _port_of(facts.services, self.inventory.cluster, service)
        if before is not None and before not in taken:
            return before
        used = self.known.strangers(facts).keys() | self.known.own_ports(facts) | taken
        return next(port for port in range(engines()[p.engine].PORT, 65536) if port not in used)

    def _grow_all(self) -> set[int]:
        """Contexts as large as fits, from what was chosen or from the least that was asked for, whichever
        ends with more tokens in all, else the latter: which of equals the solver gave more is no order. Those
        whose tokens take the fewest bytes come first, then by name. Gives back which are less than was asked
        for."""
        asked = {
            i: c
            for i, p in enumerate(self.placements)
            if not p.kept and (c := self.inventory.models[p.model].context) and c.min != c.max
        }
        order = sorted(asked, key=lambda i: (self._token_bytes(i, asked[i]), i))
        chosen, free, ram = self.placements, self.free, self.ram
        tried = []
        for from_least in (True, False):
            self.placements, self.free, self.ram = list(chosen), dict(free), dict(ram)
            for i in order if from_least else ():
                least = self.known.sized(self.placements[i], asked[i].min)
                if isinstance(least, Placement):
                    self._resize(i, least)
            for i in order:
                self._grow(i, asked[i].max)
            tried.append(
                (sum(p.request.context for p in self.placements), self.placements, self.free, self.ram)
            )
        _, self.placements, self.free, self.ram = max(tried, key=lambda t: t[0])
        return {i for i in asked if self.placements[i].request.context < asked[i].max}

    def _token_bytes(self, i: int, asked: Context) -> float:
        p = self.placements[i]
        least, most = self.known.sized(p, asked.min), self.known.sized(p, asked.max)
        if isinstance(least, str) or isinstance(most, str):
            return 0.0
        return (most.bytes - least.bytes) * max(1, len(p.gpus)) / (asked.max - asked.min)

    def _grow(self, i: int, most: int) -> None:
        p = self.placements[i]
        free = min(self.free[p.node, n] for n in names_of(p.gpus)) + p.bytes
        ram = self.ram[p.node] + p.footprint.host_bytes

        def fits(context: int) -> Placement | None:
            sized = self.known.sized(p, context)
            return sized if isinstance(sized, Placement) and not too_large(sized, free, "", ram) else None

        self._resize(i, largest_context(p.request.context, most, fits) or p)

    def _resize(self, i: int, new: Placement) -> None:
        p, self.placements[i] = self.placements[i], new
        for n in names_of(p.gpus):
            self.free[p.node, n] -= new.bytes - p.bytes
        if p.gpus:
            self.ram[p.node] -= new.footprint.host_bytes - p.footprint.host_bytes


def _port_of(services: Sequence[DeployedService], cluster: str, name: str) -> int | None:
    return next((port_of(s.labels) for s in services if s.cluster == cluster and s.name == name), None)
