"""What clients are told, and how it comes into their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from homelab import access as accesses
from homelab import client_files
from homelab.clients import KEY_VARIABLE, Access, File, Model, Secret, clients, exports, spelled
from homelab.errors import InventoryError
from homelab.facts import DeployedService
from homelab.inventory import load
from homelab.merging import Format, Unmergeable, merged, parsed
from tests.machines import KEYS, machine, survey

ROOT = Path(__file__).parent.parent
KEY = "sk-test-gateway"
BIG, SMALL = Model(name="coder", context=65536), Model(name="fast", context=32768)
ACCESS = Access(
    url="http://pi:4000",
    key_file="/home/me/a folder/gateway.key",
    model=BIG,
    small=SMALL,
    models=(BIG, SMALL, Model(name="embed", kind="embedding", context=8192), Model(name="far", cloud=True)),
)
# As people have them.
CLAUDE = """\
{
  "permissions": {"allow": ["Bash(git:*)"]},
  "env": {
    "FOO": "1"
  },
  "model": "opus"
}
"""
OPENCODE = '{\n  // mine\n  "theme": "tokyonight", /* dark */\n  "provider": {"ollama": {"models": {}}},\n}\n'
CODEX = """\
# mine
approval_policy = "never"  # dangerous
model = "gpt-5"  # cloud

[mcp_servers.files]
command = "npx"

[model_providers.homelab]
name = "old"
request_max_retries = 2

[tui]
theme = "dark"
"""
CONTINUE = """\
name: Mine   # my own
version: 1.0.0
models:
  # in the cloud
  - name: Claude
    provider: anthropic
    model: claude-sonnet-4-5
  - name: coder
    provider: openai
    model: coder
    apiBase: http://old:4000/v1   # moved
rules:
- Be brief
"""
ZED = """\
// Zed settings
{
  "theme": "One Dark",
  "language_models": {
    "ollama": { "api_url": "x" }
  },
}
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "HOMELAB_INVENTORY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def files(name: str) -> tuple[File, ...]:
    return clients()[name].setup(ACCESS).files


@pytest.mark.parametrize(
    ("name", "before", "kept"),
    [
        ("claude_code", CLAUDE, ["Bash(git:*)", '"FOO": "1"', '"model": "opus"']),
        ("opencode", OPENCODE, ["// mine", "/* dark */", '"ollama"']),
        ("codex", CODEX, ["# mine", '"never"  # dangerous', "# cloud", "request_max_retries = 2", "[tui]"]),
        ("continue", CONTINUE, ["# my own", "# in the cloud", "claude-sonnet-4-5", "# moved", "- Be brief"]),
        ("zed", ZED, ["// Zed settings", '"One Dark"', '"ollama": { "api_url": "x" }']),
    ],
)
def test_what_is_in_a_clients_file_stays(home: Path, name: str, before: str, kept: list[str]) -> None:
    [file] = files(name)
    real = home / "dotfiles" / "settings"
    real.parent.mkdir()
    real.write_text(before)
    real.chmod(0o640)
    link = home / file.path
    link.parent.mkdir(parents=True)
    link.symlink_to(real)

    outcome, copy = client_files.write(file)
    after = real.read_text()
    assert (outcome, copy) == ("changed", real.with_name("settings.bak"))
    assert copy.read_text() == before and link.is_symlink()
    assert [k for k in kept if k not in after] == []
    assert real.stat().st_mode & 0o777 == copy.stat().st_mode & 0o777 == 0o640
    assert "http://pi:4000" in after and "http://old:4000" not in after

    assert client_files.write(file) == ("unchanged", None)
    assert real.read_text() == after
    # Another day the copy is still that of the first.
    real.write_text(after.replace("http://pi:4000", "http://pi:5000"))
    assert client_files.write(file) == ("changed", None)
    assert (real.read_text(), copy.read_text()) == (after, before)


@pytest.mark.parametrize("name", list(clients()))
def test_a_new_file_says_what_the_client_is_told_and_no_key(home: Path, name: str) -> None:
    (home / "key").write_text(KEY)
    setup = clients()[name].setup(ACCESS)
    for file in setup.files:
        assert client_files.write(file)[0] == "made"
        text = (home / file.path).read_text()
        assert parsed(text, file.format) == json.loads(json.dumps(file.values))
        assert (home / file.path).stat().st_mode & 0o777 == 0o600
        assert client_files.write(file) == ("unchanged", None)
    assert KEY not in repr(setup)
    if setup.launch is None:
        assert setup.why_not
    else:
        argv, environment = client_files.prepared(name, setup.launch, KEY)
        assert KEY not in " ".join(argv)  # everybody on the machine sees it
        assert not any("{" + f + "}" in w for f in setup.launch.files for w in (*argv, *environment.values()))
        at = home / ".cache/homelab/launch" / name
        assert all((at / f).stat().st_mode & 0o777 == 0o600 for f in setup.launch.files)


