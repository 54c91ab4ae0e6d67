"""One question to a model through the gateway, of the model's kind; and what an engine says it serves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx

from homelab.engines import Kind
from homelab.errors import DeployError

TIMEOUT_SECONDS = 300.0
QUESTION = "Say hello in one short sentence."
MAX_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back. `text` is the answer, or for embedding and rerank what it consists of."""

    model: str
    text: str
    seconds: float
    served_by: str | None = None


async def ask(
    url: str, key: str, model: str, kind: Kind, prompt: str = QUESTION, max_tokens: int = MAX_TOKENS
) -> Answer:
    """The model's answer through the gateway at `url`.

    Raises DeployError with the gateway's own words."""
    body: dict[str, Any]
    match kind:
        case "chat":
            path, body = (
                "/v1/chat/completions",
                {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens},
            )
        case "embedding":
            path, body = "/v1/embeddings", {"model": model, "input": prompt}
        case "rerank":
            path, body = (
                "/v1/rerank",
                {
                    "model": model,
                    "query": prompt,
                    "documents": ["Hello there.", "The cellar is full of potatoes."],
                },
            )
    begun = time.monotonic()
    try:
        async with httpx.AsyncClient(
            timeout=httpx.Timeout(TIMEOUT_SECONDS, connect=5), trust_env=False
        ) as client:
            response = await client.post(url + path, json=body, headers={"Authorization": f"Bearer {key}"})
    except httpx.HTTPError as e:
        raise DeployError(
            f"The gateway at {url} does not answer", cause=str(e) or type(e).__name__, hint="homelab status"
        ) from e
    if response.status_code != 200:
        if _is_of_another_key(response):
            raise DeployError(
                f"The gateway at {url} does not know this key",
                cause=f"HTTP {response.status_code}: {_message(response)}",
                hint="Remove secrets.json from the folder where `homelab connect` says that the key lies, "
                "then `homelab status`: it reads the key back from the gateway's node",
            )
        raise DeployError(
            f"`{model}` did not answer through the gateway",
            cause=f"HTTP {response.status_code}: {_message(response)}",
            hint=f"homelab logs {model}; homelab logs gateway",
        )
    try:
        text = _text(kind, response.json())
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise DeployError(
            f"`{model}` gave an answer that is none", cause=response.text[:300], hint=f"homelab logs {model}"
        ) from e
    return Answer(
        model=model,
        text=text,
        seconds=time.monotonic() - begun,
        served_by=response.headers.get("x-litellm-model-id"),
    )


def _text(kind: Kind, document: Any) -> str:
    match kind:
        case "chat":
            message = document["choices"][0]["message"]
            text = str(message.get("content") or message.get("reasoning_content") or "").strip()
            # A model may say anything; control characters would steer the terminal.
            return "".join(c for c in text if c.isprintable() or c in "\n\t")
        case "embedding":
            return f"{len(document['data'][0]['embedding'])} dimensions"
        case "rerank":
            return "order " + ", ".join(str(r["index"]) for r in document["results"])


def _is_of_another_key(response: httpx.Response) -> bool:
    """LiteLLM looks for a key that is not its own in a database and says that it has none: HTTP 400 with
    this type (1.106.2)."""
    try:
        return bool(response.json()["error"]["type"] == "no_db_connection")
    except (ValueError, KeyError, TypeError):
        return False


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:600]
    except (ValueError, KeyError, TypeError):
        return response.text[:300]


async def get(url: str, key: str | None = None, timeout: float = 5.0) -> tuple[int, Any]:
    """The status and JSON of a GET; status 0 where nothing answers."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            response = await client.get(url, headers=headers)
    except httpx.HTTPError:
        return 0, None
    try:
        return response.status_code, response.json()
    except ValueError:
        return response.status_code, None
