"""A controller that is killed at any moment of a deploy: the next one goes on from there, and nothing is
lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.house import House, llama
from tests.lab.fixtures import Lab
from tests.lab.household import DEFAULT, start

pytestmark = [pytest.mark.lab, pytest.mark.slow]
MOMENTS = 20


def test_killed_at_twenty_moments_a_deploy_of_three_nodes_converges_each_time(
    lab: Lab, tmp_path: Path
) -> None:
    household = start(DEFAULT, tmp_path / "home")
    try:
        home = House(household, tmp_path)
        models = {f"m-{node}": llama(lab.model, node=node) for node in DEFAULT}
        home.write(gateway="laptop", models=models)
        began = time.monotonic()
        home.homelab("deploy", "--yes")
        takes = time.monotonic() - began
        rng = random.Random(1)
        for moment in range(MOMENTS):
            for model in home.document["models"].values():
                model["context"] = 512 + 256 * ((moment + 1) % 2)
            home.save()
            process = home.start("deploy", "--yes")
            time.sleep(takes * rng.random())
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            home.homelab("deploy", "--yes")
            assert "Everything is up to date" in home.homelab("deploy", "--yes").out, moment
            names = [f"{n}/{c['Config']['Labels']['homelab.service']}" for n, c in home.containers()]
            assert Counter(names) == Counter({f"{n}/m-{n}" for n in DEFAULT} | {"laptop/gateway"}), moment
            for name in home.document["models"]:
                assert home.chat(name, tokens=1).status_code == 200, (moment, name)
    finally:
        household.remove()
