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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homelab import resources
from homelab.errors import HomelabError, InventoryError, NodeError
from homelab.models.source import parse_source

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LAYOUT = 2  # of the cached documents; a newer homelab does not read an older one's
FIRST_BYTES = 4 * 2**20  # most headers with their vocabulary are 2 to 12 MB
MAX_HEADER = 2**28
MAX_CONFIG = 2**24
TIMEOUT_S = 20.0
READER_S = 120.0
TRUNCATED_STATUS = 3  # of the agent's reader
DIGITS = re.compile(r"\d+")
SPLIT = re.compile(r"^(?P<prefix>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf$")
# Files beside a model that llama.cpp does not take for one (`common/download.cpp`, gguf_filename_is_model).
SIDECARS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
DEFAULT_QUANTS = ("Q4_K_M", "Q8_0")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repository:
    api: HfApi
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
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    api = HfApi(endpoint=endpoint, token=token)
    info = api.model_info(repo, files_metadata=True, timeout=TIMEOUT_S)
    return _Repository(
        api=api,
        name=repo,
        revision=info.sha or "main",
        sizes={s.rfilename: s.size or 0 for s in info.siblings or ()},
    )


def _safetensors(repository: _Repository) -> dict[str, Any]:
    """The same document that the agent makes of a folder."""
    text = _fetch(repository, "config.json", 0, min(repository.sizes.get("config.json") or 2**20, MAX_CONFIG))
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise InventoryError(f"`config.json` of `{repository.name}` is not JSON", cause=str(e)[:200]) from e
    found = repository.api.get_safetensors_metadata(repository.name, revision=repository.revision)
    dtypes: dict[str, int] = {}
    groups: dict[str, list[Any]] = {}
    for file in found.files_metadata.values():
        for name, tensor in file.tensors.items():
            size = tensor.data_offsets[1] - tensor.data_offsets[0]
            dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + size
            pattern = DIGITS.sub("*", name)
            if groups.get(pattern, [0, 0, tensor.dtype])[2] != tensor.dtype:
                pattern += f" {tensor.dtype}"
            group = groups.setdefault(pattern, [0, 0, tensor.dtype])
            group[0] += 1
            group[1] += size
    return {
        "format": "safetensors",
        "config": config,
        "tensor_bytes": sum(dtypes.values()),
        "dtypes": dtypes,
        "groups": groups,
        "files": [[name, repository.sizes.get(name, 0)] for name in found.files_metadata],
    }


def _gguf(repository: _Repository, quant: str | None) -> dict[str, Any]:
    names = choose_gguf(sorted(repository.sizes), quant)
    if missing := [n for n in names if n not in repository.sizes]:
        raise InventoryError(f"`{repository.name}` lacks parts of `{names[0]}`", cause=", ".join(missing))
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


def _fetch(repository: _Repository, name: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of a file; a server that ignores ranges sends all, and only what was asked is
    taken."""
    from huggingface_hub import get_session, get_token, hf_hub_url, hf_raise_for_status

    url = hf_hub_url(repository.name, name, revision=repository.revision, endpoint=repository.api.endpoint)
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    if token := repository.api.token or get_token():
        headers["Authorization"] = f"Bearer {token}"
    parts, length = [], 0
    with get_session().stream(
        "GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
        skip = start if response.status_code == 200 else 0
        for chunk in response.iter_bytes():
            parts.append(chunk)
            length += len(chunk)
            if length >= skip + end - start:
                break
    return b"".join(parts)[skip : skip + end - start]


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
    except errors.NotASafetensorsRepoError as e:
        raise InventoryError(
            f"`{repo}` has no safetensors weights",
            cause=_words(e),
            hint=f"For a GGUF, name its quantisation: {repo}:Q4_K_M",
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
