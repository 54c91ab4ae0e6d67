"""What a cloud answers, and what the gateway makes of it: the real LiteLLM before a scripted cloud, in the
words of OpenAI and of Anthropic."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from homelab import gateway
from homelab.endpoints import Endpoint
from tests import litellm
from tests.test_gateway import HELLO, KEY, Backend, _Answers, litellm_python
from tests.test_gateway_keys import Responses
from tests.test_native_household import free_port

pytestmark = pytest.mark.native
__all__ = ["litellm_python"]
UPSTREAM = {"openai": "openai/gpt-4o", "anthropic": "anthropic/claude-sonnet-4-6"}
KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "api_error", 529: "overloaded_error"}


class Cloud(ThreadingHTTPServer):
    """Answers as `code` says, in the words of the provider whose path is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Cloud)
        self.code, self.asked = 200, list[dict[str, Any]]()
        self.headers = list[dict[str, str]]()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Cloud(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Cloud

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.headers.append({k.lower(): v for k, v in self.headers.items()})
        code, says = self.server.code, "as the cloud says it"
        anthropic = self.path.endswith("/messages")
        if code != 200 and anthropic:
            self.answer(code, {"type": "error", "error": {"type": KINDS[code], "message": says}})
        elif code != 200:
            error = {"message": says, "type": KINDS[code], "param": None, "code": KINDS[code]}
            self.answer(code, {"error": error})
        elif anthropic:
            usage = {"input_tokens": 1, "output_tokens": 1}
            content = [{"type": "text", "text": "From outside."}]
            self.answer(
                200,
                {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "model": body["model"],
                    "content": content,
                    "stop_reason": "end_turn",
                    "stop_sequence": None,
                    "usage": usage,
                },
            )
        else:
            message = {"role": "assistant", "content": "From outside."}
            self.answer(
                200,
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                },
            )

    def answer(self, code: int, document: object) -> None:
        text = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


class Engine(Responses):
    """Speaks /v1/responses too; one that breaks does so in each dialect."""

    def do_POST(self) -> None:  # noqa: N802
        if self.server.does == "breaks":
            _Answers.do_POST(self)
        else:
            super().do_POST()


class House:
    """LiteLLM before one cloud in two dialects, each alone and with a model of the house behind it; and a
    model of the house that is dead, with the cloud behind it."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.cloud, self.inside, self.breaks = Cloud(), Backend(), Backend("breaks")
        for backend in (self.inside, self.breaks):
            backend.RequestHandlerClass = Engine
        dead = f"http://127.0.0.1:{free_port()}"
        endpoints = [self.local("inside", self.inside.url), self.local("dead", dead)]
        endpoints += [self.local("twins", dead, 1), self.local("twins", self.inside.url, 2)]
        endpoints += [self.local("brittle", self.breaks.url, 1), self.local("brittle", self.inside.url, 2)]
        for dialect, upstream in UPSTREAM.items():
            for name in (dialect, f"{dialect}-or-house"):
                endpoints.append(
                    Endpoint(
                        name=name,
                        kind="chat",
                        url=self.cloud.url + ("/v1" if dialect == "openai" else ""),
                        key="env:CLOUD",
                        context=None,
                        id=f"cloud/{name}",
                        node=None,
                        origin="cloud",
                        upstream=upstream,
                    )
                )
        fallbacks = {f"{d}-or-house": ["inside"] for d in UPSTREAM}
        fallbacks |= {"dead": ["anthropic"], "twins": ["openai"], "brittle": ["openai"]}
        configuration = gateway.configuration(endpoints, fallbacks, None)
        clouds = {gateway.key_variable(e): "sk-cloud" for e in endpoints if e.origin == "cloud"}
        litellm.write(folder, python, self.port, configuration, endpoints, key=KEY, environment=clouds)

    def local(self, name: str, url: str, number: int = 1) -> Endpoint:
        return Endpoint(
            name=name,
            kind="chat",
            url=url,
            key="",
            context=4096,
            id=f"n{number}/{name}",
            node="n",
            origin="placed",
            upstream="m",
        )

    def post(self, path: str, model: str, **more: Any) -> tuple[int, str, str]:
        """The status, who answered, and the text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            said = {"model": model, **HELLO, "max_tokens": 9, **more}
            document = json.dumps({k: v for k, v in said.items() if v is not None}).encode()
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
            connection.request("POST", path, document, headers)
            response = connection.getresponse()
            who = response.getheader("x-litellm-model-id") or ""
            return response.status, who, response.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def house(litellm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("gateway"), litellm_python)
    try:
        with litellm.running(made.folder, made.port):
            yield made
    finally:
        for server in (made.cloud, made.inside, made.breaks):
            server.shutdown()
            server.server_close()


