"""The documents say what is true: generated parts are fresh, links and files exist, commands parse, every
JSON key is named."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from homelab import pipeline
from homelab.cli import app
from homelab.documents import discover_document, plan_document, status_document, why_document
from homelab.facts import DeployedService, Disk, Failure, NodeReport, Problem
from homelab.status import AppStatus, GatewayStatus, Instance, ModelStatus, Status
from tests.machines import household, listening, workstation

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")])
COMMANDS: Any = typer.main.get_command(app)
# Begins like a command, and is what a program said.
SAID = ("homelab agent needs", "homelab has a bug")
# What a document calls a file of this repository: a path that begins in one of its folders, or a file at
# its top.
FOLDERS = "homelab|agent|docs|tests|templates|examples|requirements|bench"
NAMED = re.compile(
    rf"`((?:{FOLDERS})/[\w./-]*|[\w.-]+\.(?:md|toml)|Makefile|LICENSE|inventory\.example\.yml)`|(?<!\S)((?:{FOLDERS})/[\w./-]+\.\w+)"
)

by_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headings(text: str) -> set[str]:
    """The anchors of a document, as the usual hosts make them."""
    found = re.findall(r"^#{1,6} (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in found}


def code(text: str) -> Iterator[str]:
    """Lines in fences, and code within a line."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def typed(text: str) -> str:
    """The text without what programs answered: in a fence with `$ ` lines, all others."""
    return re.sub(
        r"^```\w*\n(?:.*\n)*?```$",
        lambda m: (
            "\n".join(line for line in m[0].splitlines() if line.startswith("$ ")) if "\n$ " in m[0] else m[0]
        ),
        text,
        flags=re.MULTILINE,
    )


def commands(text: str) -> Iterator[list[str]]:
    """Each `homelab …` that a reader could type, as words after the name; what follows `|`, `>`, `||`, `#`
    is left out."""
    for line in code(text):
        line = re.sub(r"^(\$ |Next: )", "", line.strip())
        for part in re.split(r"\s(?:\|\|?|&&|·|>|#)\s*|;\s", line):
            if re.match(r"(?:\.venv/bin/)?homelab (?:-|[a-z]+\b)", part) and not part.startswith(SAID):
                try:
                    yield shlex.split(part)[1:]
                except ValueError:
                    yield part.split()[1:]


def complaint(words: list[str]) -> str:
    """What is wrong with a command line, empty when it would parse. Values are not looked at: they may be
    FILE or MODEL."""
    command, rest = COMMANDS, list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":  # the rest is another program's
            break
        if word.startswith("-") and word != "-":
            option = next(
                (p for p in command.params if word.split("=")[0] in (*p.opts, *p.secondary_opts)), None
            )
            if option is None and word != "--help":
                return f"no option {word} for {command.name}"
            if option is not None and not option.is_flag and not option.count and "=" not in word:
                del rest[:1]  # `homelab discover --save` names the option
        elif command is COMMANDS:
            if word not in COMMANDS.commands:
                return f"no verb {word}"
            command = COMMANDS.commands[word]
        elif hasattr(command, "commands"):
            if word not in command.commands:
                return f"no verb {command.name} {word}"
            command = command.commands[word]
    return ""


def keys(document: Any) -> set[str]:
    """Every key in a document; names of nodes, models and labels are the user's, not keys."""
    if isinstance(document, list):
        return set().union(*(keys(x) for x in document)) if document else set()
    if not isinstance(document, dict):
        return set()
    found = set(document)
    for key, value in document.items():
        if key == "nodes" and isinstance(value, dict):
            found |= set().union(*(keys(v) for v in value.values()))
        elif key != "labels":
            found |= keys(value)
    return found


def test_generated_parts_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert generator().main(["--check"]) == 0, capsys.readouterr().err


def test_the_picture_is_what_is_shown() -> None:
    done = subprocess.run(
        [sys.executable, "docs/picture.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_part_is_noticed_and_made_anew() -> None:
    stale = "<!-- generated: inventory Hub -->\nfrom yesterday\n<!-- end: inventory Hub -->\n"
    fresh = generator().rewritten(stale, "x.md")
    assert "yesterday" not in fresh and "`endpoint`" in fresh
    assert generator().rewritten(fresh, "x.md") == fresh


@by_document
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    outside_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path if not file else path.parent / file
        assert there.exists(), target
        if anchor:
            assert anchor in headings(there.read_text()), target


@by_document
def test_files_that_are_named_exist(path: Path) -> None:
    for match in NAMED.finditer(typed(path.read_text())):
        name = match[1] or match[2]
        assert (ROOT / name).exists() or (ROOT / "docs" / name).exists(), name


@by_document
def test_commands_parse(path: Path) -> None:
    wrong = [
        f"homelab {' '.join(words)}: {said}"
        for words in commands(path.read_text())
        if (said := complaint(words))
    ]
    assert not wrong


@by_document
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in code(path.read_text()):
        if m := re.match(r"(?:\$ )?make ([a-z-]+)", line.strip()):
            assert m[1] in targets, line


def test_a_wrong_command_is_caught() -> None:
    found = list(
        commands(
            "```\n$ homelab plan --cheek\nhomelab deploi\n```\nor `homelab -v logs x "
            "--lines 3` and `homelab -i x status --json | cat`"
        )
    )
    assert [bool(complaint(words)) for words in found] == [True, True, True, False]


def test_every_json_key_is_described() -> None:
    household_ = pipeline.read_inventory(ROOT / "inventory.example.yml")
    inventory = household_.inventory
    service = DeployedService(cluster="home", name="tiny", spec="1", runtime="docker", state="running")
    busy = workstation(
        services=(service,), ports=(listening(22),), problems=(Problem(source="x", message="y"),)
    )
    busy = busy.model_copy(update={"disks": (Disk(purpose="models", path="/", total_bytes=2, free_bytes=1),)})
    survey = household(workstation=busy, laptop="asleep")
    nodes = dict(survey.nodes) | {"laptop": NodeReport(reachable=False, error=Failure(message="asleep"))}
    survey = survey.model_copy(update={"nodes": nodes})
    plan = pipeline.make_plan(household_, survey, pipeline.placeholder_secrets())
    instance = Instance(
        node="n",
        service="s",
        engine="e",
        state="running",
        detail=None,
        url=None,
        context=1,
        planned_context=1,
        planned_bytes=1,
        used_bytes=1,
    )
    status = Status(
        gateway=GatewayStatus(node="pi", url=None, state="missing", healthy=False),
        models=(ModelStatus(name="m", kind="chat", instances=(instance,)),),
        nodes=nodes,
        apps=(AppStatus(name="page", node="pi", url=None, state="missing", healthy=False),),
    )
    said = (ROOT / "docs/json.md").read_text()
    documents = (
        discover_document(inventory, survey),
        plan_document(plan),
        status_document(inventory, status, "key"),
        why_document(plan, "qwen3-30b"),
    )
    assert [len(keys(d)) > 10 for d in documents] == [True, True, True, False]
    missing = {k for d in documents for k in keys(d) if f"`{k}`" not in said}
    assert not missing
    assert "blocked" in said  # only there when something is in the way
