"""What the gateway is told, tried on the real LiteLLM before backends that speak as llama.cpp and vLLM."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from homelab import gateway, keys, litellm_names
from homelab.ask import ask, get
from homelab.endpoints import Endpoint
from homelab.engines import Kind
from homelab.errors import DeployError
from homelab.render import GATEWAY_MEMORY_BYTES
from tests import litellm
from tests.test_native_household import CACHE, ROOT, free_port

pytestmark = pytest.mark.native
NATIVE = ROOT / "templates/native"
KEY = "sk-of-this-gateway"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAA"
    "AABJRU5ErkJggg=="
)
IMAGE = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]}
HELLO = {"messages": [{"role": "user", "content": "Hello."}]}
# Pages of LiteLLM 1.106.2 that answer without the key, whatever it is told. None shows a key or an
# address, one (the list of prices) the names of models and nodes.
OPEN_PAGES = [
    "/.well-known/litellm-ui-config",
    "/fallback/login",
    "/get/ui_settings",
    "/get/ui_theme_settings",
    "/get_favicon",
    "/get_image",
    "/get_logo_url",
    "/health/liveliness",
    "/health/liveness",
    "/health/readiness",
    "/litellm/.well-known/litellm-ui-config",
    "/onboarding/get_token",
    "/public/agent_hub",
    "/public/agents/fields",
    "/public/autorouter_presets",
    "/public/complexity_router/fuse_presets",
    "/public/complexity_router/scorer_defaults",
    "/public/endpoints",
    "/public/litellm_blog_posts",
    "/public/litellm_model_cost_map",
    "/public/mcp_hub",
    "/public/model_hub",
    "/public/model_hub/info",
    "/public/providers",
    "/public/providers/fields",
    "/public/skill_hub",
    "/sso/callback",
    "/sso/cli/poll/{key_id}",
    "/sso/key/generate",
    "/sso/saml/login",
    "/sso/saml/metadata",
    "/toolset/{toolset_name}/mcp",
    "/ui",
]
# Run by LiteLLM's own Python: every path that its application can answer, those that it loads late too.
LIST_PAGES = """
import json
from litellm.proxy.proxy_server import app
def walk(routes, prefix=""):
    for r in routes:
        if not hasattr(r, "path"):
            yield from walk(r.original_router.routes, prefix + r.include_context.prefix)
        elif "GET" in (getattr(r, "methods", None) or ()) or type(r).__name__ == "Mount":
            yield prefix + r.path
