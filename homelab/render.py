"""Placements -> what is written onto each node. Pure: the same placements and keys give the same bytes."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping

from pydantic import SecretStr

from homelab import gateway
from homelab.engines import engines
from homelab.facts import Facts, Survey
from homelab.inventory import Inventory
from homelab.placement import Layout, Placement
from homelab.placement.devices import bind_address, image_for, runtime_for
from homelab.runtimes import RENDER
from homelab.secrets import Secrets
from homelab.service import Mount, Service, Unit, Upload, cluster_directory
from homelab.templating import render_template

# LiteLLM holds 320-530 MB (measured idle, under 50 streams and with its pages opened): 512m would not be safe.
GATEWAY_MEMORY = "1g"
HUB_CACHE = ".cache/huggingface"
# No engine phones home, whatever its default is.
QUIET = {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def render(
    inventory: Inventory, layout: Layout, survey: Survey, secrets: Secrets, environ: Mapping[str, str]
) -> tuple[Service, ...]:
    """Every service that should run: the engines, then the gateway where its node can be planned for.

    `environ` resolves the `env:NAME` values of the inventory."""
    facts = {n: r.facts for n, r in survey.nodes.items() if r.facts is not None}
    services = [
        _engine(inventory, p, facts[p.node], survey, secrets, environ) for p in layout if p.node in facts
    ]
    node = inventory.gateway.node
    if node in facts and (runtime := runtime_for(inventory.nodes[node], facts[node], gpu=False)[0]):
        services.append(_gateway(inventory, layout, facts[node], runtime, secrets, environ))
    return tuple(services)


def resolve(value: str | None, environ: Mapping[str, str]) -> SecretStr | None:
    """The secret that `env:NAME` names, if it is set."""
    found = environ.get(value.removeprefix("env:")) if value else None
    return SecretStr(found) if found else None


def gateway_address(inventory: Inventory, survey: Survey) -> str:
    """Where clients find the gateway."""
    report = survey.nodes.get(inventory.gateway.node)
    return bind_address(inventory, inventory.gateway.node, report.facts if report else None)


def _engine(
    inventory: Inventory,
    p: Placement,
    facts: Facts,
    survey: Survey,
    secrets: Secrets,
    environ: Mapping[str, str],
) -> Service:
    engine = engines()[p.engine]
    variant = inventory.models[p.model].variants[p.variant]
    weights, mounts, uploads = _weights(inventory, p, facts, survey)
    in_container = p.runtime == "docker"
    # Inside its own network namespace an engine listens on all addresses; Compose publishes it on the node's one.
    host = "0.0.0.0" if in_container and p.address not in ("127.0.0.1", "::1") else p.address
    launch = p.launch(weights=weights, host=host)
    environment = {**QUIET, **engine.environment(launch)}
    keys = {engine.KEY_VARIABLE: secrets.engine_key(p.node, p.service)}
    if variant.parsed.where == "hub":
        if inventory.hub.endpoint:
            environment["HF_ENDPOINT"] = inventory.hub.endpoint
        if token := resolve(inventory.hub.token, environ):
            keys["HF_TOKEN"] = token
        if in_container:
            mounts = (*mounts, Mount(source=f"{facts.home}/{HUB_CACHE}", target=f"/root/{HUB_CACHE}"))
    unit = Unit(
        cluster=inventory.cluster,
        node=p.node,
        name=p.service,
        model=p.model,
        engine=p.engine,
        image=p.image if in_container else facts.llama_server,
        home=facts.home,
        address=p.address,
        port=p.port,
        health=engine.HEALTH,
        arguments=tuple(engine.command(launch)),
        environment=environment,
        secrets=keys,
        mounts=mounts if in_container else (),
        caches=engine.MODEL_CACHES if in_container else (),
        gpus=p.gpus,
        load_bytes=p.footprint.device_bytes - p.footprint.kv_cache_bytes,
        labels={
            "homelab.wanted": p.wanted,
            "homelab.engine": p.engine,
            "homelab.image": p.image or "",
            "homelab.placement": json.dumps(
                p.numbers()
            ),  # unsorted: the order of its flags is that of the command line
        },
        uploads=uploads,
    )
    return RENDER[p.runtime](unit)


def _weights(
    inventory: Inventory, p: Placement, facts: Facts, survey: Survey
) -> tuple[str, tuple[Mount, ...], tuple[Upload, ...]]:
    """What the engine is told to load, the folder that it must see, and the file that must be brought there first."""
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
        path = posixpath.normpath(
            source.text.replace("~", facts.home, 1) if source.text.startswith("~/") else source.text
        )
        uploads = ()
    folder = posixpath.dirname(path) if path.endswith(".gguf") else path
    return path, (Mount(source=folder, target=folder, read_only=True),), uploads


def _gateway(
    inventory: Inventory,
    layout: Layout,
    facts: Facts,
    runtime: str,
    secrets: Secrets,
    environ: Mapping[str, str],
) -> Service:
    node = inventory.gateway.node
    address = bind_address(inventory, node, facts)
    image = inventory.gateway.image or image_for(inventory, node, "litellm", "cpu")
    if inventory.gateway.version and not inventory.gateway.image:
        image = f"{image.rpartition(':')[0]}:{inventory.gateway.version}"
    in_container = runtime == "docker"
    loopback = address in ("127.0.0.1", "::1")
    keys = {gateway.MASTER_KEY_VARIABLE: secrets.gateway_key}
    keys |= {gateway.key_variable(p): secrets.engine_key(p.node, p.service) for p in layout}
    for name, cloud in inventory.cloud.items():
        if key := resolve(cloud.api_key, environ):
            keys[gateway.cloud_variable(name)] = key
    config = "/app/litellm.yml" if in_container else "litellm.yml"
    host = address if loopback or not in_container else "0.0.0.0"
    unit = Unit(
        cluster=inventory.cluster,
        node=node,
        name=gateway.SERVICE,
        model=None,
        engine="litellm",
        image=image if in_container else None,
        home=facts.home,
        address=address,
        port=inventory.gateway.port,
        health=gateway.HEALTH,
        arguments=("--config", config, "--host", host, "--port", str(inventory.gateway.port)),
        environment={**QUIET, **gateway.ENVIRONMENT},
        secrets=keys,
        files={
            "litellm.yml": render_template(
                "litellm.yml.j2", configuration=gateway.configuration(inventory, layout.placements)
            )
        },
        memory_limit=GATEWAY_MEMORY,
        labels={
            "homelab.engine": "litellm",
            "homelab.image": image if in_container else "",
            "homelab.models": ",".join(sorted({p.model for p in layout} | set(inventory.cloud))),
        },
    )
    return RENDER[runtime](unit)
