"""A household as its user sees it: an inventory file, and `homelab` as a command of its own process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e.terminal import at_terminal
from tests.lab.household import Household
from tests.lab.node import Node

CLUSTER = "home"
SECRET = re.compile(r"sk-[0-9a-f]{16,}")


@dataclass(frozen=True)
class Said:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class House:
    """`homelab` run in `folder`, which holds inventory.yml, by the household's user."""

    household: Household
    folder: Path
    document: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Node:
        return self.household[name]

    @property
    def nodes(self) -> dict[str, Node]:
        return self.household.nodes

    def write(self, *, gateway: str, models: Mapping[str, Mapping[str, Any]], **more: Any) -> None:
        """The inventory: all machines of the household, these models; `nodes` in `more` is merged into each
        node's own entry."""
        nodes = self.household.inventory_nodes()
        for name, own in more.pop("nodes", {}).items():
            nodes.setdefault(name, {}).update(own)
        self.document = {
            "cluster": CLUSTER,
            "gateway": {"node": gateway},
            **more,
            "nodes": nodes,
            "models": {n: dict(m) for n, m in models.items()},
        }
        self.save()

    def save(self) -> None:
        (self.folder / "inventory.yml").write_text(yaml.safe_dump(self.document, sort_keys=False))

    @property
    def env(self) -> dict[str, str]:
        return self.household.env | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def start(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "homelab", *words],
            cwd=self.folder,
            env=self.env | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def homelab(
        self, *words: str, code: int = 0, env: Mapping[str, str] | None = None, within: float = 300
    ) -> Said:
        """Run a command to its end. It must end with `code`; no traceback and no key is ever shown."""
        process = self.start(*words, env=env)
        try:
            out, err = process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(
                f"homelab {' '.join(words)} took longer than {within:.0f} s:\n{out}\n{err}"
            ) from None
        return self.judged(Said(process.returncode, out, err), words, code)

    def at_terminal(self, *words: str, typed: Sequence[tuple[str, str]] = (), code: int = 0) -> str:
        """As `homelab`, by somebody who types an answer to each question; what the terminal showed."""
        ended, shown = at_terminal(
            [sys.executable, "-m", "homelab", *words], typed, env=self.env, folder=self.folder
        )
        return self.judged(Said(ended, shown, ""), words, code).out

    def judged(self, said: Said, words: tuple[str, ...], code: int) -> Said:
        print(f"$ homelab {' '.join(words)}\n{said.out}{said.err}[exit {said.code}]\n")
        assert "Traceback" not in said.all or words[0] == "logs"  # an engine's own
        assert "homelab has a bug" not in said.all
        assert not SECRET.search(said.all)
        assert said.code == code, (
            f"homelab {' '.join(words)} ended with {said.code}, not {code}:\n{said.out}\n{said.err}"
        )
        return said

    def interrupted(self, *words: str, when: str, number: int, code: int) -> Said:
        """Run a command and send it a signal once a line that matches `when` was shown on stderr."""
        process = self.start(*words)
        assert process.stderr and process.stdout
        seen = []
        for line in process.stderr:
            seen.append(line)
            if re.search(when, line):
                os.kill(process.pid, number)
                break
        out, rest = process.communicate(timeout=180)
        assert process.returncode is not None
        return self.judged(Said(process.returncode, out, "".join(seen) + rest), words, code)

    # what a client sees

    @property
    def state(self) -> Path:
        return self.household.home / ".local/state/homelab" / CLUSTER

    @property
    def key(self) -> str:
        return (self.state / "gateway.key").read_text().strip()

    @property
    def url(self) -> str:
        gateway = self.document["gateway"]
        return f"http://{self[gateway['node']].address}:{gateway.get('port', 4000)}"

    def post(self, path: str, body: Mapping[str, Any], *, key: str | None = None) -> httpx.Response:
        return httpx.post(
            self.url + path,
            json=body,
            headers={"Authorization": f"Bearer {key or self.key}"},
            timeout=180,
            trust_env=False,
        )

    def chat(self, model: str, *, tokens: int = 8) -> httpx.Response:
        return self.post(
            "/v1/chat/completions",
            {"model": model, "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": tokens},
        )

    def streamed(self, model: str) -> list[str]:
        """The pieces of an answer as they come."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Tell me a story"}],
            "max_tokens": 16,
            "stream": True,
        }
        with httpx.stream(
            "POST",
            self.url + "/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=180,
            trust_env=False,
        ) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = [
                line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")
            ]
        assert events[-1] == "[DONE]"
        deltas = [c["delta"].get("content") for e in events[:-1] for c in json.loads(e)["choices"]]
        return [d for d in deltas if d]

    # what lies on the nodes

    def ours(self, node: str) -> list[dict[str, Any]]:
        """The containers on a node that carry our labels, as `docker inspect` shows them."""
        ids = self[node].run("docker ps -aq --filter label=homelab.cluster").stdout.split()
        return json.loads(self[node].run(f"docker inspect {' '.join(ids)}").stdout) if ids else []

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, node in self.nodes.items():
            if node.spec.docker is True:
                yield from ((name, c) for c in self.ours(name))

    def running(self) -> dict[str, str]:
        """`node/service` of each running container of ours, with its id."""
        return {
            f"{n}/{c['Config']['Labels']['homelab.service']}": c["Id"]
            for n, c in self.containers()
            if c["State"]["Running"]
        }


def eventually(holds: Callable[[], object], seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.1)


def llama(source: str, **more: Any) -> dict[str, Any]:
    """A small llama.cpp model of the inventory."""
    return {"engine": "llamacpp", "source": source, "context": 512, "concurrency": 1, **more}
