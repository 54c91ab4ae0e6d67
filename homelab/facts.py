"""What the agent saw on a node, as frozen values. Parsed once at the edge, into types that are no wider
than what a node may say: what is wrong with it is that node's problem, and nobody behind the edge has to
doubt a name, an address, a path or a number. Unknown keys are ignored, so that keys may be added."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from homelab.errors import InventoryError, NodeError

SCHEMA_VERSION = 1

MemoryKind = Literal["dedicated", "unified"]
State = Literal["running", "starting", "unhealthy", "stopped", "missing"]

ANSWER_BYTES = 16 << 20
MOST_GPUS = 64
MOST_SERVICES = 1024
MOST = 10_000  # of anything else
MOST_PROBLEMS = 256
LONGEST = 4096
LONGEST_LABEL = 256 << 10  # what a gateway was told of all models is one


def _cut(text: object) -> object:
    return text if not isinstance(text, str) or len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _first(texts: object) -> object:
    return texts[:MOST_PROBLEMS] if isinstance(texts, list | tuple) else texts


def _without_way_up(path: str) -> str:
    if ".." in path.split("/"):
        raise ValueError("a path with `..` in it")
    return path


def _is_address(text: str) -> str:
    # A zone may be any text: `::1%x]@example.org`.
    if not re.fullmatch(r"[0-9A-Fa-f.:]+(%[0-9A-Za-z_.-]{1,32})?", text):
        raise ValueError("not an IP address")
    ipaddress.ip_address(text)
    return text


Said = Annotated[str, BeforeValidator(_cut)]
Short = Annotated[str, StringConstraints(max_length=256)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Port = Annotated[int, Field(ge=1, le=65535)]
Address = Annotated[str, AfterValidator(_is_address)]
# As the inventory has them, and as homelab makes names of services, revisions and projects from them.
ClusterName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]
ServiceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]
Project = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,200}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
# In commands of the node: any folder, but the way there is a way down.
Folder = Annotated[
    str,
    StringConstraints(pattern=r"^[^\x00-\x1f\x7f-][^\x00-\x1f\x7f]*$", max_length=LONGEST),
    AfterValidator(_without_way_up),
]
# Also in mounts, which a colon splits.
AbsolutePath = Annotated[
    str,
    StringConstraints(pattern=r"^/[^:\x00-\x1f\x7f]*$", max_length=LONGEST),
    AfterValidator(_without_way_up),
]
PathIfKnown = Annotated[
    str,
    StringConstraints(pattern=r"^(/[^:\x00-\x1f\x7f]*)?$", max_length=LONGEST),
    AfterValidator(_without_way_up),
]
Python = Annotated[
    str,
    StringConstraints(pattern=r"^(/[^:\x00-\x1f\x7f]*|python3)?$", max_length=LONGEST),
    AfterValidator(_without_way_up),
]


class Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Told(Loose):
    """What a node says: no text of it is longer than what somebody would read."""

    model_config = ConfigDict(str_max_length=LONGEST, allow_inf_nan=False)


class Problem(Told):
    """Something on the node that does not work, in the words of the tool that said so."""

    source: Said
    message: Said


class Process(Told):
    """A process that holds GPU memory; `service` names ours."""

    pid: Count
    name: Short
    user: Short | None = None
    memory_bytes: Bytes | None = None
    service: ServiceName | None = None


class MigDevice(Told):
    """One MIG slice; it is planned like a GPU of its own."""

    uuid: Word
    name: Short
    memory_total_bytes: Bytes
    memory_free_bytes: Bytes


class GPU(Told):
    """`memory_total_bytes` is what CUDA sees: NVML's v2 total less what the driver reserves. Null means: not
    readable. `container_obstacle` is why Docker cannot give it to a container."""

    vendor: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")]
    index: Count
    uuid: Word
    pci_id: Short | None = None
    name: Short
    memory_kind: MemoryKind = "dedicated"
    memory_total_bytes: Bytes | None = None
    memory_free_bytes: Bytes | None = None
    memory_used_bytes: Bytes | None = None
    memory_reserved_bytes: Bytes | None = None
    driver: Short | None = None
    cuda: Short | None = None
    compute_capability: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}(\.[0-9]{1,3})?$")] | None = (
        None
    )
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: int | None = None
    utilization_percent: int | None = None
    display: bool = False
    container_obstacle: Said | None = None
    mig: bool = False
    mig_devices: tuple[MigDevice, ...] = Field(default=(), max_length=MOST_GPUS)
    processes: tuple[Process, ...] = Field(default=(), max_length=MOST)


class Docker(Told):
    """`reachable` is whether this user may talk to the engine; `error` says why not, in Docker's own
    words."""

    version: Short | None = None
    api_version: Short | None = None
    compose_version: Short | None = None
    reachable: bool = False
    socket: AbsolutePath | None = None
    runtimes: tuple[Short, ...] = Field(default=(), max_length=MOST)
    data_root: str | None = None
    error: Said | None = None


class Disk(Told):
    """A file system that matters: where models, Docker's data or our own files live."""

    purpose: str
    path: str
    total_bytes: Bytes
    free_bytes: Bytes


