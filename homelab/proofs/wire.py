"""The three protocols that agents speak: what a request looks like in each, and what its stream must be like.
Pure.

Streams are read as strictly as clients do: Claude Code wants each piece in a block that is open and of its
kind, Codex takes items from `response.output_item.done`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Protocol = Literal["chat", "messages", "responses"]
PROTOCOLS: tuple[Protocol, ...] = ("chat", "messages", "responses")
PATHS: dict[Protocol, str] = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
COUNT_PATH = "/v1/messages/count_tokens"
# The least that Anthropic takes for `budget_tokens`.
THINKING_TOKENS = 1024
MOST_EVENT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that a model may call; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """`arguments` is the text that came, which should be a JSON object."""

    id: str
    name: str
    arguments: str

    @property
    def values(self) -> Any:
        """The arguments as values; None where they are no JSON."""
        try:
            return json.loads(self.arguments)
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens. `cached` are those of the prompt that were not worked out again; None where nobody says."""

    prompt: int
    cached: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back. `status` is 0 where nothing did. `error` is what the server said, `broken` what its
    stream lacks. `ended` is `stop`, `calls` or `length`. `replay` is what a client sends back of it, as it
    came. `served_by` is who answered, by LiteLLM's header."""

    status: int = 200
    error: str = ""
    broken: str = ""
    text: str = ""
    thoughts: str = ""
    calls: tuple[Call, ...] = ()
    ended: str = ""
    usage: Usage | None = None
    replay: tuple[Mapping[str, Any], ...] = ()
    served_by: str = ""
    first_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What tools gave back, by the id of the call."""

    by_id: tuple[tuple[str, str], ...]


Turn = str | Answer | Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request: what a person said, what came back, what tools gave. `counts`: only its tokens are asked
    for. `temperature` None: as the server samples by itself."""

    turns: tuple[Turn, ...]
    max_tokens: int
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    schema: Mapping[str, Any] | None = None
    think: bool = False
    counts: bool = False
    temperature: float | None = 0.0


def body(protocol: Protocol, model: str, ask: Ask) -> dict[str, Any]:
    """The request's JSON."""
    match protocol:
        case "chat":
            return _chat(model, ask)
        case "messages":
            return _messages(model, ask)
        case "responses":
            return _responses(model, ask)


def _chat(model: str, ask: Ask) -> dict[str, Any]:
    messages: list[Any] = []
    for turn in ask.turns:
        if isinstance(turn, str):
            messages.append({"role": "user", "content": turn})
        elif isinstance(turn, Answer):
            messages += turn.replay
        else:
            messages += [{"role": "tool", "tool_call_id": i, "content": text} for i, text in turn.by_id]
    made: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": ask.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ask.temperature is not None:
        made["temperature"] = ask.temperature
    if ask.tools:
        made["tools"] = [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
            }
            for t in ask.tools
        ]
    if ask.must_call:
        made["tool_choice"] = "required"
    if ask.schema is not None:
        schema = {"name": "answer", "schema": ask.schema, "strict": True}
        made["response_format"] = {"type": "json_schema", "json_schema": schema}
    if ask.think:
        made["reasoning_effort"] = "high"
    return made


def _messages(model: str, ask: Ask) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for turn in ask.turns:
        if isinstance(turn, str):
            messages.append({"role": "user", "content": [{"type": "text", "text": turn}]})
        elif isinstance(turn, Answer):
            messages.append({"role": "assistant", "content": list(turn.replay)})
        else:
            blocks = [{"type": "tool_result", "tool_use_id": i, "content": text} for i, text in turn.by_id]
            messages.append({"role": "user", "content": blocks})
    made: dict[str, Any] = {"model": model, "messages": messages}
    if ask.tools:
        made["tools"] = [
            {"name": t.name, "description": t.description, "input_schema": t.parameters} for t in ask.tools
        ]
    if ask.counts:
        return made
    made |= {"max_tokens": ask.max_tokens, "stream": True}
    if ask.must_call:
        made["tool_choice"] = {"type": "any"}
    if ask.schema is not None:
        made["output_config"] = {"format": {"type": "json_schema", "schema": ask.schema}}
    if ask.think:
        # Anthropic takes no temperature beside it, and a budget below `max_tokens` only.
        made["thinking"] = {"type": "enabled", "budget_tokens": THINKING_TOKENS}
        made["max_tokens"] = max(ask.max_tokens, THINKING_TOKENS + 512)
    elif ask.temperature is not None:
        made["temperature"] = ask.temperature
    return made


