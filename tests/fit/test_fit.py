from __future__ import annotations

from dataclasses import replace

import pytest

from homelab import fit
from homelab.engines import ArgValue, Device, Request
from homelab.errors import InventoryError
from homelab.fit import Candidate, Place, parse_tokens
from homelab.fit_command import load_catalog
from homelab.models.catalog import Variant
from homelab.models.header import from_header
from tests.models.examples import gguf

GIB = 2**30
FP8: dict[str, ArgValue] = {"kv-cache-dtype": "fp8"}
Q8: dict[str, ArgValue] = {"cache-type-k": "q8_0", "cache-type-v": "q8_0"}
LONG: dict[str, ArgValue] = {"hf-overrides": "{}"}  # stretched by YaRN: Qwen3 was made for 40 960 tokens


def model(name: str, weights: str) -> Candidate:
    entry = load_catalog().entries[name]
    variant = Variant(source=f"{name} {weights}", weights=weights)
    return Candidate(
        source=variant.source,
        engine=variant.engine,
        shape=from_header(entry.document(variant)),
        catalogued=True,
    )


def ask(context: int, concurrency: int = 1, args: dict[str, ArgValue] | None = None) -> Request:
    return Request(kind="chat", context=context, concurrency=concurrency, args=args or {})


def card(gib: float) -> Device:
    return Device(vendor="nvidia", name="a card", total_bytes=int(gib * GIB), compute_capability="8.9")


def place(gib: float, ram: int | None = None) -> Place:
    return Place(device=card(gib), free_bytes=int(gib * GIB), ram_bytes=ram)


# What articles promise for a card of 8, 16, 24 or 48 GB (as CUDA reports them), and what is true.
ROWS = [
    (7.65, [("qwen3-4b", "bf16", 8192, {})], False),
    (7.65, [("qwen3-4b", "fp8", 16384, FP8)], True),
    (7.65, [("qwen3-4b", "awq", 32768, FP8)], True),
    (7.65, [("qwen3-4b", "Q4_K_M", 32768, Q8)], True),
    (15.6, [("qwen3-14b", "bf16", 8192, {})], False),
    (15.6, [("qwen3-14b", "fp8", 8192, {})], False),
    (15.6, [("qwen3-14b", "awq", 32768, FP8)], True),
    (15.6, [("qwen3-14b", "Q4_K_M", 32768, Q8)], True),
    (15.6, [("qwen3-4b", "bf16", 8192, {}), ("qwen3-8b", "bf16", 8192, {})], False),
    (15.6, [("qwen3-4b", "awq", 32768, FP8), ("qwen3-8b", "awq", 32768, FP8)], True),
    (23.52, [("qwen3-30b-a3b", "bf16", 8192, {})], False),
    (23.52, [("qwen3-30b-a3b", "fp8", 8192, {})], False),
    (23.52, [("qwen3-30b-a3b", "awq", 16384, FP8), ("qwen3-4b", "awq", 8192, FP8)], True),
    (23.52, [("qwen3-30b-a3b", "Q4_K_M", 32768, {})], True),
    (23.52, [("qwen3-30b-a3b", "Q4_K_M", 32768, {}), ("qwen3-4b", "Q4_K_M", 8192, {})], False),
    (47.5, [("qwen3-30b-a3b", "awq", 65536, FP8 | LONG)] * 2, True),
    (47.5, [("qwen3-30b-a3b", "fp8", 8192, FP8)] * 2, False),
    (47.5, [("llama-3.3-70b", "awq", 16384, FP8), ("qwen3-4b", "awq", 8192, FP8)], True),
    (47.5, [("llama-3.3-70b", "fp8", 8192, FP8)], False),
    (47.5, [("llama-3.3-70b", "Q4_K_M", 16384, Q8)], True),
]


@pytest.mark.parametrize(
    ("gib", "models", "expected"),
    ROWS,
    ids=[f"{r[0]} {' + '.join(' '.join(m[:2]) for m in r[1])}" for r in ROWS],
)
def test_what_articles_promise(
    gib: float, models: list[tuple[str, str, int, dict[str, ArgValue]]], expected: bool
) -> None:
    """Several models on one card: each with its context outside of the budget."""
    found = [
        fit.take(model(name, weights), ask(context, 1, args), card(gib))
        for name, weights, context, args in models
    ]
    assert (sum(f.device_bytes for f in found) <= gib * GIB) is expected


@pytest.mark.parametrize("weights", ["bf16", "fp8", "awq"])
@pytest.mark.parametrize("cache", [{}, FP8])
def test_the_article_s_pair_fits_on_a_4090_in_no_quantisation(
    weights: str, cache: dict[str, ArgValue]
) -> None:
    """`--gpu-memory-utilization` 0.25 for the 4B and 0.60 for the 30B, 65 536 tokens each: neither has its
    share."""
    for name, share in (("qwen3-4b", 0.25), ("qwen3-30b-a3b", 0.60)):
        budget = fit.take(model(name, weights), ask(65536, 1, cache | LONG), card(23.52)).budget_bytes
        assert budget > share * 23.52 * GIB


