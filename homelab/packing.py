"""The values that the search works on, made for speed: ways to fill a device, and counts of models in one integer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# One way to fill a device: bytes on it, value, bytes of RAM, weights to fetch, and the options (nested pairs).
Way = tuple[int, int, int, frozenset[tuple[str, int]], Any]
# Models over several devices: how many of each, bytes left of each device, how many of the splits are needless.
Split = tuple[int, tuple[int, ...], int]
NONE: frozenset[tuple[str, int]] = frozenset()
NOTHING: Way = (0, 0, 0, NONE, None)


class Counts:
    """How many of each model, packed into one integer: sums and limits cost one operation for all models together."""

    def __init__(self, limits: Sequence[int]) -> None:
        self.limits = list(limits)
        self.unit: list[int] = []
        self.mask: list[int] = []
        shift = self.guard = self.fill = 0
        for limit in limits:
            width = limit.bit_length()
            self.unit.append(1 << shift)
            self.mask.append(((1 << (width + 1)) - 1) << shift)
            self.guard |= 1 << (shift + width)
            self.fill |= ((1 << width) - 1) << shift
            shift += width + 1
        self.bias = self.within(limits)

    def within(self, limits: Sequence[int]) -> int:
        """`(counts + this) & guard` is zero as long as no model exceeds its limit."""
        return self.fill - sum(limit * unit for limit, unit in zip(limits, self.unit, strict=True))

    def models(self, counts: int) -> int:
        """One bit for each model that is there."""
        return (counts + self.fill) & self.guard

    def of(self, counts: int, model: int) -> int:
        return (counts & self.mask[model]) // self.unit[model]
