"""Claude Code, and what else reads Anthropic's variables."""

from __future__ import annotations

from homelab.clients import Access

TITLE = "Claude Code"


def setup(access: Access) -> list[str]:
    key = f"ANTHROPIC_AUTH_TOKEN=$(cat {access.key_file})"
    return [f"export ANTHROPIC_BASE_URL={access.url} {key} ANTHROPIC_MODEL={access.model}"]
