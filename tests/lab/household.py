"""Several machines at once, with what a user on them needs: addresses, keys, known hosts."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import engine
from tests.lab.engine import STATE, docker
from tests.lab.images import ensure_seed
from tests.lab.layout import claim, container_name, create, prepare
from tests.lab.models import gguf
from tests.lab.node import Node, NodeSpec, remove_folder

DEFAULT = {"workstation": "rtx4090", "server": "2x3090", "laptop": "laptop3070"}
BY_HAND = "hand"
_numbers = itertools.count(1)


@dataclass
class Household:
    nodes: dict[str, Node]
    home: Path
    group: str
    gateway: str = field(default_factory=engine.gateway)
    model: str = field(default_factory=lambda: f"/models/{gguf().name}")

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @property
    def known_hosts(self) -> Path:
        return self.home / ".ssh/known_hosts"

    @property
    def identity(self) -> Path:
        return self.home / ".ssh/id_ed25519"

    @property
    def ssh_config(self) -> Path:
        return self.home / ".ssh/config"

    @property
    def env(self) -> dict[str, str]:
        """For a program that is to be run as this household's user."""
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("DOCKER_", "SSH_", "XDG_", "HF_", "HOMELAB_"))
        }
        return kept | {"HOME": str(self.home), "COLUMNS": "160"}

    def inventory_nodes(self) -> dict[str, dict[str, Any]]:
        return {
            name: {"host": n.address, "user": n.user, "identity": str(self.identity)}
            for name, n in self.nodes.items()
        }

    def trust(self) -> None:
        """Write known_hosts anew from the keys themselves, which come by way of this
        box and not of the network."""
        lines = [f"{n.address},{name} {n.host_key}\n" for name, n in self.nodes.items()]
        self.known_hosts.write_text("".join(lines))

    def remove(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Node.remove, self.nodes.values()))


def start(specs: Mapping[str, str | NodeSpec], home: Path, group: str | None = None) -> Household:
    group = group or f"t{os.getpid()}-{next(_numbers)}"
    wanted = {name: spec if isinstance(spec, NodeSpec) else NodeSpec(spec) for name, spec in specs.items()}
    prepare()
    gguf()
    seeds = {vllm: ensure_seed(vllm) for vllm in {spec.vllm for spec in wanted.values()}}

    places = {name: claim(name, group) for name in wanted}

    def boot(item: tuple[str, NodeSpec]) -> Node:
        name, spec = item
        node = create(
            name, spec, group, *places[name], seeds[spec.vllm] if spec.docker is not False else None
        )
        docker("start", node.container)
        node.wait()
        return node

    try:
        with ThreadPoolExecutor() as pool:
            nodes = dict(zip(wanted, pool.map(boot, wanted.items()), strict=True))
    except BaseException:
        remove_group(group)
        raise
    ssh = home / ".ssh"
    ssh.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("id_ed25519", "id_ed25519.pub"):
        shutil.copy(STATE / name, ssh / name)
    (ssh / "id_ed25519").chmod(0o600)
    household = Household(nodes, home, group)
    household.trust()
    entries = [
        f"Host {n.name}\n  HostName {n.address}\n  User {n.user}\n  IdentityFile {household.identity}\n"
        f"  UserKnownHostsFile {household.known_hosts}\n"
        for n in nodes.values()
    ]
    household.ssh_config.write_text("".join(entries))
    return household


def remove_group(group: str) -> None:
    for container in engine.labelled("--filter", f"label=lab-group={group}"):
        name = docker("inspect", "-f", "{{.Name}}", container).strip().lstrip("/")
        docker("rm", "-f", container, check=False)
        remove_folder(STATE / "nodes" / name)


def remove_orphans() -> None:
    """Machines of tests that were killed before they could clean up."""
    for owner in (STATE / "nodes").glob("*/owner"):
        folder = owner.parent
        with contextlib.suppress(FileNotFoundError):  # another process removes it
            gone = not Path(f"/proc/{owner.read_text()}").exists()
            if gone and not folder.name.startswith(container_name("", BY_HAND)):
                docker("rm", "-f", folder.name, check=False)
                remove_folder(folder)
