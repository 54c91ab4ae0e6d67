"""How good models are: the file that is shipped, and what is refused in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from homelab.errors import InventoryError
from homelab.fit_command import load_catalog, load_notes, load_scores
from homelab.models import scores
from homelab.models.scores import Score, best, parse, parse_notes

SCORES = load_scores()
NOTES = load_notes()
SMALL = """\
sources: {card: {name: a/b README, date: 2026-04-22}, other: {name: c/d README, date: 2025-09}}
scores:
  marvin:
    - source: other
      agents: {BFCL v3: 61}
    - source: card
      coding: {LiveCodeBench v6: 42.0, SWE-bench Verified: 12.5}
      agents: {tau2-bench: 30.0}
notes: {marvin: [{text: thinks too much, source: card}]}
"""


def test_every_name_is_in_the_catalog() -> None:
    known = set(load_catalog().entries)
    assert set(SCORES) <= known
    assert set(NOTES) <= known


def test_every_source_is_one_of_a_score_or_a_note() -> None:
    document = yaml.safe_load((Path(scores.__file__).parent / "scores.yml").read_text())
    used = {(x.source, x.date) for listed in (*SCORES.values(), *NOTES.values()) for x in listed}
    assert {(s["name"], str(s["date"])) for s in document["sources"].values()} == used


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_a_percentage_with_a_source_and_a_date(name: str) -> None:
    assert SCORES[name]
    for score in SCORES[name]:
        assert 0 < score.value <= 100
        assert score.source and "2023" <= score.date[:4] <= "2026"
    figures = [(score.purpose, score.benchmark) for score in SCORES[name]]
    assert len(figures) == len(set(figures))


def test_a_figure_keeps_its_source_and_the_first_of_a_purpose_counts() -> None:
    marvin = parse(SMALL)["marvin"]
    assert best(marvin, "coding") == Score("coding", "LiveCodeBench v6", 42.0, "a/b README", "2026-04-22")
    assert best(marvin, "agents") == Score("agents", "BFCL v3", 61.0, "c/d README", "2025-09")
    assert best(marvin, "chat") is None
    assert [score.purpose for score in marvin] == ["coding", "coding", "agents", "agents"]
    assert parse_notes(SMALL)["marvin"][0].text == "thinks too much"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("date: 2026-04-22", "date: spring", "source card has no date"),
        ("source: other", "source: hearsay", "scores of marvin are not complete"),
        ("61", "good", "scores of marvin are not complete"),
        ("agents: {BFCL", "agent: {BFCL", "keys that mean nothing"),
        ("text: thinks", "words: thinks", "notes on marvin are not complete"),
    ],
)
def test_what_is_refused(old: str, new: str, said: str) -> None:
    broken = SMALL.replace(old, new)
    with pytest.raises(InventoryError, match=said):
        (parse(broken), parse_notes(broken))
