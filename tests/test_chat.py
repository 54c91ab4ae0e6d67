"""`homelab chat` through the real LiteLLM before an engine that does as it is told: from a pipe, on a
terminal, and what goes wrong on the way."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from homelab import gateway, keys, terminal
from homelab.chat import Answer, Conversation
from homelab.endpoints import Endpoint
from homelab.engines import Kind
from homelab.inventory import App
from homelab.secrets import Secrets
from homelab.ui import chat as screen
from tests import litellm
from tests.test_gateway import Backend, _Answers, litellm_python
from tests.test_native_household import ROOT, environment, free_port
from tests.test_terminal import EVIL, steers

KEY = "sk-of-this-house"
CONTEXT = 4096
SERVED: dict[str, Kind] = {"house": "chat", "other": "chat", "vectors": "embedding"}
INVENTORY = """\
gateway: {{node: a, port: {port}}}
nodes: {{a: {{host: localhost, runtime: native}}}}
models:
  house: {{engine: llamacpp, source: /m.gguf, context: 4096, priority: 1}}
  other: {{engine: llamacpp, source: /m.gguf, context: 4096}}
  vectors: {{engine: llamacpp, source: /m.gguf, context: 4096, kind: embedding}}
aliases: {{coder: other}}
"""
__all__ = ["litellm_python"]


class Obedient(_Answers):
    """An engine that answers as the question says."""

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(json.dumps(body).encode())
        question = body["messages"][-1]["content"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        try:
            self.tell(question, len(body["messages"]))
        except OSError:
            pass  # who asked has heard enough

    def tell(self, question: str, messages: int) -> None:
        if question == "silence":
            time.sleep(30)
        for part, words in {
            "think": (("reasoning_content", "Hmm. "), ("content", "\n\nForty"), ("content", " two.\n")),
            "only think": (("reasoning_content", "Hmm. "),),
            "hang": (("content", "Half a"),),
            "evil": (("content", EVIL[:5]), ("content", EVIL[5:])),
            "long": (("content", "la "),) * 400,
        }.get(question, (("content", f"{messages} messages"),)):
            self.chunk({part: words})
            if question == "long":
                time.sleep(0.05)
        if question == "hang":
            time.sleep(30)
        self.chunk({}, "length" if question in ("only think", "cut") else "stop")
        prompt = 3900 if question == "much" else 100
        self.piece({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": 20}})
        self.wfile.write(b"data: [DONE]\n\n")

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> None:
        self.piece({"choices": [{"index": 0, "finish_reason": finish, "delta": delta}]})

    def piece(self, more: dict[str, Any]) -> None:
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        self.wfile.write(f"data: {json.dumps(chunk | more)}\n\n".encode())
        self.wfile.flush()


class House:
    """This machine as a deploy without Docker leaves it: LiteLLM runs, and so do engines, by their files."""

    def __init__(self, home: Path, python: Path, apps: Mapping[str, App] | None = None) -> None:
        self.home, self.port, self.engine = home, free_port(), Backend()
        self.engine.RequestHandlerClass = Obedient
        self.folder = home / ".local/share/homelab/home/gateway/0123"
        self.folder.mkdir(parents=True)
        endpoints = [
            Endpoint(
                name=name,
                kind=kind,
                url=self.engine.url,
                key="",
                context=CONTEXT,
                id=f"a/{name}",
                node="a",
                origin="placed",
                upstream="m",
            )
            for name, kind in SERVED.items()
        ]
        aliases = {"coder": "other"}
        configuration = gateway.configuration(endpoints, {}, None, aliases)
        variables = {name: gateway.app_variable(name) for name in apps or {}}
        litellm.write(
            self.folder,
            python,
            self.port,
            configuration,
            endpoints,
            key=KEY,
            house=keys.house(endpoints, aliases, apps, variables),
            environment={variable: f"sk-of-{name}" for name, variable in variables.items()},
            labels=self.labels("gateway", "gateway", self.port),
        )
        for name in SERVED:
            self.engine_service(name)
        (home / "inventory.yml").write_text(INVENTORY.format(port=self.port))
        secrets = Secrets.from_json(json.dumps({"gateway_key": KEY, "engine_secret": "s"}))
        (home / ".local/share/homelab/home/secrets.json").write_text(secrets.to_json())

    def labels(self, name: str, role: str, port: int) -> dict[str, str]:
        return {
            "homelab.cluster": "home",
            "homelab.service": name,
            "homelab.role": role,
            "homelab.spec": "0123",
            "homelab.address": "127.0.0.1",
            "homelab.port": str(port),
            "homelab.health": "/health",
            **(
                {
                    "homelab.serves": name,
                    "homelab.engine": "llamacpp",
                    "homelab.placement": json.dumps({"context": CONTEXT}),
                }
                if role == "engine"
                else {}
            ),
        }

    def engine_service(self, name: str) -> None:
        folder = self.home / f".local/share/homelab/home/{name}/0123"
        folder.mkdir(parents=True)
        labels = self.labels(name, "engine", self.engine.server_address[1])
        (folder / "service.json").write_text(json.dumps({"labels": labels}))
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        state = {"pid": os.getpid(), "pid_start_ticks": int(ticks), "status": "running"}
        (folder / "state.json").write_text(json.dumps(state))

    def supervise(self, verb: str) -> None:
        litellm.supervise(verb, self.folder)
        if verb == "start":
            litellm.wait_until_live(self.folder, self.port)

    def request(
        self, method: str, path: str, key: str, body: dict[str, Any] | None = None
    ) -> tuple[int, Any]:
        """The status and what was said, as JSON where it is that."""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        return response.status, json.loads(text) if text.startswith("{") else text

    def wait(self) -> None:
        time.sleep(0.2)

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.home) | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "xterm"}

    def chat(self, question: str, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "homelab", "chat", *words],
            input=question,
            capture_output=True,
            text=True,
            cwd=self.home,
            env=self.environment,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert KEY not in done.stdout + done.stderr
        return done

    def talk(self, typed: Sequence[tuple[str, str]], *words: str) -> str:
        """What a terminal showed of a conversation that ends with the end of the input."""
        command = [sys.executable, "-m", "homelab", "chat", *words]
        shown = at_prompt(command, [*typed, ("> ", "\x04")], self.environment, self.home)
        assert KEY not in shown
        return shown

    @property
    def heard(self) -> list[dict[str, Any]]:
        """What the engine was last asked, as messages."""
        return list(json.loads(self.engine.requests[-1])["messages"])


def at_prompt(
    command: Sequence[str], typed: Sequence[tuple[str, str]], env: dict[str, str], folder: Path
) -> str:
    """What a terminal showed, without colours. Each text is typed once what it follows was shown: as it is
    where it is a key, else as a line. The command succeeds."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command], stdin=its, stdout=its, stderr=its, cwd=folder, env=env
    )
    os.close(its)
    raw, shown, read, waiting, until = b"", "", 0, list(typed), time.monotonic() + 100
    try:
        while time.monotonic() < until:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                raw += os.read(ours, 1 << 16)
            except OSError:  # how Linux says that nobody has the other end open any more
                break
            shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", raw.decode(errors="replace"))
            if waiting and (found := re.compile(waiting[0][0]).search(shown, read)):
                read, text = found.end(), waiting.pop(0)[1]
                if text.endswith("\x03"):
                    # CPython 3.11 sees a ^C between a prompt and its wait for keys with the next key only.
                    os.write(ours, text[:-1].encode())
                    time.sleep(0.5)
                    text = "\x03"
                os.write(ours, (text if text[-1] in "\x03\x04" else f"{text}\n").encode())
    finally:
        os.close(ours)
        code = process.wait(10)
    assert (code, waiting) == (0, []), shown
    assert "Traceback" not in shown, shown
    return shown


