"""What a node says is a stranger's word: whatever it is, it is that node's problem, and no other exception
than ours, no address and no path of the node's choosing comes of it."""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
from rich.cells import cell_len
from rich.text import Text
from typer.testing import CliRunner

from homelab import endpoints, logs, status, terminal
from homelab.cli import app
from homelab.deploy import apply
from homelab.discover import Discovery, discover, read_models
from homelab.documents import discover_document, plan_document
from homelab.errors import DeployError, HomelabError, NodeError
from homelab.facts import DeployedService, NodeReport, Survey, parse_facts
from homelab.inventory import Inventory, load
from homelab.nodes.local import LocalSession
from homelab.pipeline import Household, listed
from homelab.placement import place
from homelab.plan import Options, Plan, diff, outdated
from homelab.render import render
from homelab.service import cluster_directory, revision_folder
from homelab.ui import discover as discover_screen
from homelab.ui import plan as plan_screen
from homelab.ui import status as status_screen
from homelab.ui import why
from homelab.ui.bars import Part, bar
from tests.machines import HUB, KEYS, deployed, pi, survey, tiny_gguf, workstation

TEXT = """\
gateway: {node: bad}
nodes: {bad: {host: 192.168.1.10}, good: {host: 192.168.1.2}}
models:
  q: {engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: 8192, node: bad}
  t: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: good}
  b: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, replicas: 1}
"""
HOUSE = load(TEXT, "inventory.yml")
GOOD = pi(weights=(tiny_gguf(),))
HUGE = 10**30
DEEP = "[" * 100_000 + "]" * 100_000


def decided(inventory: Inventory, seen: Survey) -> Plan:
    layout = place(inventory, seen)
    return diff(inventory, layout, render(inventory, layout, seen, KEYS, {}), seen, Options())


def household_as_it_runs() -> dict[str, Any]:
    """What the node would say with everything deployed."""
    facts = workstation(weights=(tiny_gguf(),))
    first = decided(HOUSE, survey(HUB, bad=facts, good=GOOD))
    running = facts.model_copy(update={"services": deployed(first.services, "bad")})
    document = json.loads(running.model_dump_json())
    for each in document["services"]:
        each["directory"] = f"/home/me/.local/share/homelab/home/{each['name']}/{each['spec']}"
        each["container"] = "0123456789ab"
    document["ports"] = [{"port": 22, "address": "0.0.0.0", "process": "sshd"}]
    document["resolved"] = {"nas": ["192.168.1.10"]}
    document["programs"] = {"llama-server": "/usr/bin/llama-server"}
    document["problems"] = [{"source": "gpus", "message": "a fan is loud"}]
    return document


DOCUMENT = household_as_it_runs()
ENGINE = next(i for i, s in enumerate(DOCUMENT["services"]) if s["role"] == "engine")
GATEWAY = next(i for i, s in enumerate(DOCUMENT["services"]) if s["role"] == "gateway")
Place = tuple[str | int, ...]


def label(name: str, *values: Any, of: int = ENGINE) -> list[tuple[Place, Any]]:
    return [(("services", of, "labels", f"homelab.{name}"), value) for value in values]


def at(*place: str | int, values: Sequence[Any]) -> list[tuple[Place, Any]]:
    return [(place, value) for value in values]


def placement(**changed: Any) -> list[tuple[Place, Any]]:
    """The label of the placement with one number made another."""
    numbers = json.loads(DOCUMENT["services"][ENGINE]["labels"]["homelab.placement"])
    return label("placement", json.dumps({**numbers, **changed}))


BYTES: list[Any] = [0, 1, -1, 2**63 - 1, 2**63, HUGE, 1e300, "x", True]
PATHS: list[Any] = ["relative/x", "/a:/b", "/a/../../b", "/a\nb", "/a\x00b", "~", "/" + "a" * 5000, 5, []]
NAMES: list[Any] = ["", "..", ".", "../../../x", "a/b", "/etc", "a\nb", "-rf", "x" * 300, "ü", "A B", 5, None]
ADDRESSES: list[Any] = [
    "1@evil.example",
    "evil.example",
    "127.0.0.1/../x",
    "[::1]",
    "::1%x]@evil.example",
    "fe80::1%eth0",
    "1.2.3.4\n",
    "0.0.0.0",
    "",
    " ",
]
PORTS: list[Any] = [
    "1@evil.example:80/",
    "0",
    "-1",
    "65536",
    "99999999",
    "4000/..",
    "४०००",
    "0x50",
    " 80",
    "8_0",
]

