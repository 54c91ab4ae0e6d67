"""What an engine is to homelab: one module that says what a model costs on a device, how the engine is started, and how it is asked for
its health. Modules are found by looking into this folder: a new engine is one new file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

# Only for the Protocol's signatures: what reads an inventory need not load what a model is.
if TYPE_CHECKING:
    from homelab.models.shape import ModelShape

Grade = Literal["exact", "bounded", "empirical", "measured"]
Kind = Literal["chat", "embedding", "rerank"]
ArgValue = str | int | float | bool | None | list[str]


class Unsupported(Exception):
    """This engine cannot serve this model on this device, whatever the memory. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One summand of a footprint. `where` is `device` (inside the engine's own budget), `context` (on the device, outside that budget)
    or `host` (RAM)."""

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
    """What a model may be placed on: a GPU (or several alike), or a machine's RAM (`vendor` is `cpu`)."""

    vendor: str
    name: str
    total_bytes: int
    memory_kind: Literal["dedicated", "unified", "ram"] = "dedicated"
    compute_capability: str | None = None
    wsl: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of an engine: `context` tokens for each of `concurrency` requests at once, and the user's own engine arguments."""

    kind: Kind
    context: int
    concurrency: int
    args: Mapping[str, ArgValue] = field(default_factory=dict)


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


@runtime_checkable
class Engine(Protocol):
    """A module under `homelab/engines/` has these names."""

    NAME: str
    FORMATS: frozenset[str]  # model file formats it reads: "safetensors", "gguf"
    KINDS: frozenset[str]
    VENDORS: frozenset[str]  # accelerators it runs on, "cpu" among them where it does
    PORT: int  # first port tried on a node
    HEALTH: str  # path that answers 200 once the model is loaded
    CONTEXT_PATH: str  # path that tells the context really served
    KEY_VARIABLE: str  # environment variable that holds the API key it demands
    BUDGETED: bool  # has a `--gpu-memory-utilization` of its own
    MODEL_CACHES: tuple[str, ...]  # directories in its image to keep between restarts, beside the hub cache

    def footprint(self, shape: ModelShape, request: Request, device: Device) -> Footprint: ...
    def command(self, launch: Launch) -> list[str]: ...
    def environment(self, launch: Launch) -> dict[str, str]: ...
    def served_context(self, document: Any) -> int | None: ...
    def reported(self, log: str) -> dict[str, int]: ...


class _Engines(Mapping[str, Engine]):
    """Engine modules by name, which is their file's; each is imported when it is first asked for."""

    def __init__(self) -> None:
        self._names = tuple(info.name for info in pkgutil.iter_modules(__path__))
        self._modules: dict[str, Engine] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Engine:
        if name in self._modules:
            return self._modules[name]
        if name not in self:
            raise KeyError(name)
        module = importlib.import_module(f"{__name__}.{name}")
        if not isinstance(module, Engine) or name != module.NAME:
            raise TypeError(
                f"homelab/engines/{name}.py is not an engine: see the Protocol in homelab/engines/__init__.py"
            )
        return self._modules.setdefault(name, module)


@cache
def engines() -> Mapping[str, Engine]:
    """Engine modules by name."""
    return _Engines()


def flags(args: Mapping[str, ArgValue]) -> list[str]:
    """Engine arguments as the user wrote them: `true` and null are bare flags, `false` leaves a flag out, a list repeats it."""
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
