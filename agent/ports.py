"""Which TCP ports are taken. Other people's processes have no name unless the agent may look at them."""

from __future__ import annotations

import os
from typing import Any, Iterator

from . import processes
from .host import LINUX, PSUTIL_MISSING

LISTEN = "0A"  # TCP_LISTEN, net/tcp_states.h


def collect(problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    return by_kernel() if LINUX else by_psutil(problems)


def by_kernel() -> list[dict[str, Any]]:
    from . import netlink

    sockets: dict[tuple[int, str], list[int]] = {}
    users: dict[tuple[int, str], int] = {}
    try:
        listening = list(netlink.listeners())
    except OSError:
        listening = list(listeners())
    for port, address, inode, uid in listening:
        sockets.setdefault((port, address), []).append(inode)
        users[port, address] = uid
    owner = owners({inode for inodes in sockets.values() for inode in inodes})
    rows = []
    for (port, address), inodes in sorted(sockets.items()):
        pid = next((owner[i] for i in inodes if i in owner), None)
        process = processes.name(pid) if pid else None
        rows.append(
            {"port": port, "address": address, "process": process, "pid": pid, "uid": users[port, address]}
        )
    return rows


def listeners() -> Iterator[tuple[int, str, int, int]]:
    """As netlink.listeners, from /proc/net/tcp and tcp6, which every kernel has; there it walks through all
    its connections for us.

    Addresses are hexadecimal words in the machine's byte order."""
    import _socket
    import struct

    for path, family in (("/proc/net/tcp", _socket.AF_INET), ("/proc/net/tcp6", _socket.AF_INET6)):
        if not os.path.exists(path):
            continue  # a kernel without IPv6
        with open(path, encoding="utf-8") as f:
            for line in f:
                fields = line.split(None, 10)
                if len(fields) > 9 and fields[3] == LISTEN:
                    words, _, port = fields[1].partition(":")
                    packed = b"".join(
                        struct.pack("=I", int(words[i : i + 8], 16)) for i in range(0, len(words), 8)
                    )
                    yield int(port, 16), _socket.inet_ntop(family, packed), int(fields[9]), int(fields[7])


def owners(inodes: set[int]) -> dict[int, int]:
    """The process of each socket, of those that we may look at. Where several have it, the youngest:
    systemd passes sockets on."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, int] = {}
    for pid in sorted((int(n) for n in os.listdir("/proc") if n.isdigit()), reverse=True):
        if len(found) == len(wanted):
            break
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                inode = wanted.get(link(f"/proc/{pid}/fd/{fd}"))
                if inode:
                    found.setdefault(inode, pid)
        except OSError:  # somebody else's, or gone
            pass
    return found


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # closed in the meantime
        return ""


def by_psutil(problems: list[dict[str, str]]) -> list[dict[str, Any]]:
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
            entry = found.setdefault(
                key, {"port": key[0], "address": key[1], "process": None, "pid": None, "uid": None}
            )
            entry["pid"] = entry["pid"] or c.pid
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
