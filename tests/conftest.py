"""What all tests share: the lab's machines as fixtures, and no colours or home of the user's."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.lab.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what was rendered over the golden files, to be read in the diff",
    )


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("HOMELAB_INVENTORY", raising=False)
