"""How long placement takes, and against an exact solver: python bench/placement.py [HOUSEHOLDS]

Random households as plain numbers (`tests/oracle.py`): homelab's search beside OR-tools' CP-SAT, one after
the other in one process, CP-SAT with one worker. Then one that is too large for an exact answer, with how
far from the bound it may be."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from homelab.placement.assignment import violations  # noqa: E402
from homelab.placement.solver import solve  # noqa: E402
from tests.oracle import best_levels, household  # noqa: E402

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 10

print("| nodes × GPUs × models | households | median (longest) | proven |\n|---|---|---|---|")
for nodes, gpus, models in ((3, 4, 5), (8, 12, 12)):
    ours, theirs, equal, proven = [], [], 0, 0
    for seed in range(COUNT):
        problem = household(seed, nodes, gpus, models)
        begun = time.perf_counter()
        answer = solve(problem)
        ours.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        best = best_levels(problem)
        theirs.append(time.perf_counter() - begun)
        equal += best == answer.levels
        proven += answer.proven
    times = [f"{statistics.median(t):.2f} s ({max(t):.2f})" for t in (ours, theirs)]
    print(
        f"| {nodes} × {gpus} × {models} | {COUNT} | {times[0]} | {times[1]} | {equal} | {proven} |",
        flush=True,
    )

problem = household(0, 50, 100, 60)
begun = time.perf_counter()
answer = solve(problem)
assert not violations(problem, answer.chosen)
print(
    f"\n50 × 100 × 60: {time.perf_counter() - begun:.1f} s, {answer.gap(problem) or 'nothing'} from the bound"
)
