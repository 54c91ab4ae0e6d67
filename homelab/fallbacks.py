"""Who answers for whom when a model cannot: chains of fallbacks. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


def circle(fallbacks: Mapping[str, Sequence[str]], start: str) -> list[str]:
    """A chain of fallbacks that comes back to where it began; empty where there is none."""
    for chain in ([start], *in_place_of(fallbacks, start)):
        if start in fallbacks.get(chain[-1], ()):
            return [*chain, start]
    return []


def in_place_of(fallbacks: Mapping[str, Sequence[str]], model: str) -> Iterator[list[str]]:
    """Every chain by which another model may answer for this one: the models in their order, this one first.
    LiteLLM goes on to a fallback's own fallbacks."""
    waiting = [[model]]
    while waiting:
        chain = waiting.pop(0)
        for target in fallbacks.get(chain[-1], ()):
            if target not in chain:
                yield [*chain, target]
                waiting.append([*chain, target])
