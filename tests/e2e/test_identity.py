"""Nothing that runs is touched by what nobody asked for: seen by the ids of the containers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.house import House, llama
from tests.lab.fixtures import Lab
from tests.lab.household import start

pytestmark = pytest.mark.lab
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """An engine on a GPU, one in RAM beside the gateway; all of it deployed."""
    household = start({"workstation": "rtx4090", "box": "none"}, tmp_path_factory.mktemp("home"))
    house = House(household, tmp_path_factory.mktemp("work"))
    models = {"first": llama(lab.model, node="workstation"), "second": llama(lab.model, node="box")}
    house.write(gateway="box", models=models)
    house.homelab("deploy", "--yes")
    yield house
    household.remove()


def up_to_date(home: House, before: dict[str, str], **env: str) -> None:
    said = home.homelab("deploy", "--yes", env=env)
    assert "Everything is up to date" in said.out
    assert home.running() == before
    assert len(before) == 3


def test_a_second_controller_takes_the_house_over_as_it_is(home: House, tmp_path: Path) -> None:
    before, key = home.running(), home.key
    shutil.copytree(home.household.home / ".ssh", tmp_path / ".ssh")
    up_to_date(home, before, HOME=str(tmp_path))
    assert (tmp_path / ".local/state/homelab/home/gateway.key").read_text().strip() == key


def test_a_driver_that_counts_otherwise_changes_nothing(home: House) -> None:
    before, node = home.running(), home["workstation"]
    text = node.gpus_text
    node.gpus_text = re.sub(r"total=(\d+)", lambda m: f"total={int(m[1]) - 4}", text)
    try:
        up_to_date(home, before)
    finally:
        node.gpus_text = text


def test_another_way_to_the_node_changes_nothing(home: House, lab: Lab) -> None:
    before, node = home.running(), home["workstation"]
    second = re.sub(r"\d+$", "251", node.address)
    node.run(f"ip addr add {second}/24 dev eth0", user="root")
    with home.household.known_hosts.open("a") as known:
        known.write(f"{second} {node.host_key}\n")
    home.document["nodes"]["workstation"]["host"] = second
    home.save()
    try:
        up_to_date(home, before)
    finally:
        home.document["nodes"]["workstation"]["host"] = node.address
        home.save()


def test_a_later_release_changes_nothing_until_somebody_asks_for_it(home: House, tmp_path: Path) -> None:
    before = home.running()
    for folder in ("homelab", "agent", "templates"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    edits = {
        "homelab/__init__.py": (r"__version__ = .*", '__version__ = "9.9.9"'),
        "homelab/inventory.py": (
            r"    away: bool = False",
            '    away: bool = False\n    colour: str = "red"',
        ),
        "templates/native/litellm.lock": (r"\A", "# bumped\n"),
        "templates/litellm.yml.j2": (r"\Z", "# another file\n"),
    }
    for path, (old, new) in edits.items():
        text, count = re.subn(old, new, (tmp_path / path).read_text(), count=1)
        assert count == 1
        (tmp_path / path).write_text(text)
    up_to_date(home, before, PYTHONPATH=str(tmp_path))
    said = home.homelab("plan", env={"PYTHONPATH": str(tmp_path)})
    assert "gateway on box: other files" in said.out and "homelab deploy --upgrade" in said.out

    home.homelab("deploy", "--yes", "--upgrade", env={"PYTHONPATH": str(tmp_path)})
    after = home.running()
    assert {name for name in after if after[name] != before[name]} == {"box/gateway"}
    up_to_date(home, after)  # and the release before does not take it back
