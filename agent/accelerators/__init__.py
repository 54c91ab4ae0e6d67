"""One module a vendor. A new file here is found by itself. It has

collect(problems) -> its GPUs
container_obstacle(engine) -> why Docker cannot give them to a container, or None
HOSTING -> a literal for the controller: how they are given to a container or a process
"""

from __future__ import annotations

import os
from typing import Any


def vendors() -> list[str]:
    return sorted(
        name[:-3]
        for name in os.listdir(os.path.dirname(os.path.abspath(__file__)))
        if name.endswith(".py") and name != "__init__.py"
    )


def module(vendor: str) -> Any:
    return __import__("agent.accelerators." + vendor, fromlist=["collect"])


def collect(problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for vendor in vendors():
        try:
            found += module(vendor).collect(problems)
        except Exception as e:  # a vendor's library must not hide the other vendors' GPUs
            problems.append({"source": vendor, "message": f"{type(e).__name__}: {e}"})
    return found


def judge(gpus: list[dict[str, Any]], engine: dict[str, Any] | None) -> None:
    """Says of each GPU why no container can have it, if so."""
    for gpu in gpus if engine else ():
        try:
            gpu["container_obstacle"] = module(gpu["vendor"]).container_obstacle(engine)
        except Exception as e:  # not known is not "nothing in the way"
            gpu["container_obstacle"] = f"{type(e).__name__}: {e}"
