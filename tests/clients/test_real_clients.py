"""The clients themselves, as `homelab launch` starts them and as `homelab connect --write` leaves them: each
reads a file by a tool of its own and says what is in it. Four of them do it through LiteLLM too, before
engines that think, call twice, and refuse what vLLM and llama.cpp refuse."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab import client_files
from homelab.clients import KEY_VARIABLE, Access, Model, clients
from tests.clients.mock_engine import THOUGHTS, Engine, Like
from tests.clients.served import Gateway, endpoint
from tests.litellm import ENGINE_KEY
from tests.native.test_llama_server import LAUNCHER, until
from tests.native.test_llama_server import ask as http
from tests.native.test_llama_server import model as small_model
from tests.native.test_llama_server import python as llama_python
from tests.test_gateway import litellm_python as litellm_python
from tests.test_native_household import free_port

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]
# name: the words that ask one question, and the path that it is asked at.
ASKED = {
    "claude_code": (["-p"], "/v1/messages"),
    "opencode": (["run"], "/v1/chat/completions"),
    "codex": (["exec", "--skip-git-repo-check"], "/v1/responses"),
    "qwen_code": (["-p"], "/v1/chat/completions"),
    "continue": (["-p"], "/v1/chat/completions"),
    "pi": (["-p"], "/v1/chat/completions"),
}
# npm's words where nothing answers; a version that is not there is a failure.
UNREACHED = re.compile(r"E(NOTFOUND|CONNREFUSED|AI_AGAIN|TIMEDOUT|CONNRESET|NETUNREACH)")
KEY, SECRET = "sk-house-0123456789", "quokka-4711"
QUESTION = "Read secret.txt and tell me what is in it."
# Where they are installed: HOMELAB_TEST_CLIENTS, else the cache, once.
INSTALLED = Path(os.environ.get("HOMELAB_TEST_CLIENTS") or Path.home() / ".cache/homelab/test-clients")


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of their programs, in the versions that the clients' modules name."""
    packages = [clients()[name].INSTALL.removeprefix("npm install -g ") for name in ASKED]
    binaries = [INSTALLED / "node_modules/.bin" / str(clients()[name].BINARY) for name in ASKED]
    if not all(b.exists() for b in binaries):
        INSTALLED.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(INSTALLED), *packages]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode and UNREACHED.search(done.stderr):
            pytest.skip(f"npm reaches no registry: {done.stderr.strip().splitlines()[0]}")
        assert done.returncode == 0, done.stderr[-2000:]
    return INSTALLED / "node_modules/.bin"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    work = tmp_path / "work"
    work.mkdir()
    (work / "secret.txt").write_text(SECRET + "\n")
    server = Engine(KEY, str(work / "secret.txt"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    for variable in list(os.environ):
        if variable.startswith(("ANTHROPIC_", "CLAUDE", "OPENAI_", "OPENCODE", "QWEN", "XDG_", "HOMELAB_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (path / "key").write_text(KEY + "\n")
    return path


def reached(engine: Engine, home: Path) -> Access:
    model = Model(name="coder", context=65536)
    return Access(url=engine.url, key_file=str(home / "key"), model=model, models=(model,))


# As fixtures, by their names there.
model, python = small_model, llama_python


def ask(argv: list[str], environment: dict[str, str], engine: Engine) -> str:
    done = subprocess.run(
        argv,
        # opencode asks before it reads outside of PWD.
        env={**environment, "PI_OFFLINE": "1", "PWD": str(Path(engine.file).parent)},
        cwd=Path(engine.file).parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr + repr([r[0] for r in engine.requests])
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ASKED)
def test_as_it_is_launched(name: str, engine: Engine, home: Path) -> None:
    words, path = ASKED[name]
    launch = clients()[name].setup(reached(engine, home)).launch
    assert launch is not None
    argv, environment = client_files.prepared(name, launch, KEY)
    assert SECRET in ask([*argv, *words, QUESTION], environment, engine)
    assert {(p, k, b["model"]) for p, k, b in engine.requests if p == path} == {(path, KEY, "coder")}
    longest = [b.get("max_tokens") for p, _, b in engine.requests if p == path]
    assert all(n is None or n <= 8192 for n in longest)


@pytest.mark.parametrize("name", ASKED)
def test_as_its_file_is_written(name: str, engine: Engine, home: Path) -> None:
    words, path = ASKED[name]
    setup = clients()[name].setup(reached(engine, home))
    for file in setup.files:
        client_files.write(file)
    environment = {**os.environ, KEY_VARIABLE: KEY}
    if name == "claude_code":
        del environment[KEY_VARIABLE]  # it reads the key by a helper of its own
    extra = ["--provider", "homelab", "--model", "coder"] if name == "pi" else []
    out = ask([str(clients()[name].BINARY), *extra, *words, QUESTION], environment, engine)
    assert SECRET in out
    assert {(p, k, b["model"]) for p, k, b in engine.requests if p == path} == {(path, KEY, "coder")}
    for file in setup.files:
        assert KEY not in (home / file.path).read_text()


# Those that `homelab test` is about, a protocol of each kind among them.
THROUGH = ("claude_code", "opencode", "codex", "qwen_code")


@pytest.fixture(scope="module")
def house(
    litellm_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[Like, Engine]]]:
    """The gateway's address, and the engines behind it by the names of their models."""
    engines: dict[Like, Engine] = {
        "vllm": Engine(ENGINE_KEY, like="vllm", rounds=2, talks=True, packed=True),
        "llamacpp": Engine(ENGINE_KEY, like="llamacpp", rounds=2, talks=True),
    }
    endpoints = [endpoint(like, engine.url, 65536, like) for like, engine in engines.items()]
    with Gateway(tmp_path_factory.mktemp("gateway"), litellm_python, KEY, endpoints, {}) as gateway:
        yield gateway.url, engines
    for engine in engines.values():
        engine.shutdown()
        engine.server_close()


@pytest.mark.native
@pytest.mark.parametrize("like", ["vllm", "llamacpp"])
@pytest.mark.parametrize("name", THROUGH)
def test_through_the_gateway(
    name: str, like: Like, house: tuple[str, dict[Like, Engine]], home: Path, tmp_path: Path
) -> None:
    url, engines = house
    engine = engines[like]
    work = tmp_path / "work"
    work.mkdir()
    (work / "secret.txt").write_text(SECRET + "\n")
    engine.file = str(work / "secret.txt")
    engine.requests.clear()
    engine.prompts.clear()
    words, _ = ASKED[name]
    model = Model(name=like, context=65536)
    access = Access(url=url, key_file=str(home / "key"), model=model, models=(model,))
    launch = clients()[name].setup(access).launch
    assert launch is not None
    argv, environment = client_files.prepared(name, launch, KEY)
    assert SECRET in ask([*argv, *words, QUESTION], environment, engine)
    # Two calls, one after the other: three turns, and the thoughts of the first come back to the model.
    asked = [path for path, _, body in engine.requests if body.get("tools")]
    native = name == "claude_code" and like == "vllm"
    assert len(asked) == 3
    assert set(asked) == {"/v1/messages" if native else PATHS[name]}
    # Qwen Code may say of the second reading that the file is as it was.
    assert engine.prompts[-1].count(THOUGHTS) == 2 and SECRET in engine.prompts[-1]


# Where their requests arrive, once LiteLLM has made chat completions of messages.
PATHS = {
    "claude_code": "/v1/chat/completions",
    "opencode": "/v1/chat/completions",
    "codex": "/v1/responses",
    "qwen_code": "/v1/chat/completions",
}


@pytest.fixture(scope="module")
def real_house(
    litellm_python: Path, python: str, model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The gateway before the real llama.cpp with a small model, which says a few words of nonsense."""
    port = free_port()
    flags = ["-m", model, "--host", "127.0.0.1", "--port", str(port), "-c", "24576", "--parallel", "1"]
    flags += ["--jinja", "--n-predict", "16", "--api-key", ENGINE_KEY]
    with subprocess.Popen(
        [python, LAUNCHER, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until(lambda: http(port, "/health")[0] == 200, 120)
            served = endpoint("small", f"http://127.0.0.1:{port}", 24576, "llamacpp")
            with Gateway(tmp_path_factory.mktemp("real"), litellm_python, KEY, [served], {}) as gateway:
                yield gateway.url
        finally:
            process.kill()


# A CPU reads some hundred tokens a second. Claude Code's own prompt is 18.8k: `--bare` has 1k. Qwen Code's of
# 14k is left out: opencode speaks its protocol with half of that.
FEW = {"claude_code": ["--bare"], "opencode": [], "codex": []}


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_words_of_a_real_model_come_through(name: str, real_house: str, home: Path, tmp_path: Path) -> None:
    words, _ = ASKED[name]
    model = Model(name="small", context=24576)
    access = Access(url=real_house, key_file=str(home / "key"), model=model, models=(model,))
    launch = clients()[name].setup(access).launch
    assert launch is not None
    argv, environment = client_files.prepared(name, launch, KEY)
    done = subprocess.run(
        [*argv, *FEW[name], *words, "Say hello."],
        env={**environment, "PWD": str(tmp_path)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[A-Za-z]{2,}", done.stdout), done.stderr
    assert "API Error" not in done.stdout and "error" not in done.stdout.lower()[:200]
