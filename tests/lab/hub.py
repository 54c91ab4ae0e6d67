"""A stand-in for the Hugging Face hub over plain HTTP: repositories are folders; the API is what
huggingface_hub, llama.cpp and vLLM ask.

with Hub({"org/model": Repo(folder)}) as hub:
    HfApi(endpoint=hub.url).model_info("org/model")
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.hub_pages import Pages

LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
WHEN = "2026-01-02T03:04:05.000Z"


@cache
def _sha256(path: Path, _changed: int) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@dataclass(frozen=True)
class File:
    """Sizes may be claimed larger than what is on the disk: a repository that is too
    big for this box to hold."""

    path: str
    source: Path
    claimed_size: int | None = None

    @property
    def size(self) -> int:
        return self.source.stat().st_size if self.claimed_size is None else self.claimed_size

    @property
    def lfs(self) -> bool:
        return self.path.endswith(LFS_SUFFIXES)

    @cached_property
    def sha256(self) -> str:
        return _sha256(self.source.resolve(), self.source.stat().st_mtime_ns)

    @cached_property
    def git_oid(self) -> str:
        data = (
            (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
            ).encode()
            if self.lfs
            else self.source.read_bytes()
        )
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid

    def entry(self) -> dict[str, Any]:
        """As a row of the file tree."""
        row: dict[str, Any] = {"type": "file", "oid": self.git_oid, "size": self.size, "path": self.path}
        if self.lfs:
            row["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return row


@dataclass
class Repo:
    """gated: "manual" or "auto" wants a token that is in `allowed`; private hides the
    repository from everyone else."""

    folder: Path
    gated: str | bool = False
    private: bool = False
    allowed: frozenset[str] = frozenset()
    claimed_sizes: Mapping[str, int] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})
    downloads: int = 1234

    @cached_property
    def files(self) -> dict[str, File]:
        paths = sorted(p for p in self.folder.rglob("*") if p.is_file())
        names = {p: p.relative_to(self.folder).as_posix() for p in paths}
        return {name: File(name, p, self.claimed_sizes.get(name)) for p, name in names.items()}

    @cached_property
    def commit(self) -> str:
        return hashlib.sha1("\0".join(f"{f.path} {f.etag}" for f in self.files.values()).encode()).hexdigest()

    def knows(self, revision: str) -> bool:
        return revision in ("main", "HEAD", "refs/heads/main", self.commit, self.commit[:7])

    def tree(self, under: str, recursive: bool) -> list[dict[str, Any]]:
        rows, folders = [], dict[str, None]()
        for file in self.files.values():
            if under and not file.path.startswith(under + "/"):
                continue
            rest = file.path[len(under) + 1 :] if under else file.path
            parents = rest.split("/")[:-1]
            depth = range(1, len(parents) + 1) if recursive else range(1, min(2, len(parents) + 1))
            folders |= dict.fromkeys("/".join(([under] if under else []) + parents[:n]) for n in depth)
            if recursive or not parents:
                rows.append(file.entry())
        return [
            {"type": "directory", "oid": hashlib.sha1(f.encode()).hexdigest(), "size": 0, "path": f}
            for f in folders
        ] + rows

    def _json(self, name: str) -> dict[str, Any]:
        return json.loads(self.files[name].source.read_text()) if name in self.files else {}

    def safetensors(self) -> dict[str, Any] | None:
        counts: dict[str, int] = {}
        for file in self.files.values():
            if file.path.endswith(".safetensors"):
                for name, tensor in safetensors_header(file.source).items():
                    if name != "__metadata__":
                        numbers = 1
                        for side in tensor["shape"]:
                            numbers *= side
                        counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + numbers
        return {"parameters": counts, "total": sum(counts.values())} if counts else None

    def info(self, repo_id: str, blobs: bool = False) -> dict[str, Any]:
        config = self._json("config.json")
        ggufs = [f for f in self.files.values() if f.path.endswith(".gguf")]
        weights = self.safetensors()
        kinds = (["gguf"] if ggufs else []) + (["safetensors"] if weights else [])
        tags = [
            *kinds,
            *([config["model_type"]] if "model_type" in config else []),
            "text-generation",
            "endpoints_compatible",
            "region:us",
        ]
        siblings = []
        for file in self.files.values():
            row: dict[str, Any] = {"rfilename": file.path}
            if blobs:
                row |= {"size": file.size, "blobId": file.git_oid}
                if file.lfs:
                    row["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
            siblings.append(row)
        found = {
            "_id": self.commit[:24], "id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0],
            "sha": self.commit, "private": self.private,
            "gated": self.gated, "disabled": False, "downloads": self.downloads, "likes": 7,
            "pipeline_tag": "text-generation", "library_name": "transformers",
            "tags": tags, "createdAt": WHEN, "lastModified": WHEN, "cardData": dict(self.card),
            "siblings": siblings, "spaces": [],
            "usedStorage": sum(f.size for f in self.files.values()),
            "config": {
                k: config[k] for k in ("architectures", "model_type", "quantization_config") if k in config
            },
        }  # fmt: skip
        if weights:
            found["safetensors"] = weights
        if ggufs:
            found["gguf"] = {
                "total": max(f.size for f in ggufs),
                "architecture": "llama",
                "context_length": 8192,
            }
        return found


def safetensors_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as f:
        header: dict[str, Any] = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    return header


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    range: str | None
    token: str | None
    agent: str


class Hub:
    """Serves `repos` on a background thread while the `with` block runs. `asked` holds every request."""

    def __init__(
        self,
        repos: Mapping[str, Repo | Path],
        address: str = "127.0.0.1",
        port: int = 0,
        tokens: frozenset[str] = frozenset({"hf_lab"}),
    ) -> None:
        self.repos = {name: repo if isinstance(repo, Repo) else Repo(repo) for name, repo in repos.items()}
        self.tokens = tokens
        self.asked: list[Asked] = []
        self.broken: dict[str, int] = {}  # path pattern -> status: requests that are to fail
        self.bytes_per_second: int | None = None
        self.cut_after: int | None = None  # end the next file's connection after so many bytes, once
        pages = type("LabPages", (Pages,), {"hub": self})
        # Clients keep to the hub's own host and port what they must not tell the store of large files.
        self._servers = [
            ThreadingHTTPServer((address, port), pages),
            ThreadingHTTPServer((address, 0), pages),
        ]
        self.url, self.cdn = (f"http://{address}:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def paths(self, pattern: str = "*") -> list[str]:
        return [a.path for a in self.asked if fnmatch.fnmatch(a.path, pattern)]

    def blob(self, sha256: str) -> File | None:
        return next(
            (f for repo in self.repos.values() for f in repo.files.values() if f.lfs and f.sha256 == sha256),
            None,
        )

    def matching(self, search: str) -> Iterator[tuple[str, Repo]]:
        return (
            (name, repo)
            for name, repo in self.repos.items()
            if search.lower() in name.lower() and not repo.private
        )
