from __future__ import annotations

import copy

import pytest

from homelab.errors import InventoryError
from homelab.models.header import from_header
from tests.models.examples import FILE_BYTES, gguf, gguf_document


@pytest.mark.parametrize("name", sorted(FILE_BYTES))
def test_every_tensor_is_counted(name: str) -> None:
    shape = gguf(name)
    # All but the header and the padding between tensors.
    assert 0 <= FILE_BYTES[name] - shape.weights_bytes < 64 * 1024
    by_layer = sum(layer.bytes for layer in shape.layers)
    assert by_layer + shape.embedding_bytes + shape.output_bytes <= shape.weights_bytes


@pytest.mark.parametrize(
    ("name", "full", "sliding", "recurrent"),
    [
        ("gemma3-12b", 8, 40, 0),
        ("gemma3-4b", 5, 29, 0),
        ("gpt-oss-20b", 12, 12, 0),
        ("llama-3.1-8b", 32, 0, 0),
        ("qwen3-30b-a3b", 48, 0, 0),
        ("qwen3.6-27b", 16, 0, 48),
    ],
)
def test_kinds_of_layers(name: str, full: int, sliding: int, recurrent: int) -> None:
    layers = gguf(name).layers
    assert sum(layer.attention == "full" for layer in layers) == full
    assert sum(layer.attention == "sliding" for layer in layers) == sliding
    assert sum(layer.recurrent for layer in layers) == recurrent


def test_what_the_header_says() -> None:
    shape = gguf("qwen3-30b-a3b")
    assert (shape.architecture, shape.quantization, shape.vocab, shape.experts, shape.experts_used) == (
        "qwen3moe",
        "Q4_K_M",
        151936,
        128,
        8,
    )
    assert shape.parameters == 30_532_122_624
    assert not shape.tied_embeddings
    assert not shape.has_chat_template
    assert gguf("qwen3-4b").tied_embeddings
    assert 0.9 * shape.weights_bytes < shape.expert_bytes < shape.weights_bytes


def test_a_state_of_a_gated_delta_net() -> None:
    r = gguf("qwen3.6-27b").recurrent
    assert r is not None
    assert (r.conv_rows, r.conv_channels, r.state_elements) == (3, 10240, 786432)


def test_heads_may_differ_by_layer() -> None:
    document = copy.deepcopy(gguf_document("qwen3-4b"))
    document["metadata"]["qwen3.attention.head_count_kv"] = [8] * 35 + [4]
    assert from_header(document).layers[35].kv_heads == 4


def test_an_array_that_the_document_cannot_carry_is_read_off_the_tensors() -> None:
    document = copy.deepcopy(gguf_document("qwen3-4b"))
    document["metadata"]["qwen3.attention.head_count_kv"] = {"type": "array", "length": 4096}
    assert from_header(document).kv_bytes_per_token() == 147456


def test_a_list_of_windows_wins_over_the_pattern() -> None:
    document = copy.deepcopy(gguf_document("gemma3-4b"))
    document["metadata"]["gemma3.attention.sliding_window_pattern"] = [True] * 30 + [False] * 4
    assert sum(layer.attention == "sliding" for layer in from_header(document).layers) == 30


def test_prediction_layers_have_no_cache() -> None:
    document = copy.deepcopy(gguf_document("qwen3-4b"))
    document["metadata"]["qwen3.nextn_predict_layers"] = 1
    shape = from_header(document)
    assert shape.layers[-1].attention == "none"
    assert shape.mtp_bytes == shape.layers[-1].bytes > 0


def test_an_unknown_architecture_is_an_upper_bound_and_says_so() -> None:
    document = copy.deepcopy(gguf_document("gemma3-4b"))
    document["metadata"] = {k.replace("gemma3.", "marvin."): v for k, v in document["metadata"].items()} | {
        "general.architecture": "marvin"
    }
    shape = from_header(document)
    assert all(layer.attention == "full" for layer in shape.layers)
    assert "marvin" in shape.notes[0]


@pytest.mark.parametrize("key", ["block_count", "embedding_length"])
def test_a_missing_key_is_named(key: str) -> None:
    document = copy.deepcopy(gguf_document("qwen3-4b"))
    del document["metadata"][f"qwen3.{key}"]
    with pytest.raises(InventoryError, match=key):
        from_header(document)


def test_one_part_of_several_is_refused() -> None:
    document = copy.deepcopy(gguf_document("qwen3-4b"))
    document["metadata"] |= {"split.count": 3, "split.tensors.count": 1000}
    with pytest.raises(InventoryError, match="one of 3 parts"):
        from_header(document)


def test_a_vision_projector_is_no_model() -> None:
    document = copy.deepcopy(gguf_document("qwen3-4b"))
    document["tensors"] = [t for t in document["tensors"] if t[0] != "token_embd.weight"]
    with pytest.raises(InventoryError, match="token_embd"):
        from_header(document)