PAYLOADS: list[tuple[Place, Any]] = [
    *label("port", *PORTS),
    *label("port", *PORTS, of=GATEWAY),
    *label("address", *ADDRESSES),
    *label("address", *ADDRESSES, of=GATEWAY),
    *label("gpus", "," * 10_000, "GPU-x", "../..", "\x00"),
    *label(
        "asked", "[]", "{", DEEP, '{"model": 5}', '{"model": {"source": []}}', '{"model": {"context": {}}}'
    ),
    *label(
        "asked",
        '{"endpoints": 5}',
        '{"endpoints": [5]}',
        '{"endpoints": [{}]}',
        '{"endpoints": [{"id": []}]}',
        '{"endpoints": [{"id": 5}]}',
        '{"endpoints": {"id": "x"}}',
        '{"endpoints": null}',
        '{"endpoints": [{"id": "x", "url": {}}]}',
        of=GATEWAY,
    ),
    *label("keys", "[]", "5", '{"x": []}', DEEP),
    *label("image", "", ":::", "x" * 10_000, "\x1b[2J"),
    *label("engine", "", "../x", "none"),
    *label("placement", "null", "{}", DEEP, "9" * 5000, '{"bytes": "x"}'),
    *placement(port=0),
    *placement(port=70_000),
    *placement(port=HUGE),
    *placement(bytes=-1),
    *placement(bytes=2**62),
    *placement(context=0),
    *placement(context=2**62),
    *placement(variant=5),
    *placement(variant=-1),
    *placement(gpus=["GPU-none"]),
    *placement(gpus=[]),
    *placement(gpus=["GPU-4090-0"] * 3),
    *placement(terms=[]),
    *placement(terms=[["x", 2**62, "exact", "device"]] * 2000),
    *placement(terms=[["x", 1, "?", "?"]]),
    *placement(flags={"host": "0.0.0.0"}),
    *placement(flags={"": []}),
    *placement(runtime="native"),
    *placement(gpu_memory_utilization=1024),
    *placement(gpu_memory_utilization=0),
    *placement(gpu_memory_utilization=None),
    *at("services", ENGINE, "name", values=NAMES),
    *at("services", ENGINE, "cluster", values=NAMES),
    *at("services", ENGINE, "spec", values=[*NAMES, "xyz", "abc", "0" * 200]),
    *at("services", ENGINE, "project", values=[*NAMES[1:-1], "--help"]),
    *at("services", ENGINE, "directory", values=[*PATHS[2:], "../../x", ".."]),
    *at("services", ENGINE, "container", values=["--help", "a b", "", "a\nb"]),
    *at("services", ENGINE, "socket", values=PATHS),
    *at("services", ENGINE, "python", values=[*PATHS, "-c", "python3 -c x"]),
    *at(
        "services",
        ENGINE,
        "serves",
        values=[["../x"], ["q", "t", "b"], ["x"] * 100_000, "q", 5, [[]], ["q"] * 3],
    ),
    *at("services", ENGINE, "role", values=["", "gateway", "Engine\n", "x" * 5000]),
    *at("services", ENGINE, "state", values=["missing", "gone", "unhealthy", 5]),
    *at("services", ENGINE, "runtime", values=["podman", "native", None]),
    *at("services", ENGINE, "labels", values=[{}, [], None, {"x": 5}, {str(i): "" for i in range(10_000)}]),
    *at("services", ENGINE, "gpu_memory_bytes", values=BYTES),
    *at("services", ENGINE, "restarts", values=[-1, HUGE]),
    *at("services", ENGINE, "detail", values=["x" * 10**6, "\x1b]0;x\x07", ""]),
    *at("services", GATEWAY, "name", values=["q", "../gateway"]),
    *at("services", GATEWAY, "serves", values=[[], ["x"] * 3000]),
    *at("services", values=[None, {}, "x", [None], [5], [[]], [{}], [DOCUMENT["services"][0]] * 10_000]),
    *at("services", values=[[DOCUMENT["services"][ENGINE]] * 3]),
    *at("gpus", 0, "memory_total_bytes", values=BYTES),
    *at("gpus", 0, "memory_free_bytes", values=BYTES),
    *at("gpus", 0, "uuid", values=["", "a,b", "a\nb", "$(x)", "x" * 5000, "../x", None]),
    *at("gpus", 0, "vendor", values=["", "amd", "cpu", "../x", "NVIDIA", "none"]),
    *at("gpus", 0, "compute_capability", values=["x", "", "nan", "inf", "-1", "9" * 400, "8.9.1", "0"]),
    *at("gpus", 0, "name", values=["", "x" * 10**5, "\x1b[2J", "\n\n"]),
    *at("gpus", 0, "index", values=[-1, HUGE, "x"]),
    *at("gpus", 0, "container_obstacle", values=["x" * 10**5, "\n", ""]),
    *at("gpus", 0, "power_watts", values=[1e400, "nan"]),
    *at("gpus", 0, "mig", values=[True]),
    *at("gpus", 0, "processes", values=[[DOCUMENT["gpus"][0]["processes"][0]] * 100_000]),
    *at("gpus", 0, "processes", 0, "memory_bytes", values=BYTES),
    *at("gpus", 0, "processes", 0, "service", values=["q", "", "x" * 5000]),
    *at(
        "gpus",
        0,
        "mig_devices",
        values=[[{"uuid": "M", "name": "m", "memory_total_bytes": 0, "memory_free_bytes": 5}]],
    ),
    *at("gpus", values=[[DOCUMENT["gpus"][0]] * n for n in (2, 9, 5000)]),
    *at("memory_total_bytes", values=BYTES),
    *at("memory_available_bytes", values=BYTES),
    *at("home", values=PATHS),
    *at("hub_cache", values=PATHS),
    *at("python_path", values=[*PATHS, "-c", "x y"]),
    *at("programs", values=[{"llama-server": p} for p in PATHS]),
    *at("server_address", values=ADDRESSES[:-2]),
    *at("interfaces", 0, "addresses", values=[[a] for a in ADDRESSES]),
    *at("interfaces", 0, "addresses", values=[["192.168.1.10"] * 100_000, ["10.0.0.1"], []]),
    *at("interfaces", values=[[DOCUMENT["interfaces"][0]] * 20_000, None]),
    *at("resolved", values=[{"nas": ["evil.example"]}, {"nas": 5}, {str(i): [] for i in range(20_000)}]),
    *at("docker", "socket", values=PATHS),
    *at("docker", "error", values=["x" * 10**5, "\n"]),
    *at("docker", "reachable", values=[False, "x"]),
    *at("docker", "compose_version", values=["", "x" * 5000]),
    *at("docker", values=[5, [], {}]),
    *at("disks", 0, "free_bytes", values=BYTES),
    *at("disks", 0, "path", values=["", "x", "\x00"]),
    *at("disks", values=[[DOCUMENT["disks"][0]] * 50_000]),
    *at("ports", 0, "port", values=[0, -1, 65536, HUGE, "x"]),
    *at("ports", 0, "address", values=["", "evil", "*"]),
    *at("ports", values=[[DOCUMENT["ports"][0]] * 200_000]),
    *at(
        "weights",
        0,
        "header",
        values=[5, [], {}, {"format": []}, {"format": "gguf"}, {"format": "gguf", "tensors": 5}],
    ),
    *at("weights", 0, "header", "metadata", "llama.block_count", values=[HUGE, -1, "x", 0, 10**9]),
    *at(
        "weights",
        0,
        "header",
        "tensors",
        values=[5, [[]], [["a", [0], "F32", -5]], [["a", [HUGE], "?", HUGE]]],
    ),
    *at("weights", 0, "bytes", values=BYTES),
    *at("weights", 0, "revision", values=["../../x", "/x", "a\nb"]),
    *at("weights", 0, "error", values=["x" * 10**5]),
    *at("weights", values=[[DOCUMENT["weights"][0] | {"header": None}] * 50_000]),
    *at(
        "unlisted", values=[5, {"docker": 5}, {"docker": ["x" * 10**5]}, {"docker": [], "x": ["y"] * 50_000}]
    ),
    *at(
        "problems",
        values=[[{"source": "x", "message": "y" * 10**5}], [DOCUMENT["problems"][0]] * 50_000, [5]],
    ),
    *at("cpu", "cores", values=[0, -1, HUGE, "x"]),
    *at("cpu", "model", values=["", "x" * 10**5]),
    *at("schema_version", values=[0, 2, HUGE, "x"]),
    *at("hostname", values=["", "x" * 10**5, "\x1b[2J", 5]),
    *at("machine_id", values=["", "x" * 10**5, "id-pi"]),
    *at("secrets_id", values=["", "x" * 10**5]),
    *at("user", values=["$(x)", "a\nb", "x" * 10**5]),
]


