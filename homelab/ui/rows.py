"""The lines of `homelab top`: a board in columns, as wide as the terminal. Every line is exactly that wide,
so that nothing wraps; what is too long ends in `…`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from homelab.board import Board, BoardDevice, BoardNode, Running
from homelab.plan import Place
from homelab.terminal import harmless
from homelab.ui.cells import gib, tokens

COLOURS = {
    "up": "green",
    "running": "green",
    "starting": "yellow",
    "unhealthy": "red",
    "stopped": "red",
    "missing": "red",
    "not reached": "red",
}


@dataclass(frozen=True, slots=True)
class Column:
    """`drop` is the order in which columns go where there is no room; 0 stays."""

    title: str
    cells: int
    drop: int = 0
    right: bool = False


COLUMNS = (
    Column("NODE / DEVICE / SERVICE", 24),
    Column("MEMORY", 10, drop=4),
    Column("USED", 6, drop=7, right=True),
    Column("PLAN", 6, drop=2, right=True),
    Column("OF GiB", 6, drop=3, right=True),
    Column("TOK/S", 6, drop=6, right=True),
    Column("QUEUE", 6, drop=5, right=True),
    Column("POWER", 9, drop=1, right=True),
    Column("STATE", 13),
)
NAME, BAR, STATE = 0, 1, len(COLUMNS) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line, and what it is about. `key` is the same in the next look."""

    key: tuple[str, ...]
    text: Text
    node: BoardNode | None = None
    service: Running | None = None
    model: str = ""


def flat(text: str) -> str:
    """A text of a node on one line, without what would steer a terminal."""
    return harmless(re.sub(r"\s", " ", text))


def fitted(text: str, cells: int, *, right: bool = False) -> str:
    """The text in exactly so many cells of the terminal."""
    size = cell_len(text)
    if size > cells:
        return set_cell_size(set_cell_size(text, max(0, cells - 1)).rstrip() + "…", cells)
    return " " * (cells - size) + text if right else text + " " * (cells - size)


def bar(used: int | None, planned: int | None, total: int | None, cells: int) -> str:
    """█ is used and ░ is not; `│` is where what is planned ends, beyond what is used. Nothing where no total
    is known."""
    if not cells or not total or (used is None and planned is None):
        return ""
    filled = round(cells * min(1.0, (used or 0) / total))
    drawn = ["█"] * filled + ["░"] * (cells - filled)
    if planned:
        end = max(0, min(cells, round(cells * min(1.0, planned / total))) - 1)
        if end >= filled:
            drawn[end] = "│"
    return "".join(drawn)


