"""More nodes than are asked at once: real logins through one sshd, the real agent, a Python that tells."""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab.discover import Discovery, discover
from homelab.inventory import Gateway, Inventory, Node
from tests.nodes import sshd as real_sshd
from tests.nodes.sshd import Sshd


class House:
    """Nodes that are all this machine, each with its own Python. `log` has a line for each begin and end."""

    def __init__(self, folder: Path, sshd: Sshd) -> None:
        self.folder, self.sshd = folder, sshd
        self.log = folder / "log"

    def node(self, name: str, before: str) -> Node:
        python = self.folder / f"python-{name}"
        python.write_text(
            f"#!/bin/sh\necho begun >> {self.log}\n{before}\n"
            f'{shlex.quote(sys.executable)} "$@"\ns=$?\necho ended >> {self.log}\nexit $s\n'
        )
        python.chmod(0o755)
        return Node(
            host="127.0.0.1",
            port=self.sshd.port,
            user=self.sshd.user,
            identity=str(self.sshd.identity),
            python=str(python),
        )

    def ask(self, nodes: dict[str, Node], **options: object) -> Discovery:
        self.log.write_text("")
        inventory = Inventory(gateway=Gateway(node=next(iter(nodes))), nodes=nodes)
        return asyncio.run(discover(inventory, **options))  # type: ignore[arg-type]

    def begun_and_ended(self) -> list[int]:
        """How many were at it after each start and end."""
        steps = [1 if line == "begun" else -1 for line in self.log.read_text().splitlines()]
        return [sum(steps[: i + 1]) for i in range(len(steps))]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    if reason := real_sshd.obstacle():
        pytest.skip(reason)
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    with real_sshd.started(tmp_path / "sshd", more=real_sshd.as_account(home, "/bin/sh")) as sshd:
        (home / ".ssh/known_hosts").write_text(sshd.known_hosts("127.0.0.1"))
        house = House(tmp_path, sshd)
        assert not house.ask({"first": house.node("first", "")}).errors  # brings the agent
        yield house


def test_no_more_nodes_are_asked_at_once_than_is_allowed(house: House) -> None:
    nodes = {f"n{i}": house.node(f"n{i}", "sleep 0.4") for i in range(8)}
    said = house.ask(nodes, at_once=3)
    assert not said.errors
    assert all(said.survey.nodes[n].facts for n in nodes)
    running = house.begun_and_ended()
    assert len(running) == 2 * len(nodes)
    assert max(running) == 3


def test_the_clock_of_a_node_starts_with_its_turn(house: House) -> None:
    nodes = {
        "a-hangs": house.node("a-hangs", "exec sleep 600"),
        "b-waits": house.node("b-waits", ""),
        "c-waits": house.node("c-waits", ""),
    }
    begun = time.monotonic()
    said = house.ask(nodes, at_once=1, answer_seconds=6.0)
    assert time.monotonic() - begun > 6.0
    assert set(said.errors) == {"a-hangs"}
    assert said.errors["a-hangs"].message == "Node `a-hangs` did not answer in 6 s"
    assert said.survey.nodes["b-waits"].reachable
    assert said.survey.nodes["c-waits"].reachable


@pytest.mark.parametrize("at_once", [2, 6])
def test_what_is_imported_meanwhile_does_not_wait_for_all(house: House, at_once: int) -> None:
    nodes = {f"n{i}": house.node(f"n{i}", "sleep 1") for i in range(6)}
    ended: list[int] = []

    def look() -> None:
        ended.append(house.log.read_text().count("ended"))

    assert not house.ask(nodes, at_once=at_once, meanwhile=look).errors
    assert len(ended) == 1
    assert ended[0] < at_once
