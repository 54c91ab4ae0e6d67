"""What a house should run: which models, in which weights, with how much context and where, by how good they
are (published scores), how fast they will be, and whether they fit. Pure.

A choice is made with the planner's own arithmetic and then planned whole, so that what is suggested is what
`homelab plan` would place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

import yaml

from homelab.cards import Cards
from homelab.errors import InventoryError
from homelab.facts import Survey, Weights
from homelab.inventory import Context, Inventory, Model, Variant
from homelab.models.catalog import Entry
from homelab.models.catalog import Variant as CatalogVariant
from homelab.models.recipes import Recipes
from homelab.models.scores import Score
from homelab.models.shape import ModelShape
from homelab.placement import Layout, Placement, Slot, place
from homelab.placement.candidates import Candidates, too_large
from homelab.placement.devices import names_of
from homelab.speed import RAM_GB_PER_S, SLOW_PROMPT_S, SLOW_TOKENS_PER_S, Speed, bytes_of_a_token, predict

PURPOSES = ("coding", "chat", "agents", "embedding")
USUAL = ("coding", "chat", "embedding")  # where nobody says for what
# Tokens of one request: the least with which the purpose is served, what it is served well with, and the most
# that is asked for. An agent's own instructions are 15 000 to 25 000, and Claude Code warns below 48 000.
CONTEXTS = {
    "coding": (32768, 65536, 131072),
    "chat": (16384, 32768, 65536),
    "agents": (49152, 98304, 131072),
    "embedding": (2048, 2048, 8192),
}
# Whoever reads along reads 5 to 10 tokens/s; who waits for code wants more, and gains nothing beyond.
COMFORTABLE_TOKENS_PER_S = 20.0
# Published scores are of weights as they were trained. Four bits come near to them, less does not.
COARSE = re.compile(r"^(UD-)?I?Q[123]")
# An embedder stands beside the models that answer, and is not to take their place.
EMBEDDER_SHARE, EMBEDDER_BYTES = 0.1, 3 << 29
# Of each model so many of the largest weights that fit are looked at: smaller ones are faster. Of those that
# are nearly as large as the largest the fastest are taken.
SIZES, NEARLY = 4, 0.9
MOST_TRIES = 8
RUNNERS_UP = 4
# A second model is worth its memory where it is better than the first by more than this part.
BETTER = 1.05
# What an embedder may take of the others' speed.
SLOWER = 0.7
# Weights as they were trained. Eight bits come so near that what these would cost in speed buys nothing.
WHOLE, EIGHT_BITS = frozenset({"bf16", "F16", "BF16"}), frozenset({"fp8", "Q8_0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One model with the usual context of a purpose, else the least, in the weights and the place that suit
    it best there."""

    entry: Entry
    weights: str
    weights_bytes: int
    slot: Slot
    placement: Placement
    speed: Speed | None
    score: Score | None
    token_bytes: float = 0.0
    quality: float = 0.0

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def fast(self) -> float | None:
        """Tokens per second to choose by: predicted, or in RAM, of which nobody knows how fast it is, what an
        ordinary one would give."""
        if self.speed is not None:
            return self.speed.decode_tokens_per_s
        return RAM_GB_PER_S * 1e9 / self.token_bytes if self.token_bytes and not self.slot.gpus else None

    @property
    def value(self) -> float:
        """What it is worth for the purpose: its quality, less where it is slower than is comfortable."""
        share = min(1.0, (self.fast or COMFORTABLE_TOKENS_PER_S) / COMFORTABLE_TOKENS_PER_S)
        seconds = self.speed.prompt_seconds(self.speed.context) if self.speed else None
        return self.quality * share * min(1.0, SLOW_PROMPT_S / (seconds or SLOW_PROMPT_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A model that is suggested: for which purposes, and each instance of it with its speed."""

    name: str
    purposes: tuple[str, ...]
    weights: str
    model: Model
    scores: tuple[Score, ...]
    placements: tuple[tuple[Placement, Speed | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """The household. `others` are, by purpose, what would come next, by its score in one of `benchmarks`;
    `unscored` what fits too and has none; `missing` the purposes that nothing is suggested for, each with the
    reason; `beside` the models that the inventory has already, `without_place` those of them that found
    none."""

    picks: tuple[Pick, ...]
    layout: Layout
    others: Mapping[str, tuple[Option, ...]]
    missing: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    unscored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    benchmarks: Mapping[str, str] = field(default_factory=dict)
    without_place: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a suggestion is made from beside the house: the catalog, what was published of it, the cards."""

    entries: Mapping[str, Entry]
    scores: Mapping[str, tuple[Score, ...]]
    cards: Cards
    recipes: Recipes | None = None


def suggest(
    inventory: Inventory,
    survey: Survey,
    known: Known,
    purposes: Sequence[str] = USUAL,
    *,
    node: str | None = None,
) -> Suggestion:
    """The best household for these purposes, beside the models that the inventory has; on one node where one
    is named."""
    house = _House(inventory, survey, known, node)
    asked = list(dict.fromkeys(purposes))
    answering = [p for p in asked if p != "embedding"]
    if "embedding" not in asked or not answering:
        return _best_order(house, [], answering or asked).suggestion()
    # An embedder stands beside the others where that costs them nothing to speak of.
    without = _best_order(house, [], answering)
    beside = _best_order(house, ["embedding"], answering)
    if "embedding" in beside.missing:
        return beside.suggestion()
    for purpose in answering:
        worse = beside.value(purpose) * BETTER < without.value(purpose)
        slower = beside.fast(purpose) < SLOWER * without.fast(purpose)
        if worse or slower:
            mine, other = (search.serving.get(purpose) for search in (without, beside))
            instead = f"{other or 'nothing'} in place of {mine}" if other != mine else f"a slower {mine}"
            without.missing["embedding"] = f"beside it there would be {instead} for {purpose}"
            without.options["embedding"] = beside.options["embedding"]
            return without.suggestion()
    return beside.suggestion()


def _best_order(house: _House, first: Sequence[str], purposes: Sequence[str]) -> _Search:
    """Who is chosen first takes the room: of all orders the one with which all together are served best."""
    searches = [_Search(house).run([*first, *order]) for order in permutations(purposes)]
    most = {p: max(s.value(p) for s in searches) or 1.0 for p in purposes}
    best = max(searches, key=lambda s: sum(s.value(p) / most[p] for p in purposes))
    return best.filled(purposes)


class _House:
    """The machines, and every model of the catalog that could run on them."""

    def __init__(self, inventory: Inventory, survey: Survey, known: Known, node: str | None) -> None:
        self.inventory, self.known, self.node = inventory, known, node
        entries = {n: e for n, e in known.entries.items() if n not in inventory.models}
        slots = [s for s in Candidates(inventory, survey).slots if node in (None, s.node)]
        largest = max((s.free_bytes * s.device.count for s in slots), default=0)
        self.sizes = {name: able for name, entry in entries.items() if (able := _able(entry, largest))}
        self.entries = {n: entries[n] for n in self.sizes}
        headers = {
            v.source: Weights.model_construct(
                source=v.source, header=self.entries[n].document(v), bytes=size, present=False, path=None
            )
            for n, able in self.sizes.items()
            for size, v in able
        }
        self.survey = survey.model_copy(update={"models": {**headers, **survey.models}})
        models = {
            n: Model(
                variants=tuple(Variant(engine=v.engine, source=v.source) for _, v in able),
                kind=self.entries[n].kind,
                node=node,
            )
            for n, able in self.sizes.items()
        }
        self.candidates = Candidates(self.with_models(models), self.survey, known.recipes)
        self.slots = [s for s in self.candidates.slots if node in (None, s.node)]
        self.layout = place(inventory, self.survey, known.recipes)
        self._found: dict[tuple[object, ...], Option | None] = {}
        self.used = Counter[tuple[str, str]]()
        for p in self.layout:
            take(self.used, p)
        self._benchmarks: dict[str, str | None] = {}

    def with_models(self, models: Mapping[str, Model]) -> Inventory:
        return self.inventory.model_copy(update={"models": {**self.inventory.models, **models}})

    def score(self, name: str, purpose: str) -> Score | None:
        """A model's score in the benchmark that most of what fits here has one in, for only the same are
        compared."""
        common = self.benchmark(purpose)
        return next((s for s in self._scores(name, purpose) if s.benchmark == common), None)

    def judged(self, option: Option, purpose: str) -> Option:
        """An option with what is known of how good it is for a purpose. Who has no score for it is taken to
        be as good at it as whoever comes nearest to it at something else. An agent must write code as well
        as call tools."""
        quality = self._quality(option.name, purpose)
        if purpose == "agents":
            quality = (quality + self._quality(option.name, "coding")) / 2
        return replace(option, score=self.score(option.name, purpose), quality=quality)

    def _quality(self, name: str, purpose: str) -> float:
        if (own := self.score(name, purpose)) is not None:
            return own.value
        for other in (p for p in ("coding", "chat", "agents") if p != purpose and purpose != "embedding"):
            if (mine := self.score(name, other)) is None:
                continue
            both = [
                (abs(there.value - mine.value), here.value)
                for n in self.known.scores
                if (here := self.score(n, purpose)) and (there := self.score(n, other))
            ]
            if both:
                return min(both)[1]
        return 0.0

    def benchmark(self, purpose: str) -> str | None:
        """The benchmark in which models are compared for a purpose."""
        if purpose not in self._benchmarks:
            self._benchmarks[purpose] = self._benchmark(purpose)
        return self._benchmarks[purpose]

    def options(
        self, purpose: str, used: Mapping[tuple[str, str], int], only: Slot | None = None
    ) -> list[Option]:
        """For each model its best weights on its best device beside what is used, the best model first."""
        found = [o for n in self.entries if (o := self._best(n, purpose, used, only)) is not None]
        scored = [self.judged(o, purpose) for o in found]
        return sorted(scored, key=lambda o: (-o.value, -(o.fast or 0.0), o.name))

    def _benchmark(self, purpose: str) -> str | None:
        """The one that most models of the catalog have a figure of, if some that fit here have one."""
        able = {n for n in self.entries if self._best(n, purpose, self.used, None) is not None}
        here = Counter(s.benchmark for n in able for s in self._scores(n, purpose))
        everywhere = Counter(s.benchmark for n in self.known.scores for s in self._scores(n, purpose))
        common = [b for b, _ in everywhere.most_common() if here[b] > 1] or [
            b for b, _ in here.most_common(1)
        ]
        return common[0] if common else None

    def _scores(self, name: str, purpose: str) -> list[Score]:
        return [s for s in self.known.scores.get(name, ()) if s.purpose == purpose]

    def _best(
        self, name: str, purpose: str, used: Mapping[tuple[str, str], int], only: Slot | None
    ) -> Option | None:
        entry = self.entries[name]
        if entry.kind != ("embedding" if purpose == "embedding" else "chat"):
            return None
        least, good, _ = contexts(entry, purpose)
        if least < CONTEXTS[purpose][0]:
            return None  # made for less
        found = []
        for slot in self.slots if only is None else [only]:
            free = left(slot, used)
            if purpose == "embedding":
                share = int(EMBEDDER_SHARE * slot.device.total_bytes)
                free = min(free, max(EMBEDDER_BYTES, share))
            key = (name, slot.node, slot.key, good, least, free)
            if key not in self._found:
                self._found[key] = self._there(name, slot, (good, least), free)
            if (option := self._found[key]) is not None:
                found.append(option)
        # The largest weights that are comfortable, on the fewest cards.
        return max(
            found,
            key=lambda o: (
                min((o.fast or 0.0), COMFORTABLE_TOKENS_PER_S),
                o.weights_bytes,
                -o.slot.device.count,
            ),
            default=None,
        )

    def _there(self, name: str, slot: Slot, wanted: Sequence[int], free: int) -> Option | None:
        """A model on one device, with the most of the wanted contexts that it can have there."""
        for context in dict.fromkeys(wanted):
            fitting = list(self._fitting(name, slot, context, free))
            usable = [o for o in fitting if o.fast is None or o.fast >= SLOW_TOKENS_PER_S]
            quick = [o for o in usable if o.speed is None or not o.speed.slow]
            if quick or (usable and context == wanted[-1]):
                return _suiting(quick or usable)
        return None

    def _fitting(self, name: str, slot: Slot, context: int, free: int) -> Iterator[Option]:
        """The largest weights that fit, and some that are smaller and faster."""
        known, count = self.candidates, 0
        for index, (size, variant) in enumerate(self.sizes[name]):
            if size > free * slot.device.count or count == SIZES:
                continue
            draft = known.draft(name, index, slot)
            sized = known.sized(draft, context) if not isinstance(draft, str) else draft
            if isinstance(sized, str) or too_large(sized, free, "", known.ram(slot.node)):
                continue
            count += 1
            shape = known.shape(sized.source, slot.node)
            yield Option(
                entry=self.entries[name],
                weights=variant.weights,
                weights_bytes=size,
                slot=slot,
                placement=sized,
                speed=self.speed(sized, shape),
                score=None,
                token_bytes=0.0 if isinstance(shape, str) else bytes_of_a_token(shape),
            )

    def speed(self, p: Placement, shape: ModelShape | str | None) -> Speed | None:
        if shape is None or isinstance(shape, str):
            return None
        device = self.known.cards.known(p.device)
        return predict(shape, p.request, p.footprint, device, engine=p.engine)

    def why_nothing(self, purpose: str) -> str:
        if not self.slots:
            return "no machine could be looked at"
        largest = max(left(s, self.used) * s.device.count for s in self.slots)
        return (
            f"no model of the catalog fits with {CONTEXTS[purpose][0]} tokens for each of two requests at "
            f"once, in four bits or more and at {SLOW_TOKENS_PER_S:.0f} tokens/s; the most that is free in "
            f"one place is {max(0, largest) / 2**30:.1f} GiB. What fits with less: homelab fit --what -c 4k"
        )


class _Search:
    """Choices are made one after the other, each held against what is left and then planned with the rest."""

    def __init__(self, house: _House) -> None:
        self.house = house
        self.chosen: dict[str, tuple[Option, list[str], Model]] = {}
        self.options: dict[str, list[Option]] = {}
        self.serving: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.layout = house.layout

    def run(self, purposes: Sequence[str]) -> _Search:
        for purpose in purposes:
            self._choose(purpose)
        return self

    def filled(self, purposes: Sequence[str]) -> _Search:
        """With a model on each GPU that was left empty."""
        if self.house.node is None and purposes and purposes[0] != "embedding":
            self._fill(purposes[0])
        return self

    def fast(self, purpose: str) -> float:
        """Tokens per second of the model that serves a purpose; 0 where that is not known."""
        name = self.serving.get(purpose)
        return (self.chosen[name][0].fast or 0.0) if name in self.chosen and name is not None else 0.0

    def value(self, purpose: str) -> float:
        """What the model that serves a purpose is worth for it."""
        name = self.serving.get(purpose)
        return self._as(purpose, name).value if name in self.chosen and name is not None else 0.0

    def _as(self, purpose: str, name: str) -> Option:
        return self.house.judged(self.chosen[name][0], purpose)

    def _choose(self, purpose: str) -> None:
        """Finds who serves a purpose: a model that is chosen already where it is nearly as good as what
        could be had beside it, or another one."""
        # What could be had in place of what is chosen is shown beside it.
        self.options[purpose] = self.house.options(purpose, self.house.used)
        able = [o for o in self.house.options(purpose, self._used()) if o.name not in self.chosen]
        kind = "embedding" if purpose == "embedding" else "chat"
        there = [self._as(purpose, n) for n, (o, _, _) in self.chosen.items() if o.entry.kind == kind]
        serves = max(there, key=lambda o: o.value, default=None)
        if serves is not None:
            able = [o for o in able if o.value > serves.value * BETTER]
        elif any(o.quality for o in able):
            able = [o for o in able if o.quality]
        for option in able[:MOST_TRIES]:
            if self._add(option, purpose):
                self.serving[purpose] = option.name
                return
        if serves is None:
            self.missing[purpose] = self.house.why_nothing(purpose)
        elif self._serves_too(serves.name, purpose):
            self.serving[purpose] = serves.name
        else:
            least = CONTEXTS[purpose][0]
            self.missing[purpose] = (
                f"{serves.name} has no room for {least} tokens, and nothing fits beside it"
            )

    def _fill(self, purpose: str) -> None:
        """Gives GPUs that are left empty a model of their own, or another instance of one."""
        for slot in self.house.slots:
            used = self._used()
            if len(slot.gpus) != 1 or used[slot.node, slot.gpus[0].uuid]:
                continue
            for option in [o for o in self.house.options(purpose, used, slot) if o.quality][:MOST_TRIES]:
                if option.name not in self.chosen:
                    if self._add(option, purpose):
                        break
                    continue
                mine, purposes, model = self.chosen[option.name]
                more = model.model_copy(update={"replicas": model.replicas + 1})
                if self._plan({**self._models(), option.name: more}):
                    self.chosen[option.name] = mine, purposes, more
                    break

    def _serves_too(self, name: str, purpose: str) -> bool:
        """Takes a model that is chosen for one more purpose, with the context that this needs."""
        option, purposes, model = self.chosen[name]
        least, _, most = contexts(option.entry, purpose)
        assert model.context is not None
        both = Context(min=max(least, model.context.min), max=max(most, model.context.max))
        more = model.model_copy(update={"context": both})
        if least < CONTEXTS[purpose][0] or not self._plan({**self._models(), name: more}):
            return False
        self.chosen[name] = option, [*purposes, purpose], more
        return True

    def _used(self) -> Counter[tuple[str, str]]:
        """What is taken where the planner has put it: at the least context, for what is more may shrink."""
        used = Counter(self.house.used)
        for p in self.layout:
            if p.model in self.chosen:
                for name in names_of(p.gpus):
                    used[p.node, name] += self.chosen[p.model][0].placement.bytes
        return used

    def _add(self, option: Option, purpose: str) -> bool:
        least, _, most = contexts(option.entry, purpose)
        model = Model(
            variants=(Variant(engine=option.placement.engine, source=option.placement.source),),
            kind=option.entry.kind,
            context=Context(min=least, max=most),
            node=self.house.node,
        )
        if not self._plan({**self._models(), option.name: model}):
            return False
        self.chosen[option.name] = option, [purpose], model
        return True

    def _models(self) -> dict[str, Model]:
        return {name: model for name, (_, _, model) in self.chosen.items()}

    def _plan(self, models: Mapping[str, Model]) -> bool:
        """Whether the planner has a place for all of it; then that is the layout."""
        layout = place(self.house.with_models(models), self.house.survey, self.house.known.recipes)
        if any(u.model in models for u in layout.unplaced):
            return False
        self.layout = layout
        return True

    def suggestion(self) -> Suggestion:
        return Suggestion(
            picks=tuple(sorted(map(self._pick, self.chosen), key=lambda p: p.model.kind != "chat")),
            layout=self.layout,
            others={
                purpose: tuple(o for o in options if o.name not in self.chosen and o.score)[:RUNNERS_UP]
                for purpose, options in sorted(self.options.items(), key=lambda o: o[0] == "embedding")
            },
            missing=self.missing,
            beside=tuple(self.house.inventory.models),
            unscored={purpose: self._unscored(purpose) for purpose in self.options},
            benchmarks={p: b for p in self.options if (b := self.house.benchmark(p)) is not None},
            without_place=tuple(
                dict.fromkeys(u.model for u in self.layout.unplaced if u.model in self.house.inventory.models)
            ),
        )

    def _unscored(self, purpose: str) -> tuple[str, ...]:
        """What fits too and has no score for a purpose, the best by its others first."""
        names = [o.name for o in self.options[purpose] if o.score is None]
        known = {n: [s.value for p in PURPOSES if (s := self.house.score(n, p)) is not None] for n in names}
        return tuple(sorted((n for n in names if known[n]), key=lambda n: -max(known[n]))[:RUNNERS_UP])

    def _pick(self, name: str) -> Pick:
        option, purposes, model = self.chosen[name]
        scores = [self.house.score(name, p) for p in PURPOSES if p in purposes]
        explains = self.layout.explains
        return Pick(
            name=name,
            purposes=tuple(p for p in PURPOSES if p in purposes),
            weights=option.weights,
            model=model,
            scores=tuple(s for s in scores if s is not None),
            placements=tuple(
                (p, self.house.speed(p, explains.shape(p) if explains is not None else None))
                for p in self.layout
                if p.model == name
            ),
        )


def take(used: Counter[tuple[str, str]], p: Placement) -> None:
    for name in names_of(p.gpus):
        used[p.node, name] += p.bytes


def left(slot: Slot, used: Mapping[tuple[str, str], int]) -> int:
    """What is left on each device of a slot."""
    return slot.free_bytes - max(used.get((slot.node, n), 0) for n in names_of(slot.gpus))


def contexts(entry: Entry, purpose: str) -> tuple[int, int, int]:
    """The least, the usual and the most tokens of one request, as far as the model was made for them."""
    least, good, most = CONTEXTS[purpose]
    made_for = int(entry.text.get("max_position_embeddings") or most)
    return min(least, made_for), min(good, made_for), min(most, made_for)


def _able(entry: Entry, most: int) -> list[tuple[int, CatalogVariant]]:
    """Weights of at least four bits and at most so many bytes, the largest first."""
    sized = [(size, v) for size, v in entry.by_size() if size <= most and not COARSE.match(v.weights)]
    eight = any(v.weights in EIGHT_BITS for _, v in sized)
    return [(s, v) for s, v in sized if not (eight and v.weights in WHOLE)]


def _suiting(fitting: Sequence[Option]) -> Option:
    """Of what fits one device, the largest weights first: the largest that are comfortable, or what is
    fastest; of those that are nearly as large the fastest."""
    able = [o for o in fitting if o.fast is None or o.fast >= COMFORTABLE_TOKENS_PER_S]
    if not able:
        return max(fitting, key=lambda o: o.fast or 0.0)
    alike = [o for o in able if o.weights_bytes >= NEARLY * able[0].weights_bytes]
    return max(alike, key=lambda o: (round(o.fast or 0.0), o.weights_bytes))


def written(picks: Sequence[Pick]) -> str:
    """The picks as entries of an inventory's `models`."""
    out = []
    for pick in picks:
        variant = pick.model.variants[0]
        out.append(f"{pick.name}:  # {', '.join(pick.purposes)}")
        out += [f"  # {s.benchmark} {s.value:g}: {s.source}, {s.date}" for s in dict.fromkeys(pick.scores)]
        if pick.model.kind != "chat":
            out.append(f"  kind: {pick.model.kind}")
        out += [f"  engine: {variant.engine}", f'  source: "{variant.source}"']
        context = pick.model.context
        if context is not None:
            both = f"{{min: {context.min}, max: {context.max}}}"
            out.append(f"  context: {context.max if context.min == context.max else both}")
        if pick.model.replicas > 1:
            out.append(f"  replicas: {pick.model.replicas}")
        if pick.model.node is not None:
            out.append(f"  node: {pick.model.node}")
    return "\n".join(out) + "\n"


def with_models(text: str, picks: Sequence[Pick]) -> str:
    """An inventory's text with the picks behind its models, and nothing else changed.

    Raises InventoryError where a name is taken, or `models` is written in a way that cannot be added to."""
    windows = "\r\n" in text
    added = _with_models(text.replace("\r\n", "\n"), picks)
    return added.replace("\n", "\r\n") if windows else added


def _with_models(text: str, picks: Sequence[Pick]) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise _not_added("The inventory is not written as a block of keys")
    models = next((v for k, v in root.value if k.value == "models"), None)
    block = written(picks)
    if models is None:
        # `...` ends a document, and what is behind it is none of it.
        stop = re.search(r"(?m)^\.\.\.\s*$", text)
        body, rest = (text[: stop.start()], text[stop.start() :]) if stop else (text, "")
        return f"{body.rstrip()}\n\nmodels:\n{_indented(block, 2)}{rest}"
    if not isinstance(models, yaml.MappingNode):
        raise _not_added("`models` is no mapping, or is written without a value")
    taken = {k.value for k, _ in models.value} & {p.name for p in picks}
    if taken:
        raise InventoryError(f"The inventory has models of these names already: {', '.join(sorted(taken))}")
    if models.flow_style and models.value:
        raise _not_added("`models` is written in braces")
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    if models.flow_style:
        row = models.start_mark.line
        start, end = models.start_mark.column, models.end_mark.column
        if models.end_mark.line != row:
            raise _not_added("`models: {}` is written over several lines")
        lines[row] = f"{lines[row][:start].rstrip()}{lines[row][end:].rstrip()}\n"
        return "".join([*lines[: row + 1], _indented(block, 2), *lines[row + 1 :]])
    column = models.value[0][0].start_mark.column
    # Behind its last line: blank lines and comments that stand farther out belong to what comes next.
    rows = range(models.start_mark.line, len(lines))
    last = max(row for row in rows if _inside(lines, row, models, column))
    behind = lines[last + 1 :]
    space = ["\n"] if behind and behind[0].strip() else []
    return "".join([*lines[: last + 1], "\n", _indented(block, column), *space, *behind])


def _inside(lines: Sequence[str], row: int, models: yaml.MappingNode, column: int) -> bool:
    """Whether a line is of `models`: it has something of it, or is a comment as far in as its names."""
    if row >= models.end_mark.line + (models.end_mark.column > 0):
        return False
    line = lines[row]
    comment = line.lstrip().startswith("#")
    return bool(line.strip()) and not (comment and len(line) - len(line.lstrip()) < column)


def _not_added(why: str) -> InventoryError:
    return InventoryError(f"{why}, so nothing can be added", hint="Paste the lines above into it yourself")


def _indented(block: str, columns: int) -> str:
    return "".join(f"{' ' * columns}{line}\n" for line in block.splitlines())
