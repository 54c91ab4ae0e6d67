"""Asks every part of the node at once and puts the answers into one document. What fails or hangs becomes a
problem. Once, or again and again as long as somebody reads it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from . import accelerators, docker, host, ports, services

Problems = List[Dict[str, str]]

SCHEMA_VERSION = 1
DEADLINE_S = 10.0
WEIGHTS_DEADLINE_S = 20.0  # headers may lie on a sleeping disk
WATCH_S = (0.1, 3600.0)


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


class Questions:
    """Those that were asked last, by part. One that still hangs is not asked again, in one more thread each
    time: it stays the answer that there is none."""

    def __init__(self) -> None:
        self.asked: Dict[str, Question] = {}

    def ask(
        self,
        source: str,
        call: Callable[[Problems], Any],
        empty: Any,
        deadline_s: float = DEADLINE_S,
        part: str = "",
    ) -> Question:
        """`part` tells two questions to one source from each other."""
        key = part or source
        if key not in self.asked or not self.asked[key].thread.is_alive():
            self.asked[key] = Question(source, call, empty, deadline_s)
        return self.asked[key]


def assemble(
    request: dict[str, Any], problems: Problems, questions: Optional[Questions] = None
) -> dict[str, Any]:
    ask = (questions or Questions()).ask
    sources = [str(s) for s in request.get("sources") or []]
    headers = bool(request.get("headers", True))
    files = (
        ask("weights", lambda _: model_files(sources, headers), [], WEIGHTS_DEADLINE_S) if sources else None
    )
    if request.get("only") == "weights":
        return {
            "schema_version": SCHEMA_VERSION,
            "weights": files.answer(problems) if files else [],
            "problems": problems,
        }
    late = f"no answer in {DEADLINE_S:.0f} s"
    silent = {"reachable": False, "error": late}
    engine = ask(
        "docker",
        docker.collect,
        {"docker": silent, "services": [], "ports": [], "unlisted": [f"Docker: {late}"]},
    )
    gpus = ask("gpus", accelerators.collect, [])
    native = ask("services", lambda _: native_services(), ([], [f"~/.local/share/homelab: {late}"]))
    network = ask("interfaces", host.interfaces, [])
    listening = ask("ports", ports.collect, [])
    names = [str(n) for n in request.get("resolve") or []]
    addresses = ask("resolver", lambda _: host.resolved(names), {}) if names else None

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
    disks = ask("disks", lambda _: host.disks(found["docker"]), [])
    processes_of_ours, unread = native.answer(problems)
    document["services"] = found["services"] + processes_of_ours
    problems.extend({"source": "services", "message": why} for why in unread)
    document["unlisted"] = {"docker": found["unlisted"], "native": unread}
    ask(
        "services",
        lambda _: services.attribute(document["services"], document["gpus"]),
        None,
        part="whose memory",
    ).answer(problems)
    document["ports"] = ports.merge(listening.answer(problems), found["ports"])
    ask(
        "ports",
        lambda _: services.mark_listening(document["services"], document["ports"]),
        None,
        part="who listens",
    ).answer(problems)
    document["disks"] = disks.answer(problems)
    document["weights"] = files.answer(problems) if files else []
    document["secrets_id"] = services.secrets_id(str(request.get("cluster") or ""), problems)
    if request.get("cluster"):
        left = ask("leftovers", lambda _: left_over(str(request["cluster"])), [])
        document["leftovers"] = left.answer(problems)
    document["problems"] = problems
    return document


def native_services() -> tuple[list[dict[str, Any]], list[str]]:
    """The services, and why some of them may be missing."""
    unread: list[str] = []
    return services.collect(unread), unread


def left_over(cluster: str) -> list[dict[str, Any]]:
    from . import leftovers

    return leftovers.collect(cluster)


def model_files(sources: list[str], headers: bool) -> list[dict[str, Any]]:
    from . import weights

    return weights.collect(sources, headers)


def main(arguments: list[str]) -> int:
    seconds = None
    if arguments[:1] == ["--watch"]:
        seconds = seconds_of(arguments[1:2])
        if seconds is None:
            sys.stderr.write("--watch takes seconds, from %g to %g\n" % WATCH_S)
            return 2
        arguments = arguments[2:]
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
    if seconds is not None:
        watch(request, problems, seconds)
    show(assemble(request, problems))
    return 0


def show(document: dict[str, Any]) -> None:
    text = json.dumps(document, ensure_ascii=False)
    # File names need not be Unicode; a strict JSON reader refuses lone surrogates.
    sys.stdout.buffer.write(text.encode("utf-8", "replace") + b"\n")


def seconds_of(words: list[str]) -> Optional[float]:
    try:
        seconds = float(words[0])
    except (IndexError, ValueError):
        return None
    return seconds if WATCH_S[0] <= seconds <= WATCH_S[1] else None


def watch(request: dict[str, Any], problems: Problems, seconds: float) -> None:
    """Shows a document every `seconds`, with `problems` in each. Does not return: it ends the process when
    nobody reads any more."""
    threading.Thread(target=end_with_the_reader, args=(os.getppid(), seconds), daemon=True).start()
    questions = Questions()
    try:
        while True:
            begun = time.monotonic()
            document = assemble(request, list(problems), questions)
            try:
                show(document)
                sys.stdout.buffer.flush()
            except OSError:  # a pipe without a reader, a terminal that is gone
                break
            # What takes long, because the node is busy, gets a rest as well.
            time.sleep(max(begun + seconds - time.monotonic(), seconds / 2))
    except KeyboardInterrupt:
        pass
    os._exit(0)


def end_with_the_reader(parent: int, seconds: float) -> None:
    """Looks, in a thread of its own, whether anybody is left to read: a part of the node that hangs must not
    keep the agent there. The parent is a shell that waits for us and does not hear of a lost connection, so
    the pipe itself is asked: poll(2) says when its other end is closed, and waits meanwhile."""
    import select

    output = select.poll()
    output.register(1, 0)
    while os.getppid() == parent:
        said = [events for _, events in output.poll(seconds * 1000)]
        if any(events & (select.POLLERR | select.POLLHUP) for events in said):
            break
        if said:  # macOS cannot ask every kind of output
            time.sleep(seconds)
    os._exit(0)
