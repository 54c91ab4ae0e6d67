"""All nodes at once -> what each has, or why it could not say. One connection and one round trip each when the agent is cached there."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from homelab.errors import HomelabError, NodeError
from homelab.facts import Failure, NodeReport, Survey, Weights, parse_facts
from homelab.inventory import Inventory
from homelab.nodes import bundle, connect
from homelab.nodes.session import Session

ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """The survey, and the errors themselves for callers that can do something about one (an unknown host key)."""

    survey: Survey
    errors: Mapping[str, NodeError]


async def discover(
    inventory: Inventory, *, limit: Collection[str] | None = None, arrived: Callable[[str, NodeReport], None] | None = None
) -> Discovery:
    """Ask every node (or those in `limit`) at once. A node that does not answer is a report with its error, never an exception."""
    sources = sorted({v.source for m in inventory.models.values() for v in m.variants if v.parsed.where != "controller"})
    request = json.dumps({"cluster": inventory.cluster, "sources": sources})
    errors: dict[str, NodeError] = {}

    async def one(name: str) -> tuple[str, NodeReport]:
        try:
            async with asyncio.timeout(ANSWER_SECONDS), connect(name, inventory.nodes[name]) as session:
                report = await ask(session, request, inventory.nodes[name].python)
        except TimeoutError:
            error = NodeError(
                f"Node `{name}` did not answer in {ANSWER_SECONDS:.0f} s",
                hint="Is it busy or its disk hanging? Try: homelab discover -v",
                kind="timeout",
            )
            errors[name], report = error, NodeReport(reachable=False, error=_failure(error))
        except NodeError as error:
            errors[name], report = error, NodeReport(reachable=False, error=_failure(error))
        if arrived:
            arrived(name, report)
        return name, report

    names = sorted(n for n in inventory.nodes if limit is None or n in limit)
    reports = dict(await asyncio.gather(*(one(n) for n in names)))
    return Discovery(survey=Survey(nodes=reports), errors=errors)


async def ask(session: Session, request: str, python: str | None) -> NodeReport:
    """What the agent on one node says; the bundle is brought there first if it is not cached.

    Raises NodeError when the agent cannot run."""
    fingerprint = bundle.fingerprint()
    result = await session.run(bundle.launch_command(fingerprint, request, python=python))
    if result.exit_status == bundle.MISSING:
        packed = await asyncio.to_thread(bundle.pack, bundle.platform_of(result.text))
        installed = await session.run(bundle.install_command(fingerprint, python=python), input=packed)
        if installed.exit_status != 0:
            raise NodeError(
                f"The agent cannot be copied to node `{session.node}`",
                cause=installed.cause,
                hint="Is the disk full, or the home not writable? The agent lies in ~/.cache/homelab/agent",
                kind="agent",
            )
        result = await session.run(bundle.launch_command(fingerprint, request, python=python))
    if result.exit_status == bundle.NO_PYTHON:
        raise NodeError(
            f"Node `{session.node}` has no python3",
            cause=result.cause,
            hint="Install it there (Debian: sudo apt install python3), or name it: `python: /path` under the node",
            kind="python",
        )
    if result.exit_status == bundle.OLD_PYTHON:
        raise NodeError(
            f"The python3 of node `{session.node}` is too old",
            cause=result.cause,
            hint="Name a newer one: `python: /path/to/python3.8` under the node",
            kind="python",
        )
    if result.exit_status != 0:
        raise NodeError(
            f"The agent failed on node `{session.node}`",
            cause=result.cause,
            hint="Run it by hand to see more: homelab discover -v",
            kind="agent",
        )
    return NodeReport(reachable=True, facts=parse_facts(result.stdout))


async def read_models(inventory: Inventory, survey: Survey, names: Collection[str], environ: Mapping[str, str], base: Path) -> Survey:
    """The survey with the headers of the models that live on the hub or on the controller, read for the models in `names` only.

    `./` sources are relative to `base`, the inventory's folder. What cannot be read is an entry with its `error`."""
    wanted = sorted({v.source: v.parsed for n in names for v in inventory.models[n].variants}.items())
    known = dict(survey.models)
    seen = {w.source: w for r in survey.nodes.values() if r.facts for w in r.facts.weights if w.header is not None}

    async def one(source: str) -> tuple[str, Weights]:
        return source, await asyncio.to_thread(_read_hub, source, inventory, environ)

    hub = [s for s, parsed in wanted if parsed.where == "hub" and s not in seen]
    known |= {s: seen[s] for s, parsed in wanted if parsed.where == "hub" and s in seen}
    known |= {s: _read_file(s, base) for s, parsed in wanted if parsed.where == "controller"}
    known |= dict(await asyncio.gather(*(one(s) for s in hub)))
    return survey.model_copy(update={"models": known})


def _read_hub(source: str, inventory: Inventory, environ: Mapping[str, str]) -> Weights:
    from homelab.models import hub

    token = environ.get(inventory.hub.token.removeprefix("env:")) if inventory.hub.token else None
    try:
        header = hub.read_header(source, endpoint=inventory.hub.endpoint, token=token)
    except HomelabError as e:
        said = e.message + (f" ({e.cause.splitlines()[-1]})" if e.cause else "")
        return Weights(source=source, error=f"{said}. {e.hint}" if e.hint else said)
    return Weights(source=source, header=header, bytes=int(header.get("file_bytes") or header.get("tensor_bytes") or 0))


def _read_file(source: str, base: Path) -> Weights:
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
    return Weights(source=source, path=os.path.abspath(path), present=True, bytes=status.st_size, revision=revision, header=header)


def _failure(error: NodeError) -> Failure:
    return Failure(message=error.message, cause=error.cause, hint=error.hint)
