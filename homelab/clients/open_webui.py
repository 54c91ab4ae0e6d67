"""Open WebUI."""

from __future__ import annotations

from homelab.clients import Access, Environment, Launch, Secret, Setup

TITLE = "Open WebUI"
BINARY = "open-webui"
INSTALL = "uv tool install open-webui==0.12.4"
SOURCE = "https://docs.openwebui.com/getting-started/env-configuration"
TESTED = "0.12.4, 2026-11-24"
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
TRAPS = (
    (
        "What was saved in its settings wins over the environment: after the first start, change the "
        "connection under Admin Settings | Connections."
    ),
    "Its first start takes half a minute. Its accounts are its own, and the first is the administrator's.",
)


def setup(access: Access) -> Setup:
    environment: Environment = {
        "OPENAI_API_BASE_URLS": f"{access.url}/v1",
        "OPENAI_API_KEYS": Secret.KEY,
        "ENABLE_OLLAMA_API": "False",
    }
    return Setup(
        environment=environment,
        lines=("open-webui serve",),
        launch=Launch(argv=("open-webui", "serve"), environment=environment),
    )
