"""What the measurements share: engines and LiteLLM as processes of their own, and a client."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from homelab import gateway, keys
from homelab.endpoints import Endpoint
from homelab.templating import render_template

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NATIVE = ROOT / "templates/native"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "homelab/native"
KEY = "sk-bench-" + secrets.token_hex(8)
HELLO = [{"role": "user", "content": "Hello."}]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environment_of(name: str) -> Path:
    """The Python of a locked environment, made in the user's cache where it is not there."""
    command = [sys.executable, NATIVE / "provision.py", "--lock", NATIVE / f"{name}.lock", "--name", name]
    done = subprocess.run([*command, "--into", CACHE], capture_output=True, text=True, check=True)
    return Path(json.loads(done.stdout.splitlines()[-1])["directory"]).absolute() / "bin/python"


class Engine:
    """A scripted engine, in a process of its own."""

    def __init__(self, *, first_seconds: float = 0.0, tokens: int = 8, pause_seconds: float = 0.0) -> None:
        self.port = free_port()
        self.told = (str(first_seconds), str(tokens), str(pause_seconds))
        self.process = self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, HERE / "engine.py", str(self.port), *self.told])
        until(lambda: self.count() is not None, 20)
        return process

    def count(self) -> int | None:
        try:
            return int(json.loads(request(self.port, "GET", "/count")))
        except OSError:
            return None

    def mode(self, mode: str) -> None:
        request(self.port, "POST", "/mode", mode.encode())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def request(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().read()
    finally:
        connection.close()


def until(look: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not look():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.1)


def endpoint(name: str, number: int, url: str, *, cloud: bool = False, context: int = 4096) -> Endpoint:
    return Endpoint(
        name=name,
        kind="chat",
        url=f"{url}/v1" if cloud else url,
        key="env:BENCH" if cloud else "",
        context=None if cloud else context,
        id=f"cloud/{name}" if cloud else f"n{number}/{name}",
        node=None if cloud else "n",
        origin="cloud" if cloud else "placed",
        upstream="openai/gpt-4o" if cloud else "m",
    )


def ours(
    endpoints: Sequence[Endpoint], fallbacks: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    return gateway.configuration(endpoints, fallbacks or {}, None)


def article(endpoints: Sequence[Endpoint], fallbacks: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """As articles on a home lab with LiteLLM have it: names, addresses, fallbacks, and nothing else."""
    return {
        "model_list": [
            {
                "model_name": e.name,
                "litellm_params": {
                    "model": e.upstream if e.origin == "cloud" else f"openai/{e.upstream}",
                    "api_base": e.url if e.origin == "cloud" else f"{e.url}/v1",
                    "api_key": "not-needed",
                },
                "model_info": {"id": e.id},
            }
            for e in endpoints
        ],
        "router_settings": {"fallbacks": [{k: list(v)} for k, v in fallbacks.items()]},
        "litellm_settings": {"drop_params": True, "callbacks": ["prometheus"]},
        "general_settings": {"master_key": f"os.environ/{gateway.MASTER_KEY_VARIABLE}"},
    }


@contextmanager
def litellm(
    configuration: Mapping[str, Any], endpoints: Sequence[Endpoint], *, workers: int = 1
) -> Iterator[tuple[int, psutil.Process]]:
    """The pinned LiteLLM with this configuration: its port and its process."""
    python, port = environment_of("litellm"), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = render_template("litellm.yml.j2", configuration=configuration)
        (folder / "litellm.yml").write_text(text)
        (folder / keys.AUTH_FILE).write_text(render_template(keys.AUTH_FILE))
        (folder / keys.HOUSE_FILE).write_text(keys.house(endpoints, {}))
        environment = {
            **{k: os.environ[k] for k in ("HOME", "PATH", "LANG") if k in os.environ},
            **gateway.ENVIRONMENT,
            gateway.MASTER_KEY_VARIABLE: KEY,
            **{gateway.key_variable(e): "sk-engine" for e in endpoints},
        }
        if workers > 1:
            (folder / "metrics").mkdir()
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(folder / "metrics")
        command = [python, python.parent / "litellm", "--config", "litellm.yml", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--num_workers", str(workers)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                until(lambda: is_live(port), 120)
                yield port, psutil.Process(process.pid)
            finally:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
                process.wait()


def is_live(port: int) -> bool:
    try:
        return b"alive" in request(port, "GET", gateway.HEALTH)
    except OSError:
        return False


def resident_bytes(process: psutil.Process) -> int:
    """Of a process and all that it has started."""
    tree = [process, *process.children(recursive=True)]
    return sum(p.memory_info().rss for p in tree)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one request came to: whether anything of the answer came, whether all of it, and when."""

    began: bool
    whole: bool
    first_seconds: float
    seconds: float
    code: int
    text: str = ""


class Connection:
    """One client: a connection that is kept, as clients keep theirs."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(
        self,
        model: str,
        *,
        stream: bool = False,
        patience_seconds: float = 60.0,
        messages: Sequence[Mapping[str, Any]] = HELLO,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        document = json.dumps({"model": model, "messages": list(messages), "stream": stream, **more}).encode()
        said = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **(headers or {})}
        lines = "".join(f"{k}: {v}\r\n" for k, v in said.items())
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(document)}\r\n\r\n"
        )
        begun, first, code, body = time.perf_counter(), 0.0, 0, b""
        try:
            async with asyncio.timeout(patience_seconds):
                if self.writer is None or self.writer.is_closing():
                    self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
                assert self.reader is not None
                self.writer.write(head.encode() + document)
                answer = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                code = int(answer.split(" ", 2)[1])
                if "transfer-encoding: chunked" in answer:
                    while size := int((await self.reader.readline()).strip() or b"0", 16):
                        body += (await self.reader.readexactly(size + 2))[:-2]
                        first = first or time.perf_counter() - begun
                    await self.reader.readline()
                else:
                    length = answer.partition("content-length:")[2].split("\r\n")[0]
                    body = await self.reader.readexactly(int(length))
                    first = time.perf_counter() - begun
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            await self.close()
        seconds = time.perf_counter() - begun
        text = body.decode(errors="replace")
        began = code == 200 and '"content"' in text
        whole = began and ("[DONE]" in text and '"error"' not in text if stream else True)
        return Answer(began=began, whole=whole, first_seconds=first, seconds=seconds, code=code, text=text)

    async def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


def row(*cells: object) -> None:
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def head(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))
