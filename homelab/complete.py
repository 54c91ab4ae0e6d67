"""What a shell completes beyond verbs and options. Whatever is wrong completes nothing, and says nothing."""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def names(path: Path, *sections: str, themselves: tuple[str, ...] = ()) -> list[str]:
    """The keys of some sections of an inventory, which may be wrong elsewhere: it is being edited. Of
    `themselves` those that it has."""
    import yaml

    from homelab.bounded_yaml import Loader

    try:
        document = yaml.load(path.read_text(), Loader)
        written = [key for section in sections for key in document.get(section) or ()]
        written += [section for section in themselves if document.get(section) not in (None, False)]
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError):
        return []
    return [key for key in written if isinstance(key, str) and NAME.fullmatch(key)]


def catalog() -> list[str]:
    """The models of the catalog."""
    from homelab.fit_command import load_catalog

    return list(load_catalog().entries)
