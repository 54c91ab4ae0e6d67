"""The pool's arithmetic against what vLLM printed on people's machines: memory available for
the cache in, tokens out.

Qwen3-8B LMCache#3430 · Llama vllm#10517 · 30B-A3B fp8 vllm#25350 · 27B TP2 club-3090#104 · 35B-A3B
club-3090#612 · gpt-oss vllm#27508 · Gemma 4 vllm-metal#505 · MiniMax-M2.7 spark-vllm-docker#396."""

from __future__ import annotations

from dataclasses import replace

import pytest

from homelab.models.paged_kv import Draft, Element, Paging, pool, prediction_layers
from homelab.models.shape import Layer
from tests.models.examples import GIB, safetensors

FP8 = Element(bytes=1)
INT8 = Element(bytes=1, scale_bytes=4)
# Releases before 0.33 kept two states for prefix caching and rounded hybrid blocks to 16.
BEFORE = {"states": 2, "alignment": 16}


@pytest.mark.parametrize(
    ("model", "context", "available_gib", "paging", "logged_tokens", "error"),
    [
        ("qwen3-8b", 16384, 6.37, Paging(), 46368, 0.0005),
        ("llama-3.1-8b", 20000, 3.81, Paging(), 1952 * 16, 0.0015),
        ("qwen3-30b-a3b", 100000, 10.55, Paging(element=FP8), 230528, 0.0005),
        ("qwen3.6-27b", 262144, 9.84, Paging(element=FP8, tensor_parallel=2, **BEFORE), 619202, 0.0001),  # type: ignore[arg-type]
        ("qwen3.6-35b-a3b", 131072, 5.98, Paging(element=FP8, in_flight=2 * 8192, **BEFORE), 567978, 0.0001),  # type: ignore[arg-type]
        ("qwen3.6-35b-a3b", 262144, 16.58, Paging(element=FP8, tensor_parallel=2, **BEFORE), 3292687, 0.0001),  # type: ignore[arg-type]
        ("qwen3.5-4b", 1024, 11.11, Paging(states=1, alignment=16), 141107, 0.0001),
        ("gemma-4-31b", 32768, 28.41, Paging(in_flight=8192), 97541, 0.0001),
        ("gemma-4-12b", 131072, 8.16, Paging(tensor_parallel=2, in_flight=4096), 384019, 0.001),
    ],
)
def test_tokens_are_those_that_vllm_logged(
    model: str, context: int, available_gib: float, paging: Paging, logged_tokens: int, error: float
) -> None:
    found = pool(safetensors(model), context, paging)
    tokens = int(available_gib * GIB) // found.block_bytes / found.blocks_per_request * context
    assert tokens == pytest.approx(logged_tokens, rel=error)


@pytest.mark.parametrize(
    ("model", "context", "paging", "logged_gib"),
    [
        ("gpt-oss-120b", 131072, Paging(in_flight=1024), 4.54),
        ("gemma-4-31b", 262144, Paging(hybrid_manager=False), 220.0),
        ("minimax-m2.7", 196608, Paging(tensor_parallel=2), 23.25),
    ],
)
def test_bytes_of_one_request_are_those_that_vllm_asked_for(
    model: str, context: int, paging: Paging, logged_gib: float
) -> None:
    found = pool(safetensors(model), context, paging)
    assert found.block_bytes * found.blocks_per_request / GIB == pytest.approx(logged_gib, abs=0.005)


def test_a_hybrid_block_is_the_one_that_vllm_chose() -> None:
    """`Setting attention block size to 1568 tokens` (club-3090#1047): a state of 3 207 168
    bytes at 2 048 bytes a token."""
    assert pool(safetensors("qwen3.6-27b"), 65536, Paging(element=FP8, alignment=16)).block_tokens == 1568


