"""`homelab test` itself, on one machine without Docker: the real LiteLLM, deployed, before a scripted engine
that stands in the inventory as a model of somebody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.clients.mock_engine import Engine
from tests.test_native_household import ROOT, cache_in, environment, free_port

pytestmark = pytest.mark.native
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Engine]]:
    home = tmp_path_factory.mktemp("home")
    cache_in(home)
    engine = Engine("sk-elsewhere", talks=True)
    (home / "inventory.yml").write_text(
        f"""\
cluster: test-proofs
gateway: {{node: this, port: {free_port()}}}
nodes: {{this: {{host: localhost, runtime: native}}}}
models: {{}}
cloud:
  far: {{model: hosted_vllm/m, api_base: "{engine.url}/v1", api_key: "env:ELSEWHERE"}}
"""
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "homelab", *arguments],
            capture_output=True,
            text=True,
            cwd=home,
            env=environment(home) | {"ELSEWHERE": "sk-elsewhere", "COLUMNS": "100", "PYTHONPATH": str(ROOT)},
            timeout=300,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    yield run, engine
    run("remove", "--yes")
    engine.shutdown()
    engine.server_close()


def test_what_works_is_exit_0_and_what_does_not_is_said_with_exit_1(house: tuple[Run, Engine]) -> None:
    run, engine = house
    deployed = run("deploy", "--yes")
    assert deployed.returncode == 0, deployed.stderr + deployed.stdout

    nobody = run("test")
    assert (nobody.returncode, "No model that chats runs" in nobody.stderr) == (1, True)
    assert engine.requests == []  # no prompt leaves the house unless somebody names the model

    done = run("test", "far")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "far: thinking replay" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "far  outside the house"
    assert lines[1].split() == ["PROOF", "CHAT", "COMPLETIONS", "ANTHROPIC", "MESSAGES", "RESPONSES"]
    assert next(line.split() for line in lines if line.startswith("five turns "))[2:] == ["works"] * 3
    assert "All works that an agent needs" in lines
    assert all(len(line) <= 100 for line in lines)

    engine.faults = frozenset({"empty-arguments"})
    done = run("test", "far", "--json")
    assert done.returncode == 1
    [model] = json.loads(done.stdout)["models"]
    wrong = {(r["proof"], r["fault"], r["tries"]) for r in model["results"] if r["outcome"] == "broken"}
    assert wrong == {("two calls", "empty-arguments", 2)}
    assert model["works"] is False

    engine.faults = frozenset({"no-call"})
    done = run("test", "far")
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "not done (tried twice): it did not call" in said
    assert "Not all works: `far`" in said


def test_a_deploy_may_end_with_it(house: tuple[Run, Engine]) -> None:
    run, _ = house
    done = run("deploy", "--yes", "--test")
    # Nothing of the house chats here.
    assert done.returncode == 1 and "No model that chats runs" in done.stderr, done.stderr
    assert os.environ.get("ELSEWHERE") is None
