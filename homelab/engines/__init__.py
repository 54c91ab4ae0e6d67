"""What an engine is to homelab: one module that says what a model costs on a device, how the engine is
started, and how it is asked for its health. Modules are found by looking into this folder: a new engine is
one new file."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from homelab.plugins import Plugins
from homelab.program import Offer

# Only for the Protocol's signatures: what reads an inventory need not load what a model is.
if TYPE_CHECKING:
    from homelab.models.recipes import Recipe
    from homelab.models.shape import ModelShape

Grade = Literal["exact", "bounded", "empirical", "measured"]
Kind = Literal["chat", "embedding", "rerank"]
ArgValue = str | int | float | bool | None | list[str]


class Unsupported(Exception):
    """This engine cannot serve this model on this device, whatever the memory. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One summand of a footprint. `where` is `device` (inside the engine's own budget), `context` (on the
    device, outside that budget) or `host` (RAM)."""

    name: str
    bytes: int
    grade: Grade
    where: Literal["device", "context", "host"] = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a model takes on EACH device it is placed on (per rank under tensor parallelism), term by term."""

    terms: tuple[Term, ...]
    kv_cache_bytes: int
    kv_cache_tokens: int
    flags: Mapping[str, ArgValue] = field(default_factory=dict)

    @property
    def budget_bytes(self) -> int:
        """Inside the engine's own budget, per device."""
        return sum(t.bytes for t in self.terms if t.where == "device")

    @property
    def device_bytes(self) -> int:
        """All that a device must have free: the budget, and what lies outside it."""
        return sum(t.bytes for t in self.terms if t.where != "host")

    @property
    def host_bytes(self) -> int:
        return sum(t.bytes for t in self.terms if t.where == "host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a model may be placed on: a GPU (or several alike), or a machine's RAM (`vendor` is `cpu`).
    `gb_per_s` of its memory and `tflops` in FP16, each of one, where they are known; `tier` as in
    cards.yml."""

    vendor: str
    name: str
    total_bytes: int
    memory_kind: Literal["dedicated", "unified", "ram"] = "dedicated"
    compute_capability: str | None = None
    wsl: bool = False
    count: int = 1
    gb_per_s: float | None = None
    tflops: float | None = None
    tier: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of an engine: `context` tokens for each of `concurrency` requests at once, and the
    user's own engine arguments, canonical. `outputs`: one of the engine's `OUTPUTS`; empty: its first.
    `speculative`: tokens that the model's own prediction layers draft at a time, 0 for none. `drafter`: the
    other model that `args` name for it, None where none is named or its header is not known. `recipe`: how
    others run this source with vLLM, None where nobody said. `sampling`: where a client does
    not say."""

    kind: Kind
    context: int
    concurrency: int
    args: Mapping[str, ArgValue] = field(default_factory=dict)
    outputs: str = ""
    speculative: int = 0
    drafter: ModelShape | None = None
    recipe: Recipe | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """All that the command line of one engine depends on."""

    model: str
    weights: str
    host: str
    port: int
    request: Request
    footprint: Footprint
    device: Device
    gpu_memory_utilization: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """A way to keep a part of a model in RAM: an argument with the numbers that it may have, from nearly
    all of the model on the device to the least, each with what it means in words."""

    argument: str
    steps: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What an engine reaches of a kind of device: `decode` of its bandwidth, `prefill` of its FP16 compute
    (None where that says nothing), `experts` of the latter for a mixture, `layer_us` that each layer takes
    for a token whatever its size, `parallel_us` more of it for every further GPU that shares the layer,
    and `drafts` of what tokens drafted ahead should gain.
    `spread` 0.3: most runs lie within ±30 %. `sources` are where the figures are from that it was fitted
    to."""

    decode: float
    layer_us: float
    parallel_us: float = 0.0
    drafts: float = 1.0
    spread: float
    prefill: float | None
    experts: float
    prefill_spread: float
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What an engine reads to generate a token, beside what the model's shape says: bytes of an element of a
    key and a value in its cache; weights that stay in RAM beside a GPU (`ram_dense_bytes` read for every
    token, `ram_expert_bytes` of experts); `parallel` devices that read at once; `drafts` tokens guessed ahead
    for `drafting_bytes` altogether; `batch` tokens of a prompt at a time."""

    key_bytes: float = 2.0
    value_bytes: float = 2.0
    ram_dense_bytes: int = 0
    ram_expert_bytes: int = 0
    parallel: int = 1
    drafts: int = 0
    drafting_bytes: int = 0
    batch: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How an engine that is healthy is tried: `at_once` requests to `path`, each `body` with a `prompt` of
    `tokens` token ids."""

    path: str
    body: Mapping[str, Any]
    tokens: int
    at_once: int


TRIAL_ROOM_TOKENS = 64  # for the reply, and what an engine keeps to itself


def completion_trial(model: str, request: Request, **more: Any) -> Trial | None:
    """One token after a prompt near the planned context, by the completions that engines have of OpenAI's;
    None for a model that completes nothing."""
    if request.kind != "chat":
        return None
    tokens = max(request.context - TRIAL_ROOM_TOKENS, request.context // 2)
    body = {"model": model, "max_tokens": 1, **more}
    return Trial(path="/v1/completions", body=body, tokens=tokens, at_once=request.concurrency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What an engine says of its work: the tokens that it has generated since it started, the requests that
    it computes, and those that wait for a turn. None is what it does not say."""

    tokens: float | None = None
    running: int | None = None
    waiting: int | None = None


@runtime_checkable
class Engine(Protocol):
    """A module under `homelab/engines/` has these names."""

    NAME: str
    FORMATS: frozenset[str]  # model file formats it reads: "safetensors", "gguf"
    RANK: int  # where nobody names an engine, of those that read a file the lowest takes it
    KINDS: frozenset[str]
    VENDORS: frozenset[str]  # accelerators it runs on, "cpu" among them where it does
    OFFER: Offer  # its images, its Python environment, its executable
    PORT: int  # first port tried on a node
    HEALTH: str  # path that answers 200 once the model is loaded
    CONTEXT_PATH: str  # path that tells the context really served
    METRICS_PATH: str  # path with metrics for Prometheus
    KEY_VARIABLE: str  # environment variable that holds the API key it demands
    BUDGETED: bool  # has a `--gpu-memory-utilization` of its own
    IPC_HOST: bool  # its processes share memory through /dev/shm
    MESSAGES: bool  # gets /v1/messages as they came, and no chat completions that LiteLLM makes of them
    CACHES: tuple[str, ...]  # directories in its image to keep between restarts, beside the hub cache
    OUTPUTS: tuple[str, ...]  # ways to count logits, if there are several; a plan counts the first
    REFUSED: Mapping[str, str]  # arguments that homelab itself decides, with what to write instead
    FIT_ARGS: Mapping[str, frozenset[str] | None]  # options of `homelab fit` for it, with their values if few
    EFFICIENCIES: Mapping[str, Efficiency]  # by `speed.backend`; what is not there has no predicted speed

    def canonical(self, args: Mapping[str, ArgValue]) -> dict[str, ArgValue]:
        """The arguments under the engine's own long names, without dashes before them, each once.

        Raises ValueError for what is written twice or contradicts itself, and for what is `REFUSED`."""
        ...

    def device_count(self, args: Mapping[str, ArgValue]) -> int | None:
        """How many devices canonical arguments ask for; None where they leave it open.

        Raises Unsupported for what is no number."""
        ...

    def drafter(self, args: Mapping[str, ArgValue]) -> str | None:
        """The other model that canonical arguments name to draft for this one, as they name it."""
        ...

    def footprint(self, shape: ModelShape, request: Request, device: Device) -> Footprint: ...

    def reading(self, shape: ModelShape, request: Request, footprint: Footprint, device: Device) -> Reading:
        """What a footprint of its own reads for a token."""
        ...

    def command(self, launch: Launch) -> list[str]: ...
    def environment(self, launch: Launch) -> dict[str, str]: ...
    def served_context(self, document: Any) -> int | None: ...
    def reported(self, log: str) -> dict[str, int]: ...

    def trial(self, model: str, request: Request) -> Trial | None:
        """How the engine is tried when it is healthy; None where it cannot be."""
        ...

    def load(self, metrics: str) -> Load:
        """What the text behind `METRICS_PATH` says, whatever text it is."""
        ...

    def smaller_cache(self, device: Device) -> dict[str, ArgValue]:
        """Arguments that halve the KV cache on this device."""
        ...

    def offloads(self, shape: ModelShape, device: Device) -> tuple[Offload, ...]:
        """Ways to keep a part of the model in RAM beside this device, the better ones first."""
        ...

    def notes(self, shape: ModelShape, request: Request, device: Device) -> Iterator[str]:
        """What somebody who reads a footprint should know."""
        ...


@cache
def engines() -> Mapping[str, Engine]:
    """Engine modules by name."""
    return Plugins(sys.modules[__name__], Engine)  # type: ignore[type-abstract]


def readers(format: str) -> list[str]:
    """The engines that read files of a format, the one first that takes them where nobody names one."""
    able = [engine for engine in engines().values() if format in engine.FORMATS]
    return [engine.NAME for engine in sorted(able, key=lambda e: (e.RANK, e.NAME))]


MOST_METRICS = 4 << 20  # characters; vLLM's are a tenth of it


def counted(metrics: str, *names: str) -> float | None:
    """What metrics for Prometheus say under the first of `names` that is there, all its series together
    (https://prometheus.io/docs/instrumenting/exposition_formats). None where nothing there is a count: an
    engine may say anything."""
    for name in names:
        series = rf"^{re.escape(name)}(?:\{{.*\}})?[ \t]+([0-9.eE+-]{{1,32}})(?:\s|$)"
        counts = []
        for written in re.findall(series, metrics[:MOST_METRICS], re.MULTILINE):
            try:
                counts.append(float(written))
            except ValueError:
                pass
        counts = [c for c in counts if 0 <= c < 2**53]  # beyond, floats count no single ones
        if counts:
            return math.fsum(counts)
    return None


def whole(number: float | None) -> int | None:
    return None if number is None else int(number)


# Of any engine that can speak TLS by itself, or ask for a key of yours.
NO_TLS = "leave it out: the gateway speaks plain HTTP to its engines (docs/security.md)"
OWN_KEY = "leave it out: homelab gives every engine a key of its own, and clients use the gateway's"


def canonical(
    args: Mapping[str, ArgValue],
    synonyms: Mapping[str, str],
    refused: Mapping[str, str],
    counts: Collection[str] = (),
) -> dict[str, ArgValue]:
    """Arguments without the dashes before them, with dashes for underscores, synonyms by the engine's own
    name. A short one that is no synonym keeps its dash.

    Raises ValueError for one that is written twice, under whatever names; for what is `refused`, also where
    its beginning is written, which some parsers take for it; and for `counts` that count nothing."""
    out: dict[str, ArgValue] = {}
    written: dict[str, str] = {}
    for name, value in args.items():
        plain = name.lstrip("-").replace("_", "-")
        short = name.startswith("-") and not name.startswith("--")
        known = synonyms.get(plain, f"-{plain}" if short else plain)
        if known in written:
            raise ValueError(f"`{name}` and `{written[known]}` are the same argument")
        begun = (r for r in sorted(refused) if r.startswith(known) and len(known) > 2)
        if (meant := known if known in refused else next(begun, None)) is not None:
            raise ValueError(f"`{name}` is not yours to set: {refused[meant]}")
        if known in counts and re.fullmatch(r"\s*(-\d+|0+)\s*", str(value)):
            raise ValueError(f"`{name}` is at least 1, not {value}")
        written[known] = name
        out[known] = value
    return out


def flags(args: Mapping[str, ArgValue]) -> list[str]:
    """Canonical arguments as a command line: `true` and null are bare flags, `false` leaves a flag out, a
    list repeats it."""
    out: list[str] = []
    for name, value in args.items():
        flag = name if name.startswith("-") else f"--{name}"
        if value is False:
            continue
        if value is True or value is None:
            out.append(flag)
        elif isinstance(value, list):
            for item in value:
                out += [flag, str(item)]
        else:
            out += [flag, str(value)]
    return out
