"""The pinned LiteLLM before given endpoints, started by the supervisor as on a node without Docker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from homelab import gateway
from homelab.endpoints import Endpoint
from tests import litellm
from tests.test_native_household import free_port


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
        configuration = gateway.configuration(endpoints, fallbacks, None)
        (folder / "keys").mkdir(mode=0o700)
        beside = {gateway.KEYS_VARIABLE: "keys"}
        litellm.write(folder, python, self.port, configuration, endpoints, key=key, environment=beside)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Gateway:
        litellm.supervise("start", self.folder)
        litellm.wait_until_live(self.folder, self.port)
        return self

    def __exit__(self, *_: object) -> None:
        litellm.supervise("stop", self.folder)
