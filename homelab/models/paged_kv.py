"""How an engine that pages its KV cache spends memory on a request: layers in groups of equal size, one
block table for each group, one pool for all. vLLM 0.33.0, `v1/core/kv_cache_planning.py` and
`v1/kv_cache_interface.py`; the formulas are derived anew. Older releases differ in what `Paging` holds:

* batches in flight were counted once before 0.26, by `max_num_batched_tokens` alone (0.22 to 0.25.1:
  `SlidingWindowSpec.max_admission_blocks_per_request`), since then twice (0.27.1: `max_in_flight_tokens`);
* states: 1 without prefix caching, which was the default for hybrids until 0.25.1 (`config/model.py`
  `is_prefix_caching_supported`), 2 with it until 0.27.1 (`MambaSpec.max_memory_usage_bytes`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from homelab.models.shape import Layer, ModelShape

BLOCK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """How one number of the cache is stored: bytes of it, and bytes of the scale of each head of each token
    (0: none)."""

    bytes: float = 2
    scale_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """What the arithmetic depends on beside the model: `in_flight` tokens are scheduled and not yet
    settled, `states` recurrent states are held for one request and `speculative` more, one for each drafted
    token, `alignment` is what a hybrid model's block is rounded up to, in tokens. `state_dtype_bytes` and
    `conv_dtype_bytes` of a state's elements where they are not what the model says."""

    element: Element = Element()
    dtype_bytes: int = 2
    tensor_parallel: int = 1
    in_flight: int = 4096
    states: int = 3
    speculative: int = 0
    alignment: int = 64
    block: int = BLOCK
    hybrid_manager: bool = True
    state_dtype_bytes: int | None = None
    conv_dtype_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What speculation caches beside the model: layers of its own, which take pages of the same pool, how
    their numbers are stored, and over how many GPUs they are split."""

    layers: tuple[Layer, ...]
    element: Element
    tensor_parallel: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """`block_bytes` of one block id in all layers of a group, and how many block ids a request of full
    length takes."""

    block_bytes: int
    blocks_per_request: int
    block_tokens: int

    def bytes(self, requests: int) -> int:
        """Bytes for so many requests of full length. One block is never given out: block 0 is the null
        block."""
        return self.block_bytes * (self.blocks_per_request * requests + 1) if self.block_bytes else 0


@dataclass(frozen=True, slots=True, order=True)
class _Page:
    """A layer's kind, as vLLM tells them apart; layers of equal pages form a bucket."""

    kind: str
    tokens: int
    bytes: int
    window: int = 0


def pool(shape: ModelShape, context: int, paging: Paging, draft: Draft | None = None) -> Pool:
    """The pool that serves requests of `context` tokens, for each rank."""
    pages = _pages(shape, paging, draft)
    if not pages:
        return Pool(block_bytes=0, blocks_per_request=0, block_tokens=paging.block)
    kinds = {(p.kind, p.window) for p in pages}
    if len(kinds) == 1:  # one group that holds every layer, even where their sizes differ
        page = pages[0]
        size = sum(p.bytes for p in pages)
        return Pool(
            block_bytes=size, blocks_per_request=_blocks(page, context, paging), block_tokens=page.tokens
        )
    pages = _unified(pages)
    buckets = Counter(pages)
    fewest, most = min(buckets.values()), max(buckets.values())
    group = most if most < fewest * 1.5 else fewest
    blocks = sum(-(-count // group) * _blocks(page, context, paging) for page, count in buckets.items())
    return Pool(
        block_bytes=group * pages[0].bytes,
        blocks_per_request=blocks,
        block_tokens=min(p.tokens for p in pages if p.kind != "state"),
    )


def prediction_layers(shape: ModelShape) -> tuple[Layer, ...]:
    """The layers that cache keys and values in a model's own prediction layers: each is built as the model's
    layers with attention are (vLLM 0.33: `qwen3_5_mtp.py`, `deepseek_mtp.py`, `nemotron_h_mtp.py`)."""
    attending = [layer for layer in shape.layers if layer.attention != "none"]
    growing = [layer for layer in attending if layer.attention != "sliding"] or attending
    return tuple(replace(growing[-1], recurrent=False) for _ in range(shape.mtp_layers if growing else 0))


def _pages(shape: ModelShape, paging: Paging, draft: Draft | None) -> list[_Page]:
    block = paging.block
    tokens = {
        index: _token_bytes(layer, paging)
        for index, layer in enumerate(shape.layers)
        if layer.attention != "none"
    }
    state = _state_bytes(shape, paging)
    if shape.hybrid and state and tokens:
        # The attention block grows until its page holds a state; states are padded to that page.
        step = 128 if shape.mla else paging.alignment
        block = max(block, step * -(-state // (step * max(tokens.values()))))
        state = max(state, block * max(tokens.values()))
    out = []
    for index, layer in enumerate(shape.layers):
        if layer.attention != "none":
            out.append(_attention_page(layer, block, tokens[index], paging))
        if layer.recurrent and state:
            out.append(_Page("state", block, state))
    if draft:
        own = replace(paging, element=draft.element, tensor_parallel=draft.tensor_parallel)
        out += [
            _attention_page(layer, block, _token_bytes(layer, own), paging)
            for layer in draft.layers
            if layer.attention != "none"
        ]
    return out


def _attention_page(layer: Layer, block: int, token_bytes: int, paging: Paging) -> _Page:
    sliding = layer.attention == "sliding" and paging.hybrid_manager
    return _Page(
        "sliding" if sliding else "full",
        block,
        block * token_bytes,
        (layer.window or 0) if sliding else 0,
    )


def _unified(pages: list[_Page]) -> list[_Page]:
    """All pages at the size of the largest: more tokens in a block where that divides, else padding."""
    largest = max(p.bytes for p in pages)
    out = []
    for p in pages:
        factor = largest // p.bytes if p.kind != "state" and largest % p.bytes == 0 else 1
        out.append(_Page(p.kind, p.tokens * factor, largest, p.window))
    return out


def _blocks(page: _Page, context: int, paging: Paging) -> int:
    """Block ids that one request of `context` tokens holds at most in a group of such layers."""
    if page.kind == "state":
        return paging.states + paging.speculative
    if page.kind == "sliding":
        return -(-min(page.window - 1 + paging.in_flight, context) // page.tokens) + 1
    return -(-context // page.tokens)


def _token_bytes(layer: Layer, paging: Paging) -> int:
    element = paging.element
    if layer.attention == "mla":  # one latent vector, whole on every rank
        return int(layer.key_dim * element.bytes) + 2 * element.scale_bytes
    heads = max(1, layer.kv_heads // paging.tensor_parallel)
    return int(heads * ((layer.key_dim + layer.value_dim) * element.bytes + 2 * element.scale_bytes))


def _state_bytes(shape: ModelShape, paging: Paging) -> int:
    """Bytes of one state of one recurrent layer: convolution rows in the model's dtype, the matrix in its
    own."""
    r = shape.recurrent
    if r is None:
        return 0
    rows = r.conv_rows + paging.speculative
    conv, state = (
        paging.conv_dtype_bytes or paging.dtype_bytes,
        paging.state_dtype_bytes or r.state_dtype_bytes,
    )
    return (rows * r.conv_channels * conv + r.state_elements * state) // paging.tensor_parallel
