"""Does a model fit, what does each part of it take, which flags say so to the engine, and what would fit
instead. Pure: shapes and devices in, numbers out."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from homelab.engines import Device, Footprint, Request, Unsupported, engines, flags
from homelab.errors import InventoryError
from homelab.facts import SCHEMA_VERSION
from homelab.models.shape import ModelShape
from homelab.speed import Speed, predict
from homelab.speed import document as speed_document

Verdict = Literal["fits", "does-not-fit", "no-device"]
GiB = 2**30
STEP = 1024  # contexts are offered in thousands
MOST_TOKENS = 100_000_000  # as in the inventory
ANY = Device(vendor="nvidia", name="a GPU", total_bytes=1 << 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a model: its source, the engine that reads it, what it is; `catalogued` when no header
    was read, and `why` not. `quant`: the weights that are reckoned with, where the source is a config.json
    that says nothing of them."""

    source: str
    engine: str
    shape: ModelShape
    catalogued: bool = False
    why: str = ""
    quant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A device, and what of it may be used. `ram_bytes`: free RAM beside it, where that is known."""

    device: Device
    free_bytes: int
    ram_bytes: int | None = None
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The nearest thing that fits, in one direction: what would be asked for instead, and what it takes.
    `typed` is what to add to the question, in place of what it changes; `written` the keys of the inventory
    that say the same of a model there."""

    what: str
    candidate: Candidate
    request: Request
    footprint: Footprint
    speed: Speed | None = None
    typed: tuple[str, ...] = ()
    written: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return self.footprint.device_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The answer. `reason` says why it does not fit where no arithmetic does."""

    candidate: Candidate
    request: Request
    verdict: Verdict
    footprint: Footprint
    place: Place | None
    flags: tuple[str, ...]
    speed: Speed | None = None
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""


def fit(
    candidate: Candidate,
    request: Request,
    place: Place | None,
    others: Sequence[Candidate] = (),
    *,
    instead: bool = True,
) -> Fit:
    """Whether the model fits on the device, and otherwise what does (`instead`): shorter, smaller, fewer,
    another variant, a part in RAM."""
    device = place.device if place else ANY
    try:
        footprint = take(candidate, request, device)
    except Unsupported as e:
        empty = Footprint(terms=(), kv_cache_bytes=0, kv_cache_tokens=0)
        nearest = tuple(_alternatives(candidate, request, place, others)) if place and instead else ()
        return Fit(
            candidate=candidate,
            request=request,
            verdict="does-not-fit",
            footprint=empty,
            place=place,
            flags=(),
            reason=str(e),
            alternatives=nearest,
        )
    verdict: Verdict = (
        "no-device" if place is None else "fits" if holds(candidate, footprint, place) else "does-not-fit"
    )
    return Fit(
        candidate=candidate,
        request=request,
        verdict=verdict,
        footprint=footprint,
        place=place,
        flags=tuple(said(candidate, request, footprint, place)),
        speed=speed_of(candidate, request, footprint, place) if verdict == "fits" else None,
        alternatives=tuple(_alternatives(candidate, request, place, others))
        if place and instead and verdict == "does-not-fit"
        else (),
        notes=tuple(_notes(candidate, request, device)),
    )


def take(candidate: Candidate, request: Request, device: Device) -> Footprint:
    """The footprint of a candidate. Without a header nothing that follows from its dimensions is sure: what
    the engine's own arithmetic makes of them is graded `empirical`.

    Raises Unsupported when its engine would refuse it whatever the memory."""
    footprint = engines()[candidate.engine].footprint(candidate.shape, request, device)
    if not candidate.catalogued:
        return footprint
    return replace(
        footprint,
        terms=tuple(
            replace(t, grade="empirical") if t.grade in ("exact", "bounded") else t for t in footprint.terms
        ),
    )


def speed_of(
    candidate: Candidate, request: Request, footprint: Footprint, place: Place | None
) -> Speed | None:
    """How fast it will be there; None where that is not known."""
    if place is None:
        return None
    return predict(candidate.shape, request, footprint, place.device, engine=candidate.engine)


def utilization(footprint: Footprint, device: Device) -> float:
    """What `--gpu-memory-utilization` would be: a share of the total, rounded up to a thousandth."""
    return math.ceil(footprint.budget_bytes / max(1, device.total_bytes) * 1000) / 1000


def several(device: Device, name: str) -> str:
    """`2 × RTX 3090`, or the name alone."""
    return f"{device.count} × {name}" if device.count > 1 else name


def holds(candidate: Candidate, footprint: Footprint, place: Place) -> bool:
    if engines()[candidate.engine].BUDGETED and utilization(footprint, place.device) > 1:
        return False
    return footprint.device_bytes <= place.free_bytes and (
        place.ram_bytes is None or footprint.host_bytes <= place.ram_bytes
    )


def said(candidate: Candidate, request: Request, footprint: Footprint, place: Place | None) -> list[str]:
    """The engine's flags for this, the user's own last."""
    ours = dict(footprint.flags)
    if place is not None and engines()[candidate.engine].BUDGETED:
        ours["gpu-memory-utilization"] = f"{utilization(footprint, place.device):.3f}"
    return flags({k: v for k, v in ours.items() if k not in request.args}) + flags(request.args)


def largest_context(candidate: Candidate, request: Request, place: Place) -> int:
    """The longest context, in whole thousands, that fits: 0 when none does. What a model takes never falls
    as its context grows."""
    limit = min(candidate.shape.max_context or request.context, 1 << 21)

    def fits(tokens: int) -> bool:
        try:
            return holds(candidate, take(candidate, replace(request, context=tokens), place.device), place)
        except Unsupported:
            return False

    return STEP * _last(lambda step: fits(step * STEP), limit // STEP)


def parse_tokens(text: str) -> int:
    """`32k` is 32 768.

    Raises InventoryError."""
    match = re.fullmatch(r"(\d{1,9})\s*([kKmM])?", text.strip())
    if match is None or int(match[1]) == 0:
        said = text if len(text) <= 40 else f"{text[:40]}…"
        raise InventoryError(f"`{said}` is no number of tokens", hint="Write 8192 or 32k")
    tokens = int(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[(match[2] or "").lower()]
    if tokens > MOST_TOKENS:
        raise InventoryError(f"`{text}`: no model reads that many tokens", hint="Write 8192 or 32k")
    return tokens


def as_typed(tokens: int) -> str:
    """The number of tokens as `--context` and the inventory read it: 32768 is `32k`."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def document(answer: Fit) -> dict[str, Any]:
    """What `homelab fit --json` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": answer.candidate.source,
        "quant": answer.candidate.quant or None,
        "engine": answer.candidate.engine,
        "verdict": answer.verdict,
        "context": answer.request.context,
        "concurrency": answer.request.concurrency,
        "terms": [
            {"name": t.name, "bytes": t.bytes, "grade": t.grade, "where": t.where}
            for t in answer.footprint.terms
        ],
        "total_bytes": answer.footprint.device_bytes,
        "host_bytes": answer.footprint.host_bytes,
        "device": answer.place.device.name if answer.place else None,
        "device_count": answer.place.device.count if answer.place else None,
        "device_bytes": answer.place.device.total_bytes if answer.place else None,
        "free_bytes": answer.place.free_bytes if answer.place else None,
        "kv_cache_tokens": answer.footprint.kv_cache_tokens,
        "speed": speed_document(answer.speed),
        "flags": list(answer.flags),
        "alternatives": [
            {
                "what": a.what,
                "typed": list(a.typed),
                "inventory": dict(a.written),
                "source": a.candidate.source,
                "engine": a.candidate.engine,
                "context": a.request.context,
                "concurrency": a.request.concurrency,
                "args": dict(a.request.args),
                "total_bytes": a.bytes,
                "host_bytes": a.footprint.host_bytes,
                "speed": speed_document(a.speed),
            }
            for a in answer.alternatives
        ],
        "notes": list(answer.notes),
        "reason": answer.reason,
    }


def _alternatives(
    candidate: Candidate, request: Request, place: Place | None, others: Sequence[Candidate]
) -> Iterator[Alternative]:
    assert place is not None
    seen: set[tuple[str, int, int, tuple[tuple[str, str], ...]]] = set()

    def offer(what: str, other: Candidate, changed: Request) -> Iterator[Alternative]:
        try:
            footprint = take(other, changed, place.device)
        except Unsupported:
            return
        key = (
            f"{other.source} {other.quant}",
            changed.context,
            changed.concurrency,
            tuple(sorted((k, str(v)) for k, v in changed.args.items())),
        )
        if holds(other, footprint, place) and key not in seen:
            seen.add(key)
            yield Alternative(
                what=what,
                candidate=other,
                request=changed,
                footprint=footprint,
                speed=speed_of(other, changed, footprint, place),
                typed=tuple(_typed(candidate, request, other, changed)),
                written=_written(candidate, request, other, changed),
            )

    def fits(changed: Request) -> bool:
        try:
            return holds(candidate, take(candidate, changed, place.device), place)
        except Unsupported:
            return False

    shorter = min(request.context - 1, largest_context(candidate, request, place))
    if shorter >= STEP:
        yield from offer(f"a context of {as_typed(shorter)}", candidate, replace(request, context=shorter))
    engine = engines()[candidate.engine]
    small = replace(request, args={**request.args, **engine.smaller_cache(place.device)})
    if small.args != request.args:
        yield from offer("an 8-bit KV cache", candidate, small)
        if STEP <= (less := largest_context(candidate, small, place)) < request.context and less > shorter:
            yield from offer(
                f"an 8-bit KV cache and a context of {as_typed(less)}",
                candidate,
                replace(small, context=less),
            )
    for fewer in range(request.concurrency - 1, 0, -1):
        if offered := list(offer(f"{fewer} at once", candidate, replace(request, concurrency=fewer))):
            yield from offered
            break
    for other in sorted(others, key=lambda o: -o.shape.weights_bytes):
        if (other.source, other.quant) != (candidate.source, candidate.quant) and (
            offered := list(
                offer(
                    f"the variant {other.quant or other.source}",
                    other,
                    _translated(request, candidate, other),
                )
            )
        ):
            yield from offered
            break
    for way in engine.offloads(candidate.shape, place.device):
        tries = [replace(request, args={**request.args, way.argument: number}) for number, _ in way.steps]
        first = bisect.bisect_left(tries, True, key=fits)
        if first < len(tries):
            yield from offer(way.steps[first][1], candidate, tries[first])


def _typed(candidate: Candidate, request: Request, other: Candidate, changed: Request) -> Iterator[str]:
    if other.source != candidate.source:
        yield other.source
    if other.quant != candidate.quant:
        yield from ("--quant", other.quant)
    if changed.context != request.context:
        yield from ("--context", as_typed(changed.context))
    if changed.concurrency != request.concurrency:
        yield from ("--concurrency", str(changed.concurrency))
    for name, value in changed.args.items():
        if request.args.get(name) != value:
            yield from (f"--{name}", str(value))


def _written(candidate: Candidate, request: Request, other: Candidate, changed: Request) -> dict[str, Any]:
    """A config.json is no source of an inventory, so its quantisations are not named."""
    out: dict[str, Any] = {}
    if other.source != candidate.source:
        out |= {"engine": other.engine, "source": other.source}
    if changed.context != request.context:
        out["context"] = as_typed(changed.context)
    if changed.concurrency != request.concurrency:
        out["concurrency"] = changed.concurrency
    if args := {name: v for name, v in changed.args.items() if request.args.get(name) != v}:
        out["args"] = args
    return out


def _last(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, 0 when none does; what does not fit does not fit with
    more either."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _translated(request: Request, candidate: Candidate, other: Candidate) -> Request:
    """Another engine does not read this one's arguments, and another file may have no layers that draft."""
    drafts = request.speculative if other.shape.mtp_layers else 0
    if other.engine == candidate.engine:
        return replace(request, speculative=drafts)
    return replace(request, args={}, recipe=None, sampling={}, speculative=drafts)


def _notes(candidate: Candidate, request: Request, device: Device) -> Iterator[str]:
    yield from engines()[candidate.engine].notes(candidate.shape, request, device)
    if candidate.catalogued and not candidate.quant:
        why = f" ({candidate.why})" if candidate.why else ""
        yield f"from the catalog, not from the file's own header: weights may differ by some percent{why}"
