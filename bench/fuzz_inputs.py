"""Feeds what a user may write and what a node may answer to planning, guided by what each input makes it do
that earlier ones did not.

    python bench/fuzz_inputs.py [inventory|facts|labels] [-runs=100000] [-max_total_time=600] [CORPUS]

needs `pip install atheris==3.0.0` (Linux; not one of the project's own requirements). `inventory` is the text
of an inventory, planned and rendered for one machine; `facts` is a node's document; `labels` are those of a
service that runs, as the next plan, status and the endpoints read them. Anything but our own errors, and
anything that takes more than 2 GiB, stops it; the input is then in a file beside it."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
MEMORY = 2 << 30

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed: pip install atheris==3.0.0 (Linux)")

import pydantic  # noqa: E402, F401  so that it is not instrumented with ours
import yaml  # noqa: E402, F401

with atheris.instrument_imports(include=["homelab"]):
    from homelab import endpoints, status
    from homelab.errors import HomelabError
    from homelab.facts import Facts, parse_facts
    from homelab.inventory import Inventory, load
    from homelab.placement import place
    from homelab.plan import Options, diff
    from homelab.render import render

from tests.machines import HUB, KEYS, deployed, pi, survey, tiny_gguf, workstation  # noqa: E402

HOUSE = """\
gateway: {node: n}
nodes: {n: {host: 192.168.1.10}}
models:
  t: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, args: {parallel: 2}}
"""
FACTS = workstation(weights=(tiny_gguf(),))
EXAMPLE = (Path(__file__).parent.parent / "inventory.example.yml").read_text()


def planned(inventory: Inventory, facts: Facts) -> None:
    """From what was read to what would be shown."""
    seen = survey(HUB, **dict.fromkeys(inventory.nodes, facts))
    layout = place(inventory, seen)
    services = render(inventory, layout, seen, KEYS, dict.fromkeys(inventory.variables(), "x"))
    diff(inventory, layout, services, seen, Options())
    endpoints.running(inventory, seen)
    endpoints.gateway_url(inventory, seen)
    for service in facts.services:
        status._instance("n", service, away=False)


def of_inventory(data: bytes) -> None:
    with contextlib.suppress(HomelabError, UnicodeDecodeError):
        inventory = load(data.decode(), "i")
        if len(inventory.nodes) <= 4 and len(inventory.models) <= 6:
            planned(inventory, FACTS)


def of_facts(data: bytes) -> None:
    with contextlib.suppress(HomelabError):
        planned(load(HOUSE, "i"), parse_facts(data))


def of_labels(data: bytes) -> None:
    try:
        labels = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(labels, dict):
        return
    text = {str(k): str(v) for k, v in labels.items()}
    service = RUNNING[0].model_copy(update={"labels": text, "role": text.get("homelab.role", "engine")})
    with contextlib.suppress(HomelabError):
        planned(load(HOUSE, "i"), FACTS.model_copy(update={"services": (service, *RUNNING[1:])}))


def running() -> tuple[object, ...]:
    seen, inventory = survey(HUB, n=FACTS), load(HOUSE, "i")
    return tuple(deployed(render(inventory, place(inventory, seen), seen, KEYS, {}), "n"))


RUNNING = running()


VALUES: list[object] = [
    None,
    True,
    -1,
    0,
    1,
    2**63,
    10**30,
    -0.5,
    1e300,
    "",
    "x",
    "0",
    "\ud800",
    [],
    [[]],
    {},
]


def reshaped(data: bytes, max_size: int, seed: int) -> bytes:
    """A document with one value made another, inside the documents that its strings hold too; half of the
    time bytes, which end as no document mostly."""
    chance = random.Random(seed)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return bytes(atheris.Mutate(data, max_size))
    if chance.random() < 0.3 or not isinstance(document, dict | list):
        return bytes(atheris.Mutate(data, max_size))
    return json.dumps(_reshape(document, chance)).encode()[:max_size]


def _reshape(value: object, chance: random.Random) -> object:
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.dumps(_reshape(json.loads(value), chance))
    if not value or not isinstance(value, dict | list) or chance.random() < 0.15:
        return chance.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = chance.choice(list(keys))
    if chance.random() < 0.1:
        del value[key]  # type: ignore[arg-type]
    else:
        value[key] = _reshape(value[key], chance)  # type: ignore[index]
    return value


def seeds(target: str) -> dict[str, bytes]:
    """Good inputs to begin with."""
    if target == "inventory":
        return {"house": HOUSE.encode(), "example": EXAMPLE.encode()}
    if target == "facts":
        on = FACTS.model_copy(update={"services": RUNNING})
        return {f.hostname: f.model_dump_json().encode() for f in (FACTS, pi())} | {
            "running": on.model_dump_json().encode()
        }
    return {s.name: json.dumps(dict(s.labels)).encode() for s in RUNNING}


def main() -> None:
    targets = {"inventory": of_inventory, "facts": of_facts, "labels": of_labels}
    target = sys.argv.pop(1) if sys.argv[1:] and sys.argv[1] in targets else "inventory"
    if all(a.startswith("-") for a in sys.argv[1:]):
        folder = Path(tempfile.mkdtemp(prefix="homelab-fuzz-"))
        for name, content in seeds(target).items():
            (folder / name).write_bytes(content)
        sys.argv.append(str(folder))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    argv = [*sys.argv, "-max_len=16384", "-rss_limit_mb=0", "-timeout=20"]
    if target == "inventory":
        atheris.Setup(argv, of_inventory)
    else:
        atheris.Setup(argv, targets[target], custom_mutator=reshaped)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
