"""Runs in the virtual environment of `hf-mem`: its own code, with the hub's answers
taken from files beside it.

python hf_mem_offline.py FOLDER CONTEXT [REQUESTS]    prints {"memory": …, "kv_cache": …}"""

import asyncio
import json
import sys
import warnings
from pathlib import Path

import httpx2
from hf_mem import arun

folder, context = Path(sys.argv[1]), int(sys.argv[2])
real = httpx2.AsyncClient


def answer(request: "httpx2.Request") -> "httpx2.Response":
    path = request.url.path
    if "/tree/" in path:
        files = [{"type": "file", "path": p.name, "size": p.stat().st_size} for p in folder.iterdir()]
        return httpx2.Response(200, json=files)
    file = folder / path.rpartition("/")[2]
    if not file.exists():
        return httpx2.Response(404)
    first, last = 0, file.stat().st_size - 1
    if wanted := request.headers.get("range"):
        a, _, b = wanted.removeprefix("bytes=").partition("-")
        first, last = int(a), min(int(b or last), last)
    with file.open("rb") as f:
        f.seek(first)
        return httpx2.Response(206 if wanted else 200, content=f.read(last - first + 1))


def client(**options: object) -> "httpx2.AsyncClient":
    options.pop("http2", None)
    return real(
        transport=httpx2.MockTransport(answer), **{k: v for k, v in options.items() if k == "timeout"}
    )


httpx2.AsyncClient = client
warnings.simplefilter("ignore")
found = asyncio.run(arun("org/model", experimental=True, max_model_len=context))
print(json.dumps({"memory": found.memory, "kv_cache": found.kv_cache}))
