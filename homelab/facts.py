"""What the agent saw on a node, as frozen values. Parsed once at the edge; unknown keys are ignored, so
that keys may be added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from homelab.errors import InventoryError, NodeError

SCHEMA_VERSION = 1

MemoryKind = Literal["dedicated", "unified"]
State = Literal["running", "starting", "unhealthy", "stopped", "missing"]


class Loose(BaseModel):
    # Validators are built when first needed: `discover` does that while the nodes answer.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class Problem(Loose):
    """Something on the node that does not work, in the words of the tool that said so."""

    source: str
    message: str


class Process(Loose):
    """A process that holds GPU memory; `service` names ours."""

    pid: int
    name: str
    user: str | None = None
    memory_bytes: int | None = None
    service: str | None = None


class MigDevice(Loose):
    """One MIG slice; it is planned like a GPU of its own."""

    uuid: str
    name: str
    memory_total_bytes: int
    memory_free_bytes: int


class GPU(Loose):
    """`memory_total_bytes` is what CUDA sees: NVML's v2 total less what the driver reserves. Null means: not
    readable. `container_obstacle` is why Docker cannot give it to a container."""

    vendor: str
    index: int
    uuid: str
    pci_id: str | None = None
    name: str
    memory_kind: MemoryKind = "dedicated"
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    driver: str | None = None
    cuda: str | None = None
    compute_capability: str | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: int | None = None
    utilization_percent: int | None = None
    display: bool = False
    container_obstacle: str | None = None
    mig: bool = False
    mig_devices: tuple[MigDevice, ...] = ()
    processes: tuple[Process, ...] = ()


class Docker(Loose):
    """`reachable` is whether this user may talk to the engine; `error` says why not, in Docker's own
    words."""

    version: str | None = None
    api_version: str | None = None
    compose_version: str | None = None
    reachable: bool = False
    socket: str | None = None
    runtimes: tuple[str, ...] = ()
    data_root: str | None = None
    error: str | None = None


class Disk(Loose):
    """A file system that matters: where models, Docker's data or our own files live."""

    purpose: str
    path: str
    total_bytes: int
    free_bytes: int


class Interface(Loose):
    name: str
    mac: str | None = None
    addresses: tuple[str, ...] = ()
    default_route: bool = False


class CPU(Loose):
    model: str | None = None
    cores: int = 1
    threads: int = 1


class ListeningPort(Loose):
    port: int
    address: str
    process: str | None = None


class DeployedService(Loose):
    """Something running (or stopped) on the node that carries our cluster's labels."""

    cluster: str
    name: str
    role: str = ""
    serves: tuple[str, ...] = ()
    spec: str
    runtime: Literal["docker", "native"]
    state: State
    detail: str | None = None
    labels: Mapping[str, str] = Field(default_factory=dict)
    directory: str | None = None
    container: str | None = None
    project: str | None = None
    pid: int | None = None
    listens: bool | None = None
    socket: str | None = None
    python: str = "python3"
    restarts: int = 0
    exit_code: int | None = None
    gpu_memory_bytes: int | None = None
    memory_bytes: int | None = None


class Leftover(Loose):
    """What an earlier deploy left: `weights` that were copied there, `keys` of a gateway, `native`
    environments and tools. No service on the node names it."""

    kind: Literal["weights", "keys", "native"]
    paths: tuple[str, ...]
    bytes: int = 0


class Weights(Loose):
    """A model source as seen on a node: the header of the files, or how much of a hub repository lies in
    its cache."""

    source: str
    path: str | None = None
    present: bool = False
    bytes: int = 0
    revision: str | None = None
    header: Mapping[str, Any] | None = None
    error: str | None = None


class Facts(Loose):
    """One node's document. `secrets_id` tells the keys of the cluster that lie there from others without
    revealing them; null where there are none."""

    schema_version: int
    hostname: str
    machine_id: str | None = None
    os: str
    system: str = "linux"
    kernel: str | None = None
    arch: str
    wsl: bool = False
    cpu: CPU = CPU()
    memory_total_bytes: int
    memory_available_bytes: int
    home: str = ""
    user: str = ""
    python: str = ""
    python_path: str = "python3"
    hub_cache: str = ""
    server_address: str | None = None
    interfaces: tuple[Interface, ...] = ()
    resolved: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    disks: tuple[Disk, ...] = ()
    gpus: tuple[GPU, ...] = ()
    docker: Docker | None = None
    programs: Mapping[str, str | None] = Field(default_factory=dict)
    services: tuple[DeployedService, ...] = ()
    unlisted: Mapping[str, tuple[str, ...]] = Field(
        default_factory=dict
    )  # by runtime: why services may be missing
    ports: tuple[ListeningPort, ...] = ()
    weights: tuple[Weights, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    secrets_id: str | None = None
    problems: tuple[Problem, ...] = ()


class Measurement(Loose):
    """One placement, healthy and asked once. `reported` are terms in the engine's own words, `used_bytes`
    what NVML (or the kernel, for a model in RAM) counts for its process; `planned_bytes` is the sum of
    `predicted` on one device."""

    device: str
    engine: str
    version: str
    source: str
    model: str
    node: str
    context: int
    concurrency: int
    flags: str = ""
    predicted: Mapping[str, int]
    grades: Mapping[str, str]
    reported: Mapping[str, int]
    planned_bytes: int
    used_bytes: int | None = None


class Failure(Loose):
    """Why a node gave no facts."""

    message: str
    cause: str = ""
    hint: str = ""


class NodeReport(Loose):
    """A node that answered has `facts`; one that did not has `error`."""

    reachable: bool
    error: Failure | None = None
    facts: Facts | None = None


class Survey(Loose):
    """What all nodes said, and the headers of hub models: everything that planning needs, so that it can be
    replayed offline."""

    schema_version: int = SCHEMA_VERSION
    nodes: Mapping[str, NodeReport] = Field(default_factory=dict)
    models: Mapping[str, Weights] = Field(default_factory=dict)
    measured: tuple[Measurement, ...] = ()
    # What an unreachable node said when it was last there.
    remembered: Mapping[str, Facts] = Field(default_factory=dict)
    # The same of nodes that are not in the inventory any more, as far as services of the cluster were there.
    gone: Mapping[str, Facts] = Field(default_factory=dict)


def parse_facts(document: bytes | str) -> Facts:
    """The agent's one JSON document as values.

    Raises NodeError when the text is not that document."""
    try:
        return Facts.model_validate_json(document)
    except ValidationError as e:
        text = document.decode(errors="replace") if isinstance(document, bytes) else document
        raise NodeError(
            "The agent's answer cannot be read", cause=f"{e.errors()[0]['msg']}: {text[:200]!r}", kind="agent"
        ) from e


def load_survey(text: str, path: str) -> Survey:
    """A survey saved by `homelab discover --save`.

    Raises InventoryError when the file is something else or newer than this homelab."""
    try:
        document = json.loads(text)
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise InventoryError(
                f"`{path}` has schema_version {version!r}, this homelab reads {SCHEMA_VERSION}",
                hint="Save it again: homelab discover --save facts.json",
            )
        return Survey.model_validate(document)
    except (json.JSONDecodeError, ValidationError) as e:
        raise InventoryError(
            f"`{path}` is not a file that `homelab discover --save` wrote",
            cause=str(e).splitlines()[0],
            hint="homelab discover --save facts.json",
        ) from e
