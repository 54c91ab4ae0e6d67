"""The real vLLM (its CPU build), under the compose file and the flags that homelab renders, unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import HouseFactory
from tests.lab.fixtures import Lab
from tests.lab.node import NodeSpec

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_two_vllm_instances_on_one_gpu_come_up_and_answer(
    lab: Lab, house: HouseFactory, tmp_path: Path
) -> None:
    home = house(box=NodeSpec("rtx4090", vllm=True))
    node = home["box"]
    shutil.copytree(lab.tiny_model(tmp_path / "tiny"), node.folder / "disk/srv/tiny")
    tiny = {"engine": "vllm", "source": "/srv/tiny", "context": 1024, "concurrency": 2}
    home.write(gateway="box", models={"one": tiny, "two": {**tiny, "context": 512}})
    assert "gpu-memory-utilization" in home.homelab("why", "one").out
    home.homelab("deploy", "--yes", within=900)
    for model in ("one", "two"):
        assert home.chat(model).status_code == 200
        assert home.streamed(model)
    document = home.homelab("status", "--json").json
    assert {m["name"]: (m["healthy"], m["context"]) for m in document["models"]} == {
        "one": (True, 1024),
        "two": (True, 512),
    }
    first, second = sorted(
        (c for c in home.ours("box") if c["Config"]["Labels"]["homelab.role"] == "engine"),
        key=lambda c: c["State"]["StartedAt"],
    )
    assert first["State"]["StartedAt"] < second["State"]["StartedAt"]
    assert "Everything is up to date" in home.homelab("deploy", "--yes").out
    home.homelab("remove", "--yes")
    assert node.used_mib() == [812]
