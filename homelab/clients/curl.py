"""The plain request, to see what comes back."""

from __future__ import annotations

import json

from homelab.clients import Access

TITLE = "curl"


def setup(access: Access) -> list[str]:
    body = json.dumps({"model": access.model, "messages": [{"role": "user", "content": "Hello"}]})
    key = f'-H "Authorization: Bearer $(cat {access.key_file})"'
    return [
        f"curl {access.url}/v1/chat/completions -H 'Content-Type: application/json' {key} \\",
        f"  -d '{body}'",
    ]
