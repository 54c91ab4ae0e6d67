"""llama.cpp's own answer to what a GGUF takes, in MiB: `llama-fit-params` out of the wheel `xllamacpp`, which
carries the whole of llama.cpp (b11549) and exports the function that the tool is made of. Nothing is
allocated, and a header alone is enough.

    python bench/fit/oracle.py [--outputs N] -m FILE.gguf -c 8192 -np 2 …

prints one JSON line: model, context and compute in MiB as the tool prints them, and the compute buffer
as the log says it, to 0.01 MiB. `--outputs N`: reserve only so many rows of logits, as llama-server
does (one for each slot)."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

PARSE = "_Z19common_params_parseiPPcR13common_params13llama_examplePFviS0_E"
MODEL = "_Z28common_model_params_to_llamaR13common_params"
CONTEXT = "_Z30common_context_params_to_llamaRK13common_params"
PRINT = "_Z16common_fit_printPKcP18llama_model_paramsP20llama_context_params"
EXAMPLE_SERVER = 12


def ask(path: Path, arguments: list[str], outputs: int | None = None) -> dict[str, Any] | None:
    """What a fresh process of llama.cpp says of a model; None where it refuses the model."""
    argv = [
        sys.executable,
        __file__,
        *(["--outputs", str(outputs)] if outputs else []),
        "-m",
        str(path),
        *arguments,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    sizes = re.findall(r"^Host (\d+) (\d+) (\d+)", done.stdout, re.MULTILINE)
    compute = re.findall(r"CPU compute buffer size =\s+([\d.]+)", done.stderr)
    if not sizes:
        return None
    return dict(zip(("model", "context", "compute"), map(int, sizes[-1]), strict=True)) | {
        "log": float(compute[-1])
    }


def main(arguments: list[str]) -> None:
    import xllamacpp

    outputs = None
    if arguments[0] == "--outputs":
        outputs, arguments = int(arguments[1]), arguments[2:]
    library = ctypes.CDLL(sys.modules["xllamacpp.xllamacpp"].__file__)
    parse = library[PARSE]
    parse.restype = ctypes.c_bool
    parse.argtypes = [
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_char_p),
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    parameters = xllamacpp.CommonParams()
    # On a CPU build repacked weights vanish from the tool's column.
    argv = [b"llama-server", *map(os.fsencode, arguments), b"--no-repack", b"--fit", b"off"]
    array = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    own = id(parameters) + object.__basicsize__  # Cython puts the struct right behind the object's head
    if not parse(len(argv), array, own, EXAMPLE_SERVER, None):
        sys.exit(2)
    if outputs is not None:
        parameters.n_outputs_max, parameters.n_outputs_max_per_seq = (
            outputs,
            max(1, outputs // parameters.n_parallel),
        )
    model, context = ctypes.create_string_buffer(4096), ctypes.create_string_buffer(4096)
    for name, buffer in ((MODEL, model), (CONTEXT, context)):
        convert = library[name]  # both return a struct by value: the caller gives the place for it first
        convert.restype, convert.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p]
        convert(buffer, own)
    show = library[PRINT]
    show.restype, show.argtypes = None, [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]
    show(os.fsencode(parameters.model.path), model, context)
    ctypes.CDLL(None).fflush(None)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--json"]:
        print(json.dumps(ask(Path(sys.argv[2]), sys.argv[3:])))
    else:
        main(sys.argv[1:])
