"""llama.cpp's own figures beside homelab's: `llama-fit-params`, recorded and (out of the wheel `xllamacpp`)
run now, and a running llama-server."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import oracle
import sparse

from homelab import fit_command
from homelab.engines import ArgValue, Device, Request, llamacpp
from homelab.models import hub
from homelab.models.header import from_header
from homelab.models.shape import ModelShape
from tests.models.examples import ARCHITECTURES, DATA, FILE_BYTES, GOLDEN, gguf

MIB = 2**20
CPU = Device(vendor="cpu", name="this machine", total_bytes=64 * 2**30, memory_kind="ram")
ROOT = Path(__file__).parents[2]
SMALL = Path("~/.cache/homelab/models/SmolLM2-135M-Instruct.Q4_1.gguf").expanduser()
# context, slots, micro-batch, flash attention
SETTINGS = [
    (4096, 1, 512, "on"),
    (32768, 1, 512, "on"),
    (32768, 4, 512, "on"),
    (16384, 2, 128, "on"),
    (16384, 1, 512, "off"),
    (33792, 33, 512, "on"),
]


def ours(
    shape: ModelShape, context: int, slots: int, args: dict[str, ArgValue], outputs: str
) -> dict[str, float]:
    request = Request(kind="chat", context=context // slots, concurrency=slots, args=args, outputs=outputs)
    found = llamacpp.footprint(shape, request, CPU)
    return {t.name: t.bytes / MIB for t in found.terms}


class Errors:
    """The worst of each column: MiB for what is exact, a share for what is a bound (in whole MiB,
    as the tool cuts them off)."""

    def __init__(self) -> None:
        self.rows = 0
        self.model: list[float] = []
        self.context: list[float] = []
        self.compute: list[float] = []

    def add(
        self, found: dict[str, float], model: float, context: float, compute: float, *, whole: bool
    ) -> None:
        self.rows += 1
        self.model.append(found["model"] - model)
        self.context.append(found["context"] - context)
        self.compute.append((int(found["compute"]) if whole else found["compute"]) / compute - 1)

    def line(self, name: str) -> str:
        exact = " | ".join(f"{min(e):+.1f} to {max(e):+.1f}" for e in (self.model, self.context))
        return f"| {name} | {self.rows} | {exact} | {min(self.compute):+.1%} to {max(self.compute):+.1%} |"


HEAD = "| {} | runs | model, MiB | context, MiB | compute |\n|---|---:|---:|---:|---:|"


def recorded() -> None:
    print("### llama.cpp: recorded runs of `llama-fit-params` (0.6.0, CPU build)\n")
    print(HEAD.format("model"))
    by_model: dict[str, Errors] = defaultdict(Errors)
    for name, args, model, context, compute in GOLDEN:
        words = shlex.split(args)
        asked: dict[str, ArgValue] = dict(zip(words[::2], words[1::2], strict=True))
        tokens, slots = int(str(asked.pop("-c"))), int(str(asked.pop("-np", 1)))
        found = ours(gguf(name), tokens, slots, asked, "all")
        for key in (name, "**all**"):
            by_model[key].add(found, model, context, compute, whole=True)
    for name in sorted(by_model, key=lambda n: (n.startswith("*"), n)):
        print(by_model[name].line(name))
    small = Errors()
    for architecture in ARCHITECTURES.values():
        shape = from_header(architecture["header"])
        for tokens, slots, model, context, compute in architecture["said_mib"]:
            found = ours(shape, tokens, slots, {"flash-attn": "on"}, "all")
            small.add(
                found | {"model": found["model"] - shape.mtp_bytes / MIB}, model, context, compute, whole=True
            )
    print(small.line("small models of 11 other architectures (b11549)"))


def asked_now() -> None:
    print("\n### llama.cpp b11549, asked now: all rows of logits, and those that a server reserves\n")
    if importlib.util.find_spec("xllamacpp") is None:
        print("Left out: `xllamacpp` is not installed (pip install xllamacpp==2026.10.11549)")
        return
    shapes: dict[str, dict[str, Any]] = {}
    for entry in fit_command.load_catalog().entries.values():
        if entry.kind != "chat":
            continue
        variant = next(v for v in entry.variants if v.format == "gguf")
        # llama.cpp takes tensors that have the size of their type, not that of the published file.
        shapes[entry.name] = entry.document(replace(variant, bytes=None))
    print(
        "| model | runs | model, MiB | context, MiB | compute, all rows | compute, a server's |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    refused, total, total_slots = [], Errors(), Errors()
    with tempfile.TemporaryDirectory() as folder:
        files = [
            (name, sparse.write(Path(folder) / f"{name}.gguf", d), from_header(d))
            for name, d in shapes.items()
        ]
        for name, size in FILE_BYTES.items():
            path = Path(folder) / f"header-{name}.gguf"
            path.write_bytes((DATA / f"{name}.gguf").read_bytes())
            os.truncate(path, size)
            files.append((f"{name} (header)", path, gguf(name)))
        for name, path, shape in files:
            every, slots_only = Errors(), Errors()
            for tokens, slots, ubatch, flash in SETTINGS:
                if shape.max_context and tokens // slots > shape.max_context:
                    continue
                argv = ["-c", str(tokens), "-np", str(slots), "-ub", str(ubatch), "-fa", flash]
                args: dict[str, ArgValue] = {"ubatch-size": ubatch, "flash-attn": flash}
                for errors, outputs in ((every, "all"), (slots_only, "slots")):
                    said = oracle.ask(path, argv, None if outputs == "all" else slots)
                    if said is None:
                        break
                    for sums in (errors, total if outputs == "all" else total_slots):
                        sums.add(
                            ours(shape, tokens, slots, args, outputs),
                            said["model"],
                            said["context"],
                            said["log"],
                            whole=False,
                        )
            if not every.rows:
                refused.append(name)
                continue
            print(f"{every.line(name)} {min(slots_only.compute):+.1%} to {max(slots_only.compute):+.1%} |")
    print(f"{total.line('**all**')} {min(total_slots.compute):+.1%} to {max(total_slots.compute):+.1%} |")
    if refused:
        print(
            f"\nLeft out: {', '.join(refused)}: llama.cpp wants tensors of it that the catalog does not list."
        )


def running() -> None:
    print("\n### A running llama-server: what its log says, and what was predicted without it\n")
    if not SMALL.exists() or importlib.util.find_spec("xllamacpp") is None:
        print(f"Left out: it needs {SMALL} and xllamacpp")
        return
    shape = from_header(hub.read_file(SMALL))
    print("| SmolLM2-135M Q4_1 | figure | server, MiB | homelab | error |\n|---|---|---:|---:|---:|")
    for tokens, slots, ubatch, extra in (
        (8192, 1, 512, []),
        (8192, 4, 512, []),
        (16384, 2, 256, ["--cache-type-k", "q8_0", "--cache-type-v", "q8_0"]),
        (4096, 1, 512, ["--flash-attn", "off"]),
    ):
        args: dict[str, ArgValue] = {
            "ubatch-size": ubatch,
            **dict(zip([e.lstrip("-") for e in extra[::2]], extra[1::2], strict=True)),
        }
        request = Request(kind="chat", context=tokens // slots, concurrency=slots, args=args, outputs="slots")
        planned = llamacpp.footprint(shape, request, CPU)
        flags = [str(w) for name, value in planned.flags.items() for w in (f"--{name}", value)]
        log = served(["-m", str(SMALL), *flags, "--ubatch-size", str(ubatch), *extra])
        found = {t.name: t.bytes / MIB for t in planned.terms}
        for name, pattern in (
            ("model", r"model buffer size"),
            ("context", r"KV buffer size"),
            ("compute", r"compute buffer size"),
        ):
            said = sum(float(m) for m in re.findall(rf"{pattern} =\s+([\d.]+) MiB", log))
            label = f"-c {tokens} -np {slots} -ub {ubatch} {' '.join(extra)}"
            print(f"| {label} | {name} | {said:.2f} | {found[name]:.2f} | {found[name] / said - 1:+.2%} |")


def served(arguments: list[str]) -> str:
    """The log of a server from its start until it listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [
        sys.executable,
        str(ROOT / "templates/native/llama-server"),
        *arguments,
        "--port",
        str(port),
        "-v",
        "--no-repack",
        "--no-warmup",
    ]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(240):
                time.sleep(0.25)
                log.seek(0)
                if "server is listening" in (text := log.read()) or process.poll() is not None:
                    return text
            return text
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def main() -> None:
    recorded()
    asked_now()
    running()
