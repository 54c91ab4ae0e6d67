"""LiteLLM's configuration from the endpoints. Every key here was seen to take effect on LiteLLM 1.106.2
(misspelt ones are ignored silently)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from homelab.endpoints import Endpoint
from homelab.engines import engines
from homelab.program import Offer, PythonEnvironment

SERVICE = "gateway"
HEALTH = "/health/liveliness"
MASTER_KEY_VARIABLE = "LITELLM_MASTER_KEY"
# templates/homelab_auth.py: it looks for people's keys in the folder that this variable names.
AUTH = "homelab_auth"
KEYS_VARIABLE = "HOMELAB_KEYS"
OFFER = Offer(
    name="litellm",
    images={"cpu": "ghcr.io/berriai/litellm:v1.106.2"},
    environment=PythonEnvironment(name="litellm", program="litellm"),
)

# The proxy's documentation pages, its admin pages, and what it downloads at start or when somebody without a
# key opens a page (price list, blog, presets): nothing a household needs open. No web page's origin is
# `none`: otherwise LiteLLM lets every page that somebody looks at read what the gateway answers.
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_CORS_ORIGINS": "none",
    "LITELLM_CORS_ALLOW_CREDENTIALS": "false",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
    "NO_OPENAPI": "True",
    "DISABLE_ADMIN_UI": "True",
}


# How many failures in 30 s keep a replica off, by LiteLLM's word for them. The zeros say something about the
# backend: it is silent, loads, is broken behind a proxy of its own, is busy, has another key. An internal
# server error may or may not: a refused connection is one, and so is llama.cpp's 500 for an image to a text
# model. All other errors are the request's own (vLLM's 404 and llama.cpp's 501 for another kind of model).
ALLOWED_FAILS = {
    "Timeout": 0,
    "ServiceUnavailable": 0,
    "BadGateway": 0,
    "RateLimit": 0,
    "Authentication": 0,
    "InternalServer": 5,
}
NEVER = 1_000_000_000

# Labels of LiteLLM's metrics that say who somebody is (or how many there are) beyond the name of a key: where
# from, with which program, as whom a client says that it asks; and where the engines are.
UNCOUNTED = ("client_ip", "user_agent", "end_user", "user_email", "hashed_api_key", "api_base")

# Seconds between two signs of life of a backend. LiteLLM 1.106.2 has nothing else: what it calls
# `stream_timeout` holds until the first byte and then between any two; `timeout` is the same for an answer
# that comes whole, so that it holds for all of it. In steps, so that nearly the same is the same.
SILENCE_SECONDS = (300, 600, 1200, 2400, 3600)
WHOLE_SECONDS = (600, 1200, 2400, 3600, 7200)
# The longest answer that is waited for where it comes whole: what clients ask for at most (docs/clients.md).
WHOLE_TOKENS = 8192
# A replica's share of the fastest one's requests, in quarters. One slower than that gets 0: LiteLLM draws it
# only where no other is left.
QUARTERS = 4


def key_variable(endpoint: Endpoint) -> str:
    """The environment variable that carries one endpoint's key into the gateway. Names that read alike once
    they are a variable's (`gpt-4` and `gpt.4`) are told apart by a hash."""
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in endpoint.id).upper()
    return f"HOMELAB_KEY_{plain}_{hashlib.sha256(endpoint.id.encode()).hexdigest()[:6].upper()}"


