"""A scripted engine that speaks the three protocols as vLLM 0.33 or llama.cpp b11549 do: it thinks, calls the
tools that it is offered, streams in pieces, and refuses what they refuse, in their words. `faults` make it
wrong in one way."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Event = tuple[str, dict[str, Any]]
Like = Literal["vllm", "llamacpp"]
PATHS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages",
    "/v1/responses": "responses",
}
THOUGHTS = "The user asks for something that a tool knows. I call it."


class Refused(Exception):
    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind


@dataclass(kw_only=True)
class Asked:
    """A request, whatever it came by. `prompt` is what the model would read: thoughts are in it if they came
    where this engine looks for them."""

    protocol: str
    prompt: str
    last_user: str
    results: list[str]
    tools: dict[str, dict[str, Any]]
    must_call: bool
    schema: dict[str, Any] | None
    max_tokens: int
    stream: bool
    is_greedy: bool


@dataclass(kw_only=True)
class Said:
    text: str = ""
    thoughts: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int | None = None


class Engine(ThreadingHTTPServer):
    """`requests`: (path, key, body) of each request, in order; `prompts`: what the model read of each. `file`
    is what it reads by the tools of a client, `context` 0 is any. `talks`: it says a word
    before it calls; `packed`: what ends and what begins come in one chunk, as drafted tokens make it."""

    daemon_threads = True

    def __init__(
        self,
        key: str,
        file: str = "",
        *,
        like: Like = "vllm",
        thinks: bool = True,
        context: int = 0,
        rounds: int = 1,
        tells_cached: bool = True,
        talks: bool = False,
        packed: bool = False,
        faults: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key, self.file, self.like, self.thinks = key, file, like, thinks
        self.context, self.rounds, self.tells_cached, self.faults = context, rounds, tells_cached, faults
        self.talks, self.packed = talks, packed
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.prompts: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, asked: Asked) -> Said:
        """What the model says, or a refusal where there is no room for it."""
        words = len(tokens(asked.prompt))
        if self.context and words + (asked.max_tokens if self.like == "vllm" else 0) > self.context:
            raise self.too_long(words, asked.max_tokens)
        said = play(asked, self)
        said.prompt_tokens = words
        if self.tells_cached:
            common = max((_common(asked.prompt, p) for p in self.prompts), default=0)
            said.cached_tokens = 0 if "no-cache" in self.faults else common
        self.prompts.append(asked.prompt)
        return said

    def too_long(self, words: int, more: int) -> Refused:
        if self.like == "llamacpp":
            return Refused(
                400,
                f"request ({words} tokens) exceeds the available context size ({self.context} tokens), try "
                "increasing it",
                "exceed_context_size_error",
            )
        return Refused(
            400,
            f"This model's maximum context length is {self.context} tokens. However, you requested {more} "
            f"output tokens and your prompt contains {words} input tokens, for a total of {words + more} "
            "tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
        )


def tokens(text: str) -> list[str]:
    """As cl100k makes them of prose, nearly: LiteLLM counts by that."""
    return re.findall(r"[A-Za-z]+|\d{1,3}|[^\w\s]| (?=\d)", text)


def _common(one: str, other: str) -> int:
    count = 0
    for a, b in zip(tokens(one), tokens(other), strict=False):
        if a != b:
            break
        count += 1
    return count


# What the model does.


def play(asked: Asked, engine: Engine) -> Said:
    faults = engine.faults
    said = Said()
    if engine.thinks and f"no-thoughts-{asked.protocol}" not in faults:
        said.thoughts = THOUGHTS
    if "thoughts-as-text" in faults:
        said.thoughts, said.text = "", f"<think>{THOUGHTS}</think>\n"
    calls = _calls(asked, engine)
    if "no-call" in faults or ("no-call-when-greedy" in faults and asked.is_greedy):
        calls = []
    if "one-call" in faults:
        calls = calls[:1]
    if calls and "call-as-text" in faults:
        name, arguments = calls[0]
        said.text += f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    elif calls:
        said.calls = calls
        said.text += "I look. " if engine.talks else ""
    elif asked.schema is not None and "no-schema" not in faults:
        said.text += json.dumps(_fitting(asked.schema))
    elif asked.results:
        said.text += "It says: " + json.dumps(asked.results)[-2000:]
    elif "pineapple" in asked.last_user:
        said.text += "pineapple"
    else:
        said.text += "All is well"
    if "text-arguments" in faults:
        said.calls = [
            (n, {k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in a.items()})
            for n, a in said.calls
        ]
    return said


def _calls(asked: Asked, engine: Engine) -> list[tuple[str, dict[str, Any]]]:
    done = len(asked.results)
    if "read_page" in asked.tools:
        return [("read_page", {"number": done + 1})] if done < 4 else []
    if "get_weather" in asked.tools:
        text = asked.last_user.replace("Eiffel Tower", "Paris")
        cities = [c for c in ("Paris", "Oslo") if c in text]
        wanted = asked.must_call or "get_weather" in text
        return [("get_weather", {"city": c}) for c in cities] if wanted and not done else []
    if "create_event" in asked.tools and not done and "create_event" in asked.last_user:
        guests = [{"name": "Ada", "role": "host"}, {"name": "Grace", "role": "friend"}]
        return [
            ("create_event", {"title": "Dinner", "when": {"day": "Friday", "hour": 19}, "guests": guests})
        ]
    if engine.file and done < engine.rounds and (wanted_tool := _reads(asked.tools, engine.file)):
        return [wanted_tool]
    return []


def _reads(tools: dict[str, dict[str, Any]], file: str) -> tuple[str, dict[str, Any]] | None:
    """The tool that reads a file, by the names that clients have for it, and its arguments."""
    for name in ("Read", "read", "read_file", "Bash", "bash", "shell", "exec_command", "shell_command"):
        keys = tools.get(name, {}).get("properties", {})
        for key in ("file_path", "filePath", "absolute_path", "filepath", "path"):
            if key in keys:
                return name, {key: file}
        for key in ("command", "cmd"):
            if key in keys:
                listed = keys[key].get("type") == "array"
                return name, {key: ["cat", file] if listed else f"cat {file}"}
    return None


def _fitting(schema: dict[str, Any]) -> Any:
    """A value that a schema allows."""
    kind = schema.get("type")
    if kind == "object":
        return {k: _fitting(v) for k, v in schema.get("properties", {}).items()}
    return {"string": "blue", "integer": 3682, "number": 1.5, "boolean": True, "array": []}.get(str(kind))


# What comes in.


def understood(engine: Engine, protocol: str, body: dict[str, Any]) -> Asked:
    """The request; Refused where the engine would."""
    lines: list[str] = []
    results: list[str] = []
    last_user = ""

    def text(content: Any) -> str:
        if isinstance(content, str) or content is None:
            return content or ""
        return "".join(_part(engine, p) for p in content)

    if protocol == "chat":
        for message in body["messages"]:
            if message["role"] not in ("system", "developer", "user", "assistant", "tool"):
                raise Refused(400, f"Unexpected message role: {message['role']}")
            said = text(message.get("content"))
            lines.append(f"<{message['role']}> {_thoughts_in(engine, message)} {said} {_calls_in(message)}")
            if message["role"] == "tool":
                results.append(said)
            elif message["role"] == "user":
                last_user, results = said, []
        tools = {
            t["function"]["name"]: t["function"].get("parameters") or {} for t in body.get("tools") or ()
        }
        schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
        must = body.get("tool_choice") == "required" or isinstance(body.get("tool_choice"), dict)
        most = body.get("max_completion_tokens") or body.get("max_tokens") or 16
    elif protocol == "messages":
        _check_messages(engine, body)
        if body.get("system"):
            lines.append("<system> " + text(body["system"]))
        for message in body["messages"]:
            content = message["content"]
            blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
            answered = [_result(b) for b in blocks if b["type"] == "tool_result"]
            said = text([b for b in blocks if b["type"] in ("text", "image")])
            thoughts = " ".join(b.get("thinking") or "" for b in blocks if b["type"] == "thinking")
            thoughts = "" if "drops-thoughts" in engine.faults else thoughts
            calls = " ".join(json.dumps(b.get("input")) for b in blocks if b["type"] == "tool_use")
            lines.append(f"<{message['role']}> {thoughts} {said} {calls} {' '.join(answered)}")
            if message["role"] == "user":
                results = results + answered if answered else []
                last_user = said or last_user
        tools = {t["name"]: t["input_schema"] for t in body.get("tools") or ()}
        # llama.cpp takes no output format here.
        format_ = (body.get("output_config") or {}).get("format") or {}
        schema = format_.get("schema") if engine.like == "vllm" else None
        must = (body.get("tool_choice") or {}).get("type") in ("any", "tool")
        most = body.get("max_tokens", 0)
    else:
        if body.get("previous_response_id"):
            raise Refused(400, "llama.cpp does not support 'previous_response_id'.")
        lines.append(f"<system> {body.get('instructions') or ''}")
        items = body["input"]
        for item in (
            [{"type": "message", "role": "user", "content": items}] if isinstance(items, str) else items
        ):
            kind = item.get("type") or "message"
            if kind == "function_call_output":
                output = item["output"]
                results.append(output if isinstance(output, str) else text(output))
                lines.append(f"<tool> {results[-1]}")
            elif kind == "function_call":
                lines.append(f"<assistant> {item['arguments']}")
            elif kind == "reasoning":
                lines += [f"<assistant> {t}" for t in [_reasoning(engine, item)] if t]
            else:
                said = text(item.get("content"))
                lines.append(f"<{item['role']}> {said}")
                if item["role"] == "user":
                    last_user, results = said, []
        tools = {
            t["name"]: t.get("parameters") or {} for t in body.get("tools") or () if t["type"] == "function"
        }
        # Nor does it here.
        format_ = (body.get("text") or {}).get("format") or {}
        schema = format_.get("schema") if engine.like == "vllm" else None
        must = body.get("tool_choice") == "required"
        most = body.get("max_output_tokens") or 16
    if "refuses-required" in engine.faults and must:
        raise Refused(400, "tool_choice `required` is not supported")
    if "no-parser" in engine.faults and tools:
        raise Refused(
            400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        )
    if "drops-tools" in engine.faults:
        tools = {}
    offered = [f"<tool> {name} {' '.join(t.get('properties', {}))}" for name, t in tools.items()]
    prompt = " ".join([*offered, *lines])
    return Asked(
        protocol=protocol,
        prompt=prompt,
        last_user=last_user,
        results=results,
        tools=tools,
        must_call=must,
        schema=schema,
        max_tokens=int(most),
        stream=bool(body.get("stream")),
        is_greedy=body.get("temperature") == 0,
    )


def _part(engine: Engine, part: dict[str, Any]) -> str:
    kind = part.get("type")
    allowed = {"text", "input_text", "output_text", "refusal"} | (
        {"thinking"} if engine.like == "vllm" else set()
    )
    if kind in allowed:
        return str(part.get("text") or part.get("thinking") or "")
    if engine.like == "vllm":
        raise Refused(400, f"Unsupported chat content part type: {kind!r}.")
    raise Refused(400, "unsupported content[].type", "invalid_request_error")


def _thoughts_in(engine: Engine, message: dict[str, Any]) -> str:
    """vLLM renames `reasoning_content` to `reasoning`; llama.cpp reads `reasoning_content` alone."""
    names = ("reasoning", "reasoning_content") if engine.like == "vllm" else ("reasoning_content",)
    found = next((message[n] for n in names if message.get(n) is not None), "")
    if not isinstance(found, str):
        raise Refused(400, "reasoning: Input should be a valid string")
    return "" if "drops-thoughts" in engine.faults else found


def _calls_in(message: dict[str, Any]) -> str:
    return " ".join(c["function"]["arguments"] for c in message.get("tool_calls") or ())


def _check_messages(engine: Engine, body: dict[str, Any]) -> None:
    """As pydantic checks vLLM's AnthropicMessagesRequest; llama.cpp passes over what it does not know."""
    if engine.like != "vllm":
        return
    known = {"text", "image", "tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking"}
    for number, message in enumerate(body["messages"]):
        if message["role"] not in ("user", "assistant", "system"):
            raise Refused(400, f"messages.{number}.role: Input should be 'user', 'assistant' or 'system'")
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block["type"] not in known:
                raise Refused(400, f"messages.{number}.content: Input should be {sorted(known)}")
            if block["type"] == "tool_use" and not isinstance(block.get("input"), dict):
                raise Refused(400, f"messages.{number}.content.input: Input should be a valid dictionary")
    for tool in body.get("tools") or ():
        if "input_schema" not in tool:
            raise Refused(400, "tools.input_schema: Field required")
    if "max_tokens" in body and body["max_tokens"] <= 0:
        raise Refused(400, "max_tokens must be positive")


