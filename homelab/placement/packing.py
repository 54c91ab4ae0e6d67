"""The values that the search works on, made for speed: ways to fill a device, and counts of many things in one integer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# One way to fill a device: bytes on it, value, bytes of RAM, weights to fetch, and the options (nested pairs).
Way = tuple[int, int, int, frozenset[tuple[str, int]], Any]
# Models over several devices: how much of each thing counted, bytes left of each device.
Split = tuple[int, tuple[int, ...]]
NONE: frozenset[tuple[str, int]] = frozenset()
NOTHING: Way = (0, 0, 0, NONE, None)


class OutOfSteps(Exception):
    """More steps would be needed than may be taken."""


class Budget:
    """Steps that may still be taken."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps <= 0:
            raise OutOfSteps


class Counts:
    """How many of each model, and how much of other things with a limit, packed into one integer: sums and limits cost one operation for all
    together."""

    def __init__(self, limits: Sequence[int], models: int) -> None:
        """The first `models` of them are models."""
        self.limits = list(limits)
        self.unit: list[int] = []
        self.mask: list[int] = []
        self.top: list[int] = []
        shift = self.guard = self.fill = self.presence = 0
        for row, limit in enumerate(limits):
            width = limit.bit_length()
            self.unit.append(1 << shift)
            self.mask.append(((1 << (width + 1)) - 1) << shift)
            self.top.append(1 << width)
            self.guard |= 1 << (shift + width)
            self.fill |= ((1 << width) - 1) << shift
            if row < models:
                self.presence |= 1 << (shift + width)
            shift += width + 1
        self.bias = self.within(limits)

    def within(self, limits: Sequence[int]) -> int:
        """`(counts + this) & guard` is zero as long as nothing exceeds its limit."""
        return self.fill - sum(limit * unit for limit, unit in zip(limits, self.unit, strict=True))

    def least(self, lows: Sequence[int]) -> int:
        """`(counts + this) & guard == guard` as long as nothing is below these."""
        return sum((top - low) * unit for top, low, unit in zip(self.top, lows, self.unit, strict=True))

    def models(self, counts: int) -> int:
        """One bit for each model that is there."""
        return (counts + self.fill) & self.presence

    def of(self, counts: int, row: int) -> int:
        return (counts & self.mask[row]) // self.unit[row]


def options_of(picks: Any) -> list[int]:
    """The options in nested pairs."""
    found, rest = [], [picks]
    while rest:
        pick = rest.pop()
        if isinstance(pick, int):
            found.append(pick)
        elif pick is not None:
            rest += pick
    return found
