"""The shape of a model from its `config.json` and the headers of its safetensors files, read as vLLM 0.33.0
reads them (`transformers_utils/model_arch_config_convertor.py`, `config/model.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from homelab.models.shape import Attention, Layer, ModelShape, Purpose, Recurrent, layer_count, need

# `model_type`s whose layers are what the generic keys say: full attention, or the layer kinds that
# `layer_types` names.
GENERIC = frozenset(
    {
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "phi3",
        "glm4",
        "glm4_moe",
        "gemma",
        "olmo2",
        "olmoe",
    }
    | {
        "gpt_oss",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gemma4",
        "gemma4_text",
        "gemma4_unified",
        "gemma4_unified_text",
        "cohere2",
        "exaone4",
        "smollm3",
        "seed_oss",
        "ministral3",
        "laguna",
        "mellum",
        "muse_glimmer",
        "muse_glimmer_text",
    }
    | {
        "qwen3_next",
        "qwen3_5",
        "qwen3_5_text",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "granitemoehybrid",
        "nemotron_h",
        "granite",
        "granitemoe",
    }
    | {
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe_lite",
        "kimi_linear",
        "minimax_m2",
        "mistral3",
        "qwen3_vl_text",
        "qwen2_5_vl_text",
        "bert",
    }
    | {
        "qwen3_vl_moe_text",
        "xlm-roberta",
        "roberta",
        "nomic_bert",
        "modernbert",
        "qwen2_5_vl",
        "qwen3_vl",
        "starcoder2",
        "falcon",
        "phi",
    }
)
ENCODERS = frozenset(
    {
        "bert",
        "roberta",
        "xlm-roberta",
        "nomic_bert",
        "modernbert",
        "new",
        "distilbert",
        "mpnet",
        "camembert",
        "gte",
    }
)
# One layer in so many attends to everything where the config gives only a pattern.
PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2, "exaone4": 4}
LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
)
VISION = (
    "visual.",
    "vision",
    "model.visual",
    "model.vision",
    "multi_modal_projector",
    "mm_projector",
    "model.multi_modal",
    "model.embed_vision",
)
# rope types whose `max_position_embeddings` already includes the factor (vLLM 0.33
# `_get_and_verify_max_len`).
SCALED = frozenset({"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "default"})
SLIDING = frozenset({"sliding_attention", "chunked_attention", "sliding", "local"})
RECURRENT = frozenset({"linear_attention", "mamba", "mamba2", "recurrent", "conv", "gated_deltanet"})


def shape(document: Mapping[str, Any]) -> ModelShape:
    """The shape of a safetensors model.

    Raises InventoryError when the config lacks a key that the shape needs; the message names it."""
    outer: Mapping[str, Any] = need(document, "config", what="The safetensors header")
    config: Mapping[str, Any] = outer.get("text_config") or outer.get("llm_config") or outer
    weights = int(need(document, "tensor_bytes", what="The safetensors header"))
    groups: Mapping[str, Any] = document.get("groups") or {}
    model_type = str(config.get("model_type") or outer.get("model_type") or "")
    architecture = str(
        (outer.get("architectures") or config.get("architectures") or [model_type or "unknown"])[0]
    )
    layers = _layers(config, model_type)
    tied = bool(
        config.get("tie_word_embeddings", outer.get("tie_word_embeddings", model_type.startswith("gemma")))
    )
    output = _sum(groups, lambda name: name.endswith("lm_head.weight"))
    encoder = _encodes(config, model_type)
    predicting = _mtp_layers(config, model_type, groups)
    vision = "vision_config" in outer
    quantization = _quantization(config, outer)
    notes = (
        []
        if model_type in GENERIC
        else [
            (
                f"model_type {model_type or '?'} is not known here: layers without a kind are "
                "counted as full attention, an upper bound"
            )
        ]
    )
    return ModelShape(
        format="safetensors",
        architecture=architecture,
        layers=layers,
        hidden=int(need(config, "hidden_size", "n_embd", "d_model", what="config.json")),
        heads=max((layer.heads for layer in layers), default=0),
        intermediate=_intermediate(config),
        vocab=int(need(config, "vocab_size", what="config.json")),
        max_context=_max_context(config, outer, encoder),
        weights_bytes=weights,
        embedding_bytes=_sum(
            groups,
            lambda name: "embed_tokens" in name or "word_embeddings" in name or name.endswith("wte.weight"),
        ),
        output_bytes=0 if tied else output,
        vision_bytes=_sum(groups, lambda name: name.startswith(VISION)) if vision else 0,
        mtp_bytes=_mtp_bytes(config, groups, predicting),
        routed_bytes=_sum(
            groups, lambda name: ".experts." in name and not name.startswith(("mtp.", "model.mtp"))
        ),
        replicated_bytes=_sum(groups, _replicated),
        kv_projection_bytes=_sum(
            groups, lambda name: "self_attn.k_proj." in name or "self_attn.v_proj." in name
        ),
        experts=int(_first(config, "num_experts", "n_routed_experts", "num_local_experts") or 0),
        experts_used=int(
            _first(config, "num_experts_per_tok", "num_experts_per_token", "experts_per_token") or 0
        ),
        rope_dim=_rope_dim(config, layers),
        recurrent=_recurrent(config, model_type) if any(layer.recurrent for layer in layers) else None,
        mtp_layers=predicting,
        tied_embeddings=tied,
        quantization=str(quantization.get("quant_method") or quantization.get("quant_algo") or "unknown")
        if quantization
        else "none",
        kv_cache_dtype=_kv_cache_dtype(quantization),
        kind=_kind(architecture, encoder),
        causal=not encoder,
        notes=tuple(notes),
    )


def _layers(config: Mapping[str, Any], model_type: str) -> tuple[Layer, ...]:
    count = layer_count(need(config, "num_hidden_layers", "n_layer", "num_layers", what="config.json"))
    heads = int(need(config, "num_attention_heads", "n_head", what="config.json"))
    hidden = int(need(config, "hidden_size", "n_embd", "d_model", what="config.json"))
    kv_heads = int(
        _first(config, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num") or heads
    )
    key = int(_first(config, "head_dim", "attention_head_dim") or hidden // heads)
    latent = config.get("kv_lora_rank")
    kinds = _kinds(config, model_type, count)
    layer_count(len(kinds))
    window = config.get("sliding_window") or config.get("attention_chunk_size")
    full_heads = int(config.get("num_global_key_value_heads") or kv_heads)
    full_key = int(config.get("global_head_dim") or key)
    shared = int(config.get("num_kv_shared_layers") or 0)
    layers = []
    for index, kind in enumerate(kinds):
        attention: Attention
        if kind == "none" or (shared and index >= count - shared):
            layers.append(Layer(attention="none", heads=heads))
        elif kind == "recurrent":
            layers.append(Layer(attention="none", heads=heads, recurrent=True))
        elif latent:
            rope = int(config.get("qk_rope_head_dim") or 0)
            layers.append(
                Layer(attention="mla", heads=heads, kv_heads=1, key_dim=int(latent) + rope, value_dim=0)
            )
        else:
            sliding = kind == "sliding" and bool(window)
            attention = "sliding" if sliding else "full"
            # DeepSeek without its latent cache, and models that widen keys only, give `v_head_dim`.
            own, dim = (kv_heads, key) if kind == "sliding" else (full_heads, full_key)
            layers.append(
                Layer(
                    attention=attention,
                    heads=heads,
                    kv_heads=own,
                    key_dim=dim,
                    value_dim=dim,
                    window=int(window or 0) or None if sliding else None,
                )
            )
    return tuple(layers)


def _kinds(config: Mapping[str, Any], model_type: str, count: int) -> list[str]:
    """`full`, `sliding`, `recurrent` or `none` for each layer."""
    if _encodes(config, model_type):
        return ["none"] * count
    if isinstance(named := _first(config, "layer_types", "layers_block_type"), list):
        return [
            "sliding"
            if k in SLIDING
            else "recurrent"
            if k in RECURRENT
            else "none"
            if k in ("moe", "mlp")
            else "full"
            for k in named
        ]
    if isinstance(pattern := config.get("hybrid_override_pattern"), str):
        return [{"M": "recurrent", "*": "full"}.get(c, "none") for c in pattern if c != "|"]
    if isinstance(linear := config.get("linear_attn_config"), Mapping):
        recurrent = set(linear.get("kda_layers") or ())
        return ["recurrent" if i + 1 in recurrent else "full" for i in range(count)]
    if model_type.startswith(("qwen3_next", "qwen3_5")):
        every = int(config.get("full_attention_interval") or 4)
        return ["full" if (i + 1) % every == 0 else "recurrent" for i in range(count)]
    if not config.get("sliding_window") or config.get("use_sliding_window") is False:
        return ["full"] * count
    every = int(
        config.get("sliding_window_pattern")
        or config.get("_sliding_window_pattern")
        or PATTERNS.get(model_type, 0)
    )
    if every:
        return ["full" if (i + 1) % every == 0 else "sliding" for i in range(count)]
    if model_type in ("mistral", "starcoder2", "phi3"):
        return ["sliding"] * count
    if (first := config.get("max_window_layers")) is not None:
        return ["full" if i < int(first) else "sliding" for i in range(count)]
    return ["full"] * count


def _encodes(config: Mapping[str, Any], model_type: str) -> bool:
    """Whether every token attends to every other, so that there is nothing to cache. EmbeddingGemma is a
    Gemma 3 of that kind (vLLM 0.33: `models/config.py`, Gemma3TextModelConfig). Gemma 4 says "vision" there,
    which is of its pictures only."""
    return model_type in ENCODERS or config.get("use_bidirectional_attention") is True


def _recurrent(config: Mapping[str, Any], model_type: str) -> Recurrent | None:
    """vLLM `model_executor/layers/mamba/mamba_utils.py`: convolution rows in the model's dtype, state in
    `mamba_ssm_dtype`."""
    said = _first(config, "mamba_ssm_dtype", "mamba_ssm_cache_dtype")
    # Nemotron-H keeps it in float32 where its config is silent (vLLM 0.33: `models/config.py`).
    wide = (
        said == "float32" or model_type.startswith("qwen3_5") or (said is None and "nemotron_h" in model_type)
    )
    state_bytes = 4 if wide else 2
    if config.get("linear_num_value_heads"):
        keys, values = int(config["linear_num_key_heads"]), int(config["linear_num_value_heads"])
        key_dim, value_dim = int(config["linear_key_head_dim"]), int(config["linear_value_head_dim"])
        return Recurrent(
            conv_rows=int(config.get("linear_conv_kernel_dim") or 4) - 1,
            conv_channels=2 * keys * key_dim + values * value_dim,
            state_elements=values * key_dim * value_dim,
            heads=values,
            state_dtype_bytes=state_bytes,
            scan="gated-delta",
        )
    if isinstance(linear := config.get("linear_attn_config"), Mapping):
        heads, dim = int(linear["num_heads"]), int(linear["head_dim"])
        rows = int(linear.get("short_conv_kernel_size") or 4) - 1
        return Recurrent(
            conv_rows=rows,
            conv_channels=3 * heads * dim,
            state_elements=heads * dim * dim,
            heads=heads,
            scan="kda",
        )
    if conv := config.get("conv_L_cache"):
        return Recurrent(
            conv_rows=int(conv) - 1, conv_channels=int(config["hidden_size"]), state_elements=0, scan="conv"
        )
    heads = int(need(config, "mamba_num_heads", "mamba_n_heads", what="config.json"))
    dim = int(need(config, "mamba_head_dim", "mamba_d_head", what="config.json"))
    state = int(need(config, "ssm_state_size", "mamba_d_state", what="config.json"))
    groups = int(_first(config, "n_groups", "mamba_n_groups") or 1)
    return Recurrent(
        conv_rows=int(_first(config, "conv_kernel", "mamba_d_conv") or 4) - 1,
        conv_channels=heads * dim + 2 * groups * state,
        state_elements=heads * dim * state,
        heads=heads,
        state_dtype_bytes=state_bytes,
        scan="mamba2",
    )


def _max_context(config: Mapping[str, Any], outer: Mapping[str, Any], encoder: bool) -> int | None:
    lengths = [int(config[key]) for key in LENGTHS if isinstance(config.get(key), int)]
    if not lengths:
        return None
    longest = min(lengths)
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    # Gemma 3's length is already scaled. `rope_parameters` may be one mapping or one for each kind of layer.
    if isinstance(rope, Mapping) and "gemma3" not in str(outer.get("model_type") or config.get("model_type")):
        factor = 1.0
        for part in rope.values() if all(isinstance(v, Mapping) for v in rope.values()) else [rope]:
            if str(part.get("rope_type") or part.get("type") or "default") not in SCALED:
                factor = float(part.get("factor") or factor)
        longest = int(longest * factor)
    # RoBERTa counts positions from padding_idx + 1, so two of them cannot be used.
    return (
        longest - 2
        if encoder and str(config.get("model_type")) in ("roberta", "xlm-roberta", "camembert")
        else longest
    )


def _intermediate(config: Mapping[str, Any]) -> int:
    """The widest activation of a token: the dense layer, or all experts that one token visits together with
    the shared one."""
    hidden = int(_first(config, "hidden_size", "n_embd", "d_model") or 0)
    dense = int(_first(config, "intermediate_size", "ffn_hidden_size", "n_inner") or 4 * hidden)
    expert = int(_first(config, "moe_intermediate_size") or 0)
    used = int(_first(config, "num_experts_per_tok", "num_experts_per_token", "experts_per_token") or 0)
    if not expert and used and _first(config, "num_local_experts", "num_experts"):
        return dense * used
    shared = int(_first(config, "shared_expert_intermediate_size") or 0)
    return max(dense, expert * used + shared)


def _rope_dim(config: Mapping[str, Any], layers: tuple[Layer, ...]) -> int:
    if rope := config.get("qk_rope_head_dim"):
        return int(rope)
    parameters = config.get("rope_parameters")
    partial = config.get("partial_rotary_factor") or (
        parameters.get("partial_rotary_factor") if isinstance(parameters, Mapping) else None
    )
    return int(max((layer.key_dim for layer in layers), default=0) * float(partial or 1))


def _replicated(name: str) -> bool:
    """Tensors that every tensor-parallel rank holds whole: norms, expert routers, MLA's down-projections."""
    return (
        "norm" in name
        or name.endswith(("mlp.gate.weight", "router.weight"))
        or "q_a_proj" in name
        or "kv_a_proj" in name
    )


