"""Models that people run at home, described well enough to say what they take before anything is downloaded
and without a network.

Each entry of `catalog.yml` holds the model's `config.json` as far as memory goes, and the repositories that
have it in one quantisation or another. From these this module makes the same header documents that the
files themselves would give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import yaml

from homelab.engines import readers
from homelab.errors import InventoryError
from homelab.models.shape import Format, Pooling, Purpose
from homelab.models.tensors import (
    FOUR_BITS,
    MIXES,
    Tensor,
    ggml_bytes,
    ggml_type,
    hub_bytes,
    hub_name,
    layer_kinds,
    plain_mix,
    prediction_layer,
    tensors,
)

HUB_WEIGHTS = frozenset({"bf16", "fp8", "mxfp4", *FOUR_BITS})
# What the config.json of such a repository says of it (vLLM 0.33: `model_executor/layers/quantization`).
QUANTIZATION: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8"},
    "mxfp4": {"quant_method": "mxfp4"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "autoround": {"quant_method": "auto-round", "bits": 4, "group_size": 128},
    "w4a16": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "w4a16-g32": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
}
ARCHITECTURES = {  # llama.cpp's name for each `model_type`
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
    "llama": "llama",
    "mistral": "llama",
    "ministral3": "mistral3",
    "phi3": "phi3",
    "smollm3": "smollm3",
    "seed_oss": "seed_oss",
    "minimax_m2": "minimax-m2",
    "granite": "granite",
    "granitemoehybrid": "granitehybrid",
    "nemotron_h": "nemotron_h_moe",
    "kimi_linear": "kimi-linear",
    "laguna": "laguna",
    "mellum": "mellum",
    "muse_glimmer_text": "muse-glimmer",
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
GGUF_WEIGHTS = frozenset({"F16", "BF16", "Q8_0", "MXFP4", *MIXES})
POST_ATTENTION = frozenset(
    {
        "qwen3next",
        "qwen35",
        "qwen35moe",
        "gpt-oss",
        "glm4moe",
        "gemma3",
        "gemma4",
        "nemotron_h_moe",
        "seed_oss",
        "muse-glimmer",
    }
)
# Where no tag is given, llama.cpp takes the first of these that a repository has (b11434:
# `common/download.cpp`).
DEFAULT_GGUF = ("Q4_K_M", "Q8_0")
NOTE = "figures are the catalog's: the file's own header may differ by some percent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One source of a model's weights. `bytes` is what its files are published to have, where that is known;
    `predicts` says that a GGUF carries the layers that predict tokens ahead."""

    source: str
    weights: str
    bytes: int | None = None
    predicts: bool = False

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
            _hub_document(self, variant) if variant.format == "safetensors" else _gguf_document(self, variant)
        )

    def by_size(self) -> list[tuple[int, Variant]]:
        """The variants with the bytes of their weights, those with the most for the language model first;
        without making a document of each."""
        made = list(tensors(self.text))
        ahead = _prediction_layers(self.text)
        seen = int((self.parameters - self.text_parameters) * 2)
        sized = []
        for variant in self.variants:
            own, beside = _sizes(self.text, variant, made, ahead)
            beside += seen if variant.format == "safetensors" else 0
            size = variant.bytes or own + beside
            sized.append((size - beside, size, variant))
        return [(size, variant) for _, size, variant in sorted(sized, key=lambda s: -s[0])]


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
            there = [v for v in entry.variants if wanted == v.source.lower().partition(":")[0]]
            if there:
                default = (v for weights in DEFAULT_GGUF for v in there if v.weights == weights)
                return entry, next(default, there[0])
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
                config=_whole(item["config"]),
                variants=tuple(_variants(item)),
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


def _variants(item: Mapping[str, Any]) -> Iterator[Variant]:
    for source, given in item["variants"].items():
        written = given if isinstance(given, Mapping) else {"weights": given}
        yield _variant(source, written["weights"], written.get("bytes"))
    predicting = item.get("predicting") or ()
    for repo, files in (item.get("gguf") or {}).items():
        for weights, size in files.items():
            yield _variant(f"{repo}:{weights}", weights, size, predicts=repo in predicting)