@pytest.fixture(scope="module")
def house(litellm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("home"), litellm_python)
    made.supervise("start")
    yield made
    made.supervise("stop")
    made.engine.shutdown()
    made.engine.server_close()


@pytest.mark.native
def test_a_question_from_a_pipe_has_the_answer_alone_on_stdout(house: House) -> None:
    done = house.chat("What is it?\n", "house", "--system", "Be short.", "--max-tokens", "77")
    assert (done.returncode, done.stdout) == (0, "2 messages\n"), done.stderr
    assert re.fullmatch(
        r"a/house, first token \d+\.\d\d s(, [\d.]+ tokens/s)?, context 120 of 4k\n", done.stderr
    )
    asked = json.loads(house.engine.requests[-1])
    assert asked["max_tokens"] == 77
    assert asked["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is it?"},
    ]


@pytest.mark.native
def test_without_a_name_the_first_answers_and_an_alias_is_a_name(house: House) -> None:
    assert "a/house, " in house.chat("Hello").stderr
    done = house.chat("Hello", "coder")
    assert (done.returncode, "a/other, " in done.stderr) == (0, True)


@pytest.mark.native
def test_thoughts_do_not_go_into_a_pipe_and_nothing_else_is_no_answer(house: House) -> None:
    assert house.chat("think").stdout == "Forty two.\n"
    done = house.chat("only think", "--max-tokens", "20")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        "`house` came to no answer\n  its 20 tokens are thoughts\nhint: A larger --max-tokens" in done.stderr
    )


