"""Two replicas of one model, a cloud that may answer for it, and one replica that is lost under load: how
many requests get nothing, and how many prompts leave the house though the twin is well."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Sequence
from typing import Any

from homelab.endpoints import Endpoint

from . import parts

REQUESTS, AT_ONCE, LOST_AFTER = 1000, 16, 100
# What a client waits, and a run at most; LiteLLM is told to wait 2 s for a silent backend, not 300.
PATIENCE_SECONDS, RUN_SECONDS, SILENCE_SECONDS = 10.0, 90.0, 2
WAYS = ("refused", "503", "hang", "dropped packets")


class Loss:
    """One replica lost in one way, on the port where it was."""

    def __init__(self, way: str, engine: parts.Engine) -> None:
        self.way, self.engine = way, engine
        self.sockets = list[socket.socket]()

    def happen(self) -> None:
        match self.way:
            case "503":
                self.engine.mode("loading")
            case "hang":
                self.engine.mode("silent")
            case "refused":
                self.engine.kill()
            case _:
                self.engine.kill()
                listener = socket.create_server(("127.0.0.1", self.engine.port), backlog=0)
                self.sockets.append(listener)
                for _ in range(3):  # Linux drops what finds the queue full
                    waiting = socket.socket()
                    waiting.setblocking(False)
                    waiting.connect_ex(("127.0.0.1", self.engine.port))
                    self.sockets.append(waiting)


async def run(port: int, loss: Loss) -> tuple[list[parts.Answer], float]:
    answers, left, begun = list[parts.Answer](), list(range(REQUESTS)), time.monotonic()
    lost = asyncio.Event()

    async def client() -> None:
        connection = parts.Connection(port)
        while left and time.monotonic() - begun < RUN_SECONDS:
            if len(left) == REQUESTS - LOST_AFTER and not lost.is_set():
                lost.set()
                await asyncio.to_thread(loss.happen)
            left.pop()
            stream = len(left) % 2 == 0
            answers.append(await connection.ask("m", stream=stream, patience_seconds=PATIENCE_SECONDS))
        await connection.close()

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return answers, time.monotonic() - begun


def impatient(configuration: dict[str, Any]) -> dict[str, Any]:
    for model in configuration["model_list"]:
        if "stream_timeout" in model["litellm_params"]:
            model["litellm_params"] |= {"timeout": SILENCE_SECONDS, "stream_timeout": SILENCE_SECONDS}
    return configuration


def measure() -> None:
    parts.head(
        "one of two replicas", "configuration", "requests", "nothing came", "cut in the middle",
        "sent to the cloud", "slowest", "all",
    )  # fmt: skip
    for way in WAYS:
        for label, written in (("homelab", parts.ours), ("as in the article", parts.article)):
            engines = [parts.Engine(first_seconds=0.02, tokens=5, pause_seconds=0.002) for _ in range(3)]
            try:
                first, second, cloud = engines
                endpoints: Sequence[Endpoint] = [
                    parts.endpoint("m", 1, first.url),
                    parts.endpoint("m", 2, second.url),
                    parts.endpoint("outside", 3, cloud.url, cloud=True),
                ]
                configuration = written(endpoints, {"m": ["outside"]})
                if way == "hang":
                    configuration = impatient(configuration)
                loss = Loss(way, first)
                with parts.litellm(configuration, endpoints) as (port, _):
                    answers, seconds = asyncio.run(run(port, loss))
                nothing = sum(not a.began for a in answers)
                cut = sum(a.began and not a.whole for a in answers)
                slowest = max(a.seconds for a in answers)
                parts.row(
                    way,
                    label,
                    len(answers),
                    nothing,
                    cut,
                    cloud.count(),
                    f"{slowest:.1f} s",
                    f"{seconds:.0f} s",
                )
                for one in loss.sockets:
                    one.close()
            finally:
                for engine in engines:
                    with contextlib.suppress(ProcessLookupError):
                        engine.kill()
