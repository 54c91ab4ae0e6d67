"""What is known to break when models are run, as data: when a rule holds, what it sets, refuses or says, why,
and who saw it. Pure; the engines apply it, and plans show the reasons."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab.models.shape import ModelShape

Args = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`holds` for a model, the depth of its own speculation and canonical arguments. `sets` gives way to the
    user's arguments of the same name and to those in `unless`; `refuses` says what to write instead; what
    does neither is only said."""

    engine: str
    holds: Callable[[ModelShape, int, Args], bool]
    why: str
    source: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    unless: frozenset[str] = frozenset()
    refuses: str = ""


def drafts_of(args: Args) -> int:
    """The depth that vLLM's `speculative-config` in canonical arguments asks of the model's own prediction
    layers; 0 for another method."""
    written = _speculation(args)
    method, depth = written.get("method"), written.get("num_speculative_tokens")
    return depth if isinstance(depth, int) and str(method).endswith("mtp") and "model" not in written else 0


def _speculation(args: Args) -> Mapping[str, Any]:
    try:
        found = json.loads(str(args.get("speculative-config")))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _ngram(shape: ModelShape, drafts: int, args: Args) -> bool:
    written = _speculation(args)
    least = written.get("prompt_lookup_min", 1)  # vLLM 0.33, `config/speculative.py`: defaults to 1
    return written.get("method") in ("ngram", "[ngram]", "ngram_gpu") and isinstance(least, int) and least < 8


def _coarse_cache(shape: ModelShape, drafts: int, args: Args) -> bool:
    return any(re.fullmatch(r"i?q4_\w+", str(args.get(f"cache-type-{which}", ""))) for which in "kv")


RULES = (
    Rule(
        engine="vllm",
        holds=lambda shape, drafts, args: shape.hybrid and drafts > 0,
        sets={"no-enable-prefix-caching": True},
        unless=frozenset({"enable-prefix-caching"}),
        why="prefix caching is off: with MTP it spoils the states of hybrids, and tool calls get lost",
        source="vllm-project/vllm#43559; no release is known to have its fix",
    ),
    Rule(
        engine="vllm",
        holds=lambda shape, drafts, args: drafts > 0,
        why="with MTP, streamed answers to `tool_choice: required` may lose calls; `auto` does not",
        source="vllm-project/vllm#39598",
    ),
    Rule(
        engine="vllm",
        holds=_ngram,
        why="n-gram speculation with `prompt_lookup_min` below 8 spoils tool calls: write 8",
        source="vllm-project/vllm#40875",
    ),
    Rule(
        engine="llamacpp",
        holds=lambda shape, drafts, args: shape.mtp_layers > 0 and args.get("split-mode") == "tensor",
        refuses="llama.cpp crashes with `split-mode: tensor` on models with prediction layers: leave it out",
        why="",
        source="ggml-org/llama.cpp#24309",
    ),
    Rule(
        engine="llamacpp",
        holds=_coarse_cache,
        why="a 4-bit KV cache is good for chat; for tools take q8_0, for arguments get wrong",
        source="noonghunna/club-3090, FAQ",
    ),
)


def settings(engine: str, shape: ModelShape, drafts: int, args: Args) -> dict[str, Any]:
    """Arguments that rules set, without what the user wrote."""
    out: dict[str, Any] = {}
    for rule in _holding(engine, shape, drafts, args):
        if not rule.unless & set(args):
            out |= {name: value for name, value in rule.sets.items() if name not in args}
    return out


def refusal(engine: str, shape: ModelShape, drafts: int, args: Args) -> str:
    """Why it cannot be run so; empty where nothing is known against it."""
    return next((r.refuses for r in _holding(engine, shape, drafts, args) if r.refuses), "")


def reasons(engine: str, shape: ModelShape, drafts: int, args: Args) -> Iterator[str]:
    """What rules say of it, each with its source. A setting that the user has overruled is not said."""
    for rule in _holding(engine, shape, drafts, args):
        if rule.why and not rule.unless & set(args):
            yield f"{rule.why} ({rule.source})"


def _holding(engine: str, shape: ModelShape, drafts: int, args: Args) -> Iterator[Rule]:
    return (rule for rule in RULES if rule.engine == engine and rule.holds(shape, drafts, args))


# Where no recipe says more: what unsloth.ai/docs/models/mtp.md starts with.
DRAFTS = 2


def drafts_for(engine: str, shape: ModelShape, wanted: int | str, args: Args, advised: int | None) -> int:
    """The depth of speculation that `speculative` in an inventory comes to: `advised` by a recipe for `auto`.

    Raises ValueError where a number is asked of a model that has no prediction layers, or of one that must
    not speculate with these arguments."""
    if wanted == "off":
        return 0
    if shape.mtp_layers == 0:
        if wanted == "auto":
            return 0
        raise ValueError(
            f"`speculative: {wanted}` needs prediction layers (MTP), and these files have none: write `off`, "
            "or name a source that has them"
        )
    depth = (advised or DRAFTS) if wanted == "auto" else int(wanted)
    depth -= depth % shape.mtp_layers if wanted == "auto" and depth > shape.mtp_layers else 0
    # vLLM 0.33, `config/speculative.py`: more than the layers there are must be a multiple of them.
    if engine == "vllm" and depth > shape.mtp_layers and depth % shape.mtp_layers:
        raise ValueError(
            f"`speculative: {depth}` is no multiple of the model's {shape.mtp_layers} prediction layers"
        )
    if refused := refusal(engine, shape, depth, args):
        if wanted == "auto":
            return 0
        raise ValueError(refused)
    return depth