@pytest.mark.native
def test_what_is_cut_off_is_said(house: House) -> None:
    assert (
        "warning: The answer was cut off at 20 tokens (--max-tokens)"
        in house.chat("cut", "--max-tokens", "20").stderr
    )
    assert "warning: The answer was cut off: the context is full" in house.chat("cut").stderr


@pytest.mark.native
@pytest.mark.parametrize(
    ("question", "words", "code", "said"),
    [
        ("", (), 2, "There is no question on standard input"),
        ("Hi", ("nobody",), 2, "No model `nobody`"),
        ("Hi", ("vectors",), 2, "Model `vectors` is not for chat\nhint: There are: house, other"),
        (
            "silence",
            ("--timeout", "2"),
            1,
            "`house` did not answer through the gateway\n  nothing came for 2 s",
        ),
        ("hang", ("--timeout", "2"), 1, "`house` broke off its answer\n  nothing came for 2 s"),
        ("word " * 9000, (), 1, "This is longer than what `house` reads\n  HTTP 400"),
    ],
)
def test_what_goes_wrong_says_what_to_do(
    house: House, question: str, words: tuple[str, ...], code: int, said: str
) -> None:
    done = house.chat(question, *words)
    assert (done.returncode, done.stdout) == (code, "Half a\n" if question == "hang" else "")
    assert f"error: {said}" in done.stderr
    assert "\nhint: " in done.stderr


@pytest.mark.native
def test_a_conversation_on_a_terminal(house: House) -> None:
    after = r".* of 4k\n\n> "
    house.talk(
        [
            (r"/help\n> ", "Hello"),
            (rf"1 messages\na/house, {after}", "think"),
            (rf"Hmm\.\n\nForty two\.\na/house, {after}", "long"),
            ("la la la", "\x03"),
            (r"\na/house, stopped, first token .* s\n\n> ", "And now?"),
            (rf"7 messages\n{after}", "much"),
            (r"\nwarning: The context is 96 % full.*\n\n> ", "/new"),
            (r"A new conversation\n> ", "Again"),
            (rf"1 messages\n{after}", "/model"),
            (r"house  4k  \(this one\)\nother  4k\n> ", "/model other"),
            (r"other at http.*\n> ", "Who?"),
            (rf"3 messages\na/other, {after}", "/modle"),
            (r"There is no /modle\. .*\n> ", "/model vectors"),
            (r"error: Model `vectors` is not for chat\n.*\n> ", "/model"),
            (r"other  4k  \(this one\)\nhouse  4k\n> ", "evil"),
            (rf"a\]0;titleb\[31mcd2Jef\n{after}", "half a line\x03"),
        ]
    )
    sent = [json.loads(r)["messages"] for r in house.engine.requests]
    [after_stop] = [m for m in sent if m[-1]["content"] == "And now?"]
    assert [m["content"] for m in after_stop[:5]] == [
        "Hello",
        "1 messages",
        "think",
        "\n\nForty two.\n",
        "long",
    ]
    # As much as had come when it was stopped.
    assert re.fullmatch(r"(la )+", after_stop[5]["content"]) and len(after_stop[5]["content"]) < 1200


@pytest.mark.native
def test_what_fails_ends_no_conversation(house: House) -> None:
    after = r"a/house, .* of 4k\n\n> "
    house.talk(
        [
            (r"/help\n> ", "Hello"),
            (rf"1 messages\n{after}", "silence"),
            (r"error: `house` did not answer through the gateway\n(.*\n)+> ", "hang"),
            (r"Half a\nerror: `house` broke off its answer\n(.*\n)+> ", "And now?"),
            (rf"5 messages\n{after}", "/exit now"),
            (rf"7 messages\n{after}", "\x03"),
        ],
        "--timeout",
        "6",  # of 30 s of silence; on a busy machine LiteLLM itself takes two
    )
    # What was said before it broke off is part of it; the question that nobody answered is not.
    assert [m["content"] for m in house.heard[:4]] == ["Hello", "1 messages", "hang", "Half a"]


