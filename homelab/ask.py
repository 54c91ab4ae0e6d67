"""One question to a model through the gateway, of the model's kind; and what an engine says it serves."""

from __future__ import annotations

import json
import ssl
import time
from dataclasses import dataclass
from typing import Any

import httpx

from homelab.engines import Kind
from homelab.errors import DeployError

TIMEOUT_SECONDS = 300.0
QUESTION = "Say hello in one short sentence."
MAX_TOKENS = 64
MOST_BYTES = 4 << 20  # of what somebody who is asked for his state has to say
MOST_ANSWER_BYTES = 64 << 20  # of an answer: a token of a stream takes some 250
# Where a piece of an answer has its words. A model may think first, and engines call that otherwise.
WORDS = ("content", "reasoning_content", "reasoning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back. `text` is the answer, or for embedding and rerank what it consists of: those have no
    first token, and neither has an answer that came in one piece."""

    model: str
    text: str
    seconds: float
    first_token_seconds: float | None = None
    served_by: str | None = None


async def ask(
    url: str,
    key: str,
    model: str,
    kind: Kind,
    prompt: str = QUESTION,
    max_tokens: int = MAX_TOKENS,
    *,
    ca_file: str | None = None,
) -> Answer:
    """The model's answer through the gateway at `url`. A chat's comes as it is made, so that it is known when
    its first token did. `ca_file`: the house's own authority, where that signed the gateway's certificate.

    Raises DeployError with the gateway's own words."""
    body: dict[str, Any]
    match kind:
        case "chat":
            path, body = (
                "/v1/chat/completions",
                {
                    "model": model,
                    "messages": [{"role": "user", "content": prompt}],
                    "max_tokens": max_tokens,
                    "stream": True,
                },
            )
        case "embedding":
            path, body = "/v1/embeddings", {"model": model, "input": prompt}
        case "rerank":
            path, body = (
                "/v1/rerank",
                {
                    "model": model,
                    "query": prompt,
                    "documents": ["Hello there.", "The cellar is full of potatoes."],
                },
            )
    headers = {"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"}
    said = Said()
    begun = time.monotonic()
    try:
        async with (
            httpx.AsyncClient(
                timeout=httpx.Timeout(TIMEOUT_SECONDS, connect=5), trust_env=False, verify=trusting(ca_file)
            ) as client,
            client.stream("POST", url + path, json=body, headers=headers) as response,
        ):
            kind_of_body = response.headers.get("content-type", "")
            said.is_stream = response.status_code == 200 and kind_of_body.startswith("text/event-stream")
            async for part in response.aiter_raw():  # unpacked, it could be of any size
                said.add(part)
                if said.is_over:
                    break
    except httpx.HTTPError as e:
        why = str(e) or type(e).__name__
        if said.first is not None:
            raise broken_off(model, why) from e
        raise DeployError(f"The gateway at {url} does not answer", cause=why, hint="homelab status") from e
    whole = said.whole.decode(errors="replace")
    if response.status_code != 200:
        raise turned_away(url, model, response.status_code, whole)
    if said.error is not None:
        raise (refused if said.first is None else broken_off)(model, said.error)
    try:
        text = said.text if said.is_stream else _text(kind, json.loads(whole))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as e:
        raise no_answer(model, whole) from e
    if said.is_stream and not said.is_complete:
        raise broken_off(model, "its stream ended without a last piece")
    return Answer(
        model=model,
        text=text,
        seconds=time.monotonic() - begun,
        first_token_seconds=None if said.first is None else said.first - begun,
        served_by=response.headers.get("x-litellm-model-id"),
    )


def turned_away(url: str, model: str, status: int, said: str) -> DeployError:
    """What the gateway says with another status than 200, in its own words."""
    why = f"HTTP {status}: {_message(said)}"
    if _is_of_another_key(said):
        return DeployError(
            f"The gateway at {url} does not know this key",
            cause=why,
            hint="Remove secrets.json from the folder where `homelab connect` says that the key lies, "
            "then `homelab status`: it reads the key back from the gateway's node",
        )
    return refused(model, why)


def no_answer(model: str, said: str) -> DeployError:
    return DeployError(
        f"`{model}` gave an answer that is none", cause=said[:300], hint=f"homelab logs {model}"
    )


def refused(model: str, why: str) -> DeployError:
    return DeployError(
        f"`{model}` did not answer through the gateway",
        cause=why,
        hint=f"homelab logs {model}; homelab logs gateway",
    )


def broken_off(model: str, why: str) -> DeployError:
    return DeployError(
        f"`{model}` broke off its answer", cause=why, hint=f"homelab logs {model}; homelab logs gateway"
    )


class Said:
    """What came so far, and where it is a stream of server-sent events, what its chunks say. `fresh` are the
    words that nobody has taken from it yet, each with its name among WORDS; `usage` is the gateway's count of
    tokens, `finish_reason` why it ended, where it says so."""

    def __init__(self) -> None:
        self.is_stream = False
        self.whole = bytearray()
        self.first: float | None = None  # when the first token came, on the monotonic clock
        self.error: str | None = None
        self.is_complete = self.is_over = False
        self.fresh: list[tuple[str, str]] = []
        self.usage: dict[str, Any] = {}
        self.finish_reason: str | None = None
        self._read = 0  # up to where its lines are read
        self._words: dict[str, list[str]] = {name: [] for name in WORDS}
        self._is_none = False

    @property
    def is_none(self) -> bool:
        """Whether it is a stream, and not one of chunks."""
        return self._is_none

    @property
    def text(self) -> str:
        """The answer; its thoughts where it came to no answer.

        Raises ValueError where these were no chunks."""
        if self._is_none:
            raise ValueError("no stream of chunks")
        return _harmless(next((t for w in self._words.values() if (t := "".join(w).strip())), ""))

    def add(self, part: bytes) -> None:
        """What came next, wherever it was cut."""
        seen = len(self.whole)  # there is no end of a line before, from where its lines are read
        self.whole += part
        if self.is_stream:
            while not self.is_over and (end := self.whole.find(b"\n", seen)) >= 0:
                line = bytes(self.whole[self._read : end])
                self._read = seen = end + 1
                try:
                    self._take(line)
                except (ValueError, TypeError, AttributeError, RecursionError):
                    self._is_none = self.is_over = True
        if not self.is_over and len(self.whole) > MOST_ANSWER_BYTES:
            self.error, self.is_over = f"it said more than {MOST_ANSWER_BYTES >> 20} MiB", True

    def _take(self, line: bytes) -> None:
        field, _, data = line.partition(b":")
        if field != b"data":
            return  # a comment that keeps the connection open, or an event's name
        if data.strip() == b"[DONE]":
            self.is_complete = self.is_over = True
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self.error, self.is_over = _error_of(chunk), True
            return
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            for name, words in self._words.items():
                if delta.get(name):
                    words.append(str(delta[name]))
                    self.fresh.append((name, words[-1]))
                    self.first = self.first or time.monotonic()
            # Not every server says [DONE] behind it.
            if choice.get("finish_reason"):
                self.is_complete, self.finish_reason = True, str(choice["finish_reason"])


def _text(kind: Kind, document: Any) -> str:
    match kind:
        case "chat":
            message = document["choices"][0]["message"]
            return _harmless(next((str(message[name]) for name in WORDS if message.get(name)), "").strip())
        case "embedding":
            return f"{len(document['data'][0]['embedding'])} dimensions"
        case "rerank":
            return "order " + ", ".join(str(r["index"]) for r in document["results"])


def _harmless(text: str) -> str:
    """A model may say anything; control characters would steer the terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def _is_of_another_key(said: str) -> bool:
    """The gateway's own words (templates/homelab_auth.py). One of an earlier release leaves it to LiteLLM: it
    looks for a key that is not its own in a database and says that it has none, HTTP 400 with this type
    (1.106.2)."""
    try:
        error = json.loads(said)["error"]
        return bool(error["type"] == "no_db_connection") or "does not know this key" in error["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _message(said: str) -> str:
    try:
        return _error_of(json.loads(said))
    except (ValueError, KeyError, TypeError, RecursionError):
        return said[:300]


def _error_of(document: Any) -> str:
    error = document["error"]
    return str(error["message"] if isinstance(error, dict) and "message" in error else error)[:600]


def trusting(ca_file: str | None) -> ssl.SSLContext | bool:
    """Whom a client believes: this authority alone, else those of the system."""
    return True if ca_file is None else ssl.create_default_context(cafile=ca_file)


async def get(
    url: str, key: str | None = None, timeout: float = 5.0, *, ca_file: str | None = None
) -> tuple[int, Any]:
    """The status and JSON of a GET; status 0 where nothing answers."""
    async with httpx.AsyncClient(timeout=timeout, trust_env=False, verify=trusting(ca_file)) as client:
        code, text = await get_text(client, url, key)
    try:
        return code, json.loads(text)
    except (ValueError, RecursionError):
        return code, None


async def get_text(client: httpx.AsyncClient, url: str, key: str | None = None) -> tuple[int, str]:
    """The status and text of a GET; status 0 where nothing answers, or more than MOST_BYTES."""
    headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}
    said = bytearray()
    try:
        async with client.stream("GET", url, headers=headers) as response:
            async for part in response.aiter_raw():  # unpacked, it could be of any size
                said += part
                if len(said) > MOST_BYTES:
                    return 0, ""
    except (httpx.HTTPError, httpx.InvalidURL):
        return 0, ""
    return response.status_code, said.decode(errors="replace")
