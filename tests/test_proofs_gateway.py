"""The proofs through the pinned LiteLLM, before engines that are as strict as vLLM and llama.cpp: which of
them is sent /v1/messages as it came, and why."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from homelab import keys, pipeline
from homelab.endpoints import Endpoint
from homelab.errors import DeployError
from homelab.proofs import PROTOCOLS, Protocol, Result, Subject, proofs
from homelab.proving import Prover
from tests.clients.mock_engine import Engine
from tests.clients.served import Gateway, endpoint
from tests.litellm import ENGINE_KEY
from tests.test_gateway import litellm_python as litellm_python
from tests.test_native_household import free_port

pytestmark = pytest.mark.native
KEY, CONTEXT = "sk-of-this-gateway", 4096
RECIPES = pipeline.load_recipes()


class Served:
    """By name: a model's engines, as what the gateway knows each of them, and the context that it is told."""

    def __init__(self) -> None:
        def vllm(context: int = CONTEXT, *, packed: bool = False) -> Engine:
            return Engine(ENGINE_KEY, context=context, talks=packed, packed=packed)

        def llamacpp() -> Engine:
            return Engine(ENGINE_KEY, like="llamacpp", context=CONTEXT, talks=True)

        self.url, self.folder = "", Path()
        self.models: dict[str, list[tuple[Engine | None, str, int]]] = {
            "vllm": [(vllm(), "vllm", CONTEXT)],
            "drafts": [(vllm(packed=True), "vllm", CONTEXT)],
            "drafts-translated": [(vllm(packed=True), "", CONTEXT)],
            "llamacpp": [(llamacpp(), "llamacpp", CONTEXT)],
            "llamacpp-itself": [(llamacpp(), "vllm", CONTEXT)],
            "half-dead": [(None, "vllm", CONTEXT), (vllm(), "vllm", CONTEXT)],
            # It refuses what LiteLLM lets pass.
            "short": [(vllm(600), "vllm", 2000)],
            "long": [(vllm(100_000), "vllm", 100_000)],
        }

    def endpoints(self) -> list[Endpoint]:
        return [
            endpoint(
                name,
                engine.url if engine else f"http://127.0.0.1:{free_port()}",
                context,
                known_as,
                number=number,
            )
            for name, engines in self.models.items()
            for number, (engine, known_as, context) in enumerate(engines)
        ]

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

    def close(self) -> None:
        for engine in (e for engines in self.models.values() for e, _, _ in engines if e is not None):
            engine.shutdown()
            engine.server_close()


@pytest.fixture(scope="module")
def served(litellm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made, folder = Served(), tmp_path_factory.mktemp("gateway")
    with Gateway(folder, litellm_python, KEY, made.endpoints(), {"short": ["long"]}) as gateway:
        made.url, made.folder = gateway.url, folder
        yield made
    made.close()


def wrong(done: dict[tuple[str, Protocol], Result]) -> dict[tuple[str, Protocol], str]:
    return {
        w: f"{r.verdict.outcome}: {r.verdict.why}" for w, r in done.items() if r.verdict.outcome != "works"
    }


@pytest.mark.parametrize("name", ["vllm", "drafts", "llamacpp"])
def test_all_works_through_the_gateway(served: Served, name: str) -> None:
    done = served.prove(name)
    assert len(done) == sum(len(p.protocols) for p in proofs())
    lacks = {("JSON schema", "responses")} if name == "llamacpp" else set()
    assert set(wrong(done)) == lacks
    native = "/v1/messages" in served.paths(name)
    assert native == (name != "llamacpp")
    # Thoughts that were sent back stand in the prompt.
    replayed = [p for p in served.engine(name).prompts if "Rain until" in p]
    assert sum("I call it." in p for p in replayed) == len(PROTOCOLS)
    assert "" not in [r.verdict.why for w, r in done.items() if w[0] == "prompt cache"]


def test_litellm_runs_two_calls_of_one_chunk_together_so_vllm_gets_messages_as_they_came(
    served: Served,
) -> None:
    """If this fails, LiteLLM is mended: vLLM's `MESSAGES` may not be needed any more."""
    done = served.prove("drafts-translated", "two calls")
    assert {w[1] for w in wrong(done)} == {"messages"}
    assert '{"city": "Paris"}{"city": "Oslo"}' in done[("two calls", "messages")].verdict.why
    assert wrong(served.prove("drafts", "two calls")) == {}


def test_llamacpps_own_messages_know_no_output_format_so_it_gets_chat_completions(served: Served) -> None:
    itself = wrong(served.prove("llamacpp-itself", "JSON schema"))
    translated = wrong(served.prove("llamacpp", "JSON schema"))
    assert {protocol for _, protocol in itself} == {"messages", "responses"}
    assert {protocol for _, protocol in translated} == {"responses"}


def test_a_key_that_the_gateway_does_not_know_is_no_verdict(served: Served) -> None:
    with pytest.raises(DeployError, match="does not know this key"):
        asyncio.run(Prover(served.url, "sk-of-nobody", RECIPES).model(Subject(name="vllm")))


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
