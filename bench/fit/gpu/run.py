"""Runs an engine, gives it one long prompt, and watches how much memory is in use meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MIB = 2**20
START_SECONDS, PROMPT_SECONDS = 600, 1800


class Peak:
    """The highest of a reading while the block runs, less what it was before, in MiB."""

    def __init__(self, read: Callable[[], int]) -> None:
        self.read, self.before = read, read()
        self.mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.mib = max(self.mib, (self.read() - self.before) / MIB)


def peak(
    argv: list[str],
    prompt: Mapping[str, Any],
    path: str,
    read: Callable[[int], int],
    environment: Mapping[str, str] | None = None,
) -> tuple[float, str]:
    """What a server takes from its start until it has answered, and its log. `{port}` in `argv` becomes a
    free one; `read` gives the bytes in use for the server's process.

    Raises RuntimeError with the end of the log where it does not start or does not answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        argv = [word.replace("{port}", str(port)) for word in argv]
        started: list[int] = []
        with Peak(lambda: read(started[0] if started else 0)) as highest:
            process = subprocess.Popen(
                argv, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
            )
            started.append(process.pid)
            try:
                _wait(process, f"http://127.0.0.1:{port}/health")
                _post(f"http://127.0.0.1:{port}{path}", prompt)
            except (OSError, TimeoutError) as e:
                log.seek(0)
                raise RuntimeError(f"{e}\n{log.read()[-3000:]}") from e
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        log.seek(0)
        return highest.mib, log.read()


def resident(pid: int) -> int:
    """The most RAM that a process has had so far, in bytes; 0 for none."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def buffers(log: str) -> float:
    """All that llama-server's log says it has reserved on the device, in MiB. A compute buffer that is
    reserved again is told again, so one of each size counts."""
    lines = re.findall(r"(\S+)\s+(model|KV|RS|compute) buffer size\s*=\s*([\d.]+) MiB", log)
    device = [x for x in lines if not x[0].startswith("CPU") and not x[0].endswith("_Host")] or lines
    compute = {float(size) for _, kind, size in device if kind == "compute"}
    return sum(compute) + sum(float(size) for _, kind, size in device if kind != "compute")


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise OSError(f"the server ended with {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise TimeoutError(f"no health within {START_SECONDS} s")


def _post(url: str, body: Mapping[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PROMPT_SECONDS) as answer:
        answer.read()