def _result(block: dict[str, Any]) -> str:
    content = block.get("content")
    if isinstance(content, list):
        return "".join(str(c.get("text") or "") for c in content)
    return str(content or "")


def _reasoning(engine: Engine, item: dict[str, Any]) -> str:
    if item.get("encrypted_content") and engine.like == "vllm":
        raise Refused(400, "Encrypted content is not supported.")
    content = item.get("content")
    if engine.like == "llamacpp":
        if not isinstance(content, list):
            raise Refused(400, "item['content'] is not an array", "invalid_request_error")
        if not content:
            raise Refused(400, "item['content'] is empty", "invalid_request_error")
    parts = content or item.get("summary") or [{}]
    return "" if "drops-thoughts" in engine.faults else str(parts[0].get("text") or "")


# What goes out.


def _arguments(said: Said, engine: Engine) -> list[tuple[str, str]]:
    """The calls with their arguments as text."""
    calls = [(name, json.dumps(arguments)) for name, arguments in said.calls]
    if "empty-arguments" in engine.faults:
        # Stock vLLM up to 0.22 with Gemma 4: of several calls all but the last lose theirs.
        calls = [(name, "{}") for name, _ in calls[:-1]] + calls[-1:]
    if "cut-arguments" in engine.faults:
        calls = [(name, text[:-3]) for name, text in calls]
    return calls


