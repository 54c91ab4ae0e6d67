"""Services of ours that run without Docker, from the files their supervisor keeps; and whose GPU memory it
is."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from typing import Any

from . import host, httpget, processes

# The second try waits longer: a busy engine on a small machine takes seconds to answer.
HEALTH_TIMEOUTS_S = (1.0, 3.0)
CONTAINER = r"[0-9a-f]{64}"


def collect(unlisted: list[str]) -> list[dict[str, Any]]:
    """Services of ours. Why some of them may be missing goes into `unlisted`."""
    found = []
    for path in service_files():
        try:
            if not os.path.isfile(path):
                raise OSError("not a file")
            with open(path, encoding="utf-8") as f:
                labels = {str(k): str(v) for k, v in json.load(f)["labels"].items()}
            found.append(describe(os.path.dirname(path), labels))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            unlisted.append(f"{path} cannot be read: {type(e).__name__}: {e}")
    checks = [
        threading.Thread(target=check, args=(s,), daemon=True)
        for s in found
        if s["state"] == "running" and s["labels"].get("homelab.health")
    ]
    for thread in checks:
        thread.start()
    for thread in checks:
        thread.join(2 * sum(HEALTH_TIMEOUTS_S))
    return found


def secrets_id(cluster: str, problems: list[dict[str, str]]) -> str | None:
    """Tells the keys that lie here for a cluster from others, without revealing them."""
    path = os.path.join(os.path.expanduser("~/.local/share/homelab"), cluster, "secrets.json")
    try:
        with open(path, "rb") as f:
            content = f.read()
    except FileNotFoundError:
        return None
    except OSError as e:
        problems.append({"source": "secrets", "message": f"{path} cannot be read: {e.strerror}"})
        return "unreadable"
    import hashlib  # 3 ms that a node without keys need not spend

    return hashlib.sha256(content).hexdigest()[:16]


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
        "role": labels.get("homelab.role", ""),
        "serves": serves(labels),
        "spec": labels.get("homelab.spec", ""),
        "runtime": "native",
        "state": state,
        "detail": detail,
        "labels": labels,
        "directory": directory,
        "python": sys.executable,
        "pid": pid,
        "restarts": int(supervised.get("restarts") or 0),
        "exit_code": None if alive else supervised.get("exit_code"),
        "memory_bytes": processes.memory_of_tree(pid) if pid else None,
    }


def serves(labels: dict[str, str]) -> list[str]:
    """The models that a service of ours serves."""
    return [name for name in labels.get("homelab.serves", "").split(",") if name]


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
    """A cheap GET, and another one. An engine that loads its model answers 503, or does not listen yet; one
    that is busy answers late, and is not dead for that."""
    labels = service["labels"]
    address = labels.get("homelab.address") or "127.0.0.1"
    for timeout_s in HEALTH_TIMEOUTS_S:
        service["state"], service["detail"] = "running", None
        try:
            status, _ = httpget.get(
                (address, int(labels["homelab.port"])), labels["homelab.health"], timeout_s
            )
        except ConnectionRefusedError:
            service["state"] = "starting"
            return
        except socket_timeout():
            service["detail"] = f"busy: no answer from {labels['homelab.health']} in {timeout_s:g} s"
        except (OSError, ValueError, KeyError) as e:
            service["state"], service["detail"] = "unhealthy", f"health: {e}"
        else:
            if status < 400:
                return
            if status == 503:
                service["state"] = "starting"
                return
            service["state"], service["detail"] = "unhealthy", f"health: status {status}"


def socket_timeout() -> Any:
    import socket

    return socket.timeout  # before Python 3.10 it is not TimeoutError


def mark_listening(services: list[dict[str, Any]], ports: list[dict[str, Any]]) -> None:
    """Says of each running service whether it is the one that listens on its port: somebody else there
    would be given its key. The container that published it, a process of its own, or, where we may not
    look, one of its own user."""
    for service in services:
        port, pid = service["labels"].get("homelab.port"), service.get("pid")
        rows = [p for p in ports if str(p["port"]) == port]
        if service["state"] != "stopped":
            service["listens"] = any(is_own(service, pid, row) for row in rows)


def is_own(service: dict[str, Any], pid: int | None, row: dict[str, Any]) -> bool:
    if row.get("container"):
        return bool(row["container"] == service.get("container"))
    holder = row.get("pid")
    if holder and service.get("container"):
        return service["container"] in processes.cgroup(holder)
    if holder:
        return pid in (holder, *processes.ancestry(holder))
    return bool(pid and row.get("uid") is not None and processes.user_id(pid) == row["uid"])


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
