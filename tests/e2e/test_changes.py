"""A household that changes, fails and is interrupted. The tests run in their order, on one household, each
from a deployed state."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.house import House, Said, eventually, llama
from tests.lab.fixtures import Lab
from tests.lab.household import start

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def home(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The first two models share the workstation's GPU; the third is alone on the laptop, with the
    gateway."""
    household = start({"workstation": "rtx4090", "laptop": "laptop3070"}, tmp_path_factory.mktemp("home"))
    house = House(household, tmp_path_factory.mktemp("work"))
    house.write(
        gateway="laptop",
        models={
            "first": llama(lab.model, node="workstation"),
            "second": llama(lab.model, node="workstation", context=768),
            "third": llama(lab.model, node="laptop"),
        },
    )
    yield house
    household.remove()


def change(home: House, model: str, **keys: Any) -> None:
    home.document["models"][model].update(keys)
    home.save()


def service(home: House, name: str) -> dict[str, Any]:
    [found] = [c for _, c in home.containers() if c["Config"]["Labels"]["homelab.service"] == name]
    return found


def test_an_engine_that_runs_out_of_gpu_memory_shows_its_last_lines_and_the_others_go_on(home: House) -> None:
    node, process = home["workstation"], home.start("deploy", "--yes")
    eventually(lambda: node.used_mib() > [812], 60)
    # Somebody starts a game while the first engine loads.
    node.gpus_text = node.gpus_text.replace("used=812", "used=23300")
    out, err = process.communicate(timeout=300)
    node.gpus_text = node.gpus_text.replace("used=23300", "used=812")
    said = home.judged(Said(process.returncode, out, err), ("deploy", "--yes"), 1)
    assert re.search(r"`second` on node `workstation` died at start( \(exit code 1\))?\n", said.err)
    assert "cudaMalloc failed: out of memory" in said.err and "homelab discover shows who" in said.err
    assert set(home.running()) == {"workstation/first", "laptop/third", "laptop/gateway"}
    assert home.chat("first").status_code == 200 == home.chat("third").status_code
    assert "did not answer" not in said.err  # it is not asked

    before = home.running()
    said = home.homelab("deploy", "--yes")
    assert "1 restart on 1 node" in said.out and "2 of 2" not in said.out
    assert home.running().items() > before.items() and home.chat("second").status_code == 200


def test_a_changed_context_replaces_that_model_only(home: House) -> None:
    before = home.running()
    change(home, "first", context=1024)
    said = home.homelab("plan", "--check", code=5)
    assert re.search(r"~ replace  ?first", said.out) and "context 512 → 1024" in said.out
    home.homelab("deploy", "--yes")
    after = home.running()
    assert {s for s in after if after[s] != before[s]} <= {
        "workstation/first",
        "laptop/gateway",
    } and after.keys() == before.keys()
    assert after["workstation/first"] != before["workstation/first"]
    assert len(list(home.containers())) == 4
    assert home.homelab("status", "--json").json["models"][0]["context"] == 1024


def test_a_replacement_that_cannot_start_is_taken_back(home: House) -> None:
    before = home.running()
    change(home, "first", args={"bogus-flag": True})
    said = home.homelab("deploy", "--yes", code=1)
    assert (
        "error: invalid argument: --bogus-flag" in said.err
        and "`first` runs again as it was before" in said.err
    )
    assert home.running()["workstation/first"] == before["workstation/first"]
    eventually(lambda: home.chat("first").status_code == 200, 40)
    assert len([c for _, c in home.containers() if c["Config"]["Labels"]["homelab.service"] == "first"]) == 1
    assert (
        len(home["workstation"].run("ls /home/homelab/.local/share/homelab/home/first").stdout.split()) == 1
    )
    change(home, "first", args={})
    said = home.homelab("deploy", "--yes")
    assert home.running()["workstation/first"] == before["workstation/first"]


def test_an_image_that_cannot_be_pulled_takes_nothing_down(home: House) -> None:
    before = home.running()
    image = f"{home.household.gateway}:9/llama.cpp:not-there"  # no registry listens there
    home.document["images"] = {"llamacpp": image}
    home.save()
    said = home.homelab("deploy", "--yes", code=1)
    assert f"Image `{image}` cannot be pulled on node `workstation`" in said.err
    assert "connection refused" in said.err and "images:" in said.err
    assert home.running() == before
    del home.document["images"]
    home.save()
    assert "Everything is up to date" in home.homelab("deploy", "--yes").out


def test_interrupted_it_says_so_and_goes_on_the_next_time(home: House) -> None:
    change(home, "second", context=1024)
    said = home.interrupted("deploy", "--yes", when=r"second +start", number=signal.SIGINT, code=130)
    assert "Interrupted. Running the same command again goes on from here" in said.err
    home.homelab("deploy", "--yes")
    assert home.chat("second").status_code == 200
    assert len(list(home.containers())) == 4


def test_killed_it_goes_on_the_next_time(home: House) -> None:
    change(home, "second", context=1280)
    process = home.start("deploy", "--yes")
    assert process.stderr
    for line in process.stderr:
        if re.search(r"second +(start|load)", line):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    home.homelab("deploy", "--yes")
    assert home.chat("second").status_code == 200
    assert len(list(home.containers())) == 4


def test_two_deploys_at_once_do_not_meet(home: House) -> None:
    change(home, "second", context=1536)
    process = home.start("deploy", "--yes")
    assert process.stderr
    process.stderr.readline()
    said = home.homelab("deploy", "--yes", code=1)
    assert "Another homelab is changing cluster `home`" in said.err and f"process {process.pid}" in said.err
    process.communicate(timeout=300)
    assert process.returncode == 0


def test_a_crashed_engine_comes_back_by_itself_and_a_stopped_one_with_the_next_deploy(home: House) -> None:
    crashed = service(home, "first")
    home["workstation"].run(f"kill -9 {crashed['State']['Pid']}")
    eventually(
        lambda: (
            service(home, "first")["State"].get("Health", {}).get("Status") == "healthy"
            and service(home, "first")["RestartCount"]
        ),
        40,
    )
    home["workstation"].run(f"docker stop {service(home, 'second')['Id']}")
    document = home.homelab("status", "--json", code=1).json
    assert {m["name"]: m["healthy"] for m in document["models"]} == {
        "first": True,
        "second": False,
        "third": True,
    }
    said = home.homelab("deploy", "--yes")
    assert "1 restart on 1 node" in said.out and home.chat("second").status_code == 200


def test_after_a_power_cut_everything_comes_back_without_a_deploy(home: House) -> None:
    home["workstation"].reboot()
    eventually(lambda: len(home.running()) == 4, 60)
    eventually(lambda: home.chat("first").status_code == 200 and home.chat("second").status_code == 200, 90)
    time.sleep(6)
    assert "Everything is up to date" in home.homelab("deploy", "--yes").out


def test_a_model_taken_out_is_removed(home: House) -> None:
    del home.document["models"]["second"]
    home.save()
    said = home.homelab("deploy", "--yes")
    assert re.search(r"- remove +second", said.out) and "not in the inventory any more" in said.out
    assert set(home.running()) == {"workstation/first", "laptop/third", "laptop/gateway"}
    assert home.chat("second").status_code in (400, 404)


def test_one_model_can_be_removed_by_name(home: House) -> None:
    said = home.homelab("remove", "third", "--yes")
    assert "Take third out of `inventory.yml` too" in said.out
    assert set(home.running()) == {"workstation/first", "laptop/gateway"}
    assert "did you mean" in home.homelab("ask", "frist", code=2).err