def answer(place: Place, value: Any) -> bytes:
    document = copy.deepcopy(DOCUMENT)
    inner: Any = document
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return json.dumps(document).encode()


def as_discovered(text: bytes) -> Discovery:
    """As `discover` puts one node's answer beside another's."""
    try:
        report, errors = NodeReport(reachable=True, facts=parse_facts(text)), {}
    except NodeError as e:
        failure = {"message": e.message, "cause": e.cause, "hint": e.hint}
        report, errors = NodeReport.model_validate({"reachable": False, "error": failure}), {"bad": e}
    seen = Survey(nodes={"bad": report, "good": NodeReport(reachable=True, facts=GOOD)}, models=HUB)
    seen = Survey.model_validate_json(seen.model_dump_json())  # as it is remembered
    return Discovery(survey=seen, errors=errors)


def in_the_house(url: str) -> bool:
    """Whether it is http, an IP address and a port, and nothing else."""
    parts = urlsplit(url)
    ipaddress.ip_address(parts.hostname or "")
    return url.startswith("http://") and "@" not in url and parts.path == "" and 0 < (parts.port or 0) < 65536


def in_folder(path: str, folder: str) -> bool:
    return ".." not in PurePosixPath(path).parts and PurePosixPath(path).is_relative_to(folder)