def widths(width: int) -> dict[int, int]:
    """The columns that there is room for, with their cells: what is left over goes to the names, the states
    and the bars."""
    shown = dict(enumerate(COLUMNS))
    for _, number in sorted((c.drop, n) for n, c in shown.items() if c.drop):
        if _needed([c.cells for c in shown.values()]) <= width:
            break
        del shown[number]
    cells = {n: c.cells for n, c in shown.items()}
    left = max(0, width - _needed(list(cells.values())))
    if BAR in cells:
        cells[BAR] += min(10, left // 4)
    cells[NAME] += min(20, left // 3)
    cells[STATE] += width - _needed(list(cells.values()))
    return cells


def _needed(cells: Sequence[int]) -> int:
    return sum(cells) + len(cells) - 1


def line(cells: Mapping[int, int], columns: Mapping[int, str], style: str = "", colour: str = "") -> Text:
    """One line of the table; `colour` is the state's."""
    made = Text(style=style, no_wrap=True, end="")
    for number, size in cells.items():
        text = fitted(flat(columns.get(number, "")), max(0, size), right=COLUMNS[number].right)
        made.append(text, colour if number == STATE else None)
        made.append("" if number == STATE else " ")
    return made


def note(cells: Mapping[int, int], name: str, text: str, colour: str) -> Text:
    """A line that has no numbers: the text takes the room of all columns but the first."""
    width = _needed(list(cells.values()))
    made = Text(fitted(flat(name), cells[NAME]) + " ", "bold", no_wrap=True, end="")
    return made.append(fitted(flat(text), max(0, width - cells[NAME] - 1)), colour)


def heading(width: int) -> Text:
    """The titles of the columns."""
    return line(widths(width), {n: c.title for n, c in enumerate(COLUMNS)}, style="bold")


def headline(board: Board, width: int) -> Text:
    """The household in one line."""
    parts = (
        board.cluster,
        f"{board.gateway_url or 'gateway'} {board.gateway_state}",
        f"{board.up}/{len(board.nodes)} nodes up",
        f"{rate(board.tokens_per_second)} tok/s",
        f"queue {queue(board.running, board.waiting)}",
    )
    return Text(fitted(flat("  ".join(parts)), width), "bold", no_wrap=True, end="")


def rows(board: Board, width: int, notes: Mapping[Place, str]) -> Iterator[Row]:
    """The lines below the titles. `notes` say what somebody at this screen did to a service."""
    cells = widths(width)
    for node in board.nodes:
        yield Row(key=(node.name,), text=_node(node, cells), node=node)
        for device in node.devices:
            key = (node.name, "device", device.uuid)
            yield Row(key=key, text=_device(device, cells), node=node)
            for service in device.services:
                yield _service(node, service, device.total_bytes, cells, notes, "    ")
        if node.idle:
            yield Row(key=(node.name, "idle"), text=_idle(node, cells), node=node)
        for service in node.services:
            yield _service(node, service, node.ram_total_bytes, cells, notes, "  ")
    for model in board.missing:
        text = line(cells, {NAME: model, STATE: "missing"}, colour=COLOURS["missing"])
        yield Row(key=("", "missing", model), text=text, model=model)


def _node(node: BoardNode, cells: Mapping[int, int]) -> Text:
    if node.error is not None:
        cause = node.error.cause.strip().splitlines()
        said = f"{node.state}: {cause[-1] if cause else node.error.message}"
        return note(cells, node.name, said, COLOURS.get(node.state, "yellow"))
    if node.state == "asking":
        return note(cells, node.name, "asking …", "yellow")
    state = node.problems[0] if node.problems else "up"
    if len(node.problems) > 1:
        state = f"{len(node.problems)} problems: {state}"
    columns = {
        NAME: node.name,
        **_memory(node.ram_used_bytes, node.ram_planned_bytes, node.ram_total_bytes, cells),
        STATE: state,
    }
    colour = "yellow" if node.problems else COLOURS.get(node.state, "yellow")
    return line(cells, columns, style="bold", colour=colour)


def _device(device: BoardDevice, cells: Mapping[int, int]) -> Text:
    name = device.name.removeprefix("NVIDIA ").removeprefix("GeForce ")
    says = (
        None if device.temperature_celsius is None else f"{device.temperature_celsius} °C",
        None if device.utilization_percent is None else f"{device.utilization_percent} % busy",
    )
    columns = {
        NAME: f"  {device.label} {name}",
        **_memory(device.used_bytes, device.planned_bytes, device.total_bytes, cells),
        7: power(device.power_watts, device.power_limit_watts),
        STATE: ", ".join(text for text in says if text),
    }
    return line(cells, columns)


def _idle(node: BoardNode, cells: Mapping[int, int]) -> Text:
    free = " free" if node.state == "up" else ""
    total = sum(d.total_bytes or 0 for d in node.idle)
    used = [d.used_bytes for d in node.idle if d.used_bytes is not None]
    columns = {
        NAME: f"  {len(node.idle)} {'more ' if node.devices else ''}GPUs{free}",
        **_memory(sum(used) if used else None, None, total or None, cells),
    }
    return line(cells, columns, style="dim")


def _service(
    node: BoardNode,
    service: Running,
    total: int | None,
    cells: Mapping[int, int],
    notes: Mapping[Place, str],
    indent: str,
) -> Row:
    several = len(service.devices) > 1
    on = f" on GPU {'+'.join(d.removeprefix('GPU ') for d in service.devices)}" if several else ""
    share = max(1, len(service.devices))
    done = notes.get((service.node, service.service), "")
    state = f"{done}, {service.state}" if done else service.state
    if service.detail:
        state += f": {service.detail}"
    elif service.context is not None:
        state += f", {tokens(service.context)}" + (f" × {service.concurrency}" if service.concurrency else "")
    each = None if service.planned_bytes is None else service.planned_bytes // share
    used = None if service.used_bytes is None else service.used_bytes // share
    columns = {
        NAME: f"{indent}{service.subject}{on}",
        BAR: bar(used, each, total, cells.get(BAR, 0)),
        2: gib(service.used_bytes),
        3: gib(service.planned_bytes),
        5: rate(service.tokens_per_second),
        6: queue(service.running, service.waiting),
        STATE: state,
    }
    colour = "yellow" if done else COLOURS.get(service.state, "yellow")
    key = (service.node, "service", service.service)
    return Row(key=key, text=line(cells, columns, colour=colour), node=node, service=service)


def _memory(
    used: int | None, planned: int | None, total: int | None, cells: Mapping[int, int]
) -> dict[int, str]:
    return {
        BAR: bar(used, planned, total, cells.get(BAR, 0)),
        2: gib(used),
        3: gib(planned),
        4: gib(total),
    }


def rate(tokens_per_second: float | None) -> str:
    """Tokens per second, `-` for unknown."""
    if tokens_per_second is None:
        return "-"
    return f"{tokens_per_second:.1f}" if tokens_per_second < 100 else f"{tokens_per_second:.0f}"


def queue(running: int | None, waiting: int | None) -> str:
    """Requests at work + requests that wait, `-` for unknown."""
    if running is None and waiting is None:
        return "-"
    return "+".join("-" if n is None else str(n) for n in (running, waiting))


def power(watts: float | None, limit: float | None) -> str:
    """`250/450 W`, `-` for unknown."""
    if watts is None:
        return "-"
    return f"{watts:.0f}/{limit:.0f} W" if limit else f"{watts:.0f} W"
