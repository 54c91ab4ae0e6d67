"""A package index over plain HTTP, as pip reads it: a page for each package, with links to its wheels."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class Index:
    """Its address is fixed from the beginning, and refuses connections until the `with` block is entered."""

    def __init__(self, folder: Path, wheels: list[Path], address: str) -> None:
        for wheel in wheels:
            page = folder / "simple" / wheel.name.split("-")[0].replace("_", "-").lower()
            page.mkdir(parents=True, exist_ok=True)
            (page / wheel.name).symlink_to(wheel)
        self._server = ThreadingHTTPServer(
            (address, 0), partial(Quiet, directory=str(folder)), bind_and_activate=False
        )
        self._server.server_bind()
        self.url = f"http://{address}:{self._server.server_address[1]}/simple"

    def __enter__(self) -> Index:
        self._server.server_activate()
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
