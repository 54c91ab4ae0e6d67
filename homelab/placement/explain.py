"""Why a model is where it is, why not elsewhere, and what keeps the rest out: every rejection with its
arithmetic. Pure.

"Free" is what the other placements leave in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from homelab.inventory import Variant
from homelab.models import rules
from homelab.models.shape import ModelShape
from homelab.placement.candidates import Candidates, largest_context, too_large
from homelab.placement.devices import GIB, Slot, names_of
from homelab.placement.layout import Because, Placement, Unplaced

SMALLEST_CONTEXT = 2048


class Explainer:
    def __init__(
        self,
        known: Candidates,
        refused: Mapping[tuple[str, int, str, str], str],
        placements: Sequence[Placement],
        free: Mapping[tuple[str, str], int],
        ram: Mapping[str, int],
        keepable: Mapping[str, int],
    ) -> None:
        self.known, self.refused, self.placements = known, refused, placements
        self.free, self.ram, self.keepable = free, ram, keepable
        self.inventory = known.inventory

    def explained(self, p: Placement, *, short: bool) -> Placement:
        """The placement with its reason, and with why not in the other places of its variant and the better
        ones. `short`: a larger context was asked for."""
        outcomes = self._outcomes(p)
        rejected = [self._line(p.model, i, s, why) for i, s, why in outcomes if isinstance(why, str)]
        also = [q for i, _, q in outcomes if isinstance(q, Placement) and i == p.variant]
        place, in_short = self._place(p, also)
        reasons = [*self._variant(p), place, *self._besides(p), *self.may_be_away(p)]
        return replace(
            p,
            reason="; ".join([*reasons, *self._context(p, short=short), *self._rules(p)]),
            summary="largest context that fits" if short else in_short,
            elsewhere=tuple(dict.fromkeys(rejected)),
        )

    def because(self, p: Placement) -> Because:
        """All that there is to say of one placement of the decision."""
        outcomes = self._outcomes(p)
        elsewhere = [
            self._line(p.model, i, s, o if isinstance(o, str) else self._passed_over(p, i, o))
            for i, s, o in outcomes
        ]
        return Because(
            here=tuple(p.reason.split("; ")),
            elsewhere=tuple(dict.fromkeys(elsewhere)),
            change=tuple(dict.fromkeys([*self._more_here(p), *self._ways(p.model, outcomes, p)])),
        )

    def shape(self, p: Placement) -> ModelShape | None:
        """What the placement's model is; None where nobody has read its header."""
        found = self.known.shape(p.source, p.node)
        return None if isinstance(found, str) else found

    def missing(self, model: str) -> Because:
        """All that there is to say of a model that found no place, or not for each of its replicas."""
        found = self.unplaced(model, sum(p.model == model for p in self.placements))
        outcomes = [
            (i, slot, self._least(model, i, slot))
            for i, variant in enumerate(self.inventory.models[model].variants)
            for slot in self.known.matching(model, variant)
        ]
        return Because(
            here=(), elsewhere=found.details, change=tuple(dict.fromkeys(self._ways(model, outcomes, None)))
        )

    def _rules(self, p: Placement) -> list[str]:
        """What is known to break with what it is, and what is done about it."""
        if (shape := self.shape(p)) is None:
            return []
        drafts = p.request.speculative or rules.drafts_of(p.request.args)
        found = rules.reasons(p.engine, shape, drafts, p.request.args)
        return [line.replace(";", ",") for line in found]  # reasons are told apart by `; `

    def _outcomes(self, p: Placement) -> list[tuple[int, Slot, Placement | str]]:
        """What p's model would be in each other place, as its variant or a better one."""
        return [
            (index, slot, self._least(p.model, index, slot, without=p))
            for index, variant in enumerate(self.inventory.models[p.model].variants[: p.variant + 1])
            for slot in self.known.matching(p.model, variant)
            if (slot.node, tuple(g.uuid for g in slot.gpus), index) != (p.node, p.gpus, p.variant)
        ]

    def _passed_over(self, p: Placement, index: int, there: Placement) -> str:
        """Why a place that would hold it was not taken."""
        if p.kept:
            return "would hold it too; what runs stays where it is"
        if index < p.variant:
            return "would hold it now, but only by itself"
        if self.inventory.nodes[there.node].away and not self.inventory.nodes[p.node].away:
            return "would hold it too, but that machine may be away"
        for q in self.placements:
            if q.model == p.model and (q.node, q.gpus) == (there.node, there.gpus):
                return "has another replica of it"
        slot = self.known.slot(there.node, there.gpus)
        left = self._left(slot, (p,))[0] - there.bytes if slot is not None else 0
        return f"would hold it too, with {left / GIB:.1f} GiB to spare"

    def _more_here(self, p: Placement) -> list[str]:
        """What would make room for more context where it is. What runs keeps what it has."""
        asked = self.inventory.models[p.model].context
        slot = self.known.slot(p.node, p.gpus) if p.node in self.known.facts else None
        if asked is None or slot is None or p.kept or p.request.context >= asked.max:
            return []
        draft = self.known.draft(p.model, p.variant, slot)
        if isinstance(draft, str):
            return []
        found = []
        for rival in self.placements:
            if (
                rival.model != p.model
                and rival.node == p.node
                and set(names_of(rival.gpus)) & set(names_of(p.gpus))
            ):
                fits = partial(self._fitting, draft, slot, without=(p, rival))
                most = largest_context(p.request.context, asked.max, fits)
                if most is not None and most.request.context > p.request.context:
                    found.append(f"without `{rival.model}` there is room for {most.request.context} tokens")
        fewer = partial(self._fitting, draft, slot, concurrency=1, without=(p,))
        if p.request.concurrency > 1:
            most = largest_context(p.request.context, asked.max, fewer)
            if most is not None and most.request.context > p.request.context:
                found.append(f"with `concurrency: 1` there is room for {most.request.context} tokens")
        return found

    def _ways(
        self, name: str, outcomes: Sequence[tuple[int, Slot, Placement | str]], p: Placement | None
    ) -> list[str]:
        """The first simple change that would take it to each other place."""
        ways: list[str] = []
        for index, slot, outcome in outcomes:
            if isinstance(outcome, Placement):
                alone = self.inventory.models[name].replicas == 1 and len(slot.gpus) < 2
                if p is not None and index == p.variant and alone:
                    gpu = f", gpu: {self._gpu(slot)}" if slot.gpus else ""
                    ways.append(self._line(name, index, slot, f"`node: {slot.node}{gpu}` puts it there"))
                continue
            draft = self.known.draft(name, index, slot)
            if isinstance(draft, str) or (name, index, slot.node, slot.key) in self.refused:
                continue
            if way := self._way(draft, slot, () if p is None else (p,)):
                ways.append(self._line(name, index, slot, way))
        return ways

    def _way(self, draft: Placement, slot: Slot, without: Sequence[Placement]) -> str:
        fitting = partial(self._fitting, draft, slot, without=without)
        context = draft.request.context
        shorter = largest_context(SMALLEST_CONTEXT, context, fitting) if context > SMALLEST_CONTEXT else None
        if shorter is not None:
            return f"with `context: {shorter.request.context}` it would fit there"
        if draft.request.concurrency > 1 and fitting(context, concurrency=1):
            return "with `concurrency: 1` it would fit there"
        for rival in sorted(self.placements, key=self._rank):
            if rival.model != draft.model and self._fitting(draft, slot, context, without=(*without, rival)):
                return f"without `{rival.model}` it would fit there"
        return ""

    def _gpu(self, slot: Slot) -> int | str:
        """How the inventory names a GPU: by its index, where that is one GPU's alone."""
        (gpu,) = slot.gpus
        same = [
            s for s in self.known.slots if s.node == slot.node and [g.index for g in s.gpus] == [gpu.index]
        ]
        return gpu.index if len(same) == 1 else gpu.uuid

    def _rank(self, p: Placement) -> tuple[int, int, str]:
        """Who would be missed least."""
        return self.inventory.models[p.model].priority, p.bytes, p.model

    def _variant(self, p: Placement) -> list[str]:
        if len(self.inventory.models[p.model].variants) < 2:
            return []
        if p.variant == 0:
            return ["first choice of variant"]
        tried = [o for i, _, o in self._outcomes(p) if i < p.variant]
        if tried and all(isinstance(o, str) and not o.startswith("needs ") for o in tried):
            return [f"variant {p.variant + 1}: the better ones can run nowhere"]
        return [f"variant {p.variant + 1}: the better ones fit nowhere beside the rest"]

    def _context(self, p: Placement, *, short: bool) -> list[str]:
        asked = self.inventory.models[p.model].context
        if asked is None or asked.min == asked.max:
            return []
        if short:
            return [f"the largest context that fits (asked: up to {asked.max})"]
        return ["the largest context asked for"]

    def _place(self, p: Placement, also: Sequence[Placement]) -> tuple[str, str]:
        """Why in this place, at length and in a few words."""
        model = self.inventory.models[p.model]
        if model.node is not None:
            return f"pinned to {model.node}" + (
                f" GPU {model.gpu}" if model.gpu is not None else ""
            ), "pinned"
        if not also:
            return "the only place that holds it", "only place that fits"
        return self._decisive(p, also)

    def _besides(self, p: Placement) -> list[str]:
        parts = []
        kept = sum(q.model == p.model and q.kept for q in self.placements)
        if kept < min(self.keepable.get(p.model, 0), self.inventory.models[p.model].replicas):
            parts.append("not where it runs now: that place is needed for what fits nowhere else")
        return [*parts, *self._replica(p)]

    def _replica(self, p: Placement) -> list[str]:
        replicas = self.inventory.models[p.model].replicas
        if replicas < 2:
            return []
        mine = [q for q in self.placements if q.model == p.model]
        number = next(i for i, q in enumerate(mine, 1) if (q.service, q.node) == (p.service, p.node))
        return [f"replica {number} of {replicas}"]

    def may_be_away(self, p: Placement) -> list[str]:
        """What to know of a model that answers only as long as a machine is there that often is not."""
        nodes = {q.node for q in self.placements if q.model == p.model}
        if not all(self.inventory.nodes[n].away for n in nodes):
            return []
        return [
            f"its only place is on {p.node}, which may be away"
            if len(nodes) == 1
            else "only on machines that may be away"
        ]

    def _decisive(self, p: Placement, also: Sequence[Placement]) -> tuple[str, str]:
        """What tells this place from the others that would hold it too, at length and in a few words."""
        places = len(also) + 1
        if p.gpus and not any(q.gpus for q in also):
            return f"the only GPU of {places} places", "only GPU that fits"
        if self.known.there(p.source, p.node) > max(self.known.there(q.source, q.node) for q in also):
            return f"of {places} places the one where its weights lie", "its weights lie here"
        others = [q for q in self.placements if q.model == p.model and q is not p]
        beside = {q.node for q in others}
        if beside and p.node not in beside and all(q.node in beside for q in also):
            return f"of {places} places one away from its other replicas", "spread over nodes"
        if all(len(q.gpus) > len(p.gpus) for q in also):
            return f"of {places} places the one with the fewest GPUs", "fewest GPUs"
        away = self.inventory.nodes[p.node].away
        if not away and all(self.inventory.nodes[q.node].away for q in also):
            return f"of {places} places the one on a machine that is always there", "always there"
        taken = {(q.node, q.gpus) for q in others}
        rivals = [
            q
            for q in also
            if len(q.gpus) <= len(p.gpus)
            and (away or not self.inventory.nodes[q.node].away)
            and (q.node, q.gpus) not in taken
        ]
        if all(self._size(p) <= self._size(q) for q in rivals):
            return f"the tightest fit of {len(rivals) + 1} places", f"tightest of {len(rivals) + 1} places"
        return f"one of {places} places that hold it", f"one of {places} places"

    def _size(self, p: Placement) -> int:
        """What was free in a place before anything was put there."""
        slot = self.known.slot(p.node, p.gpus)
        return slot.free_bytes if slot is not None else 0

    def unplaced(self, name: str, number: int) -> Unplaced:
        """Why a replica has no place, in every place that it might have had, and what would give it one."""
        model = self.inventory.models[name]
        rejected: list[str] = []
        for index, variant in enumerate(model.variants):
            for slot in self.known.matching(name, variant):
                outcome = self._least(name, index, slot)
                why = outcome if isinstance(outcome, str) else "fits there now, but only by itself"
                rejected.append(self._line(name, index, slot, why))
        survey, facts = self.known.survey, self.known.facts
        nodes = [model.node] if model.node else list(self.inventory.nodes)
        down = tuple(
            n
            for n in nodes
            if n in survey.nodes and not survey.nodes[n].reachable and not self.inventory.nodes[n].away
        )
        for n in down:
            error = survey.nodes[n].error
            rejected.append(f"{n}: not asked: {error.message}" if error else f"{n}: not asked")
        if model.node is not None and model.node not in facts and self.inventory.nodes[model.node].away:
            rejected.append(f"{model.node}: marked as away")
            down = (model.node,)  # it waits for that node, as for one that does not answer
        which = f"replica {number + 1} of {model.replicas}" if model.replicas > 1 else "nowhere to put it"
        if not rejected:
            rejected = ["no device matches" + (f" gpu: {model.gpu}" if model.gpu is not None else "")]
        return Unplaced(
            model=name,
            reason=f"{which}: {rejected[0]}" if len(rejected) == 1 else which,
            details=tuple(dict.fromkeys(rejected)),
            unreachable=down,
            suggestion=self._suggestion(name),
        )

    def _suggestion(self, name: str) -> str:
        """The first simple change that would give the model a place: less context, fewer requests at once,
        something else gone."""
        model = self.inventory.models[name]
        drafts = []
        for index, variant in enumerate(model.variants):
            for slot in self.known.matching(name, variant):
                draft = self.known.draft(name, index, slot)
                if isinstance(draft, str) or (name, index, slot.node, slot.key) in self.refused:
                    continue
                drafts.append((slot, draft))
        if not drafts:
            return ""
        shorter = [
            (most.request.context, slot)
            for slot, draft in drafts
            if draft.request.context > SMALLEST_CONTEXT
            and (
                most := largest_context(
                    SMALLEST_CONTEXT, draft.request.context, partial(self._fitting, draft, slot)
                )
            )
            is not None
        ]
        if shorter:
            context, slot = max(shorter, key=lambda s: s[0])
            return f"on {slot.node} {slot.label} with `context: {context}`"
        for slot, draft in drafts if model.concurrency > 1 else ():
            if self._fitting(draft, slot, draft.request.context, concurrency=1):
                return f"on {slot.node} {slot.label} with `concurrency: 1`"
        for rival in sorted(self.placements, key=self._rank):
            for slot, draft in drafts:
                if rival.model != name and self._fitting(
                    draft, slot, draft.request.context, without=(rival,)
                ):
                    return f"on {slot.node} {slot.label} without `{rival.model}`"
        return ""

    def _fitting(
        self,
        draft: Placement,
        slot: Slot,
        context: int,
        *,
        concurrency: int | None = None,
        without: Sequence[Placement] = (),
    ) -> Placement | None:
        p = self.known.sized(draft, context, concurrency=concurrency)
        if isinstance(p, str):
            return None
        free, ram = self._left(slot, without)
        return None if too_large(p, free, "", ram) else p

    def _left(self, slot: Slot, without: Sequence[Placement]) -> tuple[int, int]:
        """Bytes free on a slot and in its node's RAM, as if some of the placements were not there."""
        gone = [p for p in without if p.node == slot.node]
        free = min(
            self.free[slot.node, n] + sum(p.bytes for p in gone if n in names_of(p.gpus))
            for n in names_of(slot.gpus)
        )
        # What runs holds its RAM already: that was never taken from what is free.
        ram = sum(p.footprint.host_bytes for p in gone if p.gpus and not p.kept)
        return free, self.ram[slot.node] + ram

    def _least(
        self, name: str, index: int, slot: Slot, *, without: Placement | None = None
    ) -> Placement | str:
        """The model on this slot at the smallest context asked for, or why not."""
        if (why := self.refused.get((name, index, slot.node, slot.label))) is not None:
            return why
        draft = self.known.draft(name, index, slot)
        if isinstance(draft, str):
            return draft
        if why := self._taken(draft, without):
            return why
        p = self.known.sized(draft, draft.request.context)
        if isinstance(p, str):
            return p
        free, ram = self._left(slot, () if without is None else (without,))
        return too_large(p, free, slot.explained, ram) or p

    def _taken(self, draft: Placement, without: Placement | None) -> str:
        """What others of the decision leave no room for beside memory: a port that is one a node, and disk
        for what is fetched."""
        beside = [
            p
            for p in self.placements
            if p.node == draft.node
            and (without is None or (p.service, p.node) != (without.service, without.node))
        ]
        port = self.inventory.models[draft.model].port
        if port is not None and any(p.model == draft.model for p in beside):
            return f"another replica has port {port} there"
        ours = {s.text for s in self._asked(draft).reads}
        needed = sum(self.known.fetch(source, draft.node) for source in ours)
        sources = {s.text for p in beside if not p.kept for s in self._asked(p).reads} - ours
        others = sum(self.known.fetch(source, draft.node) for source in sources)
        if needed and needed + others > self.known.disk(draft.node):
            return f"disk too small: {needed / GIB:.1f} GiB to fetch beside {others / GIB:.1f} GiB for others"
        return ""

    def _asked(self, p: Placement) -> Variant:
        return self.inventory.models[p.model].variants[p.variant]

    def _line(self, name: str, index: int, slot: Slot, why: str) -> str:
        variants = self.inventory.models[name].variants
        return (
            f"{slot.node} {slot.label}"
            + (f" ({variants[index].engine})" if len(variants) > 1 else "")
            + f": {why}"
        )
