"""One machine of the lab: a container with an address, sshd, Docker Engine, NVML,
memory and disk of its own."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.lab.engine import STATE, LabError, docker, docker_binary

HERE = Path(__file__).parent
PROFILES = [*sorted(p.name for p in (HERE / "gpus").iterdir()), "none"]


@dataclass(frozen=True)
class NodeSpec:
    """What a machine is like. `gpus` is the name of a file in gpus/, "none" (no driver at
    all), or such a file's text."""

    gpus: str = "none"
    memory_mib: int = 65536
    memory_free_mib: int | None = None
    disk_mib: int = 200 * 1024
    docker: bool | Literal["stopped"] = True  # False: not installed
    docker_group: bool = True
    toolkit: bool = True  # NVIDIA Container Toolkit
    compose: bool = True
    python: bool | str = True  # False: no python3; "3.6": one that says it is 3.6
    vllm: bool = False  # start from the seed that also has the vLLM image

    def gpus_text(self) -> str:
        if "\n" in self.gpus or ";" in self.gpus:
            return self.gpus
        if self.gpus == "none":
            return ""
        if self.gpus not in PROFILES:
            raise LabError(f"no GPU profile {self.gpus!r}; there are {', '.join(PROFILES)}")
        return (HERE / "gpus" / self.gpus).read_text()

    def options(self) -> str:
        driver = self.gpus != "none"
        values = {
            "LAB_DRIVER": "yes" if driver else "no",
            "LAB_TOOLKIT": "yes" if driver and self.toolkit else "no",
            "LAB_DOCKER": self.docker
            if isinstance(self.docker, str)
            else "running"
            if self.docker
            else "absent",
            "LAB_DOCKER_GROUP": "yes" if self.docker_group else "no",
            "LAB_COMPOSE": "yes" if self.compose else "no",
            "LAB_PYTHON": self.python
            if isinstance(self.python, str)
            else "present"
            if self.python
            else "absent",
        }
        return "".join(f"{k}={v}\n" for k, v in values.items())


@dataclass(frozen=True)
class GpuProcess:
    pid: int
    mib: int | None
    uuid: str


