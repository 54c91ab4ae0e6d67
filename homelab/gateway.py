"""LiteLLM's configuration from the endpoints. Every key here was seen to take effect on LiteLLM 1.109.1 and
1.106.2 (misspelt ones are ignored silently)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from homelab.endpoints import Endpoint
from homelab.program import Offer, PythonEnvironment

SERVICE = "gateway"
HEALTH = "/health/liveliness"
MASTER_KEY_VARIABLE = "LITELLM_MASTER_KEY"
OFFER = Offer(
    name="litellm",
    images={"cpu": "ghcr.io/berriai/litellm:v1.106.2"},
    environment=PythonEnvironment(name="litellm", program="litellm"),
)

# The proxy's documentation pages, its admin pages and the download of the price list at start: nothing a
# household needs open.
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
    "NO_OPENAPI": "True",
    "DISABLE_ADMIN_UI": "True",
}


def key_variable(endpoint: Endpoint) -> str:
    """The environment variable that carries one endpoint's key into the gateway. Names that read alike once
    they are a variable's (`gpt-4` and `gpt.4`) are told apart by a hash."""
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in endpoint.id).upper()
    return f"HOMELAB_KEY_{plain}_{hashlib.sha256(endpoint.id.encode()).hexdigest()[:6].upper()}"


def told(endpoints: Sequence[Endpoint], node: str | None) -> list[dict[str, Any]]:
    """What the gateway is told of each endpoint: a change of anything else about it is not the gateway's
    business. `node` is where its container runs; None where it is a process."""
    return [
        {
            key: value
            for key, value in {
                "name": e.name,
                "kind": e.kind,
                "url": e.url_from(node),
                "context": e.context,
                "id": e.id,
                "upstream": e.upstream,
                "key": bool(e.key),
            }.items()
            if value
        }
        for e in endpoints
    ]


def configuration(
    endpoints: Sequence[Endpoint], fallbacks: Mapping[str, Sequence[str]], node: str | None
) -> dict[str, Any]:
    """The `model_list` and settings of LiteLLM's config.yaml, as plain values. `node`: as in `told`.

    `hosted_vllm/` is right for vLLM and llama.cpp: `openai/` would send /v1/messages to /v1/responses,
    which they lack."""
    models = [_outside(e) if e.origin == "cloud" else _inside(e, node) for e in endpoints]
    served = {e.name for e in endpoints}
    kept = {
        name: [t for t in targets if t in served]
        for name, targets in sorted(fallbacks.items())
        if name in served
    }
    ways = [{name: targets} for name, targets in kept.items() if targets]
    return {
        "model_list": models,
        "litellm_settings": {"drop_params": True, "anthropic_messages_estimate_initial_input_tokens": True},
        # A node is cooled on its first failure: retries are drawn at random, so nothing else keeps them off
        # a dead one.
        "router_settings": {
            "routing_strategy": "simple-shuffle",
            "num_retries": 2,
            "allowed_fails": 0,
            "cooldown_time": 30,
            "enable_pre_call_checks": True,
            **({"fallbacks": ways} if ways else {}),
        },
        "general_settings": {"master_key": f"os.environ/{MASTER_KEY_VARIABLE}"},
    }


def _inside(e: Endpoint, node: str | None) -> dict[str, Any]:
    return {
        "model_name": e.name,
        "litellm_params": {
            "model": f"hosted_vllm/{e.upstream}",
            "api_base": f"{e.url_from(node)}/v1",
            "api_key": f"os.environ/{key_variable(e)}",
            "timeout": 600,
            "stream_timeout": 300,
        },
        "model_info": {"id": e.id, "mode": e.kind, "max_input_tokens": e.context},
    }


def _outside(e: Endpoint) -> dict[str, Any]:
    params: dict[str, Any] = {"model": e.upstream}
    if e.key:
        params["api_key"] = f"os.environ/{key_variable(e)}"
    if e.url:
        params["api_base"] = e.url
    return {"model_name": e.name, "litellm_params": params, "model_info": {"id": e.id}}
