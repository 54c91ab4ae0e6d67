"""LiteLLM's configuration from the placements. Every key here was seen to take effect on LiteLLM 1.109.1 and 1.106.2 (misspelt ones are ignored silently)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from homelab.inventory import Inventory
from homelab.placement import Placement
from homelab.service import host_in_url

SERVICE = "gateway"
HEALTH = "/health/liveliness"
MASTER_KEY_VARIABLE = "LITELLM_MASTER_KEY"

# The proxy's documentation pages, its admin pages and the download of the price list at start: nothing a household needs open.
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
    "NO_OPENAPI": "True",
    "DISABLE_ADMIN_UI": "True",
}


def key_variable(placement: Placement) -> str:
    """The environment variable that carries one engine's key into the gateway."""
    return (
        "HOMELAB_KEY_"
        + "".join(c if c.isalnum() else "_" for c in f"{placement.node}_{placement.service}").upper()
    )


def cloud_variable(name: str) -> str:
    return "HOMELAB_CLOUD_" + "".join(c if c.isalnum() else "_" for c in name).upper()


def _host(inventory: Inventory, p: Placement) -> str:
    """Where the gateway reaches an engine: beside it in Docker by name, over the network that both are in."""
    beside = (
        p.node == inventory.gateway.node and p.runtime == "docker" and p.address not in ("127.0.0.1", "::1")
    )
    return p.service if beside else host_in_url(p.address)


def configuration(inventory: Inventory, placements: Sequence[Placement]) -> dict[str, Any]:
    """The `model_list` and settings of LiteLLM's config.yaml, as plain values.

    `hosted_vllm/` is right for vLLM and llama.cpp: `openai/` would send /v1/messages to /v1/responses, which they lack."""
    models = [
        {
            "model_name": p.model,
            "litellm_params": {
                "model": f"hosted_vllm/{p.model}",
                "api_base": f"http://{_host(inventory, p)}:{p.port}/v1",
                "api_key": f"os.environ/{key_variable(p)}",
                "timeout": 600,
                "stream_timeout": 300,
            },
            "model_info": {
                "id": f"{p.node}/{p.service}",
                "mode": p.request.kind,
                "max_input_tokens": p.request.context,
            },
        }
        for p in sorted(placements, key=lambda p: (p.model, p.node, p.service))
    ]
    for name, cloud in sorted(inventory.cloud.items()):
        params: dict[str, Any] = {"model": cloud.model}
        if cloud.api_key:
            params["api_key"] = f"os.environ/{cloud_variable(name)}"
        if cloud.api_base:
            params["api_base"] = cloud.api_base
        models.append({"model_name": name, "litellm_params": params, "model_info": {"id": f"cloud/{name}"}})
    served = {m["model_name"] for m in models}
    fallbacks = [
        {name: kept}
        for name, targets in sorted(inventory.fallbacks.items())
        if name in served and (kept := [t for t in targets if t in served])
    ]
    return {
        "model_list": models,
        "litellm_settings": {"drop_params": True, "anthropic_messages_estimate_initial_input_tokens": True},
        # A node is cooled on its first failure: retries are drawn at random, so nothing else keeps them off a dead one.
        "router_settings": {
            "routing_strategy": "simple-shuffle",
            "num_retries": 2,
            "allowed_fails": 0,
            "cooldown_time": 30,
            "enable_pre_call_checks": True,
            **({"fallbacks": fallbacks} if fallbacks else {}),
        },
        "general_settings": {"master_key": f"os.environ/{MASTER_KEY_VARIABLE}"},
    }
