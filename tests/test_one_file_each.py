"""A new engine, a new GPU vendor, a new client and a new app are one new file each: dropped into a copy of
the program, they are planned, rendered and listed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.machines import machine, qwen3, survey

ROOT = Path(__file__).parent.parent
TOY_ENGINE = '''
"""A toy engine."""
from collections.abc import Iterator, Mapping
from typing import Any

from homelab.engines import (
    ArgValue, Device, Efficiency, Footprint, Launch, Load, Offload, Reading, Request, Term, Trial, flags,
)
from homelab.engines import canonical as names
from homelab.models.shape import ModelShape
from homelab.program import Offer

NAME = "toy"
FORMATS = frozenset({"safetensors"})
RANK = 9
KINDS = frozenset({"chat"})
VENDORS = frozenset({"toyco"})
OFFER = Offer(name=NAME, images={"toyware": "example.org/toy:1"}, executable="toy-server")
PORT = 7000
HEALTH = "/alive"
CONTEXT_PATH = "/context"
METRICS_PATH = "/metrics"
KEY_VARIABLE = "TOY_KEY"
BUDGETED = False
IPC_HOST = False
MESSAGES = False
CACHES = ("/cache",)
OUTPUTS: tuple[str, ...] = ()
REFUSED = {"horn": "write `name`"}
FIT_ARGS: Mapping[str, frozenset[str] | None] = {"wheels": None}
EFFICIENCIES: Mapping[str, Efficiency] = {}


def canonical(args: Mapping[str, ArgValue]) -> dict[str, ArgValue]:
    return names(args, {"w": "wheels"}, REFUSED)


def drafter(args: Mapping[str, ArgValue]) -> str | None:
    return None


def device_count(args: Mapping[str, ArgValue]) -> int | None:
    return None


def footprint(shape: ModelShape, request: Request, device: Device) -> Footprint:
    terms = (Term(name="weights", bytes=shape.weights_bytes, grade="exact"),)
    return Footprint(terms=terms, kv_cache_bytes=0, kv_cache_tokens=0)


def reading(shape: ModelShape, request: Request, footprint: Footprint, device: Device) -> Reading:
    return Reading()


def command(launch: Launch) -> list[str]:
    return ["serve", launch.weights, "--port", str(launch.port), *flags(launch.request.args)]


def environment(launch: Launch) -> dict[str, str]:
    return {"TOY": "1"}


def trial(model: str, request: Request) -> Trial | None:
    return None


def served_context(document: Any) -> int | None:
    return None


def reported(log: str) -> dict[str, int]:
    return {}


def load(metrics: str) -> Load:
    return Load(running=len(metrics))


def smaller_cache(device: Device) -> dict[str, ArgValue]:
    return {}


def offloads(shape: ModelShape, device: Device) -> tuple[Offload, ...]:
    return ()


def notes(shape: ModelShape, request: Request, device: Device) -> Iterator[str]:
    yield "a toy"
'''
TOY_VENDOR = '''
"""A toy vendor's card."""
HOSTING = {
    "flavours": ("toyware",),
    "devices": ("/dev/toy0",),
    "groups": ("toys",),
    "visible": "TOY_VISIBLE_DEVICES",
}


def collect(problems):
    card = {"vendor": "toyco", "index": 0, "uuid": "TOY-1", "name": "Toy 9000", "processes": []}
    return [dict(card, memory_total_bytes=24 * 2**30, memory_free_bytes=23 * 2**30, memory_used_bytes=2**30)]


def container_obstacle(engine):
    return None
'''
TOY_CLIENT = '''
"""A toy client."""
from homelab.clients import Access, Setup, reading

TITLE = "Toy client"
BINARY = "toy-client"
INSTALL = "make a toy"
SOURCE = "https://example.org"
TESTED = "1, today"
TRAPS = ()


def setup(access: Access) -> Setup:
    return Setup(
        lines=(f"toy --at {access.url} --model {access.model.name} --key {reading(access.key_file)}",)
    )
'''
TOY_APP = '''
"""A toy app."""
from homelab.apps import Place
from homelab.program import Offer

NAME = "toy_page"
TITLE = "Toy page"
OFFER = Offer(name="toy-page", images={"cpu": "example.org/toy-page:1"})
FILES: tuple[str, ...] = ()
INSTALL = "make a toy page"
FIRST = "look at it"
PORT = 7100
HEALTH = "/fine"
DATA = "/kept"
KEY_VARIABLE = "TOY_PAGE_KEY"
SECRET_VARIABLE = "TOY_PAGE_SECRET"
MEMORY_LIMIT_BYTES = 2**29


def command(place: Place) -> tuple[str, ...]:
    return ("show", place.gateway_url)


def environment(place: Place) -> dict[str, str]:
    return {"TOY_PAGE_PORT": str(place.port)}
