"""How well homelab's figures hold, as the tables in docs/memory.md and docs/speed.md:
python bench/fit [llama|vllm|household|speed|others|cards …]"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import household  # noqa: E402
import llama  # noqa: E402
import others  # noqa: E402
import speed  # noqa: E402
import vllm_logs  # noqa: E402

from tests import cards  # noqa: E402

PARTS = {
    "llama": llama.main,
    "vllm": vllm_logs.main,
    "household": household.main,
    "speed": speed.main,
    "others": others.main,
    "cards": lambda: print(cards.table()),
}

for number, part in enumerate(sys.argv[1:] or PARTS):
    if number:
        print()
    PARTS[part]()
