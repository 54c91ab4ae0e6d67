"""Qwen Code."""

from __future__ import annotations

import json
from typing import Any

from homelab.clients import KEY_VARIABLE, Access, File, Launch, Secret, Setup, unknown_context

TITLE = "Qwen Code"
BINARY = "qwen"
INSTALL = "npm install -g @qwen-code/qwen-code@0.24.4"
SOURCE = "https://qwenlm.github.io/qwen-code-docs/en/users/configuration/settings"
TESTED = "0.24.4, 2026-11-25"
TRAPS = (
    "Without `samplingParams.max_tokens` it asks for answers of 32,768 tokens: too much for a small context.",
    "Its own prompt is 13.9k tokens.",
)


def setup(access: Access) -> Setup:
    config = values(access)
    return Setup(
        environment={KEY_VARIABLE: Secret.KEY},
        files=(File(path=".qwen/settings.json", format="jsonc", values=config, named="id"),),
        warnings=tuple(unknown_context(access, "Qwen Code will guess it from the name")),
        launch=Launch(
            argv=("qwen",),
            # Settings of the system win over those of the user.
            environment={KEY_VARIABLE: Secret.KEY, "QWEN_CODE_SYSTEM_SETTINGS_PATH": "{settings.json}"},
            files={"settings.json": json.dumps(config, indent=2)},
        ),
    )


def values(access: Access) -> dict[str, Any]:
    models = []
    for model in access.chat:
        one: dict[str, Any] = {"id": model.name, "envKey": KEY_VARIABLE, "baseUrl": f"{access.url}/v1"}
        if model.context is not None:
            one["generationConfig"] = {
                "contextWindowSize": model.context,
                "samplingParams": {"max_tokens": model.max_output_tokens},
            }
        models.append(one)
    return {
        "security": {"auth": {"selectedType": "openai"}},
        "model": {"name": access.model.name},
        "modelProviders": {"openai": models},
    }
