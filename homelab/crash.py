"""The report of a bug: versions and traceback, in a file of the user's cache."""

from __future__ import annotations

import platform
import sys
import traceback
from pathlib import Path

import platformdirs

from homelab import __version__


def write(error: BaseException) -> Path:
    """Where the report lies. It holds no inventory and no keys."""
    path = platformdirs.user_cache_path("homelab", ensure_exists=True) / "crash.log"
    head = (
        f"homelab {__version__}, Python {sys.version.split()[0]}, {platform.platform()}\n"
        f"verb: {' '.join(sys.argv[1:2])}\n\n"
    )
    path.write_text(head + "".join(traceback.format_exception(error)))
    return path
