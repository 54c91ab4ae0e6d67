"""People's measured peaks beside the prediction (`bench/fit/household.py`), and the bench that measures on a
GPU as far as it goes without one."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from homelab.fit_command import load_catalog
from homelab.models import hub
from homelab.models.header import from_header
from homelab.pipeline import load_cards

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "bench" / "fit"), str(ROOT / "bench" / "fit" / "gpu")]

household = importlib.import_module("household")
models = importlib.import_module("models")
run = importlib.import_module("run")

SOURCES = ("noonghunna/club-3090@4a29ab57:", "noonghunna/club-3090#", "sudoingX/qwen38-mtp@c7bc415:")
COUNTED = [row for row in household.ROWS if "left_out" not in row]


def _case(row: dict[str, Any]) -> str:
    return str(row["case"])


def test_every_row_has_a_source_and_a_peak_or_the_reason_why_not() -> None:
    for row in household.ROWS:
        assert row["source"].startswith(SOURCES), row["source"]
        assert row["published"]
        assert row.get("left_out") or row["peak_mib"], row["case"]
    assert len({(r["source"], r["case"]) for r in household.ROWS}) == len(household.ROWS)


@pytest.mark.parametrize("row", COUNTED, ids=_case)
def test_what_was_seen_goes_into_the_card(row: dict[str, Any]) -> None:
    card = load_cards().entries[row["card"]]
    peaks = row["peak_mib"] if isinstance(row["peak_mib"], list) else [row["peak_mib"]]
    assert all(0.3 * card.reports_bytes < peak * 2**20 < card.reports_bytes * 1.01 for peak in peaks)
    assert row["model"]["catalog"] in load_catalog().entries


def test_a_model_has_the_size_that_is_published() -> None:
    row = next(r for r in COUNTED if r["engine"] == "llamacpp" and r["model"].get("bytes_with_mtp"))
    shape = household.shape(row)
    assert shape.weights_bytes == pytest.approx(row["model"]["bytes"], rel=1e-4)
    assert shape.mtp_layers == 1 and shape.mtp_bytes > 0
    beside = {**row, "model": {**row["model"], "bytes_with_mtp": False}}
    assert household.shape(beside).weights_bytes > row["model"]["bytes"] + 200e6


@pytest.mark.parametrize("row", COUNTED, ids=_case)
def test_what_ran_is_not_refused(row: dict[str, Any]) -> None:
    assert household.compared(row).predicted > 0


@pytest.mark.parametrize("row", COUNTED, ids=_case)
def test_no_run_took_more_than_prediction_and_margin(row: dict[str, Any]) -> None:
    found = household.compared(row)
    assert found.beyond <= 0, f"{found.published:.0f} MiB seen, {found.predicted:.0f} + {found.margin:.0f}"


@pytest.mark.parametrize("engine", ["llamacpp", "vllm"])
def test_the_median_error_is_within_five_percent(engine: str) -> None:
    errors = [abs(household.compared(row).error) for row in COUNTED if row["engine"] == engine]
    assert statistics.median(errors) <= 0.05


def test_a_vllm_with_a_utilisation_fills_it() -> None:
    row = next(r for r in COUNTED if "gpu-memory-utilization" in r["args"] and r["count"] == 1)
    more = {
        **row,
        "args": {**row["args"], "gpu-memory-utilization": row["args"]["gpu-memory-utilization"] - 0.1},
    }
    total = load_cards().entries[row["card"]].reports_bytes / 2**20
    assert household.compared(row).predicted - household.compared(more).predicted == pytest.approx(total / 10)


@pytest.mark.parametrize("name", ["sliding", "hybrid"])
def test_the_models_made_for_the_gpu_bench_are_what_their_headers_say(name: str, tmp_path: Path) -> None:
    header = models.document(name, layers=4)
    file = models.write(tmp_path, name, header)
    read = hub.read_file(file)
    shape = from_header(read)
    assert shape.weights_bytes == from_header(header).weights_bytes
    assert file.stat().st_size > shape.weights_bytes
    assert shape.heads == 8 * shape.kv_heads
    assert shape.hybrid == (name == "hybrid") and shape.mtp_layers == (name == "hybrid")
    # The last tensor ends with what its type makes of the pattern, not with a hole.
    assert file.read_bytes()[-models.household.MIB :].strip(b"\0")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_the_bench_says_what_is_missing_without_a_gpu() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "fit" / "gpu")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "No NVIDIA GPU" in done.stderr and "--cpu" in done.stderr


def test_a_buffer_that_is_reserved_again_counts_once() -> None:
    log = (
        "load_tensors:        CUDA0 model buffer size =   100.00 MiB\n"
        "load_tensors:   CPU_Mapped model buffer size =   900.00 MiB\n"
        "llama_kv_cache:      CUDA0 KV buffer size =    20.00 MiB\n"
        "sched_reserve:       CUDA0 compute buffer size =    69.00 MiB\n"
        "sched_reserve:   CUDA_Host compute buffer size =     5.00 MiB\n"
        "llama_kv_cache:      CUDA0 KV buffer size =    20.00 MiB\n"
        "sched_reserve:       CUDA0 compute buffer size =    57.00 MiB\n"
        "sched_reserve:       CUDA0 compute buffer size =    57.00 MiB\n"
    )
    assert run.buffers(log) == 100 + 2 * 20 + 69 + 57


def test_a_peak_is_what_came_on_top() -> None:
    readings = iter([100, 100, 300, 200, *[150] * 10_000])
    with run.Peak(lambda: next(readings) * run.MIB) as highest:
        while highest.mib < 200:
            pass
    assert highest.mib == 200


def test_a_server_that_does_not_start_is_told_with_its_log() -> None:
    argv = [sys.executable, "-c", "import sys; sys.exit('no such card')"]
    with pytest.raises(RuntimeError, match="no such card"):
        run.peak(argv, {}, "/completion", lambda pid: 0)


def test_a_server_is_asked_and_stopped() -> None:
    code = (
        "import http.server, json, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "    def do_POST(self):\n"
        "        body = self.rfile.read(int(self.headers['Content-Length']))\n"
        "        print('asked', len(json.loads(body)['prompt']), flush=True)\n"
        "        block = bytes(64 << 20)\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(block[:1])\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    argv = [sys.executable, "-c", code, "{port}"]
    mib, log = run.peak(argv, {"prompt": [1, 2, 3]}, "/completion", run.resident)
    assert mib > 5 and "asked 3" in log
    assert json.dumps(log)