print(json.dumps(sorted(set(walk(app.router.routes)))))
"""


class Backend(ThreadingHTTPServer):
    """An engine. `does` is how it is: well, or what is wrong with it."""

    def __init__(self, does: str = "well") -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.does, self.requests, self.headers = does, list[bytes](), list[dict[str, str]]()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Backend

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(200, {"status": "ok"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(body)
        self.server.headers.append(dict(self.headers))
        does = self.server.does
        if does == "loading":
            self.refuse(503, "Loading model", "unavailable_error")
        elif does == "crashing":
            self.refuse(500, "EngineDeadError", "InternalServerError")
        elif does == "silent":
            time.sleep(4)
            self.close_connection = True
        elif does in ("breaks", "sleeps"):  # vLLM says 200 before it has read the prompt
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            time.sleep(4 if does == "sleeps" else 0.1)
            self.close_connection = True
        elif does == "well-vectors" and self.path == "/v1/embeddings":
            vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.5]}
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            self.answer(200, {"object": "list", "model": "m", "data": [vector], "usage": usage})
        elif does == "well-vectors" and self.path.endswith("/rerank"):
            self.answer(200, {"id": "1", "results": [{"index": 0, "relevance_score": 0.5}]})
        elif does == "well-vectors":
            self.refuse(501, "This server does not support chat completions", "not_supported_error")
        elif b"image_url" in body:  # llama.cpp b11549, in its words
            self.refuse(
                500,
                "image input is not supported - hint: if this is unexpected, you may need "
                "to provide the mmproj",
                "server_error",
            )
        elif self.path == "/v1/embeddings" and does == "vllm":
            self.refuse(404, "Not Found", "NotFoundError")
        elif self.path == "/v1/embeddings":
            self.refuse(
                501,
                "This server does not support embeddings. Start it with `--embeddings`",
                "not_supported_error",
            )
        elif json.loads(body).get("stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for word, finish in (("Hello ", None), ("to you.", None), (None, "stop")):
                if does in ("drips", "stalls") and word != "Hello ":
                    time.sleep(0.7 if does == "drips" else 4)
                delta = {"role": "assistant", "content": word} if word else {}
                choice = {"index": 0, "finish_reason": finish, "delta": delta}
                chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
                self.wfile.write(f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True
        else:
            message = {"role": "assistant", "content": "Hello to you."}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            self.answer(
                200,
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "m",
                    "choices": [choice],
                    "usage": usage,
                },
            )

    def refuse(self, code: int, message: str, kind: str) -> None:
        self.answer(code, {"error": {"code": code, "message": message, "type": kind}})

    def answer(self, code: int, document: object) -> None:
        text = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


HOUSEHOLD = {
    "lone": ["well"],
    "lone-vllm": ["vllm"],
    "lone-dead": ["dead"],
    "lone-loading": ["loading"],
    "pair": ["well", "well"],
    "beset": ["well", "well"],
    "half-dead": ["dead", "well"],
    "half-loading": ["loading", "well"],
    "half-crashing": ["crashing", "well"],
    "half-silent": ["silent", "well"],
    "half-dead-vectors": ["dead", "well-vectors"],
    "half-dead-ranks": ["dead", "well-vectors"],
    "vectors": ["well-vectors", "well-vectors"],
    "gone": ["dead", "dead"],
    "spare": ["well"],
    "elsewhere": ["well"],
    "short": ["well"],
    "after-dead": ["dead"],
    "talks": ["well", "well"],
    "uneven": ["well", "well", "well"],
    "half-quick": ["dead", "well"],
    "half-deaf": ["deaf", "well"],
    "half-breaks": ["breaks", "well"],
    "half-sleeps": ["sleeps", "well"],
    "lone-drips": ["drips"],
    "lone-stalls": ["stalls"],
}
# Tokens per second, where a replica's are known.
RATES = {"uneven/0": 40.0, "uneven/1": 10.0, "uneven/2": 2.0, "half-quick/0": 40.0, "half-quick/1": 2.0}
IMPATIENT = ("half-silent", "half-sleeps", "lone-drips", "lone-stalls")
# What a model reads, where that is not 4096 tokens.
READS = {"short": 40}
KINDS: dict[str, Kind] = {
    "half-dead-vectors": "embedding",
    "half-dead-ranks": "rerank",
    "vectors": "embedding",
}
FALLBACKS = {
    "half-dead": ["spare"],
    "gone": ["spare"],
    "lone-dead": ["spare"],
    "half-breaks": ["elsewhere"],
    "half-sleeps": ["elsewhere"],
    "short": ["spare"],
    "after-dead": ["lone-dead"],
}
ALIASES = {"coder": "pair", "openai/gpt-4o": "lone", "claude-*": "lone", "quality": "gone"}


class Gateway:
    """LiteLLM, started by the supervisor as on a node without Docker."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.python, self.port = folder, python, free_port()
        self.backends: dict[str, Backend] = {}
        self.deaf = list[socket.socket]()
        endpoints = []
        for name, states in HOUSEHOLD.items():
            for number, does in enumerate(states):
                url = f"http://127.0.0.1:{free_port()}"
                if does == "deaf":
                    url = self.nobody_accepts()
                elif does != "dead":
                    self.backends[f"{name}/{number}"] = backend = Backend(does)
                    url = backend.url
                endpoints.append(
                    Endpoint(
                        name=name,
                        kind=KINDS.get(name, "chat"),
                        url=url,
                        key="",
                        context=READS.get(name, 4096),
                        id=f"{name}/{number}",
                        node="n",
                        origin="placed",
                        upstream="m",
                        tokens_per_s=RATES.get(f"{name}/{number}"),
                    )
                )
        configuration = gateway.configuration(endpoints, FALLBACKS, None, ALIASES)
        for model in configuration["model_list"]:
            if model["model_name"] in IMPATIENT:  # nobody waits 10 minutes for a test
                model["litellm_params"] |= {"timeout": 1, "stream_timeout": 1}
        told = keys.house(endpoints, ALIASES)
        litellm.write(folder, python, self.port, configuration, endpoints, key=KEY, house=told)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def nobody_accepts(self) -> str:
        """An address where connections are neither taken nor refused, as of a machine that is off: Linux
        drops what finds a listener's queue full."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.deaf.append(listener)
        for _ in range(3):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
            self.deaf.append(waiting)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def supervise(self, verb: str) -> dict[str, Any]:
        return litellm.supervise(verb, self.folder)

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def post(self, path: str, model: str, **body: Any) -> tuple[int, str, str]:
        """The status, who answered, and the text."""
        document = json.dumps({"model": model, **body}).encode()
        code, headers, text = self.request("POST", path, document, Authorization=f"Bearer {KEY}")
        return code, headers.get("x-litellm-model-id", ""), text.decode()

    def chat(self, model: str, **more: Any) -> tuple[int, str]:
        return self.post("/v1/chat/completions", model, **{**HELLO, **more})[:2]


@pytest.fixture(scope="module")
def litellm_python() -> Path:
    """LiteLLM's environment, as a deploy makes it, in the user's cache."""
    into = CACHE / "native"
    command = [
        sys.executable,
        NATIVE / "provision.py",
        "--lock",
        NATIVE / "litellm.lock",
        "--name",
        "litellm",
    ]
    done = subprocess.run([*command, "--into", into], capture_output=True, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert "directory" in answer, answer
    return Path(answer["directory"]).absolute() / "bin/python"


@pytest.fixture(scope="module")
def proxy(litellm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("gateway"), litellm_python)
    try:
        with litellm.running(made.folder, made.port):
            yield made
    finally:
        for one in made.deaf:
            one.close()
        for backend in made.backends.values():
            backend.shutdown()
            backend.server_close()


BAD = [
    ("lone", "/v1/chat/completions", IMAGE, 500),
    ("lone", "/v1/embeddings", {"input": "x"}, 501),
    ("lone-vllm", "/v1/embeddings", {"input": "x"}, 404),
    ("pair", "/v1/chat/completions", IMAGE, 500),
    ("pair", "/v1/embeddings", {"input": "x"}, 501),
]


@pytest.mark.parametrize(("model", "path", "body", "code"), BAD)
def test_a_bad_request_is_refused_in_the_engines_words_and_harms_nobody_else(
    proxy: Gateway, model: str, path: str, body: dict[str, Any], code: int
) -> None:
    for _ in range(3):  # as often as OpenAI's library sends it
        answer = proxy.post(path, model, **body)
        assert answer[0] == code, answer
        assert ("not supported" in answer[2]) or ("not support" in answer[2]) or code == 404
        assert proxy.chat(model)[0] == 200
    answered = {proxy.chat(model)[1] for _ in range(12)}
    assert answered == {f"{model}/{n}" for n in range(len(HOUSEHOLD[model]))}


def test_a_client_that_repeats_its_bad_request_takes_the_model_from_nobody(proxy: Gateway) -> None:
    for _ in range(12):
        assert proxy.post("/v1/chat/completions", "beset", **IMAGE)[0] == 500
        assert proxy.chat("beset")[0] == 200


def test_a_bad_request_is_given_to_each_replica_once(proxy: Gateway) -> None:
    before = [len(proxy.backends[f"pair/{n}"].requests) for n in (0, 1)]
    begun = time.monotonic()
    proxy.post("/v1/chat/completions", "pair", **IMAGE)
    assert [len(proxy.backends[f"pair/{n}"].requests) for n in (0, 1)] == [before[0] + 1, before[1] + 1]
    proxy.post("/v1/embeddings", "lone", input="x")
    assert time.monotonic() - begun < 3  # without waiting in between


@pytest.mark.parametrize("model", ["half-dead", "half-loading", "half-crashing", "half-silent"])
def test_while_a_replica_is_well_nobody_notices_the_other(proxy: Gateway, model: str) -> None:
    answers = Counter(proxy.chat(model) for _ in range(24))
    assert answers == {(200, f"{model}/1"): 24}
    assert proxy.post("/v1/messages", model, **HELLO, max_tokens=9)[0] == 200
    if model != "half-dead":
        # Kept off: at once where it says itself what is wrong, else after a few failures.
        ill = proxy.backends[f"{model}/0"]
        assert len(ill.requests) <= (6 if model == "half-crashing" else 1)
    assert not any(b"half-dead" in r for r in proxy.backends["spare/0"].requests)
    if model == "half-dead":
        assert proxy.backends["spare/0"].requests == []


def test_shares_follow_speed_and_the_slowest_is_a_second_place(proxy: Gateway) -> None:
    answers = Counter(proxy.chat("uneven") for _ in range(100))
    fast, slow = answers[200, "uneven/0"], answers[200, "uneven/1"]
    assert fast + slow == 100  # 4 : 1 : 0
    assert 65 <= fast <= 93, answers  # 80 ± 3.7 standard deviations


def test_a_second_place_answers_where_the_first_cannot(proxy: Gateway) -> None:
    assert Counter(proxy.chat("half-quick") for _ in range(20)) == {(200, "half-quick/1"): 20}
    assert proxy.post("/v1/messages", "half-quick", **HELLO, max_tokens=9)[0] == 200


def test_a_connection_that_nobody_takes_is_given_up_soon(proxy: Gateway) -> None:
    """Though an answer would be waited for ten minutes."""
    begun = time.monotonic()
    answers = Counter(proxy.chat("half-deaf") for _ in range(12))
    assert answers == {(200, "half-deaf/1"): 12}
    assert time.monotonic() - begun < 12  # 5 s once: then it is kept off


def test_a_stream_may_take_longer_than_any_pause_in_it(proxy: Gateway) -> None:
    begun = time.monotonic()
    code, _, text = proxy.post("/v1/chat/completions", "lone-drips", **HELLO, stream=True)
    assert code == 200 and "to you." in text and "[DONE]" in text
    assert time.monotonic() - begun > 1.3  # two pauses of 0.7 s, and none of a second


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("model", ["half-breaks", "half-sleeps"])
def test_a_stream_that_breaks_before_its_first_word_goes_to_the_twin(
    proxy: Gateway, model: str, path: str
) -> None:
    """And not to what answers where no replica is well, which may be outside the house."""
    for _ in range(12):
        code, _, text = proxy.post(path, model, **HELLO, stream=True, max_tokens=9)
        assert code == 200 and "to you." in text, text
    assert proxy.backends["elsewhere/0"].requests == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_stream_that_stops_in_the_middle_ends_with_an_error(proxy: Gateway, path: str) -> None:
    begun = time.monotonic()
    code, _, text = proxy.post(path, "lone-stalls", **HELLO, stream=True, max_tokens=9)
    assert time.monotonic() - begun < 3.5
    assert "to you." not in text and "error" in text, (code, text)


def test_vectors_and_ranks_come_from_the_replica_that_is_well(proxy: Gateway) -> None:
    for _ in range(20):
        assert proxy.post("/v1/embeddings", "half-dead-vectors", input="x")[:2] == (
            200,
            "half-dead-vectors/1",
        )
        ranked = proxy.post("/v1/rerank", "half-dead-ranks", query="x", documents=["y"])
        assert ranked[:2] == (200, "half-dead-ranks/1"), ranked
    assert proxy.chat("vectors")[0] == 501
    answers = Counter(proxy.post("/v1/embeddings", "vectors", input="x")[:2] for _ in range(12))
    assert set(answers) == {(200, "vectors/0"), (200, "vectors/1")}


def test_where_nothing_is_well_a_fallback_answers_at_once(proxy: Gateway) -> None:
    begun = time.monotonic()
    assert [proxy.chat("gone") for _ in range(10)] == [(200, "spare/0")] * 10
    assert [proxy.chat("lone-dead") for _ in range(10)] == [(200, "spare/0")] * 10
    assert time.monotonic() - begun < 20


def test_a_lone_backend_that_comes_back_is_used_at_once(proxy: Gateway) -> None:
    assert proxy.post("/v1/chat/completions", "lone-loading", **HELLO)[0] == 503
    proxy.backends["lone-loading/0"].does = "well"
    assert proxy.chat("lone-loading") == (200, "lone-loading/0")


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("coder", "pair/"),
        ("openai/gpt-4o", "lone/0"),
        ("claude-sonnet-4-6", "lone/0 as claude-*"),
        ("quality", "spare/0"),  # what answers for a model answers for its other names
    ],
)
def test_a_model_answers_under_its_other_names(proxy: Gateway, name: str, who: str) -> None:
    code, answered = proxy.chat(name)
    assert code == 200 and answered.startswith(who)


def test_other_names_are_listed(proxy: Gateway) -> None:
    code, _, text = proxy.request("GET", "/v1/models", Authorization=f"Bearer {KEY}")
    assert code == 200 and {"coder", "openai/gpt-4o", "quality", "pair"} <= {
        m["id"] for m in json.loads(text)["data"]
    }


def test_what_is_too_long_for_a_model_goes_to_the_one_that_reads_more(proxy: Gateway) -> None:
    assert proxy.chat("short") == (200, "short/0")
    long = {"messages": [{"role": "user", "content": "word " * 200}]}
    assert proxy.post("/v1/chat/completions", "short", **long)[:2] == (200, "spare/0")
    assert proxy.post("/v1/messages", "short", max_tokens=10, **long)[0] == 200
    code, _, said = proxy.post(
        "/v1/chat/completions", "pair", messages=[{"role": "user", "content": "w " * 9000}]
    )
    assert code == 400 and "context" in said.lower()


def test_a_fallback_s_own_fallback_answers(proxy: Gateway) -> None:
    """So every chain is a way that a prompt may go, and is shown and refused as one."""
    assert proxy.chat("after-dead") == (200, "spare/0")


def test_a_conversation_that_its_replica_cannot_answer_goes_to_the_other(proxy: Gateway) -> None:
    for path in ("/v1/chat/completions", "/v1/messages"):
        for n in range(12):
            document = json.dumps({"model": "half-dead", **HELLO, "max_tokens": 9}).encode()
            headers = {"Authorization": f"Bearer {KEY}", "x-litellm-session-id": f"new-{path}-{n}"}
            code, told, text = proxy.request("POST", path, document, **headers)
            assert (code, told["x-litellm-model-id"]) == (200, "half-dead/1"), text


def test_a_conversation_stays_with_its_replica(proxy: Gateway) -> None:
    def asked(session: str) -> set[str]:
        document = json.dumps({"model": "talks", **HELLO}).encode()
        headers = {"Authorization": f"Bearer {KEY}", "x-litellm-session-id": session}
        answers = [proxy.request("POST", "/v1/chat/completions", document, **headers) for _ in range(8)]
        assert {code for code, _, _ in answers} == {200}
        return {h["x-litellm-model-id"] for _, h, _ in answers}

    sessions = [asked(f"session-{n}") for n in range(8)]
    assert all(len(who) == 1 for who in sessions)  # each stays
    assert len(set.union(*sessions)) == 2  # and not all with one


def test_every_key_is_one_that_litellm_knows(litellm_python: Path) -> None:
    """What it does not know it ignores in silence."""
    script = """