def _variant(source: str, weights: str, size: Any, *, predicts: bool = False) -> Variant:
    if weights not in HUB_WEIGHTS and plain_mix(weights) not in GGUF_WEIGHTS:
        raise ValueError(f"{source} has weights {weights}, and there is nothing known of them")
    if size is None and weights.startswith("UD-"):
        raise ValueError(f"{source} is a mix that only its published size tells of")
    return Variant(
        source=source, weights=weights, bytes=None if size is None else int(float(size)), predicts=predicts
    )


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """With the patterns, the catalog's short form, repeated for all layers."""
    out = dict(config)
    if "text_config" in out:
        out["text_config"] = _whole(out["text_config"])
    for short, key in (("layer_pattern", "layer_types"), ("heads_pattern", "num_attention_heads_per_layer")):
        if pattern := out.pop(short, None):
            out[key] = [pattern[i % len(pattern)] for i in range(out["num_hidden_layers"])]
    return out


def parameter_count(entry: Entry) -> int:
    """Parameters of the language model, from its dimensions."""
    return sum(tensor.elements for tensor in tensors(entry.text))


def _prediction_layers(config: Mapping[str, Any]) -> list[Tensor]:
    return prediction_layer(config) * _ahead(config)


def _ahead(config: Mapping[str, Any]) -> int:
    """Layers that predict tokens ahead."""
    return int(config.get("mtp_num_hidden_layers") or config.get("num_nextn_predict_layers") or 0)


def _sizes(
    config: Mapping[str, Any], variant: Variant, made: Sequence[Tensor], ahead: Sequence[Tensor]
) -> tuple[int, int]:
    """Bytes of a variant's tensors by their dimensions alone: of the language model, which is 0 where its
    size is published and not needed, and of its prediction layers."""
    known = variant.bytes is not None
    if variant.format == "safetensors":
        own = 0 if known else sum(n * hub_bytes(tensor, variant.weights) for tensor, n in _alike(made))
        return own, sum(hub_bytes(tensor, "bf16") for tensor in ahead)
    of_type = _typed(config, variant.weights)
    own = 0 if known else sum(ggml_bytes(tensor, of_type(tensor)) for tensor in made if _in_gguf(tensor))
    return own, sum(ggml_bytes(tensor, of_type(tensor)) for tensor in ahead) if variant.predicts else 0


def _alike(made: Iterable[Tensor]) -> Iterator[tuple[Tensor, int]]:
    """One tensor of those that are the same in several layers, and in how many."""
    first: dict[tuple[Any, ...], Tensor] = {}
    counts: Counter[tuple[Any, ...]] = Counter()
    for tensor in made:
        key = tensor.name, tensor.dims
        first.setdefault(key, tensor)
        counts[key] += 1
    yield from ((first[key], count) for key, count in counts.items())


def _in_gguf(tensor: Tensor) -> bool:
    return not tensor.name.startswith("pooler.")  # `conversion/bert.py` leaves it out


def _typed(config: Mapping[str, Any], weights: str) -> Callable[[Tensor], str]:
    layers, tied = config["num_hidden_layers"], bool(config.get("tie_word_embeddings"))
    heads = config["num_attention_heads"]
    ratio = heads // (config.get("num_key_value_heads") or heads)
    return lambda tensor: ggml_type(tensor, weights, layers, tied=tied, queries_per_key=ratio)


def _hub_document(entry: Entry, variant: Variant) -> dict[str, Any]:
    weights = variant.weights
    groups: dict[str, list[Any]] = {}
    for tensor, count in _alike(tensors(entry.text)):
        group = groups.setdefault(hub_name(tensor), [0, 0, weights])
        group[0] += count
        group[1] += count * hub_bytes(tensor, weights)
        if hub_bytes(tensor, weights) == hub_bytes(tensor, "bf16"):
            group[2] = "BF16"
    if layers := _prediction_layers(entry.text):
        # Quantised repositories leave these layers as they were.
        groups["mtp.*"] = [len(layers), sum(hub_bytes(tensor, "bf16") for tensor in layers), "BF16"]
    if seen := int((entry.parameters - entry.text_parameters) * 2):
        groups["vision_tower.*"] = [1, seen, "BF16"]
    if variant.bytes:
        # Its makers know better which layers they left alone: what is quantised gets the difference.
        kept = sum(group[1] for group in groups.values() if group[2] == "BF16")
        made = sum(group[1] for group in groups.values()) - kept
        for group in groups.values():
            if group[2] != "BF16":
                group[1] = group[1] * (variant.bytes - kept) // made
    config = {**entry.config}
    if weights in QUANTIZATION:
        config["quantization_config"] = QUANTIZATION[weights]
    return {
        "format": "safetensors",
        "config": config,
        "tensor_bytes": sum(group[1] for group in groups.values()),
        "dtypes": {},
        "groups": groups,
        "files": [],
    }


