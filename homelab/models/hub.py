"""Reads the headers of models without their weights: from a Hugging Face hub by ranged requests, or from a
file on this machine.

Effects: network, a cache folder, and the agent's reader as a subprocess (it parses strangers' bytes, so not
in this process)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab import resources
from homelab.errors import HomelabError, InventoryError, NodeError
from homelab.models.source import parse_source

LAYOUT = 2  # of the cached documents; a newer homelab does not read an older one's
FIRST_BYTES = 4 * 2**20  # most headers with their vocabulary are 2 to 12 MB
MAX_HEADER = 2**28
MAX_CONFIG = 2**24
FIRST_SAFETENSORS_BYTES = 100_000
MAX_SAFETENSORS_HEADER = 100_000_000  # safetensors 0.6 reads no longer one
MAX_LISTING = 2**26  # of a repository with tens of thousands of files
MAX_REQUESTS = 8  # at once, for the parts of one model
TIMEOUT_S = 20.0
SLOWEST_BYTES_PER_S = 32 * 2**10  # a line that brings less than this is not waited for
READER_S = 120.0
TRUNCATED_STATUS = 3  # of the agent's reader
COMMIT = re.compile(r"[0-9a-f]{7,64}")
DIGITS = re.compile(r"\d+")
SPLIT = re.compile(r"^(?P<prefix>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf$")
# Files beside a model that llama.cpp does not take for one (`common/download.cpp`, gguf_filename_is_model).
SIDECARS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
DEFAULT_QUANTS = ("Q4_K_M", "Q8_0")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repository:
    endpoint: str
    token: str | None
    name: str
    revision: str
    sizes: dict[str, int]


def read_header(
    source: str, *, endpoint: str | None = None, token: str | None = None, cache_dir: Path | None = None
) -> dict[str, Any]:
    """The header document of a hub model: `Org/Repo` (safetensors, or its GGUF when it has nothing else) or
    `Org/Repo:QUANT`.

    Cached by repository, quantisation and commit; without network the last one read is the answer. Raises
    InventoryError for what the user wrote (no such repository, gated, no such quantisation) and NodeError
    when the hub cannot be reached; never another exception."""
    parsed = parse_source(source)
    if parsed.repo is None:
        raise InventoryError(f"`{source}` is not on the hub")
    folder = (cache_dir or _default_cache()) / f"v{LAYOUT}" / source.replace("/", "--").replace(":", "@")
    try:
        with _explained(parsed.repo, endpoint):
            repository = _open(parsed.repo, endpoint, token)
    except NodeError:
        if (kept := _load(folder / "last.json")) is not None:
            return kept
        raise
    cached = folder / f"{repository.revision}.json"
    if (known := _load(cached)) is not None:
        return known
    with _explained(parsed.repo, endpoint):
        wanted = parsed.quant or not any(name.endswith(".safetensors") for name in repository.sizes)
        document = _gguf(repository, parsed.quant) if wanted else _safetensors(repository)
    document["revision"] = repository.revision
    _save(cached, document)
    _save(folder / "last.json", document)
    return document


def read_file(path: Path) -> dict[str, Any]:
    """The header document of a GGUF file on this machine, with all parts of a split one.

    Raises InventoryError when it is not a complete GGUF file."""
    status, answer = _reader(path)
    if status != 0:
        raise InventoryError(
            f"`{path}` is not a model that homelab can read",
            cause=str(answer.get("error", "")),
            hint="It wants a .gguf file.",
        )
    return answer


def choose_gguf(names: list[str], quant: str | None) -> list[str]:
    """The files of a repository that llama.cpp would take for a quantisation, all parts of a split one in
    order; empty when none matches.

    Without a quantisation Q4_K_M, then Q8_0, then the first (llama.cpp 0.6.0 `find_best_model`)."""
    models = [
        n for n in names if n.endswith(".gguf") and not any(s in n.rpartition("/")[2] for s in SIDECARS)
    ]
    firsts = [n for n in models if (m := SPLIT.match(n)) is None or int(m["index"]) == 1]
    for wanted in [quant] if quant else DEFAULT_QUANTS:
        pattern = re.compile(re.escape(wanted) + "[.-]", re.IGNORECASE)
        if found := next((n for n in firsts if pattern.search(n)), None):
            return _parts(found)
    return _parts(firsts[0]) if firsts and not quant else []


def _parts(first: str) -> list[str]:
    match = SPLIT.match(first)
    if match is None:
        return [first]
    return [f"{match['prefix']}-{i:05d}-of-{match['count']}.gguf" for i in range(1, int(match["count"]) + 1)]


def _open(repo: str, endpoint: str | None, token: str | None) -> _Repository:
    from huggingface_hub import constants, get_token

    where, own = (endpoint or constants.ENDPOINT).rstrip("/"), token or get_token()
    text = _get(f"{where}/api/models/{repo}?blobs=true", own, 0, MAX_LISTING, whole=False)
    document = json.loads(text)
    revision, siblings = (document.get("sha"), document.get("siblings") or ()) if document else (None, ())
    # The cache's file is named after it.
    if not isinstance(revision, str) or COMMIT.fullmatch(revision) is None:
        raise ValueError(f"the hub names no commit of it, but {str(revision)[:80]!r}")
    sizes = {str(s["rfilename"]): int(s.get("size") or 0) for s in siblings}
    return _Repository(endpoint=where, token=own, name=repo, revision=revision, sizes=sizes)


def _safetensors(repository: _Repository) -> dict[str, Any]:
    """The same document that the agent makes of a folder."""
    config = _json(repository, "config.json")
    names = _safetensors_names(repository)
    dtypes: dict[str, int] = {}
    groups: dict[str, list[Any]] = {}
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        headers = list(pool.map(lambda name: _safetensors_header(repository, name), names))
    for name, dtype, size in (row for header in headers for row in header):
        dtypes[dtype] = dtypes.get(dtype, 0) + size
        pattern = DIGITS.sub("*", name)
        if groups.get(pattern, [0, 0, dtype])[2] != dtype:
            pattern += f" {dtype}"
        group = groups.setdefault(pattern, [0, 0, dtype])
        group[0] += 1
        group[1] += size
    return {
        "format": "safetensors",
        "config": config,
        "tensor_bytes": sum(dtypes.values()),
        "dtypes": dtypes,
        "groups": groups,
        "files": [[name, repository.sizes[name]] for name in names],
    }


def _safetensors_names(repository: _Repository) -> list[str]:
    """The one file of a model, else those that its index names."""
    single, index = "model.safetensors", "model.safetensors.index.json"
    if single in repository.sizes:
        return [single]
    if index not in repository.sizes:
        raise InventoryError(
            f"`{repository.name}` has no safetensors weights",
            cause=f"It has neither {single} nor {index}",
            hint=f"For a GGUF, name its quantisation: {repository.name}:Q4_K_M",
        )
    parts = _json(repository, index).get("weight_map")
    names = sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else []
    if not names or (missing := [n for n in names if n not in repository.sizes]):
        cause = ", ".join(missing[:3]) if names else f"{index} names none"
        raise InventoryError(f"`{repository.name}` lacks parts of its weights", cause=cause)
    return names


def _safetensors_header(repository: _Repository, name: str) -> list[tuple[str, str, int]]:
    """Each tensor's name, type and bytes."""
    size = repository.sizes[name]
    have = _fetch(repository, name, 0, min(FIRST_SAFETENSORS_BYTES, size))
    end = 8 + int.from_bytes(have[:8], "little")
    try:
        if len(have) < 8 or end > min(size, MAX_SAFETENSORS_HEADER):
            raise ValueError(f"a header of {end - 8} bytes in a file of {size}")
        if end > len(have):
            have += _fetch(repository, name, len(have), end)
        return [
            (str(key), str(tensor["dtype"]), int(tensor["data_offsets"][1]) - int(tensor["data_offsets"][0]))
            for key, tensor in json.loads(have[8:end]).items()
            if key != "__metadata__"
        ]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as e:
        raise InventoryError(
            f"`{name}` of `{repository.name}` is not safetensors", cause=str(e)[:200] or type(e).__name__
        ) from e


