"""Which TCP ports are taken. Other people's processes have no name unless the agent may look at them."""

from __future__ import annotations

from typing import Any

from .host import PSUTIL_MISSING


def collect(problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    try:
        import psutil
    except ImportError as e:
        problems.append({"source": "psutil", "message": PSUTIL_MISSING % (e, "ports in use are not known")})
        return []
    found: dict[Any, dict[str, Any]] = {}
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS shows a user only his own
        connections = own_connections(psutil)
    for c in connections:
        if c.status == psutil.CONN_LISTEN:
            key = (c.laddr.port, c.laddr.ip)
            entry = found.setdefault(key, {"port": key[0], "address": key[1], "process": None})
            entry["process"] = entry["process"] or process_name(psutil, c.pid)
    return [found[key] for key in sorted(found)]


def own_connections(psutil: Any) -> list[Any]:
    found = []
    for process in psutil.process_iter():
        try:
            found += [Owned(c, process.pid) for c in process.net_connections("tcp")]
        except psutil.Error:
            pass
    return found


class Owned:
    """A connection of one process: psutil leaves the pid out there."""

    def __init__(self, connection: Any, pid: int) -> None:
        self.status = connection.status
        self.laddr = connection.laddr
        self.pid = pid


def process_name(psutil: Any, pid: Any) -> Any:
    try:
        return psutil.Process(pid).name() if pid else None
    except psutil.Error:
        return None


def merge(listening: list[dict[str, Any]], published: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Docker knows who published a port, even where no proxy process listens or its name is hidden."""
    found = {(p["port"], p["address"]): p for p in listening}
    for p in published:
        found[(p["port"], p["address"])] = p
    return [found[key] for key in sorted(found)]
