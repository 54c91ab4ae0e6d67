"""A plain supervised process: for machines without Docker, and for engines that no container can give a GPU
(macOS)."""

from __future__ import annotations

import hashlib
import json
import posixpath
import shlex
from functools import cache

from homelab import resources
from homelab.errors import InventoryError
from homelab.program import Container, Executable, Program, PythonEnvironment
from homelab.service import (
    ENVIRONMENT_FILE,
    File,
    Service,
    Unit,
    assembled,
    files_hash,
    labels_of,
    without_keys,
)

CACHE = ".cache/homelab/native"
TOOLS = ("supervise.py", "provision.py")


def render(unit: Unit) -> Service:
    """The unit's service.json, 0600 environment file and configuration files, its program, and the tools
    that run it."""
    environment = dict(unit.environment)
    if unit.gpus and unit.hosting.visible:
        environment[unit.hosting.visible] = ",".join(unit.gpus)
    document = {
        "argv": [*argv_of(unit.program), *unit.arguments],
        "environment_file": ENVIRONMENT_FILE,
        "working_directory": ".",
        "address": unit.address,
        "port": unit.port,
        **({"memory_limit_bytes": unit.memory_limit_bytes} if unit.memory_limit_bytes else {}),
        **({"stop_seconds": unit.stop_seconds} if unit.stop_seconds else {}),
    }
    configuration = dict(sorted(unit.files.items()))
    blank = {
        "service.json": json.dumps(document),
        ENVIRONMENT_FILE: _environment_file(without_keys(unit), environment),
        **configuration,
    }
    hashed = files_hash(blank, program=_identity(unit.program))
    text = json.dumps({**document, "labels": labels_of(unit, hashed)}, indent=1) + "\n"
    files = {"service.json": text, ENVIRONMENT_FILE: _environment_file(unit, environment), **configuration}
    return assembled(unit, "native", hashed, files, beside=[*tool_files(), *program_files(unit.program)])


def argv_of(program: Program) -> list[str]:
    """How a program is started, from any folder; `~` is the home on the node."""
    match program:
        case Executable(path=path):
            return [path]
        case PythonEnvironment(program=name):
            folder = environment_directory(program)
            if program.compiled:
                return [f"~/{folder}/bin/{name}"]
            # Named by its Python, not by its first line: that holds the path where the environment was made.
            own = name in _files()
            return [
                f"~/{folder}/bin/python",
                f"~/{program_directory(program)}/{name}" if own else f"~/{folder}/bin/{name}",
            ]
        case Container():
            raise TypeError("a container is not run as a process")


def environment_directory(program: PythonEnvironment) -> str:
    """Where its packages lie: named by its own lock, so that no other program's packages change it."""
    return f"{CACHE}/{program.name}-env-{_digest(_files()[f'{program.name}.lock'])}"


def program_directory(program: PythonEnvironment) -> str:
    """Where its lock lies, and the file that starts it."""
    return f"{CACHE}/{program.name}-program-{_identity(program)}"


def directories_of(program: Program) -> list[str]:
    """The folders in the cache that a service with this program needs, relative to the home."""
    if not isinstance(program, PythonEnvironment):
        return [tools_directory()]
    return [tools_directory(), environment_directory(program), program_directory(program)]


def program_files(program: Program) -> list[File]:
    """What must be on the node to make a program's environment and to start it."""
    if not isinstance(program, PythonEnvironment):
        return []
    names = [n for n in (f"{program.name}.lock", program.program) if n in _files()]
    return [File(path=f"{program_directory(program)}/{n}", content=_files()[n]) for n in names]


def tools_directory() -> str:
    """Where the supervisor and its companion lie on a node: named by their content, so that versions do not
    meet."""
    return f"{CACHE}/tools-{_digest(*(_files()[name] for name in TOOLS))}"


def tool_files() -> list[File]:
    """The supervisor and its companion as files for a node."""
    return [File(path=f"{tools_directory()}/{name}", content=_files()[name]) for name in TOOLS]


def supervise(verb: str, directory: str, python: str) -> str:
    """A command line for the supervisor, run from the home on the node by its Python."""
    return shlex.join([python, f"{tools_directory()}/supervise.py", verb, directory])


def provision_command(program: PythonEnvironment, python: str) -> str:
    """A command line that makes the environment and ends with one line of JSON, which names its folder."""
    lock = f"{program_directory(program)}/{program.name}.lock"
    tool = f"{tools_directory()}/provision.py"
    return shlex.join([python, tool, "--lock", lock, "--name", program.name, "--into", CACHE])


def link_command(program: PythonEnvironment, target: str) -> str:
    """The environment's folder is named after the node's Python too; rendered files know it by this link."""
    return shlex.join(["ln", "-sfn", posixpath.basename(target), environment_directory(program)])


def _identity(program: Program) -> str:
    """Changes when a program of ours does: its lock or the file that starts it. Others are named in the
    files."""
    if not isinstance(program, PythonEnvironment):
        return ""
    return _digest(*(_files().get(n, "") for n in (f"{program.name}.lock", program.program)))


def _digest(*contents: str) -> str:
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:12]


@cache
def _files() -> dict[str, str]:
    folder = resources.path("templates") / "native"
    return {p.name: p.read_text() for p in sorted(folder.iterdir()) if p.is_file()}


def _environment_file(unit: Unit, environment: dict[str, str]) -> str:
    lines = []
    secrets = {name: secret.get_secret_value() for name, secret in unit.secrets.items()}
    for name, value in sorted({**environment, **secrets}.items()):
        if any(c in value for c in "\n\r\x00"):
            raise InventoryError(
                f"The value for `{name}` has a line break in it",
                hint="Check the environment variable that it comes from",
            )
        lines.append(f"{name}={value}\n")
    return "".join(lines)
