"""Continue: its command line, and the extensions for VS Code and JetBrains, which read the same file."""  # noqa: N999

from __future__ import annotations

from typing import Any

from homelab.clients import KEY_VARIABLE, Access, File, Launch, Secret, Setup, limits, unknown_context
from homelab.merging import written

TITLE = "Continue"
BINARY = "cn"
INSTALL = "npm install -g @continuedev/cli@1.5.47"
SOURCE = "https://docs.continue.dev/reference"
TESTED = "@continuedev/cli 1.5.47, 2026-11-25; the extensions not run"
TRAPS = (
    (
        "The extensions see the variable only where the editor was started from a shell that has it; "
        "else put `HOMELAB_API_KEY=…` into `~/.continue/.env`."
    ),
)


def setup(access: Access) -> Setup:
    config = values(access)
    return Setup(
        environment={KEY_VARIABLE: Secret.KEY},
        files=(File(path=".continue/config.yaml", format="yaml", values=config),),
        warnings=tuple(unknown_context(access, "Continue will guess it")),
        launch=Launch(
            argv=("cn", "--config", "{config.yaml}"),
            environment={KEY_VARIABLE: Secret.KEY},
            files={"config.yaml": written(config, "yaml")},
        ),
    )


def values(access: Access) -> dict[str, Any]:
    models = []
    for model in access.chat:
        one: dict[str, Any] = {
            "name": model.name,
            "provider": "openai",
            "model": model.name,
            "apiBase": f"{access.url}/v1",
            "apiKey": f"${{{{ secrets.{KEY_VARIABLE} }}}}",
            "roles": ["chat", "edit", "apply"],
            "capabilities": ["tool_use"],
        }
        limit = limits(model, "contextLength", "maxTokens")
        models.append({**one, **({"defaultCompletionOptions": limit} if limit else {})})
    return {"name": "Homelab", "version": "1.0.0", "schema": "v1", "models": models}
