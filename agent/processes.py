"""Single processes, from /proc: who, since when, child of whom, how much memory. Without /proc (macOS) psutil
answers."""

from __future__ import annotations

import os
from typing import Any

from .host import LINUX, read, read_or_none, user_name


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; the second, the name, may hold anything."""
    return (read_or_none(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()


def is_alive(pid: Any, start_ticks: Any) -> bool:
    """Alive, and the same process: numbers are used again, start times are not. A zombie is dead."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    if not LINUX:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it is there, and another's
            return True
        return True
    fields = stat_fields(pid)
    return (
        len(fields) > 19
        and fields[0] not in ("Z", "X")
        and (start_ticks is None or fields[19] == str(start_ticks))
    )


def name(pid: int) -> str | None:
    """The kernel keeps 15 bytes; the whole name stands in the command line, unless the process has written
    something else there."""
    short = read_or_none(f"/proc/{pid}/comm")
    if short is None or len(short) < 15:
        return short
    try:
        line = read(f"/proc/{pid}/cmdline")
    except OSError:
        return short
    first = line.partition("\0")[0] if "\0" in line[:-1] else line.rstrip("\0").partition(" ")[0]
    return os.path.basename(first) if os.path.basename(first).startswith(short) else short


def user(pid: int) -> str | None:
    try:
        return user_name(os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return None


def user_id(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def cgroup(pid: int) -> str:
    return read_or_none(f"/proc/{pid}/cgroup") or ""


def memory_of_container(pid: int, container: str) -> int | None:
    """What a container holds, as `docker stats` counts it: without the page cache that can be given back
    (inactive_file). None where its cgroup is not to be seen: the number is another machine's, as with Docker
    Desktop, or there is no memory controller."""
    for line in cgroup(pid).splitlines():
        _, controllers, path = line.split(":", 2)
        if container not in path or (controllers and "memory" not in controllers.split(",")):
            continue
        folder = cgroup_folder("memory" if controllers else "", path)
        usage = (
            read_or_none(folder + ("/memory.usage_in_bytes" if controllers else "/memory.current"))
            if folder
            else None
        )
        if usage:
            counted = dict(
                each.split() for each in (read_or_none(f"{folder}/memory.stat") or "").splitlines()
            )
            return max(
                0, int(usage) - int(counted.get("total_inactive_file") or counted.get("inactive_file") or 0)
            )
    return None


def cgroup_folder(controller: str, path: str) -> str | None:
    """Where a cgroup is mounted: `controller` is v1's, or empty for v2. In a container the mount may begin
    below the top of the hierarchy."""
    for line in (read_or_none("/proc/self/mountinfo") or "").splitlines():
        mounted = line.split()
        kind, _, options = line.rpartition(" - ")[2].split(" ", 2)
        if kind == ("cgroup" if controller else "cgroup2") and (
            not controller or controller in options.split(",")
        ):
            top = mounted[3].rstrip("/")
            if path.startswith(top + "/") or path == top:
                return mounted[4] + path[len(top) :]
    return None


def ancestry(pid: int) -> list[int]:
    """The process and its parents, nearest first."""
    found: list[int] = []
    while pid > 1 and pid not in found and len(found) < 32:
        found.append(pid)
        fields = stat_fields(pid)
        pid = int(fields[1]) if len(fields) > 1 else 0
    return found


def memory_of_tree(pid: int) -> int | None:
    """What a process and its children hold in RAM, shared pages counted where they are mapped."""
    if not LINUX:
        try:
            import psutil
        except ImportError:  # the host's memory says so
            return None
        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return None
    page = os.sysconf("SC_PAGE_SIZE")
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = stat_fields(int(entry))
            if len(fields) > 21:
                children.setdefault(int(fields[1]), []).append(int(entry))
    total, waiting = 0, [pid]
    while waiting:
        each = waiting.pop()
        waiting += children.pop(each, [])
        fields = stat_fields(each)
        total += int(fields[21]) * page if len(fields) > 21 else 0
    return total
