"""How a lab machine is laid out on this box: its folder, its address, its container;
and what all machines share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.lab import engine
from tests.lab.debian_image import import_image
from tests.lab.engine import LABEL, NETWORK, NODE_PACKAGES, STATE, TAG, docker, docker_binary, subnet, timed
from tests.lab.node import HERE, Node, NodeSpec, meminfo, remove_folder
from tests.lab.wheels import compose_binary

NODE_IMAGE = f"homelab-lab/node:{TAG}-{hashlib.sha256(' '.join(NODE_PACKAGES).encode()).hexdigest()[:12]}"
SEED_INSIDE = "/opt/lab-seed"


@cache
def prepare() -> None:
    """What all nodes share: the key, the fake NVML, Compose, and the node image."""
    engine.ready()
    with engine.locked("node-image"):
        key = STATE / "id_ed25519"
        if not key.exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "homelab-lab", "-f", key], check=True
            )
        library, source = STATE / "lib/libnvidia-ml.so.1", HERE / "fakenvml/fakenvml.c"
        if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
            library.parent.mkdir(parents=True, exist_ok=True)
            command = [
                "gcc",
                "-O2",
                "-shared",
                "-fPIC",
                "-fvisibility=hidden",
                "-Wl,-soname,libnvidia-ml.so.1",
                "-o",
                f"{library}.part",
                str(source),
            ]
            subprocess.run(command, check=True)
            os.replace(f"{library}.part", library)
        compose_binary()
        (STATE / "models").mkdir(exist_ok=True)
        if not docker("images", "-q", NODE_IMAGE):
            with timed("node image"):
                key_name, _, folder = LABEL.partition("=")
                label = f'LABEL {key_name}="{folder}"'
                import_image([docker_binary()], NODE_IMAGE, NODE_PACKAGES, {}, [label])


def _link_engine_data(seed: Path, target: Path) -> None:
    """A new node's engine data: the seed's image database as a copy, and in place of each layer's files a
    link to the seed's, mounted read-only.

    The engine only ever mounts them as lower layers; removing an image in the node removes the link.
    """
    shutil.copytree(seed / "image", target / "image")
    shutil.copytree(
        seed / "overlay2",
        target / "overlay2",
        symlinks=True,
        ignore=lambda _, names: [n for n in names if n == "diff"],
    )
    for layer in (seed / "overlay2").iterdir():
        if layer.name != "l":
            (target / "overlay2" / layer.name / "diff").symlink_to(f"{SEED_INSIDE}/{layer.name}/diff")


def container_name(name: str, group: str) -> str:
    return f"lab-{TAG}-{group}-{name}"


def _address_in(file: Path) -> str:
    with contextlib.suppress(FileNotFoundError):  # another process removes that machine just now
        return file.read_text()
    return ""


def claim(name: str, group: str) -> tuple[Path, str]:
    """A folder and an address for a new machine."""
    container = container_name(name, group)
    folder = STATE / "nodes" / container
    docker("rm", "-f", container, check=False)
    remove_folder(folder)
    with engine.locked("addresses"):
        taken = {_address_in(f) for f in (STATE / "nodes").glob("*/address")}
        folder.mkdir(parents=True)
        address = next(a for n in range(10, 250) if (a := f"{subnet()}.{n}") not in taken)
        (folder / "address").write_text(address)
        (folder / "owner").write_text(str(os.getpid()))
    return folder, address


def create(
    name: str,
    spec: NodeSpec,
    group: str,
    folder: Path,
    address: str,
    seed: Path | None,
    docker_data: Path | None = None,
) -> Node:
    """Lay out a machine; `docker start` boots it."""
    container = folder.name
    lab, disk = folder / "lab", folder / "disk"
    for made in (lab / "gpu/held", disk):
        made.mkdir(parents=True)
    (lab / "options").write_text(spec.options())
    (lab / "meminfo").write_text(meminfo(spec.memory_mib, spec.memory_free_mib))
    (lab / "gpu/devices").write_text(spec.gpus_text())
    shutil.copy(STATE / "id_ed25519.pub", lab / "authorized_keys")
    # A tmpfs has the size it is told and takes only what is written; mounted out here it
    # outlives the node's reboots.
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={spec.disk_mib}m,mode=755", "homelab-lab", disk], check=True
    )
    for mounted in ("srv", "home"):
        (disk / mounted).mkdir()
    if seed:
        _link_engine_data(seed, folder / "docker")
    binds = {
        docker_data or folder / "docker": "/var/lib/docker", lab: "/lab", disk / "srv": "/srv",
        disk / "home": "/home",
        HERE / "in_node": "/opt/lab-node:ro", STATE / "lib": "/opt/lab-lib:ro",
        STATE / "models": "/models:ro",
    }  # fmt: skip
    if seed:
        binds[seed / "overlay2"] = f"{SEED_INSIDE}:ro"
    labels = {"lab-address": address, "lab-group": group, "lab-name": name}
    # Not --privileged: that asks for CAP_SYS_RESOURCE, which some CI machines withhold.
    docker(
        "create", "--init", "--name", container, "--hostname", name, "--network", NETWORK, "--ip", address,
        "--pull=never", "--label", LABEL,
        *(word for label, value in labels.items() for word in ("--label", f"{label}={value}")),
        "--shm-size", "8g", "--tmpfs", "/run:rw,exec,mode=755",
        "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--device-cgroup-rule", "a *:* rwm",
        "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
        "--security-opt", "systempaths=unconfined",
        *(word for source, inside in binds.items() for word in ("-v", f"{source}:{inside}")),
        NODE_IMAGE, "/opt/lab-node/init",
    )  # fmt: skip
    return Node(name, address, container, folder, spec)


@contextlib.contextmanager
def seed_node(data: Path) -> Iterator[str]:
    """A throw-away node on the engine data in `data`; yields its container's name. It ends in order,
    so that the data is whole."""
    prepare()
    name = f"seed-{data.name}"
    node = create(name, NodeSpec(), "seed", *claim(name, "seed"), None, docker_data=data)
    try:
        docker("start", node.container)
        node.wait()
        yield node.container
        node.stop_docker()
    finally:
        node.remove()
