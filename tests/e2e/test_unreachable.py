"""A machine that cannot be asked: the others are served, and what is said names the machine, why, and what to type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.house import House, llama
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
    home.write(gateway="good", models={"near": llama(lab.model, node="good"), "far": llama(lab.model, node="other")})
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
    home.household.known_hosts.write_text("".join(line for line in lines if home["other"].address not in line))


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
        "changed key", reinstalled, lambda h: h.household.trust(), ("The host key of node `other` has CHANGED", "SHA256:"), "ssh-keygen -R"
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
    assert "The python3 of node `old` is too old" in said.err and "3.6" in said.err and "python: /path/to/python3" in said.err


def test_an_unknown_machine_is_never_trusted_without_being_asked(pair: House) -> None:
    forgotten(pair)
    before = pair.household.known_hosts.read_text()
    try:
        pair.homelab("deploy", "--yes", code=4)
        assert pair.household.known_hosts.read_text() == before and not pair.ours("other")
    finally:
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
    assert set(pair.running()) == {"good/near", "good/gateway", "other/far"} and pair.running()["good/near"] == before["good/near"]
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
