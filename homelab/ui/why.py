"""Why a model is where it is, what it takes there, why it is not elsewhere, and what would change that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from homelab.placement import Placement
from homelab.plan import Change, Plan
from homelab.speed import Speed
from homelab.ui.cells import GIB, clip_middle, gib, tokens, wrapped

GRADES = {"exact": "", "bounded": "at most", "empirical": "from experience", "measured": "measured"}
# What says no more than that a model was never meant for a place.
NEVER_MEANT = "does not run on"


def lines(plan: Plan, model: str, width: int) -> list[Text]:
    """The answer of `homelab why`, from a plan, in lines of at most `width` cells."""
    out: list[Text] = []
    mine = [p for p in plan.layout if p.model == model]
    for p in mine:
        out += [
            *_head(p, width),
            *_what_happens(_change_of(plan, p), width),
            *because(plan, p, width),
            Text(),
        ]
    for u in (u for u in plan.layout.unplaced if u.model == model):
        out += wrapped(Text.assemble((model, "bold"), f"  {u.reason}"), width, rest="  ")
    if plan.layout.explains is not None and any(u.model == model for u in plan.layout.unplaced):
        if model != "gateway":
            found = plan.layout.explains.missing(model)
            out += _section("Why not there", grouped(found.elsewhere), width, 0)
            out += _section("What would change it", grouped(found.change), width, 0)
        out.append(Text())
    others = [
        c for c in plan.changes if model in _names(c) and c.place not in {(p.node, p.service) for p in mine}
    ]
    for c in others:
        head = Text.assemble((c.service, "bold"), f" on {c.node}")
        out += [*wrapped(head, width), *_what_happens(c, width), Text()]
    return out


def _names(change: Change) -> set[str]:
    names = {change.service}
    for s in change.actual:
        names |= set(s.serves) if s.role == "engine" else {s.role}
    if change.wanted is not None:
        names |= set(change.wanted.unit.serves) if change.wanted.role == "engine" else {change.wanted.role}
    return names


def _change_of(plan: Plan, p: Placement) -> Change | None:
    return next((c for c in plan.changes if c.place == (p.node, p.service)), None)


def short_name(device: str) -> str:
    """A card's name without what all of them have in common."""
    return device.removeprefix("NVIDIA ").removeprefix("GeForce ")


def engine_of(p: Placement) -> str:
    """`vllm AWQ`, `llamacpp Q4_K_M`; without the quantisation where it is not known."""
    quantization = p.quantization.upper() if len(p.quantization) <= 5 else p.quantization
    return f"{p.engine} {quantization}".rstrip()


def _head(p: Placement, width: int) -> list[Text]:
    each = " on each" if p.device.count > 1 else ""
    numbers = f"{p.request.context} × {p.request.concurrency}, {gib(p.bytes)} GiB{each}"
    if p.gpu_memory_utilization is not None:
        numbers += f", gpu-memory-utilization {p.gpu_memory_utilization:.3f}"
    several = f"{p.device.count} × " if p.device.count > 1 else ""
    title = Text.assemble((p.service, "bold"), f" on {p.node}, {several}{short_name(p.device.name)}")
    return [
        *wrapped(title, width, rest="  "),
        *wrapped(f"{engine_of(p)}, {numbers}", width, first="  ", rest="  "),
        Text(f"  {clip_middle(p.source, width - 2)}", "dim"),
    ]


def _what_happens(change: Change | None, width: int) -> list[Text]:
    if change is None:
        return []
    said = [] if change.action == "keep" else [f"{change.action}: {change.reason}"]
    said += [f"blocked: {change.blocked}"] if change.blocked else []
    said += [f"homelab deploy --upgrade would change it: {change.newer}"] if change.newer else []
    return _section("What happens", said or ["nothing: it stays as it is"], width, 0)


def because(plan: Plan, p: Placement, width: int, *, indent: int = 0) -> list[Text]:
    """What one instance takes, why it is here, why not there, and what would change it."""
    found = plan.layout.explains.because(p) if plan.layout.explains is not None else None
    out = _section("What it takes, in GiB", list(_terms(p)), width, indent)
    if plan.speeds is not None:
        speed = plan.speeds.get((p.node, p.service))
        told = ["not known for this card, engine or model"] if speed is None else list(speeds(speed))
        out += _section("How fast", told, width, indent)
    if found is None:
        return out + _section("Why here", [p.reason], width, indent)
    out += _section("Why here", found.here, width, indent)
    out += _section("Why not there", grouped(found.elsewhere), width, indent)
    return out + _section("What would change it", grouped(found.change), width, indent)


def speeds(speed: Speed) -> Iterator[str]:
    """How fast it will be, in lines: what is said, what is read, what is only assumed, what is too slow."""
    empty = f", {per_second(speed.decode_empty_tokens_per_s)} with an empty one"
    yield (
        f"about {per_second(speed.decode_tokens_per_s)} tokens/s with a full context{empty} "
        f"(±{speed.spread:.0%})"
    )
    seconds = speed.prompt_seconds(speed.context)
    if seconds is not None and speed.prefill_spread is not None:
        yield (
            f"a prompt of {tokens(speed.context)} tokens takes {duration(seconds)} to be read "
            f"(±{speed.prefill_spread:.0%})"
        )
    if speed.assumed:
        yield f"assumed: {', '.join(speed.assumed)}"
    if speed.slow:
        yield f"slow: {speed.slow}"


def per_second(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def duration(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} minutes"


def _terms(p: Placement) -> Iterable[str]:
    """The summands, each with how sure it is."""
    shown = [t for t in p.footprint.terms if t.bytes]
    widest = max((len(t.name) for t in shown), default=0)
    places = {"device": "", "context": "outside the engine's budget", "host": "RAM"}
    for t in shown:
        about = ", ".join(word for word in (places.get(t.where), GRADES.get(t.grade, t.grade)) if word)
        yield f"{t.name:<{widest}}  {t.bytes / GIB:6.2f}  {about}".rstrip()


def grouped(found: Sequence[str]) -> list[str]:
    """Lines as `place: why`: those with the same reason in one, without those that could never have been
    meant."""
    places: dict[str, list[str]] = {}
    # Where nothing else is to be said, it is the reason.
    meant = [line for line in found if NEVER_MEANT not in line] or found
    for line in meant:
        place, colon, why = line.partition(": ")
        if colon:
            places.setdefault(why, []).append(place)
        else:
            places.setdefault(line, [])
    return [f"{', '.join(there)}: {why}" if there else why for why, there in places.items()]


def _section(title: str, said: Sequence[str], width: int, indent: int) -> list[Text]:
    if not said:
        return []
    out = [Text(" " * indent).append(title, "cyan")]
    for line in said:
        out += wrapped(line, width, first=" " * (indent + 2), rest=" " * (indent + 4))
    return out
