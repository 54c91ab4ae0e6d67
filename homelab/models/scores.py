"""How good models are, as somebody has published it: a figure of a named benchmark, with who gave it and
when. Pure: text in, values out. A model or a purpose without an entry is unknown, which is not bad."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import yaml

from homelab.errors import InventoryError

Purpose = Literal["coding", "chat", "agents", "embedding", "rerank"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
_DATE = re.compile(r"\d{4}-\d{2}(-\d{2})?")


@dataclass(frozen=True, slots=True)
class Score:
    """`value` as the benchmark counts, in percent for all that are listed here: more is better. Two scores
    compare only where `benchmark` is the same, and then only roughly: each maker runs it in its own way.
    `date` is the source's, to the month or to the day."""

    purpose: Purpose
    benchmark: str
    value: float
    source: str
    date: str


@dataclass(frozen=True, slots=True)
class Note:
    """What somebody saw that no benchmark says."""

    text: str
    source: str
    date: str


def parse(text: str) -> Mapping[str, tuple[Score, ...]]:
    """The scores in this YAML by the catalog's name of the model, in the order in which they stand there.

    Raises InventoryError where one lacks what it needs."""
    found: dict[str, tuple[Score, ...]] = {}
    sources = _sources(text)
    for name, groups in _load(text)["scores"].items():
        listed: list[Score] = []
        try:
            for group in groups:
                source, date = sources[group["source"]]
                for purpose in PURPOSES:
                    listed += [
                        Score(purpose, str(benchmark), float(value), source, date)
                        for benchmark, value in group.get(purpose, {}).items()
                    ]
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise InventoryError(f"The scores of {name} are not complete: {e!r}") from e
        if stray := {key for group in groups for key in group} - {"source", *PURPOSES}:
            raise InventoryError(f"The scores of {name} have keys that mean nothing: {sorted(stray)}")
        found[name] = tuple(sorted(listed, key=lambda score: PURPOSES.index(score.purpose)))
    return found


def parse_notes(text: str) -> Mapping[str, tuple[Note, ...]]:
    """The remarks in the same YAML, by the catalog's name of the model.

    Raises InventoryError where one lacks what it needs."""
    sources = _sources(text)
    found: dict[str, tuple[Note, ...]] = {}
    for name, notes in _load(text).get("notes", {}).items():
        try:
            found[name] = tuple(Note(str(note["text"]), *sources[note["source"]]) for note in notes)
        except (KeyError, TypeError) as e:
            raise InventoryError(f"The notes on {name} are not complete: {e!r}") from e
    return found


def best(scores: Iterable[Score], purpose: str) -> Score | None:
    """The score that counts for a purpose, which is the first that is listed; None where none is known."""
    return next((score for score in scores if score.purpose == purpose), None)


def _load(text: str) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: dict[str, Any] = yaml.load(text, loader)
    return document


def _sources(text: str) -> dict[str, tuple[str, str]]:
    """What each short name in the file stands for: source and date."""
    found = {}
    for key, item in _load(text)["sources"].items():
        name, date = str(item["name"]), str(item["date"])
        if not _DATE.fullmatch(date):
            raise InventoryError(f"The source {key} has no date: `date: 2026-04-22` or `2026-04`.")
        found[str(key)] = (name, date)
    return found
