"""pi, the coding agent."""

from __future__ import annotations

import json
from typing import Any

from homelab.clients import KEY_VARIABLE, Access, File, Launch, Secret, Setup, limits, unknown_context

TITLE = "pi"
BINARY = "pi"
INSTALL = "npm install -g @mariozechner/pi-coding-agent@0.73.1"
SOURCE = "https://github.com/badlogic/pi-mono/tree/main/packages/coding-agent/docs"
TESTED = "0.73.1, 2026-11-25"
TRAPS = ("Its own prompt is 1.3k tokens, the smallest of all with tools: the one for small contexts.",)


def setup(access: Access) -> Setup:
    provider = values(access)
    return Setup(
        environment={KEY_VARIABLE: Secret.KEY},
        files=(
            File(
                path=".pi/agent/models.json",
                format="json",
                values={"providers": {"homelab": provider}},
                named="id",
            ),
        ),
        lines=(f"pi --provider homelab --model {access.model.name}",),
        warnings=tuple(unknown_context(access, "pi will believe in 128k")),
        launch=Launch(
            argv=("pi", "-e", "{homelab.js}", "--provider", "homelab", "--model", access.model.name),
            environment={KEY_VARIABLE: Secret.KEY},
            files={
                "homelab.js": "export default function (pi) {\n"
                f'  pi.registerProvider("homelab", {json.dumps(provider, indent=2)});\n}}\n'
            },
        ),
    )


def values(access: Access) -> dict[str, Any]:
    return {
        "baseUrl": f"{access.url}/v1",
        "api": "openai-completions",
        "apiKey": KEY_VARIABLE,  # the variable's name
        "models": [
            {
                "id": m.name,
                "name": m.name,
                "reasoning": False,
                "input": ["text"],
                "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
                # pi has numbers of its own where these are missing, and registers no model without them.
                **(limits(m, "contextWindow", "maxTokens") or {"contextWindow": 128000, "maxTokens": 16384}),
            }
            for m in access.chat
        ],
    }
