"""What `homelab test` proves, tried on an engine that is well and on some that are wrong in one way each."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homelab import documents, pipeline
from homelab.errors import DeployError, InventoryError
from homelab.facts import DeployedService, Survey
from homelab.inventory import Inventory, load
from homelab.proofs import Fault, Outcome, Result, Subject, Verdict, is_well, judged, proofs
from homelab.proofs.mends import mend
from homelab.proofs.subjects import subjects
from homelab.proofs.wire import PROTOCOLS, Ask, Events, Protocol, Usage, body, reader
from homelab.proving import Prover
from tests.clients.mock_engine import Engine, Like
from tests.machines import machine, survey

ROOT = Path(__file__).parent.parent
KEY = "sk-house"
RECIPES = pipeline.load_recipes()
BY_NAME = {p.name: p for p in proofs()}


def proven(
    engine: Engine, *names: str, context: int | None = None, **more: Any
) -> dict[tuple[str, Protocol], Result]:
    wanted = [BY_NAME[n] for n in names] or None
    subject = Subject(name="m", context=context, engine=engine.like, ids=frozenset({""}), **more)
    try:
        done = asyncio.run(Prover(engine.url, KEY, RECIPES, 2).model(subject, None, wanted))
    finally:
        engine.shutdown()
        engine.server_close()
    return {(r.proof, r.protocol): r for r in done}


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("like", ["vllm", "llamacpp"])
def test_on_an_engine_that_is_well_all_works(like: Like, thinks: bool) -> None:
    done = proven(Engine(KEY, like=like, context=4096, thinks=thinks, talks=True), context=4096)
    assert len(done) == sum(len(p.protocols) for p in proofs())
    wrong = {where: r.verdict for where, r in done.items() if r.verdict.outcome != "works"}
    expected = {} if thinks else {("thinking replay", p): "skipped" for p in PROTOCOLS}
    if like == "llamacpp":  # as llama.cpp is
        expected |= {("JSON schema", "messages"): "lacks", ("JSON schema", "responses"): "lacks"}
    assert {where: v.outcome for where, v in wrong.items()} == expected
    assert done[("count_tokens", "messages")].verdict.why.endswith("(+0%)")
    assert is_well(tuple(done.values()))


FAULTS: list[tuple[str, str, Outcome, Fault]] = [
    ("no-call", "one call", "model", ""),
    ("one-call", "two calls", "model", ""),
    ("call-as-text", "one call", "broken", "call-as-text"),
    ("drops-tools", "one call", "broken", "tools-unread"),
    ("thoughts-as-text", "plain", "broken", "thoughts-as-text"),
    ("empty-arguments", "two calls", "broken", "empty-arguments"),
    ("cut-arguments", "one call", "broken", "bad-arguments"),
    ("text-arguments", "nested arguments", "broken", "text-arguments"),
    ("no-end", "plain", "broken", "stream"),
    ("no-schema", "JSON schema", "broken", "schema-ignored"),
    ("no-parser", "one call", "broken", "refused"),
    ("refuses-required", "tool required", "broken", "refused"),
    ("no-call", "tool required", "broken", "choice-ignored"),
    ("no-cache", "prompt cache", "broken", "not-cached"),
    ("no-cut", "over the context", "broken", "no-error"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("fault", "proof", "outcome", "known_as"), FAULTS)
def test_what_is_wrong_is_told_apart(
    fault: str, proof: str, outcome: Outcome, known_as: Fault, protocol: Protocol
) -> None:
    context = 0 if fault == "no-cut" else 4096
    done = proven(Engine(KEY, context=context, faults=frozenset({fault})), proof, context=4096)
    verdict = done[(proof, protocol)].verdict
    assert (verdict.outcome, verdict.fault) == (outcome, known_as), verdict
    assert verdict.why
    assert not is_well(tuple(done.values()))


def test_a_refusal_is_told_in_the_engines_own_words_with_what_mends_it() -> None:
    source = next(n for n, e in RECIPES.models.items() if e.get("tool_parser"))
    engine = Engine(KEY, faults=frozenset({"no-parser"}))
    result = proven(engine, "one call", source=source)[("one call", "chat")]
    assert "requires --enable-auto-tool-choice and --tool-call-parser" in result.verdict.why
    assert f"tool-call-parser: {RECIPES.models[source]['tool_parser']}" in result.mend


def test_who_thinks_by_one_protocol_and_not_by_another_loses_it_there() -> None:
    done = proven(Engine(KEY, faults=frozenset({"no-thoughts-messages"})), "thinking replay")
    assert {p: done[("thinking replay", p)].verdict.outcome for p in PROTOCOLS} == {
        "chat": "works",
        "messages": "broken",
        "responses": "works",
    }
    assert "by chat completions they do" in done[("thinking replay", "messages")].verdict.why


@pytest.mark.parametrize("like", ["vllm", "llamacpp"])
def test_thoughts_come_back_to_the_model(like: Like) -> None:
    engine = Engine(KEY, like=like)
    done = proven(engine, "thinking replay")
    assert [r.verdict.why for r in done.values()] == ["", "", ""]
    replayed = [p for p in engine.prompts if "Rain until" in p]
    assert len(replayed) == 6 and sum("I call it." in p for p in replayed) == 3


def test_thoughts_that_the_model_never_reads_again_are_told() -> None:
    done = proven(Engine(KEY, faults=frozenset({"drops-thoughts"})), "thinking replay")
    for result in done.values():
        assert result.verdict.outcome == "works"
        assert "do not come back" in result.verdict.why


def test_a_second_try_is_sampled_and_said() -> None:
    engine = Engine(KEY, faults=frozenset({"no-call-when-greedy"}))
    result = proven(engine, "one call")[("one call", "chat")]
    assert (result.verdict.outcome, result.tries) == ("works", 2)
    assert result.verdict.why == "on the second try, sampled"
    assert ["temperature" in b for p, _, b in engine.requests if p.endswith("completions")] == [
        True,
        True,
        False,
    ]


def test_cached_tokens_of_which_nobody_tells_are_unknown_not_none() -> None:
    result = proven(Engine(KEY, tells_cached=False), "prompt cache")[("prompt cache", "chat")]
    assert (result.verdict.outcome, result.verdict.fault) == ("unknown", "cache-untold")
    assert "enable-prompt-tokens-details" in result.mend


def test_without_a_known_context_nothing_is_filled() -> None:
    engine = Engine(KEY)
    done = proven(engine, "near the context", "over the context")
    assert {r.verdict.outcome for r in done.values()} == {"skipped"} and engine.requests == []


def test_a_larger_model_that_answers_for_a_long_prompt_is_right() -> None:
    subject = Subject(name="m", context=512, ids=frozenset({"n/m"}))
    script = BY_NAME["over the context"].script(subject, "chat")
    next(script)
    answer = reader("chat")
    answer.take(json.dumps({"choices": [{"delta": {"content": "Yes"}, "finish_reason": "stop"}]}))
    with pytest.raises(StopIteration) as end:
        script.send(replace(answer.answer(), served_by="n/large"))
    assert end.value.value == Verdict(outcome="works", why="n/large answered, which reads more")


def test_a_gateway_that_is_not_there_is_no_verdict_and_an_engine_with_another_key_is() -> None:
    engine = Engine("another key")
    refused = proven(engine, "plain")[("plain", "chat")].verdict
    assert (refused.outcome, refused.why) == ("broken", "HTTP 403: wrong key")
    with pytest.raises(DeployError, match="does not answer"):
        asyncio.run(Prover(engine.url, KEY, RECIPES).model(Subject(name="m")))


def test_what_is_silent_is_broken() -> None:
    result = proven(Engine(KEY, faults=frozenset({"hangs"})), "plain")[("plain", "chat")]
    assert (result.verdict.outcome, result.verdict.fault) == ("broken", "silent")
    assert result.verdict.why == "nothing came for 2 s"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_events_are_the_same_however_a_stream_is_cut(protocol: Protocol, size: int) -> None:
    stream = b'event: a\r\ndata: {"x": "\xc3\xa4"}\r\n\r\n: a comment\n\ndata: one\ndata: two\n\ndata: [DONE]'
    events = Events()
    seen = [d for i in range(0, len(stream), size) for d in events.feed(stream[i : i + size])]
    assert [*seen, *events.end()] == ['{"x": "ä"}', "one\ntwo", "[DONE]"]


def blocks(*events: dict[str, Any]) -> Iterator[str]:
    yield json.dumps({"type": "message_start", "message": {"usage": {"input_tokens": 3}}})
    yield from map(json.dumps, events)
    yield json.dumps({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}})
    yield json.dumps({"type": "message_stop"})


def start(index: int, kind: str) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind}}


def delta(index: int, **piece: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": piece}


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


CORRUPT = [
    ([delta(0, type="text_delta", text="x")], "not open"),
    ([start(0, "text"), start(1, "text")], "is open"),
    ([start(0, "thinking"), delta(0, type="text_delta", text="x"), stop(0)], "in a block of `thinking`"),
    ([start(0, "text")], "while block 0 is open"),
    ([stop(0)], "was not open"),
    ([start(0, "tool_use"), stop(0)], "not `tool_use`"),
    ([{"type": "content_block_start"}], "not as the protocol has it"),
]


@pytest.mark.parametrize(("events", "why"), CORRUPT)
def test_messages_whose_blocks_are_wrong_are_seen(events: list[dict[str, Any]], why: str) -> None:
    read = reader("messages")
    for data in blocks(*events):
        read.take(data)
    assert why in read.answer().broken


def test_cached_tokens_of_messages_count_as_tokens_of_the_prompt() -> None:
    read = reader("messages")
    usage = {"input_tokens": 4, "cache_read_input_tokens": 96}
    read.take(json.dumps({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}))
    assert read.answer().usage == Usage(prompt=100, cached=96)


@pytest.mark.parametrize(
    "data", ["{", "[]", "3", '"x"', '{"choices": 3}', '{"choices": [3]}', '{"usage": 1}']
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_that_a_server_sends_is_a_bug_here(protocol: Protocol, data: str) -> None:
    read = reader(protocol)
    read.take(data)
    assert read.answer().broken


def test_an_error_in_a_stream_is_the_servers_own_words() -> None:
    for protocol in PROTOCOLS:
        read = reader(protocol)
        read.take(json.dumps({"type": "error", "error": {"message": "out of memory"}}))
        assert read.answer().error == "out of memory"


def test_thinking_is_asked_for_as_each_protocol_has_it() -> None:
    ask = Ask(turns=("Hello",), max_tokens=100, think=True)
    assert body("chat", "m", ask)["reasoning_effort"] == "high"
    assert body("responses", "m", ask)["reasoning"] == {"effort": "high"}
    messages = body("messages", "m", ask)
    assert messages["thinking"]["budget_tokens"] < messages["max_tokens"]
    assert "temperature" not in messages


def test_mends_name_the_parser_and_the_version() -> None:
    broken = Verdict(outcome="broken", fault="thoughts-as-text", why="its thoughts came as text")
    source = next(n for n, e in RECIPES.models.items() if e.get("reasoning_parser"))
    subject = Subject(name="m", engine="vllm", source=source)
    said = mend(subject, "plain", broken, RECIPES)
    assert f"reasoning-parser: {RECIPES.models[source]['reasoning_parser']}" in said
    source = next(n for n, e in RECIPES.models.items() if e.get("min_vllm"))
    old = Subject(name="m", engine="vllm", source=source, image="vllm/vllm-openai:v0.1.0")
    empty = Verdict(outcome="broken", fault="empty-arguments", why="x")
    assert "or newer" in mend(old, "two calls", empty, RECIPES)
    assert mend(subject, "plain", Verdict(outcome="works"), RECIPES) == ""
    assert "too old" not in mend(Subject(name="m"), "one call", empty, RECIPES)


def test_results_of_a_model_that_does_not_think_stay_as_they_are() -> None:
    skipped = Verdict(outcome="skipped", fault="no-thoughts")
    results = [Result(model="m", proof="thinking replay", protocol=p, verdict=skipped) for p in PROTOCOLS]
    assert judged(results) == tuple(results)
    assert is_well(results)


INVENTORY = """\
gateway: {node: a}
nodes: {a: {host: localhost}}
models:
  coder:
    speculative: 2
    variants:
      - {engine: llamacpp, source: /models/coder.gguf}
      - {engine: vllm, source: Qwen/Qwen3-Coder-30B-A3B-Instruct, args: {max-num-seqs: 4}}
  vectors: {engine: llamacpp, source: /models/vectors.gguf, kind: embedding}
  asleep: {engine: llamacpp, source: /models/asleep.gguf}
