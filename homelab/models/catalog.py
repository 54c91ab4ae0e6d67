"""Models that people run at home, described well enough to say what they take before anything is downloaded
and without a network.

Each entry of `catalog.yml` holds the model's `config.json` as far as memory goes, and the repositories that
have it in one quantisation or another. From these this module makes the same header documents that the
files themselves would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import yaml

from homelab.engines import readers
from homelab.errors import InventoryError
from homelab.models.shape import Format, Pooling, Purpose
from homelab.models.tensors import (
    Tensor,
    ggml_bytes,
    ggml_type,
    hub_bytes,
    hub_name,
    layer_kinds,
    prediction_layer,
    tensors,
)

HUB_WEIGHTS = frozenset({"bf16", "fp8", "awq", "mxfp4"})
ARCHITECTURES = {  # llama.cpp's name for each `model_type`
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
    "llama": "llama",
    "mistral": "llama",
    "gpt_oss": "gpt-oss",
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "gemma4_unified_text": "gemma4",
    "deepseek_v2": "deepseek2",
    "glm4_moe": "glm4moe",
    "glm4_moe_lite": "deepseek2",
    "bert": "bert",
    "xlm-roberta": "bert",
    "nomic_bert": "nomic-bert",
}
POOLING = {"mean": 1, "cls": 2, "last": 3, "rank": 4}  # llama.cpp `enum llama_pooling_type`
NOTE = "figures are the catalog's: the file's own header may differ by some percent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One source of a model's weights."""

    source: str
    weights: str

    @property
    def format(self) -> Format:
        return "safetensors" if self.weights in HUB_WEIGHTS else "gguf"

    @property
    def engine(self) -> str:
        return readers(self.format)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model of the catalog. `parameters` is the published number; `text_parameters` that of the language
    model alone where they differ. `kind` is what it does, and `pooling` how one that does not chat makes one
    vector of a text's tokens."""

    name: str
    repo: str
    licence: str
    config: Mapping[str, Any]
    variants: tuple[Variant, ...]
    parameters: float
    text_parameters: float
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    kind: Purpose = "chat"
    pooling: Pooling | None = None

    @property
    def text(self) -> Mapping[str, Any]:
        """The configuration of the language model, without what is beside it."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, Mapping) else self.config

    def document(self, variant: Variant) -> dict[str, Any]:
        """The header document of a variant, as its files would give it but for a percent or two."""
        return (
            _hub_document(self, variant.weights)
            if variant.format == "safetensors"
            else _gguf_document(self, variant.weights)
        )


@dataclass(frozen=True, slots=True)
class Catalog:
    entries: Mapping[str, Entry]

    def find(self, source: str) -> tuple[Entry, Variant] | None:
        """The entry that a source names: a variant's source in any case, a repository, or the entry's own
        name."""
        wanted = source.lower()
        for entry in self.entries.values():
            for variant in entry.variants:
                if wanted == variant.source.lower():
                    return entry, variant
        for entry in self.entries.values():
            if wanted in (entry.name, entry.repo.lower()):
                return entry, entry.variants[0]
            for variant in entry.variants:
                if wanted == variant.source.lower().partition(":")[0]:
                    return entry, variant
        return None


def parse(text: str) -> Catalog:
    """The catalog in this YAML.

    Raises InventoryError when an entry lacks what it needs."""
    entries: dict[str, Entry] = {}
    # The loader in C saves 7 % of `homelab fit --what`; PyYAML may be built without it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for name, item in yaml.load(text, Loader=loader).items():  # a safe loader: plain values only
        try:
            parameters = float(item["parameters"])
            kind, pooling = item.get("kind", "chat"), item.get("pooling")
            if kind not in get_args(Purpose) or (kind == "chat") != (pooling is None):
                raise ValueError(f"kind {kind!r} with pooling {pooling!r}")
            if pooling is not None and pooling not in POOLING:
                raise ValueError(f"pooling {pooling!r}")
            entries[name] = Entry(
                name=name,
                repo=item["repo"],
                licence=item["licence"],
                config=item["config"],
                variants=tuple(
                    Variant(source=source, weights=weights) for source, weights in item["variants"].items()
                ),
                parameters=parameters,
                text_parameters=float(item.get("text_parameters", parameters)),
                tool_call_parser=item.get("tools"),
                reasoning_parser=item.get("reasoning"),
                kind=kind,
                pooling=pooling,
            )
        except (KeyError, TypeError, ValueError) as e:
            raise InventoryError(f"The catalog's entry {name} is not complete: {e!r}") from e
    return Catalog(entries)


def parameter_count(entry: Entry) -> int:
    """Parameters of the language model, from its dimensions."""
    return sum(tensor.elements for tensor in tensors(entry.text))


def _hub_document(entry: Entry, weights: str) -> dict[str, Any]:
    groups: dict[str, list[Any]] = {}
    for tensor in tensors(entry.text):
        group = groups.setdefault(hub_name(tensor), [0, 0, weights])
        group[0] += 1
        group[1] += hub_bytes(tensor, weights)
    if ahead := int(entry.text.get("mtp_num_hidden_layers") or 0):
        # Quantised repositories leave these layers as they were.
        layer = prediction_layer(entry.text)
        size = ahead * sum(hub_bytes(tensor, "bf16") for tensor in layer)
        groups["mtp.*"] = [ahead * len(layer), size, "BF16"]
    if seen := int((entry.parameters - entry.text_parameters) * 2):
        groups["vision_tower.*"] = [1, seen, "BF16"]
    config = {**entry.config}
    if weights in ("awq", "fp8"):
        config["quantization_config"] = {"quant_method": weights}
    return {
        "format": "safetensors",
        "config": config,
        "tensor_bytes": sum(group[1] for group in groups.values()),
        "dtypes": {},
        "groups": groups,
        "files": [],
    }


def _gguf_document(entry: Entry, weights: str) -> dict[str, Any]:
    config = entry.text
    architecture = _architecture(config)
    tied = bool(config.get("tie_word_embeddings"))
    listed: list[list[Any]] = []
    for tensor in tensors(config):
        if tensor.name.startswith("pooler."):
            continue  # `conversion/bert.py` leaves it out
        type_ = ggml_type(tensor, weights, config["num_hidden_layers"], tied=tied)
        listed.append([_ggml_name(tensor, architecture), list(tensor.dims), type_, ggml_bytes(tensor, type_)])
    said = {**_metadata(config, architecture), "pooling_type": POOLING.get(str(entry.pooling))}
    metadata = {f"{architecture}.{key}": value for key, value in said.items() if value is not None}
    return {
        "format": "gguf",
        "version": 3,
        "file_bytes": sum(t[3] for t in listed),
        "metadata": {
            "general.architecture": architecture,
            "tokenizer.ggml.model": "none",
            "tokenizer.chat_template": "",
        }
        | metadata,
        "tensors": listed,
    }


def _architecture(config: Mapping[str, Any]) -> str:
    """llama.cpp's name of the architecture."""
    model_type = config["model_type"]
    # Gemma 4 says "vision" here, of its pictures only.
    if model_type == "gemma3_text" and config.get("use_bidirectional_attention") is True:
        return "gemma-embedding"
    return ARCHITECTURES[model_type]