def _responses(model: str, ask: Ask) -> dict[str, Any]:
    items: list[Any] = []
    for turn in ask.turns:
        if isinstance(turn, str):
            content = [{"type": "input_text", "text": turn}]
            items.append({"type": "message", "role": "user", "content": content})
        elif isinstance(turn, Answer):
            items += turn.replay
        else:
            items += [
                {"type": "function_call_output", "call_id": i, "output": text} for i, text in turn.by_id
            ]
    made: dict[str, Any] = {
        "model": model,
        "input": items,
        "max_output_tokens": ask.max_tokens,
        "stream": True,
        "store": False,
    }
    if ask.temperature is not None:
        made["temperature"] = ask.temperature
    if ask.tools:
        made["tools"] = [
            {
                "type": "function",
                "name": t.name,
                "description": t.description,
                "parameters": t.parameters,
                "strict": False,
            }
            for t in ask.tools
        ]
    if ask.must_call:
        made["tool_choice"] = "required"
    if ask.schema is not None:
        made["text"] = {
            "format": {"type": "json_schema", "name": "answer", "schema": ask.schema, "strict": True}
        }
    if ask.think:
        made["reasoning"] = {"effort": "high"}
    return made


@dataclass(slots=True)
class Events:
    """Server-sent events out of the bytes of a body, wherever it was cut."""

    _rest: bytearray = field(default_factory=bytearray)
    _data: list[str] = field(default_factory=list)

    def feed(self, part: bytes) -> Iterator[str]:
        """The data of each event that is whole now.

        Raises ValueError for one that is too long."""
        self._rest += part
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        if len(self._rest) > MOST_EVENT_BYTES:
            raise ValueError("one event is longer than 16 MiB")
        for line in lines:
            text = line.rstrip(b"\r").decode(errors="replace")
            if text.startswith("data:"):
                self._data.append(text[5:].removeprefix(" "))
            elif not text and self._data:
                yield "\n".join(self._data)
                self._data.clear()

    def end(self) -> Iterator[str]:
        """What stands there without an empty line behind it."""
        yield from self.feed(b"\n\n")


class Reader:
    """A stream of one protocol, event by event."""

    def __init__(self) -> None:
        self.error = self.broken = self.ended = ""
        self.text: list[str] = []
        self.thoughts: list[str] = []
        self.usage: Usage | None = None
        self.is_complete = False

    @property
    def has_begun(self) -> bool:
        """Whether a token came."""
        return bool(self.text or self.thoughts or self._calls())

    def take(self, data: str) -> None:
        """One event's data; what is wrong with it is in `broken`, the first of it."""
        if data.strip() == "[DONE]":
            self._done()
            return
        try:
            document = json.loads(data)
            if not isinstance(document, dict):
                raise TypeError
        except (ValueError, TypeError, RecursionError):
            self._wrong(f"an event is no JSON object: {data[:120]}")
            return
        if document.get("error") is not None and document.get("type") in (None, "error"):
            self.error = self.error or words_of(document)
            return
        try:
            self._take(document)
        except (KeyError, TypeError, AttributeError, IndexError) as e:
            self._wrong(f"an event is not as the protocol has it ({type(e).__name__} {e}): {data[:160]}")

    def answer(self) -> Answer:
        """What came, once the stream has ended."""
        if not self.error and not self.broken and not self.is_complete:
            self.broken = "the stream ended without its last event"
        calls = self._calls()
        return Answer(
            error=self.error,
            broken=self.broken,
            text="".join(self.text),
            thoughts="".join(self.thoughts),
            calls=calls,
            ended="calls" if calls and self.ended != "length" else self.ended,
            usage=self.usage,
            replay=self._replay(),
        )

    def _wrong(self, why: str) -> None:
        self.broken = self.broken or why

    def _done(self) -> None:
        pass

    def _take(self, document: dict[str, Any]) -> None:
        raise NotImplementedError

    def _calls(self) -> tuple[Call, ...]:
        raise NotImplementedError

    def _replay(self) -> tuple[Mapping[str, Any], ...]:
        raise NotImplementedError


