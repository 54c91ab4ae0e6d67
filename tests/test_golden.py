"""Whole households: given an inventory and facts, exactly these files and this plan. `pytest
--update-golden` writes them anew."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from homelab.documents import plan_document
from homelab.facts import Facts, Survey
from homelab.inventory import Inventory, load
from homelab.pace import paced
from homelab.pipeline import load_cards, with_speeds
from homelab.placement import place
from homelab.plan import Plan, diff
from homelab.render import render
from homelab.ui import plan as screen
from tests.lab.engine import LabError
from tests.lab.wheels import compose_binary
from tests.machines import HUB, KEYS, deployed, household, laptop, machine, pi, survey, tiny_gguf, workstation

GOLDEN = Path(__file__).parent / "golden"
NASTY = 'it\'s $HOME `x` "y" #z\n{{ a }} \\ é'

CASES: dict[str, tuple[str, Survey]] = {
    "household": (Path("inventory.example.yml").read_text(), household()),
    "one-machine-native": (
        """\
cluster: this-machine
gateway: {node: this}
nodes: {this: {host: localhost, runtime: native}}
models: {tiny: {engine: llamacpp, source: ~/tiny.gguf, context: 2048}}
""",
        survey(this=machine("this", docker=None, weights=(tiny_gguf("~/tiny.gguf"),))),
    ),
    "one-machine-docker": (
        """\
gateway: {node: this}
nodes: {this: {host: localhost}}
models: {tiny: {engine: llamacpp, source: /models/tiny.gguf, context: 2048}}
""",
        survey(this=machine("this", weights=(tiny_gguf(),))),
    ),
    "strings-that-bite": (
        f"""\
gateway: {{node: workstation, version: v1.106.2}}
nodes: {{workstation: {{host: 192.168.1.10}}}}
models:
  bites:
    engine: vllm
    source: Qwen/Qwen3-4B-AWQ
    context: 4096
    args: {{hf-overrides: {json.dumps(NASTY)}, enforce-eager: true, stop: [{json.dumps(NASTY)}, b]}}
""",
        survey(HUB, workstation=workstation()),
    ),
    "kinds-and-cloud": (
        """\
gateway: {node: pi, port: 4001}
hub: {endpoint: "http://192.168.1.9:8088", token: env:HF_TOKEN}
nodes: {pi: {host: pi.local}, laptop: {host: laptop.local, images: {llamacpp: "example.org/llama:mine"}}}
models:
  embed: {kind: embedding, engine: llamacpp, source: /models/tiny.gguf, context: 512, node: laptop}
  rank: {kind: rerank, engine: llamacpp, source: /models/tiny.gguf, context: 512, node: laptop}
  chat: {engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: 4096}
cloud: {claude: {model: anthropic/claude-sonnet-4-6, api_key: env:ANTHROPIC_API_KEY}}
fallbacks: {claude: [chat]}
""",
        survey(HUB, pi=pi(), laptop=laptop(weights=(tiny_gguf(),))),
    ),
    "with-an-app": (
        """\
gateway: {node: pi}
nodes: {pi: {host: pi.local}, laptop: {host: laptop.local}}
models: {tiny: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: laptop}}
apps: {chat: {node: pi, private: true}, guests: {node: laptop, port: 3001, models: [tiny]}}
""",
        survey(HUB, pi=pi(), laptop=laptop(weights=(tiny_gguf(),))),
    ),
}
ENVIRON = {"HF_TOKEN": "hf_test", "ANTHROPIC_API_KEY": "sk-ant-$test"}


def planned(text: str, found: Survey) -> tuple[Inventory, Plan]:
    inventory = load(text, "inventory.yml")
    layout = paced(place(inventory, found), load_cards())
    plan = diff(inventory, layout, render(inventory, layout, found, KEYS, ENVIRON), found)
    return inventory, with_speeds(plan)


def shown(inventory: Inventory, plan: Plan) -> str:
    lines = [*screen.lines(plan, 120, verbose=True), *screen.summary(plan, inventory, 120)]
    return "".join(f"{line.plain}\n" for line in lines)


@pytest.mark.parametrize("case", CASES)
def test_a_household_renders_to_exactly_these_files(case: str, request: pytest.FixtureRequest) -> None:
    inventory, plan = planned(*CASES[case])
    files = {
        f"{s.node}/{s.name}/{f.path.rpartition('/')[2]}": f.content
        for s in plan.services
        for f in s.files
        if "/tools-" not in f.path
    }
    files |= {
        "plan.txt": shown(inventory, plan),
        "plan.json": json.dumps(plan_document(plan), indent=1) + "\n",
    }
    folder = GOLDEN / case
    if request.config.getoption("--update-golden"):
        shutil.rmtree(folder, ignore_errors=True)
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content)
    there = {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}
    assert set(there) == set(files)
    for path, content in files.items():
        assert content == there[path], path


@pytest.fixture(scope="module")
def compose() -> list[str]:
    """`docker compose`, or the plugin's binary by itself: it needs no engine to check a file."""
    if (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        return ["docker", "compose"]
    try:
        return [str(compose_binary())]
    except LabError as e:
        pytest.skip(f"no Compose plugin, and none to be had: {e}")


@pytest.mark.parametrize("path", sorted(str(p.relative_to(GOLDEN)) for p in GOLDEN.rglob("compose.yml")))
def test_compose_accepts_every_golden_file_and_reads_back_what_was_meant(
    path: str, compose: list[str]
) -> None:
    command = [*compose, "-f", str(GOLDEN / path), "config"]
    quiet = subprocess.run([*command, "-q"], capture_output=True, text=True)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    read = subprocess.run([*command, "--format", "json"], check=True, capture_output=True)
    [service] = json.loads(read.stdout)["services"].values()
    if "strings-that-bite" in path and "bites" in path:
        assert service["command"].count(NASTY.replace("$", "$$")) == 2


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (planned(*CASES["household"])[1] for _ in range(2))
    assert [s.files for s in first.services] == [s.files for s in second.services]


def test_no_key_stands_anywhere_but_in_0600_files() -> None:
    for case in CASES:
        _, plan = planned(*CASES[case])
        keys = [s.get_secret_value() for service in plan.services for s in service.unit.secrets.values()]
        assert keys
        for service in plan.services:
            for file in service.files:
                if any(k in file.content for k in keys):
                    assert file.path.endswith(".env")
                    assert file.mode == 0o600
        assert not any(k in json.dumps(plan_document(plan)) + repr(plan.services) for k in keys)


def test_a_plan_that_was_carried_out_is_empty() -> None:
    for case, (text, found) in CASES.items():
        _, plan = planned(text, found)
        nodes = {}
        for name, report in found.nodes.items():
            assert isinstance(report.facts, Facts)
            nodes[name] = report.facts.model_copy(update={"services": deployed(plan.services, name)})
        _, again = planned(text, survey(dict(found.models), **nodes))
        assert not again.todo, (case, again.todo)
