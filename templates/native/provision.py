#!/usr/bin/env python3
"""Makes a Python environment of one hashed lock, once:
python3 provision.py --lock LOCK --name NAME --into DIR [--python P]

The environment is DIR/NAME-<12 hex digits of lock and Python version>; nothing is fetched when it is
already complete. Progress goes to stderr; the last line of stdout is JSON. Python 3.8 or newer, standard
library only.

pip does the work, with the user's own PIP_* settings and configuration files. (uv would take 40 s instead of
72 for LiteLLM's 118 packages, once for each lock, but reads none of these settings.)
"""

import argparse
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from typing import Dict, List, Optional, Tuple

Version = Tuple[int, int]
PLACES = (
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "~/.local/bin",
)  # not on the PATH that sshd gives to a command
# These send packages elsewhere than into the environment, or change what its Python sees.
MISLEADING = (
    "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PIP_USER", "PIP_TARGET",
    "PIP_PREFIX", "PIP_ROOT",
    "PIP_REQUIREMENT", "PIP_CONSTRAINT", "PIP_DRY_RUN", "PIP_PYTHON", "PIP_REPORT", "VIRTUAL_ENV",
)  # fmt: skip


class Failure(Exception):
    def __init__(self, message: str, cause: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message, self.cause, self.hint = message, cause, hint


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(argv: List[str], environment: Optional[Dict[str, str]] = None) -> Tuple[int, str]:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    except OSError as problem:
        return 127, str(problem)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def last_lines(output: str, count: int = 6) -> str:
    lines = [
        line.rstrip()
        for line in output.splitlines()
        if line.strip() and not line.startswith(("[notice]", "WARNING: Location"))
    ]
    return "\n".join(lines[-count:])


def clean_environment() -> Dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in MISLEADING}


# --- which Python ---------------------------------------------------------------------------------------


def lock_header(text: str, key: str, otherwise: str) -> str:
    found = re.search(r"^# %s:\s*(\S+)" % re.escape(key), text, re.M)
    return found.group(1) if found else otherwise


def dotted(version: Version) -> str:
    return "%d.%d" % version


def version_of(python: str) -> Optional[Version]:
    code, output = run([python, "-c", "import sys; print(*sys.version_info[:2])"], clean_environment())
    numbers = output.split()
    return (int(numbers[0]), int(numbers[1])) if code == 0 and len(numbers) == 2 else None


def newer_pythons(floor: Version) -> List[str]:
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep) + [
        os.path.expanduser(place) for place in PLACES
    ]
    found = []
    for folder in folders:
        for path in glob.glob(os.path.join(glob.escape(folder), "python3.*")):
            minor = re.match(r"python3\.(\d+)\Z", os.path.basename(path))
            if minor and (3, int(minor.group(1))) >= floor and os.access(path, os.X_OK):
                found.append((int(minor.group(1)), path))
    return [path for _, path in sorted(found, key=lambda item: -item[0])]


def choose_python(asked: Optional[str], floor: Version) -> Tuple[str, Version]:
    if asked:
        path = shutil.which(os.path.expanduser(asked))
        version = version_of(path) if path else None
        if path is None or version is None:
            raise Failure(
                "%s is not a Python on this machine" % asked,
                hint="leave out --python, or name one that is installed",
            )
        candidates = [(path, version)]
    else:
        candidates = [(sys.executable, (sys.version_info[0], sys.version_info[1]))]
    path, version = candidates[0]
    if version >= floor:
        return path, version
    if not asked:
        for other in newer_pythons(floor):
            found = version_of(other)
            if found is not None and found >= floor:
                say("python3 here is %s; taking %s" % (dotted(version), other))
                return other, found
    raise Failure(
        "Python %s is too old for this lock, which needs %s or newer" % (dotted(version), dotted(floor)),
        cause="%s is Python %s" % (path, dotted(version)),
        hint="install a newer one: Debian and Ubuntu `sudo apt install python3.12 python3.12-venv`, macOS "
        "`brew install python@3.12`",
    )


# --- installing -----------------------------------------------------------------------------------------


def explain(output: str, version: Version) -> Failure:
    cause = last_lines(output)
    if "No space left on device" in output:
        return Failure("the disk is full", cause, "free some space, or set TMPDIR to a larger disk")
    if "DO NOT MATCH THE HASHES" in output:
        return Failure(
            "a package differs from the one in the lock",
            cause,
            "the package index served another file: check PIP_INDEX_URL and pip.conf",
        )
    if re.search(
        r"Name or service not known|name resolution|Connection refused|ConnectTimeout|"
        r"timed out|unreachable|Network is",
        output,
    ):
        hint = (
            "let that machine reach pypi.org and files.pythonhosted.org, or name a mirror there, in "
            "~/.config/pip/pip.conf: "
        )
        return Failure(
            "the package index cannot be reached",
            cause,
            hint + "[global], below it index-url = URL. Then: homelab deploy",
        )
    if "CERTIFICATE_VERIFY_FAILED" in output:
        return Failure(
            "the package index's certificate is not trusted", cause, "set PIP_CERT to your CA bundle"
        )
    if (
        "No matching distribution found" in output
    ):  # pip says the same of an index that answers nothing at all
        machine = "%s %s with Python %s" % (os.uname().sysname, os.uname().machine, dotted(version))
        hint = (
            "if the index has the package, it has no wheel for this machine: try another Python with "
            "--python, or another node"
        )
        return Failure("pip found no wheel of a locked package for %s" % machine, cause, hint)
    return Failure("the packages could not be installed", cause)


