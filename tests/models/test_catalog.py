"""The catalog's dimensions against what is published of the models: parameters, and sizes of
files that lie on the hub."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from homelab.engines import Device, Request, llamacpp, vllm
from homelab.errors import InventoryError
from homelab.fit_command import load_catalog
from homelab.models.catalog import Entry, Variant, parameter_count, parse
from homelab.models.header import from_header
from homelab.models.tensors import FOUR_BITS, layer_kinds

CATALOG = load_catalog()
ENTRIES = pytest.mark.parametrize("entry", CATALOG.entries.values(), ids=lambda e: e.name)


@ENTRIES
def test_parameters_are_those_that_are_published(entry: Entry) -> None:
    assert parameter_count(entry) == pytest.approx(entry.text_parameters, rel=0.005)
    assert entry.parameters >= entry.text_parameters


@ENTRIES
def test_every_variant_is_a_model_that_is_fully_known(entry: Entry) -> None:
    shapes = {v.source: from_header(entry.document(v)) for v in entry.variants}
    assert not any(shape.notes for shape in shapes.values())
    # A GGUF counts the layers that predict tokens ahead among its own.
    assert {
        len(shape.layers) - (shape.mtp_layers if shape.format == "gguf" else 0) for shape in shapes.values()
    } == {len(layer_kinds(entry.text))}
    assert len({shape.vocab for shape in shapes.values()}) == 1
    # What a further token costs does not depend on the format.
    assert len({shape.kv_bytes_per_token() for shape in shapes.values()}) == 1
    assert len({shape.max_context for shape in shapes.values()}) == 1


@pytest.mark.parametrize(
    ("source", "gigabytes"),
    [
        ("Qwen/Qwen3-4B-GGUF:Q4_K_M", 2.50),
        ("Qwen/Qwen3-8B-GGUF:Q4_K_M", 5.03),
        ("Qwen/Qwen3-14B-GGUF:Q4_K_M", 9.00),
        ("Qwen/Qwen3-32B-GGUF:Q4_K_M", 19.76),
        ("Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M", 18.56),
        ("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M", 4.92),
        ("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q8_0", 8.54),
        ("bartowski/Llama-3.3-70B-Instruct-GGUF:Q4_K_M", 42.52),
        ("unsloth/gemma-3-27b-it-GGUF:Q4_K_M", 16.55),
        ("ggml-org/gpt-oss-20b-GGUF:MXFP4", 12.11),
        ("ggml-org/gpt-oss-120b-GGUF:MXFP4", 63.39),
        ("TheBloke/CodeLlama-7B-Instruct-GGUF:Q4_K_M", 4.08),
        ("mixedbread-ai/mxbai-embed-large-v1:F16", 0.670),
    ],
)
def test_sizes_of_files_are_those_on_the_hub(source: str, gigabytes: float) -> None:
    found = CATALOG.find(source)
    assert found is not None
    assert found[0].document(found[1])["file_bytes"] / 1e9 == pytest.approx(gigabytes, rel=0.005)


# What their makers publish under the name of a mix is another one: more bits for some tensors of hybrids,
# of experts and of tables.
OWN_MIXES = (
    "unsloth/Qwen3.5-35B",
    "unsloth/Qwen3.6-35B",
    "unsloth/Qwen3-Coder-Next",
    "unsloth/Qwen3.5-122B",
    "unsloth/gemma-4-",  # its table stays in the mix's own type
    "unsloth/phi-4",  # made over into a Llama
)
PUBLISHED = [
    (entry, variant)
    for entry in CATALOG.entries.values()
    for variant in entry.variants
    if variant.bytes and variant.format == "gguf"
]


@pytest.mark.parametrize(("entry", "variant"), PUBLISHED, ids=lambda x: getattr(x, "source", ""))
def test_a_mix_of_llama_quantize_has_the_published_size(entry: Entry, variant: Variant) -> None:
    assert variant.bytes is not None
    computed = entry.document(replace(variant, bytes=None))["file_bytes"]
    own = variant.weights.startswith("UD-") or variant.source.startswith(OWN_MIXES)
    assert computed == pytest.approx(variant.bytes, rel=0.2 if own else 0.04)
    # The published size is what is counted.
    assert entry.document(variant)["file_bytes"] == pytest.approx(variant.bytes, rel=1e-4)


def test_most_mixes_have_it_within_a_percent() -> None:
    off = [
        abs(entry.document(replace(variant, bytes=None))["file_bytes"] / variant.bytes - 1)
        for entry, variant in PUBLISHED
        if variant.bytes and not variant.weights.startswith("UD-")
    ]
    assert len(off) > 100
    assert sorted(off)[len(off) // 2] < 0.005


HUB = [
    (entry, variant)
    for entry in CATALOG.entries.values()
    for variant in entry.variants
    if variant.format == "safetensors"
]


@pytest.mark.parametrize(("entry", "variant"), HUB, ids=lambda x: getattr(x, "source", ""))
def test_a_repository_says_of_itself_what_vllm_reads(entry: Entry, variant: Variant) -> None:
    document = entry.document(variant)
    said = document["config"].get("quantization_config", {}).get("quant_method", "none")
    shape = from_header(document)
    assert shape.quantization == said
    assert (said == "none") == (variant.weights == "bf16")
    whole = 2 * (entry.parameters + 0.1 * entry.parameters)
    assert shape.weights_bytes < whole
    if variant.bytes:
        assert shape.weights_bytes == pytest.approx(variant.bytes, rel=1e-3)
        # What is published must leave the quantised layers within reason of their own bits.
        assert entry.document(replace(variant, bytes=None))["tensor_bytes"] == pytest.approx(
            variant.bytes, rel=0.23
        )
    if variant.weights in FOUR_BITS:
        # Two thirds of Gemma 4's small models are tables.
        most = 0.72 if "gemma-4-e" in entry.name else 0.62
        assert shape.language_bytes < most * 2 * entry.text_parameters


def test_embeddings_and_routers_stay_in_sixteen_bits_in_all_four_bit_repositories() -> None:
    entry = CATALOG.entries["qwen3-30b-a3b"]
    for weights in FOUR_BITS:
        groups = entry.document(Variant(source="x", weights=weights))["groups"]
        kept = {name for name, (_, _, dtype) in groups.items() if dtype == "BF16"}
        assert {"model.embed_tokens.weight", "lm_head.weight", "model.layers.*.mlp.gate.weight"} <= kept
        assert "model.layers.*.self_attn.q_proj.weight" not in kept


def test_files_with_layers_that_predict_are_known_as_such() -> None:
    plain = CATALOG.find("unsloth/Qwen3.6-27B-GGUF:Q6_K")
    ahead = CATALOG.find("unsloth/Qwen3.6-27B-MTP-GGUF:Q6_K")
    assert plain is not None
    assert ahead is not None
    assert from_header(plain[0].document(plain[1])).mtp_layers == 0
    shape = from_header(ahead[0].document(ahead[1]))
    assert shape.mtp_layers == 1
    assert shape.mtp_bytes > 3e8
    assert shape.language_bytes == pytest.approx(22.454e9, rel=0.005)


@pytest.mark.parametrize("entry", CATALOG.entries.values(), ids=lambda e: e.name)
def test_variants_are_in_order_of_their_size_without_their_documents(entry: Entry) -> None:
    shapes = [from_header(entry.document(variant)) for _, variant in entry.by_size()]
    assert [size for size, _ in entry.by_size()] == pytest.approx(
        [shape.weights_bytes for shape in shapes], rel=1e-3
    )
    assert len(shapes) == len(entry.variants)
    ranks = [shape.language_bytes for shape in shapes]
    assert all(a >= b * 0.999 for a, b in itertools.pairwise(ranks))


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ({"a/b-GGUF:Q4": "Q4"}, "nothing known"),
        ({"a/b": "int3"}, "nothing known"),
        ({"a/b-GGUF:UD-Q4_K_XL": "UD-Q4_K_XL"}, "published size"),
        ({"a/b": {"weights": "awq", "bytes": "much"}}, "much"),
        ({"a/b": {"bytes": 3}}, "weights"),
    ],
)
def test_weights_that_nothing_is_known_of_are_refused(variants: dict[str, object], said: str) -> None:
    entry = {"repo": "a/b", "licence": "MIT", "parameters": 1e9, "config": {}, "variants": variants}
    with pytest.raises(InventoryError, match=said):
        parse(json.dumps({"marvin": entry}))


@pytest.mark.parametrize(
    ("model", "bytes_per_token"),
    [
        ("qwen3-4b", 147456),
        ("qwen3-30b-a3b", 98304),
        ("qwen3.6-27b", 65536),
        ("qwen3.6-35b-a3b", 20480),
        ("gpt-oss-20b", 24576),
        ("gemma-4-12b", 16384),
        ("deepseek-coder-v2-lite", 31104),
        ("glm-4.5-air", 188416),
        ("codellama-7b", 524288),
        ("glm-4.7-flash", 54144),
        ("qwen3.5-9b", 32768),
        ("qwen3.5-122b-a10b", 24576),
        ("nemotron-3-nano-30b-a3b", 6144),
        ("granite-4.0-h-small", 16384),
        ("kimi-linear-48b-a3b", 8064),
        ("laguna-xs-2.1", 40960),
        ("minimax-m2.7", 253952),
        ("gemma-4-e4b", 16384),
        ("qwen2.5-coder-7b", 57344),
    ],
)
def test_every_further_token_costs(model: str, bytes_per_token: int) -> None:
    entry = CATALOG.entries[model]
    assert from_header(entry.document(entry.variants[0])).kv_bytes_per_token() == bytes_per_token


def test_tables_that_an_encoder_looks_up_stay_in_ram() -> None:
    """A log of bge-small in 16 bits says 40.73 MiB on the GPU and 23.11 in RAM."""
    found = CATALOG.find("CompendiumLabs/bge-small-en-v1.5-gguf:F16")
    assert found is not None
    shape = from_header(found[0].document(found[1]))
    ram = shape.embedding_bytes + shape.lookup_bytes
    assert ram / 2**20 == pytest.approx(23.11, abs=0.01)
    assert (shape.weights_bytes - ram) / 2**20 == pytest.approx(40.73, abs=0.01)


@ENTRIES
def test_what_a_model_is_for_agrees_with_its_files(entry: Entry) -> None:
    shapes = [from_header(entry.document(variant)) for variant in entry.variants]
    for shape in shapes:
        # The files of a chat model that was trained to embed say nothing of it on the hub.
        assert shape.kind == entry.kind or (shape.format == "safetensors" and shape.causal)
        assert shape.format == "safetensors" or (shape.pooling or None) == entry.pooling
    assert len({shape.causal for shape in shapes}) == 1


# What `llama-fit-params` (b11549, CPU, all rows of logits) says of a header of each entry, in MiB, at four
# slots.
SAID = json.loads((Path(__file__).parent / "data" / "catalog_said.json").read_text())
CPU = Device(vendor="cpu", name="a machine", total_bytes=2**36, memory_kind="ram")


@pytest.mark.parametrize("name", [n for n, e in CATALOG.entries.items() if n in SAID])
def test_llama_cpp_says_the_same_of_the_dimensions(name: str) -> None:
    source, tokens, model, context, compute = SAID[name]
    entry = CATALOG.entries[name]
    variant = next(v for v in entry.variants if v.source == source)
    shape = from_header(entry.document(replace(variant, bytes=None)))
    request = Request(
        kind="chat",
        context=tokens // 4,
        concurrency=4,
        args={"ubatch-size": 512, "flash-attn": "on"},
        outputs="all",
    )
    terms = {t.name: t.bytes / 2**20 for t in llamacpp.footprint(shape, request, CPU).terms}
    # Without speculation llama.cpp leaves out the layers that predict.
    assert terms["model"] - shape.mtp_bytes / 2**20 == pytest.approx(model + 0.5, abs=0.6)
    assert terms["context"] == pytest.approx(context + 0.5, abs=1)
    assert 1 <= terms["compute"] / compute < 1.07


@ENTRIES
def test_parsers_agree_with_the_engine_s(entry: Entry) -> None:
    architecture = entry.config["architectures"][0]
    known = next((p for start, p in vllm.TOOL_PARSERS.items() if architecture.startswith(start)), None)
    if entry.tool_call_parser is not None and "coder" not in entry.name:
        assert entry.tool_call_parser in (known, "hermes", "qwen3_coder")


@pytest.mark.parametrize(
    "spelling",
    ["qwen/qwen3-4b", "qwen3-4b", "Qwen/Qwen3-4B-GGUF", "Qwen/Qwen3-4B-GGUF:Q4_K_M", "QWEN/Qwen3-4B-AWQ"],
)
def test_a_model_is_found_under_each_of_its_names(spelling: str) -> None:
    found = CATALOG.find(spelling)
    assert found is not None
    assert found[0].name == "qwen3-4b"


def test_what_is_not_in_it_is_not_found() -> None:
    assert CATALOG.find("Qwen/Qwen3-4") is None


def test_an_incomplete_entry_is_named() -> None:
    with pytest.raises(InventoryError, match="marvin"):
        parse("marvin: {repo: a/b, licence: MIT, parameters: 1e9}")


@pytest.mark.parametrize(
    "wrong", ["kind: poetry", "kind: embedding", "pooling: cls", "kind: rerank, pooling: x"]
)
def test_a_kind_and_a_pooling_go_together(wrong: str) -> None:
    with pytest.raises(InventoryError, match="marvin"):
        parse(f"marvin: {{repo: a/b, licence: MIT, parameters: 1e9, config: {{}}, variants: {{}}, {wrong}}}")
