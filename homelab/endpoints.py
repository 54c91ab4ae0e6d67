"""Who answers under which name: the models of the house as they were placed or as they run, and those
outside. Pure.

Gateway, clients and status know models by these values alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from homelab.engines import Kind
from homelab.errors import DeployError
from homelab.facts import DeployedService, Survey
from homelab.hosting import LOOPBACK, Refused, address_label, address_of
from homelab.inventory import Inventory
from homelab.placement.layout import Placement
from homelab.secrets import engine_key_reference
from homelab.service import host_in_url, numbers_of, read_label

Origin = Literal["placed", "adopted", "cloud"]
TLS = ("internal", "acme", "files")  # where a front's certificate comes from


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """`name` is what clients call it, `upstream` what its server does. `url` is without `/v1`; `inside` is
    how a container of ours on the same node reaches it. `key` is a reference that `Secrets.resolve` knows,
    `context` the tokens of one request that it serves. `engine` is empty for what homelab did not start.
    `listens`: its node has seen that it is what listens there, so that its key may be sent.
    `prompt_seconds` and `tokens_per_s`: as a placement has them."""

    name: str
    kind: Kind
    url: str
    key: str
    context: int | None
    id: str
    node: str | None
    origin: Origin
    upstream: str
    engine: str = ""
    inside: str | None = None
    listens: bool = False
    prompt_seconds: float | None = None
    tokens_per_s: float | None = None

    def url_from(self, node: str | None) -> str:
        """Its address for a container of ours on a node, or for everybody else."""
        return self.inside if self.inside and node == self.node else self.url


def placed(inventory: Inventory, placements: Sequence[Placement]) -> tuple[Endpoint, ...]:
    """Every endpoint of a decision, by name, node and service, then those outside the house."""
    ours = [
        Endpoint(
            name=p.model,
            kind=p.request.kind,
            url=f"http://{host_in_url(p.address)}:{p.port}",
            key=engine_key_reference(p.node, p.service),
            context=p.request.context,
            id=f"{p.node}/{p.service}",
            node=p.node,
            origin="placed",
            upstream=p.model,
            engine=p.engine,
            inside=_inside(p.service, p.address, p.port) if p.runtime == "docker" else None,
            prompt_seconds=p.prompt_seconds,
            tokens_per_s=p.tokens_per_s,
        )
        for p in sorted(placements, key=lambda p: (p.model, p.node, p.service))
    ]
    return (*ours, *cloud(inventory))


def running(inventory: Inventory, survey: Survey) -> tuple[Endpoint, ...]:
    """Every endpoint that the nodes show, or showed when they last answered, by name, node and service,
    then those outside the house."""
    ours = [
        Endpoint(
            name=name,
            kind=inventory.models[name].kind if name in inventory.models else "chat",
            url=url,
            key=engine_key_reference(node, service.name),
            context=cast("int | None", numbers.get("context")),
            id=f"{node}/{service.name}",
            node=node,
            origin="placed",
            upstream=name,
            engine=service.labels.get("homelab.engine", ""),
            listens=bool(service.listens),
            prompt_seconds=cast("float | None", numbers.get("prompt_seconds")),
            tokens_per_s=cast("float | None", numbers.get("tokens_per_s")),
        )
        for node, service in deployed(inventory, survey)
        if service.role == "engine" and (url := url_of(service)) is not None
        for numbers in [numbers_of(service.labels)]
        for name in service.serves
    ]
    return (*sorted(ours, key=lambda e: (e.name, e.id)), *cloud(inventory))


def cloud(inventory: Inventory) -> Iterator[Endpoint]:
    """The endpoints outside the house, by name."""
    for name, entry in sorted(inventory.cloud.items()):
        yield Endpoint(
            name=name,
            kind="chat",
            url=entry.api_base or "",
            key=entry.api_key or "",
            context=None,
            id=f"cloud/{name}",
            node=None,
            origin="cloud",
            upstream=entry.model,
        )


def deployed(inventory: Inventory, survey: Survey) -> Iterator[tuple[str, DeployedService]]:
    """The cluster's services with their nodes; of nodes that do not answer, those that they had."""
    seen = {name: report.facts for name, report in survey.nodes.items() if report.facts is not None}
    for node, facts in {**survey.remembered, **seen}.items():
        for service in facts.services:
            if service.cluster == inventory.cluster:
                yield node, service


