"""The cluster's lock on its nodes: real processes, on this machine as a node."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from homelab.deploy.lock import lock_file, locked, unlock
from homelab.errors import DeployError
from homelab.inventory import load

INVENTORY = load("cluster: locks\ngateway: {node: this}\nnodes: {this: {host: localhost}}\n", "inventory.yml")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


async def taken() -> None:
    async with locked(INVENTORY, ["this"]):
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

    asyncio.run(both())


def test_what_a_dead_controller_left_is_taken_away_by_unlock(home: Path) -> None:
    async def dies() -> None:
        async with locked(INVENTORY, ["this"]):
            path = Path(lock_file("locks").replace("~", str(home)))
            held = json.loads(path.read_text())
            assert await unlock(INVENTORY, ["this"]) == {"this": f"{held['owner']}, since {held['since']}"}
            assert not path.exists()
            for _ in range(100):  # its holder ends with it
                if not Path(f"/proc/{held['pid']}").exists():
                    break
                await asyncio.sleep(0.05)
            else:
                os.kill(held["pid"], 0)
            await taken()
        assert await unlock(INVENTORY, ["this"]) == {}

    asyncio.run(dies())


def test_a_home_that_cannot_be_written_is_said(home: Path) -> None:
    (home / ".local").write_text("a file in the way")
    with pytest.raises(DeployError, match="cannot be locked on node `this`") as e:
        asyncio.run(taken())
    assert "File exists" in e.value.cause or "Not a directory" in e.value.cause
