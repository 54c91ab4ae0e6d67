"""Asks every part of the node at once and puts the answers into one document. What fails or hangs becomes a
problem."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any, Callable, Dict, List

from . import accelerators, docker, host, ports, services

Problems = List[Dict[str, str]]

SCHEMA_VERSION = 1
DEADLINE_S = 10.0
WEIGHTS_DEADLINE_S = 20.0  # headers may lie on a sleeping disk


class Question:
    """One part of the node, asked in a thread of its own: Docker, the driver and the file system answer side
    by side."""

    def __init__(
        self, source: str, call: Callable[[Problems], Any], empty: Any, deadline_s: float = DEADLINE_S
    ) -> None:
        self.source = source
        self.call = call
        self.value = empty
        self.deadline_s = deadline_s
        self.started = time.monotonic()
        self.problems: Problems = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        try:
            self.value = self.call(self.problems)
        except Exception as e:  # whatever it is, it is a fact about the node
            self.problems.append({"source": self.source, "message": f"{type(e).__name__}: {e}"})

    def answer(self, problems: Problems) -> Any:
        self.thread.join(max(0.0, self.started + self.deadline_s - time.monotonic()))
        value = self.value
        if self.thread.is_alive():
            problems.append({"source": self.source, "message": f"no answer in {self.deadline_s:g} s"})
        problems.extend(list(self.problems))
        return value


def assemble(request: dict[str, Any], problems: Problems) -> dict[str, Any]:
    sources = [str(s) for s in request.get("sources") or []]
    headers = bool(request.get("headers", True))
    files = (
        Question("weights", lambda _: model_files(sources, headers), [], WEIGHTS_DEADLINE_S)
        if sources
        else None
    )
    if request.get("only") == "weights":
        return {
            "schema_version": SCHEMA_VERSION,
            "weights": files.answer(problems) if files else [],
            "problems": problems,
        }
    late = f"no answer in {DEADLINE_S:.0f} s"
    silent = {"reachable": False, "error": late}
    engine = Question(
        "docker",
        docker.collect,
        {"docker": silent, "services": [], "ports": [], "unlisted": [f"Docker: {late}"]},
    )
    gpus = Question("gpus", accelerators.collect, [])
    unread: list[str] = []
    native = Question("services", lambda _: services.collect(unread), None)
    network = Question("interfaces", host.interfaces, [])
    listening = Question("ports", ports.collect, [])
    names = [str(n) for n in request.get("resolve") or []]
    addresses = Question("resolver", lambda _: host.resolved(names), {}) if names else None

    document: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    document.update(host.identity())
    for key, part in (("cpu", host.cpu), ("os", host.operating_system), ("machine_id", host.machine_id)):
        try:
            document[key] = part()
        except Exception as e:
            problems.append({"source": "host", "message": f"{key}: {type(e).__name__}: {e}"})
    try:
        document.update(host.memory())
    except Exception as e:
        problems.append({"source": "host", "message": f"memory: {type(e).__name__}: {e}"})
        document.update(memory_total_bytes=0, memory_available_bytes=0)
    programs = [str(p) for p in request.get("programs") or []]
    document["python_path"] = sys.executable
    document["hub_cache"] = host.hub_cache()
    document["programs"] = {p: docker.find_program(p) for p in programs}
    document["interfaces"] = network.answer(problems)
    document["resolved"] = addresses.answer(problems) if addresses else {}
    document["gpus"] = gpus.answer(problems)

    found = engine.answer(problems)
    document["docker"] = found["docker"]
    accelerators.judge(document["gpus"], found["docker"])
    disks = Question("disks", lambda _: host.disks(found["docker"]), [])
    processes_of_ours = native.answer(problems)
    if processes_of_ours is None:
        unread = [f"~/.local/share/homelab: {late}"]
    document["services"] = found["services"] + (processes_of_ours or [])
    problems.extend({"source": "services", "message": why} for why in unread)
    document["unlisted"] = {"docker": found["unlisted"], "native": unread}
    Question("services", lambda _: services.attribute(document["services"], document["gpus"]), None).answer(
        problems
    )
    document["ports"] = ports.merge(listening.answer(problems), found["ports"])
    Question(
        "ports", lambda _: services.mark_listening(document["services"], document["ports"]), None
    ).answer(problems)
    document["disks"] = disks.answer(problems)
    document["weights"] = files.answer(problems) if files else []
    document["secrets_id"] = services.secrets_id(str(request.get("cluster") or ""), problems)
    if request.get("cluster"):
        left = Question("leftovers", lambda _: left_over(str(request["cluster"])), [])
        document["leftovers"] = left.answer(problems)
    document["problems"] = problems
    return document


def left_over(cluster: str) -> list[dict[str, Any]]:
    from . import leftovers

    return leftovers.collect(cluster)


def model_files(sources: list[str], headers: bool) -> list[dict[str, Any]]:
    from . import weights

    return weights.collect(sources, headers)


def main(arguments: list[str]) -> int:
    problems: Problems = []
    request: dict[str, Any] = {}
    if arguments:
        try:
            request = dict(json.loads(arguments[0]))
        except (ValueError, TypeError) as e:
            problems.append({"source": "agent", "message": f"the request cannot be read: {e}"})
    try:
        os.utime(
            os.path.dirname(os.path.abspath(__file__))
        )  # bundles that nobody runs are removed after a week
    except OSError:
        pass
    text = json.dumps(assemble(request, problems), ensure_ascii=False)
    # File names need not be Unicode; a strict JSON reader refuses lone surrogates.
    sys.stdout.buffer.write(text.encode("utf-8", "replace") + b"\n")
    return 0