def _quantization(config: Mapping[str, Any], outer: Mapping[str, Any]) -> Mapping[str, Any]:
    quantization = (
        config.get("quantization_config")
        or outer.get("quantization_config")
        or config.get("compression_config")
    )
    return quantization if isinstance(quantization, Mapping) else {}


def _kv_cache_dtype(quantization: Mapping[str, Any]) -> str:
    """The cache that a checkpoint asks for where nobody sets one (vLLM 0.33: `utils/torch_utils.py`
    get_kv_cache_quant_algo_string for ModelOpt, `layers/attention/attention.py` for compressed-tensors)."""
    method = str(quantization.get("quant_method") or "")
    if method == "compressed-tensors":
        return "fp8" if quantization.get("kv_cache_scheme") else "auto"
    if not method.startswith("modelopt"):
        return "auto"
    inner = quantization.get("quantization")
    places = [inner, quantization] if isinstance(inner, Mapping) else [quantization]
    named = [place.get(key) for key in ("kv_cache_scheme", "kv_cache_quant_algo") for place in places]
    asked = next((value for value in named if value), None)
    if isinstance(asked, Mapping):
        bits, kind = asked.get("num_bits"), asked.get("type")
        if kind == "float" and bits == 8 and asked.get("dynamic") is False:
            return "fp8"
        return "nvfp4" if kind == "float" and bits == 4 else "auto"
    return {"fp8": "fp8", "nvfp4": "nvfp4"}.get(str(asked).lower(), "auto")