def test_launching_changes_no_file_of_the_client(home: Path) -> None:
    for name, client in clients().items():
        if (start := client.setup(ACCESS).launch) is not None:
            client_files.prepared(name, start, KEY)
    assert {p.name for p in home.iterdir()} == {".cache"}


@pytest.mark.parametrize(
    ("path", "name", "broken", "line"),
    [
        (".claude/settings.json", "claude_code", '{\n  "a": 1,\n}\n', 3),
        (".claude/settings.json", "claude_code", "[1]\n", 1),
        (".config/opencode/opencode.json", "opencode", '{\n "a": 1\n "b": 2}\n', 3),
        (".codex/config.toml", "codex", "a = 1\nb = \n", 2),
        (".continue/config.yaml", "continue", "a: 1\nb: [1\n", 3),
    ],
)
def test_a_broken_file_is_left_as_it_is_and_its_line_is_said(
    home: Path, path: str, name: str, broken: str, line: int
) -> None:
    (home / path).parent.mkdir(parents=True)
    (home / path).write_text(broken)
    [file] = files(name)
    with pytest.raises(client_files.ClientError) as said:
        client_files.write(file)
    assert said.value.exit_code == 2 and f"{home / path}:{line}: " in said.value.cause
    assert (home / path).read_text() == broken
    assert [p.name for p in (home / path).parent.iterdir()] == [Path(path).name]


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("toml", 'model = """\nx\n"""\n'),
        ("toml", 'model_providers = {homelab = {name = "x"}}\n'),
        ("yaml", "a: &a {model: x}\nmodel_providers: *a\n"),
    ],
)
def test_a_form_that_cannot_be_kept_is_refused(format: Format, text: str) -> None:
    with pytest.raises(Unmergeable, match="cannot be kept"):
        merged(text, format, {"model": "q", "model_providers": {"homelab": {"name": "y"}}, "a": {"b": 1}})


@pytest.mark.parametrize("format", ["json", "jsonc", "toml", "yaml"])
def test_windows_line_ends_and_byte_order_marks_stay(home: Path, format: Format) -> None:
    text = {"json": '{\n"a": 1\n}\n', "jsonc": '{\n"a": 1\n}\n', "toml": "a = 1\n", "yaml": "a: 1\n"}[format]
    path = home / "file"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    client_files.write(File(path="file", format=format, values={"b": 2}))
    after = path.read_bytes()
    assert after.startswith(b"\xef\xbb\xbf") and after.count(b"\n") == after.count(b"\r\n")
    assert parsed(after.decode("utf-8-sig").replace("\r\n", "\n"), format) == {"a": 1, "b": 2}