def check_plan(inventory: Inventory, seen: Survey) -> None:
    plan = decided(inventory, seen)
    assert [p.node for p in plan.layout if p.model == "t"] == ["good"], "the other node does not plan"
    for service in plan.services:
        assert in_house_files(service.directory, [f.path for f in service.files])
        assert in_the_house(service.unit.url)
        for mount in service.unit.mounts:
            assert ":" not in mount.source and mount.source.startswith("/")
    for e in (*endpoints.placed(inventory, plan.layout.placements), *endpoints.running(inventory, seen)):
        assert in_the_house(e.url)
    for change in plan.changes:
        for old in change.actual:
            path = revision_folder(inventory.cluster, old.name, old.spec)
            assert (
                in_folder(path, cluster_directory(inventory.cluster)) and len(PurePosixPath(path).parts) == 6
            )
            for follow in (True, False):
                logs.LOGS[old.runtime](old, follow=follow, tail=5)
    outdated(plan, inventory, seen)
    json.dumps(plan_document(plan))
    fits(plan_screen.lines(plan, 80, verbose=True))
    fits(plan_screen.summary(plan, inventory, 80))
    for name in inventory.models:
        fits(why.lines(plan, name, 80))


def in_house_files(directory: str, paths: Sequence[str]) -> bool:
    own = re.fullmatch(r"(/home/me/)?\.local/share/homelab/home/[a-z0-9-]+/[0-9a-f]+", directory)
    return own is not None and all(
        in_folder(p, ".local/share/homelab/home") or in_folder(p, ".cache/homelab/native") for p in paths
    )


def check_status(inventory: Inventory, seen: Survey) -> None:
    here = list(endpoints.deployed(inventory, seen))
    instances = tuple(status._instance(n, s, away=False) for n, s in here if s.role == "engine")
    for i in instances:
        assert i.url is None or in_the_house(i.url)
    url = endpoints.gateway_url(inventory, seen)
    assert in_the_house(url)
    try:
        assert in_the_house(endpoints.proven_gateway(inventory, seen))
    except HomelabError:
        pass
    now = status.Status(
        gateway=status.GatewayStatus(node="bad", url=url, state="running", healthy=True),
        models=(status.ModelStatus(name="q", kind="chat", instances=instances),),
        nodes=seen.nodes,
    )
    fits(status_screen.lines(now, 80))
    fits(status_screen.house(now, "homelab plan", 80))


def fits(lines: Sequence[Text]) -> None:
    """No line is wider than the terminal, but for a word that is."""
    for line in lines:
        text = terminal.harmless(line.plain)
        assert not {"\n", "\t"} & set(text), text
        assert cell_len(text) <= 80 or any(cell_len(word) > 60 for word in text.split()), text


