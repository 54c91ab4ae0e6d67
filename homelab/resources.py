"""Finds what travels with homelab but is not imported by it: `agent` and `templates`, in an installed wheel
or in the checkout."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent


def path(name: str) -> Path:
    """The folder or file of a resource. A wheel carries it inside the package as `_name`, so that it
    installs no other top-level name."""
    packaged = HERE / f"_{name}"
    return packaged if packaged.exists() else HERE.parent / name
