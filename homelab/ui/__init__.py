"""All that is shown. stdout is data (tables, plan, JSON), stderr is talk (progress, questions, errors).
Words carry the meaning, colour decorates."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from homelab import terminal
from homelab.errors import HomelabError, InventoryError

if TYPE_CHECKING:
    from homelab import fit_command
    from homelab.clients import Access
    from homelab.facts import GPU, Measurement, NodeReport, Survey
    from homelab.fit import Fit
    from homelab.fit_command import Row
    from homelab.inventory import Inventory
    from homelab.placement import Placement
    from homelab.plan import Plan
    from homelab.status import Status

GIB = 1024**3
BAR_WIDTH = 60
MARKS = {
    "create": ("+", "green"),
    "replace": ("~", "yellow"),
    "restart": ("~", "yellow"),
    "move": ("~", "yellow"),
    "remove": ("-", "red"),
    "keep": ("=", "dim"),
}


class Screen(Console):
    """The one way out: a text is never read as markup, and what would steer a terminal is left out of it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment._replace(text=terminal.harmless(segment.text))


out = Screen(soft_wrap=True)
err = Screen(stderr=True, soft_wrap=True)


def no_color() -> None:
    """Colour off, as NO_COLOR does."""
    for console in (out, err):
        console.no_color = True


def error(e: HomelabError) -> None:
    """What happened, why in the other tool's own words, and what to type next."""
    err.print(Text.assemble(("error:", "bold red"), " ", e.message))
    for line in (isinstance(e, InventoryError) and e.mistakes) or e.cause.splitlines():
        err.print(f"  {line}")
    if e.hint:
        err.print(Text.assemble(("hint:", "cyan"), " ", e.hint))


