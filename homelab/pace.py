"""How long somebody may wait for a model where it is placed, for whoever hands requests on to it. Pure.

Worked out once, when a model is placed, and kept in its labels: an estimate that is better tomorrow must not
make another gateway of this one."""

from __future__ import annotations

from dataclasses import replace

from homelab.cards import Cards
from homelab.models.shape import ModelShape
from homelab.placement.layout import Layout, Placement
from homelab.speed import RAM_GB_PER_S, Speed, bytes_of_a_token, predict

# Of what was predicted: runs lie within 40 % of it, and others are answered meanwhile.
MARGIN = 2.0
# Where nothing was predicted: tokens of a prompt that are read, at least, in the time of one that is said.
# The fewest of 230 published runs are 2.6 on a GPU and 1.3 on a CPU (bench/fit/data/speed.jsonl).
AT_LEAST_ON_GPU = 2.0


def paced(layout: Layout, cards: Cards) -> Layout:
    """The layout, in which every new placement of a known model has its `prompt_seconds` and, where that is
    known, its `tokens_per_s`. What runs already keeps what its labels say, or says nothing."""
    explains = layout.explains
    if explains is None:
        return layout
    found = []
    for p in layout:
        shape = None if p.kept or p.request.kind != "chat" else explains.shape(p)
        found.append(p if shape is None else _paced(p, shape, cards))
    return replace(layout, placements=tuple(found))


def _paced(p: Placement, shape: ModelShape, cards: Cards) -> Placement:
    device = cards.known(p.device)
    speed = predict(shape, p.request, p.footprint, device, engine=p.engine)
    # By bytes: of a mixture whose experts nobody knows all of them, of a card that nobody knows RAM's
    # bandwidth, which few are below.
    read = shape.weights_bytes if shape.experts and not shape.experts_used else bytes_of_a_token(shape)
    bound = (device.gb_per_s or RAM_GB_PER_S) * 1e9 / max(1.0, read)
    rate = speed.decode_tokens_per_s if speed is not None else None if p.gpus else bound
    return replace(
        p,
        prompt_seconds=_rounded(_prompts(p, speed, rate or bound)),
        tokens_per_s=_rounded(rate) if rate is not None else None,
    )


def _prompts(p: Placement, speed: Speed | None, tokens_per_s: float) -> float:
    """Seconds until the last of so many prompts as it takes at once is read, each as long as its context."""
    seconds = speed.prompt_seconds(p.request.context) if speed is not None else None
    if seconds is not None:
        return seconds * MARGIN * p.request.concurrency
    at_least = AT_LEAST_ON_GPU if p.gpus else 1.0
    return p.request.context / (tokens_per_s * at_least) * p.request.concurrency


def _rounded(value: float) -> float:
    """To two digits: more of them would say more than is known."""
    return float(f"{value:.2g}")
