"""Predicted against real: what an engine reported and the driver counted for a placement, beside what was
planned. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from homelab.engines import Footprint, Term
from homelab.facts import Measurement

KEPT = 500  # the newest records; a household makes a few in a month


# Terms that stand for what may come later: a late growth, a cache of prompts that fills.
RESERVES = frozenset({"reserve", "prompt_cache", "checkpoints"})
# Terms that are as large at the start as they ever get: only these may become less than was estimated.
FIXED = frozenset({"cuda_graphs"})


def error(m: Measurement) -> float | None:
    """How far the prediction is off, as a share of what is really used; above zero where too much was
    predicted. What a reserve is kept for is not used yet, so it is no part of it."""
    if not m.used_bytes:
        return None
    return sum(size for name, size in m.predicted.items() if name not in RESERVES) / m.used_bytes - 1


def _key(m: Measurement) -> tuple[object, ...]:
    """What a newer measurement of the same thing replaces."""
    return (m.device, m.engine, m.version, m.source, m.context, m.concurrency, m.flags)


def merged(old: Iterable[Measurement], new: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """All measurements, the newest of each thing, in the order in which they were made."""
    newest: dict[tuple[object, ...], Measurement] = {}
    for m in (*old, *new):
        newest.pop(_key(m), None)
        newest[_key(m)] = m
    return tuple(newest.values())[-KEPT:]


def learned(measurements: Sequence[Measurement], device: str, engine: str, version: str) -> dict[str, int]:
    """Empirical terms as they were measured for this device, engine and version: of what cannot grow the
    median over what ran there, of the rest the most that was seen, and no less than was estimated. At rest
    a pool that grows with use is hardly there.

    The context outside an engine's budget is what the driver counts beyond the terms that the engine
    reported. A figure that would make a plan smaller than half of what experience says is not believed."""
    samples: dict[str, list[int]] = {}
    for m in measurements:
        if (m.device, m.engine, m.version) != (device, engine, version):
            continue
        for name, grade in m.grades.items():
            if grade == "empirical" and name in m.reported and name not in RESERVES:
                least = m.predicted[name] // 2 if name in FIXED else m.predicted[name]
                samples.setdefault(name, []).append(max(m.reported[name], least))
        outside = _outside(m)
        if outside is not None:
            samples.setdefault("cuda_context", []).append(max(outside, m.predicted["cuda_context"]))
    return {
        name: int(statistics.median_high(values)) if name in FIXED else max(values)
        for name, values in sorted(samples.items())
    }


def with_measured(footprint: Footprint, known: Mapping[str, int]) -> Footprint:
    """The footprint with its empirical terms replaced by measured ones, those that grow only by larger
    ones."""
    terms = tuple(
        Term(name=t.name, bytes=known[t.name], grade="measured", where=t.where)
        if t.grade == "empirical" and t.name in known and (t.name in FIXED or known[t.name] > t.bytes)
        else t
        for t in footprint.terms
    )
    return Footprint(
        terms=terms,
        kv_cache_bytes=footprint.kv_cache_bytes,
        kv_cache_tokens=footprint.kv_cache_tokens,
        flags=footprint.flags,
    )


def _outside(m: Measurement) -> int | None:
    """Bytes of the process on the device that are none of the buffers it told of."""
    buffers = ("model", "context", "compute")
    if (
        m.used_bytes is None
        or "cuda_context" not in m.predicted
        or not all(name in m.reported for name in buffers)
    ):
        return None
    left = m.used_bytes - sum(m.reported[name] for name in buffers)
    return left if left > 0 else None
