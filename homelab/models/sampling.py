"""How models are sampled where a client does not say: as their makers want it, or who runs them for agents.
Pure: text in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from homelab.models.source import parse_source

SAMPLERS = ("temperature", "top-p", "top-k", "min-p")


@dataclass(frozen=True, slots=True)
class Sampling:
    """By the start of a repository's name in lower case: sampler and value, under llama-server's names."""

    models: Mapping[str, Mapping[str, float]]

    def find(self, source: str) -> Mapping[str, float]:
        """What is known for a source; empty where nothing is."""
        try:
            repo = parse_source(source).repo or ""
        except ValueError:
            return {}
        # `bartowski/google_gemma-4-31B-it-GGUF` is Google's.
        name = repo.rpartition("/")[2].lower().rpartition("_")[2]
        starts = [start for start in self.models if name.startswith(start)]
        return self.models[max(starts, key=len)] if starts else {}


def parse(text: str) -> Sampling:
    """The samplers in `text`.

    Raises yaml.YAMLError, KeyError, ValueError where it is no file of ours."""
    document = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found: dict[str, Mapping[str, float]] = {}
    for start, said in document["models"].items():
        if said["source"] not in document["sources"] or set(said) - {"source", *SAMPLERS}:
            raise ValueError(f"{start}: {said}")
        found[start] = {name: said[name] for name in SAMPLERS if name in said}
    return Sampling(found)
