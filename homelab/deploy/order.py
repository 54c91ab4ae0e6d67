"""In which order a plan is carried out, and what is undone when a part of it fails. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from homelab.plan import ALIVE, Change, Place, devices_of
from homelab.service import Role


def waves(changes: Sequence[Change]) -> list[list[Change]]:
    """Changes in the order of their roles: each when all that it comes `after` is done, removals first. What
    leaves for another place is in none of them."""
    after = {c.wanted.role: c.wanted.unit.after for c in changes if c.wanted is not None}

    def depth(role: Role) -> int:
        return 1 + max((depth(r) for r in after.get(role, ()) if r in after), default=-1)

    def gone(change: Change) -> int:
        """A front that goes leaves its port to the gateway, and keeps it as long as that one is not ready."""
        is_front = any(s.role == "front" for s in change.actual)
        return depth("gateway") if is_front and "gateway" in after else 0

    groups: dict[int, list[Change]] = {}
    for change in changes:
        if change.leaves_for is None:
            groups.setdefault(depth(change.wanted.role) if change.wanted else gone(change), []).append(change)
    return [groups[number] for number in sorted(groups)]


def turns(wave: Sequence[Change]) -> list[list[Change]]:
    """A wave in turns, so that the replicas of a model are replaced one after the other."""
    seen: dict[str, int] = {}
    out: list[list[Change]] = []
    for change in wave:
        number = 0
        if change.action == "replace" and any(s.state in ALIVE for s in change.actual):
            for model in (
                change.wanted.unit.serves if change.wanted and change.wanted.role == "engine" else ()
            ):
                number = max(number, seen.get(model, 0))
                seen[model] = number + 1
        out += [[] for _ in range(number + 1 - len(out))]
        out[number].append(change)
    return out


def lanes(changes: Sequence[Change]) -> list[list[Change]]:
    """Changes that share a device, together: they start strictly one after the other, and make room for
    each other first."""
    groups: list[tuple[set[str], list[Change]]] = []
    for change in changes:
        together = [lane for lane in groups if lane[0] & devices_of(change)]
        merged = devices_of(change).union(*(lane[0] for lane in together))
        members = [c for lane in together for c in lane[1]] + [change]
        groups = [lane for lane in groups if lane not in together] + [(merged, members)]
    return [lane[1] for lane in groups]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What becomes of what leaves: `drop` it, `resume` it where it was stopped, and before that `undo` what
    has come in its place."""

    drop: tuple[Change, ...] = ()
    resume: tuple[Change, ...] = ()
    undo: tuple[Change, ...] = ()


def settle(
    changes: Sequence[Change], done: Collection[Place], stopped: Mapping[Place, object], *, gateway: bool
) -> Settlement:
    """Nothing is lost when a move fails: what should have left goes on where it was. `done` are the places
    where a change succeeded, `gateway` is whether the gateway knows the new ones."""
    leaving = [c for c in changes if c.leaves_for is not None]
    arrived = {p for p in done if gateway}
    undo: list[Change] = []
    while True:
        stay = [c for c in leaving if c.leaves_for not in arrived and c.place in stopped]
        come = [
            c
            for c in changes
            if c.action in ("create", "move") and c.place in done and c not in undo
            if any(c.node == s.node and devices_of(c) & devices_of(s) for s in stay)
        ]
        if not come:
            break
        undo += come
        arrived -= {c.place for c in come}
    return Settlement(
        drop=tuple(c for c in leaving if c.leaves_for in arrived),
        resume=tuple(c for c in leaving if c.leaves_for not in arrived and c.place in stopped),
        undo=tuple(undo),
    )
