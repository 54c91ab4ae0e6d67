"""Open WebUI: a page for chatting, with accounts of its own. Every variable here was seen in the source of
0.12.4 (`env.py`, `config.py`, `start.sh`) and to take effect on it.

It takes its settings from the environment when it starts for the first time; from then on those count that
its administrator sees. The gateway's address and key are therefore put there before each start."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from homelab.apps import Place
from homelab.program import Offer

NAME = "open_webui"
TITLE = "Open WebUI"
OFFER = Offer(
    name="open-webui",
    images={"cpu": "ghcr.io/open-webui/open-webui:v0.12.4"},
    executable="open-webui",
)
SETTINGS = "homelab_open_webui.py"
FILES = (SETTINGS,)
INSTALL = "uv tool install --python 3.12 open-webui==0.12.4"
FIRST = "who signs up first is its administrator, and lets the others in"
PORT = 3000
HEALTH = "/health"
DATA = "/app/backend/data"
KEY_VARIABLE = "OPENAI_API_KEYS"
SECRET_VARIABLE = "WEBUI_SECRET_KEY"
# 0.8 GiB after an answer (measured, 0.12.4). A document that somebody hands it is read in that, too.
MEMORY_LIMIT_BYTES = 2 * 1024**3


def command(place: Place) -> tuple[str, ...]:
    if place.program is None:  # `bash start.sh` is the image's own command
        return ("bash", "-c", f"python3 /app/{SETTINGS} && exec bash start.sh")
    serve = shlex.join([place.program, "serve", "--host", place.host, "--port", str(place.port)])
    return ("/bin/sh", "-c", f"{shlex.quote(place.python or 'python3')} {SETTINGS} && exec {serve}")


def environment(place: Place) -> Mapping[str, str]:
    return {
        "HOST": place.host,
        "PORT": str(place.port),
        "DATA_DIR": place.data,
        "OPENAI_API_BASE_URLS": f"{place.gateway_url}/v1",
        "ENABLE_OLLAMA_API": "False",
        # Whatever it would download or ask outside: models for documents and speech, versions, its community.
        "OFFLINE_MODE": "True",
        "HF_HUB_OFFLINE": "1",
        "ENABLE_COMMUNITY_SHARING": "False",
        "ANONYMIZED_TELEMETRY": "false",
        "SCARF_NO_ANALYTICS": "true",
        # A document goes into the prompt as it is: it has no model to make vectors with.
        "BYPASS_EMBEDDING_AND_RETRIEVAL": "True",
        # Its own tools (notes, memory, calendar …) are 4,100 tokens before each question (measured), and a
        # small model loses itself in them. Its administrator can turn them on for a model.
        "DEFAULT_MODEL_METADATA": '{"capabilities": {"builtin_tools": false}}',
        # Two more requests for each answer, to one model at home: what one might ask next, and tags.
        "ENABLE_FOLLOW_UP_GENERATION": "False",
        "ENABLE_TAGS_GENERATION": "False",
        # The first account is the administrator's. It closes the door behind itself, and who is let in later
        # waits for a yes.
        "ENABLE_SIGNUP": "True",
        "DEFAULT_USER_ROLE": "pending",
        # Everybody may use every model that its key opens; without, only its administrator sees any.
        "BYPASS_MODEL_ACCESS_CONTROL": "True",
        # Of other pages none may read what it answers. At an address that is not among these no answer comes.
        "CORS_ALLOW_ORIGIN": ";".join(place.urls),
    }
