"""The machine itself: names, operating system, processor, memory, network interfaces, file systems.

Linux is read from /proc, /sys and netlink; psutil answers on macOS, and is not imported elsewhere: that
costs 35 ms."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

LINUX = sys.platform.startswith("linux")
VIRTUAL = ("docker_gwbridge", "veth", "virbr", "cni", "flannel")
PSUTIL_MISSING = "psutil cannot be loaded (%s): %s. Install it for this Python: pip install psutil"


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


def read_or_none(path: str) -> str | None:
    try:
        return read(path).strip("\0 \n") or None
    except OSError:
        return None


def names_in(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def command(*argv: str) -> str | None:
    import subprocess

    try:
        return (
            subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=5,
                check=False,
            )
            .stdout.decode()
            .strip()
        )
    except (OSError, subprocess.SubprocessError):
        return None


def identity() -> dict[str, Any]:
    system, node, release, _, machine = os.uname()
    connection = os.environ.get("SSH_CONNECTION", "").split()
    return {
        "hostname": node,
        "os": system,
        "system": "linux" if LINUX else sys.platform,
        "kernel": release,
        "arch": machine,
        "wsl": "microsoft" in release.lower(),
        "home": os.path.expanduser("~"),
        "user": user_name(os.getuid()) or "",
        "python": "%d.%d.%d" % sys.version_info[:3],
        "server_address": connection[2] if len(connection) == 4 else None,
    }


def user_name(uid: int) -> str | None:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def operating_system() -> str:
    if not LINUX:
        return "macOS " + (command("sw_vers", "-productVersion") or "")
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        for line in (read_or_none(path) or "").splitlines():
            if line.startswith("PRETTY_NAME="):
                return line[len("PRETTY_NAME=") :].strip().strip("\"'")
    return os.uname().sysname


def machine_id() -> str | None:
    if LINUX:
        return read_or_none("/etc/machine-id") or read_or_none("/var/lib/dbus/machine-id")
    found = re.search(
        r'"IOPlatformUUID" = "([^"]+)"', command("ioreg", "-rd1", "-c", "IOPlatformExpertDevice") or ""
    )
    return found.group(1) if found else None


def cpu() -> dict[str, Any]:
    threads = os.cpu_count() or 1
    if not LINUX:
        return {
            "model": command("sysctl", "-n", "machdep.cpu.brand_string"),
            "cores": int(command("sysctl", "-n", "hw.physicalcpu") or threads),
            "threads": threads,
        }
    return {
        "model": cpu_model() or read_or_none("/proc/device-tree/model"),
        "cores": cores() or threads,
        "threads": threads,
    }


def cpu_model() -> str | None:
    """ARM kernels give no "model name"; a Raspberry Pi writes "Model", other boards a device tree."""
    board = None
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
        for (
            line
        ) in f:  # the first processor's block is enough where it has the name: 200 of them are slow to read
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
            if key.strip() == "Model":
                board = value.strip() or None
    return board


def cores() -> int:
    """Hyper-threads of one core share one list of siblings."""
    found = set()
    base = "/sys/devices/system/cpu"
    for name in names_in(base):
        if name.startswith("cpu") and name[3:].isdigit():
            siblings = read_or_none(f"{base}/{name}/topology/core_cpus_list") or read_or_none(
                f"{base}/{name}/topology/thread_siblings_list"
            )
            if siblings:
                found.add(siblings)
    return len(found)


def memory() -> dict[str, int]:
    if not LINUX:
        try:
            import psutil
        except ImportError as e:
            raise ImportError(PSUTIL_MISSING % (e, "memory is not known")) from None
        figures = psutil.virtual_memory()
        return {"memory_total_bytes": figures.total, "memory_available_bytes": figures.available}
    words = [line.split() for line in read("/proc/meminfo").splitlines()]
    found = {w[0].rstrip(":"): int(w[1]) * 1024 for w in words if len(w) == 3 and w[2] == "kB"}
    # Kernels before 3.14 and some containers give no MemAvailable.
    available = found.get("MemAvailable", found.get("MemFree", 0) + found.get("Cached", 0))
    return {"memory_total_bytes": found["MemTotal"], "memory_available_bytes": available}


def interfaces(problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    if LINUX:
        from . import netlink

        found = netlink.interfaces()
    else:
        found = interfaces_by_psutil(problems)
    default = default_interface()
    return [
        dict(interface(name, rows), default_route=name == default)
        for name, rows in sorted(found.items())
        if not is_virtual(name)
    ]


def interfaces_by_psutil(problems: list[dict[str, str]]) -> dict[str, list[tuple[str, str]]]:
    try:
        import psutil
    except ImportError as e:
        problems.append(
            {"source": "psutil", "message": PSUTIL_MISSING % (e, "network addresses are not known")}
        )
        return {}
    kinds = {psutil.AF_LINK: "mac"}
    return {
        name: [(kinds.get(a.family, "ip"), a.address) for a in rows]
        for name, rows in psutil.net_if_addrs().items()
    }


def default_interface() -> str | None:
    """Through which the machine reaches the world: in a house, its LAN. Not known on macOS."""
    rows = [line.split() for line in (read_or_none("/proc/net/route") or "").splitlines()[1:]]
    ways = [(int(r[6]), r[0]) for r in rows if len(r) > 7 and r[1] == "00000000" and r[7] == "00000000"]
    return min(ways)[1] if ways else None


def resolved(names: list[str]) -> dict[str, list[str]]:
    """The addresses of each name as this machine sees it; none where it knows no such name."""
    import socket

    answers = {}
    for name in names:
        try:
            rows = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            rows = []
        answers[name] = sorted({str(row[4][0]).split("%")[0] for row in rows})
    return answers


def is_virtual(name: str) -> bool:
    kind = name.rstrip("0123456789")
    bridge = (
        name.startswith("br-") and len(name) == 15 and not name[3:].strip("0123456789abcdef")
    )  # of a Docker network
    return bridge or kind == "lo" or (kind == "docker" and kind != name) or name.startswith(VIRTUAL)


def interface(name: str, rows: list[Any]) -> dict[str, Any]:
    macs = [value.lower() for kind, value in rows if kind == "mac" and value.strip("0:-")]
    addresses = [
        value.split("%")[0] for kind, value in rows if kind == "ip" and not value.lower().startswith("fe80")
    ]
    return {"name": name, "mac": macs[0] if macs else None, "addresses": addresses}


def hub_home() -> str:
    """Where huggingface_hub keeps its files: HF_HOME, else $XDG_CACHE_HOME/huggingface, else
    ~/.cache/huggingface."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.path.expanduser(os.environ.get("HF_HOME") or os.path.join(cache, "huggingface"))


def hub_cache() -> str:
    """Where repositories of the hub lie on this node: looked for here, and mounted into engines from here."""
    return os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.path.join(hub_home(), "hub"))


def disks(engine: dict[str, Any] | None) -> list[dict[str, Any]]:
    wanted = [("models", hub_cache()), ("homelab", os.path.expanduser("~/.local/share"))]
    if engine is not None:
        wanted.append(("docker", engine.get("data_root") or "/var/lib/docker"))
    found = []
    for purpose, path in wanted:
        while not os.path.exists(path) and path != os.path.dirname(path):
            path = os.path.dirname(path)
        figures = os.statvfs(path)
        found.append(
            {
                "purpose": purpose,
                "path": path,
                "total_bytes": figures.f_blocks * figures.f_frsize,
                "free_bytes": figures.f_bavail * figures.f_frsize,
            }
        )
    return found