class _Chat(Reader):
    def __init__(self) -> None:
        super().__init__()
        self._tool_calls: dict[int, dict[str, str]] = {}

    def _take(self, document: dict[str, Any]) -> None:
        if usage := document.get("usage"):
            details = usage.get("prompt_tokens_details") or {}
            self.usage = Usage(prompt=int(usage["prompt_tokens"]), cached=details.get("cached_tokens"))
        for choice in document.get("choices") or ():
            delta = choice.get("delta") or {}
            if content := delta.get("content"):
                self.text.append(str(content))
            if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                self.thoughts.append(str(thought))
            for piece in delta.get("tool_calls") or ():
                call = self._tool_calls.setdefault(
                    int(piece.get("index") or 0), {"id": "", "name": "", "arguments": ""}
                )
                function = piece.get("function") or {}
                call["id"] = call["id"] or str(piece.get("id") or "")
                call["name"] = call["name"] or str(function.get("name") or "")
                call["arguments"] += str(function.get("arguments") or "")
            if reason := choice.get("finish_reason"):
                self.is_complete = True
                self.ended = {"length": "length", "tool_calls": "calls"}.get(reason, "stop")
                if self._tool_calls and reason == "stop":
                    self._wrong("it made a call and its `finish_reason` is `stop`, not `tool_calls`")
        if any(not c["name"] or not c["id"] for c in self._tool_calls.values()) and self.is_complete:
            self._wrong("a call came without its name or its id")

    def _calls(self) -> tuple[Call, ...]:
        return tuple(Call(**call) for _, call in sorted(self._tool_calls.items()))

    def _replay(self) -> tuple[Mapping[str, Any], ...]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.text) or None}
        if self.thoughts:
            message["reasoning_content"] = "".join(self.thoughts)
        if calls := self._calls():
            message["tool_calls"] = [
                {
                    "id": c.id,
                    "type": "function",
                    "function": {"name": c.name, "arguments": c.arguments},
                }
                for c in calls
            ]
        return (message,)


# Which pieces a block of Anthropic's messages may have.
_PIECES = {
    "text": {"text_delta": "text", "citations_delta": ""},
    "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
    "tool_use": {"input_json_delta": "partial_json"},
}


class _Messages(Reader):
    def __init__(self) -> None:
        super().__init__()
        self._blocks: dict[int, dict[str, Any]] = {}
        self._open: int | None = None
        self._input: dict[str, Any] = {}

    def _take(self, document: dict[str, Any]) -> None:
        kind = document.get("type")
        if kind == "message_start":
            self._count(document["message"].get("usage"))
        elif kind == "content_block_start":
            if self._open is not None:
                self._wrong(f"block {document['index']} begins while block {self._open} is open")
            self._open = int(document["index"])
            block = document["content_block"]
            self._blocks[self._open] = {**block, "partial_json": ""}
            self._keep(block["type"], str(block.get("text") or block.get("thinking") or ""))
        elif kind == "content_block_delta":
            self._piece(int(document["index"]), document["delta"])
        elif kind == "content_block_stop":
            if document["index"] != self._open:
                self._wrong(f"block {document['index']} ends and was not open")
            self._open = None
        elif kind == "message_delta":
            reason = (document.get("delta") or {}).get("stop_reason")
            self.ended = {"max_tokens": "length", "tool_use": "calls"}.get(str(reason), "stop")
            self._count(document.get("usage"))
            if reason == "end_turn" and self._calls():
                self._wrong("it made a call and its `stop_reason` is `end_turn`, not `tool_use`")
        elif kind == "message_stop":
            self.is_complete = True
            if self._open is not None:
                self._wrong(f"the message ends while block {self._open} is open")

    def _piece(self, index: int, delta: dict[str, Any]) -> None:
        block = self._blocks.get(index)
        if block is None or index != self._open:
            self._wrong(f"a piece came for block {index}, which is not open")
            return
        name = _PIECES.get(block["type"], {}).get(delta["type"])
        if name is None:
            self._wrong(f"a `{delta['type']}` came in a block of `{block['type']}`")
        elif name:
            block[name] = str(block.get(name) or "") + str(delta[name])
            self._keep(delta["type"].removesuffix("_delta"), str(delta[name]))

    def _keep(self, kind: str, words: str) -> None:
        if words and kind == "text":
            self.text.append(words)
        elif words and kind == "thinking":
            self.thoughts.append(words)

    def _count(self, usage: dict[str, Any] | None) -> None:
        """`input_tokens` are without those that were cached."""
        self._input |= {k: v for k, v in (usage or {}).items() if isinstance(v, int)}
        if "input_tokens" in self._input:
            cached = self._input.get("cache_read_input_tokens")
            written = self._input.get("cache_creation_input_tokens", 0)
            prompt = self._input["input_tokens"] + (cached or 0) + written
            self.usage = Usage(prompt=prompt, cached=cached)

    def _calls(self) -> tuple[Call, ...]:
        return tuple(
            Call(
                id=str(b.get("id") or ""),
                name=str(b.get("name") or ""),
                arguments=b["partial_json"] or json.dumps(b.get("input") or {}),
            )
            for _, b in sorted(self._blocks.items())
            if b["type"] == "tool_use"
        )

    def _replay(self) -> tuple[Mapping[str, Any], ...]:
        blocks = []
        for _, block in sorted(self._blocks.items()):
            sent = {k: v for k, v in block.items() if k != "partial_json"}
            if block["type"] == "tool_use":
                text = block["partial_json"] or json.dumps(block.get("input") or {})
                sent["input"] = Call(id="", name="", arguments=text).values or {}
            # Anthropic refuses a block of text that is empty.
            if block["type"] != "text" or block.get("text"):
                blocks.append(sent)
        return tuple(blocks)


