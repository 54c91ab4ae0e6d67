"""How a placed service is run. A runtime is one module with `render(unit) -> Service`: pure, everything it
would write or start is a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from homelab.runtimes import compose, native
from homelab.service import Service, Unit

RENDER: Mapping[str, Callable[[Unit], Service]] = {"docker": compose.render, "native": native.render}
