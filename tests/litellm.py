"""The pinned LiteLLM, started by the supervisor from a folder as a deploy without Docker writes it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from homelab import gateway, keys
from homelab.ask import get
from homelab.endpoints import Endpoint
from homelab.render import GATEWAY_MEMORY_BYTES
from homelab.templating import render_template
from tests.test_native_household import ROOT

SUPERVISE = ROOT / "templates/native/supervise.py"
ENGINE_KEY = "sk-engine"


def write(
    folder: Path,
    python: Path,
    port: int,
    configuration: Mapping[str, Any],
    endpoints: Sequence[Endpoint],
    *,
    key: str,
    house: str | None = None,
    environment: Mapping[str, str] | None = None,
    **document: Any,
) -> None:
    """All files of a gateway. `key` is its own; `house` what it is told of the house, by default these
    endpoints; `environment` and `document` go beside what stands in service.env and service.json."""
    values = {
        **gateway.ENVIRONMENT,
        gateway.MASTER_KEY_VARIABLE: key,
        **{gateway.key_variable(e): ENGINE_KEY for e in endpoints},
        **(environment or {}),
    }
    options = ["--config", "litellm.yml", "--host", "127.0.0.1", "--port", str(port)]
    service = {
        "argv": [str(python), str(python.parent / "litellm"), *options],
        "environment_file": "service.env",
        "memory_limit_bytes": GATEWAY_MEMORY_BYTES,
        **document,
    }
    for name, text in {
        "litellm.yml": render_template("litellm.yml.j2", configuration=configuration),
        keys.AUTH_FILE: render_template(keys.AUTH_FILE),
        keys.HOUSE_FILE: keys.house(endpoints, {}) if house is None else house,
        "service.env": "".join(f"{k}={v}\n" for k, v in values.items()),
        "service.json": json.dumps(service),
    }.items():
        (folder / name).write_text(text)


def supervise(verb: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, SUPERVISE, verb, folder], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def wait_until_live(folder: Path, port: int) -> None:
    until = time.monotonic() + 120
    while asyncio.run(get(f"http://127.0.0.1:{port}{gateway.HEALTH}"))[0] != 200:
        assert time.monotonic() < until, (folder / "log").read_text()[-2000:]
        time.sleep(0.3)


@contextmanager
def running(folder: Path, port: int) -> Iterator[None]:
    supervise("start", folder)
    try:
        wait_until_live(folder, port)
        yield
    finally:
        supervise("stop", folder)
