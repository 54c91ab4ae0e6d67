"""A scripted engine: it answers the first turn of any of three protocols with one call of a tool that reads a
file, and says what came back in the next one. Streams as the engines do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Event = tuple[str, dict[str, Any]]


class Engine(ThreadingHTTPServer):
    """`requests`: (path, key, body) of each request, in order."""

    daemon_threads = True

    def __init__(self, key: str, file: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key, self.file = key, file
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Engine
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._json(404, {"error": {"message": "not here"}})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"] or 0)) or b"{}")
        key = self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")
        path = self.path.partition("?")[0]
        self.server.requests.append((path, key, body))
        if key != self.server.key:
            return self._json(403, {"error": {"message": "wrong key", "type": "auth_error"}})
        answers = {"/v1/chat/completions": _chat, "/v1/messages": _messages, "/v1/responses": _responses}
        if path not in answers:
            return self._json(404, {"error": {"message": "not here"}})
        events = answers[path](body, self.server.file)
        if not body.get("stream"):
            return self._json(200, _whole(path, body))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for name, data in events:
            self.wfile.write(
                (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(data)}\n\n".encode()
            )
        if path == "/v1/chat/completions":
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True
        return None

    def _json(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def call(tools: list[dict[str, Any]], file: str) -> tuple[str, dict[str, Any]] | None:
    """The tool that reads a file, by the names that clients have for it, and its arguments."""
    functions = [t.get("function", t) for t in tools]
    schemas = {
        f["name"]: f.get("parameters") or f.get("input_schema") or {} for f in functions if "name" in f
    }
    for name in ("Read", "read", "read_file", "Bash", "bash", "shell", "exec_command", "shell_command"):
        if name not in schemas:
            continue
        keys = schemas[name].get("properties", {})
        for key in ("file_path", "filePath", "absolute_path", "filepath", "path"):
            if key in keys:
                return name, {key: file}
        for key in ("command", "cmd"):
            if key in keys:
                listed = keys[key].get("type") == "array"
                return name, {key: ["cat", file] if listed else f"cat {file}"}
    return None


def said(results: list[Any]) -> str:
    """What the model says of the results of its tools."""
    return "It says: " + json.dumps(results)[-2000:]


def _chat(body: dict[str, Any], file: str) -> Iterator[Event]:
    results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}

    def chunk(delta: dict[str, Any], end: str | None = None) -> Event:
        return "", {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}

    wanted = None if results else call(body.get("tools") or [], file)
    if wanted:
        name, arguments = wanted
        function = {"name": name, "arguments": json.dumps(arguments)}
        calls = [{"index": 0, "id": "call_1", "type": "function", "function": function}]
        yield chunk({"role": "assistant", "content": None, "tool_calls": calls})
        yield chunk({}, "tool_calls")
    else:
        yield chunk({"role": "assistant", "content": said(results) if results else "Title"})
        yield chunk({}, "stop")
    yield "", {**base, "choices": [], "usage": usage}


def _messages(body: dict[str, Any], file: str) -> Iterator[Event]:
    contents = [m["content"] for m in body["messages"] if isinstance(m["content"], list)]
    results = [b.get("content") for c in contents for b in c if b.get("type") == "tool_result"]
    message = {
        "id": "m1", "type": "message", "role": "assistant", "model": body["model"], "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 10, "output_tokens": 1},
    }  # fmt: skip
    yield "message_start", {"type": "message_start", "message": message}
    wanted = None if results else call(body.get("tools") or [], file)
    if wanted:
        name, arguments = wanted
        block: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(arguments)}
    else:
        block = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": said(results) if results else "Title"}
    yield "content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}
    yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
    yield "content_block_stop", {"type": "content_block_stop", "index": 0}
    stop = {"stop_reason": "tool_use" if wanted else "end_turn", "stop_sequence": None}
    yield "message_delta", {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 5}}
    yield "message_stop", {"type": "message_stop"}


def _responses(body: dict[str, Any], file: str) -> Iterator[Event]:
    results = [i.get("output") for i in body["input"] if i.get("type") == "function_call_output"]
    response = {"id": "r1", "object": "response", "created_at": 1, "model": body["model"], "output": []}
    yield "response.created", {"type": "response.created", "response": {**response, "status": "in_progress"}}
    wanted = None if results else call(body.get("tools") or [], file)
    if wanted:
        name, arguments = wanted
        item: dict[str, Any] = {
            "type": "function_call", "id": "f1", "call_id": "call_1", "name": name,
            "arguments": json.dumps(arguments), "status": "completed",
        }  # fmt: skip
    else:
        text = said(results) if results else "Title"
        content = [{"type": "output_text", "text": text, "annotations": []}]
        item = {"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": content}
    added = {"type": "response.output_item.added", "output_index": 0, "item": item}
    yield "response.output_item.added", added
    yield "response.output_item.done", {**added, "type": "response.output_item.done"}
    usage = {
        "input_tokens": 10, "output_tokens": 5, "total_tokens": 15,
        "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    whole = {**response, "status": "completed", "output": [item], "usage": usage}
    yield "response.completed", {"type": "response.completed", "response": whole}


def _whole(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """An answer in one piece: clients ask for titles so."""
    if path == "/v1/messages":
        return {
            "id": "m1", "type": "message", "role": "assistant", "model": body["model"],
            "content": [{"type": "text", "text": "Title"}], "stop_reason": "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 1},
        }  # fmt: skip
    message = {"role": "assistant", "content": "Title"}
    return {
        "id": "c1", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
    }  # fmt: skip
