"""What an agent will do, as proofs: each asks a model through the gateway and judges what came back. Pure: a
proof is a generator that yields what is to be asked, is sent the answers, and returns its verdict."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from homelab.proofs.wire import (
    PROTOCOLS,
    Answer,
    Ask,
    Call,
    Protocol,
    Results,
    Tool,
    replayed_without_thoughts,
)

# `broken`: the protocol does not work. `model`: it works, and this model did not do what it was told.
# `lacks`: the engine or the gateway is known not to have it, whatever the model. `unknown`: nobody says.
# `skipped`: there is nothing to be proven.
Outcome = Literal["works", "model", "broken", "lacks", "unknown", "skipped"]
# What is wrong, as `mends.py` knows it.
Fault = Literal[
    "",
    "refused",
    "silent",
    "stream",
    "call-as-text",
    "thoughts-as-text",
    "empty-arguments",
    "bad-arguments",
    "text-arguments",
    "no-thoughts",
    "schema-ignored",
    "choice-ignored",
    "tools-unread",
    "count",
    "not-cached",
    "cache-untold",
    "no-error",
    "wrong-error",
]
# With these a second try may go otherwise: what a model samples is in them.
SAMPLED: frozenset[Fault] = frozenset({"call-as-text", "empty-arguments", "bad-arguments", "text-arguments"})
CACHED_SHARE = 0.9
COUNT_ERROR = 0.2
NEAR_SHARE = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model as it is served. `ids` are its deployments by LiteLLM's names; `context` is the least that one
    of them serves, None where nobody knows; `image` and `args` are those of its engine."""

    name: str
    context: int | None = None
    ids: frozenset[str] = frozenset()
    engine: str = ""
    source: str = ""
    image: str = ""
    args: Mapping[str, Any] | None = None

    @property
    def answer_tokens(self) -> int:
        """The longest answer that is asked for: a model that thinks needs room, and some contexts are
        small."""
        return 1024 if self.context is None else max(min(2048, self.context // 4), 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    outcome: Outcome
    why: str = ""
    fault: Fault = ""
    thought: bool = False


Script = Generator[Ask, Answer, Verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """`what` ends the sentence `It is asked …`."""

    name: str
    what: str
    script: Callable[[Subject, Protocol], Script]
    protocols: tuple[Protocol, ...] = PROTOCOLS


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`mend` is what to change, where that is known. `tries` is 2 where the first one failed by what was
    sampled."""

    model: str
    proof: str
    protocol: Protocol
    verdict: Verdict
    mend: str = ""
    seconds: float = 0.0
    tries: int = 1


WEATHER = Tool(
    name="get_weather",
    description="The weather of a city now.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The city's name."}},
        "required": ["city"],
    },
)
EVENT = Tool(
    name="create_event",
    description="Put an event into the calendar.",
    parameters={
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "when": {
                "type": "object",
                "properties": {"day": {"type": "string"}, "hour": {"type": "integer"}},
                "required": ["day", "hour"],
            },
            "guests": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "role": {"type": "string"}},
                    "required": ["name"],
                },
            },
        },
        "required": ["title", "when", "guests"],
    },
)
PAGE = Tool(
    name="read_page",
    description="The text of one page of the book.",
    parameters={
        "type": "object",
        "properties": {"number": {"type": "integer", "description": "The page's number."}},
        "required": ["number"],
    },
)
PAGES, WORD = 4, "quokka"
SEA = {
    "type": "object",
    "properties": {"colour": {"type": "string"}, "depth_metres": {"type": "integer"}},
    "required": ["colour", "depth_metres"],
    "additionalProperties": False,
}
# How a call looks that no parser has taken out of the text: of Hermes and Qwen, Qwen3-Coder, Mistral, Llama,
# DeepSeek, Gemma, GLM, harmony.
CALL_AS_TEXT = re.compile(
    r"<tool_call>|<function=|\[TOOL_CALLS\]|<\|python_tag\|>|<｜tool▁calls?▁begin｜>|<\|tool_call>|"
    r"<arg_key>|<\|channel\|>commentary|```tool_(?:call|code)|<minimax:tool_call>"
)
THOUGHTS_AS_TEXT = re.compile(r"</?think>|</?seed:think>|\[THINK\]|<\|channel\|?>(?:analysis|thought)")
# What servers say of a prompt that is too long: vLLM, llama.cpp, LiteLLM, OpenAI, Anthropic.
TOO_LONG = re.compile(
    r"context length|context size|context window|context_length|exceeds? .{0,40}context|too long|"
    r"too many tokens|"
    r"max_input_tokens|maximum model length",
    re.IGNORECASE | re.DOTALL,
)


def proofs() -> tuple[Proof, ...]:
    """All of them, in the order in which they are tried: the cheap ones first."""
    return (
        Proof(name="plain", what="for one word", script=_plain),
        Proof(name="one call", what="to call a tool", script=_one_call),
        Proof(name="two calls", what="to call a tool for two cities at once", script=_two_calls),
        Proof(name="nested arguments", what="for a call with objects in its arguments", script=_nested),
        Proof(name="five turns", what="to read four pages, each of which names the next", script=_five_turns),
        Proof(name="thinking replay", what="to think, call, and go on from both", script=_thinking),
        Proof(name="tool required", what="a question with `tool_choice` required", script=_required),
        Proof(name="JSON schema", what="a question whose answer a schema holds to JSON", script=_schema),
        Proof(
            name="count_tokens",
            what="how many tokens a prompt has",
            script=_count,
            protocols=("messages",),
        ),
        Proof(name="prompt cache", what="the same long prompt twice", script=_cache),
        Proof(
            name="near the context", what="a prompt that fills the context", script=_near, protocols=("chat",)
        ),
        Proof(name="over the context", what="a prompt that is longer than the context", script=_over),
    )


def may_be_sampled(verdict: Verdict) -> bool:
    """Whether another sample could go otherwise."""
    return verdict.outcome == "model" or verdict.fault in SAMPLED


def judged(results: Sequence[Result]) -> tuple[Result, ...]:
    """The results of one model, looked at together: who thinks in one protocol and has no thoughts in another
    loses them there."""
    name = "thinking replay"
    thinks = {r.protocol for r in results if r.proof == name and r.verdict.thought}
    out = []
    for result in results:
        lost = result.proof == name and result.verdict.outcome == "skipped" and thinks
        if lost and result.verdict.fault == "no-thoughts":
            why = f"no thoughts came, and by {TITLES[min(thinks)]} they do"
            out.append(replace(result, verdict=replace(result.verdict, outcome="broken", why=why)))
        else:
            out.append(result)
    return tuple(out)


TITLES: dict[Protocol, str] = {
    "chat": "chat completions",
    "messages": "Anthropic messages",
    "responses": "responses",
}


def is_well(results: Sequence[Result]) -> bool:
    """Whether nothing is broken, and nothing was left undone."""
    return not any(r.verdict.outcome in ("broken", "model") for r in results)


# Scripts.


def _plain(subject: Subject, protocol: Protocol) -> Script:
    answer = yield Ask(
        turns=("Reply with this one word and nothing else: pineapple",), max_tokens=subject.answer_tokens
    )
    return _failed(answer) or _silent(answer) or _works()


def _one_call(subject: Subject, protocol: Protocol) -> Script:
    ask = Ask(
        turns=("What is the weather in Paris? Call the tool get_weather.",),
        tools=(WEATHER,),
        max_tokens=subject.answer_tokens,
    )
    answer = yield ask
    bad = _failed(answer) or _called(answer, WEATHER)
    if bad is not None and bad.outcome == "model" and not answer.calls and answer.usage:
        # A chat template without a place for tools drops them in silence.
        without = yield replace(ask, tools=(), max_tokens=16)
        if without.status == 200 and without.usage and without.usage.prompt == answer.usage.prompt:
            return _broken(
                "tools-unread", "tools do not reach it: the prompt has as many tokens without them"
            )
    return bad or _city(answer.calls[0], "paris") or _works()


def _two_calls(subject: Subject, protocol: Protocol) -> Script:
    answer = yield Ask(
        turns=(
            (
                "What is the weather in Paris and in Oslo? Call the tool get_weather twice, once for each "
                "city, both calls in the same answer."
            ),
        ),
        tools=(WEATHER,),
        max_tokens=subject.answer_tokens,
    )
    bad = _failed(answer) or _called(answer, WEATHER)
    if bad is not None:
        return bad
    if len(answer.calls) < 2:
        return _model("it made one call, not two at once")
    if len({c.id for c in answer.calls}) < len(answer.calls):
        return _broken("stream", "two calls have the same id")
    cities = ("paris", "oslo")
    asked = sorted(answer.calls, key=lambda c: "oslo" in c.arguments.lower())
    for call, city in zip(asked[:2], cities, strict=True):
        if (bad := _city(call, city)) is not None:
            return bad
    return _works()


def _nested(subject: Subject, protocol: Protocol) -> Script:
    answer = yield Ask(
        turns=(
            (
                "Create an event with the tool create_event: title Dinner, on Friday at 19, guests Ada "
                "(host) and Grace (friend)."
            ),
        ),
        tools=(EVENT,),
        max_tokens=subject.answer_tokens,
    )
    bad = _failed(answer) or _called(answer, EVENT)
    if bad is not None:
        return bad
    values = answer.calls[0].values
    for name, kind, word in (("when", dict, "an object"), ("guests", list, "a list")):
        given = values.get(name)
        if isinstance(given, str) and isinstance(Call(id="", name="", arguments=given).values, kind):
            return _broken("text-arguments", f"`{name}` is text with JSON in it, not {word}")
        if not isinstance(given, kind):
            return _model(f"`{name}` is not {word}: {answer.calls[0].arguments[:200]}")
    if not all(isinstance(g, dict) and g for g in values["guests"]) or not values["guests"]:
        return _model(f"`guests` is no list of objects: {answer.calls[0].arguments[:200]}")
    return _works()


def _five_turns(subject: Subject, protocol: Protocol) -> Script:
    turns: list[Any] = [
        (
            f"A book has pages 1 to {PAGES}. Read them with the tool read_page, one at a time, beginning "
            "with page 1: each page names the next one. Then say the word that stands on the last page."
        )
    ]
    rounds = 0
    for _ in range(PAGES + 3):
        answer = yield Ask(turns=tuple(turns), tools=(PAGE,), max_tokens=subject.answer_tokens)
        if (bad := _failed(answer)) is not None:
            return replace(bad, why=f"turn {rounds + 1}: {bad.why}")
        if not answer.calls:
            break
        if (bad := _called(answer, PAGE)) is not None:
            return replace(bad, why=f"turn {rounds + 1}: {bad.why}")
        rounds += 1
        turns += [answer, Results(by_id=tuple((c.id, _page(c.values.get("number"))) for c in answer.calls))]
    else:
        return _model(f"it read on after the last page, {rounds} times in all")
    if rounds < 2:
        return _model(f"it stopped reading after {rounds} calls: {answer.text.strip()[:120]!r}")
    if WORD not in answer.text.lower():
        return _silent(answer) or _model(
            f"after {rounds} calls it did not say the word: {answer.text.strip()[:120]!r}"
        )
    return _works("" if rounds >= PAGES else f"in {rounds + 1} turns")


def _page(number: Any) -> str:
    if number in range(1, PAGES):
        return f"This is page {number}. Read page {number + 1} next."
    if number == PAGES:
        return f"This is the last page. The word is: {WORD}"
    return f"There is no such page. There are pages 1 to {PAGES}."


def _thinking(subject: Subject, protocol: Protocol) -> Script:
    question = (
        "I am under the Eiffel Tower: do I need an umbrella? Think about which city that is, then call the "
        "tool get_weather."
    )
    first = Ask(
        turns=(question,),
        tools=(WEATHER,),
        max_tokens=subject.answer_tokens,
        think=True,
        temperature=None,
    )
    answer = yield first
    bad = _failed(answer)
    if bad is not None:
        return bad
    if not answer.thoughts.strip():
        return Verdict(outcome="skipped", why="it does not think", fault="no-thoughts")
    if (bad := _called(answer, WEATHER)) is not None:
        return replace(bad, thought=True)
    if protocol == "messages" and not any("signature" in b for b in answer.replay if b["type"] == "thinking"):
        note = "its thoughts have no signature"
    else:
        note = ""
    results = Results(by_id=tuple((c.id, "Rain until the evening, 11 °C.") for c in answer.calls))
    again = yield replace(first, turns=(*first.turns, answer, results))
    if (bad := _failed(again) or _silent(again)) is not None:
        return replace(bad, why=f"thoughts and the tool's result sent back: {bad.why}", thought=True)
    # Whether thoughts reach the model shows in the tokens of the prompt.
    bare = replace(answer, replay=tuple(replayed_without_thoughts(protocol, answer)))
    without = yield replace(first, turns=(*first.turns, bare, results), max_tokens=64)
    if without.status == 200 and again.usage and without.usage and again.usage.prompt == without.usage.prompt:
        note = "its thoughts do not come back to it: the prompt has as many tokens without them"
    return replace(_works(note), thought=True)


def _required(subject: Subject, protocol: Protocol) -> Script:
    answer = yield Ask(
        turns=("Hello! Is it nice outside in Paris?",),
        tools=(WEATHER,),
        must_call=True,
        max_tokens=subject.answer_tokens,
    )
    bad = _failed(answer)
    if bad is None and not answer.calls and answer.text.strip():
        said = answer.text.strip()[:120]
        return _broken("choice-ignored", f"`tool_choice` required, and it answered text: {said!r}")
    return bad or _called(answer, WEATHER) or _works()


def _schema(subject: Subject, protocol: Protocol) -> Script:
    answer = yield Ask(
        turns=("Tell me of the sea in one sentence: its colour and how deep it is in metres.",),
        schema=SEA,
        max_tokens=subject.answer_tokens,
    )
    bad = _failed(answer) or _silent(answer)
    if bad is not None:
        return bad
    values = Call(id="", name="", arguments=answer.text.strip()).values
    if values is None and answer.ended == "length":
        return _model(f"its JSON was cut at {subject.answer_tokens} tokens")
    if values is None:
        return _broken("schema-ignored", f"the answer is no JSON: {answer.text.strip()[:120]!r}")
    right = {"colour": str, "depth_metres": int}
    if (
        not isinstance(values, dict)
        or set(values) != set(right)
        or not all(isinstance(values[k], t) for k, t in right.items())
    ):
        return _broken(
            "schema-ignored", f"the answer is not as the schema has it: {answer.text.strip()[:120]}"
        )
    return _works()


def _count(subject: Subject, protocol: Protocol) -> Script:
    lines = 60 if subject.context is None else max(min(60, subject.context // 40), 4)
    ask = Ask(turns=(_lines(lines),), tools=(WEATHER, EVENT), max_tokens=64)
    said = yield replace(ask, counts=True)
    if (bad := _failed(said)) is not None:
        return bad
    if said.usage is None:
        return _broken("count", "the answer has no `input_tokens`")
    real = yield ask
    if (bad := _failed(real)) is not None:
        return bad
    if real.usage is None or real.usage.prompt <= 0:
        return Verdict(outcome="unknown", why=f"{said.usage.prompt} tokens, and the answer does not tell")
    off = said.usage.prompt / real.usage.prompt - 1
    why = f"{said.usage.prompt} tokens, the prompt has {real.usage.prompt} ({off:+.0%})"
    return _works(why) if abs(off) <= COUNT_ERROR else _broken("count", why)


def _cache(subject: Subject, protocol: Protocol) -> Script:
    room = subject.context // 2 if subject.context else 4096
    # A line has some 17 tokens.
    lines = max(min(room, 4096) // 17, 8)
    ask = Ask(turns=(_lines(lines) + "\nSay: done",), max_tokens=16)
    first = yield ask
    if (bad := _failed(first)) is not None:
        return bad
    again = yield ask
    if (bad := _failed(again)) is not None:
        return bad
    usage = again.usage
    if (
        usage is None
        or usage.cached is None
        or (not usage.cached and not (first.usage and first.usage.cached))
    ):
        quicker = _quicker(first, again)
        if usage is not None and usage.cached == 0 and not quicker:
            return _broken("not-cached", f"none of {usage.prompt} tokens were cached the second time")
        return Verdict(outcome="unknown", why=f"nobody tells of cached tokens{quicker}", fault="cache-untold")
    share = usage.cached / max(usage.prompt, 1)
    why = f"{usage.cached} of {usage.prompt} tokens were cached the second time ({share:.0%})"
    return _works(why) if share > CACHED_SHARE else _broken("not-cached", why)


def _quicker(first: Answer, again: Answer) -> str:
    before, after = first.first_seconds, again.first_seconds
    if before is None or after is None or after * 3 > before:
        return ""
    return f"; the first one came after {before:.2f} s, then after {after:.2f} s"


def _near(subject: Subject, protocol: Protocol) -> Script:
    if subject.context is None:
        return Verdict(outcome="skipped", why="its context is not known")
    length = yield from _length(subject)
    if isinstance(length, Verdict):
        return length
    base, per_line = length
    room = min(subject.answer_tokens, subject.context // 8)
    lines = int((subject.context * 0.98 - room - base) / per_line)
    answer = yield Ask(turns=(_lines(lines),), max_tokens=room)
    if (bad := _failed(answer)) is not None:
        return bad
    if answer.usage is None:
        return _works("how many tokens it read is not told")
    read = f"{answer.usage.prompt} of {subject.context} tokens"
    if answer.usage.prompt < NEAR_SHARE * (base + lines * per_line):
        return _broken("no-error", f"it read {read} only: the prompt was cut without a word")
    return _works(read)


def _over(subject: Subject, protocol: Protocol) -> Script:
    if subject.context is None:
        return Verdict(outcome="skipped", why="its context is not known")
    # Such a prompt is refused before it is read; short words are at least a token each.
    answer = yield Ask(turns=("a " * int(subject.context * 1.5),), max_tokens=16)
    if answer.status == 200 and not answer.error:
        if (bad := _failed(answer)) is not None:
            return bad
        if answer.served_by and answer.served_by not in subject.ids:
            return _works(f"{answer.served_by} answered, which reads more")
        return _broken("no-error", "it answered, though the prompt is longer than its context: it was cut")
    said = answer.error.strip()
    if answer.status in (400, 413) and TOO_LONG.search(said):
        return _works("refused, in words that clients know")
    if answer.status == 0:
        return _failed(answer) or _works()
    return _broken(
        "wrong-error", f"HTTP {answer.status}, which clients do not take for a long prompt: {said[:300]}"
    )


def _length(subject: Subject) -> Generator[Ask, Answer, Verdict | tuple[float, float]]:
    """How many tokens a prompt of no lines has, and a line."""
    assert subject.context is not None
    many = max(min(120, subject.context // 80), 4)
    seen = []
    for lines in (many // 2, many):
        answer = yield Ask(turns=(_lines(lines),), max_tokens=16)
        if (bad := _failed(answer)) is not None:
            return bad
        if answer.usage is None or answer.usage.prompt <= 0:
            return Verdict(outcome="unknown", why="nobody tells how many tokens a prompt has")
        seen.append((lines, answer.usage.prompt))
    (few, less), (more, most) = seen
    per_line = max((most - less) / (more - few), 1.0)
    return most - more * per_line, per_line


def _lines(count: int) -> str:
    """Text of some length, none of whose lines is another one."""
    return "\n".join(
        f"Entry {n}: shelf {n * 7 % 97}, box {n * 13 % 89}, nothing to report." for n in range(count)
    )


# What is wrong with an answer, whatever it should have been; None where nothing is.


def _works(why: str = "") -> Verdict:
    return Verdict(outcome="works", why=why)


def _model(why: str) -> Verdict:
    return Verdict(outcome="model", why=why)


def _broken(fault: Fault, why: str) -> Verdict:
    return Verdict(outcome="broken", why=why, fault=fault)


def _failed(answer: Answer) -> Verdict | None:
    if answer.status == 0:
        return _broken("silent", answer.error)
    if answer.status != 200:
        return _broken("refused", f"HTTP {answer.status}: {answer.error}")
    if answer.error:
        return _broken("refused", f"in the middle of the stream: {answer.error}")
    if answer.broken:
        return _broken("stream", answer.broken)
    if found := THOUGHTS_AS_TEXT.search(answer.text):
        return _broken("thoughts-as-text", f"its thoughts came as text: {_around(answer.text, found)}")
    return None


def _silent(answer: Answer) -> Verdict | None:
    if answer.text.strip():
        return None
    if answer.ended == "length":
        return _model("it came to no answer before its limit of tokens")
    return _model("it said nothing" + (" but its thoughts" if answer.thoughts else ""))


def _called(answer: Answer, tool: Tool) -> Verdict | None:
    """What is wrong with the calls, all of which should be of that tool."""
    if not answer.calls:
        if found := CALL_AS_TEXT.search(answer.text) or re.search(
            rf'"name"\s*:\s*"{tool.name}"', answer.text
        ):
            return _broken("call-as-text", f"its call came as text: {_around(answer.text, found)}")
        return _silent(answer) or _model(f"it did not call: {answer.text.strip()[:120]!r}")
    for call in answer.calls:
        if call.name != tool.name:
            return _model(f"it called `{call.name}`, which is no tool here")
        values = call.values
        if answer.ended == "length" and not isinstance(values, dict):
            return _model("its call was cut at its limit of tokens")
        if not call.arguments.strip() or values == {}:
            return _broken("empty-arguments", f"a call of `{call.name}` came with empty arguments")
        if not isinstance(values, dict):
            return _broken(
                "bad-arguments", f"arguments of `{call.name}` are no JSON object: {call.arguments[:160]}"
            )
        lacks = [k for k in tool.parameters["required"] if k not in values]
        if lacks:
            return _model(f"its call lacks `{lacks[0]}`: {call.arguments[:160]}")
    return None


def _city(call: Call, city: str) -> Verdict | None:
    if city in str(call.values.get("city")).lower():
        return None
    return _model(f"it called for another city than {city.title()}: {call.arguments[:160]}")


def _around(text: str, found: re.Match[str]) -> str:
    begin = max(found.start() - 20, 0)
    return repr(text[begin : begin + 120])
