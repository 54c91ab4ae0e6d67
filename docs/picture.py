"""Draws docs/screens.svg, the picture in the README: `plan`, `status` and `top` of the household of
inventory.example.yml, on made-up machines.

    python docs/picture.py            draw it
    python docs/picture.py --check    change nothing; exit 1 if it is not what would be drawn"""

from __future__ import annotations

import asyncio
import io
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.pop("NO_COLOR", None)  # textual looks at it as it is imported

from homelab import ui  # noqa: E402
from homelab.engines import Load  # noqa: E402
from homelab.facts import Facts, NodeReport, Process, Survey  # noqa: E402
from homelab.inventory import Inventory, load  # noqa: E402
from homelab.placement import place  # noqa: E402
from homelab.plan import Place, Plan, diff  # noqa: E402
from homelab.render import render  # noqa: E402
from homelab.service import numbers_of  # noqa: E402
from homelab.status import GatewayStatus, Instance, ModelStatus, Status  # noqa: E402
from homelab.ui import plan as plan_screen  # noqa: E402
from homelab.ui import status as status_screen  # noqa: E402
from homelab.ui.top import Top  # noqa: E402
from homelab.watch import Seen, speeds  # noqa: E402
from tests.machines import GIB, KEYS, deployed, household  # noqa: E402

PICTURE = ROOT / "docs/screens.svg"
WIDTH = 100
# What each service has made and does: tokens at the first and second look, requests at work and waiting.
WORK: dict[Place, tuple[float, float, int, int]] = {
    ("workstation", "qwen3-30b"): (120_000, 120_284, 2, 1),
    ("server", "qwen3-4b"): (90_000, 90_173, 1, 0),
    ("laptop", "qwen3-4b"): (40_000, 40_000, 0, 0),
    ("server", "tiny"): (7_000, 7_000, 0, 0),
}
POWER_WATTS = {"workstation": 318.0, "server": 196.0, "laptop": 22.0}


def main(arguments: list[str]) -> int:
    inventory = load((ROOT / "inventory.example.yml").read_text(), "inventory.example.yml")
    found = household()
    layout = place(inventory, found)
    plan = diff(inventory, layout, render(inventory, layout, found, KEYS, {}), found)
    later = running(plan, found)
    drawn = stacked(
        [
            frame(
                "homelab plan",
                [*plan_screen.lines(plan, WIDTH), *plan_screen.summary(plan, inventory, WIDTH)],
            ),
            frame("homelab status", status_screen.lines(health(inventory, plan, later), WIDTH)),
            asyncio.run(top(inventory, later)),
        ]
    )
    if arguments == ["--check"]:
        if PICTURE.exists() and PICTURE.read_text() == drawn:
            return 0
        sys.stderr.write("docs/screens.svg: stale, run: python docs/picture.py\n")
        return 1
    PICTURE.write_text(drawn)
    return 0


def running(plan: Plan, found: Survey) -> Survey:
    """The household once the plan is carried out: a little less is used than was planned."""
    nodes = {}
    for name, report in found.nodes.items():
        assert report.facts is not None
        nodes[name] = NodeReport(reachable=True, facts=_running(plan, name, report.facts))
    return found.model_copy(update={"nodes": nodes})


def _running(plan: Plan, name: str, facts: Facts) -> Facts:
    gpus, services = [], []
    for service in deployed(plan.services, name):
        used = int(numbers_of(service.labels).get("bytes", GIB // 2)) - GIB // 5
        where = {"gpu_memory_bytes": used} if service.labels.get("homelab.gpus") else {"memory_bytes": used}
        services.append(service.model_copy(update=where))
    for gpu in facts.gpus:
        mine = [s for s in services if gpu.uuid in s.labels.get("homelab.gpus", "").split(",")]
        of_ours = [
            Process(pid=n, name="engine", service=s.name, memory_bytes=s.gpu_memory_bytes)
            for n, s in enumerate(mine, 1)
        ]
        free = (gpu.memory_free_bytes or 0) - sum(s.gpu_memory_bytes or 0 for s in mine)
        gpus.append(
            gpu.model_copy(
                update={
                    "processes": (*gpu.processes, *of_ours),
                    "memory_free_bytes": free,
                    "memory_used_bytes": (gpu.memory_total_bytes or 0) - free,
                    "power_watts": POWER_WATTS[name] if mine else None,
                }
            )
        )
    return facts.model_copy(update={"gpus": tuple(gpus), "services": tuple(services)})


def health(inventory: Inventory, plan: Plan, found: Survey) -> Status:
    def used(node: str, service: str) -> int | None:
        facts = found.nodes[node].facts
        assert facts is not None
        return next(s.gpu_memory_bytes or s.memory_bytes for s in facts.services if s.name == service)

    models = tuple(
        ModelStatus(
            name=name,
            kind=model.kind,
            instances=tuple(
                Instance(
                    node=p.node,
                    service=p.service,
                    engine=p.engine,
                    state="running",
                    detail=None,
                    url=None,
                    context=p.request.context,
                    planned_context=p.request.context,
                    planned_bytes=p.bytes,
                    used_bytes=used(p.node, p.service),
                )
                for p in plan.layout
                if p.model == name
            ),
        )
        for name, model in sorted(inventory.models.items())
    )
    front = GatewayStatus(node="pi", url="http://192.168.1.2:4000", state="running", healthy=True)
    return Status(gateway=front, models=models, nodes=found.nodes)


def frame(title: str, lines: Sequence[Text]) -> str:
    screen = ui.Screen(
        file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, color_system="truecolor"
    )
    for line in lines:
        screen.print(line, soft_wrap=True)
    return screen.export_svg(title=title)


async def top(inventory: Inventory, found: Survey) -> str:
    async def looks() -> AsyncIterator[Seen]:
        for at in (0, 1):
            loads = {
                where: Load(tokens=work[at], running=work[2], waiting=work[3]) for where, work in WORK.items()
            }
            yield Seen(at=2.0 * at, survey=found, errors={}, loads=loads)
        await asyncio.Event().wait()

    async def nothing(*_: str) -> None: ...

    shown = Top(inventory, looks(), speeds=speeds, why=lambda _: [], logs=lambda *_: looks(), restart=nothing)  # type: ignore[arg-type, return-value]
    async with shown.run_test(size=(WIDTH, 16)) as pilot:
        while shown.seen is None or shown.seen.at < 2.0:
            await pilot.pause(0.05)
        await pilot.pause(0.2)
        return shown.export_screenshot(title="homelab top")


def stacked(frames: Sequence[str]) -> str:
    """The frames one below the other, without the fonts that would be fetched from elsewhere."""
    parts, height, width = [], 0.0, 0.0
    for svg in frames:
        size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
        assert size
        inner = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
        inner = inner.replace(
            "<svg ", f'<svg y="{height:g}" width="{size[1]}" height="{size[2]}" xml:space="preserve" ', 1
        )
        parts.append(re.sub(r"[ \t]+$", "", inner, flags=re.MULTILINE))
        width, height = max(width, float(size[1])), height + float(size[2]) + 12
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}">'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