def print_json(document: Any) -> None:
    # JSON escapes every control character but DEL, and so do we all that is not ASCII.
    sys.stdout.write(json.dumps(document, indent=2).replace("\x7f", "\\u007f") + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line of talk."""
    err.print(text)


def write(text: str = "") -> None:
    """A line of data."""
    out.print(text)


def log_line(line: str, *, colours: bool) -> None:
    """A line of a log. Ends the program when nobody reads it any more: a log that is followed has no end of
    its own."""
    sys.stdout.write(terminal.log_line(line, colours=colours) + "\n")
    sys.stdout.flush()
    if terminal.is_output_lost():
        raise SystemExit(0)


def confirm(question: str, *, default: bool = False) -> bool:
    """Ask on stderr, so that stdout stays clean. The end of the input is a no."""
    err.print(f"{question} [{'Y/n' if default else 'y/N'}] ", end="")
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        say("")
        return False
    answer = line.strip().lower()
    return default if not answer else answer in (b"y", b"yes")


def is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def gib(size: int | None) -> str:
    """GiB with one decimal, `-` for unknown."""
    return "-" if size is None else f"{size / GIB:.1f}"


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in set(right) else "left", overflow="fold")
    return made


def print_table(rows: Table) -> None:
    """Wide enough for its content where nobody watches, as wide as the terminal where somebody does."""
    if out.is_terminal:
        out.print(rows, soft_wrap=False)
    else:
        Screen(file=sys.stdout, width=240, no_color=True).print(rows)


# discover


def discovered(inventory: Inventory, survey: Survey, seconds: float) -> None:
    """The table of nodes and devices, problems below it, and what is now true."""
    rows = table(
        "NODE", "GPU", "FREE", "TOTAL GiB", "USED BY", "DRIVER", "RUNS WITH", right=("FREE", "TOTAL GiB")
    )
    reachable, free = 0, 0
    for name, report in survey.nodes.items():
        if report.facts is None:
            rows.add_row(name, *_silent(report, away=inventory.nodes[name].away))
            continue
        reachable += 1
        facts, runs_with = report.facts, _runs_with(report)
        if not facts.gpus:
            free += facts.memory_available_bytes
            rows.add_row(
                name,
                f"-  {facts.cpu.model or facts.arch}",
                gib(facts.memory_available_bytes),
                f"{gib(facts.memory_total_bytes)} RAM",
                "-",
                "-",
                runs_with,
            )
        for i, gpu in enumerate(facts.gpus):
            free += gpu.memory_free_bytes or 0
            total = gib(gpu.memory_total_bytes) + (" *" if gpu.memory_kind == "unified" else "")
            rows.add_row(
                name if i == 0 else "",
                f"{gpu.index}  {gpu.name.removeprefix('NVIDIA ').removeprefix('GeForce ')}",
                gib(gpu.memory_free_bytes),
                total,
                _used_by(gpu),
                gpu.driver or "-",
                runs_with if i == 0 else "",
            )
            for part in gpu.mig_devices:
                rows.add_row(
                    "",
                    f"   {part.name}",
                    gib(part.memory_free_bytes),
                    gib(part.memory_total_bytes),
                    "",
                    "",
                    "",
                )
    print_table(rows)
    for name, report in survey.nodes.items():
        for problem in report.facts.problems if report.facts else ():
            out.print(Text.assemble((name, "yellow"), f": {problem.source}: {problem.message}"))
    unified = any(g.memory_kind == "unified" for r in survey.nodes.values() if r.facts for g in r.facts.gpus)
    count = len(survey.nodes)
    write(
        (
            f"{count} node{'s' if count != 1 else ''}, {reachable} reachable, {gib(free)} GiB "
            f"free, {seconds:.1f} s"
        )
        + ("  * unified memory, shared with the system" if unified else "")
    )


def _silent(report: NodeReport, *, away: bool) -> list[str]:
    message = report.error.message if report.error else "no answer"
    cause = report.error.cause.splitlines()[-1] if report.error and report.error.cause else ""
    said = f"{message}" + (f" ({cause})" if cause else "")
    return ["-", "-", "-", "-", "-", f"{'away' if away else 'NOT REACHED'}: {said}"]


def _used_by(gpu: GPU) -> str:
    held: dict[str, int] = {}
    for p in gpu.processes:
        held[p.service or p.name] = held.get(p.service or p.name, 0) + (p.memory_bytes or 0)
    top = sorted(held.items(), key=lambda x: (-x[1], x[0]))
    return (
        " ".join(f"{name} {gib(size)}" for name, size in top[:3])
        + (f" +{len(top) - 3}" if len(top) > 3 else "")
        or "-"
    )


def _runs_with(report: NodeReport) -> str:
    facts = report.facts
    assert facts is not None
    docker = facts.docker
    if docker is None:
        return "native" + ("".join(f" ({name})" for name, path in sorted(facts.programs.items()) if path))
    if not docker.reachable:
        return f"docker: {docker.error or 'no answer'}"[:70]
    compose = f"compose {docker.compose_version}" if docker.compose_version else "no compose plugin"
    return f"docker {docker.version}, {compose}"


# plan


def planned(plan: Plan) -> None:
    """A bar for every device in use, the changes with their reasons, what does not fit and why."""
    from homelab.plan import Change

    by_service = {(p.node, p.service): p for p in plan.layout}
    shown: set[tuple[str, str]] = set()
    slots = [s for s in plan.layout.slots if len(s.gpus) <= 1]
    for slot in slots:
        here = [
            p
            for p in plan.layout
            if p.node == slot.node
            and (set(p.gpus) & {g.uuid for g in slot.gpus} if slot.gpus else not p.gpus)
        ]
        if here:
            bar = _bar([(p.service, p.bytes) for p in here], slot.free_bytes, slot.device.total_bytes)
            size = f"{gib(slot.device.total_bytes)} GiB {slot.device.name}"
            out.print(Text.assemble((f"{slot.node} {slot.label}", "bold"), f"  {bar}  {size}"))
        for p in here:
            change = next((c for c in plan.changes if (c.node, c.service) == (p.node, p.service)), None)
            if change is not None and (p.node, p.service) not in shown:
                shown.add((p.node, p.service))
                _change(change, p)
    rest: list[Change] = [c for c in plan.changes if (c.node, c.service) not in shown]
    for change in rest:
        _change(change, by_service.get((change.node, change.service)))
    if older := [c for c in plan.changes if c.newer]:
        write("This homelab would start some of what is kept in another way (homelab deploy --upgrade):")
        for change in older:
            write(f"      {change.service} on {change.node}: {change.newer}")
    for u in plan.layout.unplaced:
        out.print(Text.assemble((f"! {u.model}", "bold red"), f"  {u.reason}"))
        if u.unreachable:  # it waits; what does not fit is an error of its own, with all that was tried
            for line in u.details if len(u.details) > 1 else ():
                write(f"      {line}")
    if plan.layout.gap is not None:
        write(plan.layout.proof)
    for left in plan.leftovers:
        size = f", {gib(left.what.bytes)} GiB" if left.what.bytes else ""
        what = f"{left.what.kind}{size}  {left.what.paths[0]}"
        write(f"left over on {left.node}: {what}  (homelab deploy takes it away)")
    for node, services in plan.gone.items():
        write(left_behind(node, services))


def left_behind(node: str, services: Sequence[str]) -> str:
    """What is known of a node that is not in the inventory any more."""
    count = f"{len(services)} service{'s' if len(services) != 1 else ''}"
    return (
        f"{node} is not in the inventory any more: {count} of this cluster ran there when it last answered "
        f"({', '.join(services)}). Put it back and take them off with homelab remove"
    )


def summary(plan: Plan, inventory: Inventory) -> str:
    """`2 create · 1 replace on 2 nodes · no prompt can leave the house`."""
    counts = {
        a: sum(c.action == a for c in plan.todo) for a in ("create", "replace", "restart", "move", "remove")
    }
    parts = [f"{n} {a}" for a, n in counts.items() if n]
    nodes = len({c.node for c in plan.todo})
    nothing = "Nothing can be changed" if plan.layout.unplaced else "Everything is up to date"
    what = " · ".join(parts) + f" on {nodes} node{'s' if nodes != 1 else ''}" if parts else nothing
    unplaced = f" · {len(plan.layout.unplaced)} without a place" if plan.layout.unplaced else ""
    cloud = (
        f"prompts to {', '.join(sorted(inventory.cloud))} leave the house"
        if inventory.cloud
        else "no prompt can leave the house"
    )
    return f"{what}{unplaced} · {cloud}"


def _change(change: Any, p: Placement | None) -> None:
    mark, colour = MARKS[change.action]
    head = Text.assemble("  ", (f"{mark} {change.action:<8}", colour), f"{change.service:<20} ")
    if p is None:
        out.print(head.append(f"{change.node}  {change.reason}"))
    else:
        flags = (
            f"  gpu-memory-utilization {p.gpu_memory_utilization:.3f}"
            if p.gpu_memory_utilization is not None
            else ""
        )
        out.print(
            head.append(
                f"{p.engine}  {p.request.context} ctx × {p.request.concurrency}  "
                f"{gib(p.bytes)} GiB{flags}  {p.source}"
            )
        )
        # What is only started again needs no reason for its place.
        why = {"replace": f"{change.reason}; {p.reason}", "restart": change.reason}.get(
            change.action, p.reason
        )
        write(f"      {why}")
        write("      " + _terms(p, host=False) + (f"  · RAM: {ram}" if (ram := _terms(p, host=True)) else ""))
    if p is not None and change.action != "keep":
        for line in _elsewhere(p):
            out.print(Text(f"      not {line}", "dim"))
    if change.blocked:
        out.print(Text.assemble("      ", ("blocked:", "bold red"), f" {change.blocked}"))


def _elsewhere(p: Placement) -> list[str]:
    """Why not in other places: those with the same reason in one line, without those that could never have
    been meant."""
    places: dict[str, list[str]] = {}
    for line in p.elsewhere:
        place, _, why = line.partition(": ")
        if "does not run on" not in why:
            places.setdefault(why, []).append(place)
    return [f"{', '.join(there)}: {why}" for why, there in places.items()]


def _terms(p: Placement, *, host: bool) -> str:
    """The summands; `~` marks an upper bound, `?` a figure from experience."""
    marks = {"bounded": "~", "empirical": "?"}
    return " + ".join(
        f"{t.name} {t.bytes / GIB:.2f}{marks.get(t.grade, '')}"
        for t in p.footprint.terms
        if t.bytes and (t.where == "host") == host
    )


def _bar(parts: Sequence[tuple[str, int]], free_bytes: int, total_bytes: int) -> str:
    """A device: ours by name, what is free, what others hold. It ends in `>` where the parts are more than
    there is room for."""
    used, free = sum(size for _, size in parts), max(free_bytes, 0)
    others = max(total_bytes - free - used, 0)
    whole, left = max(total_bytes, used + free, 1), BAR_WIDTH
    cells = []
    for name, size in [*parts, ("free", free), ("others", others)]:
        width = min(round(size / whole * BAR_WIDTH), left)
        left -= width
        if width:
            fill = "." if name == "free" else " " if name == "others" else "#"
            cells.append(name[:width].center(width, fill))
    return "[" + "|".join(cells) + (">" if free_bytes < 0 else "]")


# fit


def shown_answer(answer: fit_command.Answer) -> None:
    """Whatever `homelab fit` was asked."""
    from homelab.fit_command import History, Rows

    match answer:
        case Rows(rows=rows):
            shown_what(rows)
        case History(measured=measured):
            shown_history(measured)
        case _:
            shown_fit(answer)


def shown_fit(fit: Fit) -> None:
    """Terms, the split of the device, verdict, flags; what would fit instead."""
    where = f" on {fit.place.label or fit.place.device.name}" if fit.place else ""
    write(
        f"{fit.candidate.source}  {fit.candidate.engine}  {fit.request.context} ctx × "
        f"{fit.request.concurrency}{where}"
    )
    terms = table("TERM", "GiB", "GRADE", "WHERE", right=("GiB",))
    device = "RAM" if fit.place and fit.place.device.vendor == "cpu" else "GPU"
    places = {"device": device, "context": f"{device}, outside the budget", "host": "RAM"}
    for t in fit.footprint.terms:
        terms.add_row(t.name, f"{t.bytes / GIB:.2f}", t.grade, places[t.where])
    if fit.footprint.terms:
        print_table(terms)
        if fit.place:
            on_device = [(t.name, t.bytes) for t in fit.footprint.terms if t.where != "host"]
            left = fit.place.free_bytes - fit.footprint.device_bytes
            total = fit.place.device.total_bytes
            write(f"{_bar(on_device, left, total)}  {gib(total)} GiB")
    need, colour = (
        fit.footprint.device_bytes / GIB,
        {"fits": "green", "does-not-fit": "red", "no-device": "cyan"}[fit.verdict],
    )
    free = (
        f", free {fit.place.free_bytes / GIB:.2f} GiB"
        if fit.place
        else ": name a device with --gpu 24GiB or --node NAME to know if it fits"
    )
    said = fit.reason or f"needs {need:.2f} GiB{free}"
    out.print(Text.assemble((fit.verdict, f"bold {colour}"), f"  {said}"))
    for note in fit.notes:
        out.print(Text.assemble(("note", "yellow"), f"  {note}"))
    if fit.flags and fit.verdict != "does-not-fit":
        write(f"flags {' '.join(fit.flags)}")
    for a in fit.alternatives:
        ram = f" and {a.footprint.host_bytes / GIB:.2f} GiB of RAM" if a.footprint.host_bytes else ""
        write(f"instead: {a.what}: {a.bytes / GIB:.2f} GiB{ram}")


def shown_what(rows: Sequence[Row]) -> None:
    """What each device can run of the catalog."""
    shown = table("MODEL", "DEVICE", "VARIANT", "GiB", "CONTEXT", "LICENCE", right=("GiB", "CONTEXT"))
    for row in rows:
        best = row.found
        if best is None:
            shown.add_row(row.model, row.where, Text(row.shortest, "dim"), "-", "-", row.licence)
        else:
            size = f"{best.footprint.device_bytes / GIB:.1f}"
            shown.add_row(
                row.model,
                row.where,
                best.candidate.source,
                size,
                str(best.request.context),
                row.licence,
            )
    print_table(shown)
    write("Next: homelab fit MODEL --gpu … --context …")


# status


def shown_status(status: Status) -> None:
    """Models and their instances, then nodes."""
    models = table(
        "MODEL",
        "NODE",
        "ENGINE",
        "STATE",
        "CONTEXT",
        "PLANNED",
        "USED GiB",
        right=("CONTEXT", "PLANNED", "USED GiB"),
    )
    for model in status.models:
        if not model.instances:
            models.add_row(model.name, "-", "-", Text("missing", "red"), "-", "-", "-")
        for i, x in enumerate(model.instances):
            state = Text(x.state, "green" if x.state == "running" else "yellow")
            if x.detail:
                state = Text.assemble(state, f" {x.detail}")
            context = (
                str(x.context)
                if x.context is not None
                else f"({x.planned_context})"
                if x.planned_context
                else "-"
            )
            models.add_row(
                model.name if i == 0 else "",
                x.node,
                x.engine,
                state,
                context,
                gib(x.planned_bytes),
                gib(x.used_bytes),
            )
    print_table(models)
    write()
    nodes = table("NODE", "STATE", "MEMORY", "PROBLEMS")
    for name, report in sorted(status.nodes.items()):
        if report.facts is None:
            nodes.add_row(name, Text("not reached", "red"), "-", report.error.message if report.error else "")
        else:
            gpus = ", ".join(
                (
                    f"{g.name.removeprefix('NVIDIA ')} {gib(g.memory_free_bytes)} of "
                    f"{gib(g.memory_total_bytes)} free"
                )
                for g in report.facts.gpus
            )
            ram = (
                f"RAM {gib(report.facts.memory_available_bytes)} of "
                f"{gib(report.facts.memory_total_bytes)} free"
            )
            nodes.add_row(
                name,
                Text("up", "green"),
                gpus or ram,
                "; ".join(p.message for p in report.facts.problems) or "-",
            )
    print_table(nodes)
    write()
    g = status.gateway
    state = Text("healthy", "green") if g.healthy else Text(g.state, "red")
    out.print(Text.assemble(f"gateway  {g.url or '-'}  on {g.node}  ", state))


def next_steps(url: str, key_file: str | None, again: str) -> None:
    """What is now true, and the next commands. `again` is the option that names the inventory."""
    write(f"Gateway  {url}" + (f"   key in {key_file}" if key_file else "   no key is known here"))
    write(f"Next: homelab connect{again}    take it down: homelab remove{again}")


def connections(access: Access, again: str) -> None:
    """How clients reach the gateway: address, key and model, ready to paste."""
    from homelab.clients import clients

    write(f"Gateway  {access.url}   key in {access.key_file}")
    write()
    for client in clients().values():
        write(f"{client.TITLE}:")
        for line in client.setup(access):
            write(f"  {line}")
    write()
    question = f"homelab ask{again} {access.model} 'your question'"
    write(f"Next: {question}    health: homelab status{again}    take it down: homelab remove{again}")


def shown_history(measured: Sequence[Measurement]) -> None:
    """What was predicted and what is really used, by placement, and how far off the predictions are."""
    from homelab.measured import error

    if not measured:
        write("Nothing was measured yet: every deploy adds to it")
        return
    rows = table(
        "MODEL",
        "DEVICE",
        "ENGINE",
        "CONTEXT",
        "PREDICTED",
        "USED GiB",
        "ERROR",
        right=("CONTEXT", "PREDICTED", "USED GiB", "ERROR"),
    )
    for m in measured:
        off = error(m)
        shown = "-" if off is None else f"{off:+.1%}"
        rows.add_row(
            m.model,
            m.device,
            m.engine,
            f"{m.context} × {m.concurrency}",
            gib(m.planned_bytes),
            gib(m.used_bytes),
            shown,
        )
    print_table(rows)
    errors = sorted(abs(e) for m in measured if (e := error(m)) is not None)
    if errors:
        write(
            f"Median error {errors[len(errors) // 2]:.1%} over {len(errors)} placements; "
            "reserves for later growth are left out of it"
        )