def _pieces(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def _chat(body: dict[str, Any], said: Said, engine: Engine) -> Iterator[Event]:
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

    def chunk(delta: dict[str, Any], end: str | None = None) -> Event:
        return "", {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}

    yield chunk({"role": "assistant", "content": "" if engine.like == "vllm" else None})
    if engine.packed:
        yield from map(chunk, _packed(said, engine))
        yield chunk({}, "tool_calls" if said.calls else "stop")
        yield "", {**base, "choices": [], "usage": _usage(said)}
        return
    for piece in _pieces(said.thoughts):
        yield chunk({"reasoning" if engine.like == "vllm" else "reasoning_content": piece})
    for piece in _pieces(said.text):
        yield chunk({"content": piece})
    for number, (name, arguments) in enumerate(_arguments(said, engine)):
        call = {"index": number, "id": f"call_{len(engine.requests)}_{number}", "type": "function"}
        yield chunk({"tool_calls": [{**call, "function": {"name": name, "arguments": ""}}]})
        for piece in _pieces(arguments):
            yield chunk({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
    if "no-end" in engine.faults:
        return
    yield chunk({}, "tool_calls" if said.calls else "stop")
    yield "", {**base, "choices": [], "usage": _usage(said)}


def _packed(said: Said, engine: Engine) -> Iterator[dict[str, Any]]:
    """Deltas that hold the end of one kind and the beginning of the next."""
    thoughts, text = _pieces(said.thoughts), _pieces(said.text)
    name = "reasoning" if engine.like == "vllm" else "reasoning_content"
    for piece in thoughts[:-1]:
        yield {name: piece}
    calls = [
        {
            "index": number,
            "id": f"call_{len(engine.requests)}_{number}",
            "type": "function",
            "function": {"name": called, "arguments": arguments},
        }
        for number, (called, arguments) in enumerate(_arguments(said, engine))
    ]
    delta: dict[str, Any] = {name: thoughts[-1]} if thoughts else {}
    if text:
        yield {**delta, "content": text[0]}
        for piece in text[1:-1]:
            yield {"content": piece}
        delta = {"content": text[-1]} if len(text) > 1 else {}
    yield {**delta, "tool_calls": calls} if calls else delta


def _usage(said: Said) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": 5,
        "total_tokens": said.prompt_tokens + 5,
    }
    if said.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": said.cached_tokens}
    return usage


def _anthropic_usage(said: Said) -> dict[str, Any]:
    cached = said.cached_tokens
    usage: dict[str, Any] = {"input_tokens": said.prompt_tokens - (cached or 0), "output_tokens": 5}
    if cached is not None:
        usage["cache_read_input_tokens"] = cached
    return usage


def _blocks(said: Said, engine: Engine) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if said.thoughts:
        # llama.cpp signs nothing: its signature is empty.
        signature = "5ec0" if engine.like == "vllm" else ""
        blocks.append({"type": "thinking", "thinking": said.thoughts, "signature": signature})
    if said.text:
        blocks.append({"type": "text", "text": said.text})
    for number, (name, arguments) in enumerate(_arguments(said, engine)):
        call_id = f"toolu_{len(engine.requests)}_{number}"
        blocks.append({"type": "tool_use", "id": call_id, "name": name, "arguments": arguments})
    return blocks


def _messages(body: dict[str, Any], said: Said, engine: Engine) -> Iterator[Event]:
    message = {
        "id": "m1", "type": "message", "role": "assistant", "model": body["model"], "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": {**_anthropic_usage(said), "output_tokens": 0},
    }  # fmt: skip
    yield "message_start", {"type": "message_start", "message": message}
    for index, block in enumerate(_blocks(said, engine)):
        match block["type"]:
            case "thinking":
                start: dict[str, Any] = {"type": "thinking", "thinking": ""}
                deltas = [{"type": "thinking_delta", "thinking": p} for p in _pieces(block["thinking"])]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            case "text":
                start = {"type": "text", "text": ""}
                deltas = [{"type": "text_delta", "text": p} for p in _pieces(block["text"])]
            case _:
                start = {"type": "tool_use", "id": block["id"], "name": block["name"], "input": {}}
                pieces = _pieces(block["arguments"])
                deltas = [{"type": "input_json_delta", "partial_json": p} for p in pieces]
        yield "content_block_start", {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield "content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": index}
    if "no-end" in engine.faults:
        return
    stop = {"stop_reason": "tool_use" if said.calls else "end_turn", "stop_sequence": None}
    yield "message_delta", {"type": "message_delta", "delta": stop, "usage": _anthropic_usage(said)}
    yield "message_stop", {"type": "message_stop"}


def _items(said: Said, engine: Engine) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if said.thoughts:
        content = [{"type": "reasoning_text", "text": said.thoughts}]
        items.append({"type": "reasoning", "id": "rs1", "summary": [], "content": content})
    if said.text:
        content = [{"type": "output_text", "text": said.text, "annotations": []}]
        items.append(
            {"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": content}
        )
    for number, (name, arguments) in enumerate(_arguments(said, engine)):
        call_id = f"call_{len(engine.requests)}_{number}"
        items.append(
            {
                "type": "function_call", "id": f"fc{number}", "call_id": call_id, "name": name,
                "arguments": arguments, "status": "completed",
            }
        )  # fmt: skip
    return items


def _responses(body: dict[str, Any], said: Said, engine: Engine) -> Iterator[Event]:
    response = {"id": "r1", "object": "response", "created_at": 1, "model": body["model"], "output": []}
    number = 0

    def event(kind: str, **more: Any) -> Event:
        nonlocal number
        number += 1
        return kind, {"type": kind, "sequence_number": number, **more}

    yield event("response.created", response={**response, "status": "in_progress"})
    items = _items(said, engine)
    for index, item in enumerate(items):
        place = {"output_index": index, "item_id": item["id"]}
        yield event("response.output_item.added", output_index=index, item={**item, "status": "in_progress"})
        if item["type"] == "message":
            for piece in _pieces(said.text):
                yield event("response.output_text.delta", **place, content_index=0, delta=piece)
        elif item["type"] == "reasoning":
            for piece in _pieces(said.thoughts):
                yield event("response.reasoning_text.delta", **place, content_index=0, delta=piece)
        else:
            for piece in _pieces(item["arguments"]):
                yield event("response.function_call_arguments.delta", **place, delta=piece)
        yield event("response.output_item.done", output_index=index, item=item)
    if "no-end" in engine.faults:
        return
    yield event("response.completed", response=_response(body, said, engine))


def _response(body: dict[str, Any], said: Said, engine: Engine) -> dict[str, Any]:
    usage = {
        "input_tokens": said.prompt_tokens, "output_tokens": 5, "total_tokens": said.prompt_tokens + 5,
        "input_tokens_details": {"cached_tokens": said.cached_tokens or 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    return {
        "id": "r1", "object": "response", "created_at": 1, "model": body["model"], "status": "completed",
        "output": _items(said, engine), "usage": usage,
    }  # fmt: skip


def _whole(protocol: str, body: dict[str, Any], said: Said, engine: Engine) -> dict[str, Any]:
    """An answer in one piece: clients ask for titles so."""
    if protocol == "responses":
        return _response(body, said, engine)
    if protocol == "messages":
        content = []
        for block in _blocks(said, engine):
            arguments = block.pop("arguments", None)
            content.append({**block, "input": json.loads(arguments)} if arguments is not None else block)
        return {
            "id": "m1", "type": "message", "role": "assistant", "model": body["model"], "content": content,
            "stop_reason": "tool_use" if said.calls else "end_turn", "stop_sequence": None,
            "usage": _anthropic_usage(said),
        }  # fmt: skip
    message: dict[str, Any] = {"role": "assistant", "content": said.text or None}
    if said.thoughts:
        message["reasoning" if engine.like == "vllm" else "reasoning_content"] = said.thoughts
    if said.calls:
        message["tool_calls"] = [
            {
                "id": f"call_{len(engine.requests)}_{n}",
                "type": "function",
                "function": {"name": a, "arguments": b},
            }
            for n, (a, b) in enumerate(_arguments(said, engine))
        ]
    return {
        "id": "c1", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [
            {"index": 0, "message": message, "finish_reason": "tool_calls" if said.calls else "stop"}
        ],
        "usage": _usage(said),
    }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server: Engine
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._json(404, {"error": {"message": "not here"}})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        engine = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"] or 0)) or b"{}")
        key = self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")
        path = self.path.partition("?")[0]
        engine.requests.append((path, key, body))
        if key != engine.key:
            return self._json(403, {"error": {"message": "wrong key", "type": "auth_error"}})
        protocol = PATHS.get(path)
        if protocol is None:
            return self._json(404, {"error": {"message": "not here"}})
        if "hangs" in engine.faults:
            time.sleep(30)
            self.close_connection = True
            return None
        try:
            asked = understood(engine, protocol, body)
            if path.endswith("count_tokens"):
                return self._json(200, {"input_tokens": len(tokens(asked.prompt))})
            said = engine.answer(asked)
        except Refused as e:
            return self._refuse(e, protocol)
        if not asked.stream:
            return self._json(200, _whole(protocol, body, said, engine))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for name, data in {"chat": _chat, "messages": _messages, "responses": _responses}[protocol](
            body, said, engine
        ):
            self.wfile.write(
                (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(data)}\n\n".encode()
            )
        if protocol == "chat" and "no-end" not in engine.faults:
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True
        return None

    def _refuse(self, e: Refused, protocol: str) -> None:
        error = {"message": e.message, "type": e.kind, "code": e.status}
        if protocol == "messages" and self.server.like == "vllm":
            return self._json(e.status, {"type": "error", "error": {"type": e.kind, "message": e.message}})
        return self._json(e.status, {"error": error})

    def _json(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
