"""What a request through LiteLLM costs beside one that goes straight to the engine, what a second worker
gives, and what open streams take of memory."""

from __future__ import annotations

import asyncio
import os
import statistics
import time

from . import parts

ALONE, LOAD_SECONDS, AT_ONCE, ROUNDS = 60, 4.0, 16, 3
STREAMS = (1, 50, 200)


async def alone(port: int) -> list[float]:
    """Seconds of requests one after the other."""
    connection = parts.Connection(port)
    answers = [await connection.ask("m") for _ in range(ALONE)]
    await connection.close()
    assert all(a.whole for a in answers), next(a for a in answers if not a.whole)
    return [a.seconds for a in answers]


async def load(port: int) -> tuple[float, list[float]]:
    """Requests per second of so many clients, and the seconds of each request."""
    until, took = time.monotonic() + LOAD_SECONDS, list[float]()

    async def client() -> None:
        connection = parts.Connection(port)
        while time.monotonic() < until:
            answer = await connection.ask("m")
            assert answer.whole, answer
            took.append(answer.seconds)
        await connection.close()

    begun = time.monotonic()
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return len(took) / (time.monotonic() - begun), took


async def open_streams(port: int, count: int) -> list[parts.Answer]:
    clients = [parts.Connection(port) for _ in range(count)]
    return list(await asyncio.gather(*(c.ask("m", stream=True, patience_seconds=120) for c in clients)))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def milliseconds(values: list[float]) -> str:
    return f"{1000 * percentile(values, 0.5):.1f} / {1000 * percentile(values, 0.99):.1f}"


def measure() -> None:
    engine = parts.Engine()
    endpoints = [parts.endpoint("m", 1, engine.url)]
    configuration = parts.ours(endpoints)
    try:
        with (
            parts.litellm(configuration, endpoints) as (one, one_process),
            parts.litellm(configuration, endpoints, workers=2) as (two, two_process),
        ):
            ports = {"direct": engine.port, "LiteLLM, 1 worker": one, "LiteLLM, 2 workers": two}
            lone, rates = {n: list[float]() for n in ports}, {n: list[float]() for n in ports}
            loaded = {n: list[float]() for n in ports}
            for port in ports.values():
                asyncio.run(alone(port))  # warm
            for _ in range(ROUNDS):  # in turns: what else this machine does falls on all of them
                for name, port in ports.items():
                    lone[name] += asyncio.run(alone(port))
                    rate, took = asyncio.run(load(port))
                    rates[name].append(rate)
                    loaded[name] += took
            memory = {
                "LiteLLM, 1 worker": parts.resident_bytes(one_process),
                "LiteLLM, 2 workers": parts.resident_bytes(two_process),
            }
        parts.head(
            f"{os.cpu_count()} cores", "one client, p50 / p99 ms", f"{AT_ONCE} clients, p50 / p99 ms",
            "requests/s", "of direct", "memory",
        )  # fmt: skip
        direct = statistics.median(rates["direct"])
        for name in ports:
            rate = statistics.median(rates[name])
            used = f"{memory[name] >> 20} MiB" if name in memory else ""
            parts.row(
                name, milliseconds(lone[name]), milliseconds(loaded[name]), f"{rate:.0f}",
                f"1/{direct / rate:.0f}" if rate < direct else "1", used,
            )  # fmt: skip
    finally:
        engine.kill()
    print()
    streams()


def streams() -> None:
    """Memory of the gateway while so many answers are being streamed, each of 60 tokens at 10 a second."""
    engine = parts.Engine(tokens=60, pause_seconds=0.1)
    endpoints = [parts.endpoint("m", 1, engine.url)]
    try:
        with parts.litellm(parts.ours(endpoints), endpoints) as (port, process):
            asyncio.run(open_streams(port, 1))
            parts.head("streams at once", "memory, highest", "whole", "slowest")
            parts.row("none", f"{parts.resident_bytes(process) >> 20} MiB", "", "")
            for count in STREAMS:
                highest, answers = asyncio.run(watched(port, count, process))
                whole = sum(a.whole for a in answers)
                slowest = max(a.seconds for a in answers)
                parts.row(count, f"{highest >> 20} MiB", f"{whole} of {count}", f"{slowest:.1f} s")
    finally:
        engine.kill()


async def watched(port: int, count: int, process: parts.psutil.Process) -> tuple[int, list[parts.Answer]]:
    work = asyncio.create_task(open_streams(port, count))
    highest = 0
    while not work.done():
        highest = max(highest, parts.resident_bytes(process))
        await asyncio.sleep(0.2)
    return highest, work.result()
