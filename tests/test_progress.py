"""What a deploy shows while it goes on, at its end, and where it is interrupted: as text, at any width. The
golden lines are in tests/golden/screens; `pytest --update-golden` writes them anew."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from homelab import pipeline, state, ui
from homelab.ask import Answer
from homelab.deploy.events import Clock, Event, Step, Took
from homelab.errors import DeployError, NodeError
from homelab.plan import Change, Place
from homelab.ui.progress import Line, Progress, State, answers, clock_text, left_as, lines
from tests.test_plan import TEXT, fresh, make

GIB = 2**30
LOG = "INFO 11-25 Loading safetensors checkpoint shards: 50% Completed | 2/4 [00:03<00:03, 1.6s/it] of model"
PLACES = [
    ("workstation", "coder"),
    ("workstation", "gateway"),
    ("laptop", "notes"),
    ("laptop", "vectors"),
    ("server", "big"),
    ("server", "small"),
    ("server", "old"),
    ("server", "ranks"),
]
WIDTHS = (80, 100, 120, 200)


def event(place: Place, step: Step, **more: Any) -> Event:
    return Event(node=place[0], service=place[1], step=step, **more)


@pytest.fixture
def house() -> State:
    """Every phase at once, at second 44.7."""
    shown = State({p: Line() for p in PLACES})
    shown.services[PLACES[0]].load_seconds = 70.0
    said: list[tuple[float, int, Step, dict[str, Any]]] = [
        (0.0, 0, "stop", {"text": "another context"}),
        (2.0, 0, "start", {}),
        (3.0, 0, "load", {"text": LOG}),
        (0.0, 2, "fetch", {"text": "image", "done_bytes": int(1.24 * GIB), "total_bytes": int(3.4 * GIB)}),
        (0.0, 3, "copy", {"text": "0.1", "done_bytes": 120 << 20, "total_bytes": 512 << 20}),
        (1.0, 4, "start", {}),
        (12.0, 4, "failed", {"error": DeployError("`big` on node `server` died at start (exit code 1)")}),
        (0.0, 5, "start", {}),
        (7.2, 5, "healthy", {}),
        (1.0, 6, "removed", {"text": "not in the inventory any more"}),
        (0.0, 7, "start", {}),
        (9.0, 7, "rolled-back", {"text": "`ranks` runs again as it was before"}),
        (9.5, 7, "failed", {"error": DeployError("`ranks` is not healthy")}),
    ]
    for now, i, step, more in said:
        shown.told(event(PLACES[i], step, **more), now)
    return shown


GOLDEN = Path(__file__).parent / "golden/screens"


def text(shown: State, width: int, now: float = 44.7, rows: int | None = None) -> str:
    made = lines(shown, width, now, rows)
    assert all(line.cell_len <= width and "\n" not in line.plain for line in made)
    return "".join(f"{line.plain}\n" for line in made)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_phase_at_every_width(house: State, width: int, pytestconfig: pytest.Config) -> None:
    golden = GOLDEN / f"deploy-{width}.txt"
    if pytestconfig.getoption("--update-golden"):
        golden.write_text(text(house, width))
    assert text(house, width) == golden.read_text()


def test_the_time_that_waiting_takes_is_nobodys() -> None:
    clock = Clock()
    for now, step in ((0.0, "fetch"), (10.0, "wait"), (50.0, "start"), (51.0, "load")):
        clock.told(step, now)  # type: ignore[arg-type]
    assert clock.seconds(57.0) == 17.0
    assert clock.took(57.0) == Took(seconds=17.0, load_seconds=7.0)
    clock.told("healthy", 57.0)
    assert clock.seconds(1000.0) == 17.0


def test_times_as_people_read_them() -> None:
    assert [clock_text(s) for s in (0, 9.9, 70, 3600, 36123)] == [
        "0:00",
        "0:09",
        "1:10",
        "1:00:00",
        "10:02:03",
    ]


def test_more_services_than_the_terminal_has_rows() -> None:
    """Those at work and those that failed have a line, the others are counted."""
    places = [(f"node{n:02}", f"model{m}") for n in range(20) for m in range(5)]
    shown = State({p: Line() for p in places})
    for number, place in enumerate(places):
        if number < 60:
            shown.told(event(place, "start"), 0.0)
        if number < 50:
            shown.told(event(place, "healthy"), 5.0)
    shown.told(event(places[0], "failed", error=DeployError("it died")), 6.0)
    for width in WIDTHS:
        said = text(shown, width, rows=24).splitlines()
        assert len(said) == 12
        assert said[-1] == "49 ready · 40 wait"
        assert "model0  node00" in said[0] and "failed" in said[0]
        assert all("start" in line for line in said[1:-1])
    assert text(shown, 80, rows=6).splitlines()[-1] == "49 ready · 5 at work · 40 wait · 1 failed"
    assert len(text(shown, 80, rows=1).splitlines()) == 1
    assert len(text(shown, 80).splitlines()) == 100  # as it is left at the end
    assert len(text(shown, 80, rows=100).splitlines()) == 100


def test_no_name_and_no_width_breaks_a_line(house: State) -> None:
    long = State(
        {
            ("漢字の計算機" * 4, "模型" * 40): Line(text="読み込み中" * 40),
            ("n" * 70, "m" * 200): Line(text="x" * 500),
            ("a\nb", "c\td"): Line(text="e\nf"),
        }
    )
    for shown in (house, long):
        for step in ("load", "copy", "failed", "healthy", "wait", "rolled-back"):
            for line in shown.services.values():
                line.step = step  # type: ignore[assignment]
                line.done_bytes, line.total_bytes = 999 * GIB, 1000 * GIB
            for width in (1, 2, 5, 10, 20, 33, 47, 60, *WIDTHS):
                text(shown, width)
                text(shown, width, rows=2)
    assert "…" in text(long, 80).splitlines()[0]


def test_a_bar_is_only_where_bytes_are_known() -> None:
    shown = State({("n", "s"): Line(step="fetch", text="Collecting torch")})
    assert "█" not in text(shown, 80) and "Collecting torch" in text(shown, 80)
    shown.services["n", "s"].total_bytes = 4 * GIB
    shown.services["n", "s"].done_bytes = 9 * GIB
    assert "█" * 20 + " 4.0 of 4.0 GiB" in text(shown, 80)


def test_a_node_that_is_lost_takes_what_is_not_done_with_it(house: State) -> None:
    house.told(
        Event(node="server", service="", step="failed", error=NodeError("Node `server` is gone")), 45.0
    )
    house.told(
        Event(node="laptop", service="", step="failed", error=NodeError("Node `laptop` is gone")), 45.0
    )
    steps = {place: line.step for place, line in house.services.items()}
    assert (steps["laptop", "notes"], steps["laptop", "vectors"], steps["server", "small"]) == (
        "failed",
        "failed",
        "healthy",
    )


# on a screen


def played(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, **options: Any) -> str:
    """What stderr gets of one deploy."""
    out = io.StringIO()
    screen = ui.Screen(file=out, soft_wrap=True, force_terminal=terminal, **options)
    monkeypatch.setattr(ui, "err", screen)
    place = ("n", "s")
    with Progress([place, ("n", "t")], {place: Took(seconds=9.0, load_seconds=3.0)}) as progress:
        progress(event(place, "fetch", text="Collecting [bold]x[/bold] \x1b[2J\x1b]0;title\x07"))
        progress(event(place, "wait"))
        progress(event(place, "start"))
        progress(event(place, "load"))
        progress(event(place, "load", text="50%"))
        progress(event(place, "healthy"))
        progress(event(("n", "t"), "failed", error=DeployError("`t` died", cause="no memory")))
        progress.asks("s")
    return out.getvalue()


def test_on_a_pipe_there_is_a_line_for_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    said = played(monkeypatch, terminal=False, width=200)
    assert "\x1b" not in said
    assert [re.sub(r"^ +[\d.]+ s ", "", line).split() for line in said.splitlines()] == [
        ["n", "s", "fetch", "Collecting", "[bold]x[/bold]", "[2J]0;title"],
        ["n", "s", "start"],
        ["n", "s", "load", "50%"],
        ["n", "s", "healthy"],
        ["n", "t", "failed"],
        ["error:", "`t`", "died"],
        ["no", "memory"],
    ]


@pytest.mark.parametrize("no_color", [True, False])
def test_on_a_terminal_the_lines_stay_and_errors_stand_above_them(
    monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    said = played(
        monkeypatch,
        terminal=True,
        width=80,
        height=24,
        no_color=no_color,
        color_system="truecolor",
        legacy_windows=False,
    )
    steering = re.sub(r"\x1b\[[\d;]*m", "", said)
    # Up, erase a line, hide and show the cursor: nothing that a node said is among them.
    assert set(re.findall(r"\x1b\[[?\d;]*[A-Za-z]", steering)) <= {
        "\x1b[1A",
        "\x1b[2K",
        "\x1b[?25l",
        "\x1b[?25h",
    }
    assert "\x1b]" not in said and "\x1b[2J" not in said
    assert bool(re.search(r"\x1b\[[\d;]*3[1-6]m", said)) != no_color
    plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", said)
    assert plain.index("error: `t` died\n") < plain.index("  no memory\n") < plain.rindex("█ s  n  ready")
    assert plain.endswith("█ s  n  ready    0:00\n× t  n  failed         `t` died\n")
    assert all(cell_len(line) <= 80 for line in re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", said).split("\n")[-3:])


# the end


def test_the_end_is_a_line_for_each_model() -> None:
    hello = "Hello! I'm an assistant that loves to help people overcome their challenges, day and night."
    said = [
        (
            "coder",
            Answer(
                model="coder",
                text=hello,
                seconds=2.0,
                first_token_seconds=0.314,
                served_by="workstation/coder",
            ),
        ),
        (
            "notes",
            Answer(model="notes", text="I am\nnotes.", seconds=2.0, first_token_seconds=1.0, served_by="l/n"),
        ),
        ("vectors", Answer(model="vectors", text="576 dimensions", seconds=0.25, served_by="l/vectors")),
        ("silent", DeployError("`silent` did not answer through the gateway")),
    ]
    took = {("workstation", "coder"): Took(seconds=7.24, load_seconds=5.0)}
    assert "".join(f"{line.plain}\n" for line in answers(said, took, 400)) == (
        f'coder    on workstation/coder  ready in 7.2 s  first token 0.31 s  "{hello}"\n'
        'notes    on l/n                                first token 1.00 s  "I am notes."\n'
        "vectors  on l/vectors                          answer 0.25 s       576 dimensions\n"
        "silent   no answer\n"
    )
    assert [line.plain for line in answers(said, took, 80)] == [
        'coder    on workstation/coder  ready in 7.2 s  first token 0.31 s  "Hello! I\'m…"',
        'notes    on l/n                                first token 1.00 s  "I am notes."',
        "vectors  on l/vectors                          answer 0.25 s       576 dimensio…",
        "silent   no answer",
    ]
    long = Answer(
        model="m", text="話" * 500, seconds=1.0, first_token_seconds=1.0, served_by="節点/" + "模" * 60
    )
    for width in (20, 30, 50, *WIDTHS, 400):
        for line in answers([*said, ("長" * 50, long)], took, width):
            assert line.cell_len <= width
    assert answers([], {}, 80) == []
    (whole,) = answers([("m", replace(long, text="x" * 500, served_by="n/m"))], {}, 400)
    assert whole.plain.count("x") == 200


# ^C


def test_an_interrupted_deploy_says_what_goes_on_and_what_is_down() -> None:
    changes = [
        Change(action=action, node=node, service=service, reason="", leaves_for=target)
        for action, node, service, target in (
            ("create", "a", "coder", None),
            ("replace", "a", "notes", None),
            ("create", "b", "big", None),
            ("replace", "b", "old", None),
            ("create", "b", "tiny", None),
            ("create", "c", "done", None),
            ("remove", "c", "leaver", ("b", "big")),
            ("replace", "c", "gateway", None),
        )
    ]
    shown = State({c.place: Line() for c in changes})
    steps: list[tuple[Place, Step]] = [
        (("a", "coder"), "start"), (("a", "coder"), "load"),
        (("a", "notes"), "stop"), (("a", "notes"), "wait"),
        (("a", "notes"), "start"), (("a", "notes"), "load"),
        (("b", "big"), "fetch"),
        (("b", "old"), "stop"), (("b", "old"), "wait"),
        (("b", "tiny"), "start"),
        (("c", "done"), "start"), (("c", "done"), "healthy"),
        (("c", "leaver"), "stop"), (("c", "leaver"), "wait"),
    ]  # fmt: skip
    for place, step in steps:
        shown.told(event(place, step), 1.0)
    assert left_as(shown, changes, " -i house.yml") == [
        "`coder` on `a` goes on loading by itself: homelab logs coder -f -i house.yml",
        (
            "`notes` on `a` goes on loading by itself, and nothing puts the one before back if it fails: "
            "homelab logs notes -f -i house.yml"
        ),
        "`big` on `b`: what was being brought has stopped, and nothing was started",
        "`old` on `b` was stopped to be replaced: it is down until the next deploy",
        "`tiny` on `b` was being started: where it was, it loads by itself",
        "`leaver` on `c` was stopped to make room: it is down until the next deploy",
        "1 of 8 changes not made",
    ]


# what is remembered


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return state.directory("home")


def test_the_last_times_are_expected_of_the_same_engine_and_source_only(home: Path) -> None:
    _, plan = make(TEXT, fresh())
    engine = next(c for c in plan.todo if c.wanted and c.wanted.role == "engine")
    front = next(c for c in plan.todo if c.wanted and c.wanted.role == "gateway")
    assert pipeline.expected_times("home", plan.todo) == {}
    took = {
        engine.place: Took(seconds=9.0, load_seconds=7.0),
        front.place: Took(seconds=3.0, load_seconds=3.0),
    }
    pipeline._remember_times("home", plan, took)
    assert (home / "times.json").stat().st_mode & 0o777 == 0o600
    assert pipeline.expected_times("home", plan.todo) == took
    times = state.load_times("home")
    name = "/".join(engine.place)
    assert re.fullmatch(r"(vllm|llamacpp) \S+", times[name].what)
    state.save_times("home", {name: times[name].model_copy(update={"what": "llamacpp another"})})
    assert pipeline.expected_times("home", plan.todo) == {front.place: took[front.place]}
    for damaged in (
        "",
        "{",
        '{"a/b": 1}',
        '{"a/b": {"what": "x", "seconds": -1, "load_seconds": 1e999}}',
        "\xff",
    ):
        (home / "times.json").write_text(damaged, encoding="latin-1")
        assert state.load_times("home") == {}
    state.forget("home")
    assert not home.exists()


def test_times_that_cannot_be_kept_break_nothing(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, plan = make(TEXT, fresh())
    home.parent.mkdir(parents=True)
    home.write_text("a file")
    pipeline._remember_times("home", plan, {c.place: Took(seconds=1, load_seconds=1) for c in plan.todo})
    assert "is not remembered" in caplog.text
