"""The proofs through the pinned LiteLLM, before engines that are as strict as vLLM and llama.cpp: which of
them is sent /v1/messages as it came, and why."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from homelab import gateway, keys, pipeline
from homelab.ask import get
from homelab.endpoints import Endpoint
from homelab.proofs import PROTOCOLS, Protocol, Result, Subject, proofs
from homelab.proving import Prover
from homelab.render import GATEWAY_MEMORY_BYTES
from homelab.templating import render_template
from tests.clients.mock_engine import Engine
from tests.test_gateway import litellm_python as litellm_python
from tests.test_native_household import ROOT, free_port

pytestmark = pytest.mark.native
KEY, CONTEXT = "sk-of-this-gateway", 4096
SUPERVISE = ROOT / "templates/native/supervise.py"
RECIPES = pipeline.load_recipes()


class Served:
    """LiteLLM before scripted engines, as on a node without Docker."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.port = folder, free_port()
        vllm = [Engine("sk-engine", context=CONTEXT) for _ in range(3)]
        packed = [Engine("sk-engine", context=CONTEXT, talks=True, packed=True) for _ in range(2)]
        llama = Engine("sk-engine", like="llamacpp", context=CONTEXT, talks=True)
        bare = Engine("sk-engine", like="llamacpp", context=CONTEXT)
        # They refuse what LiteLLM would let pass: by its estimate there is room.
        short, long = Engine("sk-engine", context=600), Engine("sk-engine", context=100_000)
        # By name: its engines, as what the gateway knows each of them, and the context that it is told.
        self.models: dict[str, list[tuple[Engine | None, str, int]]] = {
            "vllm": [(vllm[0], "vllm", CONTEXT)],
            "drafts": [(packed[0], "vllm", CONTEXT)],
            "drafts-translated": [(packed[1], "", CONTEXT)],
            "llamacpp": [(llama, "llamacpp", CONTEXT)],
            "llamacpp-itself": [(bare, "vllm", CONTEXT)],
            "half-dead": [(None, "vllm", CONTEXT), (vllm[1], "vllm", CONTEXT)],
            "short": [(short, "vllm", 2000)],
            "long": [(long, "vllm", 100_000)],
        }
        endpoints = [
            Endpoint(
                name=name,
                kind="chat",
                url=engine.url if engine else f"http://127.0.0.1:{free_port()}",
                key="",
                context=context,
                id=f"{name}/{number}",
                node="n",
                origin="placed",
                upstream="m",
                engine=known_as,
            )
            for name, engines in self.models.items()
            for number, (engine, known_as, context) in enumerate(engines)
        ]
        configuration = gateway.configuration(endpoints, {"short": ["long"]}, None)
        environment = {
            **gateway.ENVIRONMENT,
            gateway.MASTER_KEY_VARIABLE: KEY,
            gateway.KEYS_VARIABLE: "keys",
            **{gateway.key_variable(e): "sk-engine" for e in endpoints},
        }
        options = ["--config", "litellm.yml", "--host", "127.0.0.1", "--port", str(self.port)]
        document = {
            "argv": [str(python), str(python.parent / "litellm"), *options],
            "environment_file": "service.env",
            "memory_limit_bytes": GATEWAY_MEMORY_BYTES,
        }
        (folder / "keys").mkdir(mode=0o700)
        for name, text in {
            "litellm.yml": render_template("litellm.yml.j2", configuration=configuration),
            keys.AUTH_FILE: render_template(keys.AUTH_FILE),
            keys.HOUSE_FILE: keys.house(endpoints, {}),
            "service.env": "".join(f"{k}={v}\n" for k, v in environment.items()),
            "service.json": json.dumps(document),
        }.items():
            (folder / name).write_text(text)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def engine(self, name: str) -> Engine:
        return next(e for e, _, _ in self.models[name] if e is not None)

    def prove(self, name: str, *wanted: str) -> dict[tuple[str, Protocol], Result]:
        ids = frozenset(f"{name}/{n}" for n in range(len(self.models[name])))
        subject = Subject(name=name, context=self.models[name][0][2], ids=ids, engine=self.models[name][0][1])
        chosen = [p for p in proofs() if p.name in wanted] if wanted else None
        done = asyncio.run(Prover(self.url, KEY, RECIPES).model(subject, None, chosen))
        return {(r.proof, r.protocol): r for r in done}

    def paths(self, name: str) -> set[str]:
        return {p for p, _, _ in self.engine(name).requests}

    def supervise(self, verb: str) -> None:
        subprocess.run([sys.executable, SUPERVISE, verb, self.folder], check=True, capture_output=True)


