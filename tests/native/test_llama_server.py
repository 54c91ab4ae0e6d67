"""templates/native/llama-server with the locked wheel and a real model: what people
know of llama-server holds."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "templates" / "native"
LAUNCHER = NATIVE / "llama-server"

pytestmark = pytest.mark.native


def until(look: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
    return seen


def ask(port: int, path: str, body: object = None, key: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request(
            "GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers
        )
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (ConnectionError, http.client.HTTPException):  # refused, or cut off while it dies
        return 0, ""
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="session")
def python(libgomp: None) -> str:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "homelab" / "tests"
    command = [
        sys.executable,
        str(NATIVE / "provision.py"),
        "--lock",
        str(NATIVE / "llamacpp.lock"),
        "--name",
        "llamacpp",
    ]
    command += ["--into", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done
    return str(json.loads(done.stdout)["python"])


@pytest.fixture(scope="session")
def model() -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "fetch-smollm2"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout.strip()


def clean(**variables: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("LLAMA_")} | variables


def run(
    python: str, *flags: str, launcher: Path = LAUNCHER, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, launcher, *flags],
        env=clean(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def server(python: str, *flags: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [python, LAUNCHER, *flags],
        env=clean(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_says_what_it_is(python: str) -> None:
    done = run(python, "--version")
    assert done.returncode == 0 and "xllamacpp 2026.10.11549" in done.stderr and "version:" in done.stderr
    done = run(python, "--help")
    assert (
        done.returncode == 0
        and "--ctx-size" in done.stdout
        and "LLAMA_ARG_N_PARALLEL" in done.stdout
        and "--jinja" in done.stdout
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--bogus"], "invalid argument: --bogus"),
        (["-m", "x.gguf", "-c", "many"], "-c"),
        (["-m", "/no/such.gguf", "--port", "0"], "/no/such.gguf"),
        (["--port", "0"], "no model"),
    ],
)
def test_says_what_is_wrong(python: str, flags: list[str], says: str) -> None:
    done = run(python, *flags)
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr


def test_serves_a_model(python: str, model: str) -> None:
    port = free_port()
    flags = [
        "-m",
        model,
        "--port",
        str(port),
        "-c",
        "1024",
        "--parallel",
        "2",
        "--metrics",
        "--alias",
        "smol",
    ]
    with server(python, *flags, LLAMA_API_KEY="sesame", LLAMA_ARG_N_GPU_LAYERS="0") as process:
        until(lambda: ask(port, "/health") == (200, '{"status":"ok"}'))
        assert ask(port, "/props")[0] == 401
        props = json.loads(ask(port, "/props", key="sesame")[1])
        assert (props["total_slots"], props["default_generation_settings"]["n_ctx"], props["model_path"]) == (
            2,
            512,
            model,
        )
        assert [entry["id"] for entry in json.loads(ask(port, "/v1/models", key="sesame")[1])["data"]] == [
            "smol"
        ]
        assert "llamacpp:prompt_tokens_total" in ask(port, "/metrics", key="sesame")[1]
        # Its chat answer to the same question is nonsense, by the wheel's own class too:
        # the model is that small.
        status, text = ask(
            port,
            "/completion",
            {"prompt": "The capital of France is", "n_predict": 4, "temperature": 0},
            "sesame",
        )
        assert status == 200 and "Paris" in json.loads(text)["content"]
        chat = {"model": "smol", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        status, text = ask(port, "/v1/chat/completions", chat, "sesame")
        assert status == 200 and json.loads(text)["usage"]["completion_tokens"] in range(1, 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert ask(port, "/health")[0] == 0


def test_listens_where_llama_server_would(python: str, model: str) -> None:
    """8080 is llama-server's default; the wheel's own is a random port. A variable is as good as a flag."""
    port = free_port()
    with server(
        python,
        LLAMA_ARG_MODEL=model,
        LLAMA_ARG_PORT=str(port),
        LLAMA_ARG_HOST="127.0.0.1",
        LLAMA_ARG_CTX_SIZE="256",
    ):
        until(lambda: ask(port, "/health")[0] == 200)
    code = (
        "import runpy, sys; import xllamacpp; m = runpy.run_path(sys.argv[1]); "
        "print(m['Parser'](xllamacpp).parse(['-m', 'x']).port)"
    )
    done = subprocess.run(
        [python, "-c", code, LAUNCHER], env=clean(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "8080"


def test_a_taken_port_is_an_error(python: str, model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run(python, "-m", model, "--port", str(taken.getsockname()[1]), "-c", "256")
    assert done.returncode == 1 and "did not start" in done.stderr


def test_ends_while_it_loads(python: str, model: str) -> None:
    with server(python, "-m", model, "--port", "0", "-c", "512") as process:
        time.sleep(0.3)
        process.terminate()
        assert process.wait(5) in (0, -signal.SIGTERM)


def test_ends_with_its_parent(python: str, model: str) -> None:
    port = free_port()
    line = f'"{python}" "{LAUNCHER}" -m "{model}" --port {port} -c 256 >/dev/null 2>&1 & wait'
    with subprocess.Popen(["sh", "-c", line], env=clean()) as parent:
        until(lambda: ask(port, "/health")[0] == 200)
        parent.kill()
    until(lambda: ask(port, "/health")[0] == 0, 5)


@pytest.mark.parametrize(
    ("line", "changed", "says"),
    [
        ("PARSE = ", 'PARSE = "_Z4gone"', "flag parser is not in the installed xllamacpp"),
        ("STRUCT_OFFSET = ", "STRUCT_OFFSET = object.__basicsize__ + 8", "lie elsewhere"),
        ("EXAMPLE_SERVER = ", "EXAMPLE_SERVER = 1", "does not fill in what it should"),
    ],
)
def test_refuses_a_wheel_that_it_was_not_made_for(
    python: str, tmp_path: Path, line: str, changed: str, says: str
) -> None:
    """Each of the three assumptions, made wrong from our side, because there is no other wheel to try."""
    text = LAUNCHER.read_text(encoding="utf-8").splitlines()
    (number,) = [index for index, content in enumerate(text) if content.startswith(line)]
    text[number] = changed
    other = tmp_path / "llama-server"
    other.write_text("\n".join(text), encoding="utf-8")
    done = run(python, "--version", launcher=other)
    assert done.returncode == 78 and says in done.stderr and "made for xllamacpp 2026.10.11549" in done.stderr


def test_a_minimal_machine_is_told_which_package_it_lacks(python: str, tmp_path: Path) -> None:
    """The loader's words, from a module in the wheel's place: the library itself is needed by
    other tests that run now."""
    (tmp_path / "xllamacpp.py").write_text(
        'raise ImportError("libgomp.so.1: cannot open shared object file: No such file or directory")'
    )
    done = run(python, "--version", PYTHONPATH=str(tmp_path))
    assert (
        done.returncode == 78 and "libgomp.so.1" in done.stderr and "sudo apt install libgomp1" in done.stderr
    )


def test_its_own_check_takes_no_notice_of_the_users_variables(python: str) -> None:
    done = run(
        python,
        "--version",
        LLAMA_ARG_PORT="1",
        LLAMA_ARG_HF_REPO="nobody/nothing",
        LLAMA_ARG_ENDPOINT_METRICS="0",
    )
    assert done.returncode == 0, done.stderr


def test_lives_under_the_supervisor(python: str, model: str, tmp_path: Path) -> None:
    port = free_port()
    service = {
        "argv": [python, str(LAUNCHER), "-m", model, "--port", str(port), "-c", "256"],
        "environment_file": "service.env",
    }
    (tmp_path / "service.json").write_text(json.dumps(service), encoding="utf-8")
    (tmp_path / "service.env").write_text("LLAMA_API_KEY=sesame\n", encoding="utf-8")
    supervise = [sys.executable, str(NATIVE / "supervise.py")]
    subprocess.run([*supervise, "start", tmp_path], check=True, capture_output=True, timeout=30)
    try:
        until(lambda: ask(port, "/health")[0] == 200)
        assert ask(port, "/slots")[0] == 401
    finally:
        done = subprocess.run([*supervise, "stop", tmp_path], check=True, capture_output=True, timeout=60)
    assert json.loads(done.stdout)["exit_code"] == 0
    assert ask(port, "/health")[0] == 0
