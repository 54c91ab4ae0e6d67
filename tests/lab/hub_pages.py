"""The hub's answers, request by request."""

from __future__ import annotations

import fnmatch
import json
import re
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from tests.lab.hub import File, Hub, Repo

CHUNK = 256 * 1024


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.commit = status, code, message, commit


class Pages(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip() or None

    def _answer(self) -> None:
        from tests.lab.hub import Asked

        split = urlsplit(self.path)
        path, query = unquote(split.path), parse_qs(split.query)
        self.hub.asked.append(
            Asked(
                self.command,
                self.path,
                self.headers.get("Range"),
                self._token(),
                self.headers.get("User-Agent", ""),
            )
        )
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            for pattern, status in self.hub.broken.items():
                if fnmatch.fnmatch(path, pattern):
                    raise Refused(
                        status, "", "Internal Error - We're working hard to fix this as soon as possible!"
                    )
            if self._token() and self._token() not in self.hub.tokens:
                raise Refused(401, "", "Invalid credentials in Authorization header")
            self._route(path, query, body)
        except Refused as refused:
            headers = {"X-Error-Message": refused.message} | (
                {"X-Error-Code": refused.code} if refused.code else {}
            )
            self._json(
                {"error": refused.message},
                refused.status,
                headers | ({"X-Repo-Commit": refused.commit} if refused.commit else {}),
            )
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _repo(self, name: str, contents: bool) -> Repo:
        """Of a gated repository anyone sees the description, and only those let in the contents."""
        repo, token = self.hub.repos.get(name), self._token()
        inside = repo is not None and token is not None and token in repo.allowed
        if repo is None or (repo.private and not inside):
            # The hub does not tell strangers whether a repository exists.
            raise Refused(
                404 if token else 401,
                "RepoNotFound",
                "Repository not found" if token else "Invalid username or password.",
            )
        if repo.gated and contents and not inside:
            page = f"https://huggingface.co/{name}"
            if token is None:
                raise Refused(
                    401,
                    "GatedRepo",
                    f"Access to model {name} is restricted. You must have access to it and be authenticated "
                    "to access it. Please log in.",
                )
            raise Refused(
                403,
                "GatedRepo",
                f"Access to model {name} is restricted and you are not in the authorized list. Visit {page} "
                "to ask for access.",
            )
        return repo

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if path == "/api/whoami-v2":
            if self._token() is None:
                raise Refused(401, "", "Invalid username or password.")
            return self._json(
                {
                    "type": "user",
                    "name": "lab",
                    "fullname": "Lab",
                    "auth": {"accessToken": {"displayName": "lab", "role": "read"}},
                }
            )
        if path == "/api/models":
            return self._search(query)
        if match := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            if file := self.hub.blob(match[1]):
                return self._send(file, {"ETag": f'"{file.etag}"'})
            raise Refused(404, "", "Not found")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._api(match[1], match[2] or "", query, body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/(?:resolve|raw)/(refs/heads/main|[^/]+)/(.+)", path):
            return self._resolve(*match.groups())
        raise Refused(404, "", "Sorry, we can't find the page you are looking for.")

    def _search(self, query: dict[str, list[str]]) -> None:
        found = [repo.info(name) for name, repo in self.hub.matching(query.get("search", [""])[0])]
        author, tags = (
            query.get("author", [""])[0],
            {t for f in query.get("filter", []) for t in f.split(",")},
        )
        kept = [
            info for info in found if (not author or info["author"] == author) and tags <= set(info["tags"])
        ]
        self._json(kept[: int(query.get("limit", ["1000"])[0])])

    def _api(self, name: str, what: str, query: dict[str, list[str]], body: bytes) -> None:
        verb, _, rest = what.partition("/")
        if verb in ("", "revision"):
            repo = self._repo(name, contents=False)
            self._at(repo, rest or "main")
            info = repo.info(name, blobs=query.get("blobs", [""])[0].lower() in ("1", "true"))
            wanted = {
                key
                for value in query.get("expand", []) + query.get("expand[]", [])
                for key in value.split(",")
            }
            return self._json(
                {k: v for k, v in info.items() if k in wanted | {"_id", "id", "modelId"}} if wanted else info
            )
        repo = self._repo(name, contents=verb == "auth-check")
        if verb == "auth-check":
            return self._json({})
        if verb == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commit}
            return self._json({"branches": [main], "tags": [], "converts": []})
        if verb == "tree":
            revision, _, under = rest.partition("/")
            self._at(repo, revision)
            rows = repo.tree(under.strip("/"), query.get("recursive", [""])[0].lower() in ("1", "true"))
            if under and not rows:
                raise Refused(404, "EntryNotFound", f"{under} does not exist on {revision}")
            return self._json(rows)
        if verb == "paths-info":
            self._at(repo, rest)
            fields = (
                json.loads(body)
                if "json" in self.headers.get("Content-Type", "")
                else parse_qs(body.decode())
            )
            folders = [row for row in repo.tree("", True) if row["type"] == "directory"]
            wanted = set(fields.get("paths", []))
            return self._json(
                [f.entry() for f in repo.files.values() if f.path in wanted]
                + [row for row in folders if row["path"] in wanted]
            )
        if verb == "safetensors-metadata":
            return self._safetensors(repo, rest)
        raise Refused(404, "", f"the lab's hub does not know {verb}")

    def _safetensors(self, repo: Repo, index: str) -> None:
        from tests.lab.hub import safetensors_header

        if index not in repo.files:
            raise Refused(404, "EntryNotFound", "Entry not found", repo.commit)
        content = json.loads(repo.files[index].source.read_text())
        shards = sorted(set(content["weight_map"].values()))
        self._json(
            {
                "index": {"metadata": content.get("metadata")},
                "headers": {s: safetensors_header(repo.files[s].source) for s in shards},
            }
        )

    @staticmethod
    def _at(repo: Repo, revision: str) -> None:
        if not repo.knows(revision):
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, contents=True)
        self._at(repo, revision)
        file = repo.files.get(path)
        if file is None:
            raise Refused(404, "EntryNotFound", "Entry not found", repo.commit)
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if not file.lfs:
            return self._send(file, headers)
        # Large files are elsewhere: a client has to follow, and to read their facts from this answer.
        headers |= {
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": f'"{file.sha256}"',
            "Location": f"{self.hub.cdn}/cdn/{file.sha256}",
        }
        self._head(302, headers, 0)
        return None

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self._head(status, {"Content-Type": "application/json"} | (headers or {}), len(data))
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, file: File, headers: dict[str, str]) -> None:
        first, last, status = 0, file.size - 1, 200
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            if match[1]:
                first, last = int(match[1]), min(int(match[2] or last), last)
            else:
                first = max(0, file.size - int(match[2] or 0))
            if first > last:
                return self._head(416, {"Content-Range": f"bytes */{file.size}"}, 0)
            status = 206
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{file.size}"}
        self._head(
            status,
            {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | headers,
            last - first + 1,
        )
        if self.command != "HEAD":
            self._copy(file, first, last)
        return None

    def _copy(self, file: File, first: int, last: int) -> None:
        cut, self.hub.cut_after = (self.hub.cut_after, None) if file.lfs else (None, self.hub.cut_after)
        left = last - first + 1
        with file.source.open("rb") as f:
            f.seek(first)
            while left > 0 and (cut is None or cut > 0):
                data = f.read(min(CHUNK, left, cut or CHUNK)) or bytes(
                    min(CHUNK, left)
                )  # past the end of what is there: zeros
                self.wfile.write(data)
                left -= len(data)
                cut = None if cut is None else cut - len(data)
                if self.hub.bytes_per_second:
                    time.sleep(len(data) / self.hub.bytes_per_second)
        if left:
            self.close_connection = True