def url_of(service: DeployedService) -> str | None:
    """Where a service answers, as its labels say."""
    address, port = address_label(service), service.labels.get("homelab.port")
    scheme = "https" if service.labels.get("homelab.tls") in TLS else "http"
    return f"{scheme}://{host_in_url(address)}:{port}" if address and port else None


def entrance(inventory: Inventory, survey: Survey) -> tuple[str, DeployedService] | None:
    """What answers clients, with its node: the front where one runs, else the gateway that needs none."""
    there = [(n, s) for n, s in deployed(inventory, survey) if s.role in ("front", "gateway")]
    there.sort(key=lambda pair: (pair[1].state == "stopped", pair[1].role != "front", is_behind(pair[1])))
    return there[0] if there else None


def entrance_url(inventory: Inventory, service: DeployedService) -> str | None:
    """Where clients find it: a certificate that is not homelab's own is for names."""
    url = url_of(service)
    front = inventory.front
    if url is not None and front and front.hostnames and service.labels.get("homelab.tls") in TLS:
        return f"https://{front.hostnames[0]}:{service.labels['homelab.port']}"
    return url


def is_behind(gateway: DeployedService) -> bool:
    """Whether a gateway that is there was made to stand behind a front."""
    return gateway.role == "gateway" and "front" in read_label(gateway.labels, "homelab.asked")


def first_choice(inventory: Inventory, endpoints: Sequence[Endpoint]) -> str:
    """The model to start a conversation with: of those that chat, the one that comes first by priority and
    name."""
    asked = inventory.models
    chat = {e.name for e in endpoints if e.kind == "chat" and e.origin != "cloud"}
    chat = chat or {name for name, model in asked.items() if model.kind == "chat"}
    order = sorted(chat, key=lambda n: (-asked[n].priority if n in asked else 0, n))
    return order[0] if order else "MODEL"


def proven_gateway(inventory: Inventory, survey: Survey) -> str:
    """Where the gateway answers, seen on its node to be what listens there: a key goes to nobody else.

    Raises DeployError."""
    found = entrance(inventory, survey)
    report = survey.nodes.get(found[0]) if found is not None else None
    if found is not None and report is not None and report.facts is not None:
        node, service = found
        url = entrance_url(inventory, service)
        if url is not None and service.listens:
            return url
        port = service.labels.get("homelab.port")
        owners = [p.process for p in report.facts.ports if str(p.port) == port]
        owner = f"`{owners[0]}`" if any(owners[:1]) else "another process"
        who = f"{owner} listens there" if owners else "nothing listens there"
        raise DeployError(
            f"The gateway on node `{node}` does not listen on its port {port}",
            cause=f"{who}; no key was sent to it",
            hint="homelab status",
        )
    raise DeployError("The gateway does not run, or its node does not answer", hint="homelab status")


def gateway_url(inventory: Inventory, survey: Survey) -> str:
    """The one address for clients: where the gateway runs, else where it would."""
    found = entrance(inventory, survey)
    if found is not None and (url := entrance_url(inventory, found[1])) is not None:
        return url
    report = survey.nodes.get(inventory.gateway.node)
    node = inventory.gateway.node
    try:
        address = address_of(inventory, node, report.facts if report else None)
    except Refused:
        address = address_of(inventory, node, None)
    front = inventory.front or None
    scheme = "https" if front is not None and front.tls else "http"
    host = front.hostnames[0] if front is not None and front.hostnames else host_in_url(address)
    return f"{scheme}://{host}:{inventory.gateway.port}"


def _inside(service: str, address: str, port: int) -> str | None:
    """By its name in the cluster's Docker network, which a service on loopback is not in."""
    return None if address in LOOPBACK else f"http://{service}:{port}"
