"""Facts of vllm-project/recipes, from a checkout into `homelab/models/recipes.yml`.

    python tools/recipes.py CHECKOUT [--commit SHA] [--output FILE]

Only facts are taken: names of parsers and templates, versions, arguments, sizes. The guides are left where
they are. A file that is no recipe is an error with its line, and nothing is written."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

OUTPUT = Path(__file__).resolve().parent.parent / "homelab" / "models" / "recipes.yml"
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
# What has a place of its own, or what only switches another one on.
OWN = {
    "tool-call-parser": "tool_parser",
    "reasoning-parser": "reasoning_parser",
    "chat-template": "chat_template",
    "speculative-config": "speculative",
}
SWITCHES = {"enable-auto-tool-choice"}
FEATURES = ("tool_calling", "reasoning", "spec_decoding")


class Broken(Exception):
    """What is wrong with the checkout, as `FILE:LINE: what`."""


def flags(args: object, where: str) -> dict[str, Any]:
    """A recipe's list of arguments by name; true for one without a value."""
    if args is None:
        return {}
    if not isinstance(args, list) or not all(isinstance(a, str | int | float) for a in args):
        raise Broken(f"{where}: arguments are a list of words, not {str(args)[:60]!r}")
    out: dict[str, Any] = {}
    name = None
    for word in map(str, args):
        if word.startswith("-") and not re.fullmatch(r"-\d.*", word):
            name, _, value = word.lstrip("-").partition("=")
            name = name.replace("_", "-")
            out[name] = value or True
        elif name is None:
            raise Broken(f"{where}: `{word[:40]}` stands before any argument's name")
        else:
            out[name] = word if out[name] is True else f"{out[name]} {word}"
    return out


def taken(args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with those that have a place of their own in it."""
    # A parser that comes with a file of its own is none that the image has.
    brought = {n.removesuffix("-plugin") for n in args if n.endswith("-plugin")}
    brought |= {"tool-call-parser"} & {b.replace("tool-parser", "tool-call-parser") for b in brought}
    out: dict[str, Any] = {OWN[n]: v for n, v in args.items() if n in OWN and n not in brought}
    rest = {n: v for n, v in args.items() if n not in OWN and n not in SWITCHES and not n.endswith("-plugin")}
    return out | ({"args": rest} if rest else {})


def mapping(value: object, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Broken(f"{where}: is a mapping, not {str(value)[:60]!r}")
    return value


def extras(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments and environment that one variant or one card adds, and its own cards."""
    out = taken(flags(entry.get("extra_args"), f"{where}.extra_args"))
    if env := mapping(entry.get("extra_env"), f"{where}.extra_env"):
        out["env"] = {str(k): str(v) for k, v in env.items()}
    cards = {}
    for card, more in mapping(entry.get("hardware_overrides"), f"{where}.hardware_overrides").items():
        if found := extras(mapping(more, f"{where}.{card}"), f"{where}.{card}"):
            cards[str(card)] = found
    return out | ({"cards": cards} if cards else {})


def recipe(path: Path, root: Path) -> tuple[str, dict[str, Any]]:
    """A model's id on the hub, and what its file says of running it.

    Raises Broken."""
    shown = path.relative_to(root)
    try:
        document = yaml.load(path.read_text(), Loader)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise Broken(f"{shown}:{line}: {e.problem or 'not YAML'}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise Broken(f"{shown}:1: {str(e).splitlines()[0]}") from e
    top = mapping(document, f"{shown}:1")
    model = mapping(top.get("model"), f"{shown}:1: model")
    name = model.get("model_id")
    if not isinstance(name, str) or "/" not in name:
        raise Broken(f"{shown}:1: `model.model_id` is missing: this is no recipe")
    args = flags(model.get("base_args"), f"{shown}:1: model.base_args")
    features = mapping(top.get("features"), f"{shown}:1: features")
    for feature in FEATURES:
        entry = mapping(features.get(feature), f"{shown}:1: features.{feature}")
        args |= flags(entry.get("args"), f"{shown}:1: features.{feature}.args")
    out: dict[str, Any] = {}
    if (version := model.get("min_vllm_version")) is not None:
        out["min_vllm"] = str(version)
    out |= taken(args)
    if env := mapping(model.get("base_env"), f"{shown}:1: model.base_env"):
        out["env"] = {str(k): str(v) for k, v in env.items()}
    out |= {k: v for k, v in extras(top, f"{shown}:1").items() if k == "cards"}
    variants = []
    for label, value in mapping(top.get("variants"), f"{shown}:1: variants").items():
        where = f"{shown}:1: variants.{label}"
        entry = mapping(value, where)
        row: dict[str, Any] = {"source": str(entry.get("model_id") or name)}
        for theirs, ours in (("precision", "precision"), ("vram_minimum_gb", "vram_gb")):
            if entry.get(theirs) is not None:
                row[ours] = entry[theirs]
        if entry.get("min_vllm_version") is not None:
            row["min_vllm"] = str(entry["min_vllm_version"])
        variants.append(row | extras(entry, where))
    return name, out | ({"variants": variants} if variants else {})


def commit_of(checkout: Path) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None if done.returncode == 0 else None


def read(checkout: Path, commit: str | None) -> str:
    """The text of `recipes.yml`.

    Raises Broken, with the line where there is one."""
    files = sorted((checkout / "models").glob("*/*.yaml"))
    if not files:
        raise Broken(f"{checkout}: no checkout of vllm-project/recipes: it has no models/ORG/MODEL.yaml")
    commit = commit or commit_of(checkout)
    if commit is None:
        raise Broken(f"{checkout}: its commit is not known: name it with --commit")
    found: dict[str, Any] = {}
    for path in files:
        name, entry = recipe(path, checkout)
        if name in found:
            raise Broken(f"{path.relative_to(checkout)}:1: a second recipe for {name}")
        found[name] = entry
    head = (
        "# Facts from https://github.com/vllm-project/recipes (Apache-2.0), written by tools/recipes.py.\n"
        "# Do not edit: take a newer checkout.\n"
    )
    body = {"repository": "vllm-project/recipes", "commit": commit, "licence": "Apache-2.0", "models": found}
    return head + yaml.dump(body, Dumper=Dumper, sort_keys=False, width=110, default_flow_style=None)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Facts of vllm-project/recipes, from a checkout.")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit", help="its commit, where it has no .git")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    asked = parser.parse_args(argv)
    try:
        text = read(asked.checkout, asked.commit)
    except Broken as e:
        sys.stderr.write(f"{e}\nNothing is written.\n")
        return 2
    asked.output.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
