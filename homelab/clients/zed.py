"""Zed, the editor."""

from __future__ import annotations

from typing import Any

from homelab.clients import KEY_VARIABLE, Access, File, Secret, Setup

TITLE = "Zed"
BINARY = "zed"
INSTALL = "see https://zed.dev/download"
SOURCE = "https://zed.dev/docs/ai/use-api-access"
TESTED = "not run; keys from Zed's documentation, 2026-11-24"
CA_VARIABLES = ("SSL_CERT_FILE",)
TRAPS = (
    (
        "A Zed that was not started from a shell does not see the variable: give Zed the key then (`agent: "
        "open settings`); it goes into the system's keychain."
    ),
    "`max_tokens` is the context, in spite of its name.",
)


def setup(access: Access) -> Setup:
    models: list[dict[str, Any]] = [
        {
            "name": m.name,
            "display_name": m.name,
            "max_tokens": m.context,
            "max_output_tokens": m.max_output_tokens,
            "capabilities": {
                "tools": True,
                "images": False,
                "parallel_tool_calls": False,
                "prompt_cache_key": False,
            },
        }
        for m in access.chat
        if m.context is not None
    ]
    provider = {"api_url": f"{access.url}/v1", "available_models": models}
    return Setup(
        environment={KEY_VARIABLE: Secret.KEY},
        files=(
            File(
                path=".config/zed/settings.json",
                format="jsonc",
                values={"language_models": {"openai_compatible": {"homelab": provider}}},
            ),
        ),
        warnings=tuple(
            f"It is not known how much context {m.name} serves, and Zed takes no model without one: left out"
            for m in access.chat
            if m.context is None
        ),
        why_not="Zed has models from its own file only",
    )