import inspect, json, sys
from litellm import Router
from litellm.proxy._types import ConfigGeneralSettings
from litellm.types.router import LiteLLM_Params, LiteLLMParamsTypedDict, ModelInfo
import litellm
print(json.dumps({
  "router_settings": sorted(inspect.signature(Router.__init__).parameters),
  "general_settings": sorted(ConfigGeneralSettings.model_fields),
  "litellm_params": sorted({*LiteLLM_Params.model_fields, *LiteLLMParamsTypedDict.__annotations__}),
  "model_info": sorted(ModelInfo.model_fields),
  "litellm_settings": sorted(dir(litellm)),
}))"""
    done = subprocess.run([litellm_python, "-c", script], capture_output=True, text=True, check=True)
    known = json.loads(done.stdout.splitlines()[-1])
    endpoints = [
        Endpoint(
            name="m",
            kind=kind,
            url="http://h:1",
            key="k",
            context=9,
            id=f"n/{n}",
            node="n",
            origin=origin,
            upstream="m",
        )
        for n, (kind, origin) in enumerate([("chat", "placed"), ("embedding", "placed"), ("chat", "cloud")])
    ]
    quick, slow = (replace(endpoints[0], name="w", id=f"w/{rate}", tokens_per_s=rate) for rate in (9.0, 5.0))
    endpoints += [quick, slow]
    # Read by the proxy itself, past its own list (`proxy_server.py`, `user_api_key_auth.py`).
    known["general_settings"] += ["enable_health_check_routing", "custom_auth_run_common_checks"]
    known["litellm_settings"].append("enable_post_custom_auth_checks")
    known["litellm_params"].append("num_retries")  # of embeddings, tried above
    written = gateway.configuration(endpoints, {"m": ["m"]}, None, {"a": "m", "b*": "m"})
    for section in ("router_settings", "general_settings", "litellm_settings"):
        assert set(written[section]) <= set(known[section]), section
    assert sum("weight" in model["litellm_params"] for model in written["model_list"]) == 2
    for model in written["model_list"]:
        assert set(model) == {"model_name", "litellm_params", "model_info"}
        assert set(model["litellm_params"]) <= set(known["litellm_params"])


def test_its_names_of_providers_and_models_are_fresh(litellm_python: Path) -> None:
    done = subprocess.run(
        [litellm_python, ROOT / "tools/litellm_names.py"],
        capture_output=True,
        text=True,
        check=True,
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
    names: dict[str, Any] = {}
    exec(done.stdout, names)  # what the script writes is a module of three names
    shipped = (litellm_names.VERSION, litellm_names.PROVIDERS, litellm_names.MODELS)
    assert (names["VERSION"], names["PROVIDERS"], names["MODELS"]) == shipped


def test_only_these_pages_answer_without_the_key(proxy: Gateway, litellm_python: Path) -> None:
    environment = {**gateway.ENVIRONMENT, "HOME": str(proxy.folder), "LITELLM_DISABLE_LAZY_ROUTES": "True"}
    done = subprocess.run(
        [litellm_python, "-c", LIST_PAGES], capture_output=True, text=True, env=environment, cwd=proxy.folder
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pages = json.loads(done.stdout.splitlines()[-1])
    assert len(pages) > 300
    open_pages = []
    for page in pages:
        # What is mounted answers below its path.
        path = re.sub(r"\{[^}]*\}", "x", page) + ("/" if page in ("/ui", "/swagger", "/_next") else "")
        code, headers, body = proxy.request("GET", path, Origin="http://evil.example")
        assert "access-control-allow-origin" not in headers, page
        assert KEY.encode() not in body and b"127.0.0.1" not in body, page
        # LiteLLM keeps its deployments in its list of prices.
        assert (b"half-dead" in body) == (page == "/public/litellm_model_cost_map"), page
        if code not in (401, 403, 404, 405, 307):
            open_pages.append(page)
    assert open_pages == sorted(OPEN_PAGES)


def test_no_web_page_may_read_an_answer_in_a_browser(proxy: Gateway) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin in ("http://evil.example", "null", proxy.url):
        code, headers, _ = proxy.request("OPTIONS", "/v1/chat/completions", Origin=origin, **asked)
        assert (code, headers.get("access-control-allow-origin")) == (400, None)


def test_a_huge_body_without_a_key_takes_no_more_memory_than_the_gateway_may_have(proxy: Gateway) -> None:
    process = psutil.Process(proxy.supervise("status")["pid"])
    assert process.rlimit(psutil.RLIMIT_DATA) == (GATEWAY_MEMORY_BYTES, GATEWAY_MEMORY_BYTES)
    highest, done = 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.02):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    body = b'{"model": "lone", "messages": [{"role": "user", "content": "' + b"a" * (309 << 20) + b'"}]}'
    try:
        for _ in range(3):
            code = proxy.request("POST", "/v1/chat/completions", body)[0]
            assert code in (400, 401, 500)
            assert proxy.chat("lone")[0] == 200
    finally:
        done.set()
        watcher.join()
    # What is mapped from files (its libraries) is no part of the limit.
    assert highest < GATEWAY_MEMORY_BYTES + (128 << 20), highest >> 20
    assert proxy.supervise("status")["restarts"] == 0


def test_another_gateways_key_is_said_to_be_one(proxy: Gateway) -> None:
    said = asyncio.run(ask(proxy.url, KEY, "lone", "chat"))
    assert (said.text, said.served_by) == ("Hello to you.", "lone/0")
    assert said.first_token_seconds is not None and 0 < said.first_token_seconds < said.seconds
    for wrong in ("sk-of-another-gateway", "nonsense"):
        with pytest.raises(DeployError, match="does not know this key") as e:
            asyncio.run(ask(proxy.url, wrong, "lone", "chat"))
        assert "does not know this key" in str(e.value.cause)
        assert "homelab status" in str(e.value.hint)
        assert wrong not in f"{e.value} {e.value.cause} {e.value.hint}"


def test_who_listens_in_the_gateways_place_is_taken_for_it() -> None:
    """What is not protected: LiteLLM has nothing by which it could prove that it knows the key."""
    with Backend() as stranger:
        assert asyncio.run(get(stranger.url + gateway.HEALTH))[0] == 200  # status: running, without the key
        assert stranger.headers == []
        asyncio.run(ask(stranger.url, KEY, "lone", "chat", "a secret"))
        assert stranger.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert b"a secret" in stranger.requests[0]
        stranger.shutdown()
