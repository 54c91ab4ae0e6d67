"""How long placement takes, and how often its answer is proven: python bench/placement.py [HOUSEHOLDS]

Random households as plain numbers (`tests/oracle.py`), one after the other in one process. Of the two largest
sizes, two households each. CPU time beside the clock's: other work on the machine is in the second only."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from homelab.placement.assignment import violations  # noqa: E402
from homelab.placement.solver import solve  # noqa: E402
from tests.oracle import household  # noqa: E402

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 10
SIZES = {(3, 4, 5): COUNT, (5, 7, 8): COUNT, (8, 12, 12): COUNT, (12, 20, 20): COUNT, (20, 40, 30): 2}

print("| nodes × GPUs × models | households | median (longest) | CPU | proven | counts proven | furthest |")
print("|---|---|---|---|---|---|---|")
for size, count in {**SIZES, (50, 100, 60): 2}.items():
    clock, processor, proven, counted, gaps = [], [], 0, 0, set()
    for seed in range(count):
        problem = household(seed, *size)
        begun = time.perf_counter(), time.process_time()
        answer = solve(problem)
        clock.append(time.perf_counter() - begun[0])
        processor.append(time.process_time() - begun[1])
        assert not violations(problem, answer.chosen)
        proven += answer.proven
        counts = 2 * len(problem.classes)
        counted += answer.levels[:counts] == answer.bound[:counts]
        gaps.add(answer.gap(problem))
    times = [f"{statistics.median(t):.2f} s ({max(t):.2f})" for t in (clock, processor)]
    furthest = ", ".join(sorted(filter(None, gaps))) or "–"
    name = " × ".join(map(str, size))
    print(f"| {name} | {count} | {' | '.join(times)} | {proven} | {counted} | {furthest} |", flush=True)
