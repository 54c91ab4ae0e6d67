"""What this machine remembers of a cluster: whose keys win, what is kept of nodes, one change at a time."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from homelab import pipeline, state
from homelab.errors import DeployError, HomelabError
from homelab.facts import Survey, parse_facts
from homelab.inventory import load
from homelab.measure import measure
from homelab.placement import place
from homelab.plan import Options, diff
from homelab.render import render
from homelab.secrets import Secrets
from homelab.service import cluster_directory
from tests.machines import HUB, KEYS, deployed, server, survey, tiny_gguf, workstation

ROOT = Path(__file__).parent.parent
OTHER = Secrets(gateway_key=SecretStr("sk-other"), engine_secret=SecretStr("other"))
ONE_MACHINE = "gateway: {node: a, port: 4999}\nnodes: {a: {host: localhost, runtime: native}}\n"
HOUSE = """\
gateway: {node: workstation}
nodes: {workstation: {host: 192.168.1.10}, server: {host: 192.168.1.11}}
cloud: {far: {model: anthropic/x, api_key: env:FAR_KEY}}
hub: {token: env:HF}
models:
  q: {engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: 8192, node: workstation}
  t: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: server}
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cluster's folder on this controller."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    (tmp_path / "home").mkdir()
    return state.directory("home")


@pytest.fixture
def homelab(tmp_path: Path, ours: Path) -> Run:
    (tmp_path / "inventory.yml").write_text(ONE_MACHINE)

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "NO_COLOR": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "homelab", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment | {"COLUMNS": "200", "PYTHONPATH": str(ROOT)} | more,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def node_keys(tmp_path: Path) -> Path:
    """Where the gateway's node, this machine, keeps the cluster's keys."""
    path = tmp_path / "home" / cluster_directory("home") / "secrets.json"
    path.parent.mkdir(parents=True)
    return path


def lying(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.glob("*") if p.name in ("secrets.json", "gateway.key")}


# keys


def test_plan_and_render_make_no_keys_and_a_refused_deploy_neither(homelab: Run, ours: Path) -> None:
    done = homelab("plan")
    assert (done.returncode, "1 create" in done.stdout) == (0, True), done.stderr
    assert "stand-ins" in homelab("render", "-o", "out").stderr
    assert homelab("deploy").returncode == 1
    assert lying(ours) == {}


