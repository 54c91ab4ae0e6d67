"""The report of a bug: versions and traceback, in a file of the user's cache."""

from __future__ import annotations

import platform
import sys
import tempfile
import traceback

import platformdirs

from homelab import __version__


def write(error: BaseException) -> str:
    """What to say of the report: where it lies, or the report itself where no file can be written. It holds
    no inventory and no keys."""
    text = (
        f"homelab {__version__}, Python {sys.version.split()[0]}, {platform.platform()}\n"
        f"verb: {' '.join(sys.argv[1:2])}\n\n"
    ) + "".join(traceback.format_exception(error))
    try:
        path = platformdirs.user_cache_path("homelab", ensure_exists=True) / "crash.log"
        path.write_text(text)
        return f"A report is in {path}"
    except OSError:
        pass
    try:
        with tempfile.NamedTemporaryFile("w", prefix="homelab-crash-", suffix=".log", delete=False) as file:
            file.write(text)
        return f"A report is in {file.name}"
    except OSError as e:
        return f"The report cannot be written ({e}). It says:\n{text}"
