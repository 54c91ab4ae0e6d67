"""One module a vendor, each with `collect(problems) -> list of GPUs`. A new file here is found by itself."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing costs 3 ms
    from typing import Any


def vendors() -> list[str]:
    return sorted(
        name[:-3]
        for name in os.listdir(os.path.dirname(os.path.abspath(__file__)))
        if name.endswith(".py") and name != "__init__.py"
    )


def collect(problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for vendor in vendors():
        try:
            found += __import__("agent.accelerators." + vendor, fromlist=["collect"]).collect(problems)
        except Exception as e:  # a vendor's library must not hide the other vendors' GPUs
            problems.append({"source": vendor, "message": f"{type(e).__name__}: {e}"})
    return found
