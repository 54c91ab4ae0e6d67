"""What all tests share: the lab's machines as fixtures, no colours or home of the user's, and turns for
slow tests."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Sequence

import hypothesis
import pytest

pytest_plugins = ["tests.lab.fixtures"]
hypothesis.settings.register_profile("homelab", deadline=None)  # a busy machine is no mistake of ours
hypothesis.settings.load_profile("homelab")
# A shell that starts us in the background has us ignore ^C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
SHARES = 3  # so many turns after each other run every slow test
CHOSEN = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what was rendered over the golden files, to be read in the diff",
    )
    parser.addoption(
        "--turn",
        type=int,
        metavar="NUMBER",
        help=f"of the slow tests, run one in {SHARES}; the next number runs others",
    )


def share(names: Sequence[str], turn: int) -> list[str]:
    return sorted(names)[turn % SHARES :: SHARES]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    turn = config.getoption("--turn")
    if turn is None:
        return
    slow = [item.nodeid for item in items if item.get_closest_marker("slow")]
    config.stash[CHOSEN] = share(slow, turn)
    left_out = set(slow) - set(config.stash[CHOSEN])
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    items[:] = [item for item in items if item.nodeid not in left_out]


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    chosen = config.stash.get(CHOSEN, None)
    if chosen is None:
        return []
    turn = config.getoption("--turn")
    return [
        f"slow tests: turn {turn}, share {turn % SHARES + 1} of {SHARES}:",
        *(f"  {name}" for name in chosen),
    ]


@pytest.fixture(scope="session")
def libgomp() -> None:
    """What llama.cpp needs and no wheel brings."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libgomp.so.1")
        except OSError:
            pytest.skip("llama.cpp needs libgomp: apt-get install libgomp1, or dnf install libgomp")


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("HOMELAB_INVENTORY", raising=False)
