"""Why a model is where it is, why not elsewhere, and what keeps the rest out: every rejection with its
arithmetic. Pure.

"Free" is what the other placements leave in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from homelab.placement.candidates import Candidates, largest_context, too_large
from homelab.placement.devices import Slot, names_of
from homelab.placement.layout import Placement, Unplaced

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
        model = self.inventory.models[p.model]
        rejected: list[str] = []
        also: list[Placement] = []
        for index, variant in enumerate(model.variants[: p.variant + 1]):
            for slot in self.known.matching(p.model, variant):
                if slot.node == p.node and tuple(g.uuid for g in slot.gpus) == p.gpus and index == p.variant:
                    continue
                outcome = self._least(p.model, index, slot, without=p)
                if isinstance(outcome, str):
                    rejected.append(self._line(p.model, index, slot, outcome))
                elif index == p.variant:
                    also.append(outcome)
        parts = [self._why(p, also)]
        if model.context is not None and model.context.min != model.context.max:
            full = "the largest context asked for"
            parts.append(
                f"the largest context that fits (asked: up to {model.context.max})" if short else full
            )
        return replace(p, reason="; ".join(parts), elsewhere=tuple(dict.fromkeys(rejected)))

    def _why(self, p: Placement, also: Sequence[Placement]) -> str:
        model = self.inventory.models[p.model]
        parts = []
        if len(model.variants) > 1:
            parts.append(
                "first choice of variant"
                if p.variant == 0
                else f"variant {p.variant + 1}: the better ones fit nowhere beside the rest"
            )
        if model.node is not None:
            parts.append(f"pinned to {model.node}" + (f" GPU {model.gpu}" if model.gpu is not None else ""))
        elif not also:
            parts.append("the only place that holds it")
        else:
            parts.append(self._decisive(p, also))
        kept = sum(q.model == p.model and q.kept for q in self.placements)
        if kept < min(self.keepable.get(p.model, 0), model.replicas):
            parts.append("not where it runs now: that place is needed for what fits nowhere else")
        if model.replicas > 1:
            mine = [q for q in self.placements if q.model == p.model]
            number = next(i for i, q in enumerate(mine, 1) if (q.service, q.node) == (p.service, p.node))
            parts.append(f"replica {number} of {model.replicas}")
        return ", ".join([*parts, *self.may_be_away(p)])

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

    def _decisive(self, p: Placement, also: Sequence[Placement]) -> str:
        """What tells this place from the others that would hold it too."""
        places = len(also) + 1
        if p.gpus and not any(q.gpus for q in also):
            return f"the only GPU of {places} places"
        if self.known.there(p.source, p.node) > max(self.known.there(q.source, q.node) for q in also):
            return f"its weights lie here, of {places} places"
        others = [q for q in self.placements if q.model == p.model and q is not p]
        beside = {q.node for q in others}
        if beside and p.node not in beside and all(q.node in beside for q in also):
            return f"away from its other replicas, of {places} places"
        return f"the tightest fit of {places} places"

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
                if isinstance(draft, str) or (name, index, slot.node, slot.label) in self.refused:
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
        rivals = sorted(
            self.placements, key=lambda p: (self.inventory.models[p.model].priority, p.bytes, p.model)
        )
        for rival in rivals:
            for slot, draft in drafts:
                if rival.model != name and self._fitting(draft, slot, draft.request.context, without=rival):
                    return f"on {slot.node} {slot.label} without `{rival.model}`"
        return ""

    def _fitting(
        self,
        draft: Placement,
        slot: Slot,
        context: int,
        *,
        concurrency: int | None = None,
        without: Placement | None = None,
    ) -> Placement | None:
        p = self.known.sized(draft, context, concurrency=concurrency)
        if isinstance(p, str):
            return None
        free, ram = self._left(slot, without)
        return None if too_large(p, free, "", ram) else p

    def _left(self, slot: Slot, without: Placement | None) -> tuple[int, int]:
        """Bytes free on a slot and in its node's RAM, as if one of the placements were not there."""
        mine = without is not None and without.node == slot.node
        free = min(
            self.free[slot.node, n]
            + (without.bytes if mine and without is not None and n in names_of(without.gpus) else 0)
            for n in names_of(slot.gpus)
        )
        return free, self.ram[slot.node] + (
            without.footprint.host_bytes if mine and without is not None and without.gpus else 0
        )

    def _least(
        self, name: str, index: int, slot: Slot, *, without: Placement | None = None
    ) -> Placement | str:
        """The model on this slot at the smallest context asked for, or why not."""
        if (why := self.refused.get((name, index, slot.node, slot.label))) is not None:
            return why
        draft = self.known.draft(name, index, slot)
        if isinstance(draft, str):
            return draft
        p = self.known.sized(draft, draft.request.context)
        if isinstance(p, str):
            return p
        free, ram = self._left(slot, without)
        return too_large(p, free, slot.explained, ram) or p

    def _line(self, name: str, index: int, slot: Slot, why: str) -> str:
        variants = self.inventory.models[name].variants
        return (
            f"{slot.node} {slot.label}"
            + (f" ({variants[index].engine})" if len(variants) > 1 else "")
            + f": {why}"
        )
