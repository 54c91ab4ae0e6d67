"""The verb `fit`: reads a model's header from wherever it is, the device from a word or from a node, and
asks `homelab.fit`.

Effects: files, the hub, nodes, and the agent's readers as subprocesses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from homelab import cards, documents, fit, pipeline, resources, state
from homelab.engines import ArgValue, Engine, Request, engines, readers
from homelab.errors import DoesNotFit, HomelabError, InventoryError, NodeError
from homelab.facts import SCHEMA_VERSION, Measurement
from homelab.fit import Candidate, Fit, Place
from homelab.inventory import MOST_DRAFTS
from homelab.models import catalog, hub, rules
from homelab.models.header import from_header
from homelab.models.projector import projectors
from homelab.models.source import parse_source

DEFAULT_CONTEXT = 8192
READER_S = 60.0
RAM_RESERVE_BYTES = 2**30
# `homelab fit --what` asks this of every model: a conversation with an assistant that reads files.
WHAT_CONTEXT = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The best variant of one model for one device, as it is shown by `--what`; None where none of them
    fits."""

    model: str
    licence: str
    where: str
    found: Fit | None
    shortest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The answer to `--what`."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The answer to `--history`."""

    measured: tuple[Measurement, ...]


Answer = Fit | Rows | History


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What `homelab fit` was asked, as it was typed. `args` are options of one engine; null where not
    given."""

    inventory: Path
    source: str | None = None
    what: bool = False
    history: bool = False
    engine: str | None = None
    gpu: str | None = None
    node: str | None = None
    context: str | None = None
    concurrency: int = 2
    speculative: str | None = None
    outputs: str | None = None
    args: Mapping[str, ArgValue] = field(default_factory=dict)


def answer(question: Question) -> Answer:
    """Whatever was asked.

    Raises InventoryError for options that do not go together, and what the question itself raises."""
    q = question
    if q.history:
        cluster = pipeline.read_inventory(q.inventory).inventory.cluster
        return History(measured=state.load_measurements(cluster))
    check(q.source, what=q.what, engine=q.engine, gpu=q.gpu, node=q.node, outputs=q.outputs)
    everywhere = q.what and not q.gpu
    places = places_of(q.inventory, q.node) if q.node or everywhere else places_named(q.gpu)
    if q.what:
        return Rows(rows=tuple(what(places, context=q.context, concurrency=q.concurrency)))
    args = arguments(q.args)
    slots = args.get("parallel")
    return run(
        q.source or "",
        engine=q.engine,
        places=places,
        context=q.context,
        concurrency=slots if isinstance(slots, int) else q.concurrency,
        args=args,
        outputs=q.outputs,
        speculative=speculation(q.speculative),
    )


def speculation(written: str | None) -> int | str:
    """What `--speculative` says, as the inventory's key has it.

    Raises InventoryError."""
    if written in (None, "off", "auto"):
        return written or "off"
    if not re.fullmatch(r"\d{1,2}", written) or not 1 <= int(written) <= MOST_DRAFTS:
        raise InventoryError(
            f"`--speculative {written}` is no depth", hint=f"Write auto, off, or 1 to {MOST_DRAFTS}"
        )
    return int(written)


def exit_code(answered: Answer) -> int:
    """Whether the answer is a refusal."""
    return DoesNotFit.exit_code if isinstance(answered, Fit) and answered.verdict == "does-not-fit" else 0


def check(
    source: str | None,
    *,
    what: bool,
    engine: str | None,
    gpu: str | None,
    node: str | None,
    outputs: str | None,
) -> None:
    """Raises InventoryError for options that do not go together."""
    if (source is None) == (not what):
        raise InventoryError(
            "Name a model, or ask for all with --what", hint="homelab fit Qwen/Qwen3-4B --gpu 24GiB"
        )
    if engine not in (None, *engines()):
        raise InventoryError(f"No engine `{engine}`", hint=f"There are: {', '.join(sorted(engines()))}")
    if gpu and node:
        raise InventoryError("--gpu and --node both name a device: give one of them")
    known = sorted({way for e in engines().values() for way in e.OUTPUTS})
    if outputs not in (None, *known):
        raise InventoryError(f"`--outputs {outputs}`: there are {' and '.join(known)}")


def arguments(given: Mapping[str, ArgValue]) -> dict[str, ArgValue]:
    """The engine's arguments among the options that were given.

    Raises InventoryError for a value that no engine has."""
    out: dict[str, ArgValue] = {name: value for name, value in given.items() if value is not None}
    for name, value in out.items():
        values = [known for e in engines().values() if (known := e.FIT_ARGS.get(name)) is not None]
        if values and not any(value in known for known in values):
            there = ", ".join(sorted(frozenset[str]().union(*values)))
            raise InventoryError(f"`--{name} {value}` is not known", hint=f"There are: {there}")
    return out


def engine_of(engine: str | None, args: Mapping[str, ArgValue]) -> str | None:
    """The engine that was named, or the only one that takes these arguments.

    Raises InventoryError when there is none."""
    takers = [n for n, e in engines().items() if set(args) <= set(e.FIT_ARGS) and engine in (None, n)]
    if not takers:
        said = ", ".join(f"--{name}" for name in args)
        raise InventoryError(
            f"{engine or 'No engine'} {'does not take' if engine else 'takes all of'} {said}",
            hint="Leave one out, or name the other --engine",
        )
    return takers[0] if len(takers) == 1 else engine


def document(answered: Answer) -> dict[str, Any]:
    """What `homelab fit --json` prints."""
    match answered:
        case Rows(rows=rows):
            return what_document(rows)
        case History(measured=measured):
            return documents.history_document(measured)
        case _:
            return fit.document(answered)


def what_document(rows: Sequence[Row]) -> dict[str, Any]:
    """What `homelab fit --what --json` prints."""
    models = [
        {
            "model": r.model,
            "licence": r.licence,
            "device": r.where,
            "fits": r.found is not None,
            "fit": fit.document(r.found) if r.found else None,
        }
        for r in rows
    ]
    return {"schema_version": SCHEMA_VERSION, "models": models}


def places_named(gpu: str | None) -> list[Place]:
    if gpu is None:
        return []
    card, device = cards.find_gpu(gpu, load_cards())
    if card is None or not card.unified:
        return [Place(device=device, free_bytes=device.total_bytes, label=device.name)]
    share = f"{device.name}, {card.usable_bytes / fit.GiB:.1f} GiB for models"
    return [
        Place(device=device, free_bytes=card.usable_bytes, label=f"{share} {card.note}".rstrip()),
    ]


@cache
def load_cards() -> cards.Cards:
    return cards.parse((Path(cards.__file__).parent / "cards.yml").read_text())


def run(
    source: str,
    *,
    engine: str | None = None,
    gpu: str | None = None,
    places: Sequence[Place] = (),
    context: str | None = None,
    concurrency: int = 2,
    args: Mapping[str, ArgValue] | None = None,
    outputs: str | None = None,
    speculative: int | str = "off",
    endpoint: str | None = None,
    token: str | None = None,
) -> Fit:
    """What a model takes, and whether it fits: on the GPU named, on the best of a node's devices
    (`places`), or on none in particular.

    Raises InventoryError for a source, a size or a header that is no use."""
    engine = engine_of(engine, args or {})
    given: list[Place | None] = [*(places_named(gpu) or places)]
    named, others = candidates(source, engine, endpoint, token)
    projector = (args or {}).get("mmproj")
    if isinstance(projector, str) and (path := _home(projector)).is_file():
        beside = projectors({"projectors": {path.name: hub.read_file(path)}})
        named, others = (
            [replace(c, shape=replace(c.shape, projectors=beside)) for c in cs] for cs in (named, others)
        )
    answers: list[Fit] = []
    for candidate in named:
        tokens = (
            fit.parse_tokens(context)
            if context
            else min(DEFAULT_CONTEXT, candidate.shape.max_context or DEFAULT_CONTEXT)
        )
        known = engines()[candidate.engine]
        plain = known.canonical(args or {})
        recipe = pipeline.load_recipes().find(candidate.source) if candidate.engine == "vllm" else None
        try:
            advised = recipe.drafts if recipe else None
            drafts = rules.drafts_for(candidate.engine, candidate.shape, speculative, plain, advised)
        except ValueError as e:
            raise InventoryError(str(e)) from e
        request = Request(
            kind=candidate.shape.kind,
            context=tokens,
            concurrency=concurrency,
            args=plain,
            outputs=_outputs(known, outputs),
            speculative=drafts,
            recipe=recipe,
        )
        for place in given or [None]:
            answer = fit.fit(candidate, request, place, others)
            if answer.verdict != "does-not-fit":
                return answer
            answers.append(answer)
    return min(
        answers,
        key=lambda f: (not f.alternatives, f.footprint.device_bytes - (f.place.free_bytes if f.place else 0)),
    )


def _home(path: str) -> Path:
    """`~/` as the shell reads it; what starts like the home of nobody is a name like any other."""
    return Path(os.path.expanduser(path))


def _outputs(engine: Engine, wanted: str | None) -> str:
    """How it counts logits: as wanted, else the way that fits its newest server."""
    return wanted if wanted in engine.OUTPUTS else engine.OUTPUTS[-1] if engine.OUTPUTS else ""


def what(places: Sequence[Place], *, context: str | None = None, concurrency: int = 1) -> list[Row]:
    """For each model of the catalog and each device: the largest variant that fits, else why none does."""
    tokens = fit.parse_tokens(context) if context else WHAT_CONTEXT
    rows = []
    for entry in load_catalog().entries.values():
        choices = sorted(
            (_catalogued(entry, v) for v in entry.variants), key=lambda c: -c.shape.weights_bytes
        )
        for place in places:
            length = min(tokens, choices[0].shape.max_context or tokens)
            request = Request(kind="chat", context=length, concurrency=concurrency)
            answers = [
                fit.fit(c, replace(request, outputs=_outputs(engines()[c.engine], None)), place)
                for c in choices
            ]
            best = next((a for a in answers if a.verdict == "fits"), None)
            short = min((a.footprint.device_bytes for a in answers if a.footprint.terms), default=0)
            need = f"needs {short / fit.GiB:.1f} GiB at least" if short else answers[-1].reason
            rows.append(
                Row(
                    model=entry.name,
                    licence=entry.licence,
                    where=place.label,
                    found=best,
                    shortest="" if best else need,
                )
            )
    return rows


@cache
def load_catalog() -> catalog.Catalog:
    return catalog.parse((Path(catalog.__file__).parent / "catalog.yml").read_text())


def candidates(
    source: str, engine: str | None, endpoint: str | None = None, token: str | None = None
) -> tuple[list[Candidate], list[Candidate]]:
    """What a source names, in order of preference, and the catalog's other variants of the same model.

    The file's own header is taken where it can be had; the catalog answers for names of its own, without a
    network, and for gated repositories."""
    known = load_catalog().find(source)
    path = _home(source)
    if path.exists() and (path.suffix == ".gguf" or path.is_dir()):
        return [_candidate(source, _document(path), engine)], []
    if known is not None and "/" not in source:
        entry = known[0]
        return _of_engine(entry, engine), [_catalogued(entry, v) for v in entry.variants]
    try:
        parsed = parse_source(source)
    except ValueError as e:
        from homelab.inventory import did_you_mean

        raise InventoryError(
            str(e),
            hint=(
                f"Or a name of the catalog{did_you_mean(source, load_catalog().entries)}: "
                "homelab fit --what lists them"
            ),
        ) from e
    if parsed.path is not None:
        raise InventoryError(
            f"There is no `{source}` on this machine", hint="A node's file is looked at by `homelab plan`"
        )
    others = [_catalogued(known[0], v) for v in known[0].variants] if known else []
    try:
        if known is not None and engine not in (None, *readers(known[1].format)):
            return _of_engine(known[0], engine), others
        return [_candidate(source, hub.read_header(source, endpoint=endpoint, token=token), engine)], others
    except HomelabError as e:
        # Not for a source that the hub knows better, as a quantisation that is not there.
        if known is None or not (isinstance(e, NodeError) or "gated" in e.message):
            raise _bad_input(e) from e
        return [replace(_catalogued(*known), why=e.message)], others


def _of_engine(entry: catalog.Entry, engine: str | None) -> list[Candidate]:
    """The catalog's variants that an engine reads, or all of them."""
    variants = [v for v in entry.variants if engine in (None, *readers(v.format))]
    if not variants:
        raise InventoryError(
            f"The catalog has no variant of {entry.name} for {engine}",
            hint=f"It has {', '.join(v.source for v in entry.variants)}",
        )
    return [_catalogued(entry, v, engine) for v in variants]


