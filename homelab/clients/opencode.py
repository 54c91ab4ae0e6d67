"""opencode."""

from __future__ import annotations

import json
from typing import Any

from homelab.clients import KEY_VARIABLE, Access, File, Launch, Secret, Setup, limits, unknown_context

TITLE = "opencode"
BINARY = "opencode"
INSTALL = "npm install -g opencode-ai@1.18.33"
SOURCE = "https://opencode.ai/docs/providers, https://opencode.ai/docs/config"
TESTED = "1.18.33, 2026-11-25"
TRAPS = (
    "Without `limit` it takes the context for 0 and never compacts: the prompt grows until it is refused.",
    "A model that a file names and the house has no more stays there until you take it out.",
)


def setup(access: Access) -> Setup:
    config = values(access)
    return Setup(
        environment={KEY_VARIABLE: Secret.KEY},
        files=(File(path=".config/opencode/opencode.json", format="jsonc", values=config),),
        warnings=tuple(unknown_context(access, "opencode will not compact, and fails where it is full")),
        launch=Launch(
            argv=("opencode",),
            # Joined over its files (`OPENCODE_CONFIG_CONTENT`).
            environment={KEY_VARIABLE: Secret.KEY, "OPENCODE_CONFIG_CONTENT": json.dumps(config)},
        ),
    )


def values(access: Access) -> dict[str, Any]:
    config: dict[str, Any] = {
        "$schema": "https://opencode.ai/config.json",
        "model": f"homelab/{access.model.name}",
    }
    if access.small is not None:
        config["small_model"] = f"homelab/{access.small.name}"
    models: dict[str, Any] = {}
    for model in access.chat:
        limit = limits(model, "context", "output")
        models[model.name] = {
            "name": model.name,
            "tool_call": True,
            **({"limit": limit} if limit else {}),
        }
    config["provider"] = {
        "homelab": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "Homelab",
            "options": {"baseURL": f"{access.url}/v1", "apiKey": f"{{env:{KEY_VARIABLE}}}"},
            "models": models,
        }
    }
    return config
