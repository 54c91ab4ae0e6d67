"""Apps of the house: what an inventory may ask, what is written for it, what a deploy changes, and what its
key opens at the real LiteLLM."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from homelab import gateway, keys
from homelab.apps import apps, spelled
from homelab.deploy.order import waves
from homelab.deploy.remove import chosen
from homelab.errors import InventoryError
from homelab.facts import Facts, Survey
from homelab.inventory import load
from homelab.placement import place
from homelab.plan import Options, Plan, diff
from homelab.render import render
from homelab.secrets import Secrets
from homelab.service import Service
from homelab.status import AppStatus, GatewayStatus, Status
from homelab.ui import status as status_screen
from tests.machines import HUB, KEYS, deployed, machine, pi, survey, tiny_gguf, workstation
from tests.test_chat import House
from tests.test_gateway import litellm_python

ROOT = Path(__file__).parent.parent
__all__ = ["litellm_python"]
TEXT = """\
gateway: {node: pi}
nodes: {workstation: {host: 192.168.1.10}, pi: {host: 192.168.1.2}}
models:
  q: {engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: 8192}
  e: {kind: embedding, engine: llamacpp, source: /models/tiny.gguf, context: 512, node: workstation}
cloud: {claude: {model: anthropic/claude-sonnet-4-6, api_key: env:KEY}}
aliases: {coder: q, far: claude, "gpt-*": q}
front: {}
"""
APP = "apps: {page: {node: pi}}\n"


def nodes(**more: Any) -> dict[str, Facts]:
    return {"workstation": workstation(weights=(tiny_gguf(),)), "pi": pi(**more)}


def planned(
    text: str, found: Survey | None = None, secrets: Secrets = KEYS, *, known: bool = True
) -> tuple[Plan, Survey]:
    found = found or survey(HUB, **nodes())
    inventory = load(text, "inventory.yml")
    layout = place(inventory, found)
    services = render(inventory, layout, found, secrets, {"KEY": "sk-ant"}, keys=known)
    return diff(inventory, layout, services, found, Options(keys=known)), found


def after(plan: Plan) -> Survey:
    """The household once the plan was carried out."""
    return survey(
        HUB,
        **{
            name: facts.model_copy(update={"services": deployed(plan.services, name)})
            for name, facts in nodes().items()
        },
    )


def service(plan: Plan, name: str) -> Service:
    return next(s for s in plan.services if s.name == name)


def file(of: Service, name: str) -> str:
    return next(f.content for f in of.files if f.path.endswith(f"/{name}"))


def actions(plan: Plan) -> dict[str, str]:
    return {c.service: c.action for c in plan.changes}


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("{page: {node: nowhere}}", "apps.page.node: no node `nowhere`"),
        ("{page: {node: pi, app: open-webu}}", "no app `open-webu`, did you mean `open-webui`?"),
        ("{page: {node: pi, prot: 1}}", "apps.page.prot: unknown key, did you mean `port`?"),
        ("{page: {node: pi, port: 4000}}", "apps.page.port: port 4000 on pi is the gateway's"),
        ("{page: {node: pi}, two: {node: pi}}", "apps.two.port: port 3000 on pi is the app `page`'s"),
        ("{q: {node: pi}}", "apps.q: would have the same service name as q"),
        ("{gateway: {node: pi}}", "apps.gateway: would have the same service name as the gateway"),
        ("{page: {node: pi, models: [qq]}}", "apps.page.models: no model `qq`, did you mean `q`?"),
        ("{page: {node: pi, models: [gpt-*]}}", "apps.page.models: no model `gpt-*`"),
        ("{page: {node: pi, private: true, models: [far]}}", "`far` is outside the house"),
        ("{page: {node: pi, url: ftp://x}}", "apps.page.url: 'ftp://x' has characters"),
        ("{Page: {node: pi}}", "apps.Page"),
    ],
)
def test_a_mistake_is_said_with_its_line(line: str, mistake: str) -> None:
    with pytest.raises(InventoryError) as e:
        load(f"{TEXT}apps: {line}\n", "inventory.yml")
    assert any(m.startswith("inventory.yml:9: ") and mistake in m for m in e.value.mistakes), e.value.mistakes


def test_every_app_has_a_name_that_an_inventory_can_have_and_an_exact_image() -> None:
    for name, app in apps().items():
        load(f"{TEXT}apps: {{page: {{node: pi, app: {spelled(name)}}}}}\n", "inventory.yml")
        assert app.OFFER.name == spelled(name)
        assert app.OFFER.images["cpu"].rpartition(":")[2] not in ("latest", "main", "")


def test_it_has_its_own_key_a_volume_and_the_gateway_by_its_name() -> None:
    plan, _ = planned(TEXT + APP)
    page, front = service(plan, "page"), service(plan, "gateway")
    key = KEYS.app_key("page").get_secret_value()
    assert f"OPENAI_API_KEYS='{key}'\n" in file(page, "service.env")
    assert f"HOMELAB_APP_PAGE='{key}'\n" in file(front, "service.env")
    assert KEYS.gateway_key.get_secret_value() not in file(page, "service.env")
    for other in (f for s in plan.services for f in s.files if not f.path.endswith("/service.env")):
        assert key not in other.content, other.path
    compose = file(page, "compose.yml")
    assert '"OPENAI_API_BASE_URLS": "http://front:4000/v1"' in compose
    assert '"page-data:/app/backend/data"' in compose
    assert 'volumes: {"page-data": {"name": "homelab-home-page-data"}}' in compose
    assert 'image: "ghcr.io/open-webui/open-webui:v0.12.4"' in compose
    assert '"192.168.1.2:3000:3000"' in compose and "mem_limit: " in compose
    assert json.loads(file(front, "house.json"))["apps"]["page"]["models"] == ["claude", "coder", "far", "q"]


def test_a_private_app_is_told_of_no_model_outside_and_a_limited_one_of_its_own() -> None:
    both = "apps: {page: {node: pi, private: true}, two: {node: workstation, models: [q]}}\n"
    plan, _ = planned(TEXT + both)
    told = json.loads(file(service(plan, "gateway"), "house.json"))["apps"]
    assert (told["page"]["models"], told["page"]["private"]) == (["coder", "q"], True)
    assert (told["two"]["models"], told["two"]["private"]) == (["q"], False)
    # On another node than the gateway.
    assert '"OPENAI_API_BASE_URLS": "http://192.168.1.2:4000/v1"' in file(service(plan, "two"), "compose.yml")


def test_on_one_machine_it_is_on_loopback_and_without_docker_the_installed_program_is_run() -> None:
    text = "gateway: {node: a}\nnodes: {a: {host: localhost}}\napps: {page: {node: a, url: 'http://chat.home:3000'}}\n"
    plan, _ = planned(text, survey(HUB, a=machine("a")))
    compose = file(service(plan, "page"), "compose.yml")
    assert "network_mode: host" in compose and '"HOST": "127.0.0.1"' in compose
    assert '"OPENAI_API_BASE_URLS": "http://127.0.0.1:4000/v1"' in compose
    assert '"http://127.0.0.1:3000;http://localhost:3000;http://chat.home:3000"' in compose

    plan, _ = planned(text, survey(HUB, a=machine("a", docker=None)))
    assert "page" not in actions(plan)
    [refused] = [u for u in plan.layout.unplaced if u.model == "page"]
    assert "no Docker is in use on this node, and there is no `open-webui`" in refused.reason
    assert "uv tool install" in refused.reason

    facts = machine(
        "a", docker=None, programs={"open-webui": "/opt/open webui"}, python_path="/usr/bin/python3"
    )
    plan, _ = planned(text, survey(HUB, a=facts))
    page = service(plan, "page")
    assert json.loads(file(page, "service.json"))["argv"] == [
        "/bin/sh",
        "-c",
        "/usr/bin/python3 homelab_open_webui.py && exec '/opt/open webui' serve --host 127.0.0.1 --port 3000",
    ]
    # Beside what `homelab remove` takes away.
    assert f"DATA_DIR={facts.home}/.local/share/homelab-data/home/page\n" in file(page, "service.env")


def test_it_comes_after_the_gateway_which_alone_is_told_of_it() -> None:
    before, _ = planned(TEXT)
    plan, _ = planned(TEXT + APP, after(before))
    assert actions(plan) == {
        "e": "keep",
        "front": "keep",
        "gateway": "replace",
        "page": "create",
        "q": "keep",
    }
    [reason] = [c.reason for c in plan.changes if c.service == "gateway"]
    assert "+app page" in reason
    assert [[c.service for c in wave] for wave in waves(plan.todo)] == [["gateway"], ["page"]]
    again, _ = planned(TEXT + APP, after(plan))
    assert set(actions(again).values()) == {"keep"} and not any(c.newer for c in again.changes)
    gone, _ = planned(TEXT, after(plan))
    assert actions(gone) == {
        "e": "keep",
        "front": "keep",
        "gateway": "replace",
        "page": "remove",
        "q": "keep",
    }


def test_it_stays_through_what_is_not_its_business() -> None:
    plan, _ = planned(TEXT + APP)
    there = after(plan)
    for text in (
        TEXT.replace("coder: q", "coder: q, fast: q") + APP,
        TEXT + "apps: {page: {node: pi, models: [q], private: true}}\n",
        TEXT + "apps: {page: {node: pi}, two: {node: workstation}}\n",
    ):
        assert actions(planned(text, there)[0])["page"] == "keep", text
    assert actions(planned(TEXT + "apps: {page: {node: pi, port: 3001}}\n", there)[0])["page"] == "replace"
    # Keys that are not known for the moment change nothing.
    stand_ins = Secrets(gateway_key=SecretStr("sk-offline"), engine_secret=SecretStr("offline"))
    offline, _ = planned(TEXT + APP, there, stand_ins, known=False)
    assert set(actions(offline).values()) == {"keep"} and not any(c.newer for c in offline.changes)


def test_one_that_moves_says_that_its_data_stays() -> None:
    there = after(planned(TEXT + APP)[0])
    moved, _ = planned(TEXT + "apps: {page: {node: workstation}}\n", there)
    [arrives] = [c for c in moved.changes if c.service == "page" and c.action == "move"]
    assert arrives.reason == "from pi, where its data stays"
    # One of another name is another one.
    other, _ = planned(TEXT + "apps: {other: {node: workstation}}\n", there)
    assert (actions(other)["other"], actions(other)["page"]) == ("create", "remove")


def test_it_can_be_removed_by_itself() -> None:
    plan, _ = planned(TEXT + APP)
    inventory, there = load(TEXT + APP, "inventory.yml"), after(plan)
    assert [(n, s.name) for n, s in chosen(inventory, there, ["page"])] == [("pi", "page")]
    assert [s.name for _, s in chosen(inventory, there, ["q"])] == ["q"]
    with pytest.raises(InventoryError, match="No model or app `gateway`"):
        chosen(inventory, there, ["gateway"])


def test_a_port_of_an_app_is_given_to_no_model() -> None:
    plan, _ = planned(TEXT + "apps: {page: {node: workstation, port: 8000}}\n")
    ports = {s.name: s.unit.port for s in plan.services if s.node == "workstation"}
    assert ports["page"] == 8000 and len(set(ports.values())) == len(ports), ports


def test_keys_of_apps_are_the_same_on_every_node_and_nobody_elses() -> None:
    names = ["page", "two"]
    all_keys = [f(n).get_secret_value() for n in names for f in (KEYS.app_key, KEYS.app_secret)]
    all_keys += [KEYS.engine_key("page", "page").get_secret_value(), KEYS.gateway_key.get_secret_value()]
    assert len(set(all_keys)) == len(all_keys)
    assert replace(KEYS, gateway_key=SecretStr("other")).app_key("page") == KEYS.app_key("page")


# Open WebUI's settings

SETTINGS = ("openai.api_base_urls", "openai.api_keys")


def settings(folder: Path, *values: Any) -> list[Any]:
    """What its database has after another start, `values` being what it had before."""
    path = folder / "webui.db"
    database = sqlite3.connect(path)
    with database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS config (key TEXT PRIMARY KEY, value TEXT, updated_at BIGINT)"
        )
        for name, value in zip(SETTINGS, values, strict=False):
            database.execute("REPLACE INTO config VALUES (?, ?, 1)", (name, json.dumps(value)))
    done = start(folder)
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(database.execute("SELECT key, value FROM config").fetchall())
    database.close()
    return [json.loads(rows[name]) for name in SETTINGS if name in rows]


def start(folder: Path) -> subprocess.CompletedProcess[str]:
    told = {
        "DATA_DIR": str(folder),
        "OPENAI_API_BASE_URLS": "http://new:4000/v1",
        "OPENAI_API_KEYS": "sk-new",
    }
    command = [sys.executable, ROOT / "templates/homelab_open_webui.py"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **told})


@pytest.mark.parametrize(
    ("urls", "known", "expected"),
    [
        (["http://new:4000/v1"], ["sk-old"], (["http://new:4000/v1"], ["sk-new"])),
        (["http://old:4000/v1"], ["sk-new"], (["http://new:4000/v1"], ["sk-new"])),
        (
            ["https://api.example.org/v1", "http://old:4000/v1"],
            ["sk-theirs", "sk-new"],
            (["https://api.example.org/v1", "http://new:4000/v1"], ["sk-theirs", "sk-new"]),
        ),
        (
            ["https://api.example.org/v1"],
            [],
            (["https://api.example.org/v1", "http://new:4000/v1"], ["", "sk-new"]),
        ),
    ],
)
def test_the_gateway_is_put_into_its_settings_beside_what_its_administrator_added(
    tmp_path: Path, urls: list[str], known: list[str], expected: tuple[list[str], list[str]]
) -> None:
    assert settings(tmp_path, urls, known) == list(expected)
    assert settings(tmp_path) == list(expected)


def test_settings_that_cannot_be_read_stop_no_start(tmp_path: Path) -> None:
    assert start(tmp_path).returncode == 0
    assert not list(tmp_path.iterdir())
    assert settings(tmp_path, ["http://old"]) == [["http://old"]]
    (tmp_path / "webui.db").write_bytes(b"no database, but long enough to be looked at" * 100)
    done = start(tmp_path)
    assert (done.returncode, "they stay as they are" in done.stderr) == (0, True)


# its key, at the real LiteLLM


@pytest.fixture(scope="module")
def house(litellm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    inventory = load(
        "gateway: {node: a}\nnodes: {a: {host: h}}\nmodels:\n"
        "  house: {engine: llamacpp, source: /m.gguf}\n  other: {engine: llamacpp, source: /m.gguf}\n"
        "apps: {page: {node: a}, shy: {node: a, port: 3001, models: [other]}}\n",
        "inventory.yml",
    )
    made = House(tmp_path_factory.mktemp("home"), litellm_python, inventory.apps)
    made.supervise("start")
    yield made
    made.supervise("stop")
    made.engine.shutdown()
    made.engine.server_close()


@pytest.mark.native
def test_its_key_opens_the_models_that_chat_and_nothing_else(house: House) -> None:
    page, shy = "sk-of-page", "sk-of-shy"
    code, document = house.request("GET", "/v1/models", page)
    assert (code, sorted(m["id"] for m in document["data"])) == (200, ["coder", "house", "other"])
    assert sorted(m["id"] for m in house.request("GET", "/v1/models", shy)[1]["data"]) == ["other"]
    hello = {"messages": [{"role": "user", "content": "Hello"}]}
    for key, model, expected in (
        (page, "house", 200),
        (page, "coder", 200),
        (shy, "other", 200),
        (shy, "house", 403),
        (page, "vectors", 403),
        ("sk-of-nobody", "house", 403),
    ):
        said = house.request("POST", "/v1/chat/completions", key, {**hello, "model": model, "stream": True})
        assert said[0] == expected, (key, model, said)
    assert house.request("GET", "/model/info", page)[0] == 403
    assert house.request("GET", "/health", page)[0] == 403


@pytest.mark.native
def test_keys_of_people_work_beside_it_and_what_it_uses_is_counted(house: House) -> None:
    secret, key = keys.new("5" * 64, "6" * 32, 1.0, models=("house",))
    folder = house.folder / "keys"
    folder.mkdir(exist_ok=True)
    (folder / keys.FILE).write_text(keys.to_json({"anna": key}))
    body = {"messages": [{"role": "user", "content": "Hello"}], "model": "house", "stream": True}
    assert house.request("POST", "/v1/chat/completions", secret, body)[0] == 200
    assert house.request("POST", "/v1/chat/completions", "sk-of-page", body)[0] == 200
    ledger = sqlite3.connect(folder / "usage.sqlite", timeout=20)
    wanted = {keys.app_id("page"), key.id}
    for _ in range(100):
        try:
            found = {row[0] for row in ledger.execute("SELECT key FROM usage")}
        except sqlite3.OperationalError:  # nobody has counted yet
            found = set()
        if wanted <= found:
            break
        house.wait()
    ledger.close()
    assert wanted <= found
    assert gateway.app_variable("my-page") == "HOMELAB_APP_MY_PAGE"


# what is shown of it


@pytest.mark.parametrize(
    ("state", "healthy", "said"),
    [("running", True, "healthy"), ("running", False, "does not answer"), ("missing", False, "missing")],
)
def test_status_says_where_it_is_and_counts_it(state: str, healthy: bool, said: str) -> None:
    page = AppStatus(name="page", node="pi", url="http://pi:3000", state=state, healthy=healthy)
    front = GatewayStatus(node="pi", url=None, state="running", healthy=True)
    house_now = Status(gateway=front, models=(), nodes={}, apps=(page,))
    [line] = [t.plain for t in status_screen.lines(house_now, 100) if "page" in t.plain]
    assert line.split() == ["app", "page", "http://pi:3000", "on", "pi", *said.split()]
    assert house_now.unhealthy == (() if healthy else ("page",))
    assert replace(house_now, away=frozenset({"pi"})).unhealthy == ()