def _mtp_layers(config: Mapping[str, Any], model_type: str, groups: Mapping[str, Any]) -> int:
    """Layers that predict tokens ahead. vLLM takes one for Qwen3-Next and Qwen3.5 where the config is silent
    (0.33: `qwen3_next_mtp.py`, `qwen3_5_mtp.py`), here where the files have it."""
    said = _first(config, "mtp_num_hidden_layers", "num_nextn_predict_layers")
    if said is None and model_type.startswith(("qwen3_next", "qwen3_5")):
        return int(any(name.startswith(("mtp.", "model.mtp")) for name in groups))
    return int(said or 0)


def _mtp_bytes(config: Mapping[str, Any], groups: Mapping[str, Any], predicting: int) -> int:
    """Bytes of the prediction layers: `mtp.` by name, or layers beyond the last (DeepSeek, GLM), of which
    groups hold no number: their joining projection tells that they are there, and each group's share is one
    layer in so many. vLLM does not load them without speculation (`get_spec_layer_idx_from_weight_name`)."""
    named = _sum(groups, lambda name: name.startswith(("mtp.", "model.mtp")))
    joined = [name for name in groups if ".layers." in name and ".eh_proj." in name]
    if named or not predicting or not joined:
        return named
    count = layer_count(need(config, "num_hidden_layers", what="config.json"))
    dense = int(config.get("first_k_dense_replace") or 0)
    shared = (".eh_proj.", ".enorm.", ".hnorm.", ".shared_head.", ".embed_tokens.")
    total = 0
    for name, group in groups.items():
        if ".layers." not in name:
            continue
        if any(part in name for part in shared):
            total += int(group[1])
        elif ".experts." in name or ".shared_expert" in name or ".mlp.gate." in name:
            total += int(group[1]) * predicting // (count - dense + predicting)
        elif ".mlp." not in name:
            total += int(group[1]) * predicting // (count + predicting)
    return total


def _kind(architecture: str, encoder: bool) -> Purpose:
    if architecture.endswith("ForSequenceClassification"):
        return "rerank"
    if (
        encoder
        or architecture.endswith(("EmbeddingModel", "ForMaskedLM"))
        or (architecture.endswith("Model") and "Causal" not in architecture)
    ):
        return "embedding"
    return "chat"


def _sum(groups: Mapping[str, Any], chosen: Callable[[str], bool]) -> int:
    """Bytes of the groups chosen by name. A group of another dtype than its namesake's is called `name
    DTYPE`."""
    return sum(int(group[1]) for name, group in groups.items() if chosen(name.partition(" ")[0]))


def _first(config: Mapping[str, Any], *keys: str) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)
