"""The README's session, run again: what differs are times, sizes, versions and what a model says. `pytest
tests/e2e/test_readme.py --update-golden` pastes it anew."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import HouseFactory
from tests.e2e.house import House

pytestmark = pytest.mark.lab
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- session -->\n```\n", "```\n<!-- end: session -->"
ADDRESSES = {"workstation": "10.77.0.12", "server": "10.77.0.13", "laptop": "10.77.0.14"}
AS_ABOVE = "[the plan again, as above]"
# What no two runs have in common.
VARIES = (
    (re.compile(r"[█▓▚▒░·]{2,}"), "BAR"),
    (re.compile(r'"[^"]*("|…)'), "SAID"),
    (re.compile(r"\b(workstation|server|laptop)/coder\b"), "ONE/coder"),
    (re.compile(r"\d+(\.\d+)+[\w.+-]*|\b\d+:\d\d\b"), "N"),
    (re.compile(r" +"), " "),
)


def inventory_of(text: str, house: House) -> str:
    """The inventory in the README, with where these machines are."""
    found = re.search(r"^`inventory.yml`:\n```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found
    document = yaml.safe_load(found[1])
    for name, own in house.household.inventory_nodes().items():
        assert document["nodes"][name]["host"] == ADDRESSES[name]
        document["nodes"][name] |= own
    for model in document["models"].values():
        assert model["source"] == house.household.model
    return yaml.safe_dump(document, sort_keys=False)


def session(text: str, house: House) -> str:
    """What these commands say now, as somebody sees it who pipes both streams."""
    out, plan = [], ""
    for line in re.findall(r"^\$ (homelab.*)$", text, re.MULTILINE):
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(line)],
            cwd=house.folder,
            env=house.env | {"COLUMNS": "100", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        said = done.stdout.replace(str(house.household.home), "~")
        for name, address in ADDRESSES.items():
            said = said.replace(house[name].address, address)
        assert done.returncode == 0, said
        if line == "homelab plan":
            plan = "".join(row for row in said.splitlines(keepends=True) if not row.startswith("Next: "))
        if plan and line.startswith("homelab deploy"):
            said = said.replace(plan, f"{AS_ABOVE}\n")
        out.append(f"$ {line}\n{said}")
    return "\n".join(out)


def masked(text: str) -> list[str]:
    """The lines without what varies; events of several nodes come in any order."""
    lines = []
    for line in text.splitlines():
        for pattern, word in VARIES:
            line = pattern.sub(word, line)
        # What a server says as it loads, and how often, is its own affair.
        if not re.match(r" N s .* load ", line):
            lines.append(line)
    return sorted(lines)


def test_the_session_of_the_readme_is_what_is_said(
    house: HouseFactory, request: pytest.FixtureRequest
) -> None:
    home = house(workstation="rtx4090", server="2x3090", laptop="laptop3070")
    text = README.read_text()
    (home.folder / "inventory.yml").write_text(inventory_of(text, home))
    before = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    now = session(before, home)
    if request.config.getoption("--update-golden"):
        README.write_text(text.replace(before, now))
        before = now
    assert masked(now) == masked(before)
