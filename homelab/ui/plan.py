"""The plan: a bar for every device in use, one line for every service; all that is behind it on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from homelab import routes
from homelab.inventory import Inventory
from homelab.placement import Layout, Placement, Slot
from homelab.plan import Change, Plan
from homelab.speed import Speed
from homelab.ui.bars import Part, bar, legend
from homelab.ui.cells import Column, Rows, clip, counted, gib, tokens, wrapped
from homelab.ui.why import because, engine_of, per_second, short_name

MARKS = {
    "create": ("+", "green"),
    "replace": ("~", "yellow"),
    "restart": ("~", "yellow"),
    "move": ("~", "yellow"),
    "remove": ("-", "red"),
    "keep": ("=", "dim"),
}
INDENT = 2
# So many services that stay as they are are shown one by one; more of them are counted.
MOST_KEPT = 16
REASON_WORDS = 8
SERVICES = (
    Column(head="ACTION"),
    Column(head="MODEL", least=12, middle=True),
    Column(head="ENGINE", least=8, drop=1),
    Column(head="CONTEXT", right=True),
    Column(head="GiB", right=True),
    Column(head="UTIL", right=True),
    Column(head="TOK/S", right=True, drop=2),
    Column(head="WHY", least=16),
)
OTHERS = (
    Column(head="ACTION"),
    Column(head="SERVICE", least=12, middle=True),
    Column(head="NODE", least=8, middle=True),
    Column(head="WHY", least=16),
)


def lines(plan: Plan, width: int, *, verbose: bool = False) -> list[Text]:
    """The whole plan in lines of at most `width` cells; `verbose`: with all that `homelab why` says."""
    placed = {(p.node, p.service): p for p in plan.layout}
    changes = {c.place: c for c in plan.changes}
    kept = [c for c in plan.changes if c.action == "keep"]
    quiet = set() if verbose or len(kept) <= MOST_KEPT else {c.place for c in kept}
    order = [key for key in placed if key in changes and key not in quiet]
    speeds = plan.speeds or {}
    table = _services([(changes[key], placed[key], speeds.get(key)) for key in order], width)
    head, *body = table.lines(width, indent=INDENT)
    rows = dict(zip(order, body, strict=True))
    out: list[Text] = [head] if rows else []
    shown: set[tuple[str, str]] = set()
    for slots, here in _devices(plan.layout):
        changing = [p for p in here if (p.node, p.service) in rows]
        if not changing:
            continue
        mine = [p for p in changing if (p.node, p.service) not in shown]
        if len(out) > 1 and out[-1]:
            out.append(Text())
        out += _device(slots, here, width)
        for p in mine:
            shown.add((p.node, p.service))
            out.append(rows[p.node, p.service])
            out += _notes(changes[p.node, p.service], width)
            if verbose:
                out += because(plan, p, width, indent=6)
                out.append(Text())
    rest = [c for c in plan.changes if c.place not in shown and c.place not in quiet]
    if any(not u.unreachable for u in plan.layout.unplaced):
        rest = []  # nothing of it comes to pass, and none of it need
    if rest and rows and out[-1]:
        out.append(Text())
    out += _rest(rest, width, head=not rows)
    if quiet:
        nodes = counted(len({node for node, _ in quiet}), "node")
        out += wrapped(
            f"= {len(quiet)} services on {nodes} stay as they are: homelab plan -v", width, rest="  "
        )
    return out + list(_below(plan, width))


def _services(rows: Sequence[tuple[Change, Placement, Speed | None]], width: int) -> Rows:
    """A row for each service. Where they would not fit, the mark alone says the action; what no row has a
    figure for is left out."""
    empty = set()
    if not any(p.gpu_memory_utilization is not None for _, p, _ in rows):
        empty.add("UTIL")
    if not any(speed is not None for _, _, speed in rows):
        empty.add("TOK/S")
    kept = [i for i, c in enumerate(SERVICES) if c.head not in empty]
    for brief in (False, True):
        columns = [SERVICES[i] for i in kept]
        table = Rows([Column(), *columns[1:]] if brief else columns)
        for change, p, speed in rows:
            cells = _service(change, p, speed, brief=brief)
            table.add(*(cells[i] for i in kept))
        if table.natural() + INDENT <= width:
            break
    return table


def _action(change: Change, *, brief: bool) -> Text:
    mark, colour = MARKS[change.action]
    return Text(mark if brief else f"{mark} {change.action}", colour)


def _service(change: Change, p: Placement, speed: Speed | None, *, brief: bool) -> list[str | Text]:
    why = {"replace": change.reason, "restart": change.reason, "move": f"{change.reason}, {p.summary}"}
    utilization = p.gpu_memory_utilization
    return [
        _action(change, brief=brief),
        p.service,
        engine_of(p),
        f"{tokens(p.request.context)} × {p.request.concurrency}",
        gib(p.bytes),
        f"{utilization:.3f}" if utilization is not None else "-",
        per_second(speed.decode_tokens_per_s) if speed is not None else "-",
        _few_words(why.get(change.action, p.summary)),
    ]


def _few_words(text: str) -> str:
    words = text.split()
    return text if len(words) <= REASON_WORDS else " ".join(words[:REASON_WORDS]) + " …"


def _notes(change: Change, width: int) -> Iterator[Text]:
    if change.blocked:
        yield from wrapped(
            Text.assemble(("blocked: ", "bold red"), change.blocked), width, first=" " * 4, rest=" " * 6
        )


def _rest(changes: Sequence[Change], width: int, *, head: bool) -> list[Text]:
    """What is on no device of the plan: the gateway, and what goes."""
    if not changes:
        return []
    table = Rows(OTHERS)
    for change in changes:
        reason = "up to date" if change.action == "keep" else change.reason
        table.add(_action(change, brief=False), change.service, f"on {change.node}", _few_words(reason))
    first, *body = table.lines(width, indent=INDENT)
    out = [first] if head else []
    for change, row in zip(changes, body, strict=True):
        out.append(row)
        out += _notes(change, width)
    return out


def _devices(layout: Layout) -> Iterator[tuple[list[Slot], list[Placement]]]:
    """The devices that something is placed on, those of one node that hold the same as one."""
    on: dict[tuple[str, tuple[str, ...]], list[Slot]] = {}
    held: dict[tuple[str, tuple[str, ...]], list[Placement]] = {}
    for slot in layout.slots:
        if len(slot.gpus) > 1:
            continue
        names = {g.uuid for g in slot.gpus}
        here = [p for p in layout if p.node == slot.node and (names & set(p.gpus) if names else not p.gpus)]
        if here:
            key = slot.node, tuple(p.service for p in here)
            on.setdefault(key, []).append(slot)
            held[key] = here
    for key, slots in on.items():
        yield slots, held[key]


def _device(slots: Sequence[Slot], here: Sequence[Placement], width: int) -> list[Text]:
    slot = slots[0]
    numbers = ", ".join(str(s.gpus[0].index) for s in slots if s.gpus)
    label = f"{slot.node} GPU {numbers}" if numbers else f"{slot.node} RAM"
    total = f"{gib(slot.device.total_bytes)} GiB"
    name = short_name(slot.device.name) + (f" × {len(slots)}" if len(slots) > 1 else "")
    parts = parts_of(slot, here)
    cells = 24 if width < 100 else 32 if width < 120 else 48
    label = clip(label, max(width - cells - len(total) - 4, 8))
    line = Text.assemble((label, "bold"), "  ", bar(parts, cells), f"  {total}")
    room = width - line.cell_len - 2
    if room >= 8:
        line.append(f"  {clip(name, room)}", "dim")
    return [line, *legend(parts, width, INDENT)]


def parts_of(slot: Slot, here: Sequence[Placement]) -> list[Part]:
    """What a device's memory goes to when the plan is carried out: ours, others by name, reserve, free."""
    ours = [Part(kind="ours", name=p.service, bytes=p.bytes) for p in here]
    total, free = slot.device.total_bytes, max(slot.free_bytes, 0)
    left = max(total - free - sum(p.bytes for p in ours), 0)
    reserve = min(slot.reserve_bytes, left)
    left -= reserve
    others: list[Part] = []
    strangers: dict[str, int] = {}
    for process in (process for g in slot.gpus for process in g.processes if not process.service):
        strangers[process.name] = strangers.get(process.name, 0) + (process.memory_bytes or 0)
    for name, size in sorted(strangers.items(), key=lambda s: (-s[1], s[0]))[:3]:
        size = min(size, left)
        left -= size
        others.append(Part(kind="others", name=name, bytes=size))
    others.append(Part(kind="others", name="system" if not slot.gpus else "others", bytes=left))
    return [
        *ours,
        *others,
        Part(kind="reserve", name="reserve", bytes=reserve),
        Part(kind="free", name="free", bytes=free),
    ]


