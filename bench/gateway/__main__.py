"""What the gateway costs and gives.

    python bench/gateway [failover] [overhead] [affinity]

The pinned LiteLLM with the configuration that homelab writes, before scripted engines and llama.cpp.
Tables in Markdown, for docs/gateway.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.gateway import affinity, failover, overhead

MEASURES = {"failover": failover.measure, "overhead": overhead.measure, "affinity": affinity.measure}


def main(asked: list[str]) -> int:
    if unknown := set(asked) - set(MEASURES):
        print(f"no measurement `{unknown.pop()}`; there are: {', '.join(MEASURES)}", file=sys.stderr)
        return 2
    for name, measure in MEASURES.items():
        if not asked or name in asked:
            print(f"\n## {name}\n", flush=True)
            measure()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
