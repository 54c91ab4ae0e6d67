"""One question to a model, answered by a small server as engines and LiteLLM do: piece by piece, at once, or
not to the end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from homelab import ask as asking
from homelab.ask import Answer, ask
from homelab.errors import DeployError

Pieces = Sequence[bytes | float]  # what is sent, and seconds of silence


class Server(ThreadingHTTPServer):
    """Answers every question with these pieces."""

    def __init__(self, pieces: Pieces, status: int, kind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.pieces, self.status, self.kind = pieces, status, kind
        self.asked: list[dict[str, Any]] = []


class _Answers(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.send_header("Content-Type", self.server.kind)
        self.send_header("x-litellm-model-id", "n/m")
        self.end_headers()
        try:
            for piece in self.server.pieces:
                if isinstance(piece, float):
                    time.sleep(piece)
                else:
                    self.wfile.write(piece)
                    self.wfile.flush()
        except OSError:
            pass  # who asked has heard enough


Answering = Callable[..., Answer]


@pytest.fixture
def answer() -> Iterator[Answering]:
    servers: list[Server] = []

    def get(
        *pieces: bytes | float,
        status: int = 200,
        content: str = "text/event-stream; charset=utf-8",
        kind: Any = "chat",
    ) -> Answer:
        server = Server(pieces, status, content)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = asyncio.run(ask(f"http://127.0.0.1:{server.server_port}", "sk-key", "m", kind))
        assert server.asked[0].get("stream", False) == (kind == "chat")
        return said

    yield get
    for server in servers:
        server.shutdown()
        server.server_close()


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    document = {"object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def test_a_chat_is_timed_to_its_first_token(answer: Answering) -> None:
    said = answer(
        b": a comment that keeps the line open\n\n",
        chunk(role="assistant", content=""),
        0.2,
        chunk(content="Hel"),
        0.2,
        chunk(content="lo 漢\x1b[2J.\n"),
        chunk("stop"),
        b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\n',
        DONE,
    )
    assert (said.text, said.served_by) == ("Hello 漢[2J.", "n/m")
    assert said.first_token_seconds is not None
    assert 0.2 <= said.first_token_seconds < said.seconds - 0.15


def test_a_stream_may_be_cut_anywhere(answer: Answering) -> None:
    whole = (chunk(content="漢字 ") + chunk("stop", content="end") + DONE).replace(b"\n", b"\r\n")
    assert answer(*(whole[i : i + 1] for i in range(len(whole)))).text == "漢字 end"
    assert answer(chunk("length", content="no DONE")).text == "no DONE"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_is_a_first_token_and_the_answer_is_the_answer(answer: Answering, name: str) -> None:
    thinks = chunk(**{name: "Let me think."})
    said = answer(chunk(role="assistant"), thinks, 0.2, chunk("stop", content="42"), DONE)
    assert said.text == "42"
    assert said.first_token_seconds is not None and said.first_token_seconds < said.seconds - 0.15
    assert answer(thinks, chunk("length"), DONE).text == "Let me think."


def test_who_does_not_stream_is_understood_too(answer: Answering) -> None:
    whole = json.dumps({"choices": [{"message": {"content": "Hello."}}]}).encode()
    said = answer(whole, content="application/json")
    assert (said.text, said.first_token_seconds) == ("Hello.", None)


def test_vectors_and_ranks_have_no_first_token(answer: Answering) -> None:
    vector = json.dumps({"data": [{"embedding": [0.5] * 3}]}).encode()
    said = answer(vector, content="application/json", kind="embedding")
    assert (said.text, said.first_token_seconds) == ("3 dimensions", None)
    ranks = json.dumps({"results": [{"index": 1}, {"index": 0}]}).encode()
    assert answer(ranks, content="application/json", kind="rerank").text == "order 1, 0"


def refused(answer: Answering, *pieces: bytes | float, **more: Any) -> DeployError:
    with pytest.raises(DeployError) as e:
        answer(*pieces, **more)
    assert "sk-key" not in f"{e.value.message} {e.value.cause} {e.value.hint}"
    return e.value


def test_an_error_before_and_in_a_stream_has_the_gateways_words(answer: Answering) -> None:
    error = {"error": {"message": "no backend is well", "type": "None", "code": "429"}}
    e = refused(answer, json.dumps(error).encode(), status=429, content="application/json")
    assert (e.message, e.cause) == (
        "`m` did not answer through the gateway",
        "HTTP 429: no backend is well",
    )
    inside = b"data: " + json.dumps(error).encode() + b"\n\n"
    e = refused(answer, inside, DONE)
    assert (e.message, e.cause) == ("`m` did not answer through the gateway", "no backend is well")
    e = refused(answer, chunk(content="Hel"), inside)
    assert (e.message, e.cause) == ("`m` broke off its answer", "no backend is well")
    e = refused(answer, b'data: {"error": "plain words"}\n\n')
    assert e.cause == "plain words"


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([b"data: {nonsense\n\n"], "`m` gave an answer that is none"),
        ([b"data: [1, 2]\n\n"], "`m` gave an answer that is none"),
        ([b'data: {"choices": [7]}\n\n'], "`m` gave an answer that is none"),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], "`m` gave an answer that is none"),
        ([b'data: {"choices": [{"delta": ["x"]}]}\n\n', DONE], "`m` gave an answer that is none"),
        ([chunk(content="Hel")], "`m` broke off its answer"),
        ([], "`m` broke off its answer"),
    ],
)
def test_what_is_no_answer_is_an_error_of_ours(answer: Answering, pieces: Pieces, message: str) -> None:
    assert refused(answer, *pieces).message == message


def test_a_stream_without_an_end_is_not_read_for_ever(
    answer: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "MOST_ANSWER_BYTES", 1 << 20)
    for endless in ([b"x" * (64 << 10)] * 100, [chunk(content="la ") * 500] * 100):
        assert "more than 1 MiB" in refused(answer, *endless).cause
