"""GET over a socket that is already known, and nothing more: http.client would cost 35 ms of import
(it loads ssl and email)."""

from __future__ import annotations

import json
import time
from typing import Any

MAX_BYTES = 16 * 1024 * 1024


def get(address: str | tuple[str, int], path: str, timeout_s: float) -> tuple[int, bytes]:
    """`address` is the path of a Unix socket, or (host, port). HTTP/1.0, so that the answer comes unchunked
    and ends with the connection. All of it takes `timeout_s`, whatever trickles in.

    Raises OSError, also when the time is up."""
    until = time.monotonic() + timeout_s
    if isinstance(address, str):
        import _socket  # what socket is made of, without its 3 ms of import

        connection: Any = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    else:
        import socket

        connection = socket.create_connection(address, timeout_s)
    try:
        connection.settimeout(timeout_s)
        if isinstance(address, str):
            connection.connect(address)
        connection.sendall((f"GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: */*\r\n\r\n").encode())
        parts = []
        size = 0
        while size < MAX_BYTES:
            left_s = until - time.monotonic()
            if left_s <= 0:
                import _socket

                raise _socket.timeout("timed out")
            connection.settimeout(left_s)
            part = connection.recv(65536)
            if not part:
                break
            parts.append(part)
            size += len(part)
    finally:
        connection.close()
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise OSError(f"not an HTTP answer: {head[:80]!r}")
    return int(words[1]), body


def get_json(address: str | tuple[str, int], path: str, timeout_s: float) -> Any:
    status, body = get(address, path, timeout_s)
    if status != 200:
        try:
            message = json.loads(body.decode("utf-8", "replace"))["message"]
        except (ValueError, KeyError, TypeError):
            message = body[:200].decode("utf-8", "replace")
        raise OSError(f"{path}: status {status}: {message}")
    return json.loads(body.decode("utf-8", "replace"))
