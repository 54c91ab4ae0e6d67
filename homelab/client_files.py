"""Writes what a client needs into its own files, and starts it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import platformdirs

from homelab.clients import File, Launch, Secret
from homelab.errors import HomelabError
from homelab.merging import Unmergeable, merged
from homelab.nodes.local import aside

Outcome = Literal["unchanged", "changed", "made"]


class ClientError(HomelabError):
    """A client that is not there, or a file of it that cannot be changed."""

    exit_code = 2


def path_of(file: File) -> Path:
    """The client's file, behind links: people keep theirs in a repository of dotfiles."""
    return (Path.home() / file.path).resolve()


def write(file: File) -> tuple[Outcome, Path | None]:
    """Put the values into the client's file: what happened, and the copy that was made of what was there
    before. A copy of an earlier time stays as it is.

    Raises ClientError; the file is then as it was."""
    shown, path = f"~/{file.path}", path_of(file)
    try:
        try:
            before: bytes | None = path.read_bytes()
            mode = path.stat().st_mode & 0o7777
        except FileNotFoundError:
            before, mode = None, 0o600
        after = _merged(before or b"", file)
        if after == before:
            return "unchanged", None
        copy = None
        if before is not None:
            copy = path.with_name(path.name + ".bak")
            copy = copy if _copied(copy, before, mode) else None
        if before is not None and path.read_bytes() != before:
            raise ClientError(
                f"`{shown}` is being changed by somebody else", hint="Close the client, then again"
            )
        with aside(path, mode) as made:
            made.write(after)
    except OSError as e:
        raise ClientError(f"`{shown}` cannot be written", cause=str(e), hint=f"ls -l {path}") from e
    return ("made" if before is None else "changed"), copy


def _merged(before: bytes, file: File) -> bytes:
    shown = f"~/{file.path}"
    try:
        text = before.decode()
    except UnicodeDecodeError as e:
        raise ClientError(f"`{shown}` is not UTF-8, and was left as it is", cause=str(e)) from e
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    text = text.removeprefix(mark)
    windows = "\r\n" in text
    try:
        text = merged(text.replace("\r\n", "\n"), file.format, file.values, file.named)
    except Unmergeable as e:
        where = f"{path_of(file)}:{e.line}: " if e.line else ""
        raise ClientError(
            f"`{shown}` was left as it is",
            cause=f"{where}{e.what}",
            hint="Mend it, or put in by hand what this prints without --write",
        ) from e
    return (mark + (text.replace("\n", "\r\n") if windows else text)).encode()


def _copied(path: Path, content: bytes, mode: int) -> bool:
    """Whether a copy was made; not where there is one already."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
    return True


def installed(binary: str | None) -> str | None:
    """Where a client's program is."""
    return shutil.which(binary) if binary else None


def prepared(name: str, launch: Launch, key: str) -> tuple[list[str], dict[str, str]]:
    """Command and whole environment of a client, after its files for this start were written: 0600, in
    homelab's own cache folder.

    Raises HomelabError where they cannot be written."""
    folder = platformdirs.user_cache_path("homelab") / "launch" / name
    paths = {}
    try:
        for file, text in launch.files.items():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with aside(folder / file, 0o600) as made:
                made.write(text.replace("{key}", key).encode())
            paths[f"{{{file}}}"] = str(folder / file)
    except OSError as e:
        raise HomelabError(f"Cannot write into `{folder}`", cause=str(e)) from e
    environment = {n: v for n, v in os.environ.items() if n not in launch.unset}
    for variable, value in launch.environment.items():
        environment[variable] = key if isinstance(value, Secret) else _filled(value, paths)
    return [_filled(word, paths) for word in launch.argv], environment


def _filled(text: str, paths: Mapping[str, str]) -> str:
    for name, path in paths.items():
        text = text.replace(name, path)
    return text