def app_variable(name: str) -> str:
    """The environment variable that carries an app's key into the gateway."""
    return f"HOMELAB_APP_{name.upper().replace('-', '_')}"


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
    endpoints: Sequence[Endpoint],
    fallbacks: Mapping[str, Sequence[str]],
    node: str | None,
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The `model_list` and settings of LiteLLM's config.yaml, as plain values. `node`: as in `told`;
    `aliases`: further names of models, `claude-*` for all that begin so.

    `hosted_vllm/` is right for vLLM and llama.cpp: `openai/` would send /v1/messages to /v1/responses, and
    `anthropic/` everything to /v1/messages."""
    shares = _shares(endpoints)
    models = [_outside(e) if e.origin == "cloud" else _inside(e, node, shares.get(e.id)) for e in endpoints]
    names = [e.name for e in endpoints]
    for model in models:
        if names.count(model["model_name"]) == 1:
            model["model_info"]["cooldown_time"] = 0  # there is no other to send anybody to
        elif model["model_info"].get("mode", "chat") != "chat":
            # LiteLLM 1.106.2 gives no failed embedding or rerank to another replica; a retry draws one.
            model["litellm_params"]["num_retries"] = 2
            model["model_info"]["allowed_fails_policy"] = {"InternalServerErrorAllowedFails": 0}
    served = set(names)
    kept = {
        name: [t for t in targets if t in served]
        for name, targets in sorted(fallbacks.items())
        if name in served
    }
    further = {a: m for a, m in sorted((aliases or {}).items()) if m in served}
    starts = {a: m for a, m in further.items() if a.endswith("*")}
    exact = {a: m for a, m in further.items() if a not in starts}
    # LiteLLM looks a fallback up by the name that was asked for, whatever that stands for.
    kept |= {alias: kept[model] for alias, model in exact.items() if model in kept}
    ways = [{name: targets} for name, targets in kept.items() if targets]
    # What is too long for a model goes to those that answer for it and read more; LiteLLM asks no plain
    # fallback then.
    reads = {name: min((e.context or 0 for e in endpoints if e.name == name), default=0) for name in served}
    reads |= {alias: reads[model] for alias, model in exact.items()}
    longer = [
        {name: larger}
        for name, targets in kept.items()
        if (larger := [t for t in targets if not reads[t] or reads[t] > reads[name]]) and reads[name]
    ]
    models += [_called(m, a) for a, name in starts.items() for m in models if m["model_name"] == name]
    several = any(names.count(name) > 1 for name in served)
    return {
        "model_list": models,
        "litellm_settings": {
            "drop_params": True,
            # Counters at /metrics, for a key that opens it: by our names of models, nodes and keys.
            "prometheus_exclude_labels": list(UNCOUNTED),
            # No prompt and no answer goes into what LiteLLM logs.
            "turn_off_message_logging": True,
            # Without it LiteLLM holds a key of somebody neither to its models nor to its routes.
            "enable_post_custom_auth_checks": True,
            "callbacks": ["prometheus", f"{AUTH}.LEDGER"],
        },
        # A request that fails is given to each other replica once, before any fallback. Retries would draw at
        # random, the dead one again, and multiply what one bad request does.
        "router_settings": {
            "routing_strategy": "simple-shuffle",
            "num_retries": 0,
            "enable_weighted_failover": True,
            "allowed_fails": NEVER,
            "allowed_fails_policy": {
                f"{error}ErrorAllowedFails": count for error, count in ALLOWED_FAILS.items()
            },
            "cooldown_time": 30,
            "enable_pre_call_checks": True,
            **({"fallbacks": ways} if ways else {}),
            **({"context_window_fallbacks": longer} if longer else {}),
            **({"model_group_alias": exact} if exact else {}),
            # A conversation stays with the replica that has its beginning in its cache.
            **({"optional_pre_call_checks": ["session_affinity"]} if several else {}),
        },
        # Without background checks this does one thing: where all replicas are kept off, none is.
        "general_settings": {
            "master_key": f"os.environ/{MASTER_KEY_VARIABLE}",
            "enable_health_check_routing": True,
            "custom_auth": f"{AUTH}.user_api_key_auth",
            "custom_auth_run_common_checks": True,
            # Without it a key for some models gets the others as fallbacks.
            "enforce_fallback_model_access": True,
        },
    }


def _called(model: Mapping[str, Any], alias: str) -> dict[str, Any]:
    """A deployment under another name: LiteLLM knows beginnings (`claude-*`) of deployments only."""
    info = {**model["model_info"], "id": f"{model['model_info']['id']} as {alias}"}
    return {**model, "model_name": alias, "model_info": info}


def _shares(endpoints: Sequence[Endpoint]) -> dict[str, int]:
    """The weight of each replica by its id, where the replicas of one name are known not to be alike.

    Not `order`: on LiteLLM 1.106.2 a failure of the first of three goes to the next order before the first's
    twin, and from there out of the house."""
    shares: dict[str, int] = {}
    for name in {e.name for e in endpoints}:
        group = [e for e in endpoints if e.name == name]
        rates = [e.tokens_per_s for e in group if e.tokens_per_s is not None and e.origin != "cloud"]
        if len(rates) < len(group):
            continue
        quarters = [QUARTERS * rate / max(rates) for rate in rates]
        weights = [0 if share < 1 else round(share) for share in quarters]
        if len(set(weights)) > 1:
            shares |= {e.id: weight for e, weight in zip(group, weights, strict=True)}
    return shares


def silence_seconds(e: Endpoint) -> int:
    """How long the gateway waits for the first byte of its answer, and from each to the next."""
    return _step(e.prompt_seconds or 0.0, SILENCE_SECONDS)


def _timeouts(e: Endpoint) -> dict[str, int]:
    """How long its answer may take, whole and between two bytes, in seconds."""
    tokens = min(WHOLE_TOKENS, e.context or WHOLE_TOKENS)
    whole = (e.prompt_seconds or 0.0) + (2 * tokens / e.tokens_per_s if e.tokens_per_s else 0.0)
    return {"timeout": _step(whole, WHOLE_SECONDS), "stream_timeout": silence_seconds(e)}


def _step(seconds: float, steps: Sequence[int]) -> int:
    """The first step that is not below; the last is the most that anybody is made to wait."""
    return next((step for step in steps if step >= seconds), steps[-1])


def _inside(e: Endpoint, node: str | None, share: int | None) -> dict[str, Any]:
    return {
        "model_name": e.name,
        "litellm_params": {
            "model": f"hosted_vllm/{e.upstream}",
            "api_base": f"{e.url_from(node)}/v1",
            "api_key": f"os.environ/{key_variable(e)}",
            **_timeouts(e),
            **({"weight": share} if share is not None else {}),
        },
        "model_info": {
            "id": e.id,
            "mode": e.kind,
            "max_input_tokens": e.context,
            **({"max_output_tokens": e.context} if e.kind == "chat" and e.context else {}),
            **(
                {"supported_endpoints": ["/v1/messages"]}
                if e.kind == "chat" and e.engine in engines() and engines()[e.engine].MESSAGES
                else {}
            ),
        },
    }


def _outside(e: Endpoint) -> dict[str, Any]:
    params: dict[str, Any] = {"model": e.upstream}
    if e.key:
        params["api_key"] = f"os.environ/{key_variable(e)}"
    if e.url:
        params["api_base"] = e.url
    return {"model_name": e.name, "litellm_params": params, "model_info": {"id": e.id}}
