"""A service before and after a runtime has rendered it: a `Unit` is what should run, a `Service` is what is written onto the node."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import SecretStr


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """`path` is relative to the user's home on the node. A content shows in no repr: it may hold a key."""

    path: str
    content: str = field(repr=False)
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A directory of the node that the service reads or writes."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """A Python environment that a native service needs, made once per lock and kept as a cache. Paths are relative to the home."""

    name: str
    lock: str
    directory: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file of the controller that the service reads on the node; `path` there is relative to the home."""

    local: str
    path: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What should run, whatever runs it. `arguments` follow the image's entry point or the native executable."""

    cluster: str
    node: str
    name: str
    model: str | None
    engine: str
    image: str | None
    home: str
    address: str
    port: int
    health: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: Mapping[str, SecretStr]
    files: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    caches: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    memory_limit: str | None = None
    load_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    uploads: tuple[Upload, ...] = ()

    @property
    def is_loopback(self) -> bool:
        return self.address in ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One rendered service. `spec` identifies it: the hash of all that is written, keys by their id."""

    unit: Unit
    runtime: str
    spec: str
    directory: str
    project: str
    files: tuple[File, ...]
    provision: Provision | None = None

    @property
    def node(self) -> str:
        return self.unit.node

    @property
    def name(self) -> str:
        return self.unit.name

    @property
    def model(self) -> str | None:
        return self.unit.model

    @property
    def labels(self) -> Mapping[str, str]:
        return self.unit.labels

    @property
    def url(self) -> str:
        return f"http://{host_in_url(self.unit.address)}:{self.unit.port}"


def host_in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def spec_of(definition: object) -> str:
    """The identity of a rendered definition."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:12]


def key_id(key: SecretStr) -> str:
    """Tells one secret from another without revealing it: part of a service's identity, so that a new key means a new service."""
    return hashlib.sha256(b"homelab key id\0" + key.get_secret_value().encode()).hexdigest()[:12]


def cluster_directory(cluster: str) -> str:
    """Where all services of a cluster lie on a node, relative to the home."""
    return f".local/share/homelab/{cluster}"


def identified(unit: Unit, definition: Any) -> tuple[Unit, str, str]:
    """The unit with its identity among its labels, its spec, and the directory of this revision."""
    spec = spec_of([definition, dict(unit.labels), {k: key_id(v) for k, v in sorted(unit.secrets.items())}])
    labels = {
        "homelab.cluster": unit.cluster,
        "homelab.service": unit.name,
        "homelab.spec": spec,
        "homelab.address": unit.address,
        "homelab.port": str(unit.port),
        "homelab.health": unit.health,
        "homelab.gpus": ",".join(unit.gpus),
        **({"homelab.model": unit.model} if unit.model else {}),
        **unit.labels,
    }
    return (
        replace(unit, labels=dict(sorted(labels.items()))),
        spec,
        f"{cluster_directory(unit.cluster)}/{unit.name}/{spec}",
    )


def numbers_of(labels: Mapping[str, str]) -> dict[str, Any]:
    """What a service's labels tell of its placement; nothing where they are missing or another program wrote them."""
    try:
        found = json.loads(labels.get("homelab.placement", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
