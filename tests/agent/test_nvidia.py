"""NVML is the lab's stand-in library; everything above it, pynvml included, is real."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from homelab.facts import Facts, parse_facts
from tests.agent.conftest import LAB

MIB = 1024**2
Seen = Callable[[str], Facts]


@pytest.fixture
def seen(run_agent: Callable[..., dict[str, Any]], fake_nvml: Path, tmp_path: Path) -> Seen:
    """The facts of a node with these GPUs: the name of a lab machine, or the text itself."""

    def see(gpus: str) -> Facts:
        import json

        named = LAB / "gpus" / gpus if "\n" not in gpus else tmp_path / "gpus"
        if "\n" in gpus:
            named.write_text(gpus)
        return parse_facts(
            json.dumps(
                run_agent(
                    LD_LIBRARY_PATH=str(fake_nvml),
                    FAKE_NVML=str(named),
                    FAKE_NVML_HELD=str(tmp_path / "held"),
                )
            )
        )

    return see


def test_a_desktop_gpu_gives_what_cuda_sees(seen: Seen) -> None:
    facts = seen("rtx4090")
    (gpu,) = facts.gpus
    assert (gpu.vendor, gpu.index, gpu.name, gpu.driver, gpu.cuda) == (
        "nvidia",
        0,
        "NVIDIA GeForce RTX 4090",
        "580.95.05",
        "13.0",
    )
    assert (gpu.compute_capability, gpu.pci_id, gpu.display) == ("8.9", "00000000:01:00.0", True)
    assert gpu.memory_reserved_bytes == 458 * MIB
    assert gpu.memory_total_bytes == (24564 - 458) * MIB
    assert gpu.memory_free_bytes == (24564 - 458 - 812) * MIB
    assert gpu.memory_used_bytes == 812 * MIB
    assert (gpu.power_watts, gpu.power_limit_watts, gpu.temperature_celsius, gpu.utilization_percent) == (
        22.14,
        450.0,
        41,
        3,
    )
    assert facts.problems == ()


def test_a_process_that_draws_and_computes_is_counted_once(seen: Seen) -> None:
    text = (
        (LAB / "gpus" / "rtx4090")
        .read_text()
        .replace("pid=1411", f"pid={os.getpid()}")
        .replace("pid=1;", f"pid={os.getpid()};")
    )
    (process,) = seen(text).gpus[0].processes
    me = psutil.Process()
    assert (process.pid, process.name, process.user) == (me.pid, me.name(), me.username())
    assert process.memory_bytes == 502 * MIB


def test_what_a_laptop_does_not_tell_is_null(seen: Seen) -> None:
    (gpu,) = seen("laptop3070").gpus
    assert gpu.power_limit_watts is None
    assert gpu.power_watts == 12.5


def test_each_gpu_has_its_own_processes(seen: Seen) -> None:
    first, second = seen("2x3090busy").gpus
    assert first.processes == ()
    assert [p.pid for p in second.processes] == [1]


def test_mig_slices_are_listed(seen: Seen) -> None:
    (gpu,) = seen("a100mig").gpus
    assert gpu.mig
    assert [(s.uuid, s.memory_total_bytes, s.memory_free_bytes) for s in gpu.mig_devices] == [
        ("MIG-aaaa0001-0000-5000-8000-000000000001", 19968 * MIB, 19943 * MIB),
        ("MIG-aaaa0002-0000-5000-8000-000000000002", 9856 * MIB, 9843 * MIB),
    ]


def test_a_lost_gpu_does_not_hide_the_other(seen: Seen) -> None:
    facts = seen("lost")
    assert [g.index for g in facts.gpus] == [0]
    assert [(p.source, p.message) for p in facts.problems] == [("nvidia", "GPU 1: GPU is lost")]


def test_a_gpu_lost_between_two_calls_does_not_hide_the_other(seen: Seen) -> None:
    text = (
        LAB / "gpus" / "2x3090"
    ).read_text() + "error; call=nvmlDeviceGetUtilizationRates; code=15; gpu=0\n"
    facts = seen(text)
    assert [g.index for g in facts.gpus] == [1]
    assert [p.message for p in facts.problems] == ["GPU 0: GPU is lost"]


@pytest.mark.parametrize(
    "gpus",
    [
        "spark",
        "gpu; name=NVIDIA Something New; cc=12.1\n",
        "gpu; name=NVIDIA RTX Spark N1X; total=8128; used=10; cc=12.1\n",
        "gpu; name=NVIDIA Something; total=8128; used=10; cc=12.1; addressing=2\n",
    ],
)
def test_a_chip_without_memory_of_its_own_has_the_machines(seen: Seen, gpus: str) -> None:
    facts = seen(gpus)
    (gpu,) = facts.gpus
    assert gpu.memory_kind == "unified"
    assert gpu.memory_total_bytes == facts.memory_total_bytes == psutil.virtual_memory().total
    assert gpu.memory_free_bytes is not None
    assert abs(gpu.memory_free_bytes - facts.memory_available_bytes) < 512 * MIB
    assert facts.problems == ()


def test_a_data_centre_gpu_that_addresses_the_hosts_memory_keeps_its_own(seen: Seen) -> None:
    (gpu,) = seen("gpu; name=NVIDIA GH200 480GB; total=97871; used=10; cc=9.0; addressing=2\n").gpus
    assert gpu.memory_kind == "dedicated"


def test_an_old_driver_has_only_the_first_memory_call(seen: Seen) -> None:
    text = (LAB / "gpus" / "laptop3070").read_text() + "error; call=nvmlDeviceGetMemoryInfo_v2; code=13\n"
    (gpu,) = seen(text).gpus
    assert (gpu.memory_total_bytes, gpu.memory_reserved_bytes) == (8192 * MIB, None)
    assert gpu.memory_free_bytes == (8192 - 222 - 10) * MIB


def test_memory_that_fails_is_a_problem_and_not_a_number(seen: Seen) -> None:
    text = (LAB / "gpus" / "laptop3070").read_text()
    text += (
        "error; call=nvmlDeviceGetMemoryInfo_v2; code=999\nerror; call=nvmlDeviceGetMemoryInfo; code=999\n"
    )
    facts = seen(text)
    assert facts.gpus == ()
    assert facts.problems[0].message == "GPU 0: Unknown Error"


def test_a_driver_that_was_updated_under_the_kernel_says_what_to_do(seen: Seen) -> None:
    facts = seen("mismatch")
    assert facts.gpus == ()
    (problem,) = facts.problems
    assert problem.message.startswith("Driver/library version mismatch")
    assert "reboot or reload the driver" in problem.message


def test_no_gpu_and_no_driver_is_no_problem(run_agent: Callable[..., dict[str, Any]]) -> None:
    document = run_agent()
    assert document["gpus"] == []
    assert [p for p in document["problems"] if p["source"] == "nvidia"] == []


def test_a_card_without_a_driver_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.accelerators import nvidia

    monkeypatch.setattr(nvidia, "has_card", lambda: True)
    problems: list[dict[str, str]] = []
    with contextlib.suppress(OSError):
        ctypes.CDLL("libnvidia-ml.so.1")
        pytest.skip("this machine has an NVIDIA driver")
    assert nvidia.collect(problems) == []
    assert problems == [{"source": "nvidia", "message": "NVIDIA GPU present, driver not installed"}]


@pytest.mark.parametrize(
    ("name", "unified"),
    [
        ("NVIDIA GB10", True),
        ("NVIDIA RTX Spark (N1X)", True),
        ("Orin (nvgpu)", True),
        ("NVIDIA Thor", True),
        ("NVIDIA GB100", False),
        ("NVIDIA GeForce RTX 4090", False),
        ("NVIDIA Thorium", False),
    ],
)
def test_a_chip_is_known_by_a_whole_word_of_its_name(name: str, unified: bool) -> None:
    from agent.accelerators import nvidia

    assert nvidia.is_unified(name) is unified