class _Responses(Reader):
    def __init__(self) -> None:
        super().__init__()
        self._items: list[dict[str, Any]] = []
        self._added = 0

    def _take(self, document: dict[str, Any]) -> None:
        kind = document.get("type")
        if kind == "response.output_text.delta":
            self.text.append(str(document["delta"]))
        elif kind in ("response.reasoning_text.delta", "response.reasoning_summary_text.delta"):
            self.thoughts.append(str(document["delta"]))
        elif kind == "response.output_item.added":
            self._added += 1
        elif kind == "response.output_item.done":
            self._item(document["item"])
        elif kind in ("response.completed", "response.incomplete"):
            self.is_complete = True
            self._whole(document["response"])
        elif kind == "response.failed":
            self.error = self.error or words_of(document["response"])

    def _item(self, item: dict[str, Any]) -> None:
        self._items.append(item)
        kind = item["type"]
        if kind == "function_call" and not (item.get("name") and item.get("call_id")):
            self._wrong("a call came without its name or its `call_id`")
        # Some servers stream no deltas.
        if kind == "message" and not self.text:
            self.text += [str(c.get("text") or "") for c in item.get("content") or ()]
        if kind == "reasoning" and not self.thoughts:
            parts = item.get("content") or item.get("summary") or ()
            self.thoughts += [str(c.get("text") or "") for c in parts]

    def _whole(self, response: dict[str, Any]) -> None:
        if usage := response.get("usage"):
            details = usage.get("input_tokens_details") or {}
            self.usage = Usage(prompt=int(usage["input_tokens"]), cached=details.get("cached_tokens"))
        is_cut = response.get("status") == "incomplete"
        self.ended = "length" if is_cut else "stop"
        if self._added > len(self._items) and not is_cut:
            self._wrong("an item was added and is not done: `response.output_item.done` is missing")

    def _calls(self) -> tuple[Call, ...]:
        return tuple(
            Call(id=str(i.get("call_id")), name=str(i.get("name")), arguments=str(i.get("arguments") or ""))
            for i in self._items
            if i["type"] == "function_call"
        )

    def _replay(self) -> tuple[Mapping[str, Any], ...]:
        return tuple(self._items)


def reader(protocol: Protocol) -> Reader:
    """What reads a stream of that protocol."""
    return {"chat": _Chat, "messages": _Messages, "responses": _Responses}[protocol]()


def words_of(document: Any) -> str:
    """What a server says in an error, in its own words."""
    error = document.get("error") if isinstance(document, Mapping) else None
    if isinstance(error, Mapping):
        error = error.get("message") or error
    for name in ("detail", "message"):
        if not error and isinstance(document, Mapping):
            error = document.get(name)
    return str(error or document)[:2000]


def refusal(text: str) -> str:
    """The words of a body that is no stream."""
    try:
        return words_of(json.loads(text))
    except (ValueError, RecursionError):
        return text.strip()[:2000]


def counted(text: str) -> Usage | None:
    """The answer of `count_tokens`; None where it is none."""
    try:
        return Usage(prompt=int(json.loads(text)["input_tokens"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def replayed_without_thoughts(protocol: Protocol, answer: Answer) -> Sequence[Mapping[str, Any]]:
    """What a client sends back of an answer if it leaves the thoughts out."""
    match protocol:
        case "chat":
            return [{k: v for k, v in m.items() if k != "reasoning_content"} for m in answer.replay]
        case "messages":
            return [b for b in answer.replay if b.get("type") != "thinking"]
        case "responses":
            return [i for i in answer.replay if i.get("type") != "reasoning"]
