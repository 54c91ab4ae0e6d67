from __future__ import annotations

import pytest

from homelab.errors import InventoryError
from homelab.models.header import from_header
from tests.models.examples import SAFETENSORS, safetensors, safetensors_document


@pytest.mark.parametrize(
    ("model", "bytes_per_token"),
    [
        ("qwen3-4b", 147456),
        ("qwen3-30b-a3b", 98304),
        ("qwen3.6-27b", 65536),
        ("qwen3.6-35b-a3b", 20480),
        ("gpt-oss-120b", 36864),
        ("llama-3.1-8b", 131072),
        ("gemma-4-31b", 81920),
        ("glm-4.7-flash", 54144),
    ],
)
def test_every_further_token_costs(model: str, bytes_per_token: int) -> None:
    assert safetensors(model).kv_bytes_per_token() == bytes_per_token


def test_kinds_of_layers() -> None:
    assert [layer.attention for layer in safetensors("gpt-oss-120b").layers[:2]] == ["sliding", "full"]
    hybrid = safetensors("qwen3.6-27b")
    assert (
        sum(layer.recurrent for layer in hybrid.layers),
        sum(layer.attention == "full" for layer in hybrid.layers),
    ) == (48, 16)
    assert hybrid.hybrid
    assert not hybrid.mla
    assert safetensors("glm-4.7-flash").mla


def test_a_pattern_stands_for_a_list_of_layers() -> None:
    config = {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 12,
        "hidden_size": 640,
    }
    config |= {
        "num_attention_heads": 4,
        "vocab_size": 262144,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
    }
    shape = from_header({"format": "safetensors", "config": config, "tensor_bytes": 1})
    assert [i for i, layer in enumerate(shape.layers) if layer.attention == "full"] == [5, 11]


def test_a_window_that_is_off_is_none() -> None:
    config = SAFETENSORS["qwen3-4b"] | {"sliding_window": 4096, "use_sliding_window": False}
    assert not any(
        layer.window
        for layer in from_header({"format": "safetensors", "config": config, "tensor_bytes": 1}).layers
    )


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({"rope_type": "linear", "factor": 2.0}, 81920),
        ({"rope_type": "yarn", "factor": 4.0}, 40960),
        ({"type": "dynamic", "factor": 2.0}, 81920),
        (None, 40960),
    ],
)
def test_the_longest_context_is_what_vllm_derives(rope: object, longest: int) -> None:
    config = SAFETENSORS["qwen3-4b"] | {"rope_scaling": rope}
    assert from_header({"format": "safetensors", "config": config, "tensor_bytes": 1}).max_context == longest


@pytest.mark.parametrize(("model", "kind"), [("bge-reranker", "rerank"), ("qwen3-4b", "chat")])
def test_what_a_model_is_for(model: str, kind: str) -> None:
    assert safetensors(model).kind == kind


def test_parts_of_the_weights_are_told_apart() -> None:
    groups = {
        "model.embed_tokens.weight": [1, 100, "BF16"],
        "lm_head.weight": [1, 100, "BF16"],
        "model.layers.*.self_attn.k_proj.weight": [48, 10, "BF16"],
        "model.layers.*.self_attn.k_proj.weight F8_E4M3": [48, 5, "F8_E4M3"],
        "model.layers.*.input_layernorm.weight": [48, 3, "BF16"],
        "model.layers.*.mlp.gate.weight": [48, 7, "BF16"],
        "model.visual.blocks.*.attn.qkv.weight": [24, 40, "BF16"],
        "mtp.layers.*.mlp.up_proj.weight": [1, 20, "BF16"],
    }
    shape = safetensors("qwen3.6-27b", groups=groups)
    assert (shape.embedding_bytes, shape.output_bytes, shape.vision_bytes, shape.mtp_bytes) == (
        100,
        100,
        40,
        20,
    )
    assert (shape.replicated_bytes, shape.kv_projection_bytes) == (10, 15)


def test_the_quantisation_is_named() -> None:
    config = SAFETENSORS["qwen3-4b"] | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    assert from_header({"format": "safetensors", "config": config, "tensor_bytes": 1}).quantization == "awq"


