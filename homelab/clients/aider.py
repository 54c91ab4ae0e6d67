"""aider."""

from __future__ import annotations

import json
from typing import Any

from homelab.clients import Access, Environment, File, Launch, Secret, Setup, unknown_context

TITLE = "aider"
BINARY = "aider"
INSTALL = "uv tool install aider-chat==0.86.2"
SOURCE = (
    "https://aider.chat/docs/llms/openai-compat.html, https://aider.chat/docs/config/adv-model-settings.html"
)
TESTED = "0.86.2, 2026-11-24, by environment and flags; its files not run"
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
TRAPS = (
    "The model's name needs `openai/` before it.",
    "It ends with exit code 0 when a request fails.",
    "It calls no tools: it reads the model's answer for edits.",
)


def setup(access: Access) -> Setup:
    model, about = f"openai/{access.model.name}", metadata(access)
    files = [
        File(
            path=".aider.conf.yml",
            format="yaml",
            values={"model": model, "openai-api-base": f"{access.url}/v1"},
        )
    ]
    flags: tuple[str, ...] = ()
    if about:
        files.append(File(path=".aider.model.metadata.json", format="json", values=about))
        flags = ("--model-metadata-file", "{metadata.json}")
    environment: Environment = {"OPENAI_API_BASE": f"{access.url}/v1", "OPENAI_API_KEY": Secret.KEY}
    return Setup(
        environment=environment,
        files=tuple(files),
        warnings=tuple(unknown_context(access, "aider will not say when it is full")),
        launch=Launch(
            argv=("aider", "--model", model, *flags),
            environment=environment,
            files={"metadata.json": json.dumps(about, indent=2)} if about else {},
        ),
    )


def metadata(access: Access) -> dict[str, Any]:
    """The limits of each model of which they are known."""
    return {
        f"openai/{m.name}": {
            "max_tokens": m.max_output_tokens,
            "max_input_tokens": m.context,
            "max_output_tokens": m.max_output_tokens,
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
            "litellm_provider": "openai",
            "mode": "chat",
        }
        for m in access.chat
        if m.context is not None
    }
