"""The catalog's dimensions against what is published of the models: parameters, and sizes of
files that lie on the hub."""

from __future__ import annotations

import pytest

from homelab.engines import vllm
from homelab.errors import InventoryError
from homelab.fit_command import load_catalog
from homelab.models.catalog import Entry, parameter_count, parse
from homelab.models.header import from_header
from homelab.models.tensors import layer_kinds

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
