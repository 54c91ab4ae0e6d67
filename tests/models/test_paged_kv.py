"""The pool's arithmetic against what vLLM printed on people's machines: memory available for
the cache in, tokens out.

Qwen3-8B LMCache#3430 · Llama vllm#10517 · 30B-A3B fp8 vllm#25350 · 27B TP2 club-3090#104 · 35B-A3B
club-3090#612 · gpt-oss vllm#27508 · Gemma 4 vllm-metal#505 · MiniMax-M2.7 spark-vllm-docker#396."""

from __future__ import annotations

import pytest

from homelab.models.paged_kv import Draft, Element, Paging, pool, prediction_layers
from tests.models.examples import GIB, safetensors

FP8 = Element(bytes=1)
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


def test_a_prediction_layer_has_a_cache_of_its_own() -> None:
    """0.25.1 with three drafts on two GPUs (club-3090#849): 14.68 GiB hold 841 541 tokens. And what a release
    of 0.27 with four drafts and states of 16 bits asked for and offered (qwen38-27b-rtx3090#39)."""
    shape = safetensors("qwen3.6-27b")
    split = Draft(layers=prediction_layers(shape), element=FP8, tensor_parallel=2)
    paging = Paging(element=FP8, tensor_parallel=2, states=1, speculative=3)
    found = pool(shape, 262144, paging, split)
    assert int(14.68 * GIB) // found.block_bytes / found.blocks_per_request * 262144 == pytest.approx(
        841541, abs=1
    )
    whole = Draft(layers=prediction_layers(shape), element=Element())
    paging = Paging(states=2, alignment=16, speculative=4, state_dtype_bytes=2)
    found = pool(shape, 65536, paging, whole)
    assert found.block_bytes * found.blocks_per_request / GIB == pytest.approx(4.76, abs=0.005)
    blocks = int(1.56 * GIB) // found.block_bytes
    longest, longer = (pool(shape, n, paging, whole).blocks_per_request for n in (15984, 16000))
    assert longest <= blocks < longer


def test_a_scale_beside_each_head_of_each_token_makes_pages_wider() -> None:
    """0.33 `TritonAttentionBackend.customize_spec`, `MLACommonBackend.customize_spec`: two scales of four
    bytes in both."""
    paging = Paging(element=Element(bytes=1, scale_bytes=4))
    assert pool(safetensors("qwen3-8b"), 8192, paging).block_bytes == 36 * 16 * 8 * (2 * 128 + 2 * 4)
    assert pool(safetensors("glm-4.7-flash"), 8192, paging).block_bytes == 47 * 16 * (576 + 2 * 4)


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
