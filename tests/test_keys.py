"""Keys of people as values, and their list on a node: a folder of this machine, through the real session."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from homelab import key_command, keys
from homelab.deploy import key_store
from homelab.errors import DeployError, HomelabError, InventoryError, NodeError
from homelab.inventory import Inventory, load
from homelab.keys import DAY_SECONDS, GRACE_SECONDS, Key
from homelab.pipeline import Household
from homelab.ui import keys as screen

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC
TEXT = """
cluster: home
gateway: {node: this}
nodes: {this: {host: localhost}}
models:
  qwen3: {variants: [{engine: vllm, source: "Qwen/Qwen3-0.6B"}]}
  bge: {kind: embedding, variants: [{engine: vllm, source: "BAAI/bge-m3"}]}
cloud:
  sonnet: {model: anthropic/claude-sonnet-4-5, api_key: "env:ANTHROPIC_API_KEY"}
"""


def make(name: str = "anna", **may: object) -> dict[str, Key]:
    _, key = keys.new("1" * 64, f"{abs(hash(name)):032x}"[:32], NOW, **may)
    return keys.added({}, name, key)


@pytest.fixture
def inventory() -> Inventory:
    return load(TEXT, "inventory.yml")


def test_a_document_of_keys_holds_hashes_only_and_is_read_back() -> None:
    secret, key = keys.new("a" * 64, "b" * 32, NOW, models=("qwen3",), private=True, rpm=3, expires=NOW + 9)
    text = keys.to_json({"anna": key})
    assert secret == "sk-" + "a" * 64
    assert "a" * 64 not in text
    assert keys.from_json(text) == {"anna": key}
    assert keys.from_json("") == {}


def test_a_key_for_metrics_is_written_so_that_no_earlier_gateway_takes_it_for_more() -> None:
    plain, counts = make("anna"), make("prom", metrics=True, models=keys.NO_MODELS)
    entries = json.loads(keys.to_json({**plain, **counts}))["keys"]
    assert "metrics" not in entries["anna"] and entries["prom"]["metrics"] is True
    assert entries["prom"]["models"] == ["no-default-models"]
    assert keys.from_json(keys.to_json(counts)) == counts
    assert screen.may(counts["prom"]) == "metrics only"


@pytest.mark.parametrize("more", [{"models": "qwen3"}, {"private": True}, {"rpm": 3}])
def test_a_key_for_metrics_has_no_limits_of_models(inventory: Inventory, more: dict[str, object]) -> None:
    household = Household(path=Path("inventory.yml"), inventory=inventory, environ={})
    with pytest.raises(InventoryError, match="asks no model"):
        asyncio.run(key_command.add(household, "prom", metrics=True, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"keys": []}',
        '{"keys": {"a": {}}}',
        '{"keys": {"a": {"hashes": 1}}}',
        '{"keys": {"a": null}}',
    ],
)
def test_a_damaged_document_is_an_error_and_not_no_keys(text: str) -> None:
    with pytest.raises(HomelabError, match="damaged"):
        keys.from_json(text)


def test_a_name_is_taken_until_its_key_is_revoked() -> None:
    known = make()
    _, other = keys.new("2" * 64, "2" * 32, NOW)
    with pytest.raises(InventoryError, match="already"):
        keys.added(known, "anna", other)
    gone = keys.revoked(known, "anna", NOW)
    assert keys.live(gone) == {}
    assert keys.added(gone, "anna", other)["anna"] == other
    with pytest.raises(InventoryError, match="No key `ana`, did you mean `anna`"):
        keys.revoked(known, "ana", NOW)
    with pytest.raises(InventoryError, match="No key"):
        keys.rotated(gone, "anna", "sk-x", NOW)


def test_after_a_rotation_the_old_secret_has_its_grace_and_no_longer() -> None:
    once = keys.rotated(make(), "anna", "sk-2", NOW)["anna"]
    assert [h.until for h in once.hashes] == [NOW + GRACE_SECONDS, None]
    twice = keys.rotated({"anna": once}, "anna", "sk-3", NOW + 60)["anna"]
    assert [h.until for h in twice.hashes] == [NOW + GRACE_SECONDS, NOW + 60 + GRACE_SECONDS, None]
    assert twice.hashes[-1].sha256 == keys.digest("sk-3")
    assert twice.id == once.id
    known = {"anna": twice}
    for i in range(50):
        known = keys.rotated(known, "anna", f"sk-{i}", NOW)
    assert len(known["anna"].hashes) <= 8
    with pytest.raises(InventoryError, match="has expired"):
        keys.rotated(make(expires=NOW - 1), "anna", "sk-2", NOW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("30d", NOW + 30 * DAY_SECONDS),
        ("12h", NOW + 12 * 3600),
        ("5m", NOW + 300),
        ("2w", NOW + 14 * DAY_SECONDS),
        ("1y", NOW + 365 * DAY_SECONDS),
        ("2027-01-15", 1_800_057_600.0),  # the end of today
        ("2028-02-29", 1_835_481_600.0),
    ],
)
def test_an_expiry_is_a_time_from_now_or_the_end_of_a_day(text: str | None, expected: float | None) -> None:
    assert keys.expiry(text, NOW) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2027-01-14", "is over"),
        ("2027-02-29", "no day"),
        ("2027-13-01", "no day"),
        ("0000-01-01", "no day"),
        ("0d", "neither"),
        ("-1d", "neither"),
        ("30", "neither"),
        ("soon", "neither"),
        ("", "neither"),
        ("٣d", "neither"),
        ("999999y", "100 years"),
    ],
)
def test_an_expiry_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(InventoryError, match=why):
        keys.expiry(text, NOW)


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "a\n", "x" * 64, "é", "../x", '"'])
def test_a_name_is_plain(name: str) -> None:
    with pytest.raises(InventoryError, match="no name"):
        keys.check_name(name)


def test_models_of_a_key_are_those_of_the_inventory(inventory: Inventory) -> None:
    assert keys.models_of(inventory, None, private=False) == ()
    assert keys.models_of(inventory, "qwen3, sonnet,qwen3", private=False) == ("qwen3", "sonnet")
    with pytest.raises(InventoryError, match="did you mean `qwen3`"):
        keys.models_of(inventory, "qwen", private=False)
    with pytest.raises(InventoryError, match="outside the house"):
        keys.models_of(inventory, "qwen3,sonnet", private=True)
    with pytest.raises(InventoryError, match="names no model"):
        keys.models_of(inventory, " ,", private=False)


def test_usage_is_summed_over_days() -> None:
    day = int(NOW // DAY_SECONDS)
    used = keys.usage_of(
        [("k", day - 1, 2, 10, 5, NOW - 9e4), ("k", day, 1, 7, 3, NOW), ("o", day, 1, 1, 1, 5.0)], NOW
    )
    assert used["k"] == keys.Usage(
        last_use=NOW, requests=3, prompt_tokens=17, completion_tokens=8, tokens_today=10
    )


def test_the_list_fits_and_says_what_is_not_saved() -> None:
    known = make(models=("qwen3", "bge"), rpm=3, parallel=1, tokens_per_day=100_000, expires=NOW + 1)
    key = known["anna"]
    used = keys.usage_of([(key.id, int(NOW // DAY_SECONDS), 4, 2048, 0, NOW - 200)], NOW)
    found = key_command.Listed(keys=known, usage=used, ledger_error="No space left on device", now=NOW)
    for width in (80, 200):
        shown = screen.lines(found, width)
        assert all(line.cell_len <= width for line in shown)
    text = "\n".join(line.plain for line in shown)
    assert re.search(r"anna +works +3 min ago +4 +2k +2k of 97.7k +qwen3, bge; 3 a minute; 1 at once", text)
    assert "not saved: No space left on device" in text
    empty = key_command.Listed(keys={}, usage={}, ledger_error="", now=NOW)
    assert "homelab key add NAME" in screen.lines(empty, 80)[0].plain
    [entry] = key_command.document(found)["keys"]
    assert (entry["tokens_today"], entry["state"], entry["models"]) == (2048, "works", ["qwen3", "bge"])


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where the gateway was deployed; the folder of its keys."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "auth.py").touch()
    return tmp_path / keys.folder("home")


def put(inventory: Inventory, name: str) -> None:
    async def many() -> None:
        _, key = keys.new(os.urandom(32).hex(), os.urandom(16).hex(), NOW)
        await key_store.change(inventory, "auth.py", lambda known: keys.added(known, name, key))

    asyncio.run(many())


def test_keys_lie_on_the_node_for_nobody_else_to_read(inventory: Inventory, node: Path) -> None:
    assert asyncio.run(key_store.load(inventory, "auth.py")).keys == {}
    put(inventory, "anna")
    stored = asyncio.run(key_store.load(inventory, "auth.py"))
    assert set(stored.keys) == {"anna"} and stored.ledger_error == ""
    assert stat.S_IMODE((node / "keys.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(node.stat().st_mode) == 0o700
    assert [p.name for p in node.iterdir()] == ["keys.json"]


def test_of_many_changes_at_once_none_is_lost(inventory: Inventory, node: Path) -> None:
    async def all_at_once() -> None:
        async def one(i: int) -> None:
            _, key = keys.new(os.urandom(32).hex(), os.urandom(16).hex(), NOW)
            await key_store.change(inventory, "auth.py", lambda known: keys.added(known, f"k{i}", key))

        await asyncio.gather(*(one(i) for i in range(6)))

    asyncio.run(all_at_once())
    assert set(asyncio.run(key_store.load(inventory, "auth.py")).keys) == {f"k{i}" for i in range(6)}


def test_of_two_who_add_one_name_one_is_told(inventory: Inventory, node: Path) -> None:
    put(inventory, "anna")
    before = (node / "keys.json").read_bytes()
    with pytest.raises(InventoryError, match="already"):
        put(inventory, "anna")
    assert (node / "keys.json").read_bytes() == before


def test_a_gateway_of_an_earlier_homelab_is_told_apart(inventory: Inventory, node: Path) -> None:
    with pytest.raises(DeployError, match="knows no keys but its own") as e:
        asyncio.run(key_store.load(inventory, "elsewhere.py"))
    assert "--upgrade" in e.value.hint
    assert not node.exists()


def test_a_list_that_is_damaged_is_left_as_it_is(inventory: Inventory, node: Path) -> None:
    node.mkdir(parents=True)
    (node / "keys.json").write_text("{")
    with pytest.raises(HomelabError, match="damaged"):
        put(inventory, "anna")
    assert (node / "keys.json").read_text() == "{"


def test_what_stands_in_the_way_is_said(inventory: Inventory, node: Path) -> None:
    node.parent.mkdir(parents=True)
    node.write_text("")
    with pytest.raises(NodeError) as e:
        put(inventory, "anna")
    assert "cannot be" in e.value.message and e.value.hint


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs root and mount")
def test_a_full_or_read_only_disk_is_said(inventory: Inventory, node: Path) -> None:
    put(inventory, "anna")
    kept = (node / "keys.json").read_bytes()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "homelab-test", node], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        (node / "keys.json").write_bytes(kept)
        subprocess.run(["dd", "if=/dev/zero", f"of={node}/fill", "bs=4k"], capture_output=True)
        stored = asyncio.run(key_store.load(inventory, "auth.py"))
        assert set(stored.keys) == {"anna"} and "No space" in stored.ledger_error
        with pytest.raises(NodeError, match="cannot be written") as e:
            put(inventory, "ben")
        assert "No space" in e.value.cause
        assert (node / "keys.json").read_bytes() == kept
        subprocess.run(["mount", "-o", "remount,ro", node], check=True)
        assert "Read-only" in asyncio.run(key_store.load(inventory, "auth.py")).ledger_error
    finally:
        subprocess.run(["umount", node], check=True)


def test_a_ledger_that_is_no_database_is_said(inventory: Inventory, node: Path) -> None:
    put(inventory, "anna")
    (node / "usage.sqlite").write_text("no database at all, but long enough to be one" * 20)
    assert "not a database" in asyncio.run(key_store.load(inventory, "auth.py")).ledger_error
    (node / "usage.sqlite").unlink()
    database = sqlite3.connect(node / "usage.sqlite")
    database.execute("CREATE TABLE usage (key, day, requests, prompt_tokens, completion_tokens, last_use)")
    database.execute("INSERT INTO usage VALUES ('key-1', 1, 2, 3, 4, 5.0)")
    database.commit()
    database.close()
    stored = asyncio.run(key_store.load(inventory, "auth.py"))
    assert stored.usage == (("key-1", 1, 2, 3, 4, 5.0),) and stored.ledger_error == ""


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "inventory.yml").write_text(TEXT)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HOMELAB_"))}
    done = subprocess.run(
        [sys.executable, "-m", "homelab", "key", *arguments],
        cwd=folder,
        env={**environment, "HOME": str(folder), "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("list",), 1, "No gateway of cluster `home` is deployed"),
        (("add", "anna"), 1, "homelab deploy"),
        (("revoke", "anna"), 1, "No gateway"),
        (("add", "a b"), 2, "no name for a key"),
        (("add", "anna", "--models", "qwen"), 2, "did you mean `qwen3`"),
        (("add", "anna", "--private", "--models", "sonnet"), 2, "outside the house"),
        (("add", "anna", "--expires", "2001-01-01"), 2, "is over"),
        (("add", "anna", "--rpm", "0"), 2, "no limit"),
        (("add", "anna", "--tokens-per-day", "-1"), 2, "no limit"),
        (("add", "anna", "--parallel", "9" * 30), 2, "no limit"),
        (("add", "anna", "--rpm", "many"), 2, "--rpm"),
    ],
)
def test_what_somebody_does_wrong_is_said_with_what_to_type(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = command(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr


def test_a_silent_node_is_said(tmp_path: Path) -> None:
    text = TEXT.replace("{host: localhost}", "{host: 127.0.0.1, port: 1, user: x}")
    household = Household(inventory=load(text, "i"), path=Path("i"), environ={})
    with pytest.raises(NodeError):
        asyncio.run(key_command.add(household, "anna"))


def test_a_key_is_counted_in_seconds_of_now() -> None:
    assert keys.state_of(make(expires=time.time() + 5)["anna"], time.time()) == "works"
    assert keys.state_of(make(expires=NOW)["anna"], NOW) == "expired"
    assert json.loads(keys.to_json(make()))["keys"]["anna"]["expires"] is None
