"""Three machines, from nothing to answers and back to nothing. The tests run in their order, on one
household."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.house import House, eventually, llama
from tests.lab.fixtures import Lab
from tests.lab.household import start
from tests.lab.hub import Hub
from tests.lab.models import tiny_reranker

pytestmark = pytest.mark.lab
SERVICES = {
    "server/hubbed",
    "server/vectors",
    "server/ranks",
    "laptop/pair",
    "workstation/pair",
    "workstation/own",
    "server/gateway",
    "server/front",
}
CHATS = ("hubbed", "own", "pair")


@pytest.fixture(scope="module")
def hub(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    repo = lab.gguf_repo(tmp_path_factory.mktemp("repo"), "Smol-Q4_K_M.gguf", "Smol-Q8_0.gguf")
    with lab.hub({"Org/Smol-GGUF": repo}) as running:
        yield running


@pytest.fixture(scope="module")
def home(lab: Lab, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("work")
    household = start(
        {"workstation": "rtx4090", "server": "2x3090", "laptop": "laptop3070"},
        tmp_path_factory.mktemp("home"),
    )
    shutil.copy(lab.gguf, folder / "own.gguf")
    tiny_reranker(folder / "ranks.gguf")
    house = House(household, folder)
    house.write(
        gateway="server",
        front={},
        hub={"endpoint": hub.url},
        models={
            "hubbed": llama("Org/Smol-GGUF:Q4_K_M", context=1024, concurrency=2, node="server", gpu=0),
            "vectors": llama(lab.model, kind="embedding", node="server", gpu=0),
            "ranks": llama("./ranks.gguf", kind="rerank", node="server", gpu=1),
            "own": llama("./own.gguf", node="workstation"),
            "pair": llama(lab.model, replicas=2),
        },
    )
    yield house
    household.remove()


def test_discover_tells_what_each_machine_has(home: House) -> None:
    document = home.homelab("discover", "--json").json
    assert document["schema_version"] == 1 and document["cluster"] == "home"
    assert {
        n: [g["name"].removeprefix("NVIDIA GeForce ") for g in r["facts"]["gpus"]]
        for n, r in document["nodes"].items()
    } == {
        "workstation": ["RTX 4090"],
        "server": ["RTX 3090", "RTX 3090"],
        "laptop": ["RTX 3070 Laptop GPU"],
    }
    for report in document["nodes"].values():
        assert report["reachable"] and report["error"] is None and report["away"] is False
        facts = report["facts"]
        assert (
            facts["docker"]["reachable"]
            and facts["docker"]["compose_version"]
            and all(gpu["container_obstacle"] is None for gpu in facts["gpus"])
        )
        assert facts["problems"] == [] and facts["services"] == []
        assert {d["purpose"] for d in facts["disks"]} >= {"models"}
    [gpu] = document["nodes"]["workstation"]["facts"]["gpus"]
    assert gpu["memory_total_bytes"] == (24564 - 458) << 20 and gpu["memory_used_bytes"] == 812 << 20
    shown = home.homelab("discover").out
    assert "3 nodes, 3 reachable" in shown and shown.rstrip().endswith("Next: homelab plan")


def test_plan_shows_and_changes_nothing(home: House) -> None:
    said = home.homelab("plan")
    assert (
        "8 create on" in said.out
        and "no prompt can leave the house" in said.out
        and said.out.rstrip().splitlines()[-1].startswith("Next: homelab deploy ")
    )
    document = home.homelab("plan", "--json").json
    assert {c["action"] for c in document["changes"]} == {"create"} and document["unplaced"] == []
    for p in document["placements"]:
        assert sum(t["bytes"] for t in p["terms"] if t["where"] != "host") == p["bytes"]
        assert p["address"] == home[p["node"]].address
    home.homelab("plan", "--check", code=5)
    assert list(home.containers()) == []


def test_deploy_without_a_terminal_wants_yes(home: House) -> None:
    said = home.homelab("deploy", code=1)
    assert "without a terminal" in said.err and "homelab deploy --yes" in said.err
    assert list(home.containers()) == []


def test_deploy_brings_all_of_it_up(home: House, hub: Hub) -> None:
    said = home.homelab("deploy", "--yes")
    for model, words in {
        "hubbed": r'"\S+',
        "own": r'"\S+',
        "pair": r'"\S+',
        "vectors": "576 dimensions",
        "ranks": r"order (0, 1|1, 0)$",
    }.items():
        line = rf"^{model} +on \S+/{model} +ready in [\d.]+ s +(first token|answer) [\d.]+ s +{words}"
        assert re.search(line, said.out, re.MULTILINE)
    assert f"Gateway  {home.url}" in said.out
    assert set(home.running()) == SERVICES
    # The engine itself fetched the file that was asked for, into the cache of the node's user.
    assert hub.paths("/Org/Smol-GGUF/resolve/*/Smol-Q4_K_M.gguf") and not hub.paths("*Smol-Q8_0*")
    assert home["server"].run("ls /home/homelab/.cache/huggingface/hub").stdout.split() == [
        "models--Org--Smol-GGUF"
    ]


def test_engines_on_one_gpu_start_one_after_the_other(home: House) -> None:
    """Docker's own times: the later one is started only once the health check of the earlier one was
    passed."""
    shared: dict[str, list[dict]] = {}
    for node, c in home.containers():
        for gpu in filter(None, c["Config"]["Labels"]["homelab.gpus"].split(",")):
            shared.setdefault(f"{node} {gpu}", []).append(c)
    assert max(len(c) for c in shared.values()) >= 2
    for containers in shared.values():
        containers.sort(key=lambda c: c["State"]["StartedAt"])
        for earlier, later in itertools.pairwise(containers):
            healthy = next(
                check["End"] for check in earlier["State"]["Health"]["Log"] if check["ExitCode"] == 0
            )
            # Docker keeps the last five checks only: this says something as long as the deploy is fresh.
            if len(earlier["State"]["Health"]["Log"]) < 5:
                assert healthy <= later["State"]["StartedAt"]


@pytest.mark.parametrize("model", CHATS)
def test_answers_stream_through_the_gateway(home: House, model: str) -> None:
    assert len(home.streamed(model)) > 1


def test_the_gateway_embeds(home: House) -> None:
    """OpenAI's own clients ask for base64 where their user asked for nothing; others leave the format out."""
    body = {"model": "vectors", "input": ["one", "two"]}
    answer = home.post("/v1/embeddings", body)
    assert answer.status_code == 200, answer.text
    vectors = [d["embedding"] for d in answer.json()["data"]]
    assert [len(v) for v in vectors] == [576, 576] and vectors[0] != vectors[1]
    answer = home.post("/v1/embeddings", body | {"encoding_format": "base64"})
    assert answer.status_code == 200, answer.text
    for data, vector in zip(answer.json()["data"], vectors, strict=True):
        assert struct.unpack("<576f", base64.b64decode(data["embedding"])) == pytest.approx(vector, abs=1e-5)


