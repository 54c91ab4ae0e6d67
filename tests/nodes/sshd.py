"""A real sshd of this user's on loopback, with a host key, an authorised key and known hosts of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SSHD = "/usr/sbin/sshd"
# https://man.openbsd.org/sshd_config: without StrictModes keys may lie below a world-writable /tmp.
CONFIG = """\
HostKey {host_key}
AuthorizedKeysFile {identity}.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 1000
MaxSessions 100
LogLevel ERROR
Subsystem sftp /usr/lib/openssh/sftp-server
"""


def obstacle() -> str | None:
    """Why no sshd can be started here, in one line; None if it can."""
    return None if os.access(SSHD, os.X_OK) else f"there is no {SSHD}: apt-get install openssh-server"


@dataclass(frozen=True)
class Sshd:
    """It runs. `identity` lets this user in."""

    process: psutil.Popen
    port: int
    identity: Path
    host_key: str

    @property
    def user(self) -> str:
        return getpass.getuser()

    def known_hosts(self, *addresses: str) -> str:
        return "".join(f"[{a}]:{self.port} {self.host_key}\n" for a in addresses)

    def cut_connections(self) -> None:
        """As when the network fails: what runs on the node goes on, the connections are gone."""
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith("sshd"):  # one that looks on and, but for root, one that works
                    process.kill()


@contextlib.contextmanager
def started(
    folder: Path,
    *,
    addresses: Sequence[str] = ("127.0.0.1",),
    identity: Path | None = None,
    more: str = "",
) -> Iterator[Sshd]:
    """An sshd at one port of these addresses (16 at most: OpenSSH's MAX_LISTEN_SOCKS), until the end."""
    folder.mkdir()
    host_key = new_key(folder / "host_key")
    identity = identity or new_key(folder / "identity")
    if os.geteuid() == 0:  # else only the packaged service makes it
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with socket.socket() as probe:
        probe.bind((addresses[0], 0))
        port = probe.getsockname()[1]
    listen = "".join(f"ListenAddress {a}:{port}\n" for a in addresses)
    config = CONFIG.format(host_key=host_key, identity=identity) + listen + more
    (folder / "sshd_config").write_text(config)
    process = psutil.Popen(
        [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _wait(process, addresses[-1], port)
        yield Sshd(process, port, identity, host_key.with_suffix(".pub").read_text().strip())
    finally:
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.communicate()


def new_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    return path


def as_account(home: Path, shell: str) -> str:
    """More configuration: as if /etc/passwd gave this user another home and login shell."""
    login = f'cd {shlex.quote(str(home))} && HOME=$PWD exec {shell} -c "$SSH_ORIGINAL_COMMAND"'
    return f"ForceCommand {login}\n"


def _wait(process: psutil.Popen, address: str, port: int) -> None:
    until = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            raise RuntimeError(f"sshd did not start: {process.communicate()[1].decode()}")
        time.sleep(0.01)
