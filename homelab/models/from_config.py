"""A model of which nobody has more than its `config.json`: what its weights would be in the quantisations
that people make, as shapes. Pure.

The bytes are worked out from the dimensions (`homelab.models.tensors`), so they are an estimate; the files'
own headers are always the better source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from homelab.errors import InventoryError
from homelab.models.catalog import ARCHITECTURES, HUB_WEIGHTS, Entry, Variant
from homelab.models.header import from_header
from homelab.models.huggingface import ENCODERS, GENERIC
from homelab.models.shape import MAX_LAYERS, ModelShape, layer_count
from homelab.models.tensors import layer_kinds

# Keys under other names, as GPT-2, MPT, Falcon and ChatGLM have them.
ALIASES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "intermediate_size": ("ffn_hidden_size", "n_inner"),
    "num_experts_per_tok": ("num_experts_per_token", "experts_per_token"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
}
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# Layers of kinds whose tensors `homelab.models.tensors` knows of these architectures only.
KNOWN_LAYERS = frozenset({"granitemoehybrid", "kimi_linear", "nemotron_h"})
OTHER_LAYERS = (
    "ssm_state_size",
    "mamba_d_state",
    "linear_attn_config",
    "hybrid_override_pattern",
    "layers_block_type",
    "conv_L_cache",
    "block_types",
    "attn_layer_period",
)
# What those who quantise call it, and what that is in bytes here.
HUB_QUANTS = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "awq": "awq",
    "gptq": "gptq",
    "gptq_marlin": "gptq",
    "auto-round": "autoround",
    "auto_round": "autoround",
    "compressed-tensors": "w4a16",
}
GGUF_QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS")
# A mixture of experts that was trained in four bits has no other files.
GGUF_OF_MXFP4 = ("MXFP4",)
HINT = "Name a repository or a file that has the weights: their headers say what they take"
NOTE = (
    "sizes are worked out from config.json, not read from the files' own headers: they may differ by "
    "some percent"
)
LARGEST_DIMENSION = 1 << 24  # of a vocabulary, the largest of them, a million


def shapes(config: Mapping[str, Any]) -> dict[str, ModelShape]:
    """The model in each quantisation that can be reckoned with, by its name for `--quant`. What the config
    says of a quantisation of its own is the only one beside GGUF.

    Raises InventoryError for a config of something else than a language model, or one that lacks what its
    memory depends on; never another exception."""
    try:
        return _shapes(config)
    except KeyError as e:
        raise InventoryError(
            f"config.json lacks `{e.args[0]}`, so its memory cannot be computed", hint=HINT
        ) from e
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as e:
        raise InventoryError(
            "This config.json makes no sense", cause=f"{type(e).__name__}: {str(e)[:200]}", hint=HINT
        ) from e


def _shapes(config: Mapping[str, Any]) -> dict[str, ModelShape]:
    text = _text(config)
    outer = dict(config)
    for part in ("text_config", "llm_config"):
        outer.pop(part, None)
    outer |= {"text_config": text} if text is not config else {}
    outer = outer if "text_config" in outer else dict(text)
    vision = _vision_parameters(config)
    entry = Entry(
        name="config.json",
        repo="",
        licence="",
        config=outer,
        variants=(),
        parameters=float(vision),
        text_parameters=0.0,
    )
    own = _own(config, text)
    out = {}
    wanted = [own] if own != "bf16" else [w for w in ("bf16", "fp8", "awq") if w in HUB_WEIGHTS]
    if text["model_type"] in ARCHITECTURES:
        wanted += [*GGUF_OF_MXFP4] if own == "mxfp4" else [*GGUF_QUANTS]
    for weights in wanted:
        shape = from_header(entry.document(Variant(source="config.json", weights=weights)))
        out[weights] = replace(shape, notes=(*shape.notes, NOTE, *_notes(config, text)))
    return out


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's part, with its keys under the names that all of ours have."""
    inner = config.get("text_config") or config.get("llm_config")
    given: dict[str, Any] = dict(inner) if isinstance(inner, Mapping) else dict(config)
    model_type = str(given.get("model_type") or config.get("model_type") or "")
    if model_type.endswith(("vision_model", "vision", "_vit", "audio_encoder")) or (
        "patch_size" in given and "vocab_size" not in given
    ):
        raise InventoryError(
            f"This config.json is of a vision or audio tower (model_type {model_type or '?'}), "
            "not of a language model",
            hint="Give the config.json of the whole model: it has a `text_config`",
        )
    for name, others in ALIASES.items():
        if given.get(name) is None and (found := next((o for o in others if given.get(o) is not None), None)):
            given[name] = given[found]
    missing = [name for name in NEEDED if given.get(name) is None]
    if missing:
        raise InventoryError(
            f"config.json lacks `{'`, `'.join(missing)}`, so its memory cannot be computed", hint=HINT
        )
    for name in (*NEEDED, "num_key_value_heads", "intermediate_size", "head_dim", "num_experts"):
        if (value := given.get(name)) is not None:
            _checked(name, value)
    layers = layer_count(given["num_hidden_layers"])
    if model_type not in KNOWN_LAYERS and (unknown := [key for key in OTHER_LAYERS if given.get(key)]):
        raise InventoryError(
            f"config.json describes layers that homelab does not know the tensors of "
            f"(model_type {model_type or '?'}, `{unknown[0]}`)",
            hint=HINT,
        )
    tied = model_type.startswith("gemma") or model_type in ENCODERS
    given.setdefault("tie_word_embeddings", config.get("tie_word_embeddings", tied))
    heads = int(given["num_attention_heads"])
    given["model_type"] = model_type
    given["num_key_value_heads"] = given.get("num_key_value_heads") or heads
    given["intermediate_size"] = given.get("intermediate_size") or (
        given.get("moe_intermediate_size") or 4 * int(given["hidden_size"])
    )
    given.setdefault("max_position_embeddings", None)
    if len(layer_kinds(given)) != layers:
        raise InventoryError(
            f"config.json has {layers} layers, and `layer_types` for {len(layer_kinds(given))}", hint=HINT
        )
    return given