def _ggml_name(tensor: Tensor, architecture: str) -> str:
    """llama.cpp calls the norm before the feed-forward part one way in some architectures and another in
    others."""
    if tensor.name == "post_attention_norm.weight" and architecture in (
        "llama",
        "qwen3",
        "qwen3moe",
        "deepseek2",
    ):
        return Tensor("ffn_norm.weight", tensor.dims, tensor.layer).full_name
    return tensor.full_name


def _metadata(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    heads, dim = config["num_attention_heads"], config.get("head_dim")
    dim, kv = dim or config["hidden_size"] // heads, config.get("num_key_value_heads") or heads
    experts = config.get("num_experts") or config.get("n_routed_experts") or config.get("num_local_experts")
    kinds = layer_kinds(config)
    out: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config.get("intermediate_size") or config["moe_intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": config.get("qk_rope_head_dim") or dim,
        "vocab_size": config["vocab_size"],
        "attention.sliding_window": config.get("sliding_window"),
        "leading_dense_block_count": config.get("first_k_dense_replace"),
    }
    if experts:
        out |= {
            "expert_count": experts,
            "expert_used_count": config.get("num_experts_per_tok"),
            "expert_weights_scale": 1.0,
        }
        out |= {
            "expert_feed_forward_length": config.get("moe_intermediate_size") or config["intermediate_size"]
        }
        out |= {
            "expert_shared_count": config.get("n_shared_experts"),
            "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
        }
    if config["model_type"] == "xlm-roberta":
        out |= {"context_length": config["max_position_embeddings"] - 2}  # positions from pad_token_id + 1
    if latent := config.get("kv_lora_rank"):
        rope = config["qk_rope_head_dim"]
        out |= {
            "attention.head_count_kv": 1,
            "attention.key_length": latent + rope,
            "attention.value_length": latent,
            "attention.kv_lora_rank": latent,
        }
        out |= {
            "attention.key_length_mla": config["qk_nope_head_dim"] + rope,
            "attention.value_length_mla": config["v_head_dim"],
        }
        out |= {"attention.q_lora_rank": config.get("q_lora_rank")}
    if architecture == "gemma4":
        wide, few = config.get("global_head_dim") or dim, config.get("num_global_key_value_heads") or kv
        out |= {"attention.head_count_kv": [few if k == "full_attention" else kv for k in kinds]}
        out |= {
            "attention.sliding_window_pattern": [k == "sliding_attention" for k in kinds],
            "embedding_length_per_layer_input": 0,
        }
        out |= {
            "attention.key_length": wide,
            "attention.value_length": wide,
            "attention.key_length_swa": dim,
            "attention.value_length_swa": dim,
        }
        out |= {
            "rope.dimension_count": wide,
            "rope.dimension_count_swa": dim,
            "attention.shared_kv_layers": 0,
        }
    if interval := config.get("full_attention_interval"):
        values = config["linear_num_value_heads"]
        out |= {
            "full_attention_interval": interval,
            "ssm.conv_kernel": config["linear_conv_kernel_dim"],
            "ssm.time_step_rank": values,
        }
        out |= {
            "ssm.inner_size": values * config["linear_value_head_dim"],
            "ssm.state_size": config["linear_key_head_dim"],
        }
        out |= {"ssm.group_count": config["linear_num_key_heads"], "rope.dimension_sections": [11, 11, 10, 0]}
    return out