def test_the_served_context_and_a_longest_answer_are_told() -> None:
    told = {name: client.setup(ACCESS) for name, client in clients().items()}
    env = told["claude_code"].environment
    assert (env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"], env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"]) == ("65536", "8192")
    assert env["CLAUDE_CODE_ATTRIBUTION_HEADER"] == "0"
    # One number is the context of all its models: a small one that serves less is no haiku.
    assert env["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "coder"
    models = told["opencode"].files[0].values["provider"]["homelab"]["models"]
    assert models["fast"]["limit"] == {"context": 32768, "output": 8192}
    assert "limit" not in models["far"] and "embed" not in models
    assert told["codex"].files[0].values["model_context_window"] == 65536
    assert Model(name="x", context=4096).max_output_tokens == 1024


@pytest.mark.parametrize(("context", "warned"), [(32768, True), (49152, False), (None, True)])
def test_a_context_that_is_too_small_for_claude_code_is_said(context: int | None, warned: bool) -> None:
    model = Model(name="m", context=context)
    setup = clients()["claude_code"].setup(Access(url="u", key_file="k", model=model, models=(model,)))
    assert bool(setup.warnings) == warned
    assert ("CLAUDE_CODE_MAX_CONTEXT_TOKENS" in setup.environment) == (context is not None)


def test_a_shell_reads_the_key_from_its_file_and_nothing_breaks_its_words(home: Path) -> None:
    (home / "a key'file").write_text(KEY + "\n")
    access = Access(url="http://pi:4000", key_file=str(home / "a key'file"), model=Model(name="q w$HOME"))
    for client in clients().values():
        setup = client.setup(access)
        lines = "\n".join(exports(setup, access.key_file))
        names = list(setup.environment)
        script = lines + "".join(f'\nprintf "%s\\n" "${n}"' for n in names)
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [
            KEY if isinstance(v, Secret) else v for v in setup.environment.values()
        ]
        assert KEY not in lines


INVENTORY = """\
gateway: {node: a}
nodes: {a: {host: localhost, address: 127.0.0.1}}
models: {coder: {engine: llamacpp, source: /models/x.gguf, context: 4096}}
"""


def homelab(home: Path, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """The command with a house that was deployed, as far as this controller remembers."""
    state = home / ".local/state/homelab/home"
    if not state.exists():
        state.mkdir(parents=True)
        (state / "secrets.json").write_text(KEYS.to_json())
        (state / "survey.json").write_text(survey({}).model_dump_json())
        (home / "inventory.yml").write_text(INVENTORY)
    env = {"HOME": str(home), "PATH": path or os.environ["PATH"], "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "homelab", *words], cwd=home, env=env, capture_output=True, text=True
    )


def test_connect_lists_writes_and_never_shows_the_key(home: Path) -> None:
    empty = home / "bin"
    empty.mkdir()
    (empty / "opencode").write_text("#!/bin/sh\n")
    (empty / "opencode").chmod(0o755)
    listed = homelab(home, "connect", path=str(empty))
    assert listed.returncode == 0, listed.stderr
    rows = {line.split()[0]: line for line in listed.stdout.splitlines() if line}
    assert set(map(spelled, clients())) <= set(rows)
    assert "not installed" in rows["codex"] and rows["opencode"].endswith("bin/opencode")
    assert "homelab launch opencode" in listed.stdout

    document = json.loads(homelab(home, "connect", "--json").stdout)
    assert set(document["clients"]) == set(map(spelled, clients()))
    outs = [listed.stdout, json.dumps(document)]
    for name in clients():
        done = homelab(home, "connect", spelled(name))
        assert done.returncode == 0, done.stderr
        outs.append(done.stdout)
    wrote = homelab(home, "connect", "codex", "--write")
    assert wrote.stdout.startswith("made ~/.codex/config.toml\n") and KEY_VARIABLE in wrote.stdout
    assert tomllib.loads((home / ".codex/config.toml").read_text())["model"] == "coder"
    assert "nothing to change" in homelab(home, "connect", "codex", "--write").stdout
    env = homelab(home, "connect", "codex", "--env")
    assert env.stdout.startswith(f'export {KEY_VARIABLE}="$(cat ')
    secret = KEYS.gateway_key.get_secret_value()
    assert not any(secret in out for out in (*outs, wrote.stdout, env.stdout))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("connect", "claud-code"), "did you mean `claude-code`"),
        (("connect", "--write"), "are for one client"),
        (("connect", "jetbrains", "--write"), "homelab writes no file of JetBrains AI Assistant"),
        (("connect", "curl", "--env"), "reads nothing from the environment"),
        (("connect", "codex", "--model", "nope"), "No model `nope`"),
        (("launch", "jetbrains"), "cannot be started from here"),
        (("launch", "codex"), "npm install -g @openai/codex@"),
    ],
)
def test_what_cannot_be_done_is_said(home: Path, words: tuple[str, ...], said: str) -> None:
    done = homelab(home, *words, path="/nowhere")
    assert done.returncode == 2
    assert said in done.stderr


def test_the_least_context_of_a_models_instances_counts(home: Path) -> None:
    def engine(name: str, serves: str, **numbers: int) -> DeployedService:
        labels = {
            "homelab.address": "127.0.0.1",
            "homelab.port": "8080",
            "homelab.placement": json.dumps(numbers),
        }
        return DeployedService(
            cluster="home",
            name=name,
            spec="1",
            runtime="docker",
            state="running",
            role="engine",
            serves=(serves,),
            labels=labels,
        )

    inventory = load(INVENTORY, "inventory.yml")
    found = survey(
        {},
        a=machine("a").model_copy(
            update={
                "services": (
                    engine("coder-1", "coder", context=65536, bytes=20),
                    engine("coder-2", "coder", context=32768, bytes=20),
                    engine("tiny", "tiny", context=8192, bytes=2),
                    engine("old", "old", bytes=30),
                )
            }
        ),
    )
    reached = accesses.access(inventory, found, "k")
    assert {m.name: m.context for m in reached.models} == {"coder": 32768, "tiny": 8192, "old": None}
    assert (reached.model.name, reached.small and reached.small.name) == ("coder", "tiny")
    assert accesses.access(inventory, found, "k", "tiny").small is None
    with pytest.raises(InventoryError, match="did you mean"):
        accesses.access(inventory, found, "k", "tyni")
    more = "  tiny: {engine: llamacpp, source: /models/y.gguf}\ntiers: {quality: coder, volume: tiny}\n"
    models = INVENTORY.replace("models: {coder: {", "models:\n  coder: {").replace("4096}}\n", "4096}\n")
    tiers = load(models + more, "inventory.yml")
    reached = accesses.access(tiers, found, "k")
    assert reached.small is not None and (reached.small.name, reached.quality) == ("tiny", reached.model)
    reached = accesses.access(tiers, found, "k", "tiny")
    assert reached.small is None and reached.quality is not None
    opus = clients()["claude_code"].setup(reached).environment["ANTHROPIC_DEFAULT_OPUS_MODEL"]
    assert opus == "coder"


def test_every_client_says_where_it_is_from_and_what_was_tried() -> None:
    for name, client in clients().items():
        assert client.SOURCE.startswith("https://") and client.TESTED and client.INSTALL, name
    assert yaml.safe_load(CONTINUE)["name"] == "Mine"