def test_an_unknown_architecture_is_an_upper_bound_and_says_so() -> None:
    config = SAFETENSORS["qwen3-4b"] | {"model_type": "marvin", "architectures": ["MarvinForCausalLM"]}
    shape = from_header({"format": "safetensors", "config": config, "tensor_bytes": 1})
    assert all(layer.attention == "full" for layer in shape.layers)
    assert "marvin" in shape.notes[0]


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"])
def test_a_missing_key_is_named(key: str) -> None:
    config = {k: v for k, v in SAFETENSORS["qwen3-4b"].items() if k != key}
    with pytest.raises(InventoryError, match=key):
        from_header({"format": "safetensors", "config": config, "tensor_bytes": 1})


def test_a_document_without_sizes_is_refused() -> None:
    document = safetensors_document("qwen3-4b")
    del document["tensor_bytes"]
    with pytest.raises(InventoryError, match="tensor_bytes"):
        from_header(document)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InventoryError, match="onnx"):
        from_header({"format": "onnx"})


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "fp8"),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": None}, "auto"),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "modelopt", "quantization": {"kv_cache_quant_algo": "NVFP4"}}, "nvfp4"),
        (
            {
                "quant_method": "modelopt",
                "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False},
            },
            "fp8",
        ),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "INT8"}, "auto"),
        ({"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "auto"),
        (None, "auto"),
    ],
)
def test_the_cache_that_a_checkpoint_asks_for(quantization: object, dtype: str) -> None:
    config = SAFETENSORS["qwen3-8b"] | ({"quantization_config": quantization} if quantization else {})
    assert safetensors("qwen3-8b", config=config).kv_cache_dtype == dtype


def test_prediction_layers_beyond_the_last_are_found() -> None:
    """GLM and DeepSeek number them on: of 47 layers and one, a 48th of the attention, a 47th of the experts,
    and all that only a prediction layer has."""
    groups = {
        "model.layers.*.self_attn.q_a_proj.weight": [48, 48_000, "BF16"],
        "model.layers.*.mlp.experts.*.up_proj.weight": [47 * 64, 47_000_000, "BF16"],
        "model.layers.*.mlp.up_proj.weight": [1, 500_000, "BF16"],
        "model.layers.*.eh_proj.weight": [1, 7_000, "BF16"],
        "model.layers.*.shared_head.head.weight": [1, 90_000, "BF16"],
        "model.embed_tokens.weight": [1, 300_000, "BF16"],
    }
    more = {"num_nextn_predict_layers": 1, "first_k_dense_replace": 1}
    config = SAFETENSORS["glm-4.7-flash"] | more
    shape = safetensors("glm-4.7-flash", config=config, groups=groups)
    assert (shape.mtp_layers, shape.mtp_bytes) == (1, 1_000 + 1_000_000 + 7_000 + 90_000)
    del groups["model.layers.*.eh_proj.weight"]  # a repository may leave the layer out
    assert safetensors("glm-4.7-flash", config=config, groups=groups).mtp_bytes == 0


def test_a_silent_config_has_prediction_layers_where_the_files_have() -> None:
    text = {
        k: v for k, v in SAFETENSORS["qwen3.6-27b"]["text_config"].items() if k != "mtp_num_hidden_layers"
    }
    config = SAFETENSORS["qwen3.6-27b"] | {"text_config": text}
    files = {"mtp.layers.*.mlp.up_proj.weight": [1, 5, "BF16"]}
    assert safetensors("qwen3.6-27b", config=config, groups=files).mtp_layers == 1
    assert safetensors("qwen3.6-27b", config=config).mtp_layers == 0


def test_nemotron_keeps_its_states_in_float32_where_it_says_nothing() -> None:
    config = {
        "model_type": "nemotron_h",
        "architectures": ["NemotronHForCausalLM"],
        "vocab_size": 131072,
        "hidden_size": 4480,
        "num_hidden_layers": 4,
        "hybrid_override_pattern": "M-M*",
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "mamba_num_heads": 128,
        "mamba_head_dim": 80,
        "ssm_state_size": 128,
        "n_groups": 8,
        "intermediate_size": 15680,
    }
    found = from_header({"config": config, "tensor_bytes": 1, "format": "safetensors"}).recurrent
    told = from_header(
        {"config": config | {"mamba_ssm_cache_dtype": "float16"}, "tensor_bytes": 1, "format": "safetensors"}
    ).recurrent
    assert found is not None
    assert told is not None
    assert (found.state_dtype_bytes, found.scan, told.state_dtype_bytes) == (4, "mamba2", 2)
