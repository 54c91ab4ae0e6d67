"""How long homelab takes, as ratios against the least that the same work could cost, both in one run: make bench

Whole processes, one after the other in pairs (A B A B …), the median of the ratios. Parts that need the lab are left out without it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

PYTHON = sys.executable
HOMELAB = str(Path(sys.executable).with_name("homelab"))
PAIRS = 9
# A user's Python keeps what it compiled; here that may be switched off.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def seconds(command: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | None = None) -> float:
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - begun


def compare(
    what: str,
    limit: float,
    a: Sequence[str],
    b: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> None:
    seconds(a, env, cwd), seconds(b, env, cwd)  # warm the file cache
    pairs = [(seconds(a, env, cwd), seconds(b, env, cwd)) for _ in range(PAIRS)]
    ratios = sorted(x / y for x, y in pairs)
    first, second = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    print(
        f"| {what} | {first:.3f} s | {second:.3f} s | **{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {limit} |",
        flush=True,
    )


def in_the_lab() -> None:
    from tests.lab import engine
    from tests.lab.household import DEFAULT, start

    if reason := engine.obstacle():
        print(f"\nLeft out, for want of the lab: discover, deploy ({reason})")
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
            bare = [
                PYTHON,
                str(ROOT / "bench/bare_asyncssh.py"),
                str(household.identity),
                *(n["host"] for n in nodes.values()),
            ]
            compare(
                "`discover` of 3 nodes / bare asyncssh, one `python3` each",
                1.5,
                [HOMELAB, "discover"],
                bare,
                household.env,
                folder,
            )
            again = [HOMELAB, "deploy", "--yes"]
            compare(
                "`deploy` with nothing to do / `discover`",
                1.5,
                again,
                [HOMELAB, "discover"],
                household.env,
                folder,
            )
        finally:
            household.remove()


print("| A / B | A | B | A / B, median (range) | aim |\n|---|---|---|---|---|")
compare(
    "`homelab --help` / `python -c 'import typer'`", 2.6, [HOMELAB, "--help"], [PYTHON, "-c", "import typer"]
)
in_the_lab()
