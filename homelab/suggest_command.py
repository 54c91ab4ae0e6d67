"""The verb `suggest`: looks at the house, or at one that is only named, and asks `homelab.suggest`.

Effects: files, nodes."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from homelab import cards, fit_command, pipeline, speed, suggest
from homelab.engines import Device
from homelab.errors import InventoryError, NodeError
from homelab.facts import CPU, GPU, SCHEMA_VERSION, Docker, Facts, NodeReport, Survey
from homelab.inventory import Gateway, Inventory, Node
from homelab.nodes.local import aside
from homelab.suggest import PURPOSES, USUAL, Pick, Suggestion

# A machine that is only named: RAM beside its cards, and disk. What stays in RAM of a model that lies on GPUs
# wholly is a few GiB.
IMAGINED_RAM_BYTES = 32 << 30
IMAGINED = "machine"


def run(
    inventory: Path,
    *,
    purposes: tuple[str, ...] = (),
    node: str | None = None,
    gpu: str | None = None,
    instead: bool = False,
) -> tuple[Suggestion, Mapping[str, NodeError]]:
    """The suggestion, and the nodes that could not be asked. `instead`: as if the inventory had no models.

    Raises InventoryError for a purpose, a node or a card that there is not."""
    for purpose in purposes:
        if purpose not in PURPOSES:
            raise InventoryError(
                f"`--for {purpose}` is no purpose",
                hint=f"There are: {', '.join(PURPOSES)}. Several: --for coding --for chat",
            )
    if gpu is not None and node is not None:
        raise InventoryError("--gpu and --node contradict each other", hint="Name one of them")
    errors: Mapping[str, NodeError] = {}
    if gpu is not None:
        house, survey = imagined(gpu)
    else:
        household = pipeline.read_inventory(inventory)
        house = household.inventory
        if node is not None:
            pipeline.known_node(household, node)
        discovery = asyncio.run(pipeline.survey_nodes(household))
        survey, errors = discovery.survey, discovery.errors
        if house.models and not instead:
            survey = asyncio.run(pipeline.with_models(household, survey))
    if instead:
        house = house.model_copy(update={"models": {}})
    return suggest.suggest(house, survey, known(), purposes or USUAL, node=node), errors


def known() -> suggest.Known:
    return suggest.Known(
        entries=fit_command.load_catalog().entries,
        scores=fit_command.load_scores(),
        cards=pipeline.load_cards(),
        recipes=pipeline.load_recipes(),
    )


def imagined(gpu: str) -> tuple[Inventory, Survey]:
    """A house of one machine with these cards, as `homelab fit --gpu` reads them: with Docker where a card
    is NVIDIA's, else with a llama-server in its PATH.

    Raises InventoryError."""
    card, device = cards.find_gpu(gpu, pipeline.load_cards())
    inventory = Inventory(
        cluster="home", gateway=Gateway(node=IMAGINED), nodes={IMAGINED: Node(host="localhost")}
    )
    free = card.usable_bytes if card is not None else device.total_bytes
    facts = machine(device, free)
    return inventory, Survey(nodes={IMAGINED: NodeReport(reachable=True, facts=facts)})


def machine(device: Device, free_bytes: int, name: str = IMAGINED) -> Facts:
    """What the agent would say of a machine with these cards and nothing on them."""
    unified = device.memory_kind == "unified"
    ram = device.total_bytes if unified else IMAGINED_RAM_BYTES
    docker = Docker(version="27", reachable=True, compose_version="2.39", runtimes=("nvidia",))
    return Facts(
        schema_version=SCHEMA_VERSION,
        hostname=name,
        machine_id=name,
        os="imagined",
        system="darwin" if device.vendor == "apple" else "linux",
        arch="aarch64" if unified and device.vendor in ("nvidia", "apple") else "x86_64",
        cpu=CPU(),
        memory_total_bytes=ram,
        memory_available_bytes=free_bytes if unified else ram,
        docker=docker if device.vendor == "nvidia" else None,
        programs={} if device.vendor == "nvidia" else {"llama-server": "/usr/local/bin/llama-server"},
        gpus=tuple(
            GPU(
                vendor=device.vendor,
                index=i,
                uuid=f"GPU-{i}",
                name=device.name,
                memory_kind="unified" if unified else "dedicated",
                memory_total_bytes=device.total_bytes,
                memory_free_bytes=free_bytes,
                compute_capability=device.compute_capability,
            )
            for i in range(device.count)
        ),
    )


def write(path: Path, picks: Sequence[Pick]) -> None:
    """Adds the picks to the inventory, whose text is otherwise as it was.

    Raises InventoryError for one that cannot be added to, or would not be one afterwards."""
    from homelab.inventory import load

    try:
        # Behind a link lies the file that is meant.
        real = path.resolve()
        if not os.access(real, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(real))
        text = suggest.with_models(real.read_bytes().decode(), picks)
        load(text, str(path))
        mode = real.stat().st_mode & 0o777
        with aside(real, mode) as file:
            file.write(text.encode())
    except OSError as e:
        raise InventoryError(f"Cannot write `{path}`", cause=str(e)) from e


def document(found: Suggestion) -> dict[str, Any]:
    """What `homelab suggest --json` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "models": [_pick(p) for p in found.picks],
        "others": {
            purpose: [
                {
                    "model": o.name,
                    "engine": o.placement.engine,
                    "source": o.placement.source,
                    "weights": o.weights,
                    "node": o.slot.node,
                    "context": o.placement.request.context,
                    "bytes": o.placement.bytes,
                    "score": asdict(o.score) if o.score else None,
                    "speed": speed.document(o.speed),
                }
                for o in options
            ]
            for purpose, options in found.others.items()
        },
        "unscored": {purpose: list(names) for purpose, names in found.unscored.items()},
        "missing": dict(found.missing),
        "beside": list(found.beside),
        "without_place": list(found.without_place),
        "benchmarks": dict(found.benchmarks),
        "inventory": suggest.written(found.picks) if found.picks else "",
    }


def _pick(pick: Pick) -> dict[str, Any]:
    return {
        "model": pick.name,
        "for": list(pick.purposes),
        "kind": pick.model.kind,
        "engine": pick.model.variants[0].engine,
        "source": pick.model.variants[0].source,
        "weights": pick.weights,
        "scores": [asdict(s) for s in pick.scores],
        "placements": [
            {
                "node": p.node,
                "gpus": list(p.gpus),
                "context": p.request.context,
                "concurrency": p.request.concurrency,
                "bytes": p.bytes,
                "speed": speed.document(s),
            }
            for p, s in pick.placements
        ],
    }
