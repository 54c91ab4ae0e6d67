"""A machine that cannot be asked: the others are served, and what is said names the machine, why, and what
to type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.house import House, llama
from tests.e2e.terminal import at_terminal
from tests.lab.fixtures import Lab
from tests.lab.household import start
from tests.lab.node import NodeSpec

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def home(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    specs = {
        "good": "rtx4090",
        "other": "laptop3070",
        "bare": NodeSpec(docker=False, python=False),
        "old": NodeSpec(docker=False, python="3.6"),
    }
    household = start(specs, tmp_path_factory.mktemp("home"))
    yield House(household, tmp_path_factory.mktemp("work"))
    household.remove()


@pytest.fixture
def pair(home: House, lab: Lab) -> House:
    """Two machines with a model each; the gateway is on the good one."""
    home.write(
        gateway="good", models={"near": llama(lab.model, node="good"), "far": llama(lab.model, node="other")}
    )
    for name in ("bare", "old"):
        del home.document["nodes"][name]
    home.save()
    return home


@dataclass(frozen=True)
class Fault:
    name: str
    breaks: Callable[[House], object]
    mends: Callable[[House], object]
    says: tuple[str, ...]
    hint: str


def node_entry(**changes: object) -> Callable[[House], None]:
    def change(home: House) -> None:
        home.document["nodes"]["other"].update(changes)
        home.save()

    return change


def nothing(home: House) -> None:
    pass


def reinstalled(home: House) -> None:
    home["other"].new_host_key()


def forgotten(home: House) -> None:
    lines = home.household.known_hosts.read_text().splitlines(keepends=True)
    home.household.known_hosts.write_text(
        "".join(line for line in lines if home["other"].address not in line)
    )


FAULTS = [
    Fault(
        "refused",
        lambda h: h["other"].stop_ssh(),
        lambda h: h["other"].start_ssh(),
        ("Cannot reach node `other`", "Connection refused"),
        "away: true",
    ),
    Fault(
        "unplugged",
        lambda h: h["other"].cut_network(),
        lambda h: h["other"].restore_network(),
        ("`other`", "connect to host"),
        "away: true",
    ),
    Fault(
        "hanging",
        lambda h: h["other"].freeze(),
        lambda h: h["other"].thaw(),
        ("Node `other` does not answer", "no answer in time"),
        "away: true",
    ),
    Fault(
        "unknown key",
        forgotten,
        lambda h: h.household.trust(),
        ("The host key of node `other` is not known yet", "SHA256:"),
        "ssh-keygen -lf",
    ),
    Fault(
        "changed key",
        reinstalled,
        lambda h: h.household.trust(),
        ("The host key of node `other` has CHANGED", "SHA256:"),
        "ssh-keygen -R",
    ),
    Fault(
        "wrong user",
        node_entry(user="nobody-here"),
        nothing,
        ("Node `other` lets nobody in with these keys", "nobody-here@"),
        "ssh-copy-id nobody-here@",
    ),
    Fault(
        "no identity",
        node_entry(identity="~/.ssh/none"),
        nothing,
        ("The identity file of node `other` cannot be used", "~/.ssh/none", "No such file"),
        "`identity` under nodes.other",
    ),
    Fault(
        "no such name",
        node_entry(host="laptop.invalid"),
        nothing,
        ("Cannot find node `other`", "laptop.invalid"),
        "`host` under nodes.other",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_discover_says_why_a_machine_does_not_answer_and_asks_the_others(pair: House, fault: Fault) -> None:
    fault.breaks(pair)
    try:
        said = pair.homelab("discover", code=4, within=40)
    finally:
        fault.mends(pair)
    assert "RTX 4090" in said.out and "2 nodes, 1 reachable" in said.out
    error = said.err[said.err.index("error:") :]
    for words in (*fault.says, "hint:", fault.hint):
        assert words in error


def test_a_machine_without_a_python_that_will_do_says_so(home: House, lab: Lab) -> None:
    home.write(gateway="good", models={"near": llama(lab.model, node="good")})
    said = home.homelab("discover", code=4)
    assert "4 nodes, 2 reachable" in said.out
    assert "Node `bare` has no python3" in said.err and "sudo apt install python3" in said.err
    assert (
        "The python3 of node `old` is too old" in said.err
        and "3.6" in said.err
        and "python: /path/to/python3" in said.err
    )


def test_an_unknown_machine_is_never_trusted_without_being_asked(pair: House) -> None:
    forgotten(pair)
    before = pair.household.known_hosts.read_text()
    try:
        pair.homelab("deploy", "--yes", code=4)
        assert pair.household.known_hosts.read_text() == before and not pair.ours("other")
    finally:
        pair.household.trust()


QUESTION = r"Is that the machine's own key\? \[y/N\] "


def fingerprint(pair: House) -> str:
    return pair["other"].run("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[1]


def test_somebody_at_a_terminal_is_asked_about_an_unknown_machine(pair: House) -> None:
    known = pair.household.known_hosts
    known.unlink()  # as with a new user: the file itself is not there
    known.with_name("config").rename(known.with_name("config.kept"))
    try:
        shown = pair.at_terminal(
            "discover", typed=[("node `good` is not known(.|\\n)*" + QUESTION, "y"), (QUESTION, "n")], code=4
        )
        assert fingerprint(pair) in shown and "2 nodes, 1 reachable" in shown
        assert "error: The host key of node `other` is not known yet" in shown
        assert known.stat().st_mode & 0o777 == 0o600 and len(known.read_text().splitlines()) == 1
        known.write_text(
            f"{pair['good'].address} {pair['good'].host_key}"
        )  # an editor may leave out the last line's end
        shown = pair.at_terminal("discover", typed=[(QUESTION, "yes")])
        assert "2 nodes, 2 reachable" in shown and "node `good` is not known" not in shown
        assert known.read_text().splitlines()[1] == f"{pair['other'].address} {pair['other'].host_key}"
        assert "Is that" not in pair.at_terminal("discover")
    finally:
        known.with_name("config.kept").rename(known.with_name("config"))
        pair.household.trust()


def test_the_command_that_is_named_for_an_unknown_machine_makes_it_known(pair: House) -> None:
    forgotten(pair)
    try:
        said = pair.homelab("discover", code=4)
        [command] = re.findall(r"accept it once: (ssh .+)$", said.err, re.MULTILINE)
        # ssh looks into the home that /etc/passwd names, whatever HOME says.
        alone = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f"mount --bind {pair.household.home} /root && exec {command}",
        ]
        _, shown = at_terminal(
            alone, [(r"\[fingerprint\]\)\? ", "yes"), (r"\$ ", "exit")], env=pair.env, folder=pair.folder
        )
        assert fingerprint(pair) in shown
        assert "2 nodes, 2 reachable" in pair.homelab("discover").out
    finally:
        pair.household.trust()


def test_known_hosts_are_where_the_ssh_configuration_says(pair: House) -> None:
    config, own = pair.household.ssh_config, pair.household.ssh_config.with_name("house_hosts")
    before = config.read_text()
    forgotten(pair)
    try:
        config.write_text(
            f"Host {pair['other'].address}\n  UserKnownHostsFile ~/.ssh/house_hosts ~/.ssh/not_there\n"
        )
        shown = pair.at_terminal("discover", typed=[(QUESTION, "y")])
        assert "2 nodes, 2 reachable" in shown and own.stat().st_mode & 0o777 == 0o600
        assert own.read_text() == f"{pair['other'].address} {pair['other'].host_key}\n"

        config.write_text(f"Host *\n  GlobalKnownHostsFile {own}\n")
        assert "2 nodes, 2 reachable" in pair.homelab("discover").out

        own.write_text(f"{pair['other'].address} {pair['good'].host_key}\n")
        said = pair.homelab("discover", code=4)
        assert (
            "The host key of node `other` has CHANGED" in said.err
            and f"ssh-keygen -f {own} -R {pair['other'].address}" in said.err
        )

        # No file is no leave to trust anybody.
        config.write_text("Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
        said = pair.homelab("discover", code=4)
        assert "The host key of node `other` is not known yet" in said.err
    finally:
        config.write_text(before)
        own.unlink(missing_ok=True)
        pair.household.trust()


def test_deploy_serves_what_it_reaches_and_says_what_waits(pair: House) -> None:
    pair["other"].stop_ssh()
    said = pair.homelab("deploy", "--yes", code=4)
    assert "Connection refused" in said.err and "far" in said.out
    assert set(pair.running()) == {"good/near", "good/gateway"}
    assert pair.chat("near").status_code == 200

    pair.document["nodes"]["other"]["away"] = True
    pair.save()
    pair.homelab("discover")
    pair.homelab("status")
    before = pair.running()
    pair.homelab("plan")
    pair.homelab("deploy", "--yes")
    assert pair.running() == before

    del pair.document["nodes"]["other"]["away"]
    pair.save()
    pair["other"].start_ssh()
    pair.homelab("deploy", "--yes")
    assert (
        set(pair.running()) == {"good/near", "good/gateway", "other/far"}
        and pair.running()["good/near"] == before["good/near"]
    )
    assert pair.chat("far").status_code == 200

    # A machine that goes to sleep keeps its model: nothing is moved, and status says so.
    pair["other"].cut_network()
    try:
        document = pair.homelab("status", "--json", code=4, within=40).json
        [far] = [m for m in document["models"] if m["name"] == "far"]
        assert not far["healthy"] and [p["state"] for p in far["placements"]] == ["away"]
        said = pair.homelab("deploy", "--yes", code=4, within=60)
        assert "Everything is up to date" in said.out
    finally:
        pair["other"].restore_network()
