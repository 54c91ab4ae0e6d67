"""People's keys, tried on the real LiteLLM before scripted engines and a scripted cloud."""

from __future__ import annotations

import asyncio
import http.client
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homelab import gateway, keys
from homelab.ask import ask
from homelab.endpoints import Endpoint
from homelab.errors import HomelabError
from tests import litellm
from tests.test_gateway import HELLO, Backend, _Answers, litellm_python
from tests.test_native_household import free_port

pytestmark = pytest.mark.native
MASTER = "sk-of-this-gateway"
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: HELLO,
    MESSAGES: {**HELLO, "max_tokens": 9},
    RESPONSES: {"input": "Hello."},
}
__all__ = ["litellm_python"]


class Responses(_Answers):
    """An engine that speaks /v1/responses too, as vLLM and llama.cpp do."""

    def do_POST(self) -> None:  # noqa: N802
        if not self.path.endswith("/responses"):
            super().do_POST()
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(body)
        part = {"type": "output_text", "text": "Hello to you.", "annotations": []}
        message = {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        }
        document = {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": "m",
            "output": [message],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        }
        if not json.loads(body).get("stream"):
            self.answer(200, document)
            return
        begun = {**document, "status": "in_progress", "output": [], "usage": None}
        delta = {"item_id": "m", "output_index": 0, "content_index": 0, "delta": "Hello to you."}
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number, (kind, more) in enumerate(
            [
                ("response.created", {"response": begun}),
                ("response.output_text.delta", delta),
                ("response.completed", {"response": document}),
            ]
        ):
            event = json.dumps({"type": kind, "sequence_number": number, **more})
            self.wfile.write(f"event: {kind}\ndata: {event}\n\n".encode())
        self.close_connection = True