@pytest.mark.parametrize(
    ("place", "value"), PAYLOADS, ids=[f"{'.'.join(map(str, p))}-{n}" for n, (p, _) in enumerate(PAYLOADS)]
)
def test_a_hostile_answer_is_that_nodes_problem(place: Place, value: Any) -> None:
    discovery = as_discovered(answer(place, value))
    discover_document(HOUSE, discovery.survey)
    fits(discover_screen.lines(HOUSE, discovery.survey, 1.0, 80))
    check_status(HOUSE, discovery.survey)
    check_plan(HOUSE, discovery.survey)
    for_changes = listed(Household(inventory=HOUSE, path=Path("i"), environ={}), discovery)
    if for_changes.errors:
        assert set(for_changes.errors) == {"bad"}
        check_plan(HOUSE, for_changes.survey)


def test_what_it_would_say_is_whole() -> None:
    facts = parse_facts(json.dumps(DOCUMENT))
    assert json.loads(facts.model_dump_json()) == DOCUMENT
    assert not facts.unlisted
    check_plan(HOUSE, survey(HUB, bad=facts, good=GOOD))


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        (("services", ENGINE, "labels", "homelab.port"), "1@evil.example:80/", "homelab.port is no port"),
        (("services", ENGINE, "labels", "homelab.address"), "evil.example", "not an IP address"),
        (("services", ENGINE, "labels", "homelab.address"), "::1%x]@evil.example", "not an IP address"),
        (("services", ENGINE, "name"), "../../../x", "name"),
        (("services", ENGINE, "spec"), "../..", "spec"),
        (("services", ENGINE, "directory"), "/home/me/../you", "directory"),
        (("services", ENGINE, "state"), "gone", "state"),
        (("services", ENGINE), None, "DeployedService"),
    ],
)
def test_a_service_that_cannot_be_what_it_says_counts_as_not_listed(
    place: Place, value: Any, why: str
) -> None:
    discovery = as_discovered(answer(place, value))
    facts = discovery.survey.nodes["bad"].facts
    assert facts is not None
    assert len(facts.services) == len(DOCUMENT["services"]) - 1
    assert why in "".join(w for reasons in facts.unlisted.values() for w in reasons)
    for_changes = listed(Household(inventory=HOUSE, path=Path("i"), environ={}), discovery)
    assert for_changes.errors["bad"].kind == "services"
    plan = decided(HOUSE, for_changes.survey)
    assert {c.node for c in plan.todo} == {"good"}


def test_this_machines_own_name_and_every_kind_of_address_are_taken() -> None:
    for address in ("127.0.0.1", "::1", "fd00::5", "fe80::1%eth0", "192.168.1.10", "localhost", ""):
        facts = parse_facts(answer(("services", ENGINE, "labels", "homelab.address"), address))
        assert not facts.unlisted, address