def install(python: str, version: Version, directory: str, lock: str) -> None:
    environment = clean_environment()
    code, output = run([python, "-c", "import ensurepip, venv"], environment)
    if code == 0:
        code, output = run([python, "-m", "venv", directory], environment)
    if code != 0:
        raise Failure(
            "%s cannot make environments" % python,
            last_lines(output),
            "Debian and Ubuntu: `sudo apt install python3-venv` (or python%s-venv)" % dotted(version),
        )
    # No source builds: a node has no compiler, and what a build runs is covered by no hash.
    argv = [
        os.path.join(directory, "bin", "python"), "-m", "pip", "install", "--require-hashes", "--no-deps",
        "--only-binary", ":all:",
        "--no-compile", "--no-input", "--disable-pip-version-check", "--no-warn-script-location",
        "--progress-bar", "off", "-r", lock,
    ]  # fmt: skip
    environment["PYTHONUNBUFFERED"] = "1"
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as pip:
        assert pip.stdout is not None
        seen, told, lines = 0, time.monotonic(), []
        for raw in pip.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            lines.append(line)
            seen += line.startswith("Collecting ")
            if line.startswith("Installing collected"):
                say("unpacking %d packages" % seen)
            elif time.monotonic() - told > 3:
                told = time.monotonic()
                say("fetched %d packages" % seen)
    if pip.returncode != 0:
        raise explain("\n".join(lines), version)


def works(directory: str) -> bool:
    """A finished environment dies when the system's Python that it points to is removed."""
    code, _ = run([os.path.join(directory, "bin", "python"), "-I", "-c", "pass"])
    return code == 0


def provision(lock: str, name: str, into: str, asked: Optional[str]) -> Dict[str, object]:
    began = time.monotonic()
    if not re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z", name):
        raise Failure("%r cannot be a name of an environment" % name, hint="letters, digits, dots and dashes")
    try:
        with open(lock, "rb") as file:
            content = file.read()
    except OSError as problem:
        raise Failure("cannot read the lock", str(problem)) from None
    text = content.decode("utf-8", "replace")
    major, _, minor = re.sub(r"[^0-9.]", "", lock_header(text, "requires-python", "3.8")).partition(".")
    python, version = choose_python(asked, (int(major), int(minor)))
    digest = hashlib.sha256(content + dotted(version).encode("ascii")).hexdigest()[:12]
    directory = os.path.join(os.path.abspath(os.path.expanduser(into)), "%s-%s" % (name, digest))
    marker = os.path.join(directory, ".complete")
    answer: Dict[str, object] = {"directory": directory, "python": os.path.join(directory, "bin", "python")}
    try:
        os.makedirs(os.path.dirname(directory), mode=0o700, exist_ok=True)
        with open(directory + ".lock", "a", encoding="ascii") as guard:
            try:
                fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("waiting for another run that is making %s" % directory)
                fcntl.flock(guard, fcntl.LOCK_EX)
            fresh = not (os.path.exists(marker) and works(directory))
            if fresh:
                shutil.rmtree(directory, ignore_errors=True)
                needed = int(lock_header(text, "disk-mb", "0")) * 1_000_000
                free = shutil.disk_usage(os.path.dirname(directory)).free
                if free < needed:
                    raise Failure(
                        "not enough disk space for %s" % name,
                        "%s has %d MB free, %d MB are needed"
                        % (os.path.dirname(directory), free // 1_000_000, needed // 1_000_000),
                        "free some space, or choose another folder",
                    )
                say("making %s with Python %s" % (directory, dotted(version)))
                try:
                    install(python, version, directory, os.path.abspath(lock))
                    say("compiling")
                    # Some packages ship templates that are not valid Python, so the exit code means nothing.
                    compiler = [os.path.join(directory, "bin", "python"), "-m", "compileall", "-q", "-j", "0"]
                    run([*compiler, os.path.join(directory, "lib")], clean_environment())
                except BaseException:
                    shutil.rmtree(directory, ignore_errors=True)
                    raise
                with open(marker + ".new", "w", encoding="utf-8") as file:
                    json.dump({"python": python, "version": dotted(version)}, file)
                os.replace(marker + ".new", marker)
    except OSError as problem:
        raise Failure("cannot write to %s" % os.path.dirname(directory), str(problem)) from None
    answer.update(seconds=round(time.monotonic() - began, 2), fresh=fresh)
    return answer


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="provision.py", description="Make a Python environment of a hashed lock, once."
    )
    parser.add_argument("--lock", required=True, help="requirements with hashes")
    parser.add_argument("--name", required=True, help="the first part of the environment's folder name")
    parser.add_argument("--into", required=True, metavar="DIR", help="where environments are kept")
    parser.add_argument(
        "--python", metavar="P", help="the Python to use (default: this one, else a newer one that is found)"
    )
    given = parser.parse_args(arguments)
    try:
        answer = provision(given.lock, given.name, given.into, given.python)
    except Failure as failure:
        print(
            json.dumps({"error": {"message": failure.message, "cause": failure.cause, "hint": failure.hint}})
        )
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