'''
INVENTORY = """\
gateway: {node: box}
nodes: {box: {host: 192.168.1.10}}
models:
  q: {engine: toy, source: Org/Q, context: 4096, args: {-w: 4}}
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The program as a checkout, with the four files."""
    for folder in ("homelab", "agent", "templates"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "homelab/engines/toy.py").write_text(TOY_ENGINE)
    (tmp_path / "agent/accelerators/toyco.py").write_text(TOY_VENDOR)
    (tmp_path / "homelab/clients/toy.py").write_text(TOY_CLIENT)
    (tmp_path / "homelab/apps/toy_page.py").write_text(TOY_APP)
    (tmp_path / "inventory.yml").write_text(INVENTORY)
    (tmp_path / "home").mkdir()
    return tmp_path


def run(copy: Path, *words: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HOMELAB_"))}
    env |= {"HOME": str(copy / "home"), "PYTHONPATH": str(copy), "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "homelab", *words], cwd=copy, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def saved(copy: Path, gpu: dict[str, Any]) -> str:
    """A survey of a machine with Docker whose card is as the toy vendor's file reports it."""
    facts = machine("box").model_dump(mode="json") | {"gpus": [gpu]}
    document = survey({"Org/Q": qwen3("Org/Q", 8, 36, 2560, 8)}, box=machine("box")).model_dump(mode="json")
    document["nodes"]["box"]["facts"] = facts
    (copy / "facts.json").write_text(json.dumps(document))
    return str(copy / "facts.json")


def test_the_agent_lists_the_card_and_the_plan_puts_the_model_on_it(copy: Path) -> None:
    (copy / "here.yml").write_text("gateway: {node: this}\nnodes: {this: {host: localhost}}\n")
    document = json.loads(run(copy, "discover", "-i", "here.yml", "--json"))
    [gpu] = document["nodes"]["this"]["facts"]["gpus"]
    assert gpu["name"] == "Toy 9000"

    facts = saved(copy, gpu)
    plan = json.loads(run(copy, "plan", "--facts", facts, "--json"))
    [placement] = plan["placements"]
    assert (placement["engine"], placement["image"], placement["gpus"]) == (
        "toy",
        "example.org/toy:1",
        ["TOY-1"],
    )
    assert placement["port"] == 7000

    run(copy, "render", "--facts", facts, "-o", "out")
    [compose] = [p for p in (copy / "out/box").rglob("compose.yml") if "/q/" in str(p)]
    text = compose.read_text()
    assert 'devices: ["/dev/toy0"]' in text and 'group_add: ["toys"]' in text
    assert 'command: ["serve", "Org/Q", "--port", "7000", "--wheels", "4"]' in text
    assert '"toy-cache0:/cache"' in text and 'name": "homelab-home-toy-cache0"' in text
    assert "/alive" in text and "reservations" not in text


def test_an_argument_that_the_engine_refuses_is_a_mistake_that_says_what_to_write(copy: Path) -> None:
    text = (copy / "inventory.yml").read_text()
    (copy / "inventory.yml").write_text(text.replace("{-w: 4}", "{horn: loud}"))
    done = subprocess.run(
        [sys.executable, "-m", "homelab", "plan"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "inventory.yml:4: models.q.args: `horn` is not yours to set: write `name`" in done.stderr


def test_without_docker_the_card_is_made_visible_to_a_process(copy: Path) -> None:
    gpu = {"vendor": "toyco", "index": 0, "uuid": "TOY-1", "name": "Toy 9000"}
    facts = json.loads(
        Path(
            saved(copy, gpu | {"memory_total_bytes": 24 * 2**30, "memory_free_bytes": 23 * 2**30})
        ).read_text()
    )
    facts["nodes"]["box"]["facts"] |= {"docker": None, "programs": {"toy-server": "/opt/toy-server"}}
    (copy / "facts.json").write_text(json.dumps(facts))
    run(copy, "render", "--facts", "facts.json", "-o", "out")
    [service] = [p for p in (copy / "out/box").rglob("service.json") if "/q/" in str(p)]
    assert json.loads(service.read_text())["argv"][0] == "/opt/toy-server"
    assert "TOY_VISIBLE_DEVICES=TOY-1\n" in service.with_name("service.env").read_text()


def test_fit_knows_the_engine_and_leaves_its_files_to_the_others(copy: Path) -> None:
    toy = json.loads(run(copy, "fit", "qwen3-4b", "--engine", "toy", "--json"))
    assert (toy["engine"], toy["notes"][0]) == ("toy", "a toy")
    assert json.loads(run(copy, "fit", "Qwen/Qwen3-4B-AWQ", "--json"))["engine"] == "vllm"


def test_the_client_is_listed(copy: Path) -> None:
    code = (
        "from homelab import clients\n"
        "from homelab.ui import connect, show\n"
        "access = clients.Access(url='http://pi:4000', key_file='/k', model=clients.Model(name='q'))\n"
        "show(connect.overview(access, dict.fromkeys(clients.clients()), 80))\n"
        "connect.client('toy', clients.clients()['toy'], access, None, '')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(copy)}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=env, capture_output=True, text=True, check=True
    )
    assert "toy            Toy client" in shown.stdout
    assert 'Type:\n  toy --at http://pi:4000 --model q --key "$(cat /k)"\n' in shown.stdout


def test_the_app_is_planned_and_rendered(copy: Path) -> None:
    gpu = {"vendor": "toyco", "index": 0, "uuid": "TOY-1", "name": "Toy 9000"}
    facts = saved(copy, gpu | {"memory_total_bytes": 24 * 2**30, "memory_free_bytes": 23 * 2**30})
    with (copy / "inventory.yml").open("a") as inventory:
        inventory.write("apps: {page: {node: box, app: toy-page}}\nimages: {toy-page: example.org/mine:2}\n")
    plan = json.loads(run(copy, "plan", "--facts", facts, "--json"))
    assert ("page", "create") in {(c["service"], c["action"]) for c in plan["changes"]}
    run(copy, "render", "--facts", facts, "-o", "out")
    [compose] = [p for p in (copy / "out/box").rglob("compose.yml") if "/page/" in str(p)]
    text = compose.read_text()
    assert 'image: "example.org/mine:2"' in text and '"page-data:/kept"' in text and "/fine" in text
    assert 'command: ["show", "http://gateway:4000"]' in text and "TOY_PAGE_PORT" in text
    keys = compose.with_name("service.env").read_text()
    assert "TOY_PAGE_KEY='sk-" in keys and "TOY_PAGE_SECRET='sk-" in keys