def test_the_gateway_ranks(home: House) -> None:
    body = {
        "model": "ranks",
        "query": "Where are the potatoes?",
        "documents": ["Hello there.", "They are in the cellar.", "No."],
    }
    answer = home.post("/v1/rerank", body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    scores = [r["relevance_score"] for r in results]
    assert (
        {r["index"] for r in results} == {0, 1, 2}
        and len(set(scores)) == 3
        and scores == sorted(scores, reverse=True)
    )
    answer = home.post("/v1/rerank", body | {"top_n": 1})
    assert [r["index"] for r in answer.json()["results"]] == [results[0]["index"]]
    assert home.post("/v1/rerank", body, key="sk-wrong").status_code == 403


def test_both_replicas_answer(home: House) -> None:
    served = {home.chat("pair", tokens=1).headers["x-litellm-model-id"] for _ in range(24)}
    assert len(served) == 2 and {s.split("/")[1] for s in served} == {"pair"}


def test_nothing_answers_without_its_key(home: House) -> None:
    body = {"model": "own", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    assert httpx.post(f"{home.url}/v1/chat/completions", json=body, trust_env=False).status_code == 401
    assert home.post("/v1/chat/completions", body, key="sk-wrong").status_code == 403
    for node, c in home.containers():
        labels = c["Config"]["Labels"]
        if labels["homelab.role"] == "engine":
            url = f"http://{home[node].address}:{labels['homelab.port']}/v1/chat/completions"
            assert httpx.post(url, json=body, trust_env=False).status_code == 401


def test_status_tells_the_context_served_and_the_memory_used(home: House) -> None:
    document = home.homelab("status", "--json").json
    assert document["gateway"]["healthy"] and document["gateway"]["url"] == home.url
    assert Path(document["gateway"]["key_file"]).read_text().strip() == home.key
    assert {
        m["name"]: (m["kind"], m["healthy"], m["context"], len(m["placements"])) for m in document["models"]
    } == {
        "hubbed": ("chat", True, 1024, 1),
        "own": ("chat", True, 512, 1),
        "pair": ("chat", True, 512, 2),
        "vectors": ("embedding", True, 512, 1),
        "ranks": ("rerank", True, 512, 1),
    }
    held = {p.mib for node in home.nodes.values() for p in node.processes() if p.mib and p.mib != 502}
    for model in document["models"]:
        for p in model["placements"]:
            assert p["state"] == "running" and p["used_bytes"] >> 20 in held
            assert 0.5 < p["used_bytes"] / p["planned_bytes"] <= 1
    shown = home.homelab("status").out
    assert re.search(r"gateway  \S+  on server  healthy", shown) and home.key not in shown


def test_ports_are_bound_to_the_address_of_their_node_only(home: House) -> None:
    for node, c in home.containers():
        bound = [b for bindings in c["HostConfig"]["PortBindings"].values() for b in bindings]
        role = c["Config"]["Labels"]["homelab.role"]
        assert [b["HostIp"] for b in bound] == ["127.0.0.1" if role == "gateway" else home[node].address]
    for node in home.nodes.values():
        ports = {line.split()[3] for line in node.run("ss -Hltn").stdout.splitlines()}
        assert not [p for p in ports if p.startswith(("0.0.0.0:", "[::]:", "*:")) and not p.endswith(":22")]


def test_gateway_and_front_may_do_nothing_but_their_work(home: House) -> None:
    there = {c["Config"]["Labels"]["homelab.role"]: c["HostConfig"] for _, c in home.containers()}
    for role, capability in (("gateway", "DAC_OVERRIDE"), ("front", "NET_BIND_SERVICE")):
        host = there[role]
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and host["Memory"] > 0
        assert [c.removeprefix("CAP_") for c in host["CapAdd"]] == [capability]
        assert "no-new-privileges:true" in host["SecurityOpt"]
    assert httpx.get(f"{home.url}/ui/", trust_env=False).status_code == 404


def test_keys_lie_in_0600_files_and_nowhere_else(home: House) -> None:
    assert (
        (home.state / "gateway.key").stat().st_mode & 0o777
        == 0o600
        == (home.state / "secrets.json").stat().st_mode & 0o777
    )
    keys = {home.key}
    for name, node in home.nodes.items():
        files = node.run(
            "find /home/homelab/.local/share/homelab -type f -printf '%m %p\\n'", check=False
        ).stdout.splitlines()
        for line in files:
            mode, path = line.split(" ", 1)
            if path.endswith((".env", "secrets.json")):
                assert mode == "600", path
                keys |= set(re.findall(r"sk-[0-9a-f]{64}", node.run(f"cat '{path}'").stdout))
            elif not path.endswith(".gguf"):
                text = node.run(f"cat '{path}'").stdout
                assert not re.search(r"sk-[0-9a-f]{16}", text), path
        assert name == "laptop" or files
    assert len(keys) >= 6
    for name, c in home.containers():
        inspected = json.dumps(
            {
                "path": c["Path"],
                "args": c["Args"],
                "labels": c["Config"]["Labels"],
                "cmd": c["Config"]["Cmd"],
                "health": c["Config"]["Healthcheck"],
            }
        )
        seen = inspected + home[name].run(f"docker logs {c['Id']} 2>&1").stdout
        assert not any(key in seen for key in keys)
    for words in (["logs", "own"], ["logs", "gateway"], ["plan"], ["plan", "--json"], ["discover", "--json"]):
        shown = home.homelab(*words).all
        assert not any(key in shown for key in keys)
    for node in home.nodes.values():
        arguments = node.run("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '", check=False).stdout
        assert not any(key in arguments for key in keys)


def test_deploy_again_changes_nothing(home: House) -> None:
    before = home.running()
    said = home.homelab("deploy", "--yes")
    assert "Everything is up to date" in said.out and home.running() == before
    home.homelab("plan", "--check")


def test_ask_and_logs_show_what_runs(home: House) -> None:
    said = home.homelab("ask", "own", "Say hello", "--max-tokens", "8")
    assert said.out.strip() and "own on workstation/own" in said.err
    assert home.homelab("ask", "vectors", "Hello").out.strip() == "576 dimensions"
    assert re.fullmatch(r"order (0, 1|1, 0)", home.homelab("ask", "ranks", "Hello").out.strip())
    assert "server is listening" in home.homelab("logs", "own", "--tail", "9999").out
    lines = home.homelab("logs", "pair", "--tail", "1").out.splitlines()
    assert len(lines) == 2 and len({line.split()[0] for line in lines}) == 2


def test_a_second_controller_reads_the_keys_back(home: House) -> None:
    key, kept = home.key, home.state.rename(home.state.with_name("kept"))
    try:
        assert "Everything is up to date" in home.homelab("deploy", "--yes").out
        assert home.key == key
    finally:
        shutil.rmtree(home.state, ignore_errors=True)
        kept.rename(home.state)


def test_remove_leaves_nothing_but_caches(home: House) -> None:
    home["laptop"].run("docker run -d --name stranger --entrypoint sleep $(docker images -q | head -1) 1000")
    said = home.homelab("remove", "--yes")
    assert "Nothing of cluster `home` runs any more" in said.out
    assert list(home.containers()) == []
    eventually(
        lambda: (
            {n: node.used_mib() for n, node in home.nodes.items()}
            == {"workstation": [812], "server": [4, 4], "laptop": [10]}
        )
    )
    for name, node in home.nodes.items():
        assert node.run("ls -A /home/homelab/.local/share/homelab 2>/dev/null", check=False).stdout == ""
        assert node.run("docker network ls --filter name=home -q").stdout == ""
        assert [c["Names"] for c in node.containers()] == (["stranger"] if name == "laptop" else [])
    assert home["server"].run("ls /home/homelab/.cache/huggingface/hub").stdout.strip()
    assert "Nothing to remove" in home.homelab("remove", "--yes").out