def _json(repository: _Repository, name: str) -> dict[str, Any]:
    size = min(repository.sizes.get(name) or 2**20, MAX_CONFIG)
    try:
        document = json.loads(_fetch(repository, name, 0, size, whole=False))
    except (ValueError, RecursionError) as e:
        raise InventoryError(f"`{name}` of `{repository.name}` is not JSON", cause=str(e)[:200]) from e
    if not isinstance(document, dict):
        raise InventoryError(f"`{name}` of `{repository.name}` is no mapping")
    return document


def _gguf(repository: _Repository, quant: str | None) -> dict[str, Any]:
    names = choose_gguf(sorted(repository.sizes), quant)
    if missing := [n for n in names if n not in repository.sizes]:
        raise InventoryError(f"`{repository.name}` lacks parts of `{names[0]}`", cause=", ".join(missing[:3]))
    if not names:
        raise InventoryError(
            f"`{repository.name}` has no GGUF file of quantisation {quant}"
            if quant
            else f"`{repository.name}` has no model weights",
            cause="It has " + (", ".join(sorted(_quants(repository.sizes))) or "no GGUF files at all"),
            hint=f"Write one of those: {repository.name}:QUANT"
            if _quants(repository.sizes)
            else "Name another repository.",
        )
    documents = [_gguf_header(repository, name) for name in names]
    first = documents[0]
    first["tensors"] = [tensor for document in documents for tensor in document["tensors"]]
    first["file_bytes"] = sum(document["file_bytes"] for document in documents)
    first["files"] = [[name, repository.sizes[name]] for name in names]
    # Only their sizes: most users of a model with projectors run it without, and each header is another
    # request.
    beside = {n: size for n, size in repository.sizes.items() if "mmproj" in n and n.endswith(".gguf")}
    first["projectors"] = {name: {"file_bytes": size} for name, size in beside.items()}
    return first