def _bad_input(error: HomelabError) -> InventoryError:
    """To `fit`, a hub that cannot be reached is a source that cannot be read."""
    if isinstance(error, InventoryError):
        return error
    hint = "Models of the catalog need no network: homelab fit --what"
    return InventoryError(
        error.message,
        cause=error.cause,
        hint=f"{error.hint} {hint}" if isinstance(error, NodeError) else hint,
    )


def _catalogued(entry: catalog.Entry, variant: catalog.Variant, engine: str | None = None) -> Candidate:
    return Candidate(
        source=variant.source,
        engine=engine or variant.engine,
        shape=from_header(entry.document(variant)),
        catalogued=True,
    )


def _candidate(source: str, document: Mapping[str, Any], engine: str | None) -> Candidate:
    shape = from_header(document)
    return Candidate(source=source, engine=engine or readers(shape.format)[0], shape=shape)


def _document(path: Path) -> Mapping[str, Any]:
    """The header document of a GGUF file or of a model's folder on this machine."""
    if path.is_file():
        return hub.read_file(path)
    request = json.dumps({"only": "weights", "sources": [str(path.resolve())]})
    argv = [sys.executable, "-I", str(resources.path("agent")), request]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=READER_S, check=False)
        (found,) = json.loads(done.stdout)["weights"]
        header, error = found["header"], found["error"]
    except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as e:
        raise InventoryError(f"`{path}` cannot be read", cause=str(e)[:200]) from e
    if not isinstance(header, Mapping):
        raise InventoryError(
            f"`{path}` is not a model that homelab can read", cause=str(error or "no weights in it")
        )
    return header


