"""The command line as a user meets it: exit codes, both streams, no traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from homelab.pipeline import read_inventory
from tests.machines import household, survey, workstation

ROOT = Path(__file__).parent.parent


@pytest.fixture
def homelab(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run it with an empty home, in a folder of its own."""

    def run(
        *arguments: str, stdin: str = "", prog: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "home"),
            "NO_COLOR": "1",
            "COLUMNS": "200",
        } | environment
        command = [Path(sys.executable).parent / prog] if prog else [sys.executable, "-m", "homelab"]
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env,
            input=stdin,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done

    (tmp_path / "home").mkdir()
    (tmp_path / "inventory.yml").write_text((ROOT / "inventory.example.yml").read_text())
    (tmp_path / "facts.json").write_text(household().model_dump_json())
    return run


def test_version_and_help(homelab) -> None:  # type: ignore[no-untyped-def]
    assert homelab("--version").stdout.startswith("homelab 0.")
    for verb in ("discover", "plan", "why", "render", "deploy", "ask", "status", "top", "logs", "remove"):
        assert homelab(verb, "--help").returncode == 0


def test_help_has_every_verb_once_in_its_group(homelab) -> None:  # type: ignore[no-untyped-def]
    from homelab.cli import app

    text = homelab("--help", COLUMNS="80").stdout
    groups = re.split(r"^(See|Decide|Do|Use):\n", text, flags=re.MULTILINE)[1:]
    assert groups[::2] == ["See", "Decide", "Do", "Use"]
    shown = re.findall(r"^  ([a-z]+) ", "".join(groups[1::2]), flags=re.MULTILINE)
    verbs = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    assert sorted(shown) == sorted([*verbs, *(str(g.name) for g in app.registered_groups)])
    assert "..." not in "".join(groups), "a sentence is cut off"
    assert max(map(len, text.splitlines())) <= 80


def test_alone_it_shows_the_house_in_five_lines(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "inventory.yml").write_text(
        "gateway: {node: a, port: 4999}\nnodes: {a: {host: localhost, address: 10.0.0.9, runtime: native}, "
        "gone: {host: 127.0.0.1, port: 1}}\nmodels: {m: {engine: llamacpp, source: ~/m.gguf}}\n"
    )
    done = homelab(COLUMNS="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["gateway", "models", "nodes", "wrong", "next"]
    assert all(len(line) <= 80 for line in lines)
    assert "missing" in lines[0] and "0 of 1" in lines[1] and "1 of 2" in lines[2]
    assert "not reached: gone" in lines[3] and "homelab discover" in lines[4]


def test_alone_without_an_inventory_it_says_how_to_begin(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "inventory.yml").unlink()
    done = homelab(COLUMNS="80")
    assert done.returncode == 0 and "homelab init" in done.stdout and "homelab --help" in done.stdout
    assert homelab("-i", "elsewhere.yml").returncode == 2


def completed(homelab, line: str) -> list[str]:  # type: ignore[no-untyped-def]
    """What bash is told for a command line with the cursor at its end."""
    words = line.split(" ")
    done = homelab(
        prog="homelab", _HOMELAB_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)
    )
    assert done.stderr == ""
    return sorted(done.stdout.split())