def _quants(names: dict[str, int]) -> set[str]:
    found = set()
    for name in names:
        if choose_gguf([name], None):
            stem = SPLIT.sub(r"\g<prefix>.gguf", name).removesuffix(".gguf")
            match = re.search(r"[-.]([A-Za-z0-9_]+)$", stem)
            found.add(match[1].upper() if match else stem)
    return found


def _gguf_header(repository: _Repository, name: str) -> dict[str, Any]:
    size = repository.sizes[name]
    if size <= 0:
        raise EOFError(f"the hub says no size of {name}")
    with tempfile.TemporaryDirectory(prefix="homelab-") as folder:
        path = Path(folder) / "model.gguf"  # not the true name: the reader would look for the other parts
        wanted = FIRST_BYTES
        with path.open("ab") as file:
            while True:
                have = file.tell()
                file.write(_fetch(repository, name, have, min(max(wanted, have + 1), size)))
                file.flush()
                status, answer = _reader(path, size)
                if status == 0:
                    return answer
                need = int(answer.get("need_bytes", 0))
                if status != TRUNCATED_STATUS or file.tell() >= min(size, MAX_HEADER):
                    raise InventoryError(
                        f"`{name}` of `{repository.name}` is not a GGUF that homelab can read",
                        cause=str(answer.get("error", "")),
                    )
                wanted = max(2 * file.tell(), need)


