"""Many nodes at once -> what each has, or why it could not say.

One connection and one round trip each, where the agent is cached."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from homelab.apps import apps
from homelab.engines import engines
from homelab.errors import HomelabError, NodeError
from homelab.inventory import Inventory, is_ip
from homelab.nodes import bundle, connect
from homelab.nodes.session import Result, Session

# Imported while the nodes answer.
if TYPE_CHECKING:
    from homelab.facts import Failure, NodeReport, Survey, Weights

ANSWER_SECONDS = 30.0
# Each login takes this machine's processor for a while, and all of them wait for each other.
ASKED_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """The survey, and the errors themselves: a caller can do something about an unknown host key."""

    survey: Survey
    errors: Mapping[str, NodeError]


async def discover(
    inventory: Inventory,
    *,
    meanwhile: Callable[[], object] = bool,
    at_once: int = ASKED_AT_ONCE,
    answer_seconds: float = ANSWER_SECONDS,
) -> Discovery:
    """Ask every node, `at_once` of them at the same time; the clock of each starts with its turn.

    A node that does not answer is a report with its error, never an exception. `meanwhile` runs in a thread
    while the nodes answer: what the caller needs afterwards can be imported there."""
    sources = sorted(
        {
            s.text
            for m in inventory.models.values()
            for v in m.variants
            for s in v.reads
            if s.where != "controller"
        }
    )
    engines_used = {v.engine for m in inventory.models.values() for v in m.variants}
    offers = [engines()[name].OFFER for name in engines_used]
    offers += [apps()[app.module].OFFER for app in inventory.apps.values()]
    programs = sorted({offer.executable for offer in offers if offer.executable})
    request = {"cluster": inventory.cluster, "sources": sources, "programs": programs, "headers": False}
    answers: dict[str, bytes] = {}
    errors: dict[str, NodeError] = {}
    turns = asyncio.Semaphore(at_once)
    # Nothing is imported as long as the first logins go on: they wait for the same processor.
    logins, no_login_left = set(sorted(inventory.nodes)[:at_once]), asyncio.Event()

    def logged_in(name: str) -> None:
        logins.discard(name)
        if not logins:
            no_login_left.set()

    async def one(name: str) -> None:
        try:
            written = inventory.nodes[name].address
            names = [written] if written and not is_ip(written) else []
            async with turns:
                answers[name] = await _answer(
                    inventory, name, {**request, "resolve": names}, answer_seconds, lambda: logged_in(name)
                )
        except NodeError as e:
            errors[name] = e
        finally:
            logged_in(name)

    def prepare() -> None:
        importlib.import_module("homelab.facts")
        meanwhile()

    async def while_they_answer() -> None:
        if logins:
            await no_login_left.wait()
        await asyncio.to_thread(prepare)

    await asyncio.gather(*(one(n) for n in sorted(inventory.nodes)), while_they_answer())
    from homelab.facts import NodeReport, Survey, parse_facts

    facts = {}
    for name, answer in answers.items():
        try:
            facts[name] = parse_facts(answer)
        except NodeError as e:
            errors[name] = e
    reports = {
        n: NodeReport(reachable=True, facts=facts[n])
        if n in facts
        else NodeReport(reachable=False, error=failure(errors[n]))
        for n in sorted(inventory.nodes)
    }
    return Discovery(survey=Survey(nodes=reports), errors=errors)


async def _answer(
    inventory: Inventory,
    name: str,
    request: dict[str, object],
    seconds: float = ANSWER_SECONDS,
    logged_in: Callable[[], object] = bool,
) -> bytes:
    """The agent's document from one node, within a time limit."""
    try:
        async with asyncio.timeout(seconds) as limit, connect(name, inventory.nodes[name]) as session:
            logged_in()
            python = inventory.nodes[name].python
            return await run_agent(session, json.dumps(request), python, limit, seconds)
    except TimeoutError as e:
        raise silent(name, seconds) from e


def silent(name: str, seconds: float) -> NodeError:
    """A node that is there, and says nothing."""
    return NodeError(
        f"Node `{name}` did not answer in {seconds:.0f} s",
        hint="Is it busy, or its disk hanging?",
        kind="timeout",
    )


async def run_agent(
    session: Session, request: str, python: str | None, limit: asyncio.Timeout, seconds: float
) -> bytes:
    """What the agent on one node says; the bundle is brought there first if it is not cached. Then `limit`
    gives the node its `seconds` anew.

    Raises NodeError when the agent cannot run."""
    fingerprint = bundle.fingerprint()
    result = await session.run(bundle.launch_command(fingerprint, request, python=python))
    if result.exit_status == bundle.MISSING:
        limit.reschedule(None)  # psutil for a Mac is fetched first: no time of the node's
        packed = await asyncio.to_thread(bundle.pack, bundle.platform_of(result.text))
        limit.reschedule(asyncio.get_running_loop().time() + seconds)
        installed = await session.run(bundle.install_command(fingerprint, python=python), input=packed)
        if installed.exit_status != 0:
            raise NodeError(
                f"The agent cannot be copied to node `{session.node}`",
                cause=installed.cause,
                hint="Is the disk full, or the home not writable? The agent lies in ~/.cache/homelab/agent",
                kind="agent",
            )
        result = await session.run(bundle.launch_command(fingerprint, request, python=python))
    if result.exit_status != 0:
        raise _no_agent(session.node, result)
    return result.stdout