def _below(plan: Plan, width: int) -> Iterator[Text]:
    """What is to be known beside the services."""
    if older := [c for c in plan.changes if c.newer]:
        yield from wrapped(
            "Some of what stays would be started in another way: homelab deploy --upgrade", width
        )
        for c in older:
            yield from wrapped(f"{c.service} on {c.node}: {c.newer}", width, first="  ", rest="    ")
    for u in plan.layout.unplaced:
        name = Text.assemble((f"! {u.model}", "bold red"), f"  {u.reason}")
        yield from wrapped(name, width, rest="    ")
        if u.unreachable:  # it waits; what does not fit is an error of its own, with all that was tried
            for line in u.details if len(u.details) > 1 else ():
                yield from wrapped(line, width, first="    ", rest="      ")
    for p in plan.layout:
        speed = (plan.speeds or {}).get((p.node, p.service))
        if speed is not None and speed.slow and not p.kept:
            said = Text.assemble(("slow", "yellow"), f"  {p.service} on {p.node}: {speed.slow}")
            yield from wrapped(said, width, rest="  ")
    if plan.layout.gap is not None:
        yield from wrapped(plan.layout.proof, width)
    for left in plan.leftovers:
        size = f", {gib(left.what.bytes)} GiB" if left.what.bytes else ""
        what = f"left over on {left.node}: {left.what.kind}{size}"
        yield from wrapped(f"{what}  {left.what.paths[0]}  (homelab deploy takes it away)", width, rest="  ")
    for node, services in plan.gone.items():
        yield from wrapped(left_behind(node, services), width, rest="  ")


