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
from homelab.engines import ArgValue, Engine, Kind, Request, engines, readers
from homelab.errors import DoesNotFit, HomelabError, InventoryError, NodeError
from homelab.facts import SCHEMA_VERSION, Measurement
from homelab.fit import Alternative, Candidate, Fit, Place
from homelab.inventory import DEFAULT_CONCURRENCY, MOST_DRAFTS
from homelab.models import catalog, from_config, hub, rules, scores
from homelab.models.header import from_header
from homelab.models.projector import projectors
from homelab.models.recipes import Recipe
from homelab.models.scores import Score
from homelab.models.shape import ModelShape, Purpose
from homelab.models.source import parse_source

DEFAULT_CONTEXT = 8192
READER_S = 60.0
LARGEST_CONFIG = 16 << 20
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
    kind: Purpose = "chat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The answer to `--what`: each model with so many requests at once of so many tokens, or of as many as
    it was made for."""

    rows: tuple[Row, ...]
    context: int
    concurrency: int


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The answer to `--history`."""

    measured: tuple[Measurement, ...]


Answer = Fit | Rows | History


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What `homelab fit` was asked, as it was typed; null where not given. `args` are options of one
    engine."""

    inventory: Path
    source: str | None = None
    what: bool = False
    history: bool = False
    engine: str | None = None
    gpu: str | None = None
    node: str | None = None
    context: str | None = None
    concurrency: int | None = None
    speculative: str | None = None
    quant: str | None = None
    outputs: str | None = None
    args: Mapping[str, ArgValue] = field(default_factory=dict)


def answer(question: Question) -> Answer:
    """Whatever was asked.

    Raises InventoryError for options that do not go together, and what the question itself raises."""
    q = question
    if q.history:
        cluster = pipeline.read_inventory(q.inventory).inventory.cluster
        return History(measured=state.load_measurements(cluster))
    check(q.source, what=q.what, engine=q.engine, gpu=q.gpu, node=q.node, outputs=q.outputs, quant=q.quant)
    everywhere = q.what and not q.gpu
    places = places_of(q.inventory, q.node) if q.node or everywhere else places_named(q.gpu)
    args = arguments(q.args)
    slots = args.get("parallel")
    if isinstance(slots, int) and q.concurrency not in (None, slots):
        raise InventoryError(
            f"--parallel {slots} and --concurrency {q.concurrency} are the same thing, said twice",
            hint="Give one of them",
        )
    at_once = slots if isinstance(slots, int) else q.concurrency or DEFAULT_CONCURRENCY
    if q.what:
        tokens = fit.parse_tokens(q.context) if q.context else WHAT_CONTEXT
        rows = what(places, context=tokens, concurrency=at_once)
        return Rows(rows=tuple(rows), context=tokens, concurrency=at_once)
    return run(
        q.source or "",
        engine=q.engine,
        places=places,
        context=q.context,
        concurrency=at_once,
        quant=q.quant,
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
    quant: str | None = None,
) -> None:
    """Raises InventoryError for options that do not go together."""
    if (source is None) == (not what):
        raise InventoryError(
            "Name a model, or ask for all with --what", hint="homelab fit Qwen/Qwen3-4B --gpu 24GiB"
        )
    if engine not in (None, *engines()):
        raise InventoryError(f"No engine `{engine}`", hint=f"There are: {', '.join(sorted(engines()))}")
    if what and quant:
        raise InventoryError("--quant is for one model; --what takes the largest weights that fit")
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
            "kind": r.kind,
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
    card, device = cards.find_gpu(gpu, pipeline.load_cards())
    if card is None or not card.unified:
        return [Place(device=device, free_bytes=device.total_bytes, label=fit.several(device, device.name))]
    share = f"{device.name}, {card.usable_bytes / fit.GiB:.1f} GiB for models"
    return [
        Place(device=device, free_bytes=card.usable_bytes, label=f"{share} {card.note}".rstrip()),
    ]


def run(
    source: str,
    *,
    engine: str | None = None,
    gpu: str | None = None,
    places: Sequence[Place] = (),
    context: str | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
    quant: str | None = None,
    args: Mapping[str, ArgValue] | None = None,
    outputs: str | None = None,
    speculative: int | str = "off",
    endpoint: str | None = None,
    token: str | None = None,
) -> Fit:
    """What a model takes, and whether it fits: on the GPU named, on the best of a node's devices
    (`places`), or on none in particular. Of several quantisations the largest that fits.

    Raises InventoryError for a source, a size or a header that is no use."""
    args = dict(args or {})
    engine = engine_of(engine, args)
    args.pop("parallel", None)  # it is `concurrency` by now
    given: list[Place | None] = [*(places_named(gpu) or places)]
    tokens = fit.parse_tokens(context) if context else None
    named, others = candidates(source, engine, endpoint, token, quant)
    projector = args.get("mmproj")
    if isinstance(projector, str) and (path := _home(projector)).is_file():
        beside = projectors({"projectors": {path.name: hub.read_file(path)}})
        named, others = (
            [replace(c, shape=replace(c.shape, projectors=beside)) for c in cs] for cs in (named, others)
        )
    asked: list[tuple[Candidate, Request, Place | None, Fit]] = []
    for candidate in named:
        known = engines()[candidate.engine]
        plain = known.canonical(args or {})
        recipe = _recipe(candidate)
        try:
            advised = recipe.drafts if recipe else None
            drafts = rules.drafts_for(candidate.engine, candidate.shape, speculative, plain, advised)
        except ValueError as e:
            raise InventoryError(str(e)) from e
        request = Request(
            kind=candidate.shape.kind,
            context=tokens or min(DEFAULT_CONTEXT, candidate.shape.max_context or DEFAULT_CONTEXT),
            concurrency=concurrency,
            args=plain,
            outputs=_outputs(known, outputs),
            speculative=drafts,
            recipe=recipe,
            sampling=_sampling(candidate),
        )
        for place in given or [None]:
            answer = fit.fit(candidate, request, place, instead=False)
            if answer.verdict != "does-not-fit":
                return answer
            asked.append((candidate, request, place, answer))
    # What comes nearest, if there is something that would fit instead.
    asked.sort(key=lambda a: a[3].footprint.device_bytes - (a[2].free_bytes if a[2] else 0))
    asked.sort(key=lambda a: not a[3].footprint.terms)  # what an engine refuses comes near to nothing
    refused = [fit.fit(candidate, request, place, others) for candidate, request, place, _ in asked[:1]]
    for candidate, request, place, _ in asked[1:]:
        if refused[-1].alternatives:
            break
        refused.append(fit.fit(candidate, request, place, others))
    found = refused[-1] if refused[-1].alternatives else refused[0]
    return found if len(named) == 1 else replace(found, alternatives=tuple(map(_whole, found.alternatives)))


def _whole(a: Alternative) -> Alternative:
    """With the source among what is typed: a name that has several would choose another one again."""
    if a.candidate.quant or a.candidate.source in a.typed:
        return a
    return replace(a, typed=(a.candidate.source, *a.typed))


def _recipe(candidate: Candidate) -> Recipe | None:
    return pipeline.load_recipes().find(candidate.source) if candidate.engine == "vllm" else None


def _sampling(candidate: Candidate) -> Mapping[str, float]:
    return pipeline.load_sampling().find(candidate.source) if candidate.engine == "llamacpp" else {}


def _home(path: str) -> Path:
    """`~/` as the shell reads it; what starts like the home of nobody is a name like any other."""
    return Path(os.path.expanduser(path))


def _outputs(engine: Engine, wanted: str | None) -> str:
    """How it counts logits: as wanted, else the way that fits its newest server."""
    return wanted if wanted in engine.OUTPUTS else engine.OUTPUTS[-1] if engine.OUTPUTS else ""


def what(
    places: Sequence[Place], *, context: int = WHAT_CONTEXT, concurrency: int = DEFAULT_CONCURRENCY
) -> list[Row]:
    """For each model of the catalog and each device: the largest variant that fits, else why none does."""
    rows = []
    for entry in load_catalog().entries.values():
        sized = entry.by_size()
        # What each engine has the smallest weights for; the others are only looked at where they may fit.
        smallest = {variant.engine: variant for _, variant in sized}
        for place in places:
            best, least, why = None, 0, ""
            for size, variant in sized:
                room = place.free_bytes * place.device.count
                if size > room and variant not in smallest.values():
                    continue
                found = _what(_catalogued(entry, variant), entry.kind, place, context, concurrency)
                if found.verdict == "fits":
                    best = found
                    break
                why = found.reason
                if found.footprint.terms:
                    least = min(least or found.footprint.device_bytes, found.footprint.device_bytes)
            need = f"needs {least / fit.GiB:.1f} GiB at least" if least else why
            rows.append(
                Row(
                    model=entry.name,
                    licence=entry.licence,
                    where=place.label,
                    found=best,
                    shortest="" if best else need,
                    kind=entry.kind,
                )
            )
    return rows


def _what(candidate: Candidate, kind: Kind, place: Place, context: int, concurrency: int) -> Fit:
    request = Request(
        kind=kind,
        context=min(context, candidate.shape.max_context or context),
        concurrency=concurrency,
        outputs=_outputs(engines()[candidate.engine], None),
        recipe=_recipe(candidate),
        sampling=_sampling(candidate),
    )
    return fit.fit(candidate, request, place, instead=False)


@cache
def load_catalog() -> catalog.Catalog:
    return catalog.parse((Path(catalog.__file__).parent / "catalog.yml").read_text())


@cache
def load_scores() -> Mapping[str, tuple[Score, ...]]:
    """What has been published of how good the catalog's models are, by their name there."""
    return scores.parse((Path(scores.__file__).parent / "scores.yml").read_text())


