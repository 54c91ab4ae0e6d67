"""Whatever reads OpenAI's variables."""

from __future__ import annotations

from homelab.clients import Access

TITLE = "OpenAI clients (opencode, JetBrains, Continue, the SDKs)"


def setup(access: Access) -> list[str]:
    return [f"export OPENAI_BASE_URL={access.url}/v1 OPENAI_API_KEY=$(cat {access.key_file})"]
