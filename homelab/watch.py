"""All nodes, looked at again and again: one held connection each, on which the agent prints what it sees,
and what the engines say of their work."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx

from homelab.ask import get_text
from homelab.discover import ANSWER_SECONDS, ASKED_AT_ONCE, failure, run_agent, silent
from homelab.endpoints import Endpoint, running
from homelab.engines import Load, engines
from homelab.errors import NodeError
from homelab.facts import Facts, NodeReport, Survey, parse_facts
from homelab.inventory import Inventory
from homelab.nodes import bundle, connect
from homelab.secrets import Secrets

FIRST_SECONDS = 3.0
METRICS_SECONDS = 2.0
# On a node where a part hangs, a look takes 10 s, once.
SILENCE_SECONDS = 15.0
RETRY_SECONDS = 3.0
# What guards a node against guesses, as fail2ban does, counts refused logins.
LOGIN_RETRY_SECONDS = 30.0
# The same few facts each time, of which none is read from a model's file.
REQUEST: Mapping[str, Any] = {"headers": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look. `at` is `time.monotonic()`. The survey has what every node said last: one that has not
    answered yet is not in it, one that is lost has its error, which `errors` has too, and what it said before
    under `remembered`. It is to look at and not to plan with: the nodes are asked for nothing about models.
    `loads` are by node and service."""

    at: float
    survey: Survey
    errors: Mapping[str, NodeError]
    loads: Mapping[tuple[str, str], Load]


async def watch(
    inventory: Inventory, secrets: Secrets | None, seconds: float = 2.0
) -> AsyncGenerator[Seen, None]:
    """What is seen, every `seconds`; first when all nodes have answered or failed, or after FIRST_SECONDS.

    A node that is lost is tried again, without an end. Close it (`contextlib.aclosing`): then no agent of it
    runs on any node, and no connection is open. Raises nothing of a node's."""
    nodes = _Nodes(inventory, seconds)
    tasks = [asyncio.create_task(nodes.follow(name)) for name in sorted(inventory.nodes)]
    try:
        async with httpx.AsyncClient(timeout=METRICS_SECONDS, trust_env=False) as client:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_SECONDS):
                    await nodes.all_said.wait()
            while True:
                for task in tasks:
                    if task.done():  # it ends only by a mistake of ours, which nobody shall take for silence
                        task.result()
                at, survey, errors = time.monotonic(), nodes.survey(), dict(nodes.errors)
                loads = await _loads(client, running(inventory, survey), survey, secrets)
                yield Seen(at=at, survey=survey, errors=errors, loads=loads)
                await asyncio.sleep(at + seconds - time.monotonic())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def speeds(before: Seen, now: Seen) -> dict[tuple[str, str], float]:
    """Generated tokens per second between two looks, of each engine that both have. A counter that fell was
    begun anew, and says nothing."""
    passed = now.at - before.at
    if passed <= 0:
        return {}
    known = {place: load.tokens for place, load in before.loads.items() if load.tokens is not None}
    return {
        place: (load.tokens - known[place]) / passed
        for place, load in now.loads.items()
        if load.tokens is not None and place in known and load.tokens >= known[place]
    }


