"""Cards by name, and what is promised for cards of usual sizes. The table with its bytes is in
docs/memory.md, and compared there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from homelab import cards
from homelab.cards import parse_gpu
from homelab.cli import app
from homelab.engines import Device
from homelab.errors import InventoryError
from homelab.fit_command import places_named, run
from homelab.pipeline import load_cards
from tests.cards import ROWS, Ask, planned

# Worked out by hand from tensor bytes and cache sizes: docs/memory.md has the figures.
HOLDS = [
    False, True, True, True,
    False, False, True, True, False, True,
    False, False, False, True, True, False,
    True, False, False, True, True,
]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "asks", "holds"), [(*row, holds) for row, holds in zip(ROWS, HOLDS, strict=True)], ids=str
)
def test_a_promise_is_kept_or_refused_with_its_arithmetic(
    size: int, asks: tuple[Ask, ...], holds: bool
) -> None:
    layout = planned(size, asks)
    assert (not layout.unplaced) == holds
    assert len(layout.placements) + len(layout.unplaced) == len(asks)
    assert all(u.details[0].startswith("box GPU 0: needs ") for u in layout.unplaced)
    [slot] = [s for s in layout.slots if s.gpus]
    assert slot.free_bytes == slot.device.total_bytes - sum(p.bytes for p in layout) >= 0
    assert sum(p.gpu_memory_utilization or 0 for p in layout) < 1


GIB = 2**30
# What drivers say of cards, and where that is written: MiB of llama.cpp's `ggml_cuda_init` line on Linux
# unless another source stands there.
REPORTED = [
    ("NVIDIA GeForce RTX 5090", 31.36, "vLLM"),
    ("NVIDIA GeForce RTX 5070 Ti", 15808 / 1024, "llama.cpp"),
    ("NVIDIA GeForce RTX 5060 Ti 16GB", 15825 / 1024, "llama.cpp"),
    ("NVIDIA GeForce RTX 4090", 23.52, "vLLM; llama.cpp#23679: 24080 MiB"),
    ("NVIDIA GeForce RTX 4080 SUPER", 15937 / 1024, "llama.cpp"),
    ("NVIDIA GeForce RTX 4070", 11866 / 1024, "llama.cpp"),
    ("NVIDIA GeForce RTX 4060", 7.65, "vLLM"),
    ("NVIDIA GeForce RTX 4070 Laptop GPU", 7805 / 1024, "llama.cpp#20184"),
    ("NVIDIA GeForce RTX 4060 Laptop GPU", 7815 / 1024, "llama.cpp"),
    ("NVIDIA GeForce RTX 3090", 23.57, "vllm#10517: 23.58"),
    ("NVIDIA GeForce RTX 3090 Ti", 24112 / 1024, "llama.cpp"),
    ("NVIDIA GeForce RTX 3070", 7819 / 1024, "llama.cpp"),
    ("NVIDIA GeForce RTX 3070 Ti Laptop GPU", 7850 / 1024, "llama.cpp"),
    ("NVIDIA GeForce RTX 3060 12GB", 11906 / 1024, "llama.cpp"),
    ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97247 / 1024, "llama.cpp"),
    ("NVIDIA RTX 6000 Ada Generation", 47.5, "vLLM"),
    ("NVIDIA A100-SXM4-40GB", 39.38, "vllm#16570"),
    ("NVIDIA A100-SXM4-80GB", 81151 / 1024, "llama.cpp"),
    ("NVIDIA H100 80GB HBM3", 81081 / 1024, "llama.cpp"),
    ("NVIDIA H200", 150_109_880_320 / GIB, "PyTorch"),
    ("NVIDIA L40S", 45467 / 1024, "llama.cpp"),
    ("NVIDIA A10", 22731 / 1024, "llama.cpp"),
    ("Tesla T4", 14912 / 1024, "llama.cpp"),
    ("Tesla V100-SXM2-32GB", 32494 / 1024, "llama.cpp"),
    ("Quadro RTX 5000", 15927 / 1024, "llama.cpp"),
    ("AMD Radeon RX 7900 XTX", 24560 / 1024, "llama.cpp, HIP"),
    ("AMD Radeon RX 6800 XT", 16368 / 1024, "llama.cpp, HIP"),
    ("AMD Radeon RX 9060 XT 16GB", 16304 / 1024, "llama.cpp, HIP"),
    ("AMD Radeon AI PRO R9700", 32624 / 1024, "llama.cpp, HIP"),
    ("Intel(R) Arc(TM) A770 Graphics 16GB", 16225 / 1024, "llama.cpp, SYCL"),
    ("Intel Arc B580 Graphics", 12168 / 1024, "llama.cpp, SYCL"),
]


def asked(text: str) -> Device:
    return parse_gpu(text, load_cards())


@pytest.mark.parametrize(("text", "gib", "source"), REPORTED)
def test_a_card_has_what_its_driver_reports(text: str, gib: float, source: str) -> None:
    assert asked(text).total_bytes / GIB == pytest.approx(gib, abs=0.006), source


@pytest.mark.parametrize(
    ("text", "name", "gib"),
    [
        ("RTX 3060 Ti", "RTX 3060 Ti", 7.5),  # and no 12 GB of an RTX 3060
        ("RTX 4090 Laptop", "RTX 4090 Laptop", 15.4),  # and no 24 GB of the card for desktops
        ("rtx 4060ti 8 gib", "RTX 4060 Ti 8GB", 7.5),
        ("GeForce RTX 3080 Mobile 16GB", "RTX 3080 Laptop 16GB", 15.4),
        ("4090", "RTX 4090", 23.5),
        ("7900xtx", "RX 7900 XTX", 24.0),
        ("RTX 4090 24GB", "RTX 4090", 23.5),
        ("nvidia t4", "T4", 14.6),
        ("W7900", "PRO W7900", 47.8),
        ("Arc Pro B60", "Arc Pro B60", 23.9),
        ("P40", "P40", 21.9),
    ],
)
def test_a_name_is_one_card(text: str, name: str, gib: float) -> None:
    device = asked(text)
    assert (device.name, round(device.total_bytes / GIB, 1)) == (name, gib)


def test_every_card_is_found_by_each_of_its_names() -> None:
    known = load_cards()
    rows = [
        (group, row)
        for group in yaml.safe_load((Path(cards.__file__).parent / "cards.yml").read_text())["groups"]
        for row in group["cards"]
    ]
    assert len(known.entries) == len(rows) >= 300
    brands = {"nvidia": "NVIDIA GeForce ", "amd": "AMD Radeon ", "intel": "Intel(R) ", "apple": "Apple "}
    named = [row["name"] for _, row in rows]
    owners: dict[str, set[str]] = {}
    for group, row in rows:
        for text in (row["name"], *row.get("aliases", ())):
            exact = f"{text} {row['gb']}GB"
            # The plain name too, where the card has it for itself.
            for form in (exact, *([text] if named.count(row["name"]) == 1 else ())):
                for written in (form, form.upper(), brands[group["vendor"]] + form, form.replace(" ", "")):
                    card = known.find(written)
                    assert card is not None, written
                    assert (card.gb, card.name.startswith(row["name"])) == (row["gb"], True), written
                owners.setdefault(cards.plain(form), set()).add(f"{row['name']} {row['gb']}GB")
    assert [name for name, of in owners.items() if len(of) > 1] == []
    for _, row in rows:
        for text in row.get("also", ()):
            assert len(known.names[cards.plain(text)]) > 1, text


def test_every_card_says_where_its_figures_are_from() -> None:
    document = yaml.safe_load((Path(cards.__file__).parent / "cards.yml").read_text())
    for card in load_cards().entries.values():
        assert card.sources and set(card.sources) <= set(document["sources"]), card.name
        assert 0 < card.usable_bytes <= card.reports_bytes < card.gb * GIB, card.name
        assert card.gb_per_s is None or 30 <= card.gb_per_s <= 8000, card.name
        assert card.tflops is None or 0 < card.tflops <= 2500, card.name
        assert (card.compute_capability is None) == (card.vendor != "nvidia"), card.name


def test_what_is_derived_is_no_more_than_what_is_reported() -> None:
    document = yaml.safe_load((Path(cards.__file__).parent / "cards.yml").read_text())
    for group in document["groups"]:
        kind = {"unified": group.get("unified", False), "ecc": group.get("ecc", False)}
        for row in group["cards"]:
            if mib := row.get("reports_mib"):
                assert cards.derived(group["vendor"], row["gb"], **kind) <= mib, row


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("RTX 4060 Ti", ["RTX 4060 Ti 16GB", "RTX 4060 Ti 8GB"]),
        ("NVIDIA GeForce RTX 3060", ["RTX 3060 12GB", "RTX 3060 8GB"]),
        ("RTX 3080 Laptop", ["RTX 3080 Laptop 16GB", "RTX 3080 Laptop 8GB"]),
        ("rtx 6000", ["RTX PRO 6000 Server", "RTX 6000 Ada", "Quadro RTX 6000"]),
        ("A100 80GB", ["A100 SXM4 80GB", "A100 PCIe 80GB"]),
        ("2x H100", ["H100 SXM", "H100 PCIe", "H100 NVL"]),
        ("M4 Pro", ["M4 Pro 24GB", "M4 Pro 48GB", "M4 Pro 64GB"]),
        ("Ryzen AI Max+ 395", ["Strix Halo 128GB", "Strix Halo 64GB"]),
    ],
)
def test_a_name_of_several_cards_is_asked_about(text: str, choices: list[str]) -> None:
    with pytest.raises(InventoryError, match="There are several") as e:
        asked(text)
    assert all(f"`{choice}`" in e.value.hint for choice in choices)
    assert all(asked(choice).name == choice for choice in choices)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("Quadro T400", "No GPU `Quadro T400` is known", "24GiB"),
        ("RTX 4091", "did you mean `RTX 4090`", "24GiB"),
        ("RTX 4090 48GB", "did you mean `RTX 4090 (24 GB)`", "24GiB"),
        ("RTX 4060 Ti 12GB", "`RTX 4060 Ti 16GB` or `RTX 4060 Ti 8GB`", "24GiB"),
        ("AMD RTX 4090", "No GPU", "24GiB"),
        ("RTX", "No GPU", "24GiB"),
        ("NVIDIA", "No GPU", "24GiB"),
        ("", "No GPU", "24GiB"),
        ("4090x", "No GPU", "24GiB"),
        ("1e9GiB", "No GPU", "24GiB"),
        ("a" * 5000, "No GPU", "24GiB"),
        ("24", "neither a card nor a size", "--gpu 24GiB"),
        ("8192", "neither a card nor a size", "--gpu 8192GiB"),
        ("6000", "neither a card nor a size", "unit"),
        ("-3GiB", "a size is positive", "24GiB"),
        ("0GiB", "a size is positive", "24GiB"),
        ("-0.0GiB", "a size is positive", "24GiB"),
        ("-24", "neither a card nor a size", "unit"),
        ("999999999999TiB", "no GPU has that much", "24GiB"),
        ("0x RTX 3090", "0 GPUs", "1 to 64"),
        ("-1x RTX 3090", "-1 GPUs", "1 to 64"),
        ("99x RTX 3090", "99 GPUs", "1 to 64"),
        ("1000x24GiB", "1000 GPUs", "1 to 64"),
        ("2x DGX Spark", "has one GPU", "one of them"),
    ],
)
def test_what_is_no_gpu_is_refused_with_what_to_write(text: str, said: str, hint: str) -> None:
    with pytest.raises(InventoryError) as e:
        asked(text)
    assert said in e.value.message
    assert hint in e.value.hint
    assert len(e.value.message) < 250


@pytest.mark.parametrize(
    ("text", "gib", "count"),
    [
        ("24GiB", 24, 1),
        ("24 GB", 22.35, 1),
        ("23.5gib", 23.5, 1),
        ("2x RTX 3090", 23.57, 2),
        ("4x24GiB", 24, 4),
        ("8192MiB", 8, 1),
    ],
)
def test_a_gpu_is_a_size_or_several(text: str, gib: float, count: int) -> None:
    device = asked(text)
    assert device.total_bytes / GIB == pytest.approx(gib, abs=0.01)
    assert (device.count, device.memory_kind) == (count, "dedicated")


@pytest.mark.parametrize(
    ("text", "vendor", "total", "usable", "vllm"),
    [
        # CUDA's 122500 MiB, of which 116953 are free on an idle one (llama.cpp's device list).
        ("DGX Spark", "nvidia", 122500 / 1024, 116953 / 1024, True),
        ("NVIDIA GB10", "nvidia", 122500 / 1024, 116953 / 1024, True),
        ("Jetson AGX Orin 64GB", "nvidia", 62827 / 1024, 61803 / 1024, True),
        # AMD's Variable Graphics Memory: 96 of 128 GB.
        ("Strix Halo 128GB", "amd", 96, 96, False),
        ("Radeon 8060S 64GB", "amd", 48, 48, False),
        # Metal: 38654.71 MB of 48 GB, 11453.25 of 16, 103079.22 of 128.
        ("M4 Pro 48GB", "apple", 36, 36, False),
        ("Apple M1 16GB", "apple", 11453.25e6 / GIB, 11453.25e6 / GIB, False),
        ("M2 Ultra 128GB", "apple", 103079.22e6 / GIB, 103079.22e6 / GIB, False),
    ],
)
def test_unified_memory_has_a_pool_and_the_engines_that_run_there(
    text: str, vendor: str, total: float, usable: float, vllm: bool
) -> None:
    [place] = places_named(text)
    device = place.device
    assert (device.vendor, device.memory_kind) == (vendor, "unified")
    assert device.total_bytes / GIB == pytest.approx(total, abs=0.001)
    assert place.free_bytes / GIB == pytest.approx(usable, abs=0.001)
    assert f"{place.free_bytes / GIB:.1f} GiB for models" in place.label
    found = run("qwen3-4b", engine="llamacpp", gpu=text)
    assert found.verdict == "fits"
    found = run("qwen3-4b", engine="vllm", gpu=text)
    assert (found.verdict == "fits") == vllm
    if not vllm:
        assert found.reason == f"homelab runs vLLM on NVIDIA GPUs only, and {device.name} is {vendor}"
        assert run("qwen3-4b", gpu=text).candidate.engine == "llamacpp"


def test_engines_are_told_what_a_named_card_can_compute() -> None:
    fp8 = {"kv-cache-dtype": "fp8"}
    assert run("qwen3-4b", engine="vllm", gpu="RTX 4090", args=fp8).verdict == "fits"
    found = run("qwen3-4b", engine="vllm", gpu="RTX 2080 Ti", args=fp8)
    assert "needs compute capability 8.9 for this model, and RTX 2080 Ti has 7.5" in found.reason
    assert "needs compute capability 7.5" in run("qwen3-4b", engine="vllm", gpu="P40").reason


@pytest.mark.parametrize(
    ("name", "gb_per_s", "tflops"),
    [
        # Vendor specifications: memory bandwidth, and FP16 by tensor cores (dense, sums in FP32).
        ("RTX 3090", 936.2, 71),
        ("RTX 4090", 1008, 165.2),
        ("RTX 5090", 1792, 209.5),
        ("RTX 2080 Ti", 616, 53.8),
        ("RTX A6000", 768, 154.8),
        ("RTX 6000 Ada", 960, 364.2),
        ("L40S", 864, 362),
        ("A100 SXM4 80GB", 2039, 312),
        ("H100 SXM", 3350, 989),
        ("RX 7900 XTX", 960, 122.8),
        ("RX 9070 XT", 644.6, 194.6),
        ("MI300X", 5300, 1307.4),
        ("M4 Max 128GB", 546, 15.05),
        ("M3 Max 36GB", 300, 10.74),
        ("M5 16GB", 153, None),
        ("DGX Spark", 273, 125),
        ("Strix Halo 128GB", 256, 59.4),
    ],
)
def test_speeds_are_those_of_the_vendor(name: str, gb_per_s: float, tflops: float | None) -> None:
    card = load_cards().entries[name]
    assert card.gb_per_s == gb_per_s
    assert card.tflops == (tflops if tflops is None else pytest.approx(tflops, rel=0.005))


def told(*arguments: str) -> dict[str, Any]:
    """What `homelab fit --json` says."""
    done = CliRunner().invoke(app, ["fit", *arguments, "--json"], catch_exceptions=False)
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("text", "gib", "source"), REPORTED)
def test_fit_reckons_with_what_the_driver_reports(text: str, gib: float, source: str) -> None:
    answer = told("qwen3-0.6b", "--gpu", text, "--context", "4k", "--engine", "llamacpp")
    assert answer["device_bytes"] / GIB == pytest.approx(gib, abs=0.006), source
    assert answer["verdict"] == "fits"
    assert (answer["device_count"], answer["concurrency"]) == (1, 2)


def test_enough_cards_have_a_driver_s_figure_beside_them() -> None:
    assert len({text for text, _, _ in REPORTED}) >= 25
