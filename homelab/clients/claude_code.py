"""Claude Code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from shlex import quote

from homelab.clients import Access, File, Launch, Model, Secret, Setup

TITLE = "Claude Code"
BINARY = "claude"
INSTALL = "npm install -g @anthropic-ai/claude-code@2.1.331"
SOURCE = "https://code.claude.com/docs/en/llm-gateway, https://code.claude.com/docs/en/settings"
TESTED = "2.1.331, 2026-11-25"
TRAPS = (
    (
        "Its own prompt is 18.8k tokens, and it compacts at the context less the longest answer less 13k: at "
        "32k it compacts without end. Serve 64k; under 48k there is a warning. "
        "`--tools Read,Edit,Write,Bash,Glob,Grep` makes the prompt smaller by three quarters, `--bare` "
        "smaller still."
    ),
    (
        "A model that it does not know is believed to have 200k; `CLAUDE_CODE_MAX_CONTEXT_TOKENS` says the "
        "truth. It is ignored for names that begin with `claude-`."
    ),
    (
        "The header `x-anthropic-billing-header` in its prompt differs from request to request, so no prefix "
        "is found in the cache again; `CLAUDE_CODE_ATTRIBUTION_HEADER=0` leaves it out."
    ),
    "`ANTHROPIC_API_KEY` must not be set beside these.",
    "It tries a wrong key eleven times where the gateway answers 401, for three minutes.",
)

# It compacts at context - output - 13,000 and brings 18.8k itself (measured with 2.1.331).
ENOUGH = 48 * 1024
# A prompt of tens of thousands of tokens takes minutes on a small card. The default idle time is 90 s.
IDLE_MS, REQUEST_MS = 600_000, 3_000_000


def setup(access: Access) -> Setup:
    told = variables(access)
    return Setup(
        environment={**told, "ANTHROPIC_AUTH_TOKEN": Secret.KEY},
        unset=("ANTHROPIC_API_KEY",),
        files=(
            File(
                path=".claude/settings.json",
                format="json",
                values={"env": told, "apiKeyHelper": f"cat {quote(access.key_file)}"},
            ),
        ),
        warnings=tuple(warnings(access)),
        launch=Launch(
            # The user's own settings would win over the environment; what is given here wins over them.
            argv=("claude", "--settings", json.dumps({"env": told})),
            environment={**told, "ANTHROPIC_AUTH_TOKEN": Secret.KEY},
            unset=("ANTHROPIC_API_KEY",),
        ),
    )


def variables(access: Access) -> dict[str, str]:
    """Its environment without the key."""
    model, small = access.model.name, small_model(access).name
    told = {
        "ANTHROPIC_BASE_URL": access.url,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": (access.quality or access.model).name,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": small,
        "CLAUDE_CODE_SUBAGENT_MODEL": model,
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "API_TIMEOUT_MS": str(REQUEST_MS),
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": str(max(IDLE_MS, 1000 * (access.model.silence_seconds + 60))),
    }
    if access.model.context is not None:
        told["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] = str(access.model.context)
        told["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(access.model.max_output_tokens)
    return told


def small_model(access: Access) -> Model:
    """What runs as haiku: one number is the context of all, so it must serve as much as the first."""
    small, least = access.small, access.model.context
    if small is None or least is None or small.context is None or small.context < least:
        return access.model
    return small


def warnings(access: Access) -> Iterator[str]:
    context, name = access.model.context, access.model.name
    if context is None:
        yield f"It is not known how much context {name} serves; Claude Code will believe in 200k"
    elif context < ENOUGH:
        yield (
            f"{name} serves {context} tokens. Claude Code brings 18.8k itself and needs 48k to work at all, "
            "64k to work well: give the model more `context`, or use a client with a smaller prompt"
        )
    if name.startswith("claude-") and context is not None:
        yield f"Claude Code believes in 200k for `{name}`, as for each name that begins with claude-"
