"""Packs the agent for a node, and writes the shell commands that run it there or unpack it first.

The bundle is its own code, pynvml, and psutil built for the node. Its name is the hash of what is
in it, so a node that has the folder has the right agent. One exchange runs a cached agent; where it is
missing, a second one sends it on standard input."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from homelab import resources
from homelab.errors import HomelabError

# Exit statuses of the commands below; any other is the agent's own.
UNPACK_FAILED = 95
MISSING = 96
NO_PYTHON = 97
OLD_PYTHON = 98
MARKER = "homelab-agent-missing"

PSUTIL = "7.2.2"
# The wheels on PyPI, all abi3 for Python 3.6 and later:
# (system, machine, libc) -> platform tag for pip, sha256.
WHEELS: dict[tuple[str, str, str], tuple[str, str]] = {
    ("linux", "x86_64", "glibc"): (
        "manylinux2014_x86_64",
        "076a2d2f923fd4821644f5ba89f059523da90dc9014e85f8e45a5774ca5bc6f9",
    ),
    ("linux", "aarch64", "glibc"): (
        "manylinux2014_aarch64",
        "b0726cecd84f9474419d67252add4ac0cd9811b04d61123054b9fb6f57df6e9e",
    ),
    ("linux", "x86_64", "musl"): (
        "musllinux_1_2_x86_64",
        "b58fabe35e80b264a4e3bb23e6b96f9e45a3df7fb7eed419ac0e5947c61e47cc",
    ),
    ("linux", "aarch64", "musl"): (
        "musllinux_1_2_aarch64",
        "fd04ef36b4a6d599bbdb225dd1d3f51e00105f6d48a28f006da7f9822f2606d8",
    ),
    ("darwin", "arm64", ""): (
        "macosx_11_0_arm64",
        "1a7b04c10f32cc88ab39cbf606e117fd74721c831c98a27dc04578deb0c16979",
    ),
    ("darwin", "x86_64", ""): (
        "macosx_10_9_x86_64",
        "ed0cace939114f62738d808fdcecd4c869222507e266e574799e9c0faa17d486",
    ),
}
TIMESTAMP = 946684800  # 2000-01-01: tar warns of older files
DOWNLOAD_TIMEOUT_S = 60
KEPT_DAYS = 7
FOLDER = "$HOME/.cache/homelab/agent"


@dataclass(frozen=True, slots=True)
class Platform:
    """What decides which psutil runs there; as `uname -s -m` says it, in lower case."""

    system: str
    machine: str
    libc: str = ""


def platform_of(output: str) -> Platform:
    """The platform, from what `launch_command` prints when the node lacks the bundle; else an empty one."""
    for line in output.splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == MARKER:
            return Platform(words[1].lower(), words[2], words[3] if len(words) > 3 else "")
    return Platform("", "")


def own_platform() -> Platform:
    import platform

    system = platform.system().lower()
    libc = ("glibc" if platform.libc_ver()[0] == "glibc" else "musl") if system == "linux" else ""
    return Platform(system, platform.machine(), libc)


@cache
def _sources() -> tuple[tuple[str, bytes], ...]:
    """The agent and pynvml: the same for every node."""
    root = resources.path("agent")
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.py")}
    pynvml = importlib.util.find_spec("pynvml")
    if "__main__.py" not in files or pynvml is None or pynvml.origin is None:
        raise HomelabError(
            "This homelab is not installed completely: the agent or pynvml is missing",
            hint="Install homelab again",
        )
    files["pynvml.py"] = Path(pynvml.origin).read_bytes()
    return tuple(sorted(files.items()))


@cache
def fingerprint() -> str:
    """The name of the bundle: a hash of the agent, pynvml and psutil's version. Packs nothing."""
    digest = hashlib.sha256(f"psutil {PSUTIL}\n".encode())
    for name, content in _sources():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def pack(node: Platform) -> bytes:
    """The bundle for a platform as tar.gz: the same bytes for the same input.

    Without psutil when no wheel for the node can be had: the agent then looks for the node's own."""
    import gzip
    import tarfile

    files = dict(_sources())
    files |= _psutil(node)
    archive = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=archive, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(content), TIMESTAMP, 0o644
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _psutil(node: Platform) -> dict[str, bytes]:
    wheel = WHEELS.get((node.system, node.machine, node.libc))
    own = _own_psutil() if node == own_platform() else {}
    if own or wheel is None:
        return own
    tag, sha256 = wheel
    content = _wheel(tag, sha256)
    if content is None:
        return {}
    import zipfile

    with zipfile.ZipFile(io.BytesIO(content)) as z:
        return {n: z.read(n) for n in z.namelist() if _wanted(n)}


def _wanted(name: str) -> bool:
    return name.startswith("psutil/") and "/tests/" not in name and name.endswith((".py", ".so"))


def _own_psutil() -> dict[str, bytes]:
    import importlib.metadata

    try:
        distribution = importlib.metadata.distribution("psutil")
    except importlib.metadata.PackageNotFoundError:
        return {}
    files = distribution.files or [] if distribution.version == PSUTIL else []
    # A psutil built by hand may need this Python alone; only the stable ABI runs on the node's.
    if not any(f.name.endswith(".abi3.so") for f in files):
        return {}
    return {f.as_posix(): f.read_binary() for f in files if _wanted(f.as_posix())}