def test_an_answer_has_a_limit() -> None:
    whole = json.dumps(DOCUMENT).encode()
    assert parse_facts(whole + b" " * ((16 << 20) - len(whole))).hostname == "workstation"
    for text in (whole + b" " * (16 << 20), "x" * ((16 << 20) + 1)):
        with pytest.raises(NodeError, match="too long"):
            parse_facts(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"5",
        b"{",
        b"\xff\xfe",
        b'"\\ud800"',
        DEEP.encode(),
        b"9" * 10_000,
        b"NaN",
        b"{}" * 2,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_what_is_no_document_is_an_error_of_the_node(text: bytes) -> None:
    discovery = as_discovered(text)
    assert set(discovery.errors) == {"bad"}
    check_plan(HOUSE, discovery.survey)


def test_one_node_that_lies_keeps_no_other_from_answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes that are this machine, one with a Python that says what it likes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    liar = tmp_path / "liar"
    said = answer(("gpus", 0, "memory_free_bytes"), -5).decode()
    (tmp_path / "said").write_text(said)
    liar.write_text(
        f"#!/bin/sh\ncase $* in *agent*) cat '{tmp_path}/said';; *) exec {sys.executable} \"$@\";; esac\n"
    )
    liar.chmod(0o755)
    house = load(
        f"gateway: {{node: good}}\nnodes: {{good: {{host: localhost, python: {sys.executable}}}}}\n"
        "models: {t: {engine: llamacpp, source: /models/tiny.gguf, context: 2048}}\n",
        "inventory.yml",
    )
    assert not asyncio.run(discover(house)).errors  # the agent lies there from now on
    lies = house.nodes["good"].model_copy(update={"python": str(liar)})
    discovery = asyncio.run(discover(house.model_copy(update={"nodes": {**house.nodes, "bad": lies}})))
    assert {n for n, r in discovery.survey.nodes.items() if r.facts} == {"good"}
    assert "memory_free_bytes" in discovery.errors["bad"].cause


def test_a_node_that_lies_when_asked_for_headers_keeps_no_other_model_from_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second round, where only planning asks."""
    monkeypatch.setenv("HOME", str(tmp_path))
    liar, said = tmp_path / "liar", tmp_path / "said"
    liar.write_text(f"#!/bin/sh\ncase $* in *agent*) cat '{said}';; *) exec {sys.executable} \"$@\";; esac\n")
    liar.chmod(0o755)
    house = load(
        "gateway: {node: n}\nnodes: {n: {host: localhost}}\n"
        "models: {t: {engine: llamacpp, source: /models/tiny.gguf}}\n",
        "inventory.yml",
    )
    assert not asyncio.run(discover(house)).errors
    lies = house.model_copy(
        update={"nodes": {"n": house.nodes["n"].model_copy(update={"python": str(liar)})}}
    )
    there = tiny_gguf().model_copy(update={"header": None})
    seen = survey(n=workstation(weights=(there,)))
    for text in ("", "{", "[]", "null", '{"weights": [{}]}', '{"weights": 5}', '{"weights": {"a": 1}}', DEEP):
        said.write_text(text)
        models = asyncio.run(read_models(lies, seen, {"t"}, {}, tmp_path))
        facts = models.nodes["n"].facts
        assert facts is not None and "cannot be read" in (facts.weights[0].error or ""), text[:20]


def test_render_writes_into_its_folder_alone(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["services"][ENGINE]["name"] = "../../../../../../outside"
    seen = json.loads(survey(HUB, good=GOOD).model_dump_json())
    seen["nodes"]["bad"] = {"reachable": True, "facts": document}
    (tmp_path / "facts.json").write_text(json.dumps(seen))
    (tmp_path / "inventory.yml").write_text(TEXT)
    out = tmp_path / "deep" / "out"
    words = ["-i", str(tmp_path / "inventory.yml"), "--facts", str(tmp_path / "facts.json"), "-o", str(out)]
    result = CliRunner().invoke(app, ["render", *words])
    assert result.exit_code != 70, result.output
    written = [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()]
    beside = [p for p in written if not p.is_relative_to("deep/out")]
    assert sorted(map(str, beside)) == ["facts.json", "inventory.yml"]
    assert len(written) > 2, result.output


@pytest.mark.parametrize(
    ("name", "spec"),
    [("..", "ab"), ("q", ".."), ("q", ""), ("", "ab"), ("a/b", "ab"), ("q", "../../x"), (".", "a")],
)
def test_nothing_outside_a_services_own_folder_is_removed(name: str, spec: str, tmp_path: Path) -> None:
    """Also where the types were gone around."""
    old = DeployedService.model_construct(
        cluster="home", name=name, spec=spec, runtime="native", state="stopped"
    )
    with pytest.raises(DeployError, match="no folder of its own"):
        asyncio.run(apply.drop(LocalSession("n"), "home", old))


@pytest.mark.parametrize("total", [0, 1, 24 << 30, 2**63 - 1])
@pytest.mark.parametrize("free", [-(2**62), -1, 0, 24 << 30, 2**63 - 1])
@pytest.mark.parametrize("parts", [(), (0,), (1 << 30,), (2**62, 2**62), (1,) * 500, (1 << 30,) * 500])
def test_a_bar_is_no_wider_than_its_width(total: int, free: int, parts: tuple[int, ...]) -> None:
    ours = [Part(kind="ours", name=f"service-{n}", bytes=size) for n, size in enumerate(parts)]
    rest = [Part(kind="others", name="others", bytes=total), Part(kind="free", name="free", bytes=free)]
    assert bar([*ours, *rest], 60).cell_len == 60


def test_many_devices_are_planned_in_time() -> None:
    one = DOCUMENT["gpus"][0] | {"processes": []}
    gpus = [one | {"uuid": f"GPU-{n}", "index": n} for n in range(64)]
    discovery = as_discovered(answer(("gpus",), gpus))
    assert not discovery.errors
    begun = time.monotonic()
    check_plan(HOUSE, discovery.survey)
    assert time.monotonic() - begun < 30
