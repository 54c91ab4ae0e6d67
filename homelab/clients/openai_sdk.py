"""OpenAI's SDKs, and whatever else reads their variables."""

from __future__ import annotations

from homelab.clients import Access, Secret, Setup

TITLE = "OpenAI SDK"
BINARY = None
INSTALL = "pip install openai"
SOURCE = "https://github.com/openai/openai-python"
TESTED = "openai 3.57.0, 2026-11-25"
CA_VARIABLES = ("SSL_CERT_FILE",)
TRAPS = ("The address ends in `/v1`.",)


def setup(access: Access) -> Setup:
    return Setup(
        environment={"OPENAI_BASE_URL": f"{access.url}/v1", "OPENAI_API_KEY": Secret.KEY},
        lines=(
            "from openai import OpenAI",
            'messages = [{"role": "user", "content": "Hello"}]',
            (
                f'print(OpenAI().chat.completions.create(model="{access.model.name}", messages=messages)'
                ".choices[0].message.content)"
            ),
        ),
        why_not="It is a library",
    )
