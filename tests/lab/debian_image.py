"""Docker images made of packages that are installed on this box: their files are streamed into
`docker import`. Nothing is downloaded."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, cast

from tests.lab.engine import LabError

LEFT_OUT = re.compile(
    r"^/usr/share/(doc|man|info|locale|lintian|bug|doc-base)/|^/var/lib/docker|^/boot/|__pycache__"
)
RUNTIME = re.compile(r"^/(proc|sys|dev|run)/")
MADE_AT_INSTALL = (
    "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/nsswitch.conf", "/etc/ld.so.cache",
    "/etc/ssl/certs/ca-certificates.crt", "/etc/localtime", "/etc/os-release", "/etc/debian_version",
)  # fmt: skip
MADE_AT_INSTALL_DIRS = (
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ld.so.conf.d",
    "/etc/pam.d",
    "/etc/ssh",
    "/etc/security",
)
MERGED = ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/lib32", "/usr/libx32")
BASE = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "findutils", "grep",
    "gzip", "hostname",
    "libc-bin", "login", "mount", "ncurses-base", "passwd", "procps", "sed", "tar", "util-linux",
)  # fmt: skip
EMPTY_DIRS = {
    "/usr": 0o755, "/proc": 0o555, "/sys": 0o555, "/dev": 0o755, "/run": 0o755, "/tmp": 0o1777,
    "/root": 0o700, "/var": 0o755,
    "/var/tmp": 0o1777, "/var/log": 0o755, "/home": 0o755, "/srv": 0o755, "/usr/local": 0o755,
    "/usr/local/bin": 0o755, "/app": 0o755,
}  # fmt: skip
QUERY = "${binary:Package}\t${Package}\t${db:Status-Abbrev}\t${Provides}\t${Pre-Depends}, ${Depends}\n"


def closure(roots: Iterable[str]) -> list[str]:
    """The named packages and all that they depend on, as far as it is installed."""
    installed: dict[str, tuple[str, str]] = {}
    provided: dict[str, str] = {}
    for line in subprocess.check_output(["dpkg-query", "-W", "-f", QUERY], text=True).splitlines():
        full, name, status, provides, depends = line.split("\t")
        if status.startswith("ii"):
            installed[name] = (full, depends)
            for virtual in provides.split(","):
                provided.setdefault(virtual.split("(")[0].strip(), name)
    todo, found = [*roots, *(b for b in BASE if b in installed)], set[str]()
    while todo:
        name = todo.pop()
        if name in found:
            continue
        if name not in installed:
            raise LabError(
                f"the lab needs the package {name}: apt-get install -y --no-install-recommends {name}"
            )
        found.add(name)
        for group in installed[name][1].split(","):
            choices = [c.split("(")[0].strip().split(":")[0] for c in group.split("|")]
            todo += [
                c if c in installed else provided[c] for c in choices if c in installed or c in provided
            ][:1]
    return sorted(installed[name][0] for name in found)


def _paths(packages: Sequence[str]) -> set[str]:
    listing = subprocess.check_output(["dpkg", "-L", *packages], text=True, stderr=subprocess.DEVNULL)
    paths = {p for p in listing.splitlines() if p.startswith("/") and p != "/." and not LEFT_OUT.search(p)}
    paths |= {p for p in MADE_AT_INSTALL if os.path.lexists(p)}
    for folder in filter(os.path.isdir, MADE_AT_INSTALL_DIRS):
        paths |= {
            folder,
            *(f"{folder}/{name}" for name in os.listdir(folder) if not name.startswith("ssh_host_")),
        }
    for name in os.listdir("/etc/alternatives"):
        target = os.path.realpath(f"/etc/alternatives/{name}")
        if target in paths or "/usr" + target in paths:
            paths |= {link for link in (f"/usr/bin/{name}", f"/usr/sbin/{name}") if os.path.islink(link)}

    def leads_somewhere(path: str) -> bool:
        if not os.path.islink(path):
            return True
        target = os.path.realpath(path)
        return (
            target in paths
            or target.removeprefix("/usr") in paths
            or "/usr" + target in paths
            or target in MERGED
        )

    return {p for p in paths if leads_somewhere(p)}


def write_tar(out: IO[bytes], packages: Sequence[str], added: dict[Path, str]) -> None:
    """A root filesystem of the packages (with their closure) and of the folders or files in
    `added` (source: path inside)."""
    with tarfile.open(fileobj=out, mode="w|") as tar:
        done = set[str]()

        def make(path: str, kind: bytes, mode: int = 0o777, target: str = "") -> None:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.mode, entry.linkname = kind, mode, target
            tar.addfile(entry)
            done.add(path)

        for path, mode in EMPTY_DIRS.items():
            make(path, tarfile.DIRTYPE, mode)
        make("/var/run", tarfile.SYMTYPE, target="/run")
        merged = {m.removeprefix("/usr") for m in MERGED if os.path.islink(m.removeprefix("/usr"))}
        for path in sorted(merged):
            tar.add(path, path.lstrip("/"), recursive=False)
            done.add(path)
        for path in sorted(_paths(closure(packages))):
            real = "/usr" + path if "/" + path.split("/")[1] in merged else path
            if real not in done and os.path.lexists(real) and not RUNTIME.match(real):
                done.add(real)
                tar.add(real, real.lstrip("/"), recursive=False)
        for source, inside in added.items():
            tar.add(source, inside.lstrip("/"))


def import_image(
    docker_command: Sequence[str],
    tag: str,
    packages: Sequence[str],
    added: dict[Path, str],
    changes: Sequence[str],
) -> None:
    """`docker_command` is a docker client that reads standard input: on this box, or inside a node."""
    options = [
        word
        for change in ("ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *changes)
        for word in ("-c", change)
    ]
    command = [*docker_command, "import", *options, "-", tag]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors) as client,
    ):
        with contextlib.suppress(BrokenPipeError), cast("IO[bytes]", client.stdin) as pipe:
            write_tar(pipe, packages, added)
        if client.wait():
            errors.seek(0)
            raise LabError(f"docker import {tag} failed: {errors.read().decode().strip()}")
