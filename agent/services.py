"""Services of ours that run without Docker, from the files their supervisor keeps;
and whose GPU memory it is."""

from __future__ import annotations

import json
import os
import re
import threading

from . import host, httpget, processes

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing costs 3 ms
    from typing import Any

HEALTH_TIMEOUT_S = 1.0
CONTAINER = r"[0-9a-f]{64}"


def collect(problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    found = []
    for path in service_files():
        try:
            with open(path, encoding="utf-8") as f:
                labels = {str(k): str(v) for k, v in json.load(f)["labels"].items()}
            found.append(describe(os.path.dirname(path), labels))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            problems.append(
                {"source": "native", "message": f"{path} cannot be read: {type(e).__name__}: {e}"}
            )
    checks = [
        threading.Thread(target=check, args=(s,), daemon=True)
        for s in found
        if s["state"] == "running" and s["labels"].get("homelab.health")
    ]
    for thread in checks:
        thread.start()
    for thread in checks:
        thread.join(4 * HEALTH_TIMEOUT_S)
    return found


def service_files() -> list[str]:
    """~/.local/share/homelab/CLUSTER/NAME/SPEC/service.json"""
    folders = [os.path.expanduser("~/.local/share/homelab")]
    for _ in range(3):
        folders = [os.path.join(f, n) for f in folders for n in host.names_in(f) if not n.startswith(".")]
    return [p for p in (os.path.join(f, "service.json") for f in folders) if os.path.lexists(p)]


def describe(directory: str, labels: dict[str, str]) -> dict[str, Any]:
    cluster, name = directory.split(os.sep)[-3:-1]
    state_file = os.path.join(directory, "state.json")
    supervised: dict[str, Any] = {}
    if os.path.exists(state_file):
        with open(state_file, encoding="utf-8") as f:
            supervised = dict(json.load(f))
    state, detail = condition(supervised)
    alive = state == "running"
    pid = supervised.get("pid") if alive else None
    return {
        "cluster": labels.get("homelab.cluster", cluster),
        "name": labels.get("homelab.service", name),
        "model": labels.get("homelab.model"),
        "spec": labels.get("homelab.spec", ""),
        "runtime": "native",
        "state": state,
        "detail": detail,
        "labels": labels,
        "directory": directory,
        "pid": pid,
        "restarts": int(supervised.get("restarts") or 0),
        "exit_code": None if alive else supervised.get("exit_code"),
        "memory_bytes": processes.memory_of_tree(pid) if pid else None,
    }


def condition(supervised: dict[str, Any]) -> tuple[str, str | None]:
    if not supervised:
        return "stopped", None
    if processes.is_alive(supervised.get("pid"), supervised.get("pid_start_ticks")):
        return "running", None
    status, code = supervised.get("status"), supervised.get("exit_code")
    ended = "" if code is None else f", exit code {code}"
    if not processes.is_alive(supervised.get("supervisor_pid"), supervised.get("supervisor_start_ticks")):
        return "stopped", ("its supervisor is gone" + ended) if status in (
            "running",
            "backing-off",
        ) else f"{status}{ended}"
    if status == "backing-off":
        return "unhealthy", "starts again soon" + ended
    if status == "running":  # between two starts, or the file is a moment behind
        return "starting", None
    return "stopped", f"{status}{ended}"


def check(service: dict[str, Any]) -> None:
    """One cheap GET. An engine that loads its model answers 503, or does not listen yet."""
    labels = service["labels"]
    address = labels.get("homelab.address") or "127.0.0.1"
    if address in ("0.0.0.0", "::"):
        address = "127.0.0.1" if address == "0.0.0.0" else "::1"
    try:
        status, _ = httpget.get(
            (address, int(labels["homelab.port"])), labels["homelab.health"], HEALTH_TIMEOUT_S
        )
    except ConnectionRefusedError:
        service["state"] = "starting"
        return
    except (OSError, ValueError, KeyError) as e:
        service["state"], service["detail"] = "unhealthy", f"health: {e}"
        return
    if status == 503:
        service["state"] = "starting"
    elif status >= 400:
        service["state"], service["detail"] = "unhealthy", f"health: status {status}"


def attribute(services: list[dict[str, Any]], gpus: list[dict[str, Any]]) -> None:
    """Names the service of each GPU process, and adds up what a service holds on all GPUs."""
    if not services:
        return
    containers = {s["container"]: s for s in services if s.get("container")}
    roots = {s["pid"]: s for s in services if s.get("pid")}
    for gpu in gpus:
        for process in gpu["processes"]:
            owner = None
            for container in re.findall(CONTAINER, processes.cgroup(process["pid"])):
                owner = owner or containers.get(container)
            for pid in processes.ancestry(process["pid"]):
                owner = owner or roots.get(pid)
            if owner:
                process["service"] = owner["name"]
                if process.get("memory_bytes") is not None:
                    owner["gpu_memory_bytes"] = (owner.get("gpu_memory_bytes") or 0) + process["memory_bytes"]
