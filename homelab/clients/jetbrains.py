"""JetBrains AI Assistant."""

from __future__ import annotations

from homelab.clients import Access, Setup

TITLE = "JetBrains AI Assistant"
BINARY = None
INSTALL = "the plugin JetBrains AI Assistant, in an IDE of theirs"
SOURCE = "https://www.jetbrains.com/help/ai-assistant/use-custom-models.html"
TESTED = "not run; steps from JetBrains' documentation, 2026-11-24"
TRAPS = ("It can be set up in its windows only; the key goes into the IDE's password store.",)


def setup(access: Access) -> Setup:
    steps = [
        "Settings | Tools | AI Assistant | Providers & API keys",
        "Third-party AI providers: OpenAI-compatible",
        f"URL: {access.url}/v1",
        f"API key: what this prints: cat {access.key_file}",
        "Tool calling: on",
        "Test Connection, then Apply",
        f"Models Assignment: {access.model.name} for core features"
        + (f", {access.small.name} for instant helpers" if access.small else ""),
    ]
    if access.model.context is not None:
        steps.append(f"Context window: {access.model.context}")
    return Setup(steps=tuple(steps), why_not="It lives in an IDE, and is set up there")
