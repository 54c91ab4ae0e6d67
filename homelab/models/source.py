"""Where a model's files come from, as the user spells it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Where = Literal["hub", "node", "controller"]

# huggingface_hub 2.4.0 (utils/_validators.py): a repository is `name` or `org/name` of these characters.
_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<quant>[A-Za-z0-9][\w.-]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`Org/Repo` and `Org/Repo:Q4_K_M` lie on the hub, `/abs/…` and `~/…` on the node, `./…` on the
    controller."""

    text: str
    where: Where
    repo: str | None = None
    quant: str | None = None
    path: str | None = None

    @property
    def format(self) -> str | None:
        """`gguf` or `safetensors` where the spelling says so; None for a directory that must be looked at."""
        if self.path is not None:
            return "gguf" if self.path.endswith(".gguf") else "safetensors"
        if self.quant is not None:
            return "gguf"
        return None


def parse_source(text: str) -> Source:
    """The parts of a source.

    Raises ValueError with what is accepted."""
    if any(ord(c) < 32 or c == "\x7f" for c in text):
        raise ValueError(f"{text!r} has control characters")
    if text.startswith(("/", "~/")):
        return Source(text=text, where="node", path=text)
    if text.startswith(("./", "../")):
        return Source(text=text, where="controller", path=text)
    if m := _HUB.fullmatch(text):
        return Source(text=text, where="hub", repo=m["repo"], quant=m["quant"])
    raise ValueError(
        f"{text!r} is no model source: `Org/Repo` or `Org/Repo:Q4_K_M` on the hub, "
        "`/path` or `~/path` on the node, `./path` on this machine"
    )