def places_of(inventory: Path, node: str | None = None) -> list[Place]:
    """The devices of one node of an inventory, or of all; as they were last seen where a node does not
    answer.

    Raises InventoryError for an unknown node, NodeError for one that never answered."""
    from homelab.inventory import did_you_mean
    from homelab.placement.devices import slots_of

    household = pipeline.read_inventory(inventory)
    nodes = household.inventory.nodes
    if node is not None and node not in nodes:
        raise InventoryError(
            f"No node `{node}` in `{inventory}`{did_you_mean(node, nodes)}",
            hint=f"There are: {', '.join(nodes)}",
        )
    discovery = asyncio.run(pipeline.survey_nodes(household))
    out = []
    for name in [node] if node else nodes:
        report = discovery.survey.nodes[name]
        facts = report.facts or discovery.survey.remembered.get(name)
        if facts is None:
            if node is None:
                continue
            raise discovery.errors.get(name) or NodeError(
                f"Node `{name}` does not answer, and was never seen before"
            )
        for slot in slots_of(household.inventory, name, facts):
            ram = (
                facts.memory_available_bytes - RAM_RESERVE_BYTES
                if slot.gpus and slot.device.memory_kind == "dedicated"
                else None
            )
            seen = "" if report.facts else " (as last seen)"
            out.append(
                Place(
                    device=slot.device,
                    free_bytes=slot.free_bytes,
                    ram_bytes=ram,
                    label=f"{name} {slot.label}{seen}",
                )
            )
    return out