class Proxy:
    """LiteLLM as a node without Docker has it: `house` and `other` answer, `dead` falls back to `cloud`."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.keys_folder, self.port = folder / "spec", folder / "keys", free_port()
        self.folder.mkdir()
        self.keys_folder.mkdir()
        self.house, self.other, self.cloud = Backend(), Backend(), Backend()
        for backend in (self.house, self.other, self.cloud):
            backend.RequestHandlerClass = Responses
        dead = f"http://127.0.0.1:{free_port()}"
        places = {"house": self.house.url, "other": self.other.url, "dead": dead}
        endpoints = [
            Endpoint(
                name=name,
                kind="chat",
                url=url,
                key="",
                context=4096,
                id=f"n/{name}",
                node="n",
                origin="placed",
                upstream="m",
            )
            for name, url in places.items()
        ]
        endpoints.append(
            Endpoint(
                name="cloud",
                kind="chat",
                url=f"{self.cloud.url}/v1",
                key="env:CLOUD",
                context=None,
                id="cloud/cloud",
                node=None,
                origin="cloud",
                upstream="openai/gpt-4o",
            )
        )
        configuration = gateway.configuration(endpoints, {"dead": ["cloud"]}, None)
        beside = {gateway.KEYS_VARIABLE: "../keys"}
        litellm.write(
            self.folder, python, self.port, configuration, endpoints, key=MASTER, environment=beside
        )
        self.known: dict[str, keys.Key] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write(self, known: dict[str, keys.Key]) -> None:
        """As a node does it: in the place of the file before."""
        self.known = known
        aside = self.keys_folder / "aside"
        aside.write_text(keys.to_json(known))
        aside.rename(self.keys_folder / keys.FILE)

    def add(self, name: str, **may: Any) -> str:
        secret, key = keys.new(f"{name}-{time.time_ns()}", f"{time.time_ns():032x}", time.time(), **may)
        self.write(keys.added({n: k for n, k in self.known.items() if n != name}, name, key))
        return secret

    def send(
        self, path: str, key: str | None, model: str = "house", *, header: str = "Authorization", **more: Any
    ) -> tuple[int, dict[str, str], str]:
        sent = {header: f"Bearer {key}" if header == "Authorization" else key} if key else {}
        document = json.dumps({"model": model, **BODIES.get(path, {}), **more}).encode()
        return self.request("POST", path, document, sent)

    def request(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
            return response.status, {k.lower(): v for k, v in response.getheaders()}, text
        finally:
            connection.close()

    def get(self, path: str, key: str) -> tuple[int, str]:
        code, _, text = self.request("GET", path, None, {"Authorization": f"Bearer {key}"})
        return code, text

    def used(self, name: str) -> keys.Usage:
        database = self.keys_folder / "usage.sqlite"
        if not database.exists():
            return keys.Usage()
        connection = sqlite3.connect(database)
        try:
            rows = connection.execute("SELECT * FROM usage").fetchall()
        finally:
            connection.close()
        return keys.usage_of(rows, time.time()).get(self.known[name].id, keys.Usage())

    def counted(self, name: str, requests: int) -> keys.Usage:
        """What is counted once so many requests are: LiteLLM tells of them after it has answered."""
        until = time.monotonic() + 20
        while (used := self.used(name)).requests < requests and time.monotonic() < until:
            time.sleep(0.1)
        return used


@pytest.fixture(scope="module")
def proxy(litellm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    made = Proxy(tmp_path_factory.mktemp("gateway"), litellm_python)
    try:
        with litellm.running(made.folder, made.port):
            yield made
    finally:
        for backend in (made.house, made.other, made.cloud):
            backend.shutdown()
            backend.server_close()


@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_a_key_opens_models_and_is_counted_streams_too(proxy: Proxy, path: str, header: str) -> None:
    secret = proxy.add("anna")
    assert proxy.send(path, secret, header=header)[0] == 200
    code, _, text = proxy.send(path, secret, header=header, stream=True)
    assert code == 200 and "Hello" in text
    used = proxy.counted("anna", 2)
    assert used.requests == 2 and used.tokens_today > 2 and used.completion_tokens > 1
    assert used.last_use is not None and abs(used.last_use - time.time()) < 60


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_a_wrong_key_is_told_so_in_a_status_that_clients_do_not_try_again(proxy: Proxy, path: str) -> None:
    for header in ("Authorization", "x-api-key"):
        code, _, text = proxy.send(path, "sk-of-nobody", header=header)
        assert code == 403 and "does not know this key" in text
    assert proxy.send(path, None)[0] == 401


def test_the_gateways_own_key_opens_all(proxy: Proxy) -> None:
    for path in BODIES:
        assert proxy.send(path, MASTER)[0] == 200
    assert proxy.send(CHAT, MASTER, "cloud")[0] == 200
    assert proxy.send(CHAT, MASTER, "dead")[0] == 200
    assert proxy.get("/model/info", MASTER)[0] == 200
    with pytest.raises(HomelabError) as e:
        asyncio.run(ask(proxy.url, "sk-of-nobody", "house", "chat"))
    assert "key" in e.value.message


def test_a_revoked_or_expired_key_stops_with_the_next_request(proxy: Proxy) -> None:
    secret = proxy.add("ben")
    assert proxy.send(CHAT, secret)[0] == 200
    proxy.write(keys.revoked(proxy.known, "ben", time.time()))
    code, _, text = proxy.send(CHAT, secret)
    assert code == 403 and "was revoked" in text
    again = proxy.add("ben")
    assert proxy.send(CHAT, again)[0] == 200
    code, _, text = proxy.send(CHAT, proxy.add("carla", expires=time.time() - 1))
    assert code == 403 and "expired on" in text


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_a_key_for_some_models_opens_no_other(proxy: Proxy, path: str) -> None:
    secret = proxy.add("dora", models=("house", "dead"))
    assert proxy.send(path, secret)[0] == 200
    assert proxy.send(path, secret, "other")[0] == 403
    before = len(proxy.cloud.requests), len(proxy.other.requests)
    assert proxy.send(path, secret, "dead", fallbacks=["other"])[0] >= 400
    assert proxy.send(path, secret, "dead")[0] >= 400  # whose fallback is not among them
    assert (len(proxy.cloud.requests), len(proxy.other.requests)) == before
    proxy.send(f"{path}?model=other", secret, "house")
    assert (len(proxy.cloud.requests), len(proxy.other.requests)) == before
    names = {m["id"] for m in json.loads(proxy.get("/v1/models", secret)[1])["data"]}
    assert names == {"house", "dead"}


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_nothing_of_a_private_key_leaves_the_house(proxy: Proxy, path: str) -> None:
    secret, open_one = proxy.add("erik", private=True), proxy.add("ella")
    for stream in (False, True):
        before = len(proxy.cloud.requests)
        assert proxy.send(path, open_one, "dead", stream=stream)[0] == 200
        assert len(proxy.cloud.requests) == before + 1
        assert proxy.send(path, secret, "house", stream=stream)[0] == 200
        assert proxy.send(path, secret, "cloud", stream=stream)[0] == 403
        for more in ({}, {"fallbacks": ["cloud"]}, {"fallbacks": [{"dead": ["cloud"]}]}):
            code, _, text = proxy.send(path, secret, "dead", stream=stream, **more)
            assert code >= 400 or "error" in text, text
        claimed = {"user_api_key_hash": MASTER, "user_api_key_models": []}
        for name in ("metadata", "litellm_metadata"):
            code, _, text = proxy.send(path, secret, "dead", stream=stream, **{name: claimed})
            assert code >= 400 or "error" in text, text
        assert len(proxy.cloud.requests) == before + 1


@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent"])
def test_gemini_s_address_opens_models_and_no_more(proxy: Proxy, verb: str) -> None:
    """The model is in the path there; what the body says of one counts for nothing."""
    said = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
    some, private = proxy.add("gina", models=("house",)), proxy.add("gero", private=True)

    def ask(secret: str, name: str, **more: str) -> int:
        document = json.dumps({**said, **more}).encode()
        path = f"/v1beta/models/{name}:{verb}"
        return proxy.request("POST", path, document, {"x-goog-api-key": secret})[0]

    assert ask(some, "house") == ask(private, "house") == 200
    used = proxy.counted("gina", 1)
    assert used.prompt_tokens and used.completion_tokens
    before = len(proxy.cloud.requests), len(proxy.other.requests)
    others: tuple[dict[str, str], ...] = ({}, {"model": "house"})
    for more in others:
        assert ask(some, "other", **more) == 403
        assert ask(private, "cloud", **more) == 403
    assert ask(private, "dead") >= 400
    assert (len(proxy.cloud.requests), len(proxy.other.requests)) == before


CLOSED = [
    "/health",
    "/health/services",
    "/model/info",
    "/v1/model/info",
    "/v2/model/info",
    "/metrics",
    "/metrics/",
    "/key/info",
    "/spend/logs",
    "/v1/responses/x",
    "//health",
]


@pytest.mark.parametrize("path", CLOSED)
def test_people_reach_nothing_but_models(proxy: Proxy, path: str) -> None:
    before = len(proxy.house.requests)
    secret = proxy.add("fritz")
    code, text = proxy.get(path, secret)
    assert code >= 400, (code, text[:300])
    assert proxy.house.url not in text
    assert len(proxy.house.requests) == before


def test_a_person_cannot_say_where_the_answer_comes_from(proxy: Proxy) -> None:
    secret = proxy.add("gerd")
    for name in ("api_base", "base_url"):
        before = len(proxy.cloud.requests)
        code, _, text = proxy.send(CHAT, secret, **{name: f"{proxy.cloud.url}/v1"})
        assert len(proxy.cloud.requests) == before, (code, text)


def test_requests_a_minute_are_limited(proxy: Proxy) -> None:
    secret = proxy.add("hans", rpm=2)
    answers = [proxy.send(CHAT, secret) for _ in range(4)]
    assert [a[0] for a in answers] == [200, 200, 429, 429]
    assert int(answers[3][1]["retry-after"]) > 0


def test_requests_at_once_are_limited_and_free_again(proxy: Proxy) -> None:
    secret, codes = proxy.add("ida", parallel=1), list[int]()
    proxy.house.does = "silent"
    try:
        threads = [
            threading.Thread(target=lambda: codes.append(proxy.send(CHAT, secret)[0])) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.5)
        for thread in threads:
            thread.join()
    finally:
        proxy.house.does = "well"
    assert codes.count(429) == 2, codes
    assert proxy.send(CHAT, secret)[0] == 200


def test_tokens_a_day_are_limited(proxy: Proxy) -> None:
    secret = proxy.add("jan", tokens_per_day=2)
    assert proxy.send(CHAT, secret)[0] == 200
    proxy.counted("jan", 1)
    for path in BODIES:
        code, headers, text = proxy.send(path, secret)
        assert code == 429 and "tokens today" in text
        assert 0 < int(headers["retry-after"]) <= 86400


def test_a_key_is_rotated_without_a_lost_request(proxy: Proxy) -> None:
    old = proxy.add("kim")
    codes, over = list[int](), threading.Event()

    def ask_on() -> None:
        while not over.is_set():
            codes.append(proxy.send(CHAT, old)[0])

    thread = threading.Thread(target=ask_on)
    thread.start()
    time.sleep(1)
    new = "sk-" + "9" * 64
    proxy.write(keys.rotated(proxy.known, "kim", new, time.time()))
    assert [proxy.send(CHAT, new)[0] for _ in range(5)] == [200] * 5
    over.set()
    thread.join()
    assert set(codes) == {200} and len(codes) > 5
    # After its grace.
    proxy.write(keys.rotated(proxy.known, "kim", "sk-" + "8" * 64, time.time() - keys.GRACE_SECONDS - 1))
    code, _, text = proxy.send(CHAT, old)
    assert code == 403 and "replaced" in text
    assert proxy.send(CHAT, "sk-" + "8" * 64)[0] == 200


def test_a_ledger_that_cannot_be_written_stops_no_answer_and_loses_nothing(proxy: Proxy) -> None:
    secret = proxy.add("lea", tokens_per_day=5)
    database, kept = proxy.keys_folder / "usage.sqlite", proxy.keys_folder / "kept"
    proxy.send(CHAT, secret)
    proxy.counted("lea", 1)
    database.rename(kept)
    database.mkdir()  # no file can be opened there, whoever one is
    try:
        assert proxy.send(CHAT, secret)[0] == 200
        assert proxy.send(CHAT, secret)[0] == 200
        until = time.monotonic() + 20
        while proxy.send(CHAT, secret)[0] != 429:  # held to its tokens by what is in memory
            assert time.monotonic() < until
    finally:
        database.rmdir()
        kept.rename(database)
    before = proxy.used("lea").requests
    other = proxy.add("max")
    proxy.send(CHAT, other)
    proxy.counted("max", 1)
    assert proxy.used("lea").requests >= before + 2


def test_a_damaged_list_of_keys_keeps_people_out_and_not_the_gateways_own(proxy: Proxy) -> None:
    secret = proxy.add("nina")
    (proxy.keys_folder / keys.FILE).write_text("{")
    assert proxy.send(CHAT, secret)[0] == 503
    assert proxy.send(CHAT, MASTER)[0] == 200
    proxy.write(proxy.known)
    assert proxy.send(CHAT, secret)[0] == 200


def test_no_key_is_in_the_log_or_the_folder(proxy: Proxy) -> None:
    secret = proxy.add("olga")
    proxy.send(CHAT, secret)
    proxy.send(CHAT, secret, "nothing")
    files = [p for p in (*proxy.folder.rglob("*"), *proxy.keys_folder.rglob("*")) if p.is_file()]
    assert proxy.folder / "log" in files
    for path in files:
        assert secret.encode() not in path.read_bytes(), path


def test_counters_are_for_a_key_of_their_own_and_say_nobody_s_address_or_words(proxy: Proxy) -> None:
    person = proxy.add("ida")
    house, other = proxy.known, "counters"
    secret = proxy.add(other, metrics=True, models=keys.NO_MODELS)
    assert "ida" in house
    for path in ("/metrics", "/metrics/"):
        assert proxy.get(path, person)[0] == 401
        assert proxy.request("GET", path, None, {})[0] == 401
    for path in BODIES:
        assert proxy.send(path, secret)[0] == 403
    for path in ("/v1/models", "/model/info", "/health", "/key/list", "/spend/logs"):
        assert proxy.get(path, secret)[0] == 403, path
    words = {"messages": [{"role": "user", "content": "xyzzy-of-nobody-else"}], "user": "mister-somebody"}
    assert proxy.send(CHAT, person, **words)[0] == 200
    assert proxy.send(CHAT, person, "dead")[0] in (200, 500)
    until = time.monotonic() + 20
    while 'model_id="n/house"' not in (text := proxy.get("/metrics/", secret)[1]):
        assert time.monotonic() < until, text[-2000:]
        time.sleep(0.2)
    assert 'api_key_alias="ida"' in text and 'requested_model="house"' in text
    assert "litellm_llm_api_time_to_first_token_metric" in text
    theirs = ("xyzzy", "Hello to you", "mister-somebody", "127.0.0.1")
    for word in (*theirs, person, secret, MASTER, "sk-engine"):
        assert word not in text, word
    for label in gateway.UNCOUNTED:
        assert f"{label}=" not in text, label


def test_nothing_that_is_asked_or_answered_is_kept(proxy: Proxy) -> None:
    """In no file of the gateway's and in no log, of a refused or failed request neither."""
    secret = proxy.add("kim")
    said = [{"role": "user", "content": "plugh-of-nobody-else"}]
    for path, more in ((CHAT, {}), (CHAT, {"stream": True}), (MESSAGES, {})):
        assert proxy.send(path, secret, messages=said, **more)[0] == 200
    assert proxy.send(CHAT, secret, "nobody", messages=said)[0] >= 400
    assert proxy.send(CHAT, secret, "dead", messages=said, fallbacks=[])[0] >= 400
    proxy.counted("kim", 3)
    for path in proxy.folder.parent.rglob("*"):
        if path.is_file():
            assert b"plugh" not in path.read_bytes(), path
    assert b"plugh" in proxy.house.requests[-1]
    configuration = gateway.configuration([], {}, None)
    assert not any("database" in key or "store" in key for key in configuration["general_settings"])