def load_notes() -> Mapping[str, tuple[scores.Note, ...]]:
    """What people saw of the catalog's models that no benchmark says."""
    return scores.parse_notes((Path(scores.__file__).parent / "scores.yml").read_text())


def candidates(
    source: str,
    engine: str | None,
    endpoint: str | None = None,
    token: str | None = None,
    quant: str | None = None,
) -> tuple[list[Candidate], list[Candidate]]:
    """What a source names, the largest weights first, and what else the same model is known as. All of it
    is read by the engine, where one is named.

    The file's own header is taken where it can be had; the catalog answers for names of its own, without a
    network, and for gated repositories; a config.json for itself.

    Raises InventoryError."""
    known = load_catalog().find(source)
    path = _home(source)
    if path.exists() and (path.suffix == ".gguf" or path.is_dir() or path.suffix == ".json"):
        if (config := _config_alone(path)) is not None:
            return _of_config(source, config, engine, quant)
        if quant is not None:
            raise InventoryError(
                f"`{source}` has the weights that it has, and not {quant}", hint="Leave out --quant"
            )
        return [_candidate(source, _document(path), engine)], []
    if known is not None and "/" not in source:
        entry = known[0]
        return _of_engine(entry, engine, quant), _of_engine(entry, engine)
    if quant is not None:
        source = source if ":" in source else f"{source}:{quant}"
        known = load_catalog().find(source)
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
    if quant is not None and (parsed.quant or "").lower() != quant.lower():
        raise InventoryError(
            f"`{source}` names its weights already, and --quant {quant} others", hint="Leave one of them out"
        )
    if parsed.path is not None:
        raise InventoryError(
            f"There is no `{source}` on this machine", hint="A node's file is looked at by `homelab plan`"
        )
    others = [c for v in known[0].variants for c in _read_by(known[0], v, engine)] if known else []
    try:
        if known is not None and engine not in (None, *readers(known[1].format)):
            return _of_engine(known[0], engine), others
        read = _candidate(source, hub.read_header(source, endpoint=endpoint, token=token), engine)
        if known is not None and known[0].kind != "chat":
            read = replace(read, shape=replace(read.shape, kind=known[0].kind))
        return [read], others
    except HomelabError as e:
        # Not for a source that the hub knows better, as a quantisation that is not there.
        if known is None or not (isinstance(e, NodeError) or "gated" in e.message):
            raise _bad_input(e) from e
        return [replace(_catalogued(*known), why=e.message)], others