def _fetch(repository: _Repository, name: str, start: int, end: int, *, whole: bool = True) -> bytes:
    """Bytes [start, end) of a file."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repository.name, name, revision=repository.revision, endpoint=repository.endpoint)
    return _get(url, repository.token, start, end, whole=whole)


def _get(url: str, token: str | None, start: int, end: int, *, whole: bool) -> bytes:
    """Bytes [start, end) of an answer; a server that ignores ranges sends all, and only what was asked is
    taken. `whole`: it must have that many.

    Raises TimeoutError for an answer that comes too slowly, EOFError for one that comes short."""
    from huggingface_hub import get_session, hf_raise_for_status

    seconds = TIMEOUT_S + (end - start) / SLOWEST_BYTES_PER_S
    deadline = time.monotonic() + seconds
    headers = {"Accept-Encoding": "identity"}
    if whole:
        headers["Range"] = f"bytes={start}-{end - 1}"
    if token:
        headers["Authorization"] = f"Bearer {token}"
    answer: list[bytes] = []
    failure: list[Exception] = []

    def ask() -> None:
        parts, length = [], 0
        try:
            with get_session().stream(
                "GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True
            ) as response:
                if response.status_code >= 400:
                    response.read()
                hf_raise_for_status(response)
                skip = start if response.status_code == 200 else 0
                for chunk in response.iter_raw():
                    parts.append(chunk)
                    length += len(chunk)
                    if length >= skip + end - start or time.monotonic() > deadline:
                        break
            answer.append(b"".join(parts)[skip : skip + end - start])
        except Exception as e:  # raised where it is waited for
            failure.append(e)

    # The time limits of the HTTP library are for each read: a byte a second, in the lines before the answer
    # too, keeps within them for ever. Nothing waits for this thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not answer or (time.monotonic() > deadline and len(answer[0]) < end - start):
        raise TimeoutError(f"{end - start} bytes took longer than {seconds:.0f} s")
    if whole and len(answer[0]) < end - start:
        raise EOFError(f"it sent {len(answer[0])} of {end - start} bytes")
    return answer[0]


def _reader(path: Path, size: int | None = None) -> tuple[int, dict[str, Any]]:
    argv = [sys.executable, "-I", str(resources.path("agent")), "gguf", str(path)]
    try:
        result = subprocess.run(
            argv + (["--size", str(size)] if size else []), capture_output=True, timeout=READER_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, {"error": f"its header was not read within {READER_S:.0f} s"}
    try:
        answer = json.loads(result.stdout)
    except ValueError:
        answer = {"error": result.stderr.decode(errors="replace").strip() or "the reader gave no answer"}
    return result.returncode, answer if isinstance(answer, dict) else {}


@contextmanager
def _explained(repo: str, endpoint: str | None) -> Iterator[None]:
    """Whatever the hub's library raises, as an error that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except HomelabError:
        raise
    except errors.GatedRepoError as e:
        hint = (
            f"Accept its licence at https://huggingface.co/{repo} and set HF_TOKEN, or `hub: "
            f"{{token: env:HF_TOKEN}}`"
        )
        raise InventoryError(f"`{repo}` is gated", cause=_words(e), hint=hint) from e
    except errors.RepositoryNotFoundError as e:
        hint = "Check the spelling; for a private one set HF_TOKEN, or `hub: {token: env:HF_TOKEN}`"
        raise InventoryError(f"`{repo}` is not on the hub", cause=_words(e), hint=hint) from e
    except errors.EntryNotFoundError as e:
        raise InventoryError(
            f"`{repo}` lacks a file that a model has",
            cause=_words(e),
            hint="Is it a model with weights of its own?",
        ) from e
    except Exception as e:  # its HTTP library's errors are not part of its interface
        if (
            isinstance(e, errors.HfHubHTTPError)
            and e.response is not None
            and e.response.status_code in (401, 403)
        ):
            raise InventoryError(
                f"The hub refuses `{repo}`", cause=_words(e), hint="Is HF_TOKEN right, and may it read this?"
            ) from e
        where = endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        raise NodeError(
            f"The header of `{repo}` cannot be read from {where}",
            cause=_words(e),
            hint="Is this machine online? HF_ENDPOINT names a mirror.",
            kind="hub",
        ) from e


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines) or type(error).__name__


def _default_cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("homelab") / "headers"


def _load(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _save(path: Path, document: dict[str, Any]) -> None:
    """Only a convenience: a full disk must not stop a plan."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{id(document)}")
        temporary.write_text(json.dumps(document))
        temporary.replace(path)
    except OSError:
        return
