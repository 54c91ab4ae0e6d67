"""Where a problem is parted in two when it is too large to look at as a whole. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from homelab.placement.node import Node
from homelab.placement.packing import OutOfSteps
from homelab.placement.stage import Stage

# What decides more is decided first.
WEIGHT = {"rank": 4, "node": 2, "device": 1}


def branches(stage: Stage, nodes: Sequence[Node]) -> list[list[int]]:
    """Options left with one model in some place (or variant), and with it anywhere else: where the nodes disagree most, the likelier first."""
    options, values = stage.problem.options, stage.values
    masses: dict[tuple[int, str, int], float] = {}
    many: dict[tuple[int, str, int], int] = {}
    mine: dict[int, list[int]] = {}
    for node in nodes:
        for i, mass in node.tally.items():
            o = options[i]
            mine.setdefault(o.model, []).append(i)
            for key in (
                (o.model, "node", o.node),
                (o.model, "rank", o.rank),
                (o.model, "device", o.loads[0][0] if o.loads else -1),
            ):
                masses[key] = masses.get(key, 0.0) + mass
                many[key] = many.get(key, 0) + 1
    stakes = {
        m: 1 + max(values[i] for i in found) - min(values[i] for i in found) for m, found in mine.items()
    }
    undecided = [k for k in masses if stage.counts.limits[k[0]] == 1 and many[k] < len(mine[k[0]])]
    if not undecided:
        raise OutOfSteps
    model, kind, value = key = max(
        undecided, key=lambda k: (max(0.001, min(masses[k], 1 - masses[k])) * stakes[k[0]] * WEIGHT[k[1]], k)
    )

    def there(i: int) -> bool:
        o = options[i]
        return value == (
            o.node if kind == "node" else o.rank if kind == "rank" else o.loads[0][0] if o.loads else -1
        )

    parts = [
        [i for i in stage.indices if options[i].model != model or there(i) == here] for here in (True, False)
    ]
    return parts if masses[key] >= 0.5 else parts[::-1]
