"""One name is one thing: no two endpoints share a variable, and no two services a project, folder or
volume."""

from __future__ import annotations

import re

import pytest

from homelab import gateway
from homelab.endpoints import placed
from homelab.engines import engines
from homelab.errors import InventoryError
from homelab.inventory import load
from homelab.placement import place
from homelab.render import render
from tests.machines import KEYS, server, survey, tiny_gguf, workstation

ALIKE = """\
gateway: {node: gpu}
nodes:
  gpu: {host: 192.168.1.10}
  gpu-a: {host: 192.168.1.11}
  pi: {host: 192.168.1.12}
  pi-4: {host: 192.168.1.13}
models:
  a-b: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: gpu}
  b: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: gpu-a}
  4-coder: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: pi}
  coder: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: pi-4, replicas: 2}
  coder-2: {engine: llamacpp, source: /models/tiny.gguf, context: 2048, node: pi-4}
cloud:
  gpt-4: {model: openai/gpt-4, api_key: env:ONE}
  gpt.4: {model: openai/gpt-4, api_key: env:TWO}
  gpt_4: {model: openai/gpt-4, api_key: env:THREE}
"""


def test_every_engine_and_every_provider_gets_its_own_key_whatever_their_names() -> None:
    inventory = load(ALIKE, "i")
    weights = (tiny_gguf(),)
    seen = survey(
        **{
            "gpu": workstation(weights=weights),
            "gpu-a": server(weights=weights),
            "pi": server(weights=weights),
            "pi-4": server(weights=weights),
        }
    )
    layout = place(inventory, seen)
    assert not layout.unplaced
    services = render(inventory, layout, seen, KEYS, {"ONE": "sk-1", "TWO": "sk-2", "THREE": "sk-3"})
    carried = next(s for s in services if s.role == "gateway").unit.secrets
    demanded = {(s.node, s.name): s.unit.secrets["LLAMA_API_KEY"] for s in services if s.role == "engine"}
    assert len({key.get_secret_value() for key in demanded.values()}) == len(demanded) == 6
    for endpoint in placed(inventory, layout.placements):
        key = carried[gateway.key_variable(endpoint)].get_secret_value()
        if endpoint.node is None:
            assert key == {"gpt-4": "sk-1", "gpt.4": "sk-2", "gpt_4": "sk-3"}[endpoint.name]
        else:
            service = endpoint.id.partition("/")[2]
            assert key == demanded[endpoint.node, service].get_secret_value()
    assert len({s.project for s in services}) == len({(s.node, s.directory) for s in services}) == 7


def test_a_node_called_cloud_is_refused_beside_models_in_the_cloud() -> None:
    """`cloud/gpt-4` would be the id of both, and one variable would carry both keys."""
    text = ALIKE.replace("pi-4", "cloud").replace("  coder: {", "  GPT.4: {")
    with pytest.raises(InventoryError) as refused:
        load(text, "i")
    assert refused.value.mistakes == (
        "i:6: nodes.cloud: is what the models under `cloud` are counted to: give the node another name",
    )


def test_clusters_whose_names_begin_alike_share_no_volume_network_project_or_folder() -> None:
    names: list[str] = []
    for cluster, model in (("a", "b-c"), ("a-b", "c"), ("a-vllm", "c"), ("a-b-c", "c")):
        text = (
            f"cluster: {cluster}\ngateway: {{node: n}}\nnodes: {{n: {{host: 192.168.1.10}}}}\nmodels:\n"
            f"  {model}: {{engine: llamacpp, source: /models/tiny.gguf, context: 2048}}\n"
        )
        inventory = load(text, "i")
        seen = survey(n=workstation(weights=(tiny_gguf(),)))
        services = render(inventory, place(inventory, seen), seen, KEYS, {})
        names += [s.project for s in services] + [s.directory for s in services]
        names += [f"homelab-{cluster}"]
        names += [
            f"homelab-{cluster}-{engine}-cache{i}"
            for engine, module in engines().items()
            for i, _ in enumerate(module.CACHES)
        ]
    assert len(names) == len(set(names))
    # What a volume's name is made of has no `-` in it, so that no two parts can be cut otherwise.
    assert all(re.fullmatch(r"[a-z0-9]+", engine) for engine in engines())
