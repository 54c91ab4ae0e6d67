"""How models are run with vLLM, as vllm-project/recipes has it: parsers, template, least version,
speculation, arguments by variant. Pure: text in, values out; `tools/recipes.py` wrote the text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from homelab.models.source import parse_source

# What people append to a model's name when they quantise it and upload it again.
_QUANTISED = re.compile(
    r"[-_.](?:awq|gptq|fp8|nvfp4|mxfp4|int4|int8|w4a16|w8a8|w8a16|autoround|qat|4bit|8bit|bnb|dynamic|ct|ar|"
    r"mixed|bf16|marlin|unsloth)(?=$|[-_.])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is known of running one source. `method` and `drafts`: the speculation that it advises with the
    model's own prediction layers; `args` are further arguments that it gives, for whoever reads them."""

    model: str
    min_vllm: str | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    method: str | None = None
    drafts: int | None = None
    precision: str | None = None
    vram_gb: float | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    cards: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """All recipes, by the model's id on the hub, as they stand in the file."""

    commit: str
    models: Mapping[str, Mapping[str, Any]]

    @cached_property
    def _by_source(self) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        """The first variant of every repository, by its name in lower case."""
        found: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for name, entry in self.models.items():
            for variant in entry.get("variants", ()):
                found.setdefault(str(variant["source"]).lower(), (name, variant))
        return found

    @cached_property
    def _by_name(self) -> Mapping[str, tuple[str, ...]]:
        """Models by their name without the organisation, in lower case."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self.models:
            base = name.partition("/")[2].lower()
            found[base] = (*found.get(base, ()), name)
        return found

    def find(self, source: str) -> Recipe | None:
        """The recipe of a source: by the model's own id, by that of a variant, or, for what others have
        quantised and uploaded again, by the one model of the same name. None where none is sure."""
        try:
            repo = parse_source(source).repo
        except ValueError:
            return None
        if repo is None or "/" not in repo:
            return None
        own = next((n for n in self.models if n.lower() == repo.lower()), None)
        if (found := self._by_source.get(repo.lower())) is not None:
            return _recipe(found[0], self.models[found[0]], found[1])
        if own is not None:
            return _recipe(own, self.models[own], {})
        base = repo.partition("/")[2].lower()
        plain = _QUANTISED.sub("", base)
        same = self._by_name.get(plain, ()) if plain != base else ()
        # The numbers of a variant are of its own files; another's quantisation has only what is the model's.
        return _recipe(same[0], self.models[same[0]], {}) if len(same) == 1 else None


def parse(text: str) -> Recipes:
    """The recipes in `text`.

    Raises yaml.YAMLError, KeyError where it is no file of ours."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = yaml.load(text, loader)
    return Recipes(commit=document["commit"], models=document["models"])


def version_of(text: str) -> tuple[int, ...] | None:
    """`0.27.1` out of `v0.27.1` or `0.27.1-cu129`, as numbers; None where it is no release."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:$|[^\w.])", text)
    return tuple(int(n or 0) for n in match.groups()) if match else None


def too_old(recipe: Recipe, image: str | None) -> str:
    """Why an image is older than the model; empty where it is not, or where its tag is no version."""
    least = version_of(recipe.min_vllm or "")
    pinned = version_of((image or "").rpartition(":")[2])
    if least is None or pinned is None or pinned >= least:
        return ""
    return (
        f"{recipe.model} needs vLLM {recipe.min_vllm} or newer (vllm-project/recipes), and the image is "
        f"{image}: take a newer one under `images`"
    )


def _recipe(name: str, entry: Mapping[str, Any], variant: Mapping[str, Any]) -> Recipe:
    both = {**entry, **variant}
    method, drafts = _speculation(both.get("speculative"))
    return Recipe(
        model=name,
        min_vllm=both.get("min_vllm"),
        tool_parser=both.get("tool_parser"),
        reasoning_parser=both.get("reasoning_parser"),
        chat_template=both.get("chat_template"),
        method=method,
        drafts=drafts,
        precision=variant.get("precision"),
        vram_gb=variant.get("vram_gb"),
        args={**entry.get("args", {}), **variant.get("args", {})},
        env={**entry.get("env", {}), **variant.get("env", {})},
        cards={**entry.get("cards", {}), **variant.get("cards", {})},
    )


def _speculation(written: object) -> tuple[str | None, int | None]:
    """Method and depth, where a recipe writes them as JSON."""
    try:
        found = json.loads(str(written))
        drafts = found.get("num_speculative_tokens")
        return found.get("method"), drafts if isinstance(drafts, int) else None
    except (ValueError, AttributeError, RecursionError):
        return None, None
