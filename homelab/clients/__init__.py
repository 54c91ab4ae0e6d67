"""How programs are connected to the gateway: one module a client, found by looking into this folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

from homelab.plugins import Plugins


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a client needs: the gateway's address, the file that holds its key, and the model to start
    with."""

    url: str
    key_file: str
    model: str


@runtime_checkable
class Client(Protocol):
    """A module under `homelab/clients/` has these names."""

    TITLE: str  # whom it is for

    def setup(self, access: Access) -> list[str]:
        """Lines to paste into a shell. No key stands in them."""
        ...


@cache
def clients() -> Mapping[str, Client]:
    """Client modules by name."""
    return Plugins(sys.modules[__name__], Client)  # type: ignore[type-abstract]