def test_a_deploy_that_was_said_yes_to_makes_keys_before_anything_else(
    homelab: Run, tmp_path: Path, ours: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that there is nothing to install
        (tmp_path / "inventory.yml").write_text(ONE_MACHINE.replace("4999", str(taken.getsockname()[1])))
        done = homelab("deploy", "--yes")
    assert (done.returncode, "is in use by" in done.stderr) == (1, True), done.stderr
    secrets = state.load_secrets("home")
    assert secrets is not None
    assert lying(ours)["gateway.key"] == secrets.gateway_key.get_secret_value() + "\n"


def test_the_keys_on_the_gateways_node_win_and_nothing_is_asked_twice_where_they_are_ours(
    homelab: Run, ours: Path, node_keys: Path
) -> None:
    state.save_secrets("home", KEYS)
    node_keys.write_text(OTHER.to_json())
    done = homelab("plan")
    assert "Node `a` has other keys than this controller" in done.stderr
    assert lying(ours) == {"secrets.json": OTHER.to_json(), "gateway.key": "sk-other\n"}
    again = homelab("-v", "plan")
    assert "other keys" not in again.stderr and "secrets.json" not in again.stderr, again.stderr


def test_a_controller_without_keys_takes_the_nodes(homelab: Run, ours: Path, node_keys: Path) -> None:
    node_keys.write_text(OTHER.to_json())
    homelab("plan")
    assert lying(ours)["secrets.json"] == OTHER.to_json()


def test_keys_on_the_node_that_cannot_be_read_are_no_reason_to_make_others(
    homelab: Run, ours: Path, node_keys: Path
) -> None:
    node_keys.mkdir()
    done = homelab("deploy", "--yes")
    assert (done.returncode, "The keys on node `a` cannot be read" in done.stderr) == (4, True), done.stderr
    assert lying(ours) == {}


def test_the_agent_tells_keys_apart_as_the_controller_does(tmp_path: Path, node_keys: Path) -> None:
    def said() -> str | None:
        command = [sys.executable, "-m", "agent", json.dumps({"cluster": "home"})]
        home = {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
        return parse_facts(subprocess.run(command, capture_output=True, cwd=ROOT, env=home).stdout).secrets_id

    assert said() is None
    node_keys.write_text(KEYS.to_json())
    assert said() == KEYS.id != OTHER.id


@pytest.mark.parametrize("content", [None, "sk-of-yesterday\n"])
def test_the_gateways_key_by_itself_is_written_again_with_a_word(
    homelab: Run, ours: Path, content: str | None
) -> None:
    state.save_secrets("home", KEYS)
    (ours / "gateway.key").unlink()
    if content:
        (ours / "gateway.key").write_text(content)
    done = homelab("connect")
    assert "did not hold the gateway's key: it is written again" in done.stderr
    assert lying(ours)["gateway.key"] == "sk-test-gateway\n"
    assert (ours / "gateway.key").stat().st_mode & 0o777 == 0o600


def test_damaged_keys_are_taken_back_and_those_of_others_are_looked_at(ours: Path) -> None:
    ours.mkdir(parents=True)
    (ours / "secrets.json").write_text("{")
    with pytest.raises(HomelabError) as damaged:
        state.load_secrets("home")
    assert "rm " in damaged.value.hint
    (ours / "secrets.json").unlink()
    (ours / "secrets.json").mkdir()
    with pytest.raises(HomelabError) as unreadable:
        state.load_secrets("home")
    assert "rm " not in unreadable.value.hint and "ls -l" in unreadable.value.hint


# a saved survey


def facts_after_a_deploy() -> Survey:
    """What `discover --save` writes once the house was deployed with real keys."""
    inventory = load(HOUSE, "inventory.yml")
    fresh = survey(HUB, workstation=workstation(), server=server(weights=(tiny_gguf(),)))
    environ = {"FAR_KEY": "sk-real", "HF": "hf-real"}
    services = render(inventory, place(inventory, fresh), fresh, KEYS, environ)
    return survey(
        HUB,
        workstation=workstation(services=deployed(services, "workstation")),
        server=server(weights=(tiny_gguf(),), services=deployed(services, "server")),
    )


@pytest.mark.parametrize("environment", [{}, {"FAR_KEY": "sk-secret-value", "HF": "hf-secret-value"}])
def test_a_deployed_house_is_up_to_date_offline_and_its_secrets_stay_here(
    homelab: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "inventory.yml").write_text(HOUSE)
    (tmp_path / "facts.json").write_text(facts_after_a_deploy().model_dump_json())
    done = homelab("plan", "--facts", "facts.json", "--check", **environment)
    assert (done.returncode, "Everything is up to date" in done.stdout) == (0, True), done.stdout
    assert homelab("render", "-o", "out", "--facts", "facts.json", **environment).returncode == 0
    written = [p.read_text() for p in (tmp_path / "out").rglob("service.env")]
    assert any("offline" in text for text in written)
    assert not any("secret-value" in text for text in written)


def test_offline_a_change_is_told_without_a_word_on_keys() -> None:
    inventory = load(HOUSE.replace("context: 2048", "context: 4096"), "inventory.yml")
    house = facts_after_a_deploy()
    services = render(inventory, place(inventory, house), house, pipeline.placeholder_secrets(), {})
    plan = diff(inventory, place(inventory, house), services, house, Options(keys=False))
    assert {c.service: c.reason for c in plan.todo}["t"] == "context 2048 → 4096"
    assert not any("key" in c.reason for c in plan.todo)


# nodes


def test_a_node_that_was_taken_out_of_the_inventory_is_named_until_it_is_back(
    homelab: Run, tmp_path: Path, ours: Path
) -> None:
    house = facts_after_a_deploy()
    state.save_survey("home", survey(HUB, server=house.nodes["server"].facts or ""))
    for _ in range(2):  # it is not forgotten by the next survey
        done = homelab("plan")
        assert "server is not in the inventory any more: 1 service of this cluster ran there" in done.stdout
    assert json.loads(homelab("plan", "--json").stdout)["gone"] == {"server": ["t"]}
    (tmp_path / "inventory.yml").write_text(
        ONE_MACHINE.replace("}}", ", address: 192.168.0.9}, server: {host: 127.0.0.2, port: 1, away: true}}")
    )
    done = homelab("plan")
    assert (done.returncode, "not in the inventory" in done.stdout) == (0, False), done.stderr
    remembered = state.load_survey("home")
    assert remembered is not None
    assert (set(remembered.remembered), set(remembered.gone)) == ({"server"}, set())


def test_a_node_under_another_name_is_not_gone(homelab: Run, ours: Path) -> None:
    homelab("discover")
    before = state.load_survey("home")
    house = facts_after_a_deploy().nodes["server"].facts
    assert before is not None and before.nodes["a"].facts is not None and house is not None
    machine = before.nodes["a"].facts.machine_id
    if machine is None:
        pytest.skip("this machine has no machine-id")
    renamed = house.model_copy(update={"machine_id": machine})
    state.save_survey("home", survey(HUB, old=renamed))
    assert "not in the inventory" not in homelab("plan").stdout


def test_what_must_fetch_nothing_is_planned_on_a_full_disk() -> None:
    inventory = load(HOUSE, "inventory.yml")
    full = server(weights=(tiny_gguf(),), disk_gib=0)
    layout = place(inventory, survey(HUB, workstation=workstation(), server=full))
    assert {p.model for p in layout} == {"q", "t"}


def test_a_cache_that_cannot_be_written_fails_no_deploy(
    tmp_path: Path, ours: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    inventory, house = load(HOUSE, "inventory.yml"), facts_after_a_deploy()
    assert asyncio.run(measure(inventory, place(inventory, house), house, ())) == ()
    assert "What was measured is not remembered" in caplog.text


# one change at a time


def test_a_lock_that_was_removed_while_it_was_waited_for_locks_nobody_out_and_nobody_in(ours: Path) -> None:
    with state.lock("home"):
        with pytest.raises(DeployError, match="Another homelab") as refused, state.lock("home"):
            pass
        assert str(os.getpid()) in refused.value.cause
        state.forget("home")
        assert not ours.exists()
    with state.lock("home"):
        assert (ours / "lock").read_text() == str(os.getpid())


def test_a_file_that_is_no_lock_any_more_is_not_taken_for_one(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, removed = fcntl.flock, []

    def after_a_remove(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(True)
            (ours / "lock").unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", after_a_remove)
    with state.lock("home"), pytest.raises(DeployError, match="Another homelab"), state.lock("home"):
        pass
