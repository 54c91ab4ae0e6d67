"""Sessions of an agent, replayed against two real llama.cpp replicas: what part of their prompts lay in a
replica's cache, with and without session affinity."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import parts

MODEL = Path(os.environ.get("HOMELAB_BENCH_MODEL", "~/.cache/homelab/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
SESSIONS, TURNS, SLOTS, CONTEXT = 4, 5, 4, 8192
FILE_CHARACTERS, SYSTEM_CHARACTERS = 1500, 2000
# One session reads the files of one folder, as an agent does that works on it.
FOLDERS = ("homelab/models", "homelab/placement", "homelab/deploy", "homelab/ui")


@contextmanager
def replica() -> Iterator[str]:
    """A llama-server as homelab starts it, with the locked wheel."""
    port, python = parts.free_port(), parts.environment_of("llamacpp")
    command = [python, parts.NATIVE / "llama-server", "--model", MODEL.expanduser(), "--alias", "m"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--parallel", str(SLOTS), "--threads", "1"]
    command += ["--ctx-size", str(CONTEXT * SLOTS)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            parts.until(lambda: is_healthy(port), 120)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def is_healthy(port: int) -> bool:
    try:
        return b'"ok"' in parts.request(port, "GET", "/health")
    except OSError:
        return False


def sessions() -> list[list[dict[str, Any]]]:
    """By session, what the user and the tools say in each turn."""
    found = []
    for folder in FOLDERS[:SESSIONS]:
        files = sorted((parts.ROOT / folder).glob("*.py"), key=lambda f: -f.stat().st_size)[:TURNS]
        turns = [
            {
                "role": "user",
                "content": f"Read {f.name} and say what it does.\n{f.read_text()[:FILE_CHARACTERS]}",
            }
            for f in files
        ]
        found.append(turns)
    return found


async def replay(port: int, *, named: bool) -> dict[str, float]:
    """All sessions at once, each turn after the one before."""
    system = (parts.ROOT / "CONTRIBUTING.md").read_text()[:SYSTEM_CHARACTERS]
    total = {"prompt": 0, "cached": 0, "later": 0, "later_cached": 0}
    waits = list[float]()

    async def session(number: int, turns: list[dict[str, Any]]) -> None:
        connection = parts.Connection(port)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
        headers = {"x-litellm-session-id": f"session-{number}-{time.time_ns()}"} if named else {}
        for turn, said in enumerate(turns):
            messages.append(said)
            answer = await connection.ask(
                "m", messages=messages, headers=headers, max_tokens=24, temperature=0, patience_seconds=300
            )
            assert answer.whole, answer
            document = json.loads(answer.text)
            messages.append({"role": "assistant", "content": document["choices"][0]["message"]["content"]})
            usage = document["usage"]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            total["prompt"] += usage["prompt_tokens"]
            total["cached"] += cached
            if turn:
                total["later"] += usage["prompt_tokens"]
                total["later_cached"] += cached
                waits.append(answer.seconds)
        await connection.close()

    begun = time.monotonic()
    await asyncio.gather(*(session(n, turns) for n, turns in enumerate(sessions())))
    return {
        **total,
        "seconds": time.monotonic() - begun,
        "wait": sorted(waits)[len(waits) // 2],
    }


def measure() -> None:
    parts.head(
        f"{SESSIONS} sessions of {TURNS} turns", "prompt tokens", "cached", "cached from the second turn on",
        "a turn, median", "all",
    )  # fmt: skip
    for label, kept, named in (
        ("session affinity", True, True),
        ("without", False, True),
        ("session affinity, a client that names no session", True, False),
    ):
        with replica() as first, replica() as second:
            endpoints = [
                parts.endpoint("m", n, url, context=CONTEXT) for n, url in enumerate((first, second))
            ]
            configuration = parts.ours(endpoints)
            if not kept:
                del configuration["router_settings"]["optional_pre_call_checks"]
            with parts.litellm(configuration, endpoints) as (port, _):
                found = asyncio.run(replay(port, named=named))
        parts.row(
            label,
            int(found["prompt"]),
            f"{found['cached'] / found['prompt']:.0%}",
            f"{found['later_cached'] / found['later']:.0%}",
            f"{found['wait']:.1f} s",
            f"{found['seconds']:.0f} s",
        )
