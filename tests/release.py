"""Writes down what a release is: python -m tests.release

`tests/releases/VERSION/`: households with the labels and files that this release gives them, as their nodes
report them. Later releases must take them over without a change (`test_identity.py`). Written once, never
anew."""

from __future__ import annotations

import sys
from pathlib import Path

from homelab import __version__
from homelab.facts import Survey
from homelab.inventory import load
from homelab.placement import place
from homelab.plan import diff
from homelab.render import render
from tests.machines import (
    HUB,
    KEYS,
    deployed,
    laptop,
    machine,
    pi,
    server,
    survey,
    tiny_gguf,
    workstation,
)

RELEASES = Path(__file__).parent / "releases"
ENVIRON = {"ANTHROPIC_API_KEY": "sk-ant-test", "HF_TOKEN": "hf_test"}
HOUSE = """\
cluster: home
gateway: {node: pi, port: 4100}
hub: {token: env:HF_TOKEN}
nodes:
  workstation: {host: 192.168.1.10, reserve: 1 GiB}
  server: {host: server.local}
  laptop: {host: 192.168.1.12, away: true, runtime: native}
  pi: {host: 192.168.1.2}
models:
  big:
    context: {min: 16384, max: 40960}
    concurrency: 4
    node: workstation
    variants:
      - {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, args: {kv_cache_dtype: fp8}}
      - {engine: llamacpp, source: "Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M"}
  split: {engine: vllm, source: Qwen/Qwen3-30B-A3B-AWQ, context: 32k, args: {-tp: 2}}
  pair:
    engine: vllm
    source: Qwen/Qwen3-4B-AWQ
    context: 4096
    replicas: 2
    priority: 5
    args: {enforce-eager: true}
  embed: {kind: embedding, engine: llamacpp, source: /models/tiny.gguf, context: 512, node: server, gpu: 1}
  own:
    {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: laptop, port: 9000, args: {ctk: q8_0}}
cloud: {claude: {model: anthropic/claude-sonnet-4-6, api_key: env:ANTHROPIC_API_KEY}}
fallbacks: {big: [pair, claude]}
"""
ALONE = """\
cluster: this-machine
gateway: {node: this}
nodes: {this: {host: localhost, runtime: native}}
models: {tiny: {engine: llamacpp, source: ~/tiny.gguf, context: 2048}}
"""


def households() -> dict[str, tuple[str, Survey]]:
    gguf = (tiny_gguf(),)
    own = laptop(weights=gguf, docker=None, programs={"llama-server": "/usr/local/bin/llama-server"})
    house = survey(HUB, workstation=workstation(), server=server(weights=gguf), laptop=own, pi=pi())
    alone = survey(this=machine("this", docker=None, weights=(tiny_gguf("~/tiny.gguf"),)))
    return {"house": (HOUSE, house), "alone": (ALONE, alone)}


def write(folder: Path, text: str, found: Survey) -> None:
    """An inventory, the facts of its nodes once it is deployed, and every file of its services."""
    inventory = load(text, "inventory.yml")
    layout = place(inventory, found)
    services = render(inventory, layout, found, KEYS, ENVIRON)
    plan = diff(inventory, layout, services, found)
    assert not layout.unplaced, layout.unplaced
    assert {c.action for c in plan.changes} == {"create"}
    after = {
        name: report.facts.model_copy(update={"services": deployed(services, name)})
        for name, report in found.nodes.items()
        if report.facts is not None
    }
    folder.mkdir(parents=True)
    (folder / "inventory.yml").write_text(text)
    (folder / "survey.json").write_text(survey(dict(found.models), **after).model_dump_json(indent=1) + "\n")
    for service in services:
        for file in service.files:
            if service.directory in file.path:
                path = folder / "files" / service.node / service.name / Path(file.path).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(file.content)


def main() -> None:
    release = RELEASES / __version__
    if release.exists():
        sys.exit(f"{release} was written when {__version__} was made, and stays as it is")
    for name, (text, found) in households().items():
        write(release / name, text, found)
    print(f"wrote {release}")


if __name__ == "__main__":
    main()
