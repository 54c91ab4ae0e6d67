"""What is offered instead is true: typed as it says, it fits. And of several quantisations the best that
fits is taken, whichever way somebody asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from homelab import fit_command
from homelab.cli import app
from homelab.fit import Alternative, Fit
from homelab.fit_command import Question, load_catalog, places_named
from homelab.inventory import DEFAULT_CONCURRENCY, Model
from tests.models.examples import SAFETENSORS

NOBODY = "http://127.0.0.1:9"
GPUS = [
    "RTX 3060 12GB",
    "2x RTX 3060 12GB",
    "RTX 4090",
    "2x RTX 3090",
    "M4 Pro 24GB",
    "P40",
    "4x V100 SXM2 16GB",
]
ASKED = [
    "qwen3-8b",
    "qwen3-32b",
    "qwen3-30b-a3b",
    "llama-3.3-70b",
    "gpt-oss-20b",
    "gemma-3-27b",
    "qwen3.6-27b",
]
WAYS: list[dict[str, Any]] = [
    {"context": "32k", "concurrency": 4},
    {"context": "40000", "args": {"parallel": 3, "flash-attn": "on"}},
    {"context": "1M", "engine": "llamacpp", "outputs": "all"},
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOBODY)


def answered(question: Question) -> Fit:
    found = fit_command.answer(question)
    assert isinstance(found, Fit)
    return found


def typed(question: Question, a: Alternative) -> Question:
    """The question with what an alternative says to type, in place of what it changes."""
    given: dict[str, Any] = {"args": dict(question.args)}
    words = list(a.typed)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            given["source"] = word
            continue
        name, value = word.removeprefix("--"), words.pop(0)
        if name in ("context", "quant"):
            given[name] = value
        elif name == "concurrency":
            given["concurrency"] = int(value)
            given["args"].pop("parallel", None)
        else:
            given["args"][name] = int(value) if value.isdecimal() else value
    fields = {f: getattr(question, f) for f in Question.__dataclass_fields__}
    return Question(**(fields | given))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("way", range(len(WAYS)))
def test_every_alternative_fits_when_it_is_typed(gpu: str, way: int) -> None:
    offered = 0
    for source in ASKED:
        question = Question(inventory=Path("none.yml"), source=source, gpu=gpu, **WAYS[way])
        found = answered(question)
        for a in found.alternatives:
            assert a.typed, a.what
            again = answered(typed(question, a))
            assert again.verdict == "fits", (source, a.what, a.typed, again.reason)
            assert again.footprint.device_bytes <= a.bytes
            assert again.place is not None
            assert a.bytes <= again.place.free_bytes
            offered += 1
    assert offered


def test_what_an_alternative_says_of_the_inventory_is_read_there() -> None:
    question = Question(
        inventory=Path("none.yml"), source="qwen3-30b-a3b", gpu="RTX 4090", context="32k", concurrency=4
    )
    found = answered(question)
    assert {k for a in found.alternatives for k in a.written} >= {"context", "args", "concurrency"}
    for a in found.alternatives:
        written = {
            "engine": a.candidate.engine,
            "source": a.candidate.source,
            "concurrency": 4,
            "context": "32k",
        }
        text = yaml.safe_dump(written | dict(a.written))
        model = Model.model_validate(yaml.safe_load(text))
        assert model.context is not None
        assert (model.context.max, model.concurrency) == (a.request.context, a.request.concurrency)
        assert {**model.variants[0].args} == {**a.request.args}


def test_a_part_in_ram_beside_several_gpus_is_offered() -> None:
    found = answered(
        Question(inventory=Path("none.yml"), source="llama-3.3-70b", gpu="2x RTX 3060 12GB", context="8k")
    )
    assert {"--n-gpu-layers"} <= {w for a in found.alternatives for w in a.typed}
    found = answered(
        Question(inventory=Path("none.yml"), source="gpt-oss-120b", gpu="2x RTX 3090", context="32k")
    )
    experts = next(a for a in found.alternatives if "--n-cpu-moe" in a.typed)
    # The first half of the layers lies on the first GPU: the second gains from the other half only.
    assert int(experts.typed[-1]) > len(found.candidate.shape.layers) // 2


@pytest.mark.parametrize(
    "gpu", ["RTX 3060 12GB", "RTX 4090", "2x RTX 3090", "RTX PRO 6000 Workstation", "M4 Pro 48GB", "P40"]
)
def test_the_best_quantisation_that_fits_is_the_same_in_both_questions(gpu: str) -> None:
    rows = {r.model: r.found for r in fit_command.what(places_named(gpu), context=8192)}
    assert any(rows.values())
    for name, best in rows.items():
        # Encoders were made for less, and are shown with that.
        longest = min(c.shape.max_context or 8192 for c in fit_command.candidates(name, None)[0])
        context = str(min(8192, longest))
        alone = answered(Question(inventory=Path("none.yml"), source=name, gpu=gpu, context=context))
        assert (alone.verdict == "fits") == (best is not None), name
        if best is not None:
            assert (alone.candidate, alone.request) == (best.candidate, best.request)
            larger = [
                c
                for c in fit_command.candidates(name, None)[0]
                if c.shape.language_bytes > best.candidate.shape.language_bytes
            ]
            for c in larger:
                tried = fit_command.run(c.source, gpu=gpu, context=context, engine=c.engine)
                assert tried.verdict != "fits", c.source


def test_eight_bits_are_taken_where_they_fit_and_the_next_where_not() -> None:
    for gib, weights in ((7, "Q4_K_M"), (9, "Q6_K"), (12, "Q8_0")):
        found = answered(
            Question(
                inventory=Path("x"), source="qwen3-8b", gpu=f"{gib}GiB", engine="llamacpp", concurrency=1
            )
        )
        assert found.candidate.source.endswith(f":{weights}")


def test_the_default_concurrency_is_one_number_and_is_said_first() -> None:
    assert Model.model_fields["concurrency"].default == DEFAULT_CONCURRENCY == 2
    assert answered(Question(inventory=Path("x"), source="qwen3-4b", gpu="24GiB")).request.concurrency == 2
    for arguments in (["qwen3-4b", "--gpu", "24GiB"], ["--what", "--gpu", "24GiB"]):
        done = CliRunner().invoke(app, ["fit", *arguments], catch_exceptions=False)
        assert "2 requests at once, " in done.stdout.splitlines()[0]
    done = CliRunner().invoke(app, ["fit", "qwen3-4b", "--parallel", "3"], catch_exceptions=False)
    assert "3 requests at once, 8k tokens each" in done.stdout.splitlines()[0]


def test_each_of_several_gpus_is_said() -> None:
    done = CliRunner().invoke(app, ["fit", "qwen3-32b", "--gpu", "2x RTX 3090"], catch_exceptions=False)
    assert ", on 2 × RTX 3090\n" in done.stdout.replace("\n  ", " ")
    [said] = [line for line in done.stdout.splitlines() if line.startswith("fits")]
    assert said.startswith("fits  each of 2 × RTX 3090 needs ")
    assert said.endswith(" of 23.57 GiB")


def test_nothing_out_of_the_catalog_is_called_exact() -> None:
    for name, entry in load_catalog().entries.items():
        for variant in entry.variants:
            found = fit_command.run(name, engine=variant.engine, quant=variant.weights)
            assert {t.grade for t in found.footprint.terms} == {"empirical"}, (name, variant.weights)


# -- a config.json alone


def config(folder: Path, document: object, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_config_alone_is_answered_with_the_best_quantisation_that_fits(tmp_path: Path) -> None:
    path = config(tmp_path, SAFETENSORS["qwen3-8b"])
    for source in (str(path), str(tmp_path)):
        for gpu, quant, engine in (
            ("24GiB", "bf16", "vllm"),
            ("10GiB", "Q8_0", "llamacpp"),
            ("8GiB", "Q6_K", "llamacpp"),
        ):
            found = fit_command.run(source, gpu=gpu, context="4k", concurrency=1)
            assert (found.verdict, found.candidate.quant, found.candidate.engine) == ("fits", quant, engine)
            assert {t.grade for t in found.footprint.terms} == {"empirical"}
            assert any("config.json" in note for note in found.notes)
    # As the catalog has it from the same dimensions.
    known = fit_command.run("Qwen/Qwen3-8B-GGUF:Q4_K_M", endpoint=NOBODY)
    mine = fit_command.run(str(path), quant="q4_k_m")
    assert mine.footprint.terms == known.footprint.terms
    assert fit_command.run(str(path), engine="vllm", quant="awq", gpu="8GiB").candidate.quant == "awq"


def test_what_does_not_fit_of_a_config_names_the_quantisation_to_type(tmp_path: Path) -> None:
    question = Question(
        inventory=tmp_path / "none.yml",
        source=str(config(tmp_path, SAFETENSORS["qwen3-8b"])),
        gpu="12GiB",
        quant="bf16",
    )
    found = answered(question)
    assert found.verdict == "does-not-fit"
    way = next(a for a in found.alternatives if "--quant" in a.typed)
    assert way.typed == ("--quant", "Q8_0")
    assert answered(typed(question, way)).verdict == "fits"


def compressed(weights: dict[str, object]) -> dict[str, object]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


def test_a_quantisation_of_its_own_is_the_one_that_is_counted(tmp_path: Path) -> None:
    for said, quant, others in (
        ({"quant_method": "awq", "bits": 4}, "awq", True),
        ({"quant_method": "fp8"}, "fp8", True),
        ({"quant_method": "mxfp4"}, "mxfp4", True),
        (compressed({"num_bits": 4, "type": "int", "group_size": 128}), "w4a16", True),
        (compressed({"num_bits": 4, "type": "int", "group_size": 32}), "w4a16-g32", True),
        (compressed({"num_bits": 4, "type": "float", "group_size": 16}), "nvfp4", True),
        (compressed({"num_bits": 8, "type": "float"}), "fp8", True),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", True),
        ({"quant_method": "gptq", "bits": 4}, "gptq", True),
        ({"quant_method": "auto-round", "bits": 4}, "autoround", True),
        ({"quant_method": "something"}, "bf16", True),
    ):
        path = config(tmp_path, SAFETENSORS["qwen3-30b-a3b"] | {"quantization_config": said})
        assert fit_command.run(str(path), engine="vllm").candidate.quant == quant
        assert (fit_command.run(str(path), engine="llamacpp").candidate.engine == "llamacpp") is others


def test_a_config_of_mamba_and_experts_is_answered(tmp_path: Path) -> None:
    entry = fit_command.load_catalog().entries["nemotron-3-nano-30b-a3b"]
    path = config(tmp_path, entry.config)
    found = fit_command.run(str(path), engine="vllm", gpu="80GiB", context="32k")
    # 31,577,937,344 parameters, as the hub counts them.
    assert found.candidate.shape.weights_bytes == pytest.approx(2 * 31577937344, rel=1e-6)
    assert found.candidate.shape.hybrid


def test_a_model_type_that_is_not_known_is_an_estimate_and_says_so(tmp_path: Path) -> None:
    strange = SAFETENSORS["llama-3.1-8b"] | {"model_type": "marvin"}
    found = fit_command.run(str(config(tmp_path, strange)), gpu="24GiB")
    assert found.candidate.engine == "vllm"
    assert any("model_type marvin is not known here" in note for note in found.notes)
    assert 14.9 < found.footprint.terms[0].bytes / 2**30 < 15.2


BROKEN: list[tuple[object, str]] = [
    ("{", "not a config.json that can be read"),
    ("[1, 2]", "not a config.json that can be read"),
    ("[" * 100_000, "not a config.json that can be read"),
    ({}, "lacks `hidden_size`"),
    ({"model_type": "siglip_vision_model", "hidden_size": 1152, "patch_size": 14}, "vision or audio tower"),
    (SAFETENSORS["qwen3-4b"] | {"num_hidden_layers": 0}, "num_hidden_layers` as 0"),
    (SAFETENSORS["qwen3-4b"] | {"num_hidden_layers": 10**9}, "num_hidden_layers` as 1000000000"),
    (SAFETENSORS["qwen3-4b"] | {"num_hidden_layers": 10**6}, "layers"),
    (SAFETENSORS["qwen3-4b"] | {"hidden_size": -5}, "hidden_size` as -5"),
    (SAFETENSORS["qwen3-4b"] | {"hidden_size": "big"}, "hidden_size` as big"),
    (SAFETENSORS["qwen3-4b"] | {"vocab_size": 10**30}, "vocab_size` as 1000"),
    (SAFETENSORS["qwen3-4b"] | {"layer_types": ["full_attention"]}, "layer_types"),
    (SAFETENSORS["qwen3-4b"] | {"rope_scaling": {"factor": "much", "rope_type": "linear"}}, "makes no sense"),
    (SAFETENSORS["qwen3-4b"] | {"mamba_d_state": 128}, "layers that homelab does not know"),
    (SAFETENSORS["qwen3-4b"] | {"kv_lora_rank": 512}, "lacks `qk_rope_head_dim`"),
]


@pytest.mark.parametrize(("document", "said"), BROKEN, ids=range(len(BROKEN)))
def test_a_config_that_is_no_use_is_refused_with_its_reason(
    tmp_path: Path, document: object, said: str
) -> None:
    from homelab.errors import InventoryError

    with pytest.raises(InventoryError) as e:
        fit_command.run(str(config(tmp_path, document)), gpu="24GiB")
    assert said in e.value.message
    assert e.value.hint or e.value.cause


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["qwen3-4b", "--gpu", "-3GiB"], "a size is positive"),
        (["qwen3-4b", "--gpu", "24"], "neither a card nor a size"),
        (["qwen3-4b", "--gpu", "24GiB", "--context", "-1"], "no number of tokens"),
        (["qwen3-4b", "--gpu", "24GiB", "--context", "999999M"], "no model reads that many"),
        (["qwen3-4b", "--gpu", "24GiB", "--context", "9" * 500], "no number of tokens"),
        (["qwen3-4b", "--parallel", "2", "--concurrency", "3"], "said twice"),
        (["qwen3-4b", "--quant", "Q3_K_S"], "has no Q3_K_S of qwen3-4b"),
        (["Qwen/Qwen3-4B-GGUF:Q8_0", "--quant", "Q4_K_M"], "names its weights already"),
        (["--what", "--quant", "Q4_K_M"], "--quant"),
    ],
)
def test_bad_input_is_a_sentence(arguments: list[str], said: str) -> None:
    from homelab.errors import InventoryError

    with pytest.raises(InventoryError) as e:
        CliRunner().invoke(app, ["fit", *arguments], catch_exceptions=False, standalone_mode=False)
    assert said in e.value.message
    assert len(e.value.message) < 200
