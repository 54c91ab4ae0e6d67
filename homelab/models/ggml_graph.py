"""How large llama.cpp's compute buffer is: the graph of one micro-batch, at the moment when most of it is
alive.

ggml's allocator gives the same place to tensors that do not live at the same time, so the buffer is the
largest of a few moments, in rows of floats for each token. Found from what llama.cpp b11549 reserves for 35
models (`bench/fit`): exact for most with flash attention, elsewhere a few MiB too much, and never too
little in some thousand runs with up to 100 slots."""

from __future__ import annotations

import math
from dataclasses import dataclass

from homelab.models.shape import ModelShape

# Attention and feed-forward run side by side, so one more row of the hidden size is alive.
PARALLEL = frozenset({"cohere2", "command-r", "cohere2moe", "falcon", "gptneox", "phi2", "stablelm", "plamo"})
INPUT_BYTES = 96  # a token's position, number and place among the outputs, with the padding
FLOAT = 4


def pad(tokens: int) -> int:
    """llama.cpp rounds the context of a sequence up to 256."""
    return -(-tokens // 256) * 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One micro-batch of `ubatch` tokens over `cells` of cache for each of `slots` sequences, with logits
    for `outputs` of the tokens.

    `flash`: flash attention, which never writes all scores out. `windowed`: sliding layers cache their
    window only. `streams`: 1 where all slots share the cells (`--kv-unified`), else one for each."""

    cells: int
    ubatch: int
    outputs: int
    slots: int
    streams: int
    flash: bool = True
    windowed: bool = True

    def bytes(self, shape: ModelShape) -> int:
        """An upper bound of the buffer."""
        attends = [layer for layer in shape.layers if layer.attention != "none" or not shape.causal]
        window = (
            max((layer.window or 0 for layer in attends), default=0) * (self.slots // self.streams)
            if self.windowed
            else 0
        )
        near = pad(min(self.cells, window + self.ubatch)) if window else 0
        seen = (self.cells if shape.causal else self.ubatch) if attends else 0
        mask = self.ubatch * (seen + near) * (2 if self.flash else FLOAT)
        query = max((layer.heads * layer.key_dim or shape.hidden for layer in attends), default=0)
        values = max((layer.kv_heads * layer.value_dim for layer in attends), default=0)
        scores = seen * max((layer.heads for layer in attends), default=0)
        if not shape.causal:
            wide = 2 * shape.intermediate + shape.hidden
            return (
                FLOAT * self.ubatch * max(wide, 0 if self.flash else scores + 6 * shape.hidden + 3 * query)
                + mask
            )
        moments = [
            self._head(shape, self.ubatch * seen * (2 if self.flash else FLOAT)),
            FLOAT * self.ubatch * self._feed_forward(shape),
            self._states(shape),
        ]
        if not self.flash:
            row = (
                scores
                + (11 if shape.mla else 5) * shape.hidden
                + (3 if shape.hybrid else 2) * query
                + 4 * values
                + shape.lookup_width
            )
            # MLA's values are a part of its keys, and are turned around in a copy of all of them.
            copied = (
                self.cells * self.streams * (max(layer.key_dim for layer in attends) - shape.rope_dim) * 2
                if shape.mla
                else 0
            )
            # The scores leave holes into which a row of the hidden size, or the queries where those are
            # wider, does not fit.
            spare = max(shape.hidden, query) * (2 if near else 1)
            moments = [max(moments) + FLOAT * self.ubatch * spare, FLOAT * self.ubatch * row + copied]
        elif shape.mla:
            moments.append(FLOAT * self.ubatch * (2 * query + 7 * shape.hidden))
        return max(moments) + mask + self.ubatch * INPUT_BYTES

    def _head(self, shape: ModelShape, mask: int) -> int:
        """The logits, and five or six rows of the hidden size: that depends on the holes which earlier
        tensors left. The mask of the last attention is not needed any more: where the logits fit into its
        place, they take it."""
        rest = FLOAT * self.ubatch * (6 * shape.hidden + shape.lookup_width)
        logits = FLOAT * self.outputs * shape.vocab
        return rest + (0 if logits + rest <= mask else logits)

    def _feed_forward(self, shape: ModelShape) -> int:
        """Floats for each token: gate, up and their product beside the residual; of experts, what each
        gives before they are added up."""
        beside = 6 if (shape.hybrid and not _delta(shape)) or shape.architecture in PARALLEL else 5
        routed = shape.expert_intermediate
        experts = 2 * shape.experts_used * shape.hidden + routed + 3 * shape.hidden if routed else 0
        return max(3 * shape.intermediate + beside * shape.hidden + 2 * shape.lookup_width, experts)

    def _states(self, shape: ModelShape) -> int:
        """Recurrent layers: every slot's state before and after, its convolution's window, and the mixer's
        own rows."""
        r = shape.recurrent
        if r is None:
            return 0
        inner = min(r.conv_channels, math.isqrt(r.state_elements * r.heads))
        mixer = 2 * r.conv_channels + (
            inner + 5 * shape.hidden if _delta(shape) else 2 * inner + 8 * shape.hidden
        )
        return FLOAT * (
            2 * self.slots * (r.state_elements + r.conv_rows * r.conv_channels) + self.ubatch * mixer
        )


def _delta(shape: ModelShape) -> bool:
    """Gated delta nets, as opposed to Mamba and its kin."""
    return shape.architecture.startswith("qwen3")