def _no_agent(node: str, result: Result) -> NodeError:
    """Why the agent did not run."""
    if result.exit_status == bundle.NO_PYTHON:
        return NodeError(
            f"Node `{node}` has no python3",
            cause=result.cause,
            hint="Install it there (Debian: sudo apt install python3), "
            "or name it: `python: /path` under the node",
            kind="python",
        )
    if result.exit_status == bundle.OLD_PYTHON:
        return NodeError(
            f"The python3 of node `{node}` is too old",
            cause=result.cause,
            hint="Name a newer one: `python: /path/to/python3.8` under the node",
            kind="python",
        )
    return NodeError(
        f"The agent failed on node `{node}`",
        cause=result.cause,
        hint="Run it by hand to see more: homelab -vv discover",
        kind="agent",
    )


async def read_models(
    inventory: Inventory, survey: Survey, names: Collection[str], environ: Mapping[str, str], base: Path
) -> Survey:
    """The survey with the headers of the models in `names`, from nodes that have them, hub and controller.

    `./` sources are relative to `base`, the inventory's folder. What cannot be read has an `error`."""
    turns = asyncio.Semaphore(ASKED_AT_ONCE)
    wanted = {s.text: s for n in sorted(names) for v in inventory.models[n].variants for s in v.reads}

    def there(name: str, source: str) -> bool:
        facts = survey.nodes[name].facts
        return facts is not None and any(
            w.source == source and w.present and w.header is None for w in facts.weights
        )

    async def on(name: str) -> tuple[str, NodeReport]:
        sources = [s for s in sorted(wanted) if there(name, s)]
        if not sources:
            return name, survey.nodes[name]
        async with turns:
            return name, await _with_headers(inventory, name, survey.nodes[name], sources)

    nodes = dict(await asyncio.gather(*(on(n) for n in survey.nodes)))
    seen = {w.source: w for r in nodes.values() if r.facts for w in r.facts.weights if w.header is not None}

    async def from_hub(source: str) -> tuple[str, Weights]:
        return source, seen[source] if source in seen else await asyncio.to_thread(
            _read_hub, source, inventory, environ
        )

    hub = await asyncio.gather(*(from_hub(s) for s, parsed in wanted.items() if parsed.where == "hub"))
    files = {s: _read_file(s, base) for s, parsed in wanted.items() if parsed.where == "controller"}
    return survey.model_copy(update={"nodes": nodes, "models": {**survey.models, **dict(hub), **files}})


async def _with_headers(
    inventory: Inventory, name: str, report: NodeReport, sources: list[str]
) -> NodeReport:
    """The node's report with the headers of these sources, in a second round: only planning needs them."""
    from homelab.facts import Weights

    assert report.facts is not None
    try:
        answer = await _answer(inventory, name, {"only": "weights", "sources": sources})
        described = {w.source: w for w in map(Weights.model_validate, json.loads(answer)["weights"])}
    except NodeError as e:
        described = {s: Weights(source=s, error=e.message) for s in sources}
    except (ValueError, TypeError, KeyError, RecursionError):  # not what an agent says
        why = f"what node `{name}` says of its models cannot be read"
        described = {s: Weights(source=s, error=why) for s in sources}
    weights = tuple(described.get(w.source, w) for w in report.facts.weights)
    return report.model_copy(update={"facts": report.facts.model_copy(update={"weights": weights})})


def _read_hub(source: str, inventory: Inventory, environ: Mapping[str, str]) -> Weights:
    from homelab.facts import Weights
    from homelab.models import hub

    token = environ.get(inventory.hub.token.removeprefix("env:")) if inventory.hub.token else None
    try:
        header = hub.read_header(source, endpoint=inventory.hub.endpoint, token=token)
    except HomelabError as e:
        said = e.message + (f" ({e.cause.splitlines()[-1]})" if e.cause else "")
        return Weights(source=source, error=f"{said}. {e.hint}" if e.hint else said)
    return Weights(
        source=source, header=header, bytes=int(header.get("file_bytes") or header.get("tensor_bytes") or 0)
    )


def _read_file(source: str, base: Path) -> Weights:
    from homelab.facts import Weights
    from homelab.models import hub

    path = base / source
    try:
        status = path.stat()
        header = hub.read_file(path)
    except OSError as e:
        return Weights(source=source, error=f"{source}: {e.strerror} on this machine")
    except HomelabError as e:
        return Weights(source=source, error=f"{e.message} ({e.cause})" if e.cause else e.message)
    revision = f"{status.st_size:x}-{status.st_mtime_ns:x}"
    return Weights(
        source=source,
        path=os.path.abspath(path),
        present=True,
        bytes=status.st_size,
        revision=revision,
        header=header,
    )


def failure(error: NodeError) -> Failure:
    """An error as a part of a survey."""
    from homelab.facts import Failure

    return Failure(message=error.message, cause=error.cause, hint=error.hint)
