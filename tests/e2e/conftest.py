"""Machines for the end-to-end tests, and the house that their user sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.house import House
from tests.lab.fixtures import HouseholdFactory
from tests.lab.node import NodeSpec

HouseFactory = Callable[..., House]


@pytest.fixture
def house(household: HouseholdFactory, tmp_path: Path) -> HouseFactory:
    """house(box="rtx4090", server=NodeSpec(…)) boots clean machines for one test."""

    def boot(**specs: str | NodeSpec) -> House:
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        return House(household(**specs), folder)

    return boot
