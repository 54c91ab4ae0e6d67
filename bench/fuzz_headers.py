"""Feeds what a stranger's model file may hold to the parsers, guided by what each input makes them do
that earlier ones did not.

    python bench/fuzz_headers.py [gguf|safetensors|document] [-runs=100000] [-max_total_time=600] [CORPUS]

needs `pip install atheris==3.0.0` (Linux; not one of the project's own requirements). `gguf` and
`safetensors` are bytes of files as the agent reads them on a node, and what homelab makes of the result;
`document` is the JSON that a node or the hub sends. Anything but our own errors, and anything that takes more
than 2 GiB, stops it; the input is then in a file beside it."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
MEMORY = 2 << 30

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed: pip install atheris==3.0.0 (Linux)")

with atheris.instrument_imports(include=["agent", "homelab.models", "homelab.engines"]):
    from agent import gguf, safetensors
    from homelab.engines import Device, Request, Unsupported, llamacpp, vllm
    from homelab.errors import InventoryError
    from homelab.models.header import from_header

from tests.agent import gguf_file  # noqa: E402
from tests.models.examples import ARCHITECTURES, DATA, SAFETENSORS, safetensors_document  # noqa: E402

CARD = Device(vendor="nvidia", name="a card", total_bytes=24 << 30)
FOLDER = Path(tempfile.mkdtemp(prefix="homelab-fuzz-"))


def reckoned(document: object) -> None:
    """From a header to numbers."""
    shape = from_header(document)  # type: ignore[arg-type]
    engine = llamacpp if shape.format == "gguf" else vllm
    args = {"mmproj": "auto"} if shape.format == "gguf" else {}
    found = engine.footprint(shape, Request(kind=shape.kind, context=4096, concurrency=2, args=args), CARD)
    assert all(t.bytes >= 0 for t in found.terms), found.terms


def of_gguf(data: bytes) -> None:
    with contextlib.suppress(gguf.HeaderError, gguf.TruncatedError, InventoryError, Unsupported):
        reckoned(json.loads(json.dumps(gguf.parse(data, len(data) + (1 << 34)))))


def of_safetensors(data: bytes) -> None:
    """The first half is `config.json`, the second the file of tensors."""
    config, _, tensors = data.partition(b"\0\0\0\0")
    (FOLDER / "config.json").write_bytes(config)
    (FOLDER / "model.safetensors").write_bytes(tensors)
    with contextlib.suppress(gguf.HeaderError, InventoryError, Unsupported):
        reckoned(json.loads(json.dumps(safetensors.document(str(FOLDER)))))


def of_document(data: bytes) -> None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(InventoryError, Unsupported):
        reckoned(document)


def seeds(target: str, folder: Path) -> None:
    """Good inputs to begin with."""
    documents = {name: a["header"] for name, a in ARCHITECTURES.items()} | {
        name: safetensors_document(name) for name in SAFETENSORS
    }
    if target == "gguf":
        files = {"small": gguf_file.small()} | {
            p.name: p.read_bytes()[: 1 << 16] for p in DATA.glob("*.gguf")
        }
    elif target == "document":
        files = {
            name: json.dumps(d | {"tensors": d.get("tensors", [])[:40]}).encode()
            for name, d in documents.items()
        }
    else:
        header = json.dumps({"a.weight": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
        tensors = len(header).to_bytes(8, "little") + header + bytes(4)
        files = {name: json.dumps(c).encode() + bytes(4) + tensors for name, c in SAFETENSORS.items()}
    for name, content in files.items():
        (folder / name).write_bytes(content)


def main() -> None:
    targets = {"gguf": of_gguf, "safetensors": of_safetensors, "document": of_document}
    target = sys.argv.pop(1) if sys.argv[1:] and sys.argv[1] in targets else "gguf"
    if all(a.startswith("-") for a in sys.argv[1:]):
        folder = FOLDER / "corpus"
        folder.mkdir()
        seeds(target, folder)
        sys.argv.append(str(folder))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    atheris.Setup([*sys.argv, "-max_len=65536", "-rss_limit_mb=0", "-timeout=20"], targets[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
