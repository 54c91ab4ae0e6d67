"""Anthropic's SDKs, and whatever else reads their variables."""

from __future__ import annotations

from homelab.clients import Access, Secret, Setup

TITLE = "Anthropic SDK"
BINARY = None
INSTALL = "pip install anthropic"
SOURCE = "https://github.com/anthropics/anthropic-sdk-python"
TESTED = "anthropic 2.14.0, 2026-11-25"
CA_VARIABLES = ("SSL_CERT_FILE",)
TRAPS = ("The address does not end in `/v1`.", "`ANTHROPIC_API_KEY` must not be set beside these.")


def setup(access: Access) -> Setup:
    longest = access.model.max_output_tokens or 1024
    return Setup(
        environment={"ANTHROPIC_BASE_URL": access.url, "ANTHROPIC_AUTH_TOKEN": Secret.KEY},
        unset=("ANTHROPIC_API_KEY",),
        lines=(
            "from anthropic import Anthropic",
            'messages = [{"role": "user", "content": "Hello"}]',
            (
                f'print(Anthropic().messages.create(model="{access.model.name}", max_tokens={longest}, '
                "messages=messages).content[-1].text)"
            ),
        ),
        why_not="It is a library",
    )
