"""The tensors of a model from its `config.json` alone: names, dimensions, and what each quantisation makes
of their bytes.

This is for models that nobody has downloaded yet: a header, where there is one, is always the better
source. Parameter counts are checked against the published ones. Which tensor gets which type in a GGUF
follows llama.cpp's `llama_tensor_get_type` (`src/llama-quant.cpp`, b11434), names and dimensions of tensors
its `src/models/*.cpp`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

# (elements, bytes) of a block. ggml `ggml-common.h`.
GGML = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q6_K": (256, 210),
    "Q5_K": (256, 176),
    "Q5_0": (32, 22),
}
GGML |= {"Q4_K": (256, 144), "IQ4_XS": (256, 136), "MXFP4": (32, 17)}
GGML |= {"Q3_K": (256, 110), "Q4_0": (32, 18), "Q5_1": (32, 24), "IQ4_NL": (32, 18)}
# What most tensors get under the name of a file (`llama_ftype`).
MIXES = {
    "Q3_K_M": "Q3_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K",
    "IQ4_XS": "IQ4_XS",
}
# For rows that do not divide into blocks of 256 (`tensor_type_fallback`).
FALLBACKS = {"Q3_K": "Q4_0", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# Bytes for one weight of a linear layer in four bits. AWQ, GPTQ and AutoRound: a 16-bit scale and a 4-bit
# zero for each group of 128. compressed-tensors: a 16-bit scale for each 128, or, as llm-compressor makes
# AWQ, both for each 32. NVFP4: an 8-bit scale for each 16.
FOUR_BITS = {
    "awq": 0.5 + 2.5 / 128,
    "gptq": 0.5 + 2.5 / 128,
    "autoround": 0.5 + 2.5 / 128,
    "w4a16": 0.5 + 2 / 128,
    "w4a16-g32": 0.5 + 2.5 / 32,
    "nvfp4": 0.5 + 1 / 16,
}
# Tensors that stay as they were in all of these: tables, routers, and what is small or not a linear layer.
KEPT = (
    "token_embd",
    "output.",
    "ffn_gate_inp.",
    "per_layer_",
    "ssm_conv1d",
    "ssm_a",
    "ssm_b",
    "ssm_d",
    "ssm_norm",
)
NEMOTRON_BLOCKS = {"M": "mamba", "E": "moe", "-": "mlp", "*": "full_attention"}
HUB_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_q_a": "self_attn.q_a_proj",
    "ffn_gate_inp": "mlp.gate",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "per_layer_token_embd": "model.embed_tokens_per_layer",
}


# What is never quantised (`conversion/base.py` and `llama-quant.cpp` of b11434).
SINGLE = ("ffn_gate_inp", "ssm_conv1d", "position_embd", "token_types")
# Encoders whose tensors are known here: with BERT's layers, or with Nomic's (rotary, gated, without biases).
BERTS = frozenset({"bert", "xlm-roberta", "nomic_bert"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor under llama.cpp's name, its dimensions with the row first; `layer` is None outside of the
    layers."""

    name: str
    dims: tuple[int, ...]
    layer: int | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def full_name(self) -> str:
        return self.name if self.layer is None else f"blk.{self.layer}.{self.name}"


