"""Placements -> what is written onto each node. Pure: the same placements and keys give the same bytes."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import SecretStr

from homelab import asked, front, gateway, routes
from homelab.apps import App, Place, apps
from homelab.endpoints import is_behind, placed
from homelab.engines import engines
from homelab.errors import InventoryError
from homelab.facts import Facts, Survey
from homelab.hosting import LOOPBACK, Choice, Refused, address_of, choose
from homelab.inventory import Front, Inventory, Node
from homelab.keys import AUTH_FILE, FOLDER, HOUSE_FILE, folder, house
from homelab.placement import Layout, Placement
from homelab.program import Container, Executable
from homelab.runtimes import RENDER
from homelab.secrets import Secrets
from homelab.service import Mount, Service, Unit, Upload, cluster_directory, host_in_url, port_of
from homelab.templating import render_template

# LiteLLM holds 320-530 MB (measured idle, under 50 streams and with its pages opened): 512m would not be
# safe.
GATEWAY_MEMORY_BYTES = 1024**3
# Caddy 2.11.7 holds 47 MB, and 71 MB with 200 streams whose requests have 1 MB (measured); a reload starts
# it once more.
FRONT_MEMORY_BYTES = 256 * 1024**2
HUB_CACHE = ".cache/huggingface"
# Of an app, where it is, and what the gateway is told of its key: that restarts no app.
APP_ELSEWHERE = {"node", "models", "private"}
# No engine phones home, whatever its default is.
QUIET = {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def render(
    inventory: Inventory,
    layout: Layout,
    survey: Survey,
    secrets: Secrets,
    environ: Mapping[str, str],
    *,
    upgrade: bool = False,
    keys: bool = True,
    certificate: tuple[str, SecretStr] | None = None,
) -> tuple[Service, ...]:
    """Every service that should run: the engines, then the gateway, its front and the apps, where their nodes
    can be planned for.

    `environ` resolves the `env:NAME` values of the inventory; `upgrade`: what runs takes this release's
    files; `keys`: whether `secrets` are the house's own;
    `certificate` is what the files of `front: {tls: …}` hold, with its key.

    Raises InventoryError where the gateway would speak plain HTTP to the internet."""
    facts = {n: r.facts for n, r in survey.nodes.items() if r.facts is not None}
    services = [
        RENDER[p.runtime](_engine(inventory, p, facts[p.node], survey, secrets, environ))
        for p in layout
        if p.node in facts
    ]
    node = inventory.gateway.node
    if node in facts:
        choice = gateway_choice(inventory, facts[node])
        if isinstance(choice, Choice):
            services += _entrance(
                inventory, layout, facts[node], choice, secrets, environ, upgrade, keys, certificate
            )
    entrance = next((s.unit for s in reversed(services) if s.unit.role in ("gateway", "front")), None)
    for name, wanted in sorted(inventory.apps.items()):
        if wanted.node in facts:
            choice = app_choice(inventory, name, facts[wanted.node])
            if isinstance(choice, Choice):
                unit = _app(inventory, name, facts, choice, secrets, entrance)
                services.append(RENDER[choice.runtime](unit))
    return tuple(services)


def app_choice(inventory: Inventory, name: str, facts: Facts) -> Choice | str:
    """How an app runs on its node, or why it cannot."""
    node, app = inventory.apps[name].node, apps()[inventory.apps[name].module]
    mine = (inventory.cluster, "app", name)
    running = next((s.runtime for s in facts.services if (s.cluster, s.role, s.name) == mine), None)
    try:
        address_of(inventory, node, facts)
        choice = choose(inventory, node, facts, app.OFFER, "cpu", running=running)
    except Refused as e:
        if str(e).startswith(app.OFFER.name):
            return (
                f"no Docker is in use on this node, and there is no `{app.OFFER.executable}` to run without: "
                f"there, {app.INSTALL}"
            )
        return str(e)
    return choice


def _entrance(
    inventory: Inventory,
    layout: Layout,
    facts: Facts,
    choice: Choice,
    secrets: Secrets,
    environ: Mapping[str, str],
    upgrade: bool,
    keys: bool,
    certificate: tuple[str, SecretStr] | None,
) -> list[Service]:
    """The gateway, and the front before it where there should be one."""
    node = inventory.gateway.node
    address = address_of(inventory, node, facts)
    before = front.wanted(inventory)
    there = [s for s in facts.services if s.cluster == inventory.cluster and s.role == "gateway"]
    if before is not None or not there or upgrade or inventory.front is False:
        front.refuse_plain_http(inventory, facts, address, before)

    def gateway_at(at: str, port: int) -> Service:
        return RENDER[choice.runtime](
            _gateway(inventory, layout, facts, choice, secrets, environ, at, port, behind=before is not None)
        )

    if before is None:
        return [gateway_at(address, inventory.gateway.port)]
    try:
        program = choose(inventory, node, facts, front.OFFER, "cpu", running=choice.runtime).program
    except Refused as e:
        raise InventoryError(
            f"Node `{node}` cannot run the front of the gateway", cause=str(e), hint="Or `front: false`"
        ) from e
    unit = _front(inventory, before, facts, replace(choice, program=program), address, certificate)
    behind = [s for s in there if is_behind(s)]
    # What runs keeps its port: a port of its own is no reason to replace it.
    as_now = (gateway_at("127.0.0.1", port) for s in behind if (port := port_of(s.labels)))
    specs = {b.spec for b in behind}
    files = set() if keys else {b.labels.get("homelab.files") for b in behind}
    same = next((s for s in as_now if s.spec in specs or s.labels["homelab.files"] in files), None)
    free = _free_port(inventory, layout, facts)
    return [same or gateway_at("127.0.0.1", free), RENDER[choice.runtime](unit)]


def _free_port(inventory: Inventory, layout: Layout, facts: Facts) -> int:
    """A port for a gateway behind a front, beside the ones that are there: the next one that nobody has."""
    node = inventory.gateway.node
    ours = [s for s in facts.services if s.cluster == inventory.cluster]
    taken: list[int | None] = [p.port for p in facts.ports]
    taken += [p.port for p in layout if p.node == node]
    taken += [port_of(s.labels) for s in ours]
    taken += [m.port for m in inventory.models.values()]
    taken += [a.at for a in inventory.apps.values()]
    first = inventory.gateway.port + 1
    candidates: tuple[int, ...] = (*range(first, 65536), *range(1025, first - 1))
    return next(port for port in candidates if port not in taken)


def gateway_choice(inventory: Inventory, facts: Facts) -> Choice | str:
    """How the gateway runs on its node, or why it cannot."""
    node = inventory.gateway.node
    running = next(
        (s.runtime for s in facts.services if s.cluster == inventory.cluster and s.role == "gateway"), None
    )
    try:
        choice = choose(inventory, node, facts, gateway.OFFER, "cpu", running=running)
        address_of(inventory, node, facts)
    except Refused as e:
        return str(e)
    if not isinstance(choice.program, Container):
        return choice
    image = inventory.gateway.image or choice.program.image
    if inventory.gateway.version and not inventory.gateway.image:
        image = f"{image.rpartition(':')[0]}:{inventory.gateway.version}"
    return Choice(runtime=choice.runtime, program=Container(image=image), hosting=choice.hosting)


def _engine(
    inventory: Inventory,
    p: Placement,
    facts: Facts,
    survey: Survey,
    secrets: Secrets,
    environ: Mapping[str, str],
) -> Unit:
    engine = engines()[p.engine]
    model = inventory.models[p.model]
    variant = model.variants[p.variant]
    weights, mounts, uploads = _weights(inventory, p, facts, survey)
    in_container = p.runtime == "docker"
    # Inside its own network namespace an engine listens on all addresses; Compose publishes it on the
    # node's one.
    host = "0.0.0.0" if in_container and p.address not in LOOPBACK else p.address
    launch = p.launch(weights=weights, host=host)
    environment = {**QUIET, **engine.environment(launch)}
    keys = {engine.KEY_VARIABLE: secrets.engine_key(p.node, p.service)}
    wanted = {"model": asked.of_model(model), **asked.of_place(inventory, p.node, p.engine)}
    drafter = variant.drafter
    if drafter is not None and drafter.where == "node":
        folder = posixpath.dirname(drafter.text) if drafter.format == "gguf" else drafter.text
        if folder not in (m.target for m in mounts):
            mounts = (*mounts, Mount(source=folder, target=folder, read_only=True))
    if any(source.where == "hub" for source in variant.reads):
        if inventory.hub.endpoint:
            environment["HF_ENDPOINT"] = wanted["hub"] = inventory.hub.endpoint
        if token := secrets.resolve(inventory.hub.token, environ):
            keys["HF_TOKEN"] = token
        if in_container:
            mounts = (*mounts, _hub_cache(facts))
        elif facts.hub_cache not in ("", f"{facts.home}/{HUB_CACHE}/hub"):
            environment["HF_HUB_CACHE"] = facts.hub_cache
    if uploads:
        wanted["file"] = uploads[0].path
    return Unit(
        cluster=inventory.cluster,
        node=p.node,
        name=p.service,
        role="engine",
        serves=(p.model,),
        engine=p.engine,
        program=p.program,
        hosting=p.hosting,
        home=facts.home,
        socket=facts.docker.socket if facts.docker else None,
        python=_python(inventory.nodes[p.node], facts),
        address=p.address,
        port=p.port,
        health=engine.HEALTH,
        arguments=tuple(engine.command(launch)),
        environment=environment,
        secrets=keys,
        asked=wanted,
        mounts=mounts if in_container else (),
        volumes={f"{p.engine}-cache{i}": path for i, path in enumerate(engine.CACHES)}
        if in_container
        else {},
        gpus=p.gpus,
        ipc_host=engine.IPC_HOST,
        load_bytes=p.footprint.device_bytes - p.footprint.kv_cache_bytes,
        numbers=p.numbers(),
        uploads=uploads,
        # In RAM there is no pool that a driver refuses to grow, and a long prompt would take many minutes.
        trial=engine.trial(p.model, p.request) if p.gpus and model.long_prompt else None,
        key_variable=engine.KEY_VARIABLE,
    )


def _hub_cache(facts: Facts) -> Mount:
    """The node's cache of the hub, where the agent looked into it, at the place where engines look."""
    cache = facts.hub_cache or f"{facts.home}/{HUB_CACHE}/hub"
    if posixpath.basename(cache) == "hub":  # with what the hub's client keeps beside it
        return Mount(source=posixpath.dirname(cache), target=f"/root/{HUB_CACHE}")
    return Mount(source=cache, target=f"/root/{HUB_CACHE}/hub")