@pytest.mark.native
def test_who_waits_is_told_so_and_a_question_without_answer_is_not_kept(house: House) -> None:
    shown = house.talk(
        [(r"/help\n> ", "silence"), (r"… \d s, \^C stops", "\x03"), (r"up brings it back\n\n> ", "Hello")]
    )
    assert "warning: There was no answer. The question is not kept" in shown
    assert [m["content"] for m in house.heard] == ["Hello"]


@pytest.mark.native
def test_a_gateway_that_is_away_is_said_and_one_that_is_back_is_found(house: House) -> None:
    house.supervise("stop")
    try:
        done = house.chat("Hello")
        assert (done.returncode, "hint: homelab status" in done.stderr) == (1, True), done.stderr
    finally:
        house.supervise("start")
    assert house.chat("Hello").returncode == 0


# without a gateway


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> screen.Words:
    words = screen.Words()
    words.is_watched = True
    return words


def test_thoughts_are_dim_and_steer_nothing(
    watched: screen.Words, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, text in (
        ("thought", "\n Why\t"),
        ("thought", "not\x1b[0m?\n\n"),
        ("answer", "\n"),
        ("answer", "\tYes"),
        ("answer", "\n\n"),
        ("answer", f"no {EVIL}  \n"),
    ):
        watched.write(part, text)  # type: ignore[arg-type]
    watched.end()
    out = capsys.readouterr().out
    assert out == ("\x1b[2mWhy\x1b[0m\x1b[2m\tnot[0m?\x1b[0m\n\nYes\n\nno " + terminal.harmless(EVIL) + "\n")
    assert not steers(out.replace("\x1b[2m", "").replace("\x1b[0m", ""))


def test_only_what_is_known_is_told() -> None:
    answer = Answer(asked=10.0)
    assert screen.told(answer, 4096) == "by whom is not known"
    answer.served_by, answer.first, answer.last = "n/m", 10.5, 12.5
    assert screen.told(answer, 4096, stopped=True) == "n/m, stopped, first token 0.50 s"
    answer.prompt_tokens, answer.completion_tokens = 1000, 101
    assert screen.told(answer, 4096) == "n/m, first token 0.50 s, 50.0 tokens/s, context 1.1k of 4k"
    assert screen.told(answer, None).endswith("context 1.1k tokens")
    assert screen.warnings(answer, 4096, None) == []
    answer.prompt_tokens = 4000
    assert "100 % full" in screen.warnings(answer, 4096, None)[0]


def test_a_question_without_an_answer_is_no_part_of_a_conversation() -> None:
    talk = Conversation(system="S")
    talk.add("one", Answer(text="1"))
    talk.add("two", Answer())
    assert [m["role"] for m in talk.messages("three")] == ["system", "user", "assistant", "user"]
    assert talk.messages("\ud800")[-1]["content"] == "\ud800"


def test_control_c_ends_no_conversation_wherever_it_comes(tmp_path: Path) -> None:
    script = (
        "from homelab.ui import chat\n"
        "def ask(line):\n"
        "    print('asked', line)\n"
        "    if line == 'early': raise KeyboardInterrupt\n"
        "chat.talk('begin', ask, lambda: None, lambda m: None)\n"
        "print('over')\n"
    )
    shown = at_prompt(
        [sys.executable, "-c", script],
        [("> ", "early"), (r"asked early\n\n> ", "late"), (r"asked late\n> ", "\x04")],
        {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
        tmp_path,
    )
    assert shown.rstrip().endswith("over")


@pytest.mark.slow  # in time: a busy machine reads the line late
def test_at_the_prompt_control_c_leaves_the_line_and_the_end_of_input_ends(tmp_path: Path) -> None:
    script = (
        "from homelab.ui import chat\n"
        "chat.talk('begin', lambda q: print('asked', repr(q)), lambda: None, lambda m: None)\n"
        "print('over')\n"
    )
    shown = at_prompt(
        [sys.executable, "-c", script],
        [("> ", "half\x03"), (r"\n> ", "whole"), ("asked 'whole'\n> ", "\x04")],
        {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
        tmp_path,
    )
    assert ("'half" in shown, shown.rstrip().endswith("over")) == (False, True), shown
