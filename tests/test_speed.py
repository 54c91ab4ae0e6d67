"""Predicted speeds: beside what people published, and how they move with what they depend on."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from homelab.cards import parse_gpu
from homelab.cli import app
from homelab.engines import Device, Efficiency, Request, engines
from homelab.fit import Candidate
from homelab.fit_command import candidates
from homelab.models.shape import ModelShape
from homelab.pipeline import load_cards
from homelab.speed import Speed, backend, document, predict
from tests.machines import gpu, machine, survey

sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "fit"))
bench: Any = importlib.import_module("speed")


def asked(
    name: str, card: str, *, context: int = 8192, quant: str | None = None, **args: Any
) -> Speed | None:
    """A model of the catalog on a card by name, whether it fits or not."""
    found: Candidate = candidates(name, None, quant=quant)[0][0]
    return on(found.shape, parse_gpu(card, load_cards()), found.engine, context, args)


def on(
    shape: ModelShape,
    device: Device,
    engine: str,
    context: int,
    args: dict[str, Any] | None = None,
    **more: Any,
) -> Speed | None:
    request = Request(kind=shape.kind, context=context, concurrency=1, args=args or {}, **more)
    footprint = engines()[engine].footprint(shape, request, device)
    return predict(shape, request, footprint, device, engine=engine)


def known(speed: Speed | None) -> Speed:
    assert speed is not None
    return speed


# -- beside what was published


def groups() -> dict[tuple[str, str, str], list[Any]]:
    found: dict[tuple[str, str, str], list[Any]] = {}
    for c in bench.results()[0]:
        found.setdefault((c.row["engine"], backend(bench.device(c.row)), c.measure), []).append(c)
    return found


@pytest.mark.parametrize(("measure", "median", "within"), [("decode", 0.12, 0.85), ("prefill", 0.27, 0.6)])
def test_runs_that_nothing_was_fitted_to_come_out(measure: str, median: float, within: float) -> None:
    errors = [abs(c.error) for c in bench.results()[0] if c.measure == measure and c.row["held_out"]]
    assert len(errors) > 90
    assert statistics.median(errors) <= median
    assert sum(e <= bench.WITHIN for e in errors) / len(errors) >= within


def test_most_runs_of_every_kind_of_card_lie_within_the_spread_that_is_said() -> None:
    for key, of in groups().items():
        if key[1] not in engines()[key[0]].EFFICIENCIES:
            continue  # taken from other cards
        assert sum(abs(c.error) <= c.spread for c in of) >= len(of) * 0.65, key


def test_every_efficiency_has_runs_behind_it_and_a_source() -> None:
    seen = {(engine, kind) for engine, kind, _ in groups()}
    for name, engine in engines().items():
        for kind, efficiency in engine.EFFICIENCIES.items():
            assert (name, kind) in seen
            assert efficiency.sources and isinstance(efficiency, Efficiency)


# -- what it depends on


def test_a_full_cache_and_more_weights_are_slower() -> None:
    short, long = known(asked("qwen3-8b", "RTX 4090")), known(asked("qwen3-8b", "RTX 4090", context=32768))
    assert long.decode_tokens_per_s < short.decode_tokens_per_s < short.decode_empty_tokens_per_s
    assert long.decode_empty_tokens_per_s == short.decode_empty_tokens_per_s
    small = known(asked("qwen3-8b", "RTX 4090", quant="Q4_K_M"))
    large = known(asked("qwen3-8b", "RTX 4090", quant="Q8_0"))
    assert small.decode_tokens_per_s > 1.4 * large.decode_tokens_per_s
    seconds = [known(asked("qwen3-8b", "RTX 4090", context=n)).prompt_seconds(n) for n in (8192, 32768)]
    assert seconds[0] is not None and seconds[1] is not None and seconds[1] > 4 * seconds[0]


def test_a_mixture_reads_its_active_experts() -> None:
    dense, mixture = known(asked("qwen3-32b", "H100 PCIe")), known(asked("qwen3-30b-a3b", "H100 PCIe"))
    assert mixture.decode_empty_tokens_per_s > 3 * dense.decode_empty_tokens_per_s


def test_layers_take_turns_in_llama_cpp_and_are_shared_in_vllm() -> None:
    one = known(asked("qwen3-14b", "RTX 3090", quant="Q4_K_M"))
    two = known(asked("qwen3-14b", "2x RTX 3090", quant="Q4_K_M"))
    assert two.decode_tokens_per_s == pytest.approx(one.decode_tokens_per_s)
    one, two = (known(asked("qwen3-14b", card, quant="awq")) for card in ("RTX 3090", "2x RTX 3090"))
    assert 1.1 < two.decode_tokens_per_s / one.decode_tokens_per_s < 2


def test_what_lies_in_ram_is_slow_and_said_to_be_assumed() -> None:
    there = known(asked("qwen3-32b", "RTX 4090", quant="Q4_K_M"))
    half = known(asked("qwen3-32b", "RTX 4090", quant="Q4_K_M", **{"n-gpu-layers": 32}))
    assert half.decode_tokens_per_s < there.decode_tokens_per_s / 3
    assert half.spread > there.spread and "RAM" in half.assumed[0]
    experts = known(asked("qwen3-30b-a3b", "RTX 4090", quant="Q4_K_M", **{"n-cpu-moe": 48}))
    layers = known(asked("qwen3-30b-a3b", "RTX 4090", quant="Q4_K_M", **{"n-gpu-layers": 0}))
    assert experts.decode_tokens_per_s > layers.decode_tokens_per_s


@pytest.mark.parametrize("card", ["RTX 4090", "2x RTX 5090"])
@pytest.mark.parametrize("quant", ["fp8"])
def test_drafts_gain_and_widen_the_spread(card: str, quant: str) -> None:
    shape = candidates("qwen3.6-27b", None, quant=quant)[0][0].shape
    device = parse_gpu(card, load_cards())
    plain, fast = (known(on(shape, device, "vllm", 8192, speculative=n)) for n in (0, 2))
    assert 1.3 < fast.decode_tokens_per_s / plain.decode_tokens_per_s < 2.2
    assert fast.spread > plain.spread


def test_what_is_looked_up_in_the_text_is_not_counted_on() -> None:
    shape = candidates("qwen3-8b", None, quant="awq")[0][0].shape
    device = parse_gpu("RTX 4090", load_cards())
    ngram = {"speculative-config": '{"method":"ngram","num_speculative_tokens":4}'}
    assert on(shape, device, "vllm", 8192, ngram) == on(shape, device, "vllm", 8192)


# -- what is not known


def test_unknown_is_not_guessed() -> None:
    shape = candidates("qwen3-8b", None, quant="Q4_K_M")[0][0].shape
    assert on(shape, parse_gpu("24GiB", load_cards()), "llamacpp", 8192) is None
    cpu = Device(vendor="cpu", name="CPU", total_bytes=64 << 30, memory_kind="ram", gb_per_s=80)
    assert on(shape, cpu, "llamacpp", 8192) is None
    laptop = known(on(shape, parse_gpu("RTX 3070 Laptop", load_cards()), "llamacpp", 8192))
    assert laptop.prefill_tokens_per_s is None and laptop.prompt_seconds(8192) is None
    old = known(on(shape, parse_gpu("P40", load_cards()), "llamacpp", 8192))
    assert old.prefill_tokens_per_s is None and old.decode_tokens_per_s > 5
    assert document(None) is None


def test_a_kind_of_card_without_figures_takes_its_vendor_s_and_says_so() -> None:
    spark = known(asked("gpt-oss-120b", "DGX Spark", quant="mxfp4"))
    assert spark.spread >= 0.5 and spark.assumed == ("what vllm reaches of other nvidia cards",)


# -- a node's card, by the name that its driver gives


@pytest.mark.parametrize(
    ("name", "total_mib", "gb_per_s"),
    [
        ("NVIDIA GeForce RTX 4090", 24106, 1008),
        ("NVIDIA GeForce RTX 3060", 11910, 360),
        ("NVIDIA GeForce RTX 3060", 7805, 240),  # the one with 8 GB has another memory
        ("NVIDIA GeForce RTX 3080 Ti Laptop GPU", 15983, 512),
        ("NVIDIA GeForce RTX 3070 Laptop GPU", 7970, 448),
        ("NVIDIA GeForce RTX 9999", 24106, None),
        ("NVIDIA GeForce RTX 4090", 8000, None),  # a slice, or something else that is called so
    ],
)
def test_a_node_s_card_is_looked_up_by_its_exact_name(
    name: str, total_mib: int, gb_per_s: float | None
) -> None:
    device = Device(vendor="nvidia", name=name, total_bytes=total_mib << 20)
    assert load_cards().known(device).gb_per_s == gb_per_s
    assert load_cards().known(replace(device, vendor="amd")).gb_per_s is None


# -- where it is shown


def homelab(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    return done.output


def test_fit_says_it_and_its_json_has_it() -> None:
    question = ("fit", "qwen3-8b", "--gpu", "RTX 4090", "-c", "32k", "--quant", "awq")
    said = homelab(*question)
    assert "speed  about " in said and "a prompt of 32k tokens takes about " in said
    speed = json.loads(homelab(*question, "--json"))["speed"]
    assert speed["context"] == 32768 and speed["decode_tokens_per_s"] > 20 and speed["slow"] == ""
    assert json.loads(homelab("fit", "qwen3-8b", "--gpu", "24GiB", "--json"))["speed"] is None


def test_an_alternative_that_is_slow_shows_it() -> None:
    done = CliRunner().invoke(app, ("fit", "qwen3-32b", "--gpu", "RTX 3070", "--quant", "Q4_K_M", "--json"))
    layers = [a for a in json.loads(done.output)["alternatives"] if "n-gpu-layers" in a["args"]]
    assert layers and layers[0]["speed"]["slow"].startswith("about ")


def planned(tmp_path: Path, context: int, *verb: str) -> str:
    """qwen3-32b with half of it in RAM, on a node with an RTX 3090."""
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(
        "gateway: {node: box}\nnodes: {box: {host: 192.168.1.9}}\n"
        "models:\n  slow:\n    engine: llamacpp\n    source: /m/slow.gguf\n"
        f"    context: {context}\n    concurrency: 1\n    args: {{n-gpu-layers: 20}}\n"
    )
    header = candidates_header("qwen3-32b", "Q4_K_M")
    card = gpu("NVIDIA GeForce RTX 3090", 24108)
    facts = survey(box=machine("box", card, address="192.168.1.9", weights=(weights_of(header),)))
    (tmp_path / "facts.json").write_text(facts.model_dump_json())
    return homelab("-i", str(inventory), *verb, "--facts", str(tmp_path / "facts.json"))


def candidates_header(name: str, weights: str) -> dict[str, Any]:
    from homelab.fit_command import load_catalog

    entry = load_catalog().entries[name]
    return entry.document(next(v for v in entry.variants if v.weights == weights))


def weights_of(header: dict[str, Any]) -> Any:
    from homelab.facts import Weights

    size = header["file_bytes"]
    return Weights(source="/m/slow.gguf", path="/m/slow.gguf", present=True, bytes=size, header=header)


def test_a_plan_says_what_is_too_slow_without_being_asked(tmp_path: Path) -> None:
    said = planned(tmp_path, 8192, "plan")
    assert "slow  slow on box: about " in said


@pytest.mark.parametrize("verb", [("why", "slow"), ("plan", "-v")])
def test_why_and_a_verbose_plan_say_how_fast(tmp_path: Path, verb: Sequence[str]) -> None:
    said = planned(tmp_path, 8192, *verb)
    assert "How fast" in said and "tokens/s with a full context" in said and "assumed: RAM" in said


def test_a_plan_s_json_has_it(tmp_path: Path) -> None:
    plan = json.loads(planned(tmp_path, 8192, "plan", "--json"))
    assert plan["placements"][0]["speed"]["slow"]
    why = json.loads(planned(tmp_path, 8192, "why", "slow", "--json"))
    assert why["placements"][0]["speed"] == plan["placements"][0]["speed"]
