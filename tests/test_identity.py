"""What runs stays as it is: a later homelab, another controller, another way to the node or a driver that
counts otherwise change nothing. What somebody asks for changes that, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from homelab import endpoints
from homelab.facts import Facts, Interface, Survey
from homelab.inventory import Inventory, load
from homelab.placement import place
from homelab.plan import Options, Plan, diff
from homelab.render import render
from homelab.secrets import Secrets
from tests.machines import HUB, KEYS, MIB, deployed, laptop, pi, server, survey, tiny_gguf, workstation
from tests.release import ENVIRON, RELEASES

AS_IT_IS = Options()
ROOT = Path(__file__).parent.parent
TEXT = """\
gateway: {node: pi}
nodes:
  workstation: {host: 192.168.1.10}
  server: {host: 192.168.1.11}
  laptop: {host: 192.168.1.12, runtime: native}
  pi: {host: 192.168.1.2, runtime: native}
models:
  big: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: {min: 4096, max: 32768}, node: workstation}
  split: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 40960, concurrency: 4, args: {tp: 2}}
  tiny: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: laptop}
"""


def nodes() -> dict[str, Facts]:
    gguf = (tiny_gguf(),)
    own = laptop(weights=gguf, docker=None, programs={"llama-server": "/usr/local/bin/llama-server"})
    return {"workstation": workstation(), "server": server(), "laptop": own, "pi": pi(docker=None)}


def planned(
    text: str,
    found: Survey,
    keys: Secrets = KEYS,
    options: Options = AS_IT_IS,
    environ: dict[str, str] | None = None,
) -> tuple[Inventory, Plan]:
    inventory = load(text, "inventory.yml")
    layout = place(inventory, found)
    services = render(inventory, layout, found, keys, environ or {})
    return inventory, diff(inventory, layout, services, found, options)


def running(text: str = TEXT, **changed: Callable[[Facts], Facts]) -> Survey:
    """The household once the plan was carried out; `changed` by node is what its facts have become since."""
    _, plan = planned(text, survey(HUB, **nodes()))
    assert {c.action for c in plan.changes} == {"create"}, plan.layout.unplaced
    now = {n: f.model_copy(update={"services": deployed(plan.services, n)}) for n, f in nodes().items()}
    return survey(HUB, **{n: changed[n](f) if n in changed else f for n, f in now.items()})


def touched(plan: Plan) -> dict[str, str]:
    return {c.service: c.action for c in plan.todo}


def test_nothing_is_touched_where_nothing_changed() -> None:
    assert touched(planned(TEXT, running())[1]) == {}


def test_a_driver_that_reports_4_mib_less_changes_nothing() -> None:
    def less(facts: Facts) -> Facts:
        gpus = [
            g.model_copy(update={"memory_total_bytes": (g.memory_total_bytes or 0) - 4 * MIB})
            for g in facts.gpus
        ]
        return facts.model_copy(update={"gpus": tuple(gpus)})

    assert touched(planned(TEXT, running(workstation=less, server=less))[1]) == {}


def test_another_path_of_ssh_changes_nothing() -> None:
    def by_vpn(facts: Facts) -> Facts:
        interfaces = (*facts.interfaces, Interface(name="wg0", addresses=("10.8.0.5",)))
        return facts.model_copy(update={"server_address": "10.8.0.5", "interfaces": interfaces})

    text = TEXT.replace("{host: 192.168.1.10}", "{host: workstation.vpn}").replace("192.168.1.11", "10.8.0.5")
    assert touched(planned(text, running(workstation=by_vpn, server=by_vpn))[1]) == {}


def test_an_address_that_the_machine_lost_is_left() -> None:
    def moved(facts: Facts) -> Facts:
        interfaces = (Interface(name="eth0", addresses=("192.168.1.77",)),)
        return facts.model_copy(update={"server_address": "192.168.1.77", "interfaces": interfaces})

    text = TEXT.replace("{host: 192.168.1.10}", "{host: workstation.local}")
    _, plan = planned(text, running(workstation=moved))
    assert touched(plan) == {"big": "replace", "gateway": "replace"}
    reasons = {c.service: c.reason for c in plan.todo}
    assert reasons["big"] == "address 192.168.1.10 → 192.168.1.77"
    assert "url of workstation/big" in reasons["gateway"]


def test_an_address_that_somebody_wrote_is_obeyed() -> None:
    text = TEXT.replace("{host: 192.168.1.10}", "{host: 192.168.1.10, address: 192.168.1.99}")
    assert touched(planned(text, running())[1]) == {"big": "replace", "gateway": "replace"}


def test_a_key_that_means_what_was_meant_anyway_changes_nothing() -> None:
    text = TEXT.replace(
        "context: 2048, node: laptop", "context: {min: 2k, max: 2048}, concurrency: 2, node: laptop"
    )
    text = text.replace("args: {tp: 2}", "args: {--tensor_parallel_size: 2}")
    assert touched(planned(text, running())[1]) == {}


def test_a_new_key_of_the_cluster_replaces_whoever_has_it_and_offline_it_is_not_compared() -> None:
    other = Secrets(gateway_key=SecretStr("sk-other"), engine_secret=SecretStr("test"))
    _, plan = planned(TEXT, running(), other)
    assert [(c.service, c.reason) for c in plan.todo] == [("gateway", "another key")]
    offline = Secrets(gateway_key=SecretStr("sk-offline"), engine_secret=SecretStr("offline"))
    assert touched(planned(TEXT, running(), offline, Options(keys=False))[1]) == {}


def test_another_image_in_the_inventory_replaces_its_engine_only() -> None:
    text = TEXT + "images: {vllm: 'vllm/vllm-openai:v0.34.0'}\n"
    assert touched(planned(text, running())[1]) == {"big": "replace", "split": "replace"}
    # The gateway is no container here.
    assert touched(planned(TEXT + "images: {litellm: 'x/y:1'}\n", running())[1]) == {}


def test_a_service_that_stopped_is_started_as_it_lies_there() -> None:
    found = running()
    facts = found.nodes["laptop"].facts
    assert facts is not None
    old = facts.services[0].model_copy(
        update={"state": "stopped", "spec": "0123456789ab", "directory": "/home/me/x"}
    )
    [wanted] = [
        c.wanted
        for c in planned(
            TEXT, survey(HUB, **{**nodes_of(found), "laptop": facts.model_copy(update={"services": (old,)})})
        )[1].changes
        if c.action == "restart"
    ]
    assert wanted is not None
    assert (wanted.spec, wanted.directory, wanted.files, wanted.already) == (
        "0123456789ab",
        "/home/me/x",
        (),
        True,
    )


def nodes_of(found: Survey) -> dict[str, Facts]:
    return {name: report.facts for name, report in found.nodes.items() if report.facts is not None}


# A later release, as a copy of this one that was changed.


@pytest.fixture
def later(tmp_path: Path) -> Path:
    for folder in ("homelab", "agent", "templates"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "inventory.yml").write_text(TEXT)
    (tmp_path / "facts.json").write_text(running().model_dump_json())
    (tmp_path / "home").mkdir()
    return tmp_path


def edit(path: Path, pattern: str, new: str) -> None:
    text, count = re.subn(pattern, new, path.read_text(), flags=re.MULTILINE)
    assert count, (path, pattern)
    path.write_text(text)


def plan_of(later: Path, *words: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HOMELAB_"))}
    env |= {"HOME": str(later / "home"), "PYTHONPATH": str(later)}
    command = [sys.executable, "-m", "homelab", "plan", "--facts", "facts.json", "--json", *words]
    done = subprocess.run(command, cwd=later, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    changes: list[dict[str, Any]] = json.loads(done.stdout)["changes"]
    return {c["service"]: c["action"] for c in changes if c["action"] != "keep"}


def test_a_later_release_with_new_keys_changes_nothing_until_somebody_writes_one(later: Path) -> None:
    edit(later / "homelab/__init__.py", r"^__version__ = .*$", '__version__ = "9.9.9"')
    inventory = later / "homelab/inventory.py"
    edit(inventory, r"^    away: bool = False$", '    away: bool = False\n    colour: str = "red"')
    edit(inventory, r"^DEFAULT_CONCURRENCY = 2$", "DEFAULT_CONCURRENCY = 4")
    concurrency = "    concurrency: Count = DEFAULT_CONCURRENCY"
    edit(inventory, f"^{concurrency}$", f'{concurrency}\n    colour: str = "red"')
    edit(inventory, r"^    port: Port = 4000$", '    port: Port = 4000\n    colour: str = "red"')
    assert plan_of(later) == {}
    edit(later / "inventory.yml", r"source: /models/tiny.gguf,", "source: /models/tiny.gguf, colour: blue,")
    assert plan_of(later) == {"tiny": "replace"}


def test_a_later_release_with_other_packages_images_and_files_changes_nothing_unasked(later: Path) -> None:
    lock = later / "templates/native/litellm.lock"
    lock.write_text(lock.read_text() + "# one package was bumped\n")
    assert plan_of(later) == {}
    assert plan_of(later, "--upgrade") == {"gateway": "replace"}
    edit(later / "homelab/engines/vllm.py", r"vllm-openai:v[\d.]+", "vllm-openai:v9.0.0")
    (later / "templates/native/supervise.py").write_text("# another supervisor\n")
    assert plan_of(later) == {}
    assert plan_of(later, "--upgrade") == {"gateway": "replace", "big": "replace", "split": "replace"}
    edit(later / "templates/compose.yml.j2", r"stop_grace_period: 20s", "stop_grace_period: 30s")
    assert plan_of(later) == {}


# Releases that were made: their households are taken over.

HOUSEHOLDS = sorted(p.parent for p in RELEASES.glob("*/*/inventory.yml"))


@pytest.mark.parametrize("folder", HOUSEHOLDS, ids=["/".join(p.parts[-2:]) for p in HOUSEHOLDS])
def test_the_household_of_a_release_is_taken_over_as_it_is(folder: Path) -> None:
    """`inventory.yml` and `survey.json`, with the labels that it wrote, are data of that release."""
    found = Survey.model_validate_json((folder / "survey.json").read_text())
    text = (folder / "inventory.yml").read_text()
    _, plan = planned(text, found, environ=ENVIRON)
    services = [s for r in found.nodes.values() if r.facts for s in r.facts.services]
    assert sorted(c.action for c in plan.changes) == ["keep"] * len(services), plan.todo
    labels = {
        (node, s.name): s.labels for node, r in found.nodes.items() if r.facts for s in r.facts.services
    }
    for p in plan.layout:  # what it keeps is what the labels say, not what this homelab would choose today
        numbers = json.loads(labels[p.node, p.service]["homelab.placement"])
        assert (p.port, p.request.context, list(p.gpus)) == (
            numbers["port"],
            numbers["context"],
            numbers["gpus"],
        )
        assert p.kept


@pytest.mark.parametrize(
    "change",
    [
        {"gpu_memory_utilization": [[]]},
        {"gpu_memory_utilization": "x" * 99},
        {"gpu_memory_utilization": 10**400},
        {"terms": [["model", [], "exact", "device"]]},
        {"terms": [["model", 1, "exact"]]},
        {"gpus": [[]]},
        {"gpus": 5},
        {"port": "x"},
        {"port": 10**400},
        {"context": -1},
        {"variant": True},
        {"variant": []},
        {"flags": []},
        {"kv_cache_bytes": 0.5},
        {"runtime": {}},
    ],
)
def test_a_label_that_cannot_be_what_it_says_is_planned_anew(change: dict[str, object]) -> None:
    """It ended in a TypeError, or without memory."""

    def damaged(facts: Facts) -> Facts:
        services = []
        for s in facts.services:
            numbers = json.loads(s.labels["homelab.placement"]) | change if s.role == "engine" else {}
            labels = {**s.labels, "homelab.placement": json.dumps(numbers)}
            services.append(s.model_copy(update={"labels": labels}))
        return facts.model_copy(update={"services": tuple(services)})

    inventory, plan = planned(TEXT, seen := running(server=damaged))
    assert {p.model for p in plan.layout} >= {"big"}
    assert endpoints.running(inventory, seen)