class _Nodes:
    """What each node said last, kept by one task a node."""

    def __init__(self, inventory: Inventory, seconds: float) -> None:
        self._inventory, self._seconds = inventory, seconds
        self._turns = asyncio.Semaphore(ASKED_AT_ONCE)
        self._facts: dict[str, Facts] = {}
        self._before: dict[str, Facts] = {}
        self.errors: dict[str, NodeError] = {}
        self.all_said = asyncio.Event()
        self._look_whether_all_said()

    def survey(self) -> Survey:
        up = {name: NodeReport(reachable=True, facts=facts) for name, facts in self._facts.items()}
        lost = {name: NodeReport(reachable=False, error=failure(e)) for name, e in self.errors.items()}
        return Survey(nodes=dict(sorted((up | lost).items())), remembered=dict(self._before))

    async def follow(self, name: str) -> None:
        """Listens to one node, and begins anew when it is lost."""
        while True:
            try:
                await self._listen(name)
            except NodeError as e:
                self._lost(name, e)
            await asyncio.sleep(LOGIN_RETRY_SECONDS if self.errors[name].kind == "login" else RETRY_SECONDS)

    async def _listen(self, name: str) -> None:
        """Keeps what one node says up to date. Raises NodeError, at the latest when it has ended."""
        node, request = self._inventory.nodes[name], json.dumps(REQUEST)
        async with AsyncExitStack() as held:
            async with self._turns:
                session = await held.enter_async_context(connect(name, node))
            try:
                async with asyncio.timeout(ANSWER_SECONDS) as limit:
                    # Once by itself: it brings the agent where it is missing, and says why it cannot run.
                    first = await run_agent(session, request, node.python, limit, ANSWER_SECONDS)
            except TimeoutError as e:
                raise silent(name, ANSWER_SECONDS) from e
            self._said(name, first)
            command = bundle.launch_command(
                bundle.fingerprint(), request, python=node.python, watch=self._seconds
            )
            # What it says beside its documents was heard in the first look: be it a Python that is too old.
            command = f"exec 2>/dev/null\n{command}"
            patience, heard = self._seconds + SILENCE_SECONDS, 0.0
            async with aclosing(session.lines(command)) as lines:
                try:
                    while True:
                        async with asyncio.timeout(patience):
                            line = await anext(lines)
                        # Who talks without a pause, unlike our agent, is not read more often for that.
                        if time.monotonic() - heard > self._seconds / 4:
                            self._said(name, line)
                            heard = time.monotonic()
                except TimeoutError as e:
                    raise silent(name, patience) from e
                except StopAsyncIteration:
                    pass
        raise NodeError(
            f"The agent on node `{name}` has ended", hint="It is started again in a moment", kind="agent"
        )

    def _said(self, name: str, document: bytes | str) -> None:
        """Raises NodeError where it is not what an agent says: who talks like that is not listened to."""
        self._facts[name] = parse_facts(document)
        self._before.pop(name, None)
        self.errors.pop(name, None)
        self._look_whether_all_said()

    def _lost(self, name: str, error: NodeError) -> None:
        if name in self._facts:
            self._before[name] = self._facts.pop(name)
        self.errors[name] = error
        self._look_whether_all_said()

    def _look_whether_all_said(self) -> None:
        if self._facts.keys() | self.errors.keys() >= self._inventory.nodes.keys():
            self.all_said.set()


async def _loads(
    client: httpx.AsyncClient, endpoints: tuple[Endpoint, ...], survey: Survey, secrets: Secrets | None
) -> dict[tuple[str, str], Load]:
    """What engines say within METRICS_SECONDS; one that does not is left out. Only who is seen to listen on
    its port, by a node that answers now, is sent its key."""
    up = {name for name, report in survey.nodes.items() if report.facts is not None}
    there = {e.id: e for e in endpoints if e.listens and e.node in up and e.engine in engines()}
    loads: dict[tuple[str, str], Load] = {}

    async def one(e: Endpoint) -> None:
        engine, key = engines()[e.engine], secrets.resolve(e.key, {}) if secrets else None
        url = e.url + engine.METRICS_PATH
        code, text = await get_text(client, url, key.get_secret_value() if key else None)
        if code == 200:
            load = engine.load(text)
            node, _, service = e.id.partition("/")
            # Some engines count the steps of what generates nothing, too.
            loads[node, service] = load if e.kind == "chat" else replace(load, tokens=None)

    try:
        async with asyncio.timeout(METRICS_SECONDS):
            await asyncio.gather(*(one(e) for e in there.values()))
    except TimeoutError:
        pass
    return dict(loads)
