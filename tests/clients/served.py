"""The pinned LiteLLM before given endpoints, started by the supervisor as on a node without Docker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from homelab import gateway, keys
from homelab.ask import get
from homelab.endpoints import Endpoint
from homelab.render import GATEWAY_MEMORY_BYTES
from homelab.templating import render_template
from tests.test_native_household import ROOT, free_port

SUPERVISE = ROOT / "templates/native/supervise.py"
ENGINE_KEY = "sk-engine"


def endpoint(name: str, url: str, context: int, engine: str, *, number: int = 0) -> Endpoint:
    """A chat model; `engine` as the gateway should know it."""
    return Endpoint(
        name=name,
        kind="chat",
        url=url,
        key="",
        context=context,
        id=f"{name}/{number}",
        node="n",
        origin="placed",
        upstream=name,
        engine=engine,
    )


class Gateway:
    """It answers while the `with` lasts. `key` is its own; people's keys lie in `folder / "keys"`."""

    def __init__(
        self,
        folder: Path,
        python: Path,
        key: str,
        endpoints: Sequence[Endpoint],
        fallbacks: Mapping[str, Sequence[str]],
    ) -> None:
        self.folder, self.port = folder, free_port()
        environment = {
            **gateway.ENVIRONMENT,
            gateway.MASTER_KEY_VARIABLE: key,
            gateway.KEYS_VARIABLE: "keys",
            **{gateway.key_variable(e): ENGINE_KEY for e in endpoints},
        }
        options = ["--config", "litellm.yml", "--host", "127.0.0.1", "--port", str(self.port)]
        document = {
            "argv": [str(python), str(python.parent / "litellm"), *options],
            "environment_file": "service.env",
            "memory_limit_bytes": GATEWAY_MEMORY_BYTES,
        }
        configuration = gateway.configuration(endpoints, fallbacks, None)
        (folder / "keys").mkdir(mode=0o700)
        for name, text in {
            "litellm.yml": render_template("litellm.yml.j2", configuration=configuration),
            keys.AUTH_FILE: render_template(keys.AUTH_FILE),
            keys.HOUSE_FILE: keys.house(endpoints, {}),
            "service.env": "".join(f"{k}={v}\n" for k, v in environment.items()),
            "service.json": json.dumps(document),
        }.items():
            (folder / name).write_text(text)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Gateway:
        self._supervise("start")
        until = time.monotonic() + 120
        while asyncio.run(get(self.url + gateway.HEALTH))[0] != 200:
            assert time.monotonic() < until, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        self._supervise("stop")

    def _supervise(self, verb: str) -> None:
        subprocess.run([sys.executable, SUPERVISE, verb, self.folder], check=True, capture_output=True)
