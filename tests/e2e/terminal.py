"""A command at a terminal, and somebody who reads what it shows and types."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


def at_terminal(
    command: Sequence[str | Path],
    typed: Sequence[tuple[str, str]],
    *,
    env: Mapping[str, str],
    folder: Path,
    within: float = 120,
) -> tuple[int, str]:
    """Each answer is typed once its question was shown. The exit status, and all that the terminal showed."""
    ours, its = pty.openpty()
    # ssh asks /dev/tty, which is a process's own terminal only when it was made so.
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command], stdin=its, stdout=its, stderr=its, cwd=folder, env=env
    )
    os.close(its)
    shown, read, waiting, until = "", 0, list(typed), time.monotonic() + within
    try:
        while time.monotonic() < until:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                shown += os.read(ours, 1 << 16).decode(errors="replace")
            except OSError:  # how Linux says that nobody has the other end open any more
                break
            if waiting and (question := re.compile(waiting[0][0]).search(shown, read)):
                read = question.end()
                os.write(ours, waiting.pop(0)[1].encode() + b"\n")
        else:
            raise AssertionError(f"{command} took longer than {within:.0f} s:\n{shown}")
    finally:
        os.close(ours)
        code = process.wait(10)
    shown = re.sub(r"\x1b\[[\d;]*m|\r", "", shown)
    assert not waiting, f"it never asked {waiting[0][0]!r}:\n{shown}"
    return code, shown
