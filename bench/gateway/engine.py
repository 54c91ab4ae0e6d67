"""An engine that costs nothing: it answers chat completions, whole or streamed, as it was told to. Run by
itself, so that it shares no interpreter with whoever measures.

    python engine.py PORT [FIRST_SECONDS] [TOKENS] [PAUSE_SECONDS]

POST /mode with well, loading or silent changes how it is; GET /count says how many were asked of it."""

from __future__ import annotations

import asyncio
import json
import sys

FIRST_SECONDS, TOKENS, PAUSE_SECONDS = 0.0, 8, 0.0
MODE, COUNT = "well", 0


def answer(code: int, document: object) -> bytes:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {code} x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunk(text: str | None, finish: str | None) -> bytes:
    delta = {"role": "assistant", "content": text} if text else {}
    choice = {"index": 0, "finish_reason": finish, "delta": delta}
    event = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return framed(b"data: " + json.dumps(event).encode() + b"\n\n")


def framed(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(TOKENS):
        writer.write(chunk("word ", None))
        await writer.drain()
        if PAUSE_SECONDS:
            await asyncio.sleep(PAUSE_SECONDS)
    writer.write(chunk(None, "stop") + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    await writer.drain()


def whole() -> bytes:
    message = {"role": "assistant", "content": "word " * TOKENS}
    return answer(
        200,
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": TOKENS, "total_tokens": TOKENS + 1},
        },
    )


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    global MODE, COUNT
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ", 2)[1]
            lengths = [line for line in head.lower().split("\r\n") if line.startswith("content-length:")]
            body = await reader.readexactly(int(lengths[0].partition(":")[2])) if lengths else b""
            if path == "/mode":
                MODE = body.decode()
                writer.write(answer(200, MODE))
            elif path == "/count":
                writer.write(answer(200, COUNT))
            elif not path.endswith("/completions"):  # LiteLLM looks at what there is when it starts
                writer.write(answer(404, None))
            else:
                COUNT += 1
                if MODE == "silent":
                    await asyncio.sleep(3600)
                elif MODE == "loading":
                    error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
                    writer.write(answer(503, {"error": error}))
                else:
                    if FIRST_SECONDS:
                        await asyncio.sleep(FIRST_SECONDS)
                    if b'"stream": true' in body or b'"stream":true' in body:
                        await stream(writer)
                    else:
                        writer.write(whole())
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    given = sys.argv[2:]
    FIRST_SECONDS = float(given[0]) if given else FIRST_SECONDS
    TOKENS = int(given[1]) if len(given) > 1 else TOKENS
    PAUSE_SECONDS = float(given[2]) if len(given) > 2 else PAUSE_SECONDS
    asyncio.run(main())
