"""Hermes Agent."""

from __future__ import annotations

from typing import Any

from homelab.clients import KEY_VARIABLE, Access, File, Secret, Setup, limits, unknown_context

TITLE = "Hermes Agent"
BINARY = "hermes"
INSTALL = "uv tool install hermes-agent==0.19.0"
SOURCE = "https://hermes-agent.nousresearch.com/docs"
TESTED = "0.19.0, 2026-11-24"
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
TRAPS = ("Its own prompt is 12.9k tokens.",)


def setup(access: Access) -> Setup:
    model: dict[str, Any] = {
        "default": access.model.name,
        "provider": "custom",
        "base_url": f"{access.url}/v1",
        "api_key": f"${{{KEY_VARIABLE}}}",
        **limits(access.model, "context_length", "max_tokens"),
    }
    return Setup(
        environment={KEY_VARIABLE: Secret.KEY},
        files=(File(path=".hermes/config.yaml", format="yaml", values={"model": model}),),
        warnings=tuple(unknown_context(access, "Hermes will guess it")),
        why_not="Its endpoint and its limits stand in its own file only",
    )