class Interface(Told):
    name: Short
    mac: Short | None = None
    addresses: tuple[Address, ...] = Field(default=(), max_length=MOST)
    default_route: bool = False


class CPU(Told):
    model: Short | None = None
    cores: Count = 1
    threads: Count = 1


class ListeningPort(Told):
    port: Port
    address: Short
    process: Short | None = None


class DeployedService(Told):
    """Something running (or stopped) on the node that carries our cluster's labels."""

    cluster: ClusterName
    name: ServiceName
    role: Annotated[str, StringConstraints(pattern=r"^[a-z]{0,32}$")] = ""
    serves: tuple[ModelName, ...] = Field(default=(), max_length=MOST)
    spec: Revision
    runtime: Literal["docker", "native"]
    state: State
    detail: Said | None = None
    labels: Mapping[Short, Annotated[str, StringConstraints(max_length=LONGEST_LABEL)]] = Field(
        default_factory=dict, max_length=MOST
    )
    directory: Folder | None = None
    container: Word | None = None
    project: Project | None = None
    pid: Count | None = None
    listens: bool | None = None
    socket: AbsolutePath | None = None
    python: Python = "python3"
    restarts: Count = 0
    exit_code: int | None = None
    gpu_memory_bytes: Bytes | None = None
    memory_bytes: Bytes | None = None

    @field_validator("labels")
    @classmethod
    def _lead_into_the_house(cls, labels: Mapping[str, str]) -> Mapping[str, str]:
        """A URL is made of these two. This machine's own name is the address of a node that has no other."""
        address, port = labels.get("homelab.address", ""), labels.get("homelab.port", "")
        if address not in ("", "localhost"):
            _is_address(address)
        if port and not (re.fullmatch(r"[1-9][0-9]{0,4}", port) and int(port) < 2**16):
            raise ValueError("homelab.port is no port")
        return labels


class Leftover(Told):
    """What an earlier deploy left: `weights` that were copied there, `keys` of a gateway, `native`
    environments and tools. No service on the node names it."""

    kind: Literal["weights", "keys", "native"]
    paths: tuple[AbsolutePath, ...] = Field(min_length=1, max_length=MOST)
    bytes: Bytes = 0


class Weights(Told):
    """A model source as seen on a node: the header of the files, or how much of a hub repository lies in
    its cache."""

    source: str
    path: str | None = None
    present: bool = False
    bytes: Bytes = 0
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$")] | None = None
    header: Mapping[str, Any] | None = None
    error: Said | None = None