def _gguf_document(entry: Entry, variant: Variant) -> dict[str, Any]:
    config = entry.text
    architecture = _architecture(config)
    of_type = _typed(config, variant.weights)
    made = [*tensors(config), *(_prediction_layers(config) if variant.predicts else ())]
    listed: list[list[Any]] = []
    for tensor in filter(_in_gguf, made):
        type_ = of_type(tensor)
        listed.append([_ggml_name(tensor, architecture), list(tensor.dims), type_, ggml_bytes(tensor, type_)])
    if variant.bytes:
        # What the mix of a published file differs in is the layers; the tables are as the mix has them.
        inside = [t for t in listed if t[0].startswith("blk.") and t[2] != "F32"]
        outside = sum(t[3] for t in listed) - (computed := sum(t[3] for t in inside))
        for t in inside:
            t[3] = t[3] * (variant.bytes - outside) // computed
    known = {**_metadata(config, architecture), "pooling_type": POOLING.get(str(entry.pooling))}
    if variant.predicts:
        ahead = _ahead(config)
        known |= {"block_count": config["num_hidden_layers"] + ahead, "nextn_predict_layers": ahead}
        layers = config["num_hidden_layers"]
        known |= {
            key: [*value, *([max(value)] * ahead)]
            for key, value in known.items()
            if isinstance(value, list) and len(value) == layers
        }
    metadata = {f"{architecture}.{key}": value for key, value in known.items() if value is not None}
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
    if tensor.name == "post_attention_norm.weight" and architecture not in POST_ATTENTION:
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
        "leading_dense_block_count": config.get("first_k_dense_replace")
        or len(config.get("mlp_only_layers") or ())
        or None,
    }
    if experts:
        out |= {
            "expert_count": experts,
            "expert_used_count": config.get("num_experts_per_tok") or config.get("num_experts_per_token"),
            "expert_weights_scale": 1.0,
        }
        out |= {
            "expert_feed_forward_length": config.get("moe_intermediate_size") or config["intermediate_size"]
        }
        out |= {
            "expert_shared_count": config.get("n_shared_experts") or config.get("num_shared_experts"),
            "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size")
            or config.get("shared_intermediate_size")
            or config.get("moe_shared_expert_intermediate_size"),
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
            "embedding_length_per_layer_input": config.get("hidden_size_per_layer_input") or 0,
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
            "attention.shared_kv_layers": config.get("num_kv_shared_layers") or 0,
        }
        if config.get("use_double_wide_mlp"):
            own = config["num_hidden_layers"] - config["num_kv_shared_layers"]
            width = config["intermediate_size"]
            out["feed_forward_length"] = [width if i < own else 2 * width for i in range(len(kinds))]
    if architecture in ("granite", "muse-glimmer"):
        out["logit_scale"] = 1.0  # llama.cpp asks for one; no memory depends on it
    if architecture in ("kimi-linear", "minimax-m2"):
        out["expert_gating_func"] = 2  # sigmoid
    if "mamba" in kinds:
        # Nemotron-H's layers are one block each; where it has heads or a width, that is its kind.
        out["attention.head_count_kv"] = [kv if k == "full_attention" else 0 for k in kinds]
        if "moe" in kinds:
            out["feed_forward_length"] = [config["moe_intermediate_size"] if k == "moe" else 0 for k in kinds]
            out["attention.layer_norm_epsilon"] = 1e-5
        state = config.get("ssm_state_size") or config["mamba_d_state"]
        values = config.get("mamba_num_heads") or config["mamba_n_heads"]
        out |= {
            "ssm.conv_kernel": config.get("conv_kernel") or config["mamba_d_conv"],
            "ssm.time_step_rank": values,
            "ssm.inner_size": values * (config.get("mamba_head_dim") or config["mamba_d_head"]),
            "ssm.state_size": state,
            "ssm.group_count": config.get("n_groups") or config["mamba_n_groups"],
        }
    if isinstance(linear := config.get("linear_attn_config"), Mapping):
        out |= {
            "attention.head_count_kv": [int(k == "full_attention") for k in kinds],
            "ssm.conv_kernel": linear["short_conv_kernel_size"],
            "kda.head_dim": linear["head_dim"],
        }
    if isinstance(by_layer := config.get("num_attention_heads_per_layer"), list):
        out["attention.head_count"] = by_layer
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
