"""What is promised for cards of usual sizes. The table with its bytes is in docs/memory.md, and compared
there."""

from __future__ import annotations

import pytest

from tests.cards import ROWS, Ask, planned

# Worked out by hand from tensor bytes and cache sizes: docs/memory.md has the figures.
HOLDS = [
    False, True, True, True,
    False, False, True, True, False, True,
    False, False, False, True, True, False,
    True, False, False, True, True,
]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "asks", "holds"), [(*row, holds) for row, holds in zip(ROWS, HOLDS, strict=True)], ids=str
)
def test_a_promise_is_kept_or_refused_with_its_arithmetic(
    size: int, asks: tuple[Ask, ...], holds: bool
) -> None:
    layout = planned(size, asks)
    assert (not layout.unplaced) == holds
    assert len(layout.placements) + len(layout.unplaced) == len(asks)
    assert all(u.details[0].startswith("box GPU 0: needs ") for u in layout.unplaced)
    [slot] = [s for s in layout.slots if s.gpus]
    assert slot.free_bytes == slot.device.total_bytes - sum(p.bytes for p in layout) >= 0
    assert sum(p.gpu_memory_utilization or 0 for p in layout) < 1
