"""How a service comes to run on a node: which program, with which devices, in what runtime, at what
address. Pure.

By vendor it is `HOSTING` in the vendor's own file (`agent/accelerators/`): how a container gets the device,
which flavours of image there are, the best first, and which variable makes devices visible to a process.
What is missing is refused with a reason; another vendor's image is never put in its place."""

from __future__ import annotations

import ast
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from homelab import resources
from homelab.facts import GPU, DeployedService, Facts, Interface
from homelab.inventory import Inventory, Node, is_ip
from homelab.program import Container, Executable, Offer, Program

Runtime = Literal["docker", "native"]
LOOPBACK = frozenset({"127.0.0.1", "::1"})
LAN = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))


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

    In this order: what the user wrote; where services of ours run already; `host`; the LAN. Only where none
    of them is an address of the machine, the way decides by which SSH arrived.

    Raises Refused for a written name that means no address of this machine."""
    if inventory.is_local:
        return "127.0.0.1"
    spec = inventory.nodes[node]
    if spec.address and is_ip(spec.address):
        return spec.address
    if facts is None:
        return spec.address or spec.host
    own = [a for i in facts.interfaces for a in i.addresses]
    taken = sorted(address_label(s) for s in facts.services if s.cluster == inventory.cluster)
    current = next((a for a in taken if a not in ("", *LOOPBACK) and (a in own or not own)), None)
    if spec.address:
        return _named(spec.address, facts, own, current)
    if current:
        return current
    if is_ip(spec.host) and (spec.host in own or not own):
        return spec.host
    return _on_the_lan(facts) or facts.server_address or spec.host


def _named(name: str, facts: Facts, own: Sequence[str], current: str | None) -> str:
    """The machine's own address of a name that was written. What runs at one stays there while the name is
    not known for a moment."""
    meant = facts.resolved.get(name, ())
    mine = [
        a for a in (*sorted(meant, key=_order), *([current] if current and not meant else [])) if a in own
    ]
    if current in mine or (current and not own):
        return current or ""
    if mine:
        return mine[0]
    known = f"is {', '.join(meant)} there" if meant else "is not known there"
    if name not in facts.resolved:
        known = "was not looked up there yet (homelab discover does)"
    has = f"the machine has {', '.join(own)}" if own else "the machine's addresses are not known"
    raise Refused(f"`address: {name}` {known}, and {has}: write one of its own addresses")


def _on_the_lan(facts: Facts) -> str | None:
    """A private address of the machine, the same whichever way SSH came: on the interface of its default
    route, else where SSH arrived, else the first."""
    private = [(i, a) for i in facts.interfaces for a in i.addresses if _is_private(a) and not _is_tunnel(i)]
    private.sort(
        key=lambda pair: (_order(pair[1])[0], not pair[0].default_route, pair[1] != facts.server_address)
    )
    return private[0][1] if private else None


def _order(address: str) -> tuple[bool, str]:
    """IPv4 first: every client and container can reach it."""
    return ":" in address, address


def _is_private(address: str) -> bool:
    """Of a house (RFC 1918, RFC 4193): not of a link only, of a provider, or of Tailscale (100.64.0.0/10)."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(ip in network for network in LAN if network.version == ip.version)


def _is_tunnel(interface: Interface) -> bool:
    return interface.name.startswith(("wg", "tun", "tap", "tailscale", "zt", "utun", "ppp"))


def address_label(service: DeployedService) -> str:
    """Where a service listens, as its label says."""
    return service.labels.get("homelab.address", "")