def tensors(config: Mapping[str, Any]) -> Iterator[Tensor]:
    """Every tensor of the text model of this configuration, its prediction layers left out."""
    if config["model_type"] in BERTS:
        yield from _encoder(config)
        return
    hidden, vocab, count = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    yield Tensor("token_embd.weight", (hidden, vocab))
    yield Tensor("output_norm.weight", (hidden,))
    if not config.get("tie_word_embeddings"):
        yield Tensor("output.weight", (hidden, vocab))
    kinds = layer_kinds(config)
    if config.get("global_head_dim"):
        yield Tensor("rope_freqs.weight", (config["global_head_dim"] // 2,))
    beside = int(config.get("hidden_size_per_layer_input") or 0)  # Gemma 4 E2B and E4B
    if beside:
        yield Tensor("per_layer_token_embd.weight", (beside * count, vocab))
        yield Tensor("per_layer_model_proj.weight", (hidden, beside * count))
        yield Tensor("per_layer_proj_norm.weight", (beside,))
    norms_after = str(config["model_type"]).startswith(("gemma", "muse_glimmer"))
    for i in range(count):
        if config["model_type"] == "nemotron_h":  # each layer is one block with one norm
            yield Tensor("attn_norm.weight", (hidden,), i)
            yield from (Tensor(name, dims, i) for name, dims in _nemotron_block(config, kinds[i]).items())
            continue
        yield from (Tensor(n, (hidden,), i) for n in ("attn_norm.weight", "post_attention_norm.weight"))
        if norms_after:
            yield from (Tensor(n, (hidden,), i) for n in ("ffn_norm.weight", "post_ffw_norm.weight"))
        if beside:
            yield Tensor("inp_gate.weight", (hidden, beside), i)
            yield Tensor("proj.weight", (beside, hidden), i)
            yield Tensor("post_norm.weight", (hidden,), i)
        mixer = (
            _mamba2(config)
            if kinds[i] == "mamba"
            else _kimi_delta(config)
            if kinds[i] == "linear_attention" and "linear_attn_config" in config
            else _delta_net(config)
            if kinds[i] == "linear_attention"
            else _mla(config)
            if "kv_lora_rank" in config
            else _attention(config, kinds[i], i)
        )
        yield from (Tensor(name, dims, i) for name, dims in (mixer | _feed_forward(config, i)).items())


def _encoder(config: Mapping[str, Any]) -> Iterator[Tensor]:
    """BERT's tensors under llama.cpp's names (b11434, `src/models/bert.cpp`). The pooler behind the layers is
    in the hub's files only: `conversion/bert.py` leaves it out, and so does vLLM 0.33 in `BertModel`."""
    hidden, width, model_type = config["hidden_size"], config["intermediate_size"], config["model_type"]
    nomic = model_type == "nomic_bert"
    yield Tensor("token_embd.weight", (hidden, config["vocab_size"]))
    yield Tensor("token_types.weight", (hidden, config["type_vocab_size"]))
    if not nomic:
        yield Tensor("position_embd.weight", (hidden, config["max_position_embeddings"]))
    yield from _with_bias("token_embd_norm", (hidden,))
    for i in range(config["num_hidden_layers"]):
        if nomic:
            yield Tensor("attn_qkv.weight", (hidden, 3 * hidden), i)
            yield Tensor("attn_output.weight", (hidden, hidden), i)
            yield Tensor("ffn_gate.weight", (hidden, width), i)
            yield Tensor("ffn_up.weight", (hidden, width), i)
            yield Tensor("ffn_down.weight", (width, hidden), i)
        else:
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                yield from _with_bias(name, (hidden, hidden), i)
            yield from _with_bias("ffn_up", (hidden, width), i)
            yield from _with_bias("ffn_down", (width, hidden), i)
        yield from _with_bias("attn_output_norm", (hidden,), i)
        yield from _with_bias("layer_output_norm", (hidden,), i)
    classifies = str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification")
    if classifies:
        yield from _with_bias("cls", (hidden, hidden))
        yield from _with_bias("cls.output", (hidden, 1))
    elif not nomic:
        yield from _with_bias("pooler", (hidden, hidden))


def _with_bias(name: str, dims: tuple[int, ...], layer: int | None = None) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", dims, layer)
    yield Tensor(f"{name}.bias", dims[-1:], layer)


def prediction_layer(config: Mapping[str, Any]) -> list[Tensor]:
    """One layer that predicts tokens ahead (MTP), behind the others: a layer as the last one, what joins two
    vectors, and norms (llama.cpp b11434, `src/models/qwen35.cpp`)."""
    count, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
    if config["model_type"] == "nemotron_h":  # an attention and a feed-forward block in one
        blocks = _nemotron_block(config, "full_attention") | _nemotron_block(config, "moe")
        last = [Tensor(name, dims, count) for name, dims in blocks.items()]
        last += [Tensor(f"{n}.weight", (hidden,), count) for n in ("attn_norm", "post_attention_norm")]
    else:
        last = [Tensor(t.name, t.dims, count) for t in tensors(config) if t.layer == count - 1]
    return [
        *last,
        Tensor("nextn.eh_proj.weight", (2 * hidden, hidden), count),
        *(Tensor(f"nextn.{n}.weight", (hidden,), count) for n in ("enorm", "hnorm", "shared_head_norm")),
    ]


def layer_kinds(config: Mapping[str, Any]) -> list[str]:
    """`full_attention`, `sliding_attention`, `linear_attention` or `mamba` for each layer, and `moe` or `mlp`
    where a layer is nothing but a feed-forward block; `every` is the catalog's short form."""
    count = int(config["num_hidden_layers"])
    if isinstance(named := config.get("layer_types"), list):
        return ["full_attention" if k == "attention" else str(k) for k in named]
    if isinstance(pattern := config.get("hybrid_override_pattern"), str):
        return [NEMOTRON_BLOCKS[c] for c in pattern]
    if isinstance(linear := config.get("linear_attn_config"), Mapping):
        delta = set(linear["kda_layers"])  # counted from 1
        return ["linear_attention" if i + 1 in delta else "full_attention" for i in range(count)]
    if every := config.get("full_attention_interval"):
        return ["full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(count)]
    if every := config.get("sliding_window_pattern"):
        return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(count)]
    return ["full_attention"] * count


def _attention(config: Mapping[str, Any], kind: str, layer: int) -> dict[str, tuple[int, ...]]:
    hidden, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    model_type = str(config["model_type"])
    if isinstance(by_layer := config.get("num_attention_heads_per_layer"), list):  # Laguna
        heads = by_layer[layer]
    dim = config.get("head_dim") or hidden // heads
    if kind == "full_attention":
        dim, kv = config.get("global_head_dim") or dim, config.get("num_global_key_value_heads") or kv
    gated = 2 if config.get("full_attention_interval") else 1  # Qwen3-Next's queries bring their gates along
    out: dict[str, tuple[int, ...]] = {"attn_q.weight": (hidden, heads * dim * gated)}
    if model_type == "phi3":
        out = {"attn_qkv.weight": (hidden, (heads + 2 * kv) * dim)}
    else:
        out["attn_k.weight"] = (hidden, kv * dim)
        if not (kind == "full_attention" and config.get("attention_k_eq_v")):  # Gemma 4: the values are keys
            out["attn_v.weight"] = (hidden, kv * dim)
    out["attn_output.weight"] = (heads * dim, hidden)
    if config.get("attention_bias") or model_type == "qwen2":
        out |= {"attn_q.bias": (heads * dim,), "attn_k.bias": (kv * dim,), "attn_v.bias": (kv * dim,)}
    if model_type == "gpt_oss":
        out |= {"attn_output.bias": (hidden,), "attn_sinks.weight": (heads,)}
    if model_type.startswith(("qwen3", "gemma", "laguna", "mellum", "muse_glimmer")):
        out |= {"attn_q_norm.weight": (dim,), "attn_k_norm.weight": (dim,)}
    if model_type == "minimax_m2":
        out |= {"attn_q_norm.weight": (heads * dim,), "attn_k_norm.weight": (kv * dim,)}
    if model_type == "laguna":
        out["attn_gate.weight"] = (hidden, heads)
    if model_type.startswith("muse_glimmer"):
        out["attn_gate.weight"] = (hidden, heads * dim)
    return out


def _mla(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, heads, latent, rope = (
        config[k] for k in ("hidden_size", "num_attention_heads", "kv_lora_rank", "qk_rope_head_dim")
    )
    key, value, low = config["qk_nope_head_dim"], config["v_head_dim"], config.get("q_lora_rank")
    queries = (
        {
            "attn_q_a.weight": (hidden, low),
            "attn_q_a_norm.weight": (low,),
            "attn_q_b.weight": (low, heads * (key + rope)),
        }
        if low
        else {}
    )
    return {
        **(queries or {"attn_q.weight": (hidden, heads * (key + rope))}),
        "attn_kv_a_mqa.weight": (hidden, latent + rope),
        "attn_kv_a_norm.weight": (latent,),
        "attn_k_b.weight": (key, latent, heads),
        "attn_v_b.weight": (latent, value, heads),
        "attn_output.weight": (heads * value, hidden),
    }


def _delta_net(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    heads, dim = config["linear_num_value_heads"], config["linear_value_head_dim"]
    channels = 2 * keys + heads * dim
    return {
        "attn_qkv.weight": (hidden, channels),
        "attn_gate.weight": (hidden, heads * dim),
        "ssm_conv1d.weight": (config["linear_conv_kernel_dim"], channels),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        **(
            {"ssm_ba.weight": (hidden, 2 * heads)}
            if config["model_type"] == "qwen3_next"
            else {"ssm_beta.weight": (hidden, heads), "ssm_alpha.weight": (hidden, heads)}
        ),
        "ssm_norm.weight": (dim,),
        "ssm_out.weight": (heads * dim, hidden),
    }


def _kimi_delta(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, linear = config["hidden_size"], config["linear_attn_config"]
    heads, dim, conv = linear["num_heads"], linear["head_dim"], linear["short_conv_kernel_size"]
    width = heads * dim
    return {
        **{f"attn_{n}.weight": (hidden, width) for n in "qkv"},
        **{f"ssm_conv1d_{n}.weight": (conv, 1, width) for n in "qkv"},
        "ssm_f_a.weight": (hidden, dim),
        "ssm_f_b.weight": (dim, width),
        "ssm_g_a.weight": (hidden, dim),
        "ssm_g_b.weight": (dim, width),
        "ssm_beta.weight": (hidden, heads),
        "ssm_a": (1, heads),
        "ssm_dt.bias": (width,),
        "ssm_norm.weight": (dim,),
        "attn_output.weight": (width, hidden),
    }


def _mamba2(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Granite 4 and Nemotron-H name the same dimensions differently."""
    hidden = config["hidden_size"]
    heads, dim, state, groups, conv = (
        config.get(nemotron) or config[granite]
        for nemotron, granite in (
            ("mamba_num_heads", "mamba_n_heads"),
            ("mamba_head_dim", "mamba_d_head"),
            ("ssm_state_size", "mamba_d_state"),
            ("n_groups", "mamba_n_groups"),
            ("conv_kernel", "mamba_d_conv"),
        )
    )
    inner = heads * dim
    channels = inner + 2 * groups * state
    return {
        "ssm_in.weight": (hidden, inner + channels + heads),
        "ssm_conv1d.weight": (conv, channels),
        "ssm_conv1d.bias": (channels,),
        "ssm_dt.bias": (heads,),
        "ssm_a": (1, heads),
        "ssm_d": (1, heads),
        "ssm_norm.weight": (inner // groups, groups),
        "ssm_out.weight": (inner, hidden),
    }


def _nemotron_block(config: Mapping[str, Any], kind: str) -> dict[str, tuple[int, ...]]:
    """Its feed-forward blocks square what is positive and have no gate."""
    hidden = config["hidden_size"]
    if kind == "mamba":
        return _mamba2(config)
    if kind == "full_attention":
        return _attention(config, kind, 0)
    if kind == "mlp":
        width = config["intermediate_size"]
        return {"ffn_up.weight": (hidden, width), "ffn_down.weight": (width, hidden)}
    experts, own = config["n_routed_experts"], config["moe_intermediate_size"]
    shared = config["moe_shared_expert_intermediate_size"]
    return {
        "ffn_gate_inp.weight": (hidden, experts),
        "exp_probs_b.bias": (experts,),
        "ffn_up_exps.weight": (hidden, own, experts),
        "ffn_down_exps.weight": (own, hidden, experts),
        "ffn_up_shexp.weight": (hidden, shared),
        "ffn_down_shexp.weight": (shared, hidden),
    }


def _feed_forward(config: Mapping[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    hidden, width = int(config["hidden_size"]), int(config.get("intermediate_size") or 0)
    model_type = str(config["model_type"])
    experts = config.get("num_experts") or config.get("n_routed_experts") or config.get("num_local_experts")
    if model_type == "phi3":
        return {"ffn_up.weight": (hidden, 2 * width), "ffn_down.weight": (width, hidden)}
    shared_layers = int(config.get("num_kv_shared_layers") or 0)
    if config.get("use_double_wide_mlp") and layer >= int(config["num_hidden_layers"]) - shared_layers:
        width *= 2
    if model_type == "granitemoehybrid" and not experts:
        width = int(config["shared_intermediate_size"])
    dense: dict[str, tuple[int, ...]] = {
        "ffn_gate.weight": (hidden, width),
        "ffn_up.weight": (hidden, width),
        "ffn_down.weight": (width, hidden),
    }
    if (
        not experts
        or layer < config.get("first_k_dense_replace", 0)
        or layer in (config.get("mlp_only_layers") or ())
    ):
        return dense
    own = config.get("moe_intermediate_size") or width
    out: dict[str, tuple[int, ...]] = {
        "ffn_gate_inp.weight": (hidden, experts),
        "ffn_gate_exps.weight": (hidden, own, experts),
        "ffn_up_exps.weight": (hidden, own, experts),
        "ffn_down_exps.weight": (own, hidden, experts),
    }
    if model_type == "gpt_oss":
        out |= {
            "ffn_gate_inp.bias": (experts,),
            "ffn_gate_exps.bias": (own, experts),
            "ffn_up_exps.bias": (own, experts),
        }
        out |= {"ffn_down_exps.bias": (hidden, experts)}
    if model_type in ("glm4_moe", "minimax_m2", "laguna", "kimi_linear"):
        out |= {"exp_probs_b.bias": (experts,)}
    if shared := (
        config.get("shared_expert_intermediate_size")
        or config.get("shared_intermediate_size")
        or own * (config.get("n_shared_experts") or config.get("num_shared_experts") or 0)
    ):
        out |= {
            "ffn_gate_shexp.weight": (hidden, shared),
            "ffn_up_shexp.weight": (hidden, shared),
            "ffn_down_shexp.weight": (shared, hidden),
        }
    if config.get("shared_expert_intermediate_size") and model_type.startswith("qwen"):
        out |= {"ffn_gate_inp_shexp.weight": (hidden,)}
    if not model_type.startswith("gemma"):
        return out
    # Gemma 4 has both in each layer, with norms for each.
    norms = (
        "ffn_gate_inp.scale",
        "pre_ffw_norm_2.weight",
        "post_ffw_norm_1.weight",
        "post_ffw_norm_2.weight",
    )
    return dense | out | dict.fromkeys(norms, (hidden,)) | {"ffn_down_exps.scale": (experts,)}


def hub_name(tensor: Tensor) -> str:
    """The name pattern under which the hub's file has it, digits as `*`."""
    stem, _, kind = tensor.name.rpartition(".")
    stem = stem or tensor.name
    name = HUB_NAMES.get(
        stem,
        f"mlp.experts.*.{stem}" if "_exps" in stem else f"mlp.{stem}" if stem.startswith("ffn_") else stem,
    )
    return f"{name}.{kind}" if tensor.layer is None else f"model.layers.*.{name}.{kind or 'weight'}"


def hub_bytes(tensor: Tensor, weights: str) -> int:
    """Bytes in a safetensors file: `bf16`, `fp8` (blocks of 128 by 128), `mxfp4` (experts only), or one of
    `FOUR_BITS` (linear layers)."""
    linear = len(tensor.dims) >= 2 and not tensor.name.startswith(KEPT)
    if weights == "fp8" and linear:
        return tensor.elements + tensor.elements // 128**2 * 4
    if weights in FOUR_BITS and linear:
        return int(tensor.elements * FOUR_BITS[weights])
    if weights == "mxfp4" and "_exps.weight" in tensor.name:
        return tensor.elements // 32 * 17
    return tensor.elements * 2


def ggml_type(tensor: Tensor, weights: str, layers: int, *, tied: bool, queries_per_key: int = 1) -> str:
    """The type that `llama-quantize` gives a tensor under `weights`, as `Q4_K_M`, `Q8_0` or `MXFP4`, with an
    importance matrix where the type wants one. Of the mixes that their makers call `UD-`, which are not
    published, that of the mix whose name they extend."""
    name, row, i = tensor.name, tensor.dims[0], tensor.layer or 0
    if (
        len(tensor.dims) == 1
        or not name.endswith(".weight")
        or name.endswith("_norm.weight")
        or name.startswith(SINGLE)
    ):
        return "F32"
    mix = plain_mix(weights)
    if name == "per_layer_model_proj.weight":
        return mix if mix in ("F16", "BF16") else "BF16"
    if mix in ("F16", "BF16", "Q8_0"):
        return mix
    if mix == "MXFP4":
        return "MXFP4" if "_exps.weight" in name else "Q8_0"
    base = MIXES[mix]
    more = i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2
    if name == "output.weight" or (tied and name in ("token_embd.weight", "per_layer_token_embd.weight")):
        base = "Q6_K"
    elif name.startswith(("attn_v.", "attn_qkv.", "attn_kv_b.")):
        if mix == "Q3_K_M":
            base = "Q5_K" if i < 2 else "Q4_K"
        elif (mix == "Q4_K_S" and i < 4) or (mix == "IQ4_XS" and queries_per_key >= 4):
            base = "Q5_K"
        elif mix in ("Q4_K_M", "Q5_K_M") and more:
            base = "Q6_K"
    elif name.startswith("ffn_down"):
        if mix == "Q3_K_M":
            base = "Q5_K" if i < layers // 16 else "Q4_K"
        elif mix == "Q4_K_S" and i < layers // 8:
            base = "Q5_K"
        elif mix in ("Q4_K_M", "Q5_K_M") and more:
            base = "Q6_K"
    elif name == "attn_output.weight" and mix == "Q3_K_M":
        base = "Q4_K"
    return FALLBACKS[base] if row % GGML[base][0] else base


@cache
def plain_mix(weights: str) -> str:
    """The mix of `llama-quantize` that a name stands for: `UD-Q4_K_XL` is made from Q4_K_M."""
    name = weights.removeprefix("UD-").removesuffix("_MOE")
    if name in ("Q8_K_XL", "Q6_K_XL"):
        return {"Q8_K_XL": "Q8_0", "Q6_K_XL": "Q6_K"}[name]
    return name.replace("_XL", "_M")


def ggml_bytes(tensor: Tensor, type: str) -> int:
    block, size = GGML[type]
    return tensor.elements // block * size
