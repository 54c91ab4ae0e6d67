"""How a service comes to run on a node: which program, with which devices, in what runtime, at what
address. Pure.

By vendor it is `HOSTING` in the vendor's own file (`agent/accelerators/`): how a container gets the device,
which flavours of image there are, the best first, and which variable makes devices visible to a process.
What is missing is refused with a reason; another vendor's image is never put in its place."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from homelab import resources
from homelab.facts import GPU, DeployedService, Facts
from homelab.inventory import Inventory, Node
from homelab.program import Container, Executable, Offer, Program

Runtime = Literal["docker", "native"]
LOOPBACK = frozenset({"127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """What a vendor's devices need. In a container: an entry of Compose's `reservations.devices`, to which
    the devices' ids are added, or `devices` and `groups` as Compose has them."""

    flavours: tuple[str, ...]
    reservation: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    visible: str | None = None


# A processor is in every container, and no variable hides it.
CPU = Hosting(flavours=("cpu",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How one program of ours runs on a node."""

    runtime: Runtime
    program: Program
    hosting: Hosting


class Refused(Exception):
    """A node cannot host this. The message says what is missing and what to do."""


@cache
def vendors() -> Mapping[str, Hosting]:
    """Every vendor that homelab can host, by name: the literal in its file, read and not run."""
    table = {"cpu": CPU}
    for path in sorted((resources.path("agent") / "accelerators").glob("*.py")):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "HOSTING":
                table[path.stem] = Hosting(**ast.literal_eval(statement.value))
    return table


def choose(
    inventory: Inventory,
    node: str,
    facts: Facts,
    offer: Offer,
    vendor: str,
    gpus: tuple[GPU, ...] = (),
    *,
    running: Runtime | None = None,
) -> Choice:
    """How a program runs on a node, on these GPUs or on none. `running`: how it runs there now, which stays
    so as long as nobody wrote otherwise.

    Raises Refused."""
    runtime = runtime_for(inventory.nodes[node], facts, running)
    if runtime == "native":
        return Choice(
            runtime=runtime, program=_native(offer, facts, gpus), hosting=vendors().get(vendor, CPU)
        )
    hosting = vendors().get(vendor)
    if hosting is None:
        raise Refused(f"homelab does not know how to give a container a GPU of {vendor}: `runtime: native`")
    if obstacle := next((g.container_obstacle for g in gpus if g.container_obstacle), None):
        raise Refused(obstacle)
    return Choice(runtime=runtime, program=container(inventory, node, offer, vendor), hosting=hosting)


def runtime_for(node: Node, facts: Facts, running: Runtime | None = None) -> Runtime:
    """How services run on a node, or go on running.

    Raises Refused where neither way is open."""
    docker = facts.docker
    if node.runtime == "native" or (node.runtime == "auto" and (docker is None or running == "native")):
        return "native"
    if docker is None:
        raise Refused(
            "no Docker on this node: install it "
            "(https://docs.docker.com/engine/install), or `runtime: native`"
        )
    if not docker.reachable:
        raise Refused(
            f"Docker cannot be used: {docker.error or 'no answer'}; "
            f"`sudo usermod -aG docker {facts.user or '$USER'}` and log in again, or `runtime: native`"
        )
    if not docker.compose_version:
        raise Refused(
            "no Compose plugin: `sudo apt install docker-compose-plugin` (Debian: docker-compose-v2), "
            "or `runtime: native`"
        )
    return "docker"


def image_written(inventory: Inventory, node: str, name: str) -> str | None:
    """The image that the inventory gives in place of the pinned one."""
    return inventory.nodes[node].images.get(name) or inventory.images.get(name)


def container(inventory: Inventory, node: str, offer: Offer, vendor: str) -> Container:
    """The image for a vendor's devices: the inventory's, else the best flavour that there is.

    Raises Refused."""
    if written := image_written(inventory, node, offer.name):
        return Container(image=written)
    flavours = vendors()[vendor].flavours
    image = next((offer.images[f] for f in flavours if f in offer.images), None)
    if image is None:
        wanted = " or ".join(flavours)
        raise Refused(
            f"{offer.name} has no image for {vendor} ({wanted}): name one, `images: {{{offer.name}: …}}`"
        )
    return Container(image=image)


def _native(offer: Offer, facts: Facts, gpus: tuple[GPU, ...]) -> Program:
    if offer.executable and (path := facts.programs.get(offer.executable)):
        return Executable(path=path)
    if offer.environment is None:
        raise Refused(f"{offer.name} runs in Docker only, and this node has none in use")
    if gpus and not offer.on_gpu:
        raise Refused(
            f"without Docker the GPU needs a `{offer.executable}` in PATH: homelab's own is built for the CPU"
        )
    return offer.environment


def address_of(inventory: Inventory, node: str, facts: Facts | None) -> str:
    """The one address of a node at which its services listen and are reached: never all interfaces.

    What runs there already stays where it is as long as the machine has that address, whichever way SSH
    arrives. Only what the user wrote comes before that."""
    if inventory.is_local:
        return "127.0.0.1"
    spec = inventory.nodes[node]
    if spec.address and _is_ip(spec.address):
        return spec.address
    own = {a for i in facts.interfaces for a in i.addresses} if facts else set()
    taken = (
        sorted(address_label(s) for s in facts.services if s.cluster == inventory.cluster) if facts else []
    )
    if (current := next((a for a in taken if a and (a in own or not own)), None)) and current not in LOOPBACK:
        return current
    if _is_ip(spec.host):
        return spec.host
    return (facts.server_address if facts else None) or spec.address or spec.host


def address_label(service: DeployedService) -> str:
    """Where a service listens, as its label says."""
    return service.labels.get("homelab.address", "")


def _is_ip(text: str) -> bool:
    parts = text.split(".")
    return ":" in text or (len(parts) == 4 and all(p.isdigit() for p in parts))
