"""python -m tests.lab up [NAME=GPUS ...] | down | status | ssh NAME CMD... | images [vllm] | inventory"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.lab import engine, household
from tests.lab.engine import LABEL, STATE, LabError, docker, say
from tests.lab.images import ensure_seed, wanted
from tests.lab.node import PROFILES, NodeSpec

HOME = STATE / "home"


def up(words: list[str]) -> None:
    vllm = "vllm" in words
    pairs = [w for w in words if w != "vllm"] or [f"{n}={g}" for n, g in household.DEFAULT.items()]
    if any("=" not in pair for pair in pairs):
        raise LabError(f"say NAME=GPUS, where GPUS is one of {', '.join(PROFILES)}")
    specs = {name: NodeSpec(gpus, vllm=vllm) for name, gpus in (pair.split("=", 1) for pair in pairs)}
    engine.ready()
    household.remove_orphans()
    household.remove_group(household.BY_HAND)
    with engine.timed(f"{len(specs)} machines up", 0):
        made = household.start(specs, HOME, household.BY_HAND)
    for name, node in made.nodes.items():
        say(f"  {name:<14}{node.address:<14}{node.spec.gpus}")
    say(f"log in:      ssh -F {made.ssh_config} {next(iter(made.nodes))}      (user {node.user}; also root)")
    say(
        f"known hosts: {made.known_hosts}\nidentity:    {made.identity}\n"
        f"model:       {made.model} on every machine"
    )
    say(
        f"GPUs:        edit {made[next(iter(specs))].folder}/lab/gpu/devices while it runs, or another's\n"
        "inventory:   python -m tests.lab inventory"
    )


def down() -> None:
    engine.ready()
    household.remove_group(household.BY_HAND)  # not the machines of tests that run meanwhile
    docker("network", "rm", engine.NETWORK, check=False)


def status() -> None:
    columns = '{{.Label "lab-name"}}\t{{.Label "lab-address"}}\t{{.Status}}\t{{.Label "lab-group"}}'
    print(docker("ps", "-a", "--filter", f"label={LABEL}", "--format", columns), end="")


def inventory() -> None:
    print("nodes:")
    for line in docker(
        "ps",
        "--filter",
        f"label={LABEL}",
        "--filter",
        f"label=lab-group={household.BY_HAND}",
        "--format",
        '{{.Label "lab-name"}} {{.Label "lab-address"}}',
    ).splitlines():
        name, address = line.split()
        print(f"  {name}:\n    host: {address}\n    user: homelab\n    identity: {HOME}/.ssh/id_ed25519")


def main(words: list[str]) -> int:
    command, rest = (words[0], words[1:]) if words else ("", [])
    try:
        if command == "up":
            up(rest)
        elif command == "down":
            down()
        elif command == "status":
            status()
        elif command == "inventory":
            inventory()
        elif command == "ssh" and rest:
            return subprocess.call(
                ["ssh", "-F", str(HOME / ".ssh/config"), *rest], env=os.environ | {"HOME": str(HOME)}
            )
        elif command == "images":
            engine.ready()
            ensure_seed("vllm" in rest)
            print("\n".join(wanted("vllm" in rest)))
        else:
            print(__doc__)
            return 2
    except LabError as error:
        say(f"lab: {error}")
        return 1
    return 0


sys.exit(main(sys.argv[1:]))