def left_behind(node: str, services: Sequence[str]) -> str:
    """What is known of a node that is not in the inventory any more."""
    return (
        f"{node} is not in the inventory any more: {counted(len(services), 'service')} of this cluster ran "
        f"there when it last answered ({', '.join(services)}). Put it back and take them off with "
        "homelab remove"
    )


def summary(plan: Plan, inventory: Inventory, width: int) -> list[Text]:
    """`+ 2 create · ~ 1 replace on 2 nodes · no prompt can leave the house`."""
    counts = {
        a: sum(c.action == a for c in plan.todo) for a in ("create", "replace", "restart", "move", "remove")
    }
    parts = [f"{MARKS[a][0]} {n} {a}" for a, n in counts.items() if n]
    nodes = counted(len({c.node for c in plan.todo}), "node")
    nothing = "Nothing can be changed" if plan.layout.unplaced else "Everything is up to date"
    said = [" · ".join(parts) + f" on {nodes}" if parts else nothing]
    if short := dict.fromkeys(u.model for u in plan.layout.unplaced if not u.unreachable):
        said = [f"Nothing will be changed as long as there is no place for {', '.join(short)}"]
    elif plan.layout.unplaced:
        said.append(f"{counted(len(plan.layout.unplaced), 'instance')} without a place")
    out = routes.ways_out(inventory)
    said.append("prompts can leave the house:" if out else "no prompt can leave the house")
    lines = wrapped(" · ".join(said), width, rest="  ")
    return lines + [line for way in out for line in wrapped(way, width, first="  ", rest="    ")]