PATHS = ["/v1/chat/completions", "/v1/messages"]


# Not /v1/messages of OpenAI: LiteLLM asks its /v1/responses for that, which this cloud does not speak.
@pytest.mark.parametrize(
    ("dialect", "path"), [("openai", PATHS[0]), ("anthropic", PATHS[0]), ("anthropic", PATHS[1])]
)
def test_each_dialect_is_spoken_with_the_cloud_s_own_key(house: House, dialect: str, path: str) -> None:
    house.cloud.code = 200
    code, who, text = house.post(path, dialect)
    assert (code, who) == (200, f"cloud/{dialect}") and "From outside." in text
    sent = house.cloud.headers[-1]
    assert "sk-cloud" in (sent.get("x-api-key", "") + sent.get("authorization", ""))
    assert KEY not in str(sent)
    assert house.cloud.asked[-1]["model"] == UPSTREAM[dialect].partition("/")[2]


@pytest.mark.parametrize("code", [429, 401, 500, 529])
@pytest.mark.parametrize("dialect", UPSTREAM)
def test_what_a_cloud_refuses_the_house_answers_or_the_client_is_told(
    house: House, dialect: str, code: int
) -> None:
    house.cloud.code = code
    asked = len(house.cloud.asked)
    for path in PATHS:
        answered = house.post(path, f"{dialect}-or-house")
        assert answered[:2] == (200, "n1/inside"), answered
        said = house.post(path, dialect)
        assert said[0] >= 400 and "sk-cloud" not in said[2], said
        assert said[0] in ((500, 503, 529) if code >= 500 else (code,)), said
    assert len(house.cloud.asked) - asked <= 2 * len(PATHS)  # once each: nothing is tried again
    house.cloud.code = 200
    assert house.post(PATHS[0], dialect)[:2] == (200, f"cloud/{dialect}")  # and nothing is kept off


@pytest.mark.parametrize("code", [429, 401, 500])
def test_where_house_and_cloud_fail_the_client_gets_an_error_at_once(house: House, code: int) -> None:
    house.cloud.code = code
    begun = time.monotonic()
    for path in PATHS:
        assert house.post(path, "dead")[0] >= 400
    assert time.monotonic() - begun < 10
    house.cloud.code = 200
    assert house.post(PATHS[0], "dead")[1] == "cloud/anthropic"


def test_no_prompt_leaves_the_house_while_a_twin_is_well(house: House) -> None:
    asked = len(house.cloud.asked)
    for path in PATHS:
        for _ in range(20):
            assert house.post(path, "twins")[:2] == (200, "n2/twins")
    assert len(house.cloud.asked) == asked


@pytest.mark.parametrize("path", [*PATHS, "/v1/responses"])
def test_no_stream_that_breaks_before_its_first_word_leaves_the_house_while_a_twin_is_well(
    house: House, path: str
) -> None:
    asked, broken = len(house.cloud.asked), len(house.breaks.requests)
    more = {"input": "Hello.", "messages": None} if path == "/v1/responses" else {}
    for _ in range(16):
        code, _, text = house.post(path, "brittle", stream=True, **more)
        assert code == 200 and "to you." in text, text
    assert len(house.cloud.asked) == asked
    assert len(house.breaks.requests) > broken or path != PATHS[0]  # else it is kept off already


def test_a_bad_request_keeps_no_cloud_off_and_goes_to_nobody_else(house: House) -> None:
    house.cloud.code = 200
    inside = len(house.inside.requests)
    for _ in range(3):
        code, _, text = house.post(PATHS[0], "openai-or-house", messages="not a list")
        assert 400 <= code < 500, (code, text)
    assert house.post(PATHS[0], "openai-or-house")[1] == "cloud/openai-or-house"
    assert len(house.inside.requests) == inside