def _why(e: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = e.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    return (f"{where}: " if where else "")[:200] + first["msg"][:400]


class Facts(Told):
    """One node's document. `secrets_id` tells the keys of the cluster that lie there from others without
    revealing them; null where there are none."""

    schema_version: int
    hostname: Short
    machine_id: Short | None = None
    os: Short
    system: Short = "linux"
    kernel: Short | None = None
    arch: Short
    wsl: bool = False
    cpu: CPU = CPU()
    memory_total_bytes: Bytes
    memory_available_bytes: Bytes
    home: PathIfKnown = ""
    user: Short = ""
    python: Short = ""
    python_path: Python = "python3"
    hub_cache: PathIfKnown = ""
    server_address: Address | None = None
    interfaces: tuple[Interface, ...] = Field(default=(), max_length=MOST)
    resolved: Mapping[str, Annotated[tuple[Address, ...], Field(max_length=MOST)]] = Field(
        default_factory=dict, max_length=MOST
    )
    disks: tuple[Disk, ...] = Field(default=(), max_length=MOST)
    gpus: tuple[GPU, ...] = Field(default=(), max_length=MOST_GPUS)
    docker: Docker | None = None
    programs: Mapping[str, AbsolutePath | None] = Field(default_factory=dict, max_length=MOST)
    services: tuple[DeployedService, ...] = Field(default=(), max_length=MOST_SERVICES)
    unlisted: Mapping[Literal["docker", "native"], Annotated[tuple[Said, ...], BeforeValidator(_first)]] = (
        Field(default_factory=dict)
    )  # by runtime: why services may be missing
    ports: tuple[ListeningPort, ...] = Field(default=(), max_length=MOST)
    weights: tuple[Weights, ...] = Field(default=(), max_length=MOST)
    leftovers: tuple[Leftover, ...] = Field(default=(), max_length=MOST)
    secrets_id: Short | None = None
    problems: Annotated[tuple[Problem, ...], BeforeValidator(_first)] = ()

    @field_validator("gpus")
    @classmethod
    def _one_of_each(cls, gpus: tuple[GPU, ...]) -> tuple[GPU, ...]:
        names = [name for gpu in gpus for name in (gpu.uuid, *(part.uuid for part in gpu.mig_devices))]
        if len(names) != len(set(names)):
            raise ValueError("two devices have the same uuid")
        return gpus

    @model_validator(mode="before")
    @classmethod
    def _unlist(cls, document: Any) -> Any:
        """A service that cannot be what it says is not listed, and the node says why: it may well run."""
        services = document.get("services") if isinstance(document, dict) else None
        unlisted = document.get("unlisted", {}) if isinstance(document, dict) else None
        if not isinstance(services, list | tuple) or not isinstance(unlisted, dict):
            return document
        if not all(isinstance(reasons, list | tuple) for reasons in unlisted.values()):
            return document
        listed: list[DeployedService] = []
        reasons: dict[str, list[Any]] = {"docker": [], "native": []}
        for service in services[: MOST_SERVICES + 1]:
            try:
                listed.append(DeployedService.model_validate(service))
            except ValidationError as e:
                said = service if isinstance(service, dict) else {}
                runtime = "docker" if said.get("runtime") == "docker" else "native"
                reasons[runtime].append(f"service {str(said.get('name'))[:80]!r}: {_why(e)}")
        more = {r: [*why, *unlisted.get(r, ())] for r, why in reasons.items() if why}
        return {**document, "services": listed, "unlisted": {**unlisted, **more}}


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
    """Why a node gave no facts: an error of ours, with as much as another tool had to say."""

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
    if len(document) > ANSWER_BYTES:
        raise NodeError(
            "The agent's answer is too long",
            cause=f"{len(document)} bytes, and no node has more to say than {ANSWER_BYTES}",
            hint="Run it by hand to see what it says: homelab -vv discover",
            kind="agent",
        )
    try:
        return Facts.model_validate_json(document)
    except ValidationError as e:
        start = document[:200]
        text = start.decode(errors="replace") if isinstance(start, bytes) else start
        raise NodeError(
            "The agent's answer cannot be read", cause=f"{_why(e)}: {text!r}", kind="agent"
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