def _weights(
    inventory: Inventory, p: Placement, facts: Facts, survey: Survey
) -> tuple[str, tuple[Mount, ...], tuple[Upload, ...]]:
    """What the engine is told to load, the folder that it must see, and the file that must be brought there
    first."""
    source = inventory.models[p.model].variants[p.variant].parsed
    if source.where == "hub":
        return source.text, (), ()
    if source.where == "controller":
        known = survey.models[source.text]
        name = posixpath.basename(known.path or source.text)
        target = f"{cluster_directory(inventory.cluster)}/weights/{known.revision or 'unknown'}/{name}"
        path = f"{facts.home}/{target}"
        uploads: tuple[Upload, ...] = (
            Upload(local=known.path or source.text, path=target, bytes=known.bytes),
        )
    else:
        home = source.text.replace("~", facts.home, 1) if source.text.startswith("~/") else source.text
        path = posixpath.normpath(home)
        uploads = ()
    folder = posixpath.dirname(path) if path.endswith(".gguf") else path
    return path, (Mount(source=folder, target=folder, read_only=True),), uploads


def _gateway(
    inventory: Inventory,
    layout: Layout,
    facts: Facts,
    choice: Choice,
    secrets: Secrets,
    environ: Mapping[str, str],
    address: str,
    port: int,
    *,
    behind: bool,
) -> Unit:
    node = inventory.gateway.node
    in_container = choice.runtime == "docker"
    beside = node if in_container else None
    endpoints = placed(inventory, layout.placements)
    keys = {gateway.MASTER_KEY_VARIABLE: secrets.gateway_key}
    keys |= {gateway.key_variable(e): key for e in endpoints if (key := secrets.resolve(e.key, environ))}
    config = "/app/litellm.yml" if in_container else "litellm.yml"
    # Only where the machine itself is not reached from outside is there no network to be in.
    joins_network = behind and in_container and address_of(inventory, node, facts) not in LOOPBACK
    host = "0.0.0.0" if in_container and (joins_network or address not in LOOPBACK) else address
    not_its_own = {"node", "port"} if behind else {"node"}
    wanted: dict[str, Any] = {
        "gateway": inventory.gateway.model_dump(mode="json", exclude_unset=True, exclude=not_its_own),
        "endpoints": gateway.told(endpoints, beside),
        **asked.of_place(inventory, node, gateway.OFFER.name),
    }
    if behind:
        wanted["front"] = True
        wanted.pop("address", None)
    if inventory.fallbacks:
        wanted["fallbacks"] = {name: list(targets) for name, targets in inventory.fallbacks.items()}
    aliases = routes.names(inventory)
    if aliases:
        wanted["aliases"] = aliases
    variables = {name: gateway.app_variable(name) for name in inventory.apps}
    keys |= {variable: secrets.app_key(name) for name, variable in variables.items()}
    if inventory.apps:
        wanted["apps"] = {
            name: app.model_dump(mode="json", include={"models", "private"}, exclude_unset=True)
            for name, app in sorted(inventory.apps.items())
        }
    configuration = gateway.configuration(endpoints, inventory.fallbacks, beside, aliases)
    return Unit(
        cluster=inventory.cluster,
        node=node,
        name=gateway.SERVICE,
        role="gateway",
        serves=tuple(sorted({e.name for e in endpoints})),
        after=("engine",),
        engine=gateway.OFFER.name,
        program=choice.program,
        hosting=choice.hosting,
        home=facts.home,
        socket=facts.docker.socket if facts.docker else None,
        python=_python(inventory.nodes[node], facts),
        address=address,
        port=port,
        health=gateway.HEALTH,
        arguments=("--config", config, "--host", host, "--port", str(port)),
        environment={
            **QUIET,
            **gateway.ENVIRONMENT,
            gateway.KEYS_VARIABLE: f"/app/{FOLDER}" if in_container else f"../{FOLDER}",
        },
        secrets=keys,
        asked=wanted,
        files={
            "litellm.yml": render_template("litellm.yml.j2", configuration=configuration),
            AUTH_FILE: render_template(AUTH_FILE),
            HOUSE_FILE: house(endpoints, aliases, inventory.apps, variables),
        },
        # A folder: of a file that is put in the place of another, a container would see the old one.
        mounts=(Mount(source=f"{facts.home}/{folder(inventory.cluster)}", target=f"/app/{FOLDER}"),)
        if in_container
        else (),
        memory_limit_bytes=GATEWAY_MEMORY_BYTES,
        # It writes into a folder of the user who deploys.
        capabilities=("DAC_OVERRIDE",),
        behind_front=behind,
        joins_network=joins_network,
        stop_seconds=front.DRAIN_SECONDS if behind else None,
    )


