"""What the machines have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from homelab.facts import GPU, Facts, NodeReport, Survey
from homelab.inventory import Inventory
from homelab.ui.cells import Column, Rows, counted, gib, wrapped
from homelab.ui.why import short_name

COLUMNS = (
    Column(head="NODE", least=12, middle=True),
    Column(head="GPU", least=12),
    Column(head="FREE", right=True),
    Column(head="TOTAL GiB", right=True),
    Column(head="USED BY", least=12, first=True),
    Column(head="DRIVER", least=8, drop=1),
    Column(head="RUNS WITH", least=13, first=True),
)


def lines(inventory: Inventory, survey: Survey, seconds: float, width: int) -> list[Text]:
    """The table of nodes and devices, problems below it, and what is now true."""
    rows = Rows(COLUMNS)
    silent: list[Text] = []
    answered: list[Facts] = []
    unified = False
    for name, report in survey.nodes.items():
        if report.facts is None:
            away = inventory.nodes[name].away
            rows.add(
                name, "-", "-", "-", "-", "-", Text("away" if away else "NOT REACHED", "" if away else "red")
            )
            silent += wrapped(Text.assemble((name, "yellow"), f": {_silent(report)}"), width, rest="  ")
            continue
        facts = report.facts
        unified = unified or any(g.memory_kind == "unified" for g in facts.gpus)
        answered.append(facts)
        runs_with = _runs_with(facts, brief=width < 120)
        for i, cells in enumerate(_devices(facts)):
            rows.add(name if i == 0 else "", *cells, runs_with if i == 0 else "")
    out = rows.lines(width) + silent
    for name, report in survey.nodes.items():
        for problem in report.facts.problems if report.facts else ():
            said = Text.assemble((name, "yellow"), f": {problem.source}: {problem.message}")
            out += wrapped(said, width, rest="  ")
    nodes, free = counted(len(survey.nodes), "node"), gib(free_bytes(answered))
    told = f"{nodes}, {len(answered)} reachable, {free} GiB free, {seconds:.1f} s"
    out += wrapped(told + ("  * unified memory, shared with the system" if unified else ""), width, rest="  ")
    return out


def free_bytes(answered: Sequence[Facts]) -> int | None:
    """What models could use of these machines now: of GPUs, where there are some, else of RAM. None where
    nothing is known of any."""
    known = [
        size
        for facts in answered
        for size in (
            [g.memory_free_bytes for g in facts.gpus] if facts.gpus else [facts.memory_available_bytes]
        )
        if size is not None
    ]
    return sum(known) if known else None


def _devices(facts: Facts) -> Iterator[list[str]]:
    """A row for each device, like ones that nobody uses in one."""
    if not facts.gpus:
        cpu = facts.cpu.model or facts.arch
        total = f"{gib(facts.memory_total_bytes)} RAM"
        yield [f"-  {cpu}", gib(facts.memory_available_bytes), total, "-", "-"]
    for alike in together(facts.gpus):
        gpu, last = alike[0], alike[-1]
        total = gib(gpu.memory_total_bytes) + (" *" if gpu.memory_kind == "unified" else "")
        number = f"{gpu.index}" if gpu is last else f"{gpu.index}-{last.index}"
        name = short_name(gpu.name) + (f" × {len(alike)}" if gpu is not last else "")
        yield [f"{number}  {name}", gib(gpu.memory_free_bytes), total, _used_by(gpu), gpu.driver or "-"]
        for part in gpu.mig_devices:
            yield [f"   {part.name}", gib(part.memory_free_bytes), gib(part.memory_total_bytes), "", ""]


def together(gpus: Sequence[GPU]) -> list[list[GPU]]:
    """The GPUs in their order, neighbours in one list where nothing tells them apart and nobody uses them."""
    groups: list[list[GPU]] = []
    for gpu in gpus:
        if groups and _idle(gpu) and _idle(groups[-1][0]) and _looks(gpu) == _looks(groups[-1][0]):
            groups[-1].append(gpu)
        else:
            groups.append([gpu])
    return groups


def _idle(gpu: GPU) -> bool:
    return not gpu.processes and not gpu.mig_devices


def _looks(gpu: GPU) -> tuple[str, ...]:
    sizes = gib(gpu.memory_free_bytes), gib(gpu.memory_total_bytes)
    return (gpu.name, gpu.driver or "", gpu.memory_kind, *sizes)


def _silent(report: NodeReport) -> str:
    message = report.error.message if report.error else "no answer"
    cause = report.error.cause.splitlines()[-1] if report.error and report.error.cause else ""
    return f"{message} ({cause})" if cause else message


def _used_by(gpu: GPU) -> str:
    held: dict[str, int] = {}
    for p in gpu.processes:
        held[p.service or p.name] = held.get(p.service or p.name, 0) + (p.memory_bytes or 0)
    top = sorted(held.items(), key=lambda x: (-x[1], x[0]))
    more = f" +{len(top) - 3}" if len(top) > 3 else ""
    return " ".join(f"{name} {gib(size)}" for name, size in top[:3]) + more or "-"


def _runs_with(facts: Facts, *, brief: bool) -> str:
    docker = facts.docker
    if docker is None:
        return "native" + "".join(f" ({name})" for name, path in sorted(facts.programs.items()) if path)
    if not docker.reachable:
        return f"docker: {docker.error or 'no answer'}"
    if brief and docker.compose_version:
        return f"docker {docker.version}"
    if not docker.compose_version:
        return f"no compose plugin, docker {docker.version}"
    return f"docker {docker.version}, compose {docker.compose_version}"
