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
    speed = predict(shape, p.request, p.footprint, cards.known(p.device), engine=p.engine)
    rate = speed.decode_tokens_per_s if speed is not None else None
    if rate is None and not p.gpus:
        rate = _from_ram(shape)
    return replace(
        p,
        prompt_seconds=_rounded(_prompts(p, shape, speed)),
        tokens_per_s=_rounded(rate) if rate is not None else None,
    )


def _prompts(p: Placement, shape: ModelShape, speed: Speed | None) -> float:
    """Seconds until the last of so many prompts as it takes at once is read, each as long as its context."""
    seconds = speed.prompt_seconds(p.request.context) if speed is not None else None
    if seconds is not None:
        return seconds * MARGIN * p.request.concurrency
    # A bound: a prompt's token takes no longer than one that is said, and no memory is slower than RAM.
    rate = speed.decode_tokens_per_s if speed is not None else _from_ram(shape)
    return p.request.context / rate * p.request.concurrency


def _from_ram(shape: ModelShape) -> float:
    return RAM_GB_PER_S * 1e9 / max(1.0, bytes_of_a_token(shape))


def _rounded(value: float) -> float:
    """To two digits: more of them would say more than is known."""
    return float(f"{value:.2g}")
