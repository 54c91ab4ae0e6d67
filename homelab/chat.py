"""A conversation with a model through the gateway: its answers as they come."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import httpx

from homelab import ask
from homelab.errors import DeployError

CONNECT_SECONDS = 5.0
SHORTEST_SECONDS = 0.1
Part = Literal["thought", "answer"]


class Away(DeployError):
    """Nothing answers where the gateway was."""


class TooLong(DeployError):
    """The conversation is longer than the model's context."""


@dataclass(slots=True, kw_only=True)
class Conversation:
    """What was said so far. `used_tokens` are those of the last question, with all before it, and its answer;
    None where that was not told."""

    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)
    used_tokens: int | None = None
    session: str = field(default_factory=lambda: str(uuid4()))

    def messages(self, question: str) -> list[dict[str, str]]:
        """With one more question. What a model has thought is not told to it again."""
        said = [("system", self.system)] if self.system else []
        for asked, answered in self.turns:
            said += [("user", asked), ("assistant", answered)]
        return [{"role": role, "content": text} for role, text in (*said, ("user", question))]

    def add(self, question: str, answer: Answer) -> None:
        """A question with as much of its answer as there is. One that was not answered is not kept: templates
        of models refuse two questions in a row."""
        if answer.text:
            self.turns.append((question, answer.text))
            self.used_tokens = answer.used_tokens


@dataclass(slots=True, kw_only=True)
class Answer:
    """An answer as far as it has come. Times are on the monotonic clock; what the gateway has not told is
    None."""

    asked: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None
    text: str = ""
    thought: bool = False
    served_by: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None

    @property
    def first_token_seconds(self) -> float | None:
        return None if self.first is None else self.first - self.asked

    @property
    def tokens_per_second(self) -> float | None:
        """From the first token to the last. None for an answer that came at once: that is no measurement."""
        if not self.completion_tokens or self.first is None or self.last is None:
            return None
        if self.last - self.first < SHORTEST_SECONDS:
            return None
        return (self.completion_tokens - 1) / (self.last - self.first)

    @property
    def used_tokens(self) -> int | None:
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


async def stream(
    url: str,
    key: str,
    model: str,
    conversation: Conversation,
    question: str,
    into: Answer,
    *,
    max_tokens: int | None = None,
    silence_seconds: float,
    ca_file: str | None = None,
) -> AsyncGenerator[tuple[Part, str], None]:
    """The words of the model's answer as they come through the gateway at `url`, thoughts among them; `into`
    holds what has come so far, also where this is broken off.

    Raises TooLong, and DeployError with the gateway's own words."""
    body: dict[str, Any] = {
        "model": model,
        "messages": conversation.messages(question),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    headers = {
        "Authorization": f"Bearer {key}",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        # LiteLLM 1.106.2 keeps a session at the replica that has its beginning in its cache.
        "x-litellm-session-id": conversation.session,
    }
    said = ask.Said()
    timeout = httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS)
    try:
        async with (
            httpx.AsyncClient(timeout=timeout, trust_env=False, verify=ask.trusting(ca_file)) as client,
            # Not `json=`: half a surrogate pair that a model said is no UTF-8.
            client.stream(
                "POST", f"{url}/v1/chat/completions", content=json.dumps(body).encode(), headers=headers
            ) as response,
        ):
            into.served_by = response.headers.get("x-litellm-model-id")
            kind = response.headers.get("content-type", "")
            said.is_stream = response.status_code == 200 and kind.startswith("text/event-stream")
            async for part in response.aiter_raw():  # unpacked, it could be of any size
                said.add(part)
                for words in _taken(said, into):
                    yield words
                if said.is_over:
                    break
    except httpx.ReadTimeout as e:
        why = f"nothing came for {silence_seconds:.0f} s"
        raise (ask.refused if said.first is None else ask.broken_off)(model, why) from e
    except httpx.HTTPError as e:
        why = str(e) or type(e).__name__
        if said.first is not None:
            raise ask.broken_off(model, why) from e
        raise Away(f"The gateway at {url} does not answer", cause=why, hint="homelab status") from e
    whole = said.whole.decode(errors="replace")
    if response.status_code != 200:
        raise _turned_away(url, model, response.status_code, whole)
    if said.error is not None:
        raise _too_long(model, said.error) or (ask.refused if said.first is None else ask.broken_off)(
            model, said.error
        )
    if not said.is_stream:
        yield "answer", _in_one_piece(model, whole, into)
    elif said.is_none:
        raise ask.no_answer(model, whole)
    elif not said.is_complete:
        raise ask.broken_off(model, "its stream ended without a last piece")


def _taken(said: ask.Said, into: Answer) -> list[tuple[Part, str]]:
    """What is new; `into` knows of it."""
    fresh: list[tuple[Part, str]] = [("answer" if n == "content" else "thought", w) for n, w in said.fresh]
    said.fresh.clear()
    if fresh:
        into.first, into.last = said.first, time.monotonic()
    into.text += "".join(words for part, words in fresh if part == "answer")
    into.thought = into.thought or any(part == "thought" for part, _ in fresh)
    into.finish_reason = said.finish_reason
    _count(said.usage, into)
    return fresh


def _count(usage: dict[str, Any], into: Answer) -> None:
    """What is said of tokens, as far as these are counts."""
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (n if type(n) is int and 0 <= n < 2**31 else None for n in counts)
    into.prompt_tokens = into.prompt_tokens if prompt is None else prompt
    into.completion_tokens = into.completion_tokens if completion is None else completion


def _in_one_piece(model: str, whole: str, into: Answer) -> str:
    """Raises DeployError where it is no answer."""
    try:
        document = json.loads(whole)
        choice = document["choices"][0]
        into.text = str(choice["message"].get("content") or "")
        into.thought = bool(choice["message"].get("reasoning_content"))
        into.finish_reason = choice.get("finish_reason")
        _count(document.get("usage") or {}, into)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as e:
        raise ask.no_answer(model, whole) from e
    return into.text


def _turned_away(url: str, model: str, status: int, said: str) -> DeployError:
    """The gateway's own words, with what helps against them."""
    error = ask.turned_away(url, model, status, said)
    if longer := _too_long(model, error.cause):
        return longer
    if status == 429:
        error.hint = f"Ask again in a moment; who is healthy: homelab status. {error.hint}"
    elif "Invalid model name" in error.cause:
        error.hint = "The gateway does not know it yet: homelab deploy; what there is: homelab connect"
    return error


def _too_long(model: str, why: str) -> TooLong | None:
    """Said so by LiteLLM 1.106.2 for what it counts itself, and for what vLLM and llama.cpp refuse."""
    if "ContextWindowExceeded" not in why and "exceed_context_size_error" not in why:
        return None
    return TooLong(
        f"This is longer than what `{model}` reads",
        cause=why,
        hint="Ask with less text, or a model that reads more: homelab connect",
    )