def _of_engine(entry: catalog.Entry, engine: str | None, quant: str | None = None) -> list[Candidate]:
    """The catalog's variants that an engine reads, or all of them, the largest weights first; only those of
    the quantisation that is named.

    Raises InventoryError where there is none."""
    found = [c for v in entry.variants for c in _read_by(entry, v, engine)]
    if not found:
        raise InventoryError(
            f"The catalog has no variant of {entry.name} for {engine}",
            hint=f"It has {', '.join(v.source for v in entry.variants)}",
        )
    if quant is not None:
        named = _named(quant, [v.weights for v in entry.variants])
        sources = {v.source for v in entry.variants if v.weights in named}
        if not (chosen := [c for c in found if c.source in sources]):
            weights = ", ".join(dict.fromkeys(v.weights for v in entry.variants))
            raise InventoryError(
                f"The catalog has no {quant} of {entry.name}" + (f" for {engine}" if engine else ""),
                hint=f"It has {weights}",
            )
        found = chosen
    # Towers and layers that predict make nothing of the language model any better.
    return sorted(found, key=lambda c: -c.shape.language_bytes)


def _named(quant: str, known: Sequence[str]) -> set[str]:
    """Those that are called so: in just these letters, else in whatever case (`bf16` is safetensors, `BF16`
    a GGUF)."""
    return {quant} & set(known) or {k for k in known if k.lower() == quant.lower()}


