"""Every screen at every width, with and without colour: no line wraps, no word is broken. The golden screens
are in tests/golden/screens; `pytest --update-golden` writes them anew."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.text import Text

from homelab import fit_command, proofs, ui
from homelab.facts import GPU, Facts, Failure, Measurement, NodeReport, Problem, Process, Survey
from homelab.inventory import Inventory, load
from homelab.pipeline import with_speeds
from homelab.placement import place
from homelab.plan import Plan, diff
from homelab.proofs import Result, Subject, Verdict
from homelab.render import render
from homelab.status import GatewayStatus, Instance, ModelStatus, Status
from homelab.ui import cells, discover, fit, plan, status, why
from homelab.ui import proofs as proofs_ui
from tests.machines import GIB, HUB, KEYS, deployed, gpu, household, machine, survey, tiny_gguf

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden/screens"
WIDTHS = (80, 100, 120, 200)
ENVIRON = {"ANTHROPIC_API_KEY": "sk-ant-test"}
ONE = """\
gateway: {node: this}
nodes: {this: {host: localhost}}
models: {tiny: {engine: llamacpp, source: /models/tiny.gguf, context: 2048}}
"""
FIVE = (
    (ROOT / "inventory.example.yml")
    .read_text()
    .replace("  # this: {host: localhost} ", "  studio: {host: 192.168.1.30}\n  # this: {host: localhost} ")
)
LONG = "the-machine-in-the-cellar-beside-the-boiler"
GREAT = "qwen3-coder-480b-a35b-instruct-with-a-name-as-people-give-it"
WIDE = "グラフィックスカード 極めて長い名前 ゲーミング 水冷"


def great() -> tuple[str, Survey]:
    """Twenty machines with forty cards each, names that are long, and names that are wide."""
    names = [f"{LONG}-{n:02}" if n % 4 == 0 else f"node-{n:02}" for n in range(20)]
    lines = ["gateway: {node: node-01}", "nodes:"]
    lines += [f"  {name}: {{host: 10.0.0.{n + 10}}}" for n, name in enumerate(names)]
    lines += ["models:"]
    for n, name in enumerate(names[:-1]):
        model = f"{GREAT}-{n:02}"[:63] if n % 4 == 0 else f"model-{n:02}"
        pinned = f"node: {name}, gpu: {n % 3}"
        lines.append(f"  {model}: {{engine: llamacpp, source: /models/tiny.gguf, context: 4096, {pinned}}}")
    nodes: dict[str, Facts | str] = {}
    for n, name in enumerate(names):
        wide = {"name": WIDE} if n % 5 == 1 else {}
        cards = [gpu("NVIDIA A100-SXM4-80GB", 81000, index=i).model_copy(update=wide) for i in range(40)]
        cards[3] = _used(cards[3])
        nodes[name] = machine(name, *cards, address=f"10.0.0.{n + 10}", weights=(tiny_gguf(),))
    nodes[names[-1]] = "Node does not answer"
    return "\n".join(lines) + "\n", survey(HUB, **nodes)


def _used(card: GPU) -> GPU:
    process = Process(pid=7, name="学習スクリプト-very-long-name-of-a-training-run.py", memory_bytes=30 * GIB)
    return card.model_copy(update={"processes": (process,), "memory_free_bytes": 40 * GIB})


@cache
def house(name: str) -> tuple[Inventory, Survey]:
    match name:
        case "one":
            text, found = ONE, survey(this=machine("this", weights=(tiny_gguf(),)))
        case "five":
            text, found = FIVE, household(studio="asleep")
            problem = Problem(source="nvidia", message="Driver/library version mismatch: reboot this machine")
            facts = found.nodes["server"].facts
            assert facts is not None
            sick = NodeReport(reachable=True, facts=facts.model_copy(update={"problems": (problem,)}))
            error = Failure(
                message="Node `studio` does not answer", cause="192.168.1.30:22: no answer in time"
            )
            silent = NodeReport(reachable=False, error=error)
            nodes = {**found.nodes, "server": sick, "studio": silent}
            found = found.model_copy(update={"nodes": nodes})
        case _:
            text, found = great()
    return load(text, "inventory.yml"), found


def planned(inventory: Inventory, found: Survey) -> Plan:
    layout = place(inventory, found)
    return with_speeds(diff(inventory, layout, render(inventory, layout, found, KEYS, ENVIRON), found))


@cache
def decided(name: str) -> Plan:
    return planned(*house(name))


def running(name: str) -> Survey:
    """The house with all of the plan deployed."""
    _, found = house(name)
    services = decided(name).services
    nodes = {
        n: r.model_copy(update={"facts": r.facts.model_copy(update={"services": deployed(services, n)})})
        if r.facts
        else r
        for n, r in found.nodes.items()
    }
    return found.model_copy(update={"nodes": nodes})


def health(name: str) -> Status:
    inventory, found = house(name)
    models = []
    for number, model in enumerate(sorted(inventory.models)):
        mine = [p for p in decided(name).layout if p.model == model]
        broken = number % 3 == 1
        instances = tuple(
            Instance(
                node=p.node,
                service=p.service,
                engine=p.engine,
                state="unhealthy" if broken else "running",
                detail="health: [Errno 111] Connection refused by what listens there" if broken else None,
                url="http://192.168.1.10:8000",
                context=None if broken else p.request.context,
                planned_context=p.request.context,
                planned_bytes=p.bytes,
                used_bytes=None if broken else p.bytes - GIB // 8,
            )
            for p in mine
        )
        models.append(ModelStatus(name=model, kind="chat", instances=instances))
    front = GatewayStatus(
        node=inventory.gateway.node, url="http://192.168.1.2:4000", state="running", healthy=name != "great"
    )
    return Status(gateway=front, models=tuple(models), nodes=found.nodes, away=frozenset())


def fitted(*, gpu: str, **more: str) -> fit_command.Answer:
    question = fit_command.Question(inventory=Path("inventory.yml"), gpu=gpu, **more)  # type: ignore[arg-type]
    return fit_command.answer(question)


def plan_screen(name: str, width: int) -> list[Text]:
    inventory, _ = house(name)
    return [*plan.lines(decided(name), width), *plan.summary(decided(name), inventory, width)]


def unchanged_screen(name: str, width: int) -> list[Text]:
    inventory, _ = house(name)
    again = planned(inventory, running(name))
    return [*plan.lines(again, width), *plan.summary(again, inventory, width)]


def why_screen(name: str, width: int) -> list[Text]:
    return why.lines(decided(name), min(house(name)[0].models), width)


def fit_screen(name: str, width: int) -> list[Text]:
    source = {"one": "qwen3-0.6b", "five": "qwen3-30b-a3b", "great": "gpt-oss-120b"}[name]
    return fit.lines(fitted(source=source, gpu="RTX 4090", context="32k"), width)


def history_screen(name: str, width: int) -> list[Text]:
    measured = [
        Measurement(
            device=p.device.name,
            engine=p.engine,
            version="v1",
            source=p.source,
            model=p.model,
            node=p.node,
            context=p.request.context,
            concurrency=p.request.concurrency,
            predicted={},
            grades={},
            reported={},
            planned_bytes=p.bytes,
            used_bytes=p.bytes * 98 // 100,
        )
        for p in decided(name).layout
    ]
    return fit.lines(fit_command.History(measured=tuple(measured)), width)


def proofs_screen(name: str, width: int) -> Sequence[Text]:
    subject = Subject(name=max(load_names(name), key=len), context=32768, engine="vllm")
    odd: dict[tuple[str, str], tuple[Verdict, str, int]] = {
        ("one call", "chat"): (
            Verdict(
                outcome="broken",
                fault="refused",
                why='HTTP 400: "auto" tool choice requires --enable-auto-tool-choice and '
                "--tool-call-parser to be set",
            ),
            "`args: {enable-auto-tool-choice: true, tool-call-parser: qwen3_coder}` (vllm-project/recipes)",
            1,
        ),
        ("two calls", "chat"): (Verdict(outcome="model", why="it made one call, not two at once"), "", 2),
        ("two calls", "messages"): (
            Verdict(outcome="model", why="it made one call, not two at once"),
            "",
            2,
        ),
        ("thinking replay", "responses"): (Verdict(outcome="skipped", why="it does not think"), "", 1),
        ("count_tokens", "messages"): (
            Verdict(outcome="lacks", why="201 tokens, the prompt has 140 (+44%): LiteLLM estimates"),
            "",
            1,
        ),
        ("prompt cache", "chat"): (
            Verdict(outcome="unknown", why="nobody tells of cached tokens"),
            "`args: {enable-prompt-tokens-details: true}`: vLLM tells of cached tokens then",
            1,
        ),
    }
    results = []
    for proof in proofs.proofs():
        for protocol in proof.protocols:
            verdict, mend, tries = odd.get((proof.name, protocol), (Verdict(outcome="works"), "", 1))
            results.append(
                Result(
                    model=subject.name,
                    proof=proof.name,
                    protocol=protocol,
                    verdict=verdict,
                    mend=mend,
                    tries=tries,
                )
            )
    shown = [*proofs_ui.lines(subject, results, width), Text()]
    return [*shown, *proofs_ui.summary([(subject, results)], width)]


def load_names(name: str) -> Sequence[str]:
    return list(house(name)[0].models)


SCREENS: dict[str, Callable[[str, int], Sequence[Text]]] = {
    "discover": lambda name, width: discover.lines(*house(name), 1.2, width),
    "plan": plan_screen,
    "plan-verbose": lambda name, width: plan.lines(decided(name), width, verbose=True),
    "plan-unchanged": unchanged_screen,
    "why": why_screen,
    "status": lambda name, width: status.lines(health(name), width),
    "house": lambda name, width: status.house(health(name), "homelab status", width),
    "fit": fit_screen,
    "fit-history": history_screen,
    "proofs": proofs_screen,
}
KEPT = ("discover", "plan", "why", "status", "house", "fit", "proofs")  # as golden files


def printed(lines: Sequence[Text], width: int, **options: object) -> str:
    file = io.StringIO()
    screen = ui.Screen(file=file, width=width, soft_wrap=True, **options)
    for line in lines:
        screen.print(line)
    return file.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "five", "great"])
@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_fits_its_terminal(
    screen: str, name: str, width: int, request: pytest.FixtureRequest
) -> None:
    lines = SCREENS[screen](name, width)
    plain = printed(lines, width)
    coloured = printed(lines, width, force_terminal=True, color_system="truecolor")
    for line in plain.splitlines():
        assert cell_len(line) <= width, line
        assert line == line.rstrip()
    # Colour only decorates.
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    assert ("\x1b[" in coloured) or screen in ("fit-history", "plan-unchanged")
    if screen in KEPT:
        files = {f"{screen}-{name}-{width}.txt": plain}
        if width == 80:
            files[f"{screen}-{name}-{width}.ansi"] = coloured
        for file, text in files.items():
            if request.config.getoption("--update-golden"):
                GOLDEN.mkdir(exist_ok=True)
                (GOLDEN / file).write_text(text)
            assert (GOLDEN / file).read_text() == text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_catalog_fits_its_terminal(width: int) -> None:
    lines = fit.lines(fitted(what=True, gpu="2x RTX 3090"), width)  # type: ignore[arg-type]
    assert len(lines) > 10
    assert all(line.cell_len <= width for line in lines)


def test_a_great_house_is_seen_at_a_glance() -> None:
    """800 cards and 20 machines: what is used is shown by itself, the rest is counted."""
    shown = discover.lines(*house("great"), 1.2, 100)
    assert len(shown) < 100
    assert any("A100-SXM4-80GB" in line.plain and "4-39" in line.plain for line in shown)
    assert len(unchanged_screen("great", 100)) < 10


def test_reasons_have_few_words() -> None:
    for name in ("one", "five", "great"):
        assert all(len(p.summary.split()) <= plan.REASON_WORDS for p in decided(name).layout)


def test_words_stay_whole_and_wide_ones_are_folded() -> None:
    text = "what happened: /a/path/that/is/longer/than/its/terminal and then some more words"
    lines = [line.plain for line in cells.wrapped(text, 24, first="! ", rest="    ")]
    assert [word for line in lines for word in line.split()][1:] == text.split()
    assert all(cell_len(line) <= 24 for line in lines if "/a/path" not in line)
    assert all(cell_len(line.plain) <= 24 for line in cells.wrapped(WIDE * 3, 24, rest="  "))
    assert "".join(line.plain.strip() for line in cells.wrapped(WIDE * 3, 24)).replace(" ", "") == (
        WIDE * 3
    ).replace(" ", "")


@pytest.mark.parametrize("width", range(1, 40))
def test_what_is_cut_fits(width: int) -> None:
    for text in ("short", GREAT, WIDE, "a\nb\tc " * 9):
        assert cell_len(cells.clip(text, width)) <= width
        assert cell_len(cells.clip_middle(text, width)) <= width


def test_a_terminal_without_unicode_gets_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    screen = ui.Screen(file=file, width=100, soft_wrap=True)
    for line in plan_screen("five", 100):
        screen.print(line)
    file.seek(0)
    text = file.read()
    assert "#####" in text and "\\u" not in text and " x 2 " in text
