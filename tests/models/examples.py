"""Models to test with: GGUF headers without weights, read by the agent's own reader, and configurations of
well-known safetensors models."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from homelab import resources
from homelab.models.header import from_header
from homelab.models.shape import ModelShape

DATA = Path(__file__).parent / "data"
LINES = (DATA / "llamacpp.jsonl").read_text().splitlines()
FILE_BYTES: dict[str, int] = json.loads(LINES[0])["file_bytes"]
# model, arguments, and what llama.cpp's `llama-fit-params --fit-print on` said in MiB:
# model, context, compute
GOLDEN: list[tuple[str, str, int, int, int]] = [tuple(json.loads(line)) for line in LINES[1:]]
# Small models of other architectures: their header, and what the same tool said of llama.cpp b11549:
# [context, slots, model, context, compute]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    a["name"]: a for a in map(json.loads, (DATA / "architectures.jsonl").read_text().splitlines())
}

QWEN3 = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "head_dim": 128,
}
SAFETENSORS: dict[str, dict[str, Any]] = {
    "qwen3-4b": QWEN3
    | {
        "num_hidden_layers": 36,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    | {"tie_word_embeddings": True},
    "qwen3-8b": QWEN3
    | {
        "num_hidden_layers": 36,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen3-30b-a3b": QWEN3
    | {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": 48,
        "hidden_size": 2048,
    }
    | {"intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8}
    | {"num_attention_heads": 32, "num_key_value_heads": 4},
    "llama-3.1-8b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }
    | {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    "gpt-oss-120b": {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
    }
    | {
        "num_hidden_layers": 36,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    }
    | {"head_dim": 64, "sliding_window": 128, "num_local_experts": 128, "num_experts_per_tok": 4}
    | {"layer_types": ["sliding_attention", "full_attention"] * 18},
    "gemma-4-31b": {
        "model_type": "gemma4",
        "architectures": ["Gemma4ForConditionalGeneration"],
        "vision_config": {},
        "text_config": {
            "model_type": "gemma4_text",
            "vocab_size": 262144,
            "max_position_embeddings": 262144,
            "num_hidden_layers": 60,
        }
        | {
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 256,
        }
        | {"num_global_key_value_heads": 4, "global_head_dim": 512, "sliding_window": 1024}
        | {"layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10},
    },
    "qwen3.6-27b": {
        "model_type": "qwen3_5",
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "vision_config": {},
        "text_config": {
            "model_type": "qwen3_5_text",
            "vocab_size": 248320,
            "max_position_embeddings": 262144,
            "num_hidden_layers": 64,
        }
        | {
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "num_attention_heads": 24,
            "num_key_value_heads": 4,
            "head_dim": 256,
        }
        | {
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 48,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
        }
        | {
            "linear_conv_kernel_dim": 4,
            "full_attention_interval": 4,
            "mamba_ssm_dtype": "float32",
            "mtp_num_hidden_layers": 1,
        }
        | {"partial_rotary_factor": 0.25},
    },
    "qwen3.6-35b-a3b": {
        "model_type": "qwen3_5_moe",
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "vision_config": {},
        "text_config": {
            "model_type": "qwen3_5_moe_text",
            "vocab_size": 248320,
            "max_position_embeddings": 262144,
            "num_hidden_layers": 40,
        }
        | {
            "hidden_size": 2048,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "num_experts": 256,
        }
        | {"num_experts_per_tok": 8, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}
        | {
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
        }
        | {"linear_conv_kernel_dim": 4, "full_attention_interval": 4, "mamba_ssm_dtype": "float32"},
    },
    "glm-4.7-flash": {
        "model_type": "glm4_moe_lite",
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "vocab_size": 154880,
    }
    | {
        "max_position_embeddings": 202752,
        "num_hidden_layers": 47,
        "hidden_size": 2048,
        "intermediate_size": 10240,
    }
    | {
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "n_routed_experts": 64,
    }
    | {"num_experts_per_tok": 4, "moe_intermediate_size": 1536},
    "minimax-m2.7": {
        "model_type": "minimax_m2",
        "architectures": ["MiniMaxM2ForCausalLM"],
        "vocab_size": 200064,
        "head_dim": 128,
    }
    | {
        "max_position_embeddings": 196608,
        "num_hidden_layers": 62,
        "hidden_size": 3072,
        "intermediate_size": 1536,
    }
    | {
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
    },
    "bge-reranker": {
        "model_type": "xlm-roberta",
        "architectures": ["XLMRobertaForSequenceClassification"],
        "vocab_size": 250002,
    }
    | {
        "max_position_embeddings": 514,
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
    },
}
SAFETENSORS["qwen3.5-4b"] = SAFETENSORS["qwen3.6-27b"] | {
    "text_config": SAFETENSORS["qwen3.6-27b"]["text_config"]
    | {"num_hidden_layers": 32, "hidden_size": 2560, "intermediate_size": 9216, "num_attention_heads": 16}
    | {"linear_num_value_heads": 32, "tie_word_embeddings": True},
}
SAFETENSORS["qwen3.5-122b-a10b"] = SAFETENSORS["qwen3.6-35b-a3b"] | {
    "text_config": SAFETENSORS["qwen3.6-35b-a3b"]["text_config"]
    | {"num_hidden_layers": 48, "hidden_size": 3072, "num_attention_heads": 32, "linear_num_value_heads": 64}
    | {"moe_intermediate_size": 1024, "shared_expert_intermediate_size": 1024, "mtp_num_hidden_layers": 1},
}
SAFETENSORS["gemma-4-12b"] = SAFETENSORS["gemma-4-31b"] | {
    "text_config": SAFETENSORS["gemma-4-31b"]["text_config"]
    | {"num_hidden_layers": 48, "hidden_size": 3840, "intermediate_size": 15360, "num_attention_heads": 16}
    | {"num_key_value_heads": 8, "num_global_key_value_heads": 1}
    | {"layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 8},
}
GIB = 2**30
WEIGHTS_GIB = {
    "qwen3-4b": 7.49,
    "qwen3-8b": 15.26,
    "qwen3-30b-a3b": 56.87,
    "llama-3.1-8b": 14.96,
    "gpt-oss-120b": 60.8,
    "gemma-4-31b": 57.18,
}
WEIGHTS_GIB |= {
    "qwen3.6-27b": 50.1,
    "qwen3.6-35b-a3b": 64.56,
    "glm-4.7-flash": 55.77,
    "bge-reranker": 2.1,
    "minimax-m2.7": 120,
}
WEIGHTS_GIB |= {"qwen3.5-4b": 8.68, "qwen3.5-122b-a10b": 75, "gemma-4-12b": 22.3}


def safetensors_document(name: str, **more: Any) -> dict[str, Any]:
    return {
        "format": "safetensors",
        "config": SAFETENSORS[name],
        "tensor_bytes": int(WEIGHTS_GIB[name] * GIB),
        "dtypes": {},
        "groups": {},
    } | more


def safetensors(name: str, **more: Any) -> ModelShape:
    return from_header(safetensors_document(name, **more))


@cache
def gguf_document(name: str) -> dict[str, Any]:
    argv = [
        sys.executable,
        "-I",
        str(resources.path("agent")),
        "gguf",
        str(DATA / f"{name}.gguf"),
        "--size",
        str(FILE_BYTES[name]),
    ]
    document = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert isinstance(document, dict)
    return document


def gguf(name: str) -> ModelShape:
    return from_header(gguf_document(name))
