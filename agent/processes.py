"""Single processes, from /proc: who, since when, child of whom, how much memory. Without /proc (macOS) psutil answers."""

from __future__ import annotations

import os

from .host import LINUX, read, read_or_none, user_name

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing costs 3 ms
    from typing import Any


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; the second, the name, may hold anything."""
    return (read_or_none(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()


def is_alive(pid: Any, start_ticks: Any) -> bool:
    """Alive, and the same process: numbers are used again, start times are not. A zombie is dead."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    if not LINUX:
        import psutil

        return bool(psutil.pid_exists(pid))
    fields = stat_fields(pid)
    return len(fields) > 19 and fields[0] not in ("Z", "X") and (start_ticks is None or fields[19] == str(start_ticks))


def name(pid: int) -> str | None:
    """The kernel keeps 15 bytes; the whole name stands in the command line, unless the process has written something else there."""
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


def cgroup(pid: int) -> str:
    return read_or_none(f"/proc/{pid}/cgroup") or ""


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
        import psutil

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