def _wheel(tag: str, sha256: str) -> bytes | None:
    """The wheel from our cache, else by pip. None when it cannot be had, or its hash is another."""
    import subprocess
    import sys
    import tempfile

    import platformdirs

    cached = Path(platformdirs.user_cache_dir("homelab")) / "wheels" / f"psutil-{PSUTIL}-{tag}.whl"
    if cached.is_file() and hashlib.sha256(content := cached.read_bytes()).hexdigest() == sha256:
        return content
    with tempfile.TemporaryDirectory(prefix="homelab-") as folder:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--only-binary=:all:", "--platform", tag, "--implementation", "cp", "--abi", "abi3",
            "--python-version", "3.8", "--dest", folder, f"psutil=={PSUTIL}",
        ]  # fmt: skip
        try:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        content = b"".join(p.read_bytes() for p in Path(folder).glob("*.whl"))
    if hashlib.sha256(content).hexdigest() != sha256:
        return None
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cached.parent, suffix=".part", delete=False) as partial:
        partial.write(content)
    Path(partial.name).replace(cached)
    return content


# Apple's /usr/bin/python3 opens a window where the developer tools are missing, so they are asked for first.
FIND_PYTHON = """\
IFS='
'
pythons() {
  if [ -n "$given" ]; then command -v "$given"; return; fi
  set -- python3 /opt/homebrew/bin/python3 /usr/local/bin/python3
  set -- "$@" python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8
  for p in "$@"; do
    f=$(command -v "$p") || continue
    if [ "$f" = /usr/bin/python3 ] && [ -d /System/Library ]; then
      xcode-select -p >/dev/null 2>&1 || continue
    fi
    echo "$f"
  done
}
paths=$(pythons)
if [ -z "$paths" ]; then echo "${given:-python3} was not found on this node" >&2; exit 97; fi
"""
# A python3 that is too old says 98; a newer one may stand beside it under its full name.
RUN = """\
for p in $paths; do
  [ "$p" = "$tried" ] && continue
  "$p" -I "$d" "$request" && exit 0
  s=$?
  [ $s = 98 ] || exit $s
done
exit 98
"""
# The common case first: looking for other Pythons starts a dozen processes. On Linux the agent needs no
# installed package, so no `site` (-S).
QUICK = """\
tried=
if [ -z "$given" ] && [ -f "$d/__main__.py" ] && [ ! -d /System/Library ] &&
   command -v python3 >/dev/null; then
  python3 -I -S "$d/__main__.py" "$request"
  s=$?
  [ $s = 98 ] || exit $s
  tried=$(command -v python3)
fi
"""
LAUNCH = """\
if [ ! -f "$d/__main__.py" ]; then
  libc=
  if [ "$(uname -s)" = Linux ]; then
    libc=glibc
    for m in /lib/ld-musl-*; do [ -e "$m" ] && libc=musl; done
  fi
  echo MARKER "$(uname -s)" "$(uname -m)" $libc
  exit 96
fi
"""
# rename(2) puts the folder there whole or not at all. Where another controller was first, it is the same one.
INSTALL = """\
mkdir -p "$b" && t=$(mktemp -d "$b/new.XXXXXX") || exit 95
trap 'rm -rf "$t"' EXIT
tar -xzf - -C "$t" || exit 95
set -- $paths
"$1" -I -c "import os, sys; os.rename(sys.argv[1], sys.argv[2])" "$t" "$d" 2>/dev/null
if [ ! -f "$d/__main__.py" ]; then echo "the agent could not be put into $d" >&2; exit 95; fi
find "$b" -mindepth 1 -maxdepth 1 -type d -mtime +KEPT ! -name NAME -exec rm -rf {} + 2>/dev/null
exit 0
"""


def launch_command(name: str, request: str, *, python: str | None = None) -> str:
    """One command line for sh that runs the cached agent `name` and prints its document.

    Exit status: MISSING with a line for `platform_of`, NO_PYTHON, OLD_PYTHON; else the agent's own."""
    return (
        _named(name, python)
        + f"request={shlex.quote(request)}\n"
        + QUICK
        + FIND_PYTHON
        + LAUNCH.replace("MARKER", MARKER)
        + RUN
    )


def install_command(name: str, *, python: str | None = None) -> str:
    """One command line for sh that puts the archive of `pack`, its input, in place whole or not at all.

    It removes bundles that nobody ran for a week. Exit status: 0, NO_PYTHON or UNPACK_FAILED."""
    return _named(name, python) + FIND_PYTHON + INSTALL.replace("KEPT", str(KEPT_DAYS)).replace("NAME", name)


def _named(name: str, python: str | None) -> str:
    home, rest = ('"$HOME"/', python[2:]) if python and python.startswith("~/") else ("", python or "")
    return f'b="{FOLDER}"\nd="$b/{name}"\ngiven={home}{shlex.quote(rest)}\n'
