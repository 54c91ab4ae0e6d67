"""Pages for people, each a service that uses the house's models through the gateway: one module an app, found
by looking into this folder. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

from homelab.plugins import Plugins
from homelab.program import Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an app is to run and what it is told: the gateway's address (without `/v1`) as it is reached
    from there, its own host and port, the addresses that people may type, and the folder that it keeps its
    data in. `program` is its executable and `python` one that reads its files, both None in a container."""

    gateway_url: str
    host: str
    port: int
    urls: tuple[str, ...]
    data: str
    program: str | None = None
    python: str | None = None


@runtime_checkable
class App(Protocol):
    """What an app's module has. `OFFER` is the forms in which it can be had, by the name that `images` has
    for it; `FILES` those of `templates/` that lie beside it, in a container in /app; `DATA` is where its
    image keeps its data; `KEY_VARIABLE` carries its key to the gateway, `SECRET_VARIABLE` one that it signs
    its sessions with; `INSTALL` is how people install its program, `FIRST` what is to be done when it has
    come."""

    NAME: str
    TITLE: str
    OFFER: Offer
    FILES: tuple[str, ...]
    INSTALL: str
    FIRST: str
    PORT: int
    HEALTH: str
    DATA: str
    KEY_VARIABLE: str
    SECRET_VARIABLE: str
    MEMORY_LIMIT_BYTES: int

    def command(self, place: Place) -> tuple[str, ...]:
        """What is run: in a container as the image's command, else by a shell in the folder of its files."""

    def environment(self, place: Place) -> Mapping[str, str]:
        """All that it is told but its keys."""


@cache
def apps() -> Plugins[App]:
    """Every app by its name, which is its file's."""
    return Plugins(sys.modules[__name__], App)  # type: ignore[type-abstract]


def spelled(name: str) -> str:
    """How the inventory spells an app's name."""
    return name.replace("_", "-")