def test_the_shell_completes_nodes_and_models(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert completed(homelab, "homelab wh") == ["why"]
    assert completed(homelab, "homelab why qwen3-3") == ["qwen3-30b"]
    assert completed(homelab, "homelab logs ") == ["gateway", "qwen3-30b", "qwen3-4b", "tiny"]
    assert completed(homelab, "homelab logs tiny --node s") == ["server"]
    assert completed(homelab, "homelab fit --node ") == ["laptop", "pi", "server", "workstation"]
    assert completed(homelab, "homelab fit gpt-oss-2") == ["gpt-oss-20b"]
    assert completed(homelab, "homelab remove tiny qwen3-4") == ["qwen3-4b"]
    (tmp_path / "other.yml").write_text("models: {mine: 3, [a]: 4}\ncloud: {claude: {}}\n")
    assert completed(homelab, "homelab -i other.yml ask ") == []  # a key that is a list is no name
    (tmp_path / "other.yml").write_text("models: {mine: 3, a;b: 4}\ncloud: {claude: {}}\n")
    assert completed(homelab, "homelab -i other.yml ask ") == ["claude", "mine"]
    assert completed(homelab, "homelab ask -i other.yml c") == ["claude"]
    (tmp_path / "other.yml").write_text("front: {tls: internal}\n")
    for verb in ("why", "logs", "restart"):
        assert completed(homelab, f"homelab -i other.yml {verb} ") == ["front", "gateway"]
    (tmp_path / "inventory.yml").unlink()
    assert completed(homelab, "homelab why ") == ["gateway"]


def test_why_there_is_a_front_is_said_where_there_is_one(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = homelab("why", "front", "--facts", "facts.json")
    assert done.returncode == 2 and "No model `front`" in done.stderr
    with (tmp_path / "inventory.yml").open("a") as file:
        file.write("front: {}\n")
    done = homelab("why", "front", "--facts", "facts.json")
    assert done.returncode == 0 and "front on pi" in done.stdout and "not there yet" in done.stdout


def test_why_answers_from_the_same_plan(homelab) -> None:  # type: ignore[no-untyped-def]
    plan = json.loads(homelab("plan", "--facts", "facts.json", "--json").stdout)
    done = homelab("why", "qwen3-30b", "--facts", "facts.json", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    (mine,) = (p for p in plan["placements"] if p["model"] == "qwen3-30b")
    assert f"{mine['gpu_memory_utilization']:.3f}" in done.stdout and f"{mine['context']} × 4" in done.stdout
    for part in ("What it takes, in GiB", "Why here", "Why not there", "What would change it"):
        assert f"\n{part}\n" in done.stdout
    assert "the tightest fit of 2 places" in done.stdout
    assert "server GPU 0 (vllm)" in done.stdout
    assert "server GPU 1 (vllm): `node: server, gpu: 1` puts it there" in done.stdout
    everything = homelab("plan", "-v", "--facts", "facts.json").stdout
    assert everything.count("Why here") == len(plan["placements"])
    assert homelab("why", "qwen3-31b", "--facts", "facts.json").returncode == 2
    assert "not there yet" in homelab("why", "gateway", "--facts", "facts.json").stdout


def test_watching_needs_a_terminal(homelab) -> None:  # type: ignore[no-untyped-def]
    for words in (("status", "--watch"), ("top",)):
        done = homelab(*words)
        assert done.returncode in (1, 2) and "terminal" in done.stderr and "Traceback" not in done.stderr


def test_plan_from_saved_facts_needs_no_network_and_prints_the_documented_json(homelab) -> None:  # type: ignore[no-untyped-def]
    done = homelab("plan", "--facts", "facts.json", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {"schema_version", "placements", "unplaced", "changes"} <= set(document)
    placement = document["placements"][0]
    assert {
        "model",
        "node",
        "engine",
        "gpus",
        "port",
        "context",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "bytes",
        "terms",
        "reason",
    } <= set(placement)
    assert {"name", "bytes", "grade"} <= set(placement["terms"][0])
    assert {"action", "node", "service", "reason"} <= set(document["changes"][0])


def test_plan_check_says_by_its_exit_code_that_there_is_something_to_do(homelab) -> None:  # type: ignore[no-untyped-def]
    assert homelab("plan", "--facts", "facts.json", "--check").returncode == 5


def test_the_inventory_may_come_from_standard_input_and_the_option_may_stand_in_front(
    homelab, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    text = (tmp_path / "inventory.yml").read_text()
    assert homelab("plan", "-i", "-", "--facts", "facts.json", stdin=text).returncode == 0
    assert homelab("-i", "inventory.yml", "plan", "--facts", "facts.json").returncode == 0
    assert homelab("plan", "--facts", "facts.json", HOMELAB_INVENTORY="inventory.yml").returncode == 0


def test_render_writes_what_deploy_would_put_on_each_node(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = homelab("render", "-o", "out", "--facts", "facts.json")
    assert done.returncode == 0, done.stderr
    composes = sorted(tmp_path.glob("out/*/.local/share/homelab/home/*/*/compose.yml"))
    assert len(composes) == 5
    assert all(p.with_name("service.env").stat().st_mode & 0o777 == 0o600 for p in composes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "inventory.yml:1"),
        ("nodes: [", "inventory.yml:"),
        ("gateway: {node: a}\nnodes: {a: {hots: b}}\n", "did you mean `host`?"),
    ],
)
def test_a_bad_inventory_is_exit_2_with_every_mistake(homelab, tmp_path: Path, text: str, said: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "inventory.yml").write_text(text)
    for verb in (
        ["discover"],
        ["plan"],
        ["deploy", "--yes"],
        ["status"],
        ["render", "-o", "x"],
        ["remove", "--yes"],
        ["logs", "x"],
        ["ask", "x"],
    ):
        done = homelab(*verb)
        assert done.returncode == 2, verb
        assert said in done.stderr
        assert done.stdout == ""


def test_no_inventory_says_how_to_get_one(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "inventory.yml").unlink()
    done = homelab("plan")
    assert done.returncode == 2
    assert "homelab init" in done.stderr
    assert homelab("init").returncode == 0
    assert homelab("plan", "--facts", "facts.json").returncode == 0
    assert "there already" in homelab("init").stderr


def test_an_unknown_verb_or_option_is_a_usage_error(homelab) -> None:  # type: ignore[no-untyped-def]
    assert homelab("dicsover").returncode == 2
    assert homelab("plan", "--jsn").returncode == 2


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"schema_version": 99}', '{"schema_version": 1, "nodes": {"a": 3}}', "\x00"]
)
def test_a_file_that_is_no_survey_is_refused(homelab, tmp_path: Path, content: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "facts.json").write_text(content)
    done = homelab("plan", "--facts", "facts.json")
    assert done.returncode == 2
    assert "homelab discover --save facts.json" in done.stderr


def test_what_does_not_fit_is_exit_3_with_the_arithmetic(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "inventory.yml").write_text(
        "gateway: {node: workstation}\nnodes: {workstation: {host: 10.0.0.1}}\nmodels: "
        "{m: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 40960, concurrency: 8}}\n"
    )
    (tmp_path / "facts.json").write_text(
        survey(dict(household().models), workstation=workstation()).model_dump_json()
    )
    done = homelab("plan", "--facts", "facts.json")
    assert done.returncode == 3
    assert "weights 15.7 + kv_cache" in done.stderr
    assert "`firefox` holds" in done.stderr


def test_a_missing_environment_variable_is_named_before_anything_is_asked(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = (
        "gateway: {node: a}\nnodes: {a: {host: localhost}}\ncloud: {c: {model: anthropic/x, "
        "api_key: env:NOT_THERE}}\n"
    )
    (tmp_path / "inventory.yml").write_text(text)
    for verb in (["plan"], ["deploy", "--yes"]):
        done = homelab(*verb)
        assert done.returncode == 2
        assert "cloud.c.api_key: environment variable NOT_THERE is not set" in done.stderr


def test_deploy_without_a_terminal_and_without_yes_refuses(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "inventory.yml").write_text(
        "gateway: {node: a, port: 4999}\nnodes: {a: {host: localhost, runtime: native}}\n"
    )
    done = homelab("deploy")
    assert done.returncode == 1
    assert "homelab deploy --yes" in done.stderr


def test_discover_asks_this_machine_and_prints_the_documented_json(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "inventory.yml").write_text(
        "gateway: {node: a}\nnodes: {a: {host: localhost, address: 192.168.0.9}, gone: "
        "{host: 127.0.0.1, port: 1, away: true}}\n"
    )
    done = homelab("discover", "--json")
    document = json.loads(done.stdout)["nodes"]["a"]
    assert (document["reachable"], document["error"]) == (True, None)
    assert {
        "hostname",
        "os",
        "arch",
        "memory_total_bytes",
        "memory_available_bytes",
        "gpus",
        "docker",
        "problems",
    } <= set(document["facts"])


def test_a_node_that_refuses_is_a_row_and_exit_4_unless_it_is_away(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = (
        "gateway: {node: a}\nnodes: {a: {host: localhost, address: 192.168.0.9}, gone: "
        "{host: 127.0.0.2, port: 1%s}}\n"
    )
    (tmp_path / "inventory.yml").write_text(text % "")
    done = homelab("discover")
    assert done.returncode == 4
    assert "Connection refused" in done.stdout
    assert "2 nodes, 1 reachable" in done.stdout
    (tmp_path / "inventory.yml").write_text(text % ", away: true")
    done = homelab("discover")
    assert done.returncode == 0
    assert "away" in done.stdout


@pytest.mark.parametrize(
    "words", [("fit", "./m\udcff.gguf"), ("ask", "a\udcff", "hi"), ("plan", "-i", "\udcff")]
)
def test_an_argument_that_is_not_utf_8_is_a_usage_error(homelab, words: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    done = homelab(*words)
    assert done.returncode == 2
    assert "is not UTF-8" in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    "words", [("fit", "~nosuchuser/x.gguf"), ("fit", "qwen3-4b", "--mmproj", "~nosuchuser/x.gguf")]
)
def test_the_home_of_nobody_is_no_bug(homelab, words: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    done = homelab(*words)
    assert done.returncode in (0, 2, 3), done.stderr


def test_an_inventory_that_is_not_utf_8_is_exit_2(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "latin.yml").write_bytes("cluster: h\xe4us".encode("latin-1"))
    done = homelab("plan", "-i", "latin.yml")
    assert done.returncode == 2 and "latin.yml" in done.stderr


def test_keys_may_lie_in_a_file_that_only_its_owner_reads(homelab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = (
        "gateway: {node: a}\nnodes: {a: {host: localhost}}\nsecrets_file: house.env\n"
        "cloud: {c: {model: anthropic/x, api_key: env:NOT_THERE}}\n"
    )
    (tmp_path / "inventory.yml").write_text(text)
    assert "Or write them into `house.env`" in homelab("plan").stderr
    file = tmp_path / "house.env"
    file.write_text("# mine\n\nexport NOT_THERE='sk-of a cloud#1'\n")
    file.chmod(0o640)
    done = homelab("plan")
    assert done.returncode == 2 and "others may read it" in done.stderr and "chmod 600" in done.stderr
    file.chmod(0o600)
    done = homelab("plan")
    assert "NOT_THERE" not in done.stderr
    assert read_inventory(tmp_path / "inventory.yml").environ["NOT_THERE"] == "sk-of a cloud#1"
    file.write_text("A=1\nsk-lies-here\nB='\n")
    done = homelab("plan")
    assert done.returncode == 2 and "house.env:2: not a line" in done.stderr and "house.env:3" in done.stderr
    assert "sk-lies-here" not in done.stderr
