"""The Docker Engine of this box, on which the lab's machines run, and what the lab needs from the box."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import platformdirs


def _state() -> Path:
    """The folder of the lab. Who is not root starts no machines, and has some of its files to himself."""
    if given := os.environ.get("HOMELAB_LAB"):
        return Path(given).absolute()
    return platformdirs.user_cache_path("homelab-lab") if os.geteuid() else Path("/var/tmp/homelab-lab")


STATE = _state()
# Labs in several folders share this box's engine: all that one of them makes there carries its folder.
TAG = hashlib.sha256(bytes(STATE)).hexdigest()[:6]
LABEL = f"homelab-lab={STATE}"
NETWORK = f"homelab-lab-{TAG}"

# A node is made of this box's own packages, so they must be installed here; the last few are for the
# images and the fake NVML.
NODE_PACKAGES = (
    "openssh-server", "openssh-client", "python3", "python3-venv", "libgomp1", "libstdc++6", "docker.io",
    "iptables", "iproute2", "ca-certificates", "procps", "curl",
)  # fmt: skip
IMAGE_PACKAGES = ("python3", "libgomp1", "libstdc++6", "ca-certificates", "libssl3", "curl")
BUILD_PACKAGES = ("gcc", "libc6-dev", "binutils")


class LabError(RuntimeError):
    """The lab cannot do what was asked; the text says why and what to type."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def timed(what: str, worth_telling: float = 1.0) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    if took >= worth_telling:
        say(f"lab: {what}: {took:.1f} s")


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time: tests run in several workers, and people type commands beside them."""
    STATE.mkdir(parents=True, exist_ok=True)
    with (STATE / f"{name}.lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def obstacle() -> str | None:
    """Why the lab cannot run here, in one line that says what would change it; None if it can."""
    if sys.platform != "linux":
        return "the lab needs Linux"
    if os.geteuid() != 0:
        return (
            "the lab needs root (it mounts, and starts machines with their own Docker): "
            "run it as root or with sudo"
        )
    if not shutil.which("dpkg-query"):
        return "the lab makes its machines from Debian or Ubuntu packages, and this is neither"
    wanted = list(dict.fromkeys(NODE_PACKAGES + IMAGE_PACKAGES + BUILD_PACKAGES))
    # A package that was removed and not purged still has its lists of files: only its state tells. What was
    # never there is no output.
    said = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted],
        capture_output=True,
        text=True,
    ).stdout
    missing = [p for p in wanted if f"{p} installed" not in said.splitlines()]
    if missing:
        return (
            "the lab needs packages that are not installed: "
            f"apt-get install -y --no-install-recommends {' '.join(missing)}"
        )
    return None


def docker_binary() -> str:
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"


def environment() -> dict[str, str]:
    """The lab is on this box's engine, whichever engine its user works with."""
    return {k: v for k, v in os.environ.items() if k not in ("DOCKER_HOST", "DOCKER_CONTEXT")}


def docker(*args: str, check: bool = True, text_in: str | None = None, timeout: float = 300) -> str:
    """Run the docker client on this box's engine and return its output."""
    done = subprocess.run(
        [docker_binary(), *args],
        input=text_in,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
    )
    if check and done.returncode:
        raise LabError(f"docker {' '.join(args[:3])}… failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def ready() -> None:
    """This box's engine runs and has the lab's network."""
    reason = obstacle()
    if reason:
        raise LabError(reason)
    STATE.mkdir(parents=True, exist_ok=True)
    with locked("engine"):
        if not _answers():
            with timed("started dockerd"):
                _start_engine()
        if not docker("network", "ls", "-q", "--filter", f"name=^{NETWORK}$"):
            _make_network()


def _make_network() -> None:
    """On the first addresses that no other network of this box's engine has: another lab's, for one."""
    create = ["network", "create", "--internal", "--label", LABEL]
    for number in range(256):
        try:
            docker(*create, "--subnet", f"10.77.{number}.0/24", NETWORK)
            return
        except LabError as error:
            if "overlaps" not in str(error):
                raise
    raise LabError("every network in 10.77.0.0/16 is taken: docker network ls, and remove what is not used")


@cache
def subnet() -> str:
    """The first three numbers of every address on the lab's network."""
    line = docker("network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", NETWORK)
    return line.rpartition(".")[0]


def gateway() -> str:
    """This box, as the machines see it."""
    return f"{subnet()}.1"


def _answers() -> bool:
    return (
        subprocess.run([docker_binary(), "version"], capture_output=True, env=environment()).returncode == 0
    )


def _start_engine() -> None:
    if Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "start", "docker"], check=False)
    else:
        with (STATE / "dockerd.log").open("ab") as log:
            started = subprocess.Popen(
                ["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        started.returncode = 0  # it is to outlive us: do not warn that it runs
    until = time.monotonic() + 30
    while not _answers():
        if time.monotonic() > until:
            raise LabError(
                f"dockerd does not answer after 30 s; its log: {STATE}/dockerd.log (or journalctl -u docker)"
            )
        time.sleep(0.2)


def labelled(*more: str) -> list[str]:
    """Ids of this lab's containers."""
    return docker("ps", "-aq", "--filter", f"label={LABEL}", *more).split()
