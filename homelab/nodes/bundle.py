"""Packs the agent for a node, and writes the shell commands that run it there or unpack it first.

The bundle is its own code, pynvml, and for macOS psutil. Its name is the hash of what is in it, so a node
that has the folder has the right agent, and the sums in it tell the agent whether the folder is whole. One
exchange runs a cached agent; where it is missing or not whole, a second one sends it on standard input."""

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
SUMS = "SHA256SUMS"  # as sha256sum(1) writes it; the agent reads it at each start

PSUTIL = "7.2.2"
# The wheels on PyPI, abi3 for Python 3.6 and later: (system, machine) -> platform tag for pip, sha256.
# None for Linux, where the agent reads the kernel itself.
WHEELS: dict[tuple[str, str], tuple[str, str]] = {
    ("darwin", "arm64"): (
        "macosx_11_0_arm64",
        "1a7b04c10f32cc88ab39cbf606e117fd74721c831c98a27dc04578deb0c16979",
    ),
    ("darwin", "x86_64"): (
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
    """What decides which psutil runs there; as `uname -s -m` says it, the system in lower case."""

    system: str
    machine: str


def platform_of(output: str) -> Platform:
    """The platform, from what `launch_command` prints where no whole bundle is; else an empty one."""
    for line in output.splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == MARKER:
            return Platform(words[1].lower(), words[2])
    return Platform("", "")


def own_platform() -> Platform:
    import platform

    return Platform(platform.system().lower(), platform.machine())


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

    For a Mac it may fetch psutil's wheel, for up to DOWNLOAD_TIMEOUT_S, and goes without when it cannot be
    had: the agent then looks for the node's own, and says what it could not read."""
    import gzip
    import tarfile

    files = dict(_sources())
    files |= _psutil(node)
    sums = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()))
    files[SUMS] = "".join(sums).encode()
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
    wheel = WHEELS.get((node.system, node.machine))
    if wheel is None:
        return {}
    if node == own_platform() and (own := _own_psutil()):
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
  "$p" -I "$d" WATCH"$request" && exit 0
  s=$?
  [ $s = 98 ] || exit $s
done
exit 98
"""
LAUNCH = """\
if ! [ -s "$d/__main__.py" ] || ! [ -s "$d/SHA256SUMS" ]; then
  echo MARKER "$(uname -s)" "$(uname -m)"
  exit 96
fi
"""
# rename(2) puts a folder there whole or not at all, but over no folder that holds something. One that differs
# is moved aside; under the lock, so that what another controller has just put there and runs is left alone.
# Any Python must be able to parse it, and sh to quote it: no apostrophes.
PLACE = """\
import fcntl, os, sys
new, name = sys.argv[1:]
def read(path):
    with open(path, "rb") as f:
        return f.read()
def same():
    try:
        for there, _, files in os.walk(new):
            for file in files:
                path = os.path.join(there, file)
                if read(path) != read(os.path.join(name, os.path.relpath(path, new))):
                    return False
    except EnvironmentError:
        return False
    return True
lock = os.open(os.path.dirname(name), os.O_RDONLY)
try:
    fcntl.flock(lock, fcntl.LOCK_EX)
except EnvironmentError:
    pass  # NFS locks no folder
try:
    if not same():
        if os.path.lexists(name):
            os.rename(name, new + ".old")
        os.rename(new, name)
except EnvironmentError as e:
    sys.exit("the agent could not be put into %s: %s" % (name, e.strerror))
"""
# tar -m: to what removes old files by their date, these are new.
INSTALL = """\
mkdir -p "$b" && t=$(mktemp -d "$b/new.XXXXXX") || exit 95
trap 'rm -rf "$t" "$t.old"' EXIT
tar -xzmf - -C "$t" || exit 95
set -- $paths
"$1" -I -c 'PLACE' "$t" "$d" || exit 95
find "$b" -mindepth 1 -maxdepth 1 -type d -mtime +KEPT ! -name NAME -exec rm -rf {} + 2>/dev/null
exit 0
"""


def launch_command(name: str, request: str, *, python: str | None = None, watch: float | None = None) -> str:
    """One command line for sh that runs the cached agent `name` and prints its document; with `watch`, anew
    every so many seconds, a line each, until nobody reads it.

    Exit status: MISSING with a line for `platform_of`, which the agent itself prints when it is not whole;
    NO_PYTHON, OLD_PYTHON; else the agent's own."""
    return (
        _named(name, python)
        + f"request={shlex.quote(request)}\n"
        + FIND_PYTHON
        + LAUNCH.replace("MARKER", MARKER)
        + RUN.replace("WATCH", "" if watch is None else f"--watch {watch:g} ")
    )


def install_command(name: str, *, python: str | None = None) -> str:
    """One command line for sh that puts the archive of `pack`, its input, in place whole or not at all.

    It removes bundles that nobody ran for a week. Exit status: 0, NO_PYTHON or UNPACK_FAILED."""
    install = INSTALL.replace("KEPT", str(KEPT_DAYS)).replace("NAME", name).replace("PLACE", PLACE)
    return _named(name, python) + FIND_PYTHON + install


def program_command(program: str, *arguments: str, python: str | None = None) -> str:
    """One command line for sh that runs a Python program with the Python that runs the agent.

    Exit status: NO_PYTHON, else the program's own."""
    words = shlex.join([program, *arguments])
    return f'{_given(python)}{FIND_PYTHON}set -- $paths\nexec "$1" -I -c {words}\n'


def _named(name: str, python: str | None) -> str:
    return f'b="{FOLDER}"\nd="$b/{name}"\n{_given(python)}'


def _given(python: str | None) -> str:
    home, rest = ('"$HOME"/', python[2:]) if python and python.startswith("~/") else ("", python or "")
    return f"given={home}{shlex.quote(rest)}\n"