def _front(
    inventory: Inventory,
    asks: Front,
    facts: Facts,
    choice: Choice,
    address: str,
    certificate: tuple[str, SecretStr] | None,
) -> Unit:
    node, port = inventory.gateway.node, inventory.gateway.port
    in_container = choice.runtime == "docker"
    settings = front.settings(asks, address, port, in_container=in_container, loopback=address in LOOPBACK)
    configuration = f"/app/{front.CONFIGURATION}" if in_container else front.CONFIGURATION
    files = {front.CONFIGURATION: render_template("Caddyfile.j2", **settings)}
    secret_files = {}
    if asks.way == "files" and certificate is not None:
        files[front.CERTIFICATE], secret_files[front.KEY] = certificate
    folder = posixpath.dirname(f"{facts.home}/{front.upstream_path(inventory.cluster)}")
    return Unit(
        cluster=inventory.cluster,
        node=node,
        name=front.SERVICE,
        role="front",
        after=("gateway",),
        engine=front.OFFER.name,
        program=choice.program,
        hosting=choice.hosting,
        home=facts.home,
        socket=facts.docker.socket if facts.docker else None,
        python=_python(inventory.nodes[node], facts),
        address=address,
        port=port,
        # The agent asks by plain HTTP.
        health="" if asks.tls else front.HEALTH,
        health_command=front.health_command(
            asks, port, "127.0.0.1" if in_container and address not in LOOPBACK else address
        ),
        # The image has no entry point.
        arguments=(
            *(("caddy",) if in_container else ()),
            *("run", "--config", configuration, "--adapter", "caddyfile"),
        ),
        environment={"GOMEMLIMIT": f"{FRONT_MEMORY_BYTES * 3 // 4}"},
        secrets={},
        asked={
            "front": asks.model_dump(mode="json", exclude_unset=True),
            "port": port,
            **asked.of_place(inventory, node, front.OFFER.name),
        },
        files=files,
        secret_files=secret_files,
        mounts=(Mount(source=folder, target=f"/app/{front.UPSTREAM_FOLDER}", read_only=True),)
        if in_container
        else (),
        volumes={"front-data": "/data"} if in_container else {},
        memory_limit_bytes=FRONT_MEMORY_BYTES,
        # Its image's program is marked to bind low ports, and is not started without that.
        capabilities=("NET_BIND_SERVICE", *(("DAC_READ_SEARCH",) if secret_files else ())),
        tls=asks.way or "",
    )


