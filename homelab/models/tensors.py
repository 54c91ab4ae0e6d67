"""The tensors of a model from its `config.json` alone: names, dimensions, and what each quantisation makes
of their bytes.

This is for models that nobody has downloaded yet: a header, where there is one, is always the better
source. Parameter counts are checked against the published ones. Which tensor gets which type in a GGUF
follows llama.cpp's `llama_tensor_get_type` (`src/llama-quant.cpp`, 0.6.0)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
AWQ_BYTES = 0.5 + 2.5 / 128  # four bits, and a 16-bit scale with a 4-bit zero for each 128
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
        out = 1
        for d in self.dims:
            out *= d
        return out

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
    gemma = str(config["model_type"]).startswith("gemma")
    for i in range(count):
        yield from (Tensor(n, (hidden,), i) for n in ("attn_norm.weight", "post_attention_norm.weight"))
        if gemma:
            yield from (Tensor(n, (hidden,), i) for n in ("ffn_norm.weight", "post_ffw_norm.weight"))
        mixer = (
            _delta_net(config)
            if kinds[i] == "linear_attention"
            else _mla(config)
            if "kv_lora_rank" in config
            else _attention(config, kinds[i])
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
    return [
        *(Tensor(t.name, t.dims, count) for t in tensors(config) if t.layer == count - 1),
        Tensor("nextn.eh_proj.weight", (2 * hidden, hidden), count),
        *(Tensor(f"nextn.{n}.weight", (hidden,), count) for n in ("enorm", "hnorm", "shared_head_norm")),
    ]


def layer_kinds(config: Mapping[str, Any]) -> list[str]:
    """`full_attention`, `sliding_attention` or `linear_attention` for each layer; `every` is the catalog's
    short form."""
    count = int(config["num_hidden_layers"])
    if isinstance(named := config.get("layer_types"), list):
        return [str(k) for k in named]
    if every := config.get("full_attention_interval"):
        return ["full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(count)]
    if every := config.get("sliding_window_pattern"):
        return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(count)]
    return ["full_attention"] * count


def _attention(config: Mapping[str, Any], kind: str) -> dict[str, tuple[int, ...]]:
    hidden, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or hidden // heads
    if kind == "full_attention":
        dim, kv = config.get("global_head_dim") or dim, config.get("num_global_key_value_heads") or kv
    gated = 2 if config.get("full_attention_interval") else 1  # Qwen3-Next's queries bring their gates along
    shared = kind == "full_attention" and config.get("attention_k_eq_v")  # Gemma 4: the values are the keys
    out: dict[str, tuple[int, ...]] = {
        "attn_q.weight": (hidden, heads * dim * gated),
        "attn_k.weight": (hidden, kv * dim),
    }
    if not shared:
        out["attn_v.weight"] = (hidden, kv * dim)
    out["attn_output.weight"] = (heads * dim, hidden)
    if config.get("attention_bias"):
        out |= {"attn_q.bias": (heads * dim,), "attn_k.bias": (kv * dim,), "attn_v.bias": (kv * dim,)}
    if config["model_type"] == "gpt_oss":
        out |= {"attn_output.bias": (hidden,), "attn_sinks.weight": (heads,)}
    if str(config["model_type"]).startswith(("qwen3", "gemma")):
        out |= {"attn_q_norm.weight": (dim,), "attn_k_norm.weight": (dim,)}
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


def _feed_forward(config: Mapping[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    hidden, width = int(config["hidden_size"]), int(config.get("intermediate_size") or 0)
    experts = config.get("num_experts") or config.get("n_routed_experts") or config.get("num_local_experts")
    dense: dict[str, tuple[int, ...]] = {
        "ffn_gate.weight": (hidden, width),
        "ffn_up.weight": (hidden, width),
        "ffn_down.weight": (width, hidden),
    }
    if not experts or layer < config.get("first_k_dense_replace", 0):
        return dense
    own = config.get("moe_intermediate_size") or width
    out: dict[str, tuple[int, ...]] = {
        "ffn_gate_inp.weight": (hidden, experts),
        "ffn_gate_exps.weight": (hidden, own, experts),
        "ffn_up_exps.weight": (hidden, own, experts),
        "ffn_down_exps.weight": (own, hidden, experts),
    }
    if config["model_type"] == "gpt_oss":
        out |= {
            "ffn_gate_inp.bias": (experts,),
            "ffn_gate_exps.bias": (own, experts),
            "ffn_up_exps.bias": (own, experts),
        }
        out |= {"ffn_down_exps.bias": (hidden, experts)}
    if config["model_type"] == "glm4_moe":
        out |= {"exp_probs_b.bias": (experts,)}
    if shared := config.get("shared_expert_intermediate_size") or own * config.get("n_shared_experts", 0):
        out |= {
            "ffn_gate_shexp.weight": (hidden, shared),
            "ffn_up_shexp.weight": (hidden, shared),
            "ffn_down_shexp.weight": (shared, hidden),
        }
    if config.get("shared_expert_intermediate_size"):
        out |= {"ffn_gate_inp_shexp.weight": (hidden,)}
    return (
        dense | out if str(config["model_type"]).startswith("gemma") else out
    )  # Gemma 4 has both in each layer


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
    """Bytes in a safetensors file: `bf16`, `fp8` (blocks of 128 by 128), `awq` (four bits, groups of 128)
    or `mxfp4` (experts only)."""
    linear = len(tensor.dims) >= 2 and not tensor.name.startswith(
        ("token_embd", "output.", "ffn_gate_inp.", "ssm_conv1d", "ssm_a", "ssm_b")
    )
    experts = "_exps.weight" in tensor.name
    if weights == "fp8" and linear:
        return tensor.elements + tensor.elements // 128**2 * 4
    if weights == "awq" and linear:
        return int(tensor.elements * AWQ_BYTES)
    if weights == "mxfp4" and experts:
        return tensor.elements // 32 * 17
    return tensor.elements * 2


def ggml_type(tensor: Tensor, weights: str, layers: int, *, tied: bool) -> str:
    """The type that `llama-quantize` gives a tensor under `weights`, as `Q4_K_M`, `Q8_0` or `MXFP4`."""
    name, row = tensor.name, tensor.dims[0]
    if len(tensor.dims) == 1 or name.startswith(SINGLE) or name.endswith(".bias"):
        return "F32"
    if weights in ("F16", "BF16", "Q8_0"):
        return weights
    if weights == "MXFP4":
        return "MXFP4" if "_exps.weight" in name else "Q8_0"
    base = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "IQ4_XS": "IQ4_XS"}[weights]
    i = tensor.layer or 0
    more = i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        base = "Q6_K"
    elif weights == "Q4_K_M" and name == "attn_qkv.weight":
        base = "Q5_K"
    elif weights in ("Q4_K_M", "Q5_K_M") and more and re.match(r"attn_v\.|attn_v_b|ffn_down", name):
        base = "Q6_K"
    elif weights == "IQ4_XS" and i < layers // 8 and name.startswith("ffn_down"):
        base = "Q5_K"
    if row % GGML[base][0]:  # rows that do not divide into blocks of 256
        return "Q8_0" if base == "Q6_K" else "Q5_0"
    return base


def ggml_bytes(tensor: Tensor, type: str) -> int:
    block, size = GGML[type]
    return tensor.elements // block * size
