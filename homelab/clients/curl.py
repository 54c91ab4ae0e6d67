"""The plain request, to see what comes back."""

from __future__ import annotations

import json
from shlex import quote

from homelab.clients import Access, Setup

TITLE = "curl"
BINARY = "curl"
INSTALL = "apt install curl"
SOURCE = "https://platform.openai.com/docs/api-reference/chat"
TESTED = "7.88.1, 2026-11-25"
CA_VARIABLES: tuple[str, ...] = ()  # `--cacert`
TRAPS = ()


def setup(access: Access) -> Setup:
    body = json.dumps({"model": access.model.name, "messages": [{"role": "user", "content": "Hello"}]})
    key = f'-H "Authorization: Bearer $(cat {quote(access.key_file)})"'
    trust = f"--cacert {quote(access.ca_file)} " if access.ca_file else ""
    return Setup(
        lines=(
            f"curl {trust}{access.url}/v1/chat/completions -H 'Content-Type: application/json' {key} \\",
            f"  -d {quote(body)}",
        ),
        why_not="It asks one thing at a time: homelab ask MODEL 'your question'",
    )
