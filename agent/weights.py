"""What lies on this node of each model source: a path, or a repository in the Hugging Face hub cache."""

from __future__ import annotations

import os
import re
from typing import Any

from . import gguf, host, safetensors

REPOSITORY = re.compile(r"([\w.-]+)/([\w.-]+?)(?::([\w.-]+))?$")
# What llama.cpp takes when no quantisation is named, and the files beside a model that it never takes for one
# (`common/download.cpp`).
DEFAULT_QUANTS = ("Q4_K_M", "Q8_0", "")
SIDECARS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")


def collect(sources: list[str], headers: bool = True) -> list[dict[str, Any]]:
    """With `headers`, what the files say of the model: that is for planning, and takes its
    time with large vocabularies."""
    return [look(source, headers) for source in sources]


def look(source: str, headers: bool = True) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "source": source,
        "path": None,
        "present": False,
        "bytes": 0,
        "header": None,
        "error": None,
    }
    try:
        repository = None if source.startswith(("/", "~")) else REPOSITORY.match(source)
        if repository:
            answer.update(in_hub(*repository.groups(), headers))
        elif source.startswith(("/", "~")):
            answer.update(at_path(os.path.expanduser(source), headers))
        else:
            answer["error"] = "neither a path nor a repository"
    except (FileNotFoundError, NotADirectoryError):
        answer["error"] = "no such file on this node"
    except PermissionError as e:
        answer["error"] = f"{host.user_name(os.getuid())} may not read it: {e}"
    except (gguf.HeaderError, gguf.TruncatedError, OSError, ValueError) as e:
        answer["error"] = str(e)
    except Exception as e:  # one strange file must not hide the other models
        answer["error"] = f"{type(e).__name__}: {e}"
    return answer


def at_path(path: str, headers: bool) -> dict[str, Any]:
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    if os.path.isdir(path):
        models = [] if has_safetensors(path) else model_files(path)
        if models:
            return of_gguf(os.path.join(path, choose(models, None) or models[0]), headers)
        if not headers:
            sizes = [
                os.path.getsize(os.path.join(path, n)) for n in os.listdir(path) if n.endswith(".safetensors")
            ]
            return {"path": path, "present": bool(sizes), "bytes": sum(sizes)}
        document = safetensors.document(path)
        return {
            "path": path,
            "present": True,
            "bytes": sum(size for _, size in document["files"]),
            "header": document,
        }
    return of_gguf(path, headers)


def of_gguf(path: str, headers: bool) -> dict[str, Any]:
    if not headers:
        return {"path": path, "present": True, "bytes": os.path.getsize(path)}
    document = gguf.document(path)
    document["projectors"] = projectors(os.path.dirname(path))
    return {"path": path, "present": True, "bytes": document["file_bytes"], "header": document}


def projectors(folder: str) -> dict[str, Any]:
    """Vision projectors beside a model: their headers, or only their size where that cannot be read."""
    found: dict[str, Any] = {}
    for name in sorted(os.listdir(folder or ".")):
        path = os.path.join(folder, name)
        if "mmproj" in name and name.endswith(".gguf") and os.path.isfile(path):
            try:
                found[name] = gguf.header(path)
            except (gguf.HeaderError, gguf.TruncatedError, OSError):
                found[name] = {"file_bytes": os.path.getsize(path)}
    return found


def in_hub(owner: str, name: str, quant: str | None, headers: bool) -> dict[str, Any]:
    folder = os.path.join(host.hub_cache(), f"models--{owner}--{name}")
    if not os.path.isdir(folder):
        return {}
    snapshot = newest(folder)
    blobs, broken_off = blob_bytes(folder)
    answer: dict[str, Any] = {"path": snapshot, "bytes": blobs}
    if snapshot is None:
        return answer
    unfinished = broken_off > os.path.getmtime(snapshot)  # an older one is what an older revision left behind
    models = model_files(snapshot)
    if quant or (models and not has_safetensors(snapshot)):
        chosen = choose(models, quant)
        if chosen is None:
            return dict(answer, bytes=blobs if quant is None else 0)
        answer["bytes"] = sum(os.path.getsize(os.path.join(snapshot, f)) for f in parts(chosen, models))
        answer["path"] = os.path.join(snapshot, chosen)
        if not complete(chosen, models):
            return answer
        return dict(answer, **of_gguf(answer["path"], True)) if headers else dict(answer, present=True)
    if not unfinished and not safetensors.lacking(snapshot):
        answer.update(at_path(snapshot, headers), bytes=blobs)
    return answer


def newest(folder: str) -> str | None:
    """The snapshot of `main`; without that reference, the one that came last."""
    snapshots = os.path.join(folder, "snapshots")
    named = host.read_or_none(os.path.join(folder, "refs", "main"))
    if named and os.path.isdir(os.path.join(snapshots, os.path.basename(named))):
        return os.path.join(snapshots, os.path.basename(named))
    there = [os.path.join(snapshots, n) for n in os.listdir(snapshots)] if os.path.isdir(snapshots) else []
    return max(there, key=os.path.getmtime) if there else None


def blob_bytes(folder: str) -> tuple[int, float]:
    """Bytes that are there, and when a download was last broken off (the hub
    client leaves `*.incomplete`)."""
    blobs = os.path.join(folder, "blobs")
    there = [os.path.join(blobs, n) for n in os.listdir(blobs)] if os.path.isdir(blobs) else []
    return sum(os.path.getsize(p) for p in there), max(
        (os.path.getmtime(p) for p in there if p.endswith(".incomplete")), default=0.0
    )


def has_safetensors(directory: str) -> bool:
    """GGUF repositories often bring the original's config.json along, so that says nothing."""
    return any(n.endswith((".safetensors", safetensors.INDEX)) for n in os.listdir(directory))


def model_files(directory: str) -> list[str]:
    """GGUF models below a folder; a link to a blob that is not there is none."""
    found = []
    for base, _, names in os.walk(directory):
        for n in names:
            path = os.path.join(base, n)
            if n.endswith(".gguf") and not any(s in n for s in SIDECARS) and os.path.exists(path):
                found.append(os.path.relpath(path, directory))
    return sorted(found)


def choose(files: list[str], quant: str | None) -> str | None:
    """The file of a quantisation as llama.cpp finds it: the tag, in any case, followed by a dot or a dash; of
    a split file the first part."""
    for tag in [quant] if quant else DEFAULT_QUANTS:
        wanted = re.compile(re.escape(tag) + "[.-]", re.IGNORECASE) if tag else re.compile("")
        for f in files:
            if wanted.search(f):
                return parts(f, files)[0]
    return None


def parts(chosen: str, files: list[str]) -> list[str]:
    split = gguf.PART.search(chosen)
    if not split:
        return [chosen]
    return [f for f in files if f.startswith(chosen[: split.start()] + "-") and gguf.PART.search(f)]


def complete(chosen: str, files: list[str]) -> bool:
    split = gguf.PART.search(chosen)
    return not split or len(parts(chosen, files)) == int(split.group(2))