def _app(
    inventory: Inventory,
    name: str,
    facts: Mapping[str, Facts],
    choice: Choice,
    secrets: Secrets,
    entrance: Unit | None,
) -> Unit:
    wanted = inventory.apps[name]
    app: App = apps()[wanted.module]
    node, here = wanted.node, facts[wanted.node]
    spec, address = inventory.nodes[node], address_of(inventory, node, here)
    in_container = choice.runtime == "docker"
    # What keeps it is no part of what `homelab remove` takes away.
    data = f"{here.home}/.local/share/homelab-data/{inventory.cluster}/{name}"
    typed = dict.fromkeys([address, *(() if spec.is_local else (spec.host,)), spec.address or address])
    if address in LOOPBACK:
        typed |= {"localhost": None}
    place = Place(
        gateway_url=_gateway_url(inventory, facts, node, entrance, in_container=in_container),
        host="0.0.0.0" if in_container and address not in LOOPBACK else address,
        port=wanted.at,
        urls=(
            *(f"http://{host_in_url(host)}:{wanted.at}" for host in typed),
            *((wanted.url,) if wanted.url else ()),
        ),
        data=app.DATA if in_container else data,
        program=choice.program.path if isinstance(choice.program, Executable) else None,
        python=None if in_container else _python(spec, here),
    )
    command = app.command(place)
    return Unit(
        cluster=inventory.cluster,
        node=node,
        name=name,
        role="app",
        after=("gateway", "front"),
        engine=app.OFFER.name,
        # What starts it, where that is no image.
        program=choice.program if in_container else Executable(path=command[0]),
        hosting=choice.hosting,
        home=here.home,
        socket=here.docker.socket if here.docker else None,
        python=_python(spec, here),
        address=address,
        port=wanted.at,
        health=app.HEALTH,
        arguments=command if in_container else command[1:],
        environment={**QUIET, **app.environment(place)},
        secrets={app.KEY_VARIABLE: secrets.app_key(name), app.SECRET_VARIABLE: secrets.app_secret(name)},
        asked={
            "app": wanted.model_dump(mode="json", exclude_unset=True, exclude=APP_ELSEWHERE),
            "gateway": place.gateway_url,
            **asked.of_place(inventory, node, app.OFFER.name),
        },
        files={file: render_template(file) for file in app.FILES},
        volumes={f"{name}-data": app.DATA} if in_container else {},
        memory_limit_bytes=app.MEMORY_LIMIT_BYTES,
    )


def _gateway_url(
    inventory: Inventory,
    facts: Mapping[str, Facts],
    node: str,
    entrance: Unit | None,
    *,
    in_container: bool,
) -> str:
    """Where a service of ours on a node reaches the gateway, or its front: in the same Docker network by its
    name, unless that is not what its certificate is for."""
    where, port = inventory.gateway.node, inventory.gateway.port
    address = address_of(inventory, where, facts.get(where))
    if isinstance(inventory.front, Front) and inventory.front.tls:
        return f"https://{next(iter(inventory.front.hostnames), host_in_url(address))}:{port}"
    beside = where == node and in_container and address not in LOOPBACK
    if beside and entrance is not None and isinstance(entrance.program, Container):
        return f"http://{entrance.name}:{port}"
    return f"http://{host_in_url(address)}:{port}"


def _python(spec: Node, facts: Facts) -> str:
    """Whole: nobody expands a `~` where the supervisor is started. The agent ran with it."""
    return facts.python_path if spec.python is None or spec.python.startswith("~/") else spec.python
