"""A bound on what a household can come to, by prices. Pure.

Everything that is counted (each model, each level settled before) has a price. If every node takes what pays best by itself, whatever the
others take, then what they earn together and the price of all that there is to have are no less than what any choice comes to (a Lagrangian
bound). A price goes up where too much is taken, down where too little, until the bound is near to the best choice known. What must be taken
may have a price below nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What one node earns most under these prices, how much of each thing it takes for it, and how many entries were looked at.
Buyer = Callable[[Sequence[int]], tuple[int, list[tuple[int, int]], int]]

ROUNDS = 300
# How far the first step goes, in 1024ths of what would close the gap; less where the prices are nearly right.
FULL_PACE, WARM_PACE = 512, 64
# Rounds that bring little before steps become smaller.
PATIENCE = 8


def whole(price: Sequence[int], lows: Sequence[int], limits: Sequence[int]) -> int:
    """What all that is counted costs at most: as much of it as there may be where it has a price, as little as must be where it is paid for."""
    return sum(p * (limit if p > 0 else low) for p, low, limit in zip(price, lows, limits, strict=True))


class Prices:
    """`price` of each thing, `earned` by each node under them, and the `bound` that follows; `full` is the part of it that is not earned."""

    def __init__(
        self, lows: Sequence[int], limits: Sequence[int], buyers: Sequence[Buyer], start: Sequence[int], aim: int, *,
        looks: int, pace: int = FULL_PACE, enough: int | None = None, parts: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """`parts`: how many there are of one whole of each thing. `aim`: where the bound is expected to go; at `enough` it is of no use to go on."""
        asked = list(start)
        self.bound = 1 << 4096
        stale = 0
        parts = parts or [1] * len(asked)
        way = [0] * len(asked)  # the direction, with some of the last one in it
        enough = aim if enough is None else enough
        reach = 0  # how much less than the best so far the bound is expected to become
        self.looked = 0
        for turn in range(ROUNDS if pace == FULL_PACE else ROUNDS // 4):
            earned, taken = [], [0] * len(asked)
            for buyer in buyers:
                gain, sets, looked = buyer(asked)
                self.looked += looked
                if turn and self.looked > looks:
                    return
                earned.append(gain)
                for row, n in sets:
                    taken[row] += n
            full = whole(asked, lows, limits)
            bound = full + sum(earned)
            if not turn:
                reach = least = max(1, (bound - aim) * pace // FULL_PACE)
            stale += 1
            if bound < self.bound:
                if bound < self.bound - reach // 4:
                    stale = 0
                self.full, self.bound, self.price, self.earned = full, bound, list(asked), earned
            if self.bound <= enough or self.looked > looks:
                break
            if stale == PATIENCE:
                stale, reach = 0, reach // 2
                if reach < least * 512 // (2000 * pace):
                    break
            lack = []
            for p, n, low, limit in zip(asked, taken, lows, limits, strict=True):
                lack.append((limit if p > 0 else low if p < 0 else max(low, min(n, limit))) - n)
            if not any(lack):  # nobody wants anything else: this is the best bound by prices
                break
            way = [100 * x // part + w // 2 for x, w, part in zip(lack, way, parts, strict=True)]
            norm = sum(w * w for w in way)
            step = (bound - self.bound + reach) * 100
            moved = []
            for p, w, low, part in zip(asked, way, lows, parts, strict=True):
                q = p - step * w // (norm * part) if norm else p
                # What need not be taken has no price below nothing.
                moved.append(0 if q < 0 and low == 0 else q)
            asked = moved