cloud: {far: {model: anthropic/claude-sonnet-4-6, api_key: "env:KEY"}}
"""


def service(model: str, number: int, context: int, **numbers: Any) -> DeployedService:
    labels = {
        "homelab.address": "127.0.0.1",
        "homelab.port": str(8000 + number),
        "homelab.engine": str(numbers.get("engine", "llamacpp")),
        "homelab.image": "vllm/vllm-openai:v0.33.0",
        "homelab.placement": json.dumps({"context": context, **numbers}),
    }
    return DeployedService(
        cluster="home",
        name=f"{model}-{number}",
        role="engine",
        serves=(model,),
        spec="1",
        runtime="docker",
        state="running",
        listens=True,
        labels=labels,
    )


def house() -> tuple[Inventory, Survey]:
    source = "Qwen/Qwen3-Coder-30B-A3B-Instruct"
    services = (
        service("coder", 0, 32768, engine="vllm", source=source, speculative=2),
        service("coder", 1, 16384, engine="vllm", source=source, speculative=2),
        service("vectors", 2, 512),
    )
    inventory = load(INVENTORY, "inventory.yml")
    return inventory, survey(a=machine("a").model_copy(update={"services": services}))


def test_all_of_the_house_that_chat_are_proven_as_they_run() -> None:
    [coder] = subjects(*house())
    assert (coder.name, coder.context, coder.engine) == ("coder", 16384, "vllm")
    assert coder.ids == {"a/coder-0", "a/coder-1"}
    assert coder.image == "vllm/vllm-openai:v0.33.0"
    assert coder.args == {"max-num-seqs": 4, "speculative": 2}
    broken = Verdict(outcome="broken", fault="bad-arguments", why="x")
    assert "speculative" in mend(coder, "one call", broken, RECIPES)


def test_one_outside_the_house_is_proven_where_it_is_named() -> None:
    [far] = subjects(*house(), ["far", "far"])
    assert (far.name, far.context, far.engine) == ("far", None, "")


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("codr", InventoryError, "coder"),
        ("vectors", InventoryError, "does not chat"),
        ("asleep", DeployError, "does not run"),
    ],
)
def test_what_cannot_be_proven_is_said_first(name: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        subjects(*house(), [name])


def test_the_document_has_what_the_screen_has() -> None:
    done = proven(Engine(KEY, faults=frozenset({"no-parser"})), "one call")
    document = documents.proofs_document([(Subject(name="m", engine="vllm"), tuple(done.values()))])
    [model] = document["models"]
    assert (model["model"], model["works"], model["context"]) == ("m", False, None)
    assert [r["protocol"] for r in model["results"]] == list(PROTOCOLS)
    assert {r["outcome"] for r in model["results"]} == {"broken"}
    assert "--enable-auto-tool-choice" in model["results"][0]["why"]
    assert "tool-call-parser" in model["results"][0]["mend"]


def test_the_verb_says_what_is_wrong_before_it_asks_anything(tmp_path: Path) -> None:
    (tmp_path / "inventory.yml").write_text(INVENTORY)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KEY": "sk", "COLUMNS": "200"}
    for words, code, said in (
        (["test", "codr"], 2, "did you mean"),
        (["test", "vectors"], 2, "does not chat"),
        (["test"], 1, "Nothing is deployed"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "homelab", *words],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        assert said in done.stderr and "Traceback" not in done.stderr
