"""The decision as values: what goes where, what found no place, and what is left. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from homelab.engines import Device, Footprint, Launch, Request
from homelab.hosting import Hosting, Runtime
from homelab.models.shape import ModelShape
from homelab.placement.devices import Slot
from homelab.program import Program, image_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One instance of a model on one node: `reason` says why there, `summary` the same in a few words,
    `elsewhere` why not in the places that were better or as good. `quantization` is empty where it is not
    known. `prompt_seconds` until the last of its `concurrency` prompts is read, each as long as its context,
    and `tokens_per_s` of one answer: None where nobody knows."""

    model: str
    service: str
    variant: int
    node: str
    engine: str
    runtime: Runtime
    program: Program
    hosting: Hosting
    source: str
    gpus: tuple[str, ...]
    device: Device
    address: str
    port: int
    request: Request
    footprint: Footprint
    gpu_memory_utilization: float | None
    reason: str
    summary: str = ""
    quantization: str = ""
    elsewhere: tuple[str, ...] = ()
    kept: bool = False
    prompt_seconds: float | None = None
    tokens_per_s: float | None = None

    @property
    def version(self) -> str:
        """What measured figures hold for."""
        return image_of(self.program) or "native"

    @property
    def bytes(self) -> int:
        """What each of its devices gives up."""
        if self.gpu_memory_utilization is None:
            return self.footprint.device_bytes
        outside = self.footprint.device_bytes - self.footprint.budget_bytes
        return math.ceil(self.gpu_memory_utilization * self.device.total_bytes) + outside

    def launch(self, *, weights: str, host: str) -> Launch:
        return Launch(
            model=self.model,
            weights=weights,
            host=host,
            port=self.port,
            request=self.request,
            footprint=self.footprint,
            device=self.device,
            gpu_memory_utilization=self.gpu_memory_utilization,
        )

    def numbers(self) -> dict[str, Any]:
        """What must be known to keep this placement as it is; travels as a label of the service."""
        return {
            "variant": self.variant,
            "engine": self.engine,
            "runtime": self.runtime,
            "source": self.source,
            "quantization": self.quantization,
            "gpus": list(self.gpus),
            "port": self.port,
            "context": self.request.context,
            **({"speculative": self.request.speculative} if self.request.speculative else {}),
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_bytes": self.footprint.kv_cache_bytes,
            "kv_cache_tokens": self.footprint.kv_cache_tokens,
            "flags": dict(self.footprint.flags),
            "terms": [[t.name, t.bytes, t.grade, t.where] for t in self.footprint.terms],
            "bytes": self.bytes,
            **({"prompt_seconds": self.prompt_seconds} if self.prompt_seconds is not None else {}),
            **({"tokens_per_s": self.tokens_per_s} if self.tokens_per_s is not None else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplaced:
    """A model (or one of its replicas) that found no place. `unreachable` names nodes that could not be
    asked; `suggestion` is what would give it one, as "on laptop GPU 0 with `context: 8192`", where
    something simple would."""

    model: str
    reason: str
    details: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()
    suggestion: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Because:
    """All that there is to say of one decision: why `here`, why not `elsewhere` (as `place: why`), and what
    would `change` it (as `place: what`, or what would make more of it where it is)."""

    here: tuple[str, ...]
    elsewhere: tuple[str, ...]
    change: tuple[str, ...]


class Explains(Protocol):
    """What knows a decision well enough to be asked about it."""

    def because(self, p: Placement) -> Because: ...
    def shape(self, p: Placement) -> ModelShape | None: ...
    def missing(self, model: str) -> Because: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The decision: what goes where, what does not, and what each device has left. `gap` is how far from
    the best it may be, for instance `2 replicas with a place`; None when it is proven to be the best.
    `explains` answers for it: worked out only when somebody asks, for it takes longer than the decision."""

    placements: tuple[Placement, ...]
    unplaced: tuple[Unplaced, ...]
    slots: tuple[Slot, ...]
    gap: str | None = None
    explains: Explains | None = field(default=None, repr=False, compare=False)

    @property
    def proof(self) -> str:
        """How good the decision is, as a sentence."""
        if self.gap is None:
            return "No better placement exists."
        return (
            "The household is too large to look at everything: a better placement is at most "
            f"{self.gap} away."
        )

    def __iter__(self) -> Iterator[Placement]:
        return iter(self.placements)
