"""The cluster's lock on its nodes: real processes, on this machine as a node."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab.deploy.lock import lock_file, locked, unlock
from homelab.errors import DeployError
from homelab.inventory import Inventory, load
from tests.nodes import sshd

INVENTORY = load("cluster: locks\ngateway: {node: this}\nnodes: {this: {host: localhost}}\n", "inventory.yml")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


async def taken(inventory: Inventory = INVENTORY) -> None:
    async with locked(inventory, ["this"]):
        pass


def test_a_second_controller_is_told_who_is_at_work_and_since_when(home: Path) -> None:
    async def both() -> None:
        async with locked(INVENTORY, ["this"]):
            with pytest.raises(
                DeployError, match="Another homelab is changing cluster `locks` on node `this`"
            ) as e:
                await taken()
            assert "@" in e.value.cause and "since 20" in e.value.cause
            assert "homelab unlock" in e.value.hint
        await taken()  # it is free again at once
        assert not (home / ".local/share/homelab").exists()

    asyncio.run(both())


def test_who_loses_the_lock_to_unlock_stops(home: Path) -> None:
    path = Path(lock_file("locks").replace("~", str(home)))

    async def dies() -> None:
        async with locked(INVENTORY, ["this"]):
            held = json.loads(path.read_text())
            assert await unlock(INVENTORY, ["this"]) == (
                {"this": f"{held['owner']}, since {held['since']}"},
                {},
            )
            assert not path.exists()
            await asyncio.sleep(60)

    with pytest.raises(DeployError, match="on node `this` was taken away: all work has stopped") as e:
        asyncio.run(dies())
    assert "homelab unlock" in e.value.cause
    asyncio.run(taken())
    assert asyncio.run(unlock(INVENTORY, ["this"])) == ({}, {})


def test_a_lock_that_was_taken_over_is_not_given_back_by_who_had_it(home: Path) -> None:
    path = Path(lock_file("locks").replace("~", str(home)))

    async def taken_over() -> None:
        async with locked(INVENTORY, ["this"]):
            path.unlink()
            path.write_text("another one's")
            await asyncio.sleep(60)

    with pytest.raises(DeployError, match="was taken away"):
        asyncio.run(taken_over())
    assert path.read_text() == "another one's"


@pytest.fixture
def over_ssh(home: Path) -> Iterator[tuple[sshd.Sshd, Inventory]]:
    if reason := sshd.obstacle():
        pytest.skip(reason)
    with sshd.started(home / "sshd", more=sshd.as_account(home, "/bin/sh")) as server:
        (home / ".ssh").mkdir()
        (home / ".ssh/known_hosts").write_text(server.known_hosts("127.0.0.1"))
        node = {"host": "127.0.0.1", "port": server.port, "user": server.user}
        spec = {"nodes": {"this": node | {"identity": str(server.identity)}}, "gateway": {"node": "this"}}
        yield server, load(json.dumps({"cluster": "locks", **spec}), "inventory.yml")


def test_a_lock_whose_connection_was_lost_is_taken_again(
    home: Path, over_ssh: tuple[sshd.Sshd, Inventory]
) -> None:
    server, inventory = over_ssh
    path = Path(lock_file("locks").replace("~", str(home)))

    def holder() -> int | None:
        try:
            return json.loads(path.read_text())["pid"]
        except (OSError, ValueError):
            return None

    async def cut() -> None:
        async with locked(inventory, ["this"]):
            first = holder()
            server.cut_connections()
            for _ in range(100):
                if holder() not in (None, first):
                    break
                await asyncio.sleep(0.1)
            assert holder() not in (None, first)
            with pytest.raises(DeployError, match="Another homelab is changing"):
                await taken(inventory)
        assert not path.exists()

    asyncio.run(cut())


def test_a_node_that_goes_away_stops_nothing_elsewhere(
    home: Path, over_ssh: tuple[sshd.Sshd, Inventory]
) -> None:
    server, inventory = over_ssh

    async def gone() -> str:
        async with locked(inventory, ["this"]):
            server.process.kill()
            server.cut_connections()
            await asyncio.sleep(3)
        return "done"

    assert asyncio.run(gone()) == "done"


def test_the_lock_of_a_controller_that_was_killed_is_free_for_the_next_one(home: Path) -> None:
    program = (
        "import asyncio\n"
        "from tests.test_deploy_lock import INVENTORY, locked\n"
        "async def hold():\n"
        "    async with locked(INVENTORY, ['this']):\n"
        "        print('held', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(hold())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        process.kill()
        process.wait()
        asyncio.run(taken())


def test_a_home_that_cannot_be_written_is_said(home: Path) -> None:
    (home / ".local").write_text("a file in the way")
    with pytest.raises(DeployError, match="cannot be locked on node `this`") as e:
        asyncio.run(taken())
    assert "File exists" in e.value.cause or "Not a directory" in e.value.cause
