"""`~/.ssh/config` against a real sshd on this machine: what it says of a host holds, and what it would
carry to a node stays here."""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from homelab.errors import NodeError
from homelab.inventory import Node
from homelab.nodes import connect

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed"
)


@dataclass(frozen=True)
class Home:
    """A home folder whose `~/.ssh` this process uses, and a daemon that lets its key in."""

    folder: Path
    port: int
    key: Path

    def config(self, *lines: str) -> None:
        (self.folder / ".ssh/config").write_text("\n".join(lines) + "\n")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    ssh = tmp_path / ".ssh"
    ssh.mkdir(mode=0o700)
    for name in ("daemon", "mykey"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / name)], check=True)
    shutil.copy(ssh / "mykey.pub", ssh / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [
        f"ListenAddress 127.0.0.1:{port}",
        f"HostKey {ssh}/daemon",
        f"AuthorizedKeysFile {ssh}/authorized_keys",
        f"PidFile {tmp_path}/pid",
        "StrictModes no",
        "PermitRootLogin yes",
        "UsePAM no",
        "PasswordAuthentication no",
        "AllowAgentForwarding yes",
        "AllowTcpForwarding yes",
        "AcceptEnv *",
    ]
    (tmp_path / "sshd_config").write_text("\n".join(settings) + "\n")
    public = (ssh / "daemon.pub").read_text()
    (ssh / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}box {public}[box]:{port} {public}")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    daemon = subprocess.Popen(
        [str(SSHD), "-D", "-E", str(tmp_path / "log"), "-f", str(tmp_path / "sshd_config")]
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Home(folder=tmp_path, port=port, key=ssh / "mykey")
    finally:
        daemon.terminate()
        daemon.wait(10)


def said(node: Node, command: str) -> str:
    async def asked() -> str:
        async with connect("n", node) as session:
            return (await session.run(command)).text

    return asyncio.run(asked())


def test_port_name_user_and_key_of_the_ssh_configuration_hold(home: Home) -> None:
    home.config(
        "Include more/*",
        "Host box",
        "  HostName 127.0.0.1",
        f"  User {getpass.getuser()}",
        f"  IdentityFile {home.key}",
    )
    (home.folder / ".ssh/more").mkdir()
    (home.folder / ".ssh/more/ports").write_text(f"Host box\n  Port {home.port}\n")
    assert said(Node(host="box"), "echo $SSH_CONNECTION").split()[2:] == ["127.0.0.1", str(home.port)]


def test_what_the_inventory_writes_comes_before_the_ssh_configuration(home: Home) -> None:
    home.config("Host box", "  HostName 127.0.0.1", "  Port 9", "  User nobody-here", "  IdentityFile /none")
    node = Node(host="box", port=home.port, user=getpass.getuser(), identity=str(home.key))
    assert said(node, "id -un").strip() == getpass.getuser()


def test_a_host_behind_another_is_reached_through_it(home: Home) -> None:
    home.config(
        "Host box",
        "  HostName 127.0.0.1",
        f"  Port {home.port}",
        f"  User {getpass.getuser()}",
        f"  IdentityFile {home.key}",
        "Host inner",
        "  HostName 127.0.0.1",
        f"  Port {home.port}",
        f"  IdentityFile {home.key}",
        "  ProxyJump box",
    )
    assert said(Node(host="inner"), "echo there") == "there\n"
    assert (home.folder / "log").read_text().count("Accepted publickey") == 2


def test_a_refusal_names_the_port_that_ssh_takes(home: Home) -> None:
    home.config("Host box", "  HostName 127.0.0.1", "  Port 9", f"  IdentityFile {home.key}")
    with pytest.raises(NodeError, match="Cannot reach node") as refused:
        said(Node(host="box"), "true")
    assert refused.value.cause == "connect to host box port 9: Connection refused"


def test_an_unknown_key_is_looked_for_at_the_port_that_ssh_takes(home: Home) -> None:
    (home.folder / ".ssh/known_hosts").write_text("")
    home.config("Host box", "  HostName 127.0.0.1", f"  Port {home.port}", f"  IdentityFile {home.key}")
    with pytest.raises(NodeError, match="not known yet") as refused:
        said(Node(host="box"), "true")
    assert f"port {home.port} offers" in refused.value.cause
    assert refused.value.hint.endswith(": ssh box")  # ssh reads the same file


def test_neither_the_agent_nor_a_variable_of_mine_reaches_a_node(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = home.folder / "agent"
    running = subprocess.Popen(["ssh-agent", "-D", "-a", str(agent)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if agent.exists():
                break
            time.sleep(0.05)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
        monkeypatch.setenv("MY_CLOUD_KEY", "sk-mine")
        home.config(
            "Host box",
            "  HostName 127.0.0.1",
            f"  Port {home.port}",
            f"  IdentityFile {home.key}",
            "  ForwardAgent yes",
            "  SendEnv MY_*",
            "  SetEnv MY_OTHER=sk-other",
            "  RequestTTY force",
        )
        there = said(Node(host="box"), "env; tty")
        assert "SSH_CONNECTION=" in there
        assert "SSH_AUTH_SOCK" not in there and "MY_" not in there and "/dev/" not in there.split()[-1]
    finally:
        running.terminate()
        running.wait(10)