def test_what_fits_says_its_terms_and_its_flags() -> None:
    found = fit.fit(model("qwen3-4b", "awq"), ask(16384, 4), place(23.52))
    document = fit.document(found)
    assert document["verdict"] == "fits"
    assert {t["name"] for t in document["terms"]} >= {
        "weights",
        "kv_cache",
        "activation",
        "cuda_graphs",
        "non_torch",
        "cuda_context",
        "reserve",
    }
    assert document["total_bytes"] == sum(t["bytes"] for t in document["terms"] if t["where"] != "host")
    assert document["kv_cache_tokens"] == 4 * 16384
    assert document["flags"][-2] == "--gpu-memory-utilization"
    assert document["alternatives"] == []
    assert document["device_bytes"] == int(23.52 * GIB)


def test_llama_cpp_s_terms_have_its_tool_s_names() -> None:
    found = fit.fit(Candidate(source="x", engine="llamacpp", shape=gguf("qwen3-4b")), ask(8192), None)
    assert [t.name for t in found.footprint.terms][:4] == ["model", "context", "compute", "cuda_context"]
    assert found.verdict == "no-device"
    assert "--gpu-memory-utilization" not in found.flags
    assert found.footprint.terms[0].grade == "exact"


def test_a_size_out_of_the_catalog_is_not_called_exact() -> None:
    found = fit.fit(model("qwen3-4b", "Q4_K_M"), ask(8192), None)
    assert found.footprint.terms[0].grade == "empirical"
    assert any("catalog" in note for note in found.notes)


def test_all_rows_of_logits_or_those_of_the_slots() -> None:
    candidate = Candidate(source="x", engine="llamacpp", shape=gguf("qwen3-4b"))
    slots, every = (
        fit.take(candidate, replace(ask(8192), outputs=outputs), card(24)).device_bytes
        for outputs in ("slots", "all")
    )  # type: ignore[arg-type]
    assert 200 * 2**20 < every - slots < 300 * 2**20


def test_what_does_not_fit_is_answered_with_what_does() -> None:
    wanted = ask(32768, 4)
    others = [model("qwen3-14b", w) for w in ("awq", "Q4_K_M")]
    here = place(15.6, ram=32 * GIB)
    found = fit.fit(model("qwen3-14b", "Q4_K_M"), wanted, here, others)
    assert found.verdict == "does-not-fit"
    assert {a.what.split()[0] for a in found.alternatives} >= {"a", "1"}
    for a in found.alternatives:
        assert a.bytes <= here.free_bytes
        assert a.footprint.host_bytes <= 32 * GIB
    shorter = next(a for a in found.alternatives if a.what.startswith("a context"))
    more = fit.take(shorter.candidate, ask(shorter.request.context + 1024, 4), here.device)
    assert more.device_bytes > here.free_bytes  # the nearest: another thousand tokens are too many


def test_a_cache_of_half_the_size_and_another_variant_are_offered() -> None:
    found = fit.fit(
        model("qwen3-8b", "bf16"), ask(32768, 2), place(23.52), [model("qwen3-8b", w) for w in ("fp8", "awq")]
    )
    assert found.verdict == "does-not-fit"
    assert any(a.request.args.get("kv-cache-dtype") == "fp8" for a in found.alternatives)
    assert [a.candidate.source for a in found.alternatives if "variant" in a.what] == ["qwen3-8b fp8"]


def test_experts_and_layers_can_go_to_ram() -> None:
    candidate = Candidate(source="x", engine="llamacpp", shape=gguf("qwen3-30b-a3b"))
    found = fit.fit(candidate, ask(8192), place(11.6, ram=64 * GIB))
    kept, layers = (
        next(a for a in found.alternatives if name in a.request.args)
        for name in ("n-cpu-moe", "n-gpu-layers")
    )
    assert 0 < int(str(kept.request.args["n-cpu-moe"])) < 48
    assert 0 < int(str(layers.request.args["n-gpu-layers"])) < 49
    assert not [
        a for a in fit.fit(candidate, ask(8192), place(11.6, ram=4 * GIB)).alternatives if "RAM" in a.what
    ]


def test_what_an_engine_refuses_does_not_fit_and_says_why() -> None:
    found = fit.fit(model("qwen3-4b", "bf16"), ask(65536), place(80))
    assert found.verdict == "does-not-fit"
    assert "40960" in found.reason
    assert found.alternatives[0].request.context <= 40960


def test_tokens_as_people_write_them() -> None:
    assert [parse_tokens(t) for t in ("8192", "32k", "1M")] == [8192, 32768, 2**20]
    for text in ("0", "many", "-1", "1.5k", "9" * 30):
        with pytest.raises(InventoryError):
            parse_tokens(text)


def test_a_variant_without_prediction_layers_is_offered_without_speculation() -> None:
    asked = replace(ask(8192), speculative=2)
    found = fit.fit(model("qwen3-8b", "bf16"), asked, place(12), [model("qwen3-8b", "awq")])
    (other,) = (a for a in found.alternatives if a.candidate.source != found.candidate.source)
    assert other.request.speculative == 0
    assert "speculative-config" not in other.footprint.flags
