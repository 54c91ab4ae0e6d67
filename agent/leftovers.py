"""What earlier deploys left on this node that no service of any cluster names any more."""

from __future__ import annotations

import fcntl
import os
import re
from typing import Any

from . import host, services

NATIVE = "~/.cache/homelab/native"


def collect(cluster: str) -> list[dict[str, Any]]:
    folder = os.path.expanduser(os.path.join("~/.local/share/homelab", cluster))
    found = []
    for name in host.names_in(os.path.join(folder, "weights")):
        path = os.path.join(folder, "weights", name)
        found.append({"kind": "weights", "paths": [path], "bytes": size_of(path)})
    secrets = os.path.join(folder, "secrets.json")
    if os.path.isfile(secrets):
        found.append({"kind": "keys", "paths": [secrets], "bytes": 0})
    return found + native()


def native() -> list[dict[str, Any]]:
    """Environments, launchers and supervisors in the cache. An environment goes by the link that services
    know, with the folder that it leads to."""
    folder = os.path.expanduser(NATIVE)
    names = [n for n in host.names_in(folder) if not n.endswith(".lock") and not n.startswith(".")]
    links = {
        n: os.path.basename(os.path.realpath(os.path.join(folder, n))) for n in names if is_link(folder, n)
    }
    used = named()
    found = []
    for name in names:
        if name in used or name in links.values() or is_being_made(folder, links.get(name, name)):
            continue
        paths = [name, links[name]] if name in links else [name]
        if name in links and any(links[other] == links[name] for other in links if other != name):
            paths = [name]  # another link leads there too
        found.append({"kind": "native", "paths": [os.path.join(folder, p) for p in paths], "bytes": 0})
    return found


def is_link(folder: str, name: str) -> bool:
    return os.path.islink(os.path.join(folder, name))


def is_being_made(folder: str, name: str) -> bool:
    """Whether somebody makes this environment now: no link leads to it yet. See provision.py."""
    try:
        with open(os.path.join(folder, name + ".lock"), encoding="ascii") as guard:
            fcntl.flock(guard, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # held, or not known
    return False


def named() -> set[str]:
    """The names in the cache that any service of this user uses."""
    used = set()
    for path in services.service_files():
        try:
            if not os.path.isfile(path):
                raise OSError("not a file")
            with open(path, encoding="utf-8") as f:
                used.update(re.findall(r"\.cache/homelab/native/([^/\"\s]+)", f.read()))
        except (OSError, ValueError):
            return set(os.listdir(os.path.expanduser(NATIVE)))  # not known is not unused
    return used


def size_of(path: str) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                pass
    return total
