"""How long homelab takes, as ratios against the least that the same work could cost: make bench

Whole processes, one after the other in pairs (A B A B …), the median of the ratios. Parts that need what is
not here are left out, and the output says so."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.nodes import sshd  # noqa: E402

PYTHON = sys.executable
HOMELAB = str(Path(sys.executable).with_name("homelab"))
PAIRS = 9
# Of nodes on this one machine: the pairs of each size.
MANY = {50: 5, 200: 3}
ADDRESSES_OF_ONE_SSHD = 16
# A user's Python keeps what it compiled; here that may be switched off.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def seconds(command: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | None = None) -> float:
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} ended with {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - begun


def compare(
    what: str,
    limit: float,
    a: Sequence[str],
    b: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    pairs: int = PAIRS,
) -> None:
    seconds(a, env, cwd), seconds(b, env, cwd)  # warm the file cache
    times = [(seconds(a, env, cwd), seconds(b, env, cwd)) for _ in range(pairs)]
    ratios = sorted(x / y for x, y in times)
    first, second = (statistics.median(t[i] for t in times) for i in (0, 1))
    ratio = f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"| {what} | {first:.3f} s | {second:.3f} s | {ratio} | {limit} |", flush=True)


def bare(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The program that asks these nodes of an inventory with the least that it takes."""
    identity = next(iter(nodes.values()))["identity"]
    targets = [f"{n['user']}@{n['host']}:{n.get('port', 22)}" for n in nodes.values()]
    return [PYTHON, str(ROOT / "bench/bare_asyncssh.py"), identity, *targets]


def in_the_lab() -> None:
    from tests.lab import engine
    from tests.lab.household import DEFAULT, start

    if reason := engine.obstacle():
        print(f"\nLeft out, for want of the lab: discover of 3 nodes, deploy ({reason})")
        return
    with TemporaryDirectory() as folder:
        household = start(DEFAULT, Path(folder))
        try:
            nodes = household.inventory_nodes()
            model = {"engine": "llamacpp", "source": household.model, "context": 2048}
            inventory = {
                "gateway": {"node": "server"},
                "nodes": nodes,
                "models": {f"small-{n}": model | {"node": n} for n in nodes},
            }
            Path(folder, "inventory.yml").write_text(yaml.safe_dump(inventory))
            seconds([HOMELAB, "deploy", "--yes"], household.env, folder)
            discover = [HOMELAB, "discover"]
            again = [HOMELAB, "deploy", "--yes"]
            what = "`discover` of 3 nodes / bare asyncssh, one `python3` each"
            compare(what, 1.5, discover, bare(nodes), household.env, folder)
            what = "`deploy` with nothing to do / `discover`"
            compare(what, 1.5, again, discover, household.env, folder)
        finally:
            household.remove()


@contextmanager
def many_nodes(count: int, home: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Nodes that are all this machine, each at an address of its own. `home` is their user's and ours."""
    (home / ".ssh").mkdir()
    identity = sshd.new_key(home / ".ssh/id_ed25519")
    nodes: dict[str, dict[str, Any]] = {}
    known = ""
    with ExitStack() as running:
        for first in range(0, count, ADDRESSES_OF_ONE_SSHD):
            numbers = range(first, min(first + ADDRESSES_OF_ONE_SSHD, count))
            addresses = {f"node-{n:03}": f"127.0.1.{n + 1}" for n in numbers}
            server = running.enter_context(
                sshd.started(
                    home / f"sshd{first}",
                    addresses=list(addresses.values()),
                    identity=identity,
                    more=f"SetEnv HOME={home}\n",
                )
            )
            known += server.known_hosts(*addresses.values())
            login = {"port": server.port, "user": server.user, "identity": str(identity)}
            nodes |= {name: {"host": address} | login for name, address in addresses.items()}
        (home / ".ssh/known_hosts").write_text(known)
        yield nodes


def on_this_machine() -> None:
    if reason := sshd.obstacle():
        print(f"\nLeft out: discover of {' and '.join(map(str, MANY))} nodes ({reason})")
        return
    for count, pairs in MANY.items():
        with TemporaryDirectory() as name, many_nodes(count, Path(name)) as nodes:
            inventory = {"gateway": {"node": min(nodes)}, "nodes": nodes}
            Path(name, "inventory.yml").write_text(yaml.safe_dump(inventory))
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("SSH_", "XDG_", "HOMELAB_"))}
            what = f"`discover` of {count} nodes, all on this machine / bare asyncssh, all at once"
            compare(what, 1.0, [HOMELAB, "discover"], bare(nodes), kept | {"HOME": name}, name, pairs)


if __name__ == "__main__":
    print("| A / B | A | B | A / B, median (range) | aim |\n|---|---|---|---|---|")
    what = "`homelab --help` / `python -c 'import typer'`"
    compare(what, 2.6, [HOMELAB, "--help"], [PYTHON, "-c", "import typer"])
    on_this_machine()
    in_the_lab()
