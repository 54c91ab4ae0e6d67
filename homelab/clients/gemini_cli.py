"""Gemini CLI."""

from __future__ import annotations

import json

from homelab.clients import Access, Environment, File, Launch, Secret, Setup

TITLE = "Gemini CLI"
BINARY = "gemini"
INSTALL = "npm install -g @google/gemini-cli@0.61.0"
SOURCE = "https://geminicli.com/docs/get-started/configuration"
TESTED = "0.61.0, 2026-11-24, through LiteLLM; by its own settings, not as launched"
TRAPS = (
    "It speaks Google's protocol, which only the gateway translates: no engine does.",
    (
        "It has no setting for the context: it believes in Gemini's million, and fails where yours is full. "
        "Type `/compress` before that."
    ),
)

AUTH = {"security": {"auth": {"selectedType": "gemini-api-key"}}}


def setup(access: Access) -> Setup:
    environment: Environment = {
        "GOOGLE_GEMINI_BASE_URL": access.url,
        "GEMINI_API_KEY": Secret.KEY,
        "GEMINI_MODEL": access.model.name,
    }
    return Setup(
        environment=environment,
        files=(File(path=".gemini/settings.json", format="jsonc", values=AUTH),),
        warnings=("Gemini CLI cannot be told the context: `/compress` before it is full",),
        launch=Launch(
            argv=("gemini", "-m", access.model.name),
            environment={**environment, "GEMINI_CLI_SYSTEM_SETTINGS_PATH": "{settings.json}"},
            files={"settings.json": json.dumps(AUTH, indent=2)},
        ),
    )
