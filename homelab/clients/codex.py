"""Codex CLI."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from homelab.clients import KEY_VARIABLE, Access, File, Launch, Secret, Setup, unknown_context

TITLE = "Codex CLI"
BINARY = "codex"
INSTALL = "npm install -g @openai/codex@0.169.0"
SOURCE = "https://developers.openai.com/codex/config-advanced"
TESTED = "0.169.0, 2026-11-25"
CA_VARIABLES = ("SSL_CERT_FILE",)
TRAPS = (
    'It speaks `/v1/responses` only: `wire_api = "chat"` is refused.',
    "It believes that a model it does not know has 272k; `model_context_window` says the truth.",
    "`model_provider` in a project's own file is ignored: it must stand in `~/.codex/config.toml`.",
    "It has no setting for the longest answer.",
)


def setup(access: Access) -> Setup:
    config = values(access)
    flags = [word for key, value in flat(config) for word in ("-c", f"{key}={json.dumps(value)}")]
    return Setup(
        environment={KEY_VARIABLE: Secret.KEY},
        files=(File(path=".codex/config.toml", format="toml", values=config),),
        warnings=tuple(unknown_context(access, "Codex will believe in 272k")),
        launch=Launch(argv=("codex", *flags), environment={KEY_VARIABLE: Secret.KEY}),
    )


def values(access: Access) -> dict[str, Any]:
    config: dict[str, Any] = {"model": access.model.name, "model_provider": "homelab"}
    context, output = access.model.context, access.model.max_output_tokens
    if context is not None and output is not None:
        config["model_context_window"] = context
        # Before the answer that follows would no longer fit.
        config["model_auto_compact_token_limit"] = context - output
    config["model_providers"] = {
        "homelab": {
            "name": "Homelab",
            "base_url": f"{access.url}/v1",
            "env_key": KEY_VARIABLE,
            "wire_api": "responses",
        }
    }
    return config


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Each value with its dotted key, as `-c` takes them."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield above + key, value
