"""A machine without Docker beside one with it: its engine comes from the package index, which may be out of
reach."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from homelab import resources
from tests.e2e.conftest import HouseFactory
from tests.e2e.house import llama
from tests.lab.fixtures import Lab
from tests.lab.index import Index
from tests.lab.node import NodeSpec
from tests.lab.wheels import wheel

pytestmark = pytest.mark.lab
LOCK = resources.path("templates") / "native/llamacpp.lock"


def test_an_index_out_of_reach_is_told_and_the_next_deploy_goes_on_from_there(
    house: HouseFactory, lab: Lab, tmp_path: Path
) -> None:
    home = house(front=NodeSpec(), plain=NodeSpec(docker=False))
    home.write(
        gateway="front",
        models={"near": llama(lab.model, node="front"), "far": llama(lab.model, node="plain")},
    )
    index = Index(
        tmp_path / "index",
        [wheel(re.findall(r"^xllamacpp==[\d.]+", LOCK.read_text(), re.MULTILINE)[0])],
        lab.gateway,
    )
    settings = f"[global]\nindex-url = {index.url}\ntrusted-host = {lab.gateway}\nretries = 1\n"
    home["plain"].run(
        f"mkdir -p ~/.config/pip && printf '{settings}' > ~/.config/pip/pip.conf", user="homelab"
    )

    said = home.homelab("deploy", "--yes", code=1)
    error = said.err[said.err.index("error:") :]
    assert "`far` cannot be installed on node `plain`: the package index cannot be reached" in error
    assert "Connection refused" in error and "No matching distribution found for xllamacpp" in error
    assert "~/.config/pip/pip.conf" in error and "homelab deploy" in error
    assert re.search(r"^near +on front/near +ready in", said.out, re.MULTILINE) and "far on" not in said.out
    assert "2 of 3 changes are done, 1 failed" in said.out
    assert home.chat("near").status_code == 200
    left = home["plain"].run("ls ~/.cache/homelab/native", user="homelab").stdout.split()
    assert all(name.startswith("tools-") or "-program-" in name or name.endswith(".lock") for name in left)
    before = home.running()

    with index:
        said = home.homelab("deploy", "--yes")
    assert re.search(r"^far +on plain/far +ready in", said.out, re.MULTILINE)
    assert home.running() == before and home.chat("far").status_code == 200
