"""pytest fixtures: machines for a test, and a stand-in model hub that they can reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.lab import engine
from tests.lab.household import Household, remove_orphans, start
from tests.lab.hub import Hub, Repo
from tests.lab.images import ensure_seed
from tests.lab.layout import prepare
from tests.lab.models import gguf, tiny_qwen3
from tests.lab.node import NodeSpec

HouseholdFactory = Callable[..., Household]


class Lab:
    """The lab is ready to start machines. `model` is a small GGUF, as nodes see it; `gguf`
    the same file on this box."""

    state = engine.STATE

    def __init__(self) -> None:
        self.gateway = engine.gateway()
        self.gguf = gguf()
        self.model = f"/models/{self.gguf.name}"

    def hub(self, repos: Mapping[str, Repo | Path], **options: Any) -> Hub:
        """Reachable at one URL from the tests, the nodes and their containers."""
        return Hub(repos, self.gateway, **options)

    def tiny_model(self, folder: Path) -> Path:
        return tiny_qwen3(folder)

    def gguf_repo(self, folder: Path, *names: str) -> Path:
        """A repository of GGUF files, all of them the lab's model."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in names or (self.gguf.name,):
            (folder / name).symlink_to(self.gguf)
        return folder


@pytest.fixture(scope="session")
def lab() -> Lab:
    reason = engine.obstacle()
    if reason:
        pytest.skip(reason)
    prepare()
    ensure_seed()
    remove_orphans()
    return Lab()


@pytest.fixture
def household(lab: Lab, tmp_path: Path) -> Iterator[HouseholdFactory]:
    """household(workstation="rtx4090", server=NodeSpec("2x3090", python=False)) boots clean machines;
    they go when the test ends."""
    started: list[Household] = []

    def boot(specs: Mapping[str, str | NodeSpec] | None = None, /, **more: str | NodeSpec) -> Household:
        home = tmp_path / f"home{len(started) or ''}"
        started.append(start({**(specs or {}), **more}, home))
        return started[-1]

    yield boot
    for each in started:
        each.remove()