def _checked(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST_DIMENSION:
        raise InventoryError(
            f"config.json gives `{name}` as {str(value)[:40]}, and no model has that",
            hint="It is a number from 1 to "
            f"{MAX_LAYERS if name == 'num_hidden_layers' else LARGEST_DIMENSION}",
        )


def _own(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    """The quantisation that the config says its own files have; bf16 where it says none."""
    said = (
        config.get("quantization_config")
        or text.get("quantization_config")
        or config.get("compression_config")
    )
    if not isinstance(said, Mapping):
        return "bf16"
    method = str(said.get("quant_method") or said.get("quant_algo") or "").lower()
    algorithm = f"{method} {said.get('quant_algo')}".lower()
    groups = said.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    linear: Mapping[str, Any] = weights if isinstance(weights, Mapping) else {}
    bits = said.get("bits") or said.get("w_bit") or linear.get("num_bits")
    if "nvfp4" in algorithm or (bits == 4 and linear.get("type") == "float"):
        return "nvfp4"
    if bits == 8 or "fp8" in algorithm:
        return "fp8"
    if bits == 4 or said.get("load_in_4bit"):
        if method == "compressed-tensors" and linear.get("group_size") == 32:
            return "w4a16-g32"
        return HUB_QUANTS.get(method, "awq")
    return "bf16" if method == "compressed-tensors" else HUB_QUANTS.get(method, "bf16")


def _vision_parameters(config: Mapping[str, Any]) -> int:
    """Of a vision tower, from its dimensions: its layers, and a projector of two matrices."""
    seen = config.get("vision_config")
    if not isinstance(seen, Mapping):
        return 0
    hidden = seen.get("hidden_size") or seen.get("embed_dim")
    layers = seen.get("num_hidden_layers") or seen.get("depth") or seen.get("num_layers")
    if not isinstance(hidden, int) or not isinstance(layers, int):
        return 0
    width = seen.get("intermediate_size") or int(hidden * float(seen.get("mlp_ratio") or 4))
    out = seen.get("out_hidden_size") or seen.get("projection_dim") or hidden
    return min(layers, MAX_LAYERS) * (4 * hidden * hidden + 3 * hidden * int(width)) + 2 * hidden * int(out)


def _notes(config: Mapping[str, Any], text: Mapping[str, Any]) -> list[str]:
    notes = []
    if text["model_type"] in ENCODERS:
        notes.append("its feed-forward part is counted as a gated one: too much, for most encoders")
    elif text["model_type"] not in GENERIC:
        notes.append(
            f"model_type {text['model_type'] or '?'} is not known here: its weights are counted as those of "
            "a plain transformer, which may be far off"
        )
    if text["model_type"] not in ARCHITECTURES:
        notes.append(
            f"what llama.cpp's files of model_type {text['model_type'] or '?'} take is not known here"
        )
    if isinstance(config.get("vision_config"), Mapping) and not _vision_parameters(config):
        notes.append("its vision tower is not counted: config.json does not say how large it is")
    return notes
