"""What engines report and drivers count, beside what was planned, and what the next plan takes from it."""

from __future__ import annotations

import pytest

from homelab.engines import Footprint, Term, engines
from homelab.facts import Measurement
from homelab.inventory import load
from homelab.measured import error, learned, merged, with_measured
from homelab.placement import place
from tests.machines import survey, tiny_gguf, workstation

MIB = 2**20
LLAMA_ON_GPU = """\
load_tensors:   CPU_Mapped model buffer size =    28.69 MiB
load_tensors:        CUDA0 model buffer size =    92.10 MiB
llama_kv_cache:      CUDA0 KV buffer size =    45.00 MiB
llama_memory_recurrent: CUDA0 RS buffer size =     5.00 MiB
sched_reserve:      CUDA0 compute buffer size =    98.25 MiB
sched_reserve:  CUDA_Host compute buffer size =     5.13 MiB
"""
VLLM = """\
INFO 11-21 [gpu/model_runner.py:425] Model loading took 15.66 GiB memory and 4.1 seconds
INFO 11-21 [gpu/model_runner.py:1128] Graph capturing finished in 3 secs, took 0.11 GiB
"""


def measurement(**more: object) -> Measurement:
    values: dict[str, object] = {
        "device": "NVIDIA GeForce RTX 4090",
        "engine": "llamacpp",
        "version": "server:b1",
        "source": "/m.gguf",
        "model": "m",
        "node": "n",
        "context": 4096,
        "concurrency": 1,
        "predicted": {
            "model": 92 * MIB,
            "context": 50 * MIB,
            "compute": 100 * MIB,
            "cuda_context": 600 * MIB,
        },
        "grades": {"model": "exact", "context": "exact", "compute": "bounded", "cuda_context": "empirical"},
        "reported": {"model": 92 * MIB, "context": 50 * MIB, "compute": 98 * MIB},
        "planned_bytes": 842 * MIB,
        "used_bytes": 700 * MIB,
    }
    return Measurement.model_validate(values | more)


def test_each_engine_tells_its_buffers_in_the_names_of_our_terms() -> None:
    found = engines()["llamacpp"].reported(LLAMA_ON_GPU)
    assert {name: round(size / MIB, 2) for name, size in found.items()} == {
        "model": 92.10,
        "context": 50.0,
        "compute": 98.25,
    }
    on_cpu = engines()["llamacpp"].reported("load_tensors:   CPU_Mapped model buffer size =    92.10 MiB\n")
    assert round(on_cpu["model"] / MIB, 2) == 92.10
    assert {name: round(size / 2**30, 2) for name, size in engines()["vllm"].reported(VLLM).items()} == {
        "weights": 15.66,
        "cuda_graphs": 0.11,
    }
    assert engines()["vllm"].reported("nothing of this") == {}


def test_what_is_used_beyond_the_buffers_is_the_context_and_the_next_plan_takes_it() -> None:
    known = learned([measurement(used_bytes=1000 * MIB)], "NVIDIA GeForce RTX 4090", "llamacpp", "server:b1")
    assert known == {"cuda_context": 760 * MIB}
    terms = (
        Term(name="model", bytes=1, grade="exact"),
        Term(name="cuda_context", bytes=600 * MIB, grade="empirical", where="context"),
    )
    after = with_measured(Footprint(terms=terms, kv_cache_bytes=0, kv_cache_tokens=0), known)
    assert [(t.name, t.bytes, t.grade) for t in after.terms] == [
        ("model", 1, "exact"),
        ("cuda_context", 760 * MIB, "measured"),
    ]


def test_nothing_is_learned_from_another_card_engine_or_version() -> None:
    for other in (
        ("NVIDIA GeForce RTX 3090", "llamacpp", "server:b1"),
        ("NVIDIA GeForce RTX 4090", "vllm", "server:b1"),
        ("NVIDIA GeForce RTX 4090", "llamacpp", "server:b2"),
    ):
        assert learned([measurement()], *other) == {}


def test_a_figure_that_experience_contradicts_is_not_believed() -> None:
    graphs = {
        "engine": "vllm",
        "predicted": {"cuda_graphs": 300 * MIB},
        "grades": {"cuda_graphs": "empirical"},
        "reported": {"cuda_graphs": MIB},
    }
    tiny = measurement(**graphs)
    assert learned([tiny], "NVIDIA GeForce RTX 4090", "vllm", "server:b1") == {"cuda_graphs": 150 * MIB}
    assert learned([measurement(used_bytes=None)], "NVIDIA GeForce RTX 4090", "llamacpp", "server:b1") == {}


def test_the_newest_measurement_of_a_thing_replaces_the_older() -> None:
    first, second, other = measurement(), measurement(used_bytes=710 * MIB), measurement(context=8192)
    assert merged([first, other], [second]) == (other, second)


def test_the_error_is_a_share_of_what_is_used_and_counts_no_reserve() -> None:
    assert error(measurement(predicted={"model": 770 * MIB, "reserve": 300 * MIB})) == pytest.approx(0.1)
    assert error(measurement(used_bytes=None)) is None


def test_a_plan_for_something_new_counts_what_was_measured_on_that_card() -> None:
    wanted = load(
        (
            "gateway: {node: n}\nnodes: {n: {host: 10.0.0.1}}\nmodels: {t: {engine: "
            "llamacpp, source: /models/tiny.gguf, context: 2048}}\n"
        ),
        "i",
    )
    found = survey(n=workstation(weights=(tiny_gguf(),)))
    [before] = place(wanted, found).placements
    seen = measurement(version=before.version, used_bytes=1000 * MIB)
    [after] = place(wanted, found.model_copy(update={"measured": (seen,)})).placements
    assert after.bytes - before.bytes == 760 * MIB - next(
        t.bytes for t in before.footprint.terms if t.name == "cuda_context"
    )
    assert next(t.grade for t in after.footprint.terms if t.name == "cuda_context") == "measured"


def test_one_idle_look_takes_nothing_off_what_grows_with_use() -> None:
    """The pool of a card's context is as large as what was asked so far: at rest it is hardly there."""
    idle = measurement(used_bytes=500 * MIB)
    assert learned([idle], "NVIDIA GeForce RTX 4090", "llamacpp", "server:b1") == {"cuda_context": 600 * MIB}
    busy = measurement(used_bytes=1000 * MIB, context=8192)
    assert learned([idle, busy], "NVIDIA GeForce RTX 4090", "llamacpp", "server:b1") == {
        "cuda_context": 760 * MIB
    }


def test_what_cannot_grow_is_taken_as_it_was_measured() -> None:
    graphs = measurement(
        engine="vllm",
        predicted={"cuda_graphs": 300 * MIB, "non_torch": 150 * MIB},
        grades={"cuda_graphs": "empirical", "non_torch": "empirical"},
        reported={"cuda_graphs": 200 * MIB, "non_torch": 90 * MIB},
    )
    known = learned([graphs], "NVIDIA GeForce RTX 4090", "vllm", "server:b1")
    assert known == {"cuda_graphs": 200 * MIB, "non_torch": 150 * MIB}