@pytest.fixture(scope="module")
def served(litellm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("gateway"), litellm_python)
    made.supervise("start")
    try:
        until = time.monotonic() + 120
        while asyncio.run(get(made.url + gateway.HEALTH))[0] != 200:
            assert time.monotonic() < until, (made.folder / "log").read_text()[-2000:]
            time.sleep(0.3)
        yield made
    finally:
        made.supervise("stop")
        for engines in made.models.values():
            for engine, _, _ in engines:
                if engine is not None:
                    engine.shutdown()
                    engine.server_close()


def wrong(done: dict[tuple[str, Protocol], Result]) -> dict[tuple[str, Protocol], str]:
    return {
        w: f"{r.verdict.outcome}: {r.verdict.why}" for w, r in done.items() if r.verdict.outcome != "works"
    }


@pytest.mark.parametrize("name", ["vllm", "drafts", "llamacpp"])
def test_all_works_through_the_gateway(served: Served, name: str) -> None:
    done = served.prove(name)
    assert len(done) == sum(len(p.protocols) for p in proofs())
    assert wrong(done) == {}
    native = "/v1/messages" in served.paths(name)
    assert native == (name != "llamacpp")
    # Thoughts that were sent back stand in the prompt.
    replayed = [p for p in served.engine(name).prompts if "Rain until" in p]
    assert sum("I call it." in p for p in replayed) == len(PROTOCOLS)
    assert "" not in [r.verdict.why for w, r in done.items() if w[0] == "prompt cache"]


def test_litellm_runs_two_calls_of_one_chunk_together_so_vllm_gets_messages_as_they_came(
    served: Served,
) -> None:
    """If this fails, LiteLLM is mended: `gateway.SPEAK_MESSAGES` may not be needed any more."""
    done = served.prove("drafts-translated", "two calls")
    assert {w[1] for w in wrong(done)} == {"messages"}
    assert '{"city": "Paris"}{"city": "Oslo"}' in done[("two calls", "messages")].verdict.why
    assert wrong(served.prove("drafts", "two calls")) == {}


def test_llamacpps_own_messages_know_no_output_format_so_it_gets_chat_completions(served: Served) -> None:
    assert set(wrong(served.prove("llamacpp-itself", "JSON schema"))) == {("JSON schema", "messages")}
    assert wrong(served.prove("llamacpp", "JSON schema")) == {}


def ask(served: Served, key: str, model: str, words: int) -> httpx.Response:
    body = {"model": model, "max_tokens": 64, "messages": [{"role": "user", "content": "word " * words}]}
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
    return httpx.post(f"{served.url}/v1/messages", json=body, headers=headers, timeout=30, trust_env=False)


def test_messages_as_they_came_are_given_to_the_other_replica_too(served: Served) -> None:
    answers = [ask(served, KEY, "half-dead", 3) for _ in range(12)]
    assert {(a.status_code, a.headers["x-litellm-model-id"]) for a in answers} == {(200, "half-dead/1")}


def test_what_an_engine_refuses_as_too_long_goes_to_the_model_that_reads_more(served: Served) -> None:
    before = len(served.engine("short").requests)
    answer = ask(served, KEY, "short", 900)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-litellm-model-id"] == "long/0"
    assert len(served.engine("short").requests) == before + 1  # it was asked, and refused by itself
    refused = ask(served, KEY, "vllm", 3 * CONTEXT)
    assert refused.status_code == 400 and "context" in refused.text.lower()
    assert ask(served, KEY, "vllm", 3).status_code == 200


def test_tokens_of_messages_as_they_came_count_for_a_key(served: Served) -> None:
    secret, key = keys.new("a" * 64, "b" * 32, time.time())
    (served.folder / "keys" / keys.FILE).write_text(keys.to_json(keys.added({}, "anna", key)))
    assert ask(served, secret, "vllm", 200).status_code == 200
    body = {
        "model": "vllm",
        "max_tokens": 64,
        "stream": True,
        "messages": [{"role": "user", "content": "word " * 300}],
    }
    headers = {"x-api-key": secret}
    answer = httpx.post(f"{served.url}/v1/messages", json=body, headers=headers, timeout=30, trust_env=False)
    assert "message_stop" in answer.text
    until = time.monotonic() + 20
    while True:
        database = served.folder / "keys" / "usage.sqlite"
        rows = (
            sqlite3.connect(database).execute("SELECT * FROM usage").fetchall() if database.exists() else []
        )
        if rows and any(isinstance(v, int) and 500 <= v < 5000 for row in rows for v in row):
            break
        assert time.monotonic() < until, rows
        time.sleep(0.3)