@dataclass
class Node:
    name: str
    address: str
    container: str
    folder: Path
    spec: NodeSpec
    user: str = "homelab"

    @property
    def identity(self) -> Path:
        return STATE / "id_ed25519"

    # ---- looking ----
    def run(
        self, command: str, user: str = "root", check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """A shell command in the node, past its sshd."""
        words = [docker_binary(), "exec", "-u", user, "-w", "/root" if user == "root" else f"/home/{user}"]
        words += [
            "-e",
            f"HOME={'/root' if user == 'root' else f'/home/{user}'}",
            self.container,
            "sh",
            "-c",
            command,
        ]
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise LabError(
                f"{self.name}: {command}: exit {done.returncode}: "
                f"{done.stderr.strip() or done.stdout.strip()}"
            )
        return done

    def put(self, path: str, text: str) -> None:
        subprocess.run(
            [
                docker_binary(),
                "exec",
                "-i",
                self.container,
                "sh",
                "-c",
                f"mkdir -p $(dirname {path}); cat > {path}",
            ],
            input=text,
            text=True,
            check=True,
        )

    @property
    def host_key(self) -> str:
        """Type and key, without the comment."""
        return " ".join((self.folder / "lab/host_key.pub").read_text().split()[:2])

    def processes(self) -> list[GpuProcess]:
        """The compute processes that the node's NVML shows."""
        lines = self.run(
            "/opt/lab-node/nvidia-smi --query-compute-apps=pid,used_memory,gpu_uuid "
            "--format=csv,noheader,nounits"
        ).stdout.splitlines()
        rows = [re.split(r",\s*", line) for line in lines if re.match(r"\d+,", line)]
        return [GpuProcess(int(pid), int(mib) if mib.isdigit() else None, uuid) for pid, mib, uuid in rows]

    def used_mib(self) -> list[int]:
        """Used memory of each GPU, as NVML tells it (without the driver's reserve)."""
        return [
            int(n)
            for n in self.run(
                "/opt/lab-node/nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits"
            ).stdout.split()
        ]

    def containers(self) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for line in self.run("docker ps -a --no-trunc --format '{{json .}}'").stdout.splitlines()
        ]

    # ---- changing ----
    @property
    def gpus_text(self) -> str:
        return (self.folder / "lab/gpu/devices").read_text()

    @gpus_text.setter
    def gpus_text(self, text: str) -> None:
        part = self.folder / "lab/gpu/devices.part"
        part.write_text(text)
        part.rename(self.folder / "lab/gpu/devices")

    def set_memory(self, total_mib: int, free_mib: int | None = None) -> None:
        (self.folder / "lab/meminfo").write_text(meminfo(total_mib, free_mib))

    def set_disk(self, mib: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={mib}m", self.folder / "disk"], check=True)

    def stop_ssh(self) -> None:
        """Also ends the sessions that are open."""
        self.run("pkill -x sshd; while pgrep -x sshd >/dev/null; do sleep .05; done", check=False)

    def start_ssh(self) -> None:
        self.run("/opt/lab-node/sshd-start")
        self._wait_for_port()

    def new_host_key(self) -> None:
        """As after a reinstall: whoever knew the node no longer does."""
        self.stop_ssh()
        self.run(
            "cd /etc/ssh && rm -f ssh_host_ed25519_key* && ssh-keygen -q -t ed25519 -N '' "
            "-f ssh_host_ed25519_key && cp ssh_host_ed25519_key.pub /lab/host_key.pub"
        )
        self.start_ssh()

    def stop_docker(self) -> None:
        self.run("pkill -x dockerd; while pgrep -x dockerd >/dev/null; do sleep .05; done", check=False)

    def start_docker(self) -> None:
        self.run("/opt/lab-node/dockerd-start")
        self._wait_for_docker()

    def cut_network(self) -> None:
        """The cable is pulled: packets to the node vanish."""
        self.run("ip link set eth0 down")

    def restore_network(self) -> None:
        self.run("ip link set eth0 up")

    def freeze(self) -> None:
        """The machine hangs: it is on the network and answers nothing."""
        docker("pause", self.container)

    def thaw(self) -> None:
        docker("unpause", self.container)

    def power_off(self) -> None:
        docker("kill", self.container)

    def power_on(self) -> None:
        docker("start", self.container)
        self.wait()

    def reboot(self) -> None:
        docker("restart", "-t", "1", self.container)
        self.wait()

    # ---- life ----
    def wait(self) -> None:
        self._wait_for_port()
        if self.spec.docker is True:
            self._wait_for_docker()

    def _wait_for_port(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=1):
                return
            if docker("inspect", "-f", "{{.State.Running}}", self.container, check=False).strip() != "true":
                break
            time.sleep(0.1)
        raise LabError(
            f"{self.name} did not come up: {docker('logs', '--tail', '20', self.container, check=False)}"
        )

    def _wait_for_docker(self) -> None:
        wait = (
            "for n in $(seq 300); do docker version >/dev/null 2>&1 && exit 0; sleep .1; done; "
            "tail -5 /var/log/dockerd.log; exit 1"
        )
        done = self.run(wait, check=False)
        if done.returncode:
            raise LabError(f"{self.name}: its Docker did not start: {done.stdout.strip()}")

    def remove(self) -> None:
        docker("rm", "-f", self.container, check=False)
        remove_folder(self.folder)


def remove_folder(folder: Path) -> None:
    subprocess.run(["umount", "-l", folder / "disk"], capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


def meminfo(total_mib: int, free_mib: int | None) -> str:
    """This box's /proc/meminfo with another machine's size."""
    total, free = total_mib * 1024, (total_mib * 4 // 5 if free_mib is None else free_mib) * 1024
    values = {"MemTotal": total, "MemFree": free, "MemAvailable": free} | dict.fromkeys(
        ("Buffers", "Cached", "SReclaimable", "Shmem", "SwapTotal", "SwapFree", "SwapCached"), 0
    )
    lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    return "".join(
        f"{name:<16}{values.get(name.rstrip(':'), int(n)):>8} {' '.join(unit)}".rstrip() + "\n"
        for name, n, *unit in lines
    )
