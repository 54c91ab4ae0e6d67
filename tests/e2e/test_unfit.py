"""A machine that answers and cannot take what is asked of it: it says why before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.house import House, llama
from tests.lab.fixtures import Lab
from tests.lab.household import start
from tests.lab.hub import Repo
from tests.lab.node import NodeSpec

pytestmark = pytest.mark.lab
SPECS = {
    "front": NodeSpec(),
    "crowded": NodeSpec("rtx4090"),
    "nogroup": NodeSpec("rtx4090", docker_group=False),
    "nocompose": NodeSpec("rtx4090", compose=False),
    "notoolkit": NodeSpec("rtx4090", toolkit=False),
    "stopped": NodeSpec("rtx4090", docker="stopped"),
    "nodocker": NodeSpec("rtx4090", docker=False),
    "mismatch": NodeSpec("mismatch"),
    "lost": NodeSpec("lost"),
}
# Machines whose Docker does not say what runs there: that is not known, so nothing is changed there.
SILENT = {
    "nogroup": ("permission denied", "usermod -aG docker homelab"),
    "stopped": ("Cannot connect to the Docker daemon", "runtime: native"),
}
AWAY = {name: {"away": True} for name in SILENT}
REASONS = {
    "nocompose": ("no Compose plugin", "apt install"),
    "notoolkit": ("Docker cannot reach the GPU", "NVIDIA Container Toolkit"),
    "nodocker": ("without Docker the GPU needs a `llama-server` in PATH",),
}


@pytest.fixture(scope="module")
def home(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    household = start(SPECS, tmp_path_factory.mktemp("home"))
    yield House(household, tmp_path_factory.mktemp("work"))
    household.remove()


def test_discover_shows_what_is_wrong_with_each_machine(home: House, lab: Lab) -> None:
    home.write(gateway="front", models={})
    said = home.homelab("discover")
    assert "9 nodes, 9 reachable" in said.out
    assert re.search(r"mismatch.*[Dd]river/library version mismatch", said.out)
    assert re.search(r"lost.*GPU is lost", said.out, re.IGNORECASE) and "RTX 3060" in said.out
    assert "permission denied" in said.out and "no compose plugin" in said.out
    document = home.homelab("discover", "--json").json
    assert all(document["nodes"][n]["facts"]["problems"] for n in ("mismatch", "lost"))


def test_what_cannot_run_says_why_and_what_to_type(home: House, lab: Lab) -> None:
    models = {f"on-{n}": llama(lab.model, node=n) for n in REASONS}
    home.write(gateway="front", models=models, nodes=AWAY)
    said = home.homelab("plan", code=3)
    assert f"No place for {', '.join(sorted(models))}" in said.err
    for node, words in REASONS.items():
        [line] = [line for line in said.err.splitlines() if line.strip().startswith(f"on-{node}:")]
        assert f"{node} GPU 0" in line
        for word in words:
            assert word in line
    refused = home.homelab("deploy", "--yes", code=3)
    assert refused.err == said.err
    assert list(home.containers()) == []


def test_a_docker_engine_that_does_not_answer_is_not_taken_for_an_empty_one(home: House, lab: Lab) -> None:
    home.write(gateway="front", models={f"on-{n}": llama(lab.model, node=n) for n in SILENT})
    for words in (["plan"], ["deploy", "--yes"], ["remove", "--yes"]):
        said = home.homelab(*words, code=4)
        for node, parts in SILENT.items():
            assert f"Node `{node}` cannot list its services" in said.err
            assert all(part in said.err for part in parts)
    home.write(gateway="front", models={}, nodes=AWAY)
    home.homelab("remove", "--yes")


def test_a_lost_gpu_is_not_planned_for_and_the_other_one_is(home: House, lab: Lab) -> None:
    home.write(
        gateway="front",
        models={"fits": llama(lab.model, node="lost", gpu=0), "gone": llama(lab.model, node="lost", gpu=1)},
        nodes=AWAY,
    )
    said = home.homelab("plan", code=3)
    assert "+ create  fits" in said.out and "gone" in said.err and "fits" not in said.err


def test_what_does_not_fit_shows_the_arithmetic(home: House, lab: Lab) -> None:
    home["lost"].gpus_text = home["lost"].gpus_text.replace("used=100;", "used=12000;", 1)
    home.write(
        gateway="front",
        models={"big": llama(lab.model, node="lost", gpu=0, context=8192, concurrency=4)},
        nodes=AWAY,
    )
    said = home.homelab("plan", code=3)
    assert (
        re.search(r"needs [\d.]+ GiB: model [\d.]+ \+ context [\d.]+ .*; free [\d.]+ GiB", said.err)
        and "hint:" in said.err
    )


def test_following_the_suggestion_makes_it_deploy(home: House, lab: Lab) -> None:
    home["crowded"].gpus_text = home["crowded"].gpus_text.replace("used=812;", "used=22224;")
    home.write(
        gateway="front",
        models={"long": llama(lab.model, node="crowded", context=8192, concurrency=4)},
        nodes=AWAY,
    )
    refused = home.homelab("deploy", "--yes", code=3)
    assert re.search(r"needs [\d.]+ GiB: model [\d.]+ \+ context [\d.]+ .*; free [\d.]+ GiB", refused.err)
    assert list(home.containers()) == []
    [suggested] = home.homelab("plan", "--json", code=3).json["unplaced"]
    assert f"`long` would fit {suggested['suggestion']}" in refused.err
    context = int(re.search(r"`context: (\d+)`", suggested["suggestion"])[1])  # type: ignore[index]
    home.document["models"]["long"]["context"] = context
    home.save()
    home.homelab("deploy", "--yes")
    [served] = home.homelab("status", "--json").json["models"]
    assert served["healthy"] and served["context"] == context < 8192
    home.homelab("remove", "--yes")


def test_a_port_that_a_stranger_listens_on_is_named_with_its_owner(home: House, lab: Lab) -> None:
    node = home["front"]
    serve = "setsid python3 -m http.server {} --bind 0.0.0.0 >/dev/null 2>&1 &"
    node.run(f"{serve.format(9000)} {serve.format(4000)} sleep 0.5")
    home.write(gateway="front", models={"busy": llama(lab.model, node="front", port=9000)}, nodes=AWAY)
    said = home.homelab("plan", code=3)
    assert "port 9000 is in use by" in said.err
    home.write(gateway="front", models={}, nodes=AWAY)
    said = home.homelab("plan")
    assert re.search(r"blocked: port 4000 on front is in use by \S+", said.out)
    said = home.homelab("deploy", "--yes", code=1)
    assert "port 4000 on front is in use by" in said.err
    assert list(home.containers()) == []
    node.run("pkill -x python3", check=False)


def test_weights_that_the_disk_cannot_hold_are_not_started(home: House, lab: Lab, tmp_path: Path) -> None:
    folder = lab.gguf_repo(tmp_path / "repo", "Huge-Q4_K_M.gguf")
    home["front"].set_disk(2048)
    with lab.hub({"Org/Huge-GGUF": Repo(folder, claimed_sizes={"Huge-Q4_K_M.gguf": 8 << 30})}) as hub:
        home.write(
            gateway="front",
            hub={"endpoint": hub.url},
            models={"huge": llama("Org/Huge-GGUF:Q4_K_M", node="front")},
        )
        said = home.homelab("plan", code=3)
    home["front"].set_disk(200 * 1024)
    assert re.search(
        r"disk too small for the weights: [\d.]+ GiB to fetch, [\d.]+ GiB free at /home", said.err
    )


def test_mistakes_in_the_inventory_are_named_by_line(home: House, lab: Lab) -> None:
    home.write(gateway="frnt", models={"a": llama(lab.model, contxt=1)})
    said = home.homelab("plan", code=2)
    assert re.search(
        r"inventory\.yml:\d+: models\.a\.contxt: unknown key, did you mean `context`\?", said.err
    )
