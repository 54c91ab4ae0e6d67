"""The long prompt that a healthy engine is tried with, against a server that answers, refuses, dies or takes
its time."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from homelab.asked import same_model
from homelab.deploy.events import Event
from homelab.deploy.trial import try_out
from homelab.engines import Request, llamacpp, vllm
from homelab.errors import DeployError
from homelab.inventory import Model
from homelab.nodes.local import LocalSession
from homelab.service import ENVIRONMENT_FILE, Service
from tests.test_deploy_runtimes import FROM_HUB, MODEL, engine_of

KEY = "sk-of-the-engine"


@contextmanager
def engine(answer: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """A server on a port of its own, and what it was asked."""
    asked: list[dict[str, Any]] = []
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
            if answer == "hangs":
                release.wait(30)
            if answer == "dies":
                self.connection.close()
                return
            self.send_response(500 if answer == "refuses" else 200)
            self.end_headers()
            self.wfile.write(b'{"error": "CUDA error: out of memory"}' if answer == "refuses" else b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1], asked
        finally:
            release.set()
            server.shutdown()
            thread.join()


def tried(service: Service, home: Path, port: int, seconds: float = 20) -> list[str]:
    """What the deploy says while it tries."""
    here = replace(service.unit, address="127.0.0.1", port=port, python=sys.executable)
    service = replace(service, unit=here)
    (home / service.directory).mkdir(parents=True, exist_ok=True)
    (home / service.directory / ENVIRONMENT_FILE).write_text(f"OTHER=1\n{here.key_variable}='{KEY}'\n")
    said: list[Event] = []

    async def last_log() -> str:
        return "its last words"

    asyncio.run(try_out(LocalSession("n"), service, last_log, said.append, seconds))
    return [event.text for event in said]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_as_many_long_prompts_as_were_planned_are_sent_at_once_with_its_key(home: Path) -> None:
    with engine("answers") as (port, asked):
        said = tried(engine_of(MODEL), home, port)
    assert said == ["a prompt of 1 984 tokens × 2"]
    assert len(asked) == 2
    for one in asked:
        assert (one["path"], one["key"]) == ("/v1/completions", f"Bearer {KEY}")
        assert (one["model"], one["max_tokens"], len(one["prompt"])) == ("t", 1, 2048 - 64)
    assert asked[0]["prompt"] != asked[1]["prompt"]  # or a cache of prefixes would answer the second


def test_an_engine_that_has_no_memory_for_it_is_not_healthy(home: Path) -> None:
    with engine("refuses") as (port, _), pytest.raises(DeployError) as e:
        tried(engine_of(MODEL), home, port)
    assert e.value.message == (
        "`t` on node `n` is healthy, and did not answer prompts of 1 984 tokens, 2 at once"
    )
    assert e.value.cause == 'HTTP 500: {"error": "CUDA error: out of memory"}\nits last words'
    assert "`long_prompt: false`" in e.value.hint
    assert KEY not in str(e.value.cause)


def test_one_that_dies_says_why_in_its_last_words(home: Path) -> None:
    with engine("dies") as (port, _), pytest.raises(DeployError) as e:
        tried(engine_of(MODEL), home, port)
    assert (e.value.cause or "").endswith("its last words")


def test_one_that_still_computes_is_slow_and_not_wrong(home: Path) -> None:
    with engine("hangs") as (port, _):
        said = tried(engine_of(MODEL), home, port, seconds=0.5)
    assert said[-1].endswith("slow, and no error")


def test_it_can_be_left_out_and_is_where_there_is_no_gpu(home: Path) -> None:
    off = MODEL.replace("context: 2048", "context: 2048, long_prompt: false")
    assert engine_of(off).unit.trial is None
    assert engine_of(MODEL, docker=None).unit.trial is None  # in RAM
    assert engine_of(FROM_HUB).unit.trial is not None
    assert tried(engine_of(off), home, 9) == []


def test_the_key_in_the_inventory_restarts_nothing() -> None:
    model = {"engine": "llamacpp", "source": "/models/tiny.gguf"}
    assert same_model(Model.model_validate(model | {"long_prompt": False}), model)


def test_what_completes_nothing_is_not_tried() -> None:
    for kind in ("embedding", "rerank"):
        request = Request(kind=kind, context=512, concurrency=1)  # type: ignore[arg-type]
        assert llamacpp.trial("m", request) is None
        assert vllm.trial("m", request) is None