def test_one_block_is_never_given_out() -> None:
    found = pool(safetensors("qwen3-4b"), 8192, Paging())
    assert found.bytes(2) == (2 * 8192 // 16 + 1) * 16 * 147456


def test_a_window_bounds_what_a_request_holds() -> None:
    near, far = (pool(safetensors("gpt-oss-120b"), n, Paging()).blocks_per_request for n in (32768, 65536))
    assert far - near == 32768 // 16  # one full group grows, the sliding one does not


def test_a_latent_cache_is_not_split_over_gpus() -> None:
    one, two = (pool(safetensors("glm-4.7-flash"), 8192, Paging(tensor_parallel=n)).bytes(1) for n in (1, 2))
    assert one == two == (8192 // 16 + 1) * 16 * 54144


def test_an_encoder_has_no_pool() -> None:
    assert pool(safetensors("bge-reranker"), 512, Paging()).bytes(8) == 0


@pytest.mark.parametrize(
    ("available_gib", "paging", "logged_tokens"),
    [
        # club-3090#849, vLLM 0.25.1 without prefix caching, and its table of May with an int8 cache
        (14.68, Paging(element=FP8, tensor_parallel=2, states=1, alignment=16, speculative=3), 841541),
        (11.10, Paging(element=INT8, tensor_parallel=2, states=2, alignment=16, speculative=4), 605495),
    ],
)
def test_prediction_layers_have_a_cache_of_their_own(
    available_gib: float, paging: Paging, logged_tokens: int
) -> None:
    shape = safetensors("qwen3.6-27b")
    draft = Draft(layers=prediction_layers(shape), element=paging.element, tensor_parallel=2)
    found = pool(shape, 262144, paging, draft)
    tokens = int(available_gib * GIB) // found.block_bytes / found.blocks_per_request * 262144
    assert tokens == pytest.approx(logged_tokens, abs=1)
    without = pool(shape, 262144, paging)
    assert found.bytes(1) > without.bytes(1)


def test_a_refusal_of_prediction_layers_comes_out_in_both_figures() -> None:
    """syv-ai/qwen38-27b-rtx3090#39: 4.76 GiB for 65 536 tokens, 15 984 tokens in 1.56 GiB; 16-bit states."""
    shape = safetensors("qwen3.6-27b")
    paging = Paging(states=2, alignment=16, speculative=4, state_dtype_bytes=2)
    found = pool(shape, 65536, paging, Draft(layers=prediction_layers(shape), element=Element()))
    assert found.block_bytes * found.blocks_per_request / GIB == pytest.approx(4.76, abs=0.005)
    fixed = found.blocks_per_request - -(-65536 // found.block_tokens)
    assert (int(1.56 * GIB) // found.block_bytes - fixed) * found.block_tokens == 15984


def test_a_drafter_is_cached_at_its_own_type_and_split() -> None:
    shape = safetensors("qwen3-8b")
    layer = Layer(attention="full", heads=32, kv_heads=8, key_dim=128, value_dim=128)
    none = pool(shape, 8192, Paging(element=FP8, tensor_parallel=2))
    whole = pool(
        shape, 8192, Paging(element=FP8, tensor_parallel=2), Draft(layers=(layer,), element=Element())
    )
    split = pool(
        shape,
        8192,
        Paging(element=FP8, tensor_parallel=2),
        Draft(layers=(layer,), element=Element(), tensor_parallel=2),
    )
    assert whole.block_bytes - none.block_bytes == 16 * 8 * 256 * 2
    assert split.block_bytes - none.block_bytes == 16 * 4 * 256 * 2


def test_a_page_that_does_not_divide_the_largest_is_padded() -> None:
    """A scale for each head makes Gemma 4's pages 33 024 and 66 560 bytes: the smaller is padded, not
    doubled, and holds half as many tokens for its size (vLLM 0.33: unify_kv_cache_spec_page_size)."""
    shape = safetensors("gemma-4-31b")
    paging = Paging(element=INT8, tensor_parallel=2, in_flight=4096)
    padded, even = pool(shape, 262144, paging), pool(shape, 262144, replace(paging, element=FP8))
    assert padded.block_bytes == 10 * 66560
    assert padded.bytes(1) > 1.8 * even.bytes(1)


def test_only_layers_that_attend_predict() -> None:
    shape = safetensors("qwen3.6-27b")
    assert [(layer.attention, layer.recurrent) for layer in prediction_layers(shape)] == [("full", False)]
    assert prediction_layers(safetensors("qwen3-8b")) == ()
