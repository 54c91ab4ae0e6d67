"""Cline, its command line."""

from __future__ import annotations

import json
from shlex import quote

from homelab.clients import Access, Launch, Setup, reading

TITLE = "Cline"
BINARY = "cline"
INSTALL = "npm install -g cline@3.0.65"
SOURCE = "https://docs.cline.bot/provider-config/openai-compatible"
TESTED = "3.0.65, 2026-11-24 by `cline auth`, 2026-11-25 launched; the extension for VS Code not run"
TRAPS = (
    (
        "It keeps the key itself, in `~/.cline/data/settings/providers.json`, so homelab leaves that file to "
        "`cline auth`."
    ),
    "A `cline --cline-hub-daemon` goes on running after it.",
    (
        "The extension for VS Code is set up by hand: API Provider `OpenAI Compatible`, base URL with `/v1`, "
        "the key, the model's name, and under Model Configuration its context window."
    ),
)


def setup(access: Access) -> Setup:
    url, model = f"{access.url}/v1", access.model.name
    provider = {
        "provider": "openai-compatible",
        "apiKey": "{key}",
        "model": model,
        "baseUrl": url,
    }
    return Setup(
        lines=(
            (
                f"cline auth --provider openai-compatible --apikey {reading(access.key_file)} "
                f"--modelid {quote(model)} --baseurl {quote(url)}"
            ),
        ),
        launch=Launch(
            argv=("cline",),
            # In place of ~/.cline/data/settings/providers.json, of which `cline auth` writes this form.
            environment={"CLINE_PROVIDER_SETTINGS_PATH": "{providers.json}"},
            files={
                "providers.json": json.dumps(
                    {
                        "version": 1,
                        "lastUsedProvider": "openai-compatible",
                        "modes": {},
                        "providers": {
                            "openai-compatible": {
                                "settings": provider,
                                "updatedAt": "2026-11-25T00:00:00.000Z",
                                "tokenSource": "manual",
                            }
                        },
                    },
                    indent=2,
                )
            },
        ),
    )
