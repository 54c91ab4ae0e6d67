"""One module a vendor, each with `collect(problems) -> list of GPUs`. A new file here is found by itself."""

from __future__ import annotations

import importlib
import os
from typing import Any


def vendors() -> list[str]:
    return sorted(
        name[:-3] for name in os.listdir(os.path.dirname(os.path.abspath(__file__))) if name.endswith(".py") and name != "__init__.py"
    )


def collect(problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for vendor in vendors():
        try:
            found += importlib.import_module("agent.accelerators." + vendor).collect(problems)
        except Exception as e:  # a vendor's library must not hide the other vendors' GPUs
            problems.append({"source": vendor, "message": f"{type(e).__name__}: {e}"})
    return found
