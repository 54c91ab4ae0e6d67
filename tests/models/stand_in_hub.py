"""A hub of our own on this machine: the few addresses that reading a header takes."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`files` by repository; a file may be longer than its bytes, the rest is zeros."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, tuple[bytes, int]]] = {}
        self.answer: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []
        self.sent = 0
        self.ranges = True
        self.sha: object = SHA
        self.short_by = 0  # of each range, so many bytes are not sent; the header says so
        self.drip_seconds = 0.0  # between bytes, from the first line of the answer on
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, repo: str, name: str, content: bytes, size: int | None = None) -> None:
        self.files.setdefault(repo, {})[name] = (content, size or len(content))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        if m := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            repo = m[1]
            if repo in self.hub.answer:
                status, code = self.hub.answer[repo]
                return self.reply(status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"{repo}: {code}"})
            if repo not in self.hub.files:
                return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": name, "size": size} for name, (_, size) in self.hub.files[repo].items()]
            return self.reply(
                200,
                json.dumps({"id": repo, "modelId": repo, "sha": self.hub.sha, "siblings": siblings}).encode(),
            )
        if m := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            if m[2] not in self.hub.files.get(m[1], {}):
                return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self.file(*self.hub.files[m[1]][m[2]])
        return self.reply(404, b"")

    def file(self, content: bytes, size: int) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        start, end = (
            (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted and self.hub.ranges else (0, size)
        )
        body = content[start:end].ljust(end - start, b"\0")
        body = body[: max(0, len(body) - self.hub.short_by)]
        headers = {"ETag": '"x"', "X-Repo-Commit": SHA, "X-Linked-Size": str(size)}
        self.reply(206 if wanted and self.hub.ranges else 200, body, headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        if self.hub.drip_seconds:
            with contextlib.suppress(OSError):
                for i in b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000):
                    self.wfile.write(bytes([i]))
                    time.sleep(self.hub.drip_seconds)
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.hub.sent += len(body)
        if self.command != "HEAD":
            try:
                self.wfile.write(body)
            except OSError:
                pass  # the reader has seen enough

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    made = Hub()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()
