"""Pythons of this machine beside the one that runs the tests."""

from __future__ import annotations

import os
from pathlib import Path

MISSING = "no such Python here: `pyenv install 3.7 3.8 3.13` gets some, PYENV_ROOT says where they are"


def pythons(versions: str = "*") -> list[Path]:
    root = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    return sorted(root.glob(f"versions/{versions}/bin/python"))
