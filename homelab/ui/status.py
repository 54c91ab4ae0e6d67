"""Health of what should run."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from homelab.facts import Facts
from homelab.status import AppStatus, GatewayStatus, Instance, Status
from homelab.ui.cells import Column, Rows, counted, gib, tokens, wrapped
from homelab.ui.discover import free_bytes, together
from homelab.ui.why import short_name

MODELS = (
    Column(head="MODEL", least=12, middle=True),
    Column(head="NODE", least=10, middle=True),
    Column(head="ENGINE", least=6, drop=1),
    Column(head="STATE"),
    Column(head="CONTEXT", right=True),
    Column(head="PLANNED", right=True),
    Column(head="USED GiB", right=True),
)
NODES = (
    Column(head="NODE", least=10, middle=True),
    Column(head="STATE"),
    Column(head="DEVICE", least=14),
    Column(head="FREE", right=True),
    Column(head="TOTAL GiB", right=True),
)
COLOURS = {"running": "green", "missing": "red", "stopped": "red", "unhealthy": "red"}


def lines(status: Status, width: int) -> list[Text]:
    """Models and their instances, then nodes with what they have free, the gateway last."""
    models = Rows(MODELS)
    for model in status.models:
        if not model.instances:
            models.add(model.name, "-", "-", Text("missing", "red"), "-", "-", "-")
        for i, x in enumerate(model.instances):
            state = Text(x.state, COLOURS.get(x.state, "yellow"))
            name = model.name if i == 0 else ""
            models.add(name, x.node, x.engine, state, _context(x), gib(x.planned_bytes), gib(x.used_bytes))
    out = models.lines(width)
    for x in (x for model in status.models for x in model.instances if x.detail):
        said = Text.assemble((f"{x.service} on {x.node}", "yellow"), f": {x.detail}")
        out += wrapped(said, width, rest="  ")
    return [*out, Text(), *nodes(status, width), Text(), *gateway(status, width), *apps(status, width)]


def _context(x: Instance) -> str:
    if x.context is not None:
        return tokens(x.context)
    return f"({tokens(x.planned_context)})" if x.planned_context else "-"


def nodes(status: Status, width: int) -> list[Text]:
    """A line for each node and kind of device; below them why a node does not answer, and its problems."""
    rows, said = Rows(NODES), []
    for name, report in sorted(status.nodes.items()):
        if report.facts is None:
            away = name in status.away
            state = Text("away", "yellow") if away else Text("not reached", "red")
            rows.add(name, state, "-", "-", "-")
            if report.error and not away:
                said.append((name, report.error.message))
            continue
        said += [(name, p.message) for p in report.facts.problems]
        for i, (device, free, total) in enumerate(_devices(report.facts)):
            state = Text("up", "green") if i == 0 else Text()
            rows.add(name if i == 0 else "", state, device, free, total)
    out = rows.lines(width)
    for name, message in said:
        out += wrapped(Text.assemble((name, "yellow"), f": {message}"), width, rest="  ")
    return out


def _devices(facts: Facts) -> list[tuple[str, str, str]]:
    if not facts.gpus:
        return [("RAM", gib(facts.memory_available_bytes), gib(facts.memory_total_bytes))]
    found = []
    for alike in together(facts.gpus):
        count = f" × {len(alike)}" if len(alike) > 1 else ""
        gpu = alike[0]
        found.append((short_name(gpu.name) + count, gib(gpu.memory_free_bytes), gib(gpu.memory_total_bytes)))
    return found


def gateway(status: Status, width: int) -> list[Text]:
    """Where the one address is, and whether it answers."""
    g = status.gateway
    state = Text("healthy", "green") if g.healthy else Text(_not_healthy(g), "red")
    return wrapped(
        Text.assemble(("gateway", "bold"), f"  {g.url or '-'}  on {g.node}  ", state), width, rest="  "
    )


def apps(status: Status, width: int) -> Iterator[Text]:
    """Where the pages for people are, and whether they answer."""
    for app in status.apps:
        state = Text("healthy", "green") if app.healthy else Text(_not_healthy(app), "red")
        line = Text.assemble((f"app {app.name}", "bold"), f"  {app.url or '-'}  on {app.node}  ", state)
        yield from wrapped(line, width, rest="  ")


def _not_healthy(service: GatewayStatus | AppStatus) -> str:
    return "does not answer" if service.state == "running" else service.state


def house(status: Status, next_step: str, width: int) -> list[Text]:
    """The whole house in five lines: gateway, models, nodes, what is wrong, what to type."""
    healthy = [m.name for m in status.models if m.healthy]
    up = [report.facts for report in status.nodes.values() if report.facts is not None]
    g, found = status.gateway, wrong(status)
    answers = Text("healthy", "green") if g.healthy else Text(_not_healthy(g), "red")
    names = ", ".join(healthy) or "none"
    said = [
        ("gateway", Text.assemble(f"{g.url or '-'}  on {g.node}  ", answers)),
        ("models", Text(f"{len(healthy)} of {len(status.models)} answer: {names}")),
        ("nodes", Text(f"{len(up)} of {len(status.nodes)} reached, {gib(free_bytes(up))} GiB free")),
        ("wrong", Text("; ".join(found), "yellow") if found else Text("nothing", "green")),
        ("next", Text(next_step)),
    ]
    return [_one_line(head, text, width) for head, text in said]


def _one_line(head: str, text: Text, width: int) -> Text:
    room = width - 9
    if text.cell_len > room:
        text.truncate(room, overflow="ellipsis")
    return Text.assemble((f"{head:<7}", "bold"), "  ", text)


def wrong(status: Status) -> list[str]:
    """What is wrong in a house, the causes first; nothing where all is well."""
    found = []
    silent = [n for n, r in sorted(status.nodes.items()) if r.facts is None and n not in status.away]
    if silent:
        found.append(f"not reached: {', '.join(silent)}")
    if not status.gateway.healthy and status.gateway.node not in status.away:
        found.append(f"the gateway: {_not_healthy(status.gateway)}")
    if down := [m for m in status.unhealthy if m != "gateway"]:
        found.append(f"{', '.join(down)} {'does' if len(down) == 1 else 'do'} not answer")
    # What runs may hang: it is asked, and says nothing.
    found += [
        f"{x.service} on {x.node}: {x.detail}"
        for m in status.models
        for x in m.instances
        if x.state == "running" and x.detail
    ]
    problems = {n: len(r.facts.problems) for n, r in sorted(status.nodes.items()) if r.facts}
    found += [f"{counted(k, 'problem')} on {n}" for n, k in problems.items() if k]
    return found