def _read_by(entry: catalog.Entry, variant: catalog.Variant, engine: str | None) -> list[Candidate]:
    return [_catalogued(entry, variant, engine)] if engine in (None, *readers(variant.format)) else []


def _config_alone(path: Path) -> Mapping[str, Any] | None:
    """The config.json that a path is, or that is all that a folder has of a model.

    Raises InventoryError for one that is no JSON."""
    if path.is_dir():
        weights = [
            p for ending in ("*.safetensors", "*.gguf", "*.safetensors.index.json") for p in path.glob(ending)
        ]
        if weights or not (path / "config.json").is_file():
            return None
        path = path / "config.json"
    if path.suffix != ".json":
        return None
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it has {path.stat().st_size} bytes, and no config.json has that many")
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as e:
        raise InventoryError(
            f"`{path}` is not a config.json that can be read",
            cause=str(e)[:200],
            hint="Fetch it again: https://huggingface.co/ORG/REPO/raw/main/config.json",
        ) from e
    if not isinstance(document, Mapping):
        raise InventoryError(
            f"`{path}` is not a config.json that can be read", cause="It holds no mapping of keys"
        )
    return document


def _of_config(
    source: str, config: Mapping[str, Any], engine: str | None, quant: str | None
) -> tuple[list[Candidate], list[Candidate]]:
    """A model of which nobody has more than its config.json, in the quantisations that people make."""
    found = [
        Candidate(source=source, engine=name, shape=shape, catalogued=True, quant=weights)
        for weights, shape in from_config.shapes(config).items()
        for name in readers(shape.format)[:1]
        if engine in (None, name)
    ]
    if not found:
        raise InventoryError(
            f"`{source}`: homelab cannot say what its files for {engine} would take",
            hint="Leave out --engine, or name a repository or a file that has the weights",
        )
    found.sort(key=lambda c: -c.shape.weights_bytes)
    if quant is None:
        return found, found
    named = _named(quant, [c.quant for c in found])
    chosen = [c for c in found if c.quant in named]
    if not chosen:
        raise InventoryError(
            f"--quant {quant} cannot be reckoned with for `{source}`",
            hint=f"There are: {', '.join(c.quant for c in found)}",
        )
    return chosen, found


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
        # A chat model's config does not say that it was trained to embed.
        shape=replace(_shape(entry.name, variant), kind=entry.kind),
        catalogued=True,
    )


@cache
def _shape(name: str, variant: catalog.Variant) -> ModelShape:
    return from_header(load_catalog().entries[name].document(variant))


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
    from homelab.placement.devices import slots_of

    household = pipeline.read_inventory(inventory)
    nodes = household.inventory.nodes
    if node is not None:
        pipeline.known_node(household, node)
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
                    device=pipeline.load_cards().known(slot.device),
                    free_bytes=slot.free_bytes,
                    ram_bytes=ram,
                    label=f"{name} {slot.label}{seen}",
                )
            )
    return out
