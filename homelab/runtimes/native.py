"""A plain supervised process: for machines without Docker, and for engines that no container can give a GPU (macOS)."""

from __future__ import annotations

import hashlib
import json
import posixpath
import shlex
from functools import cache

from homelab import resources
from homelab.errors import InventoryError
from homelab.service import File, Provision, Service, Unit, identified

CACHE = ".cache/homelab/native"
TOOLS = ("supervise.py", "provision.py", "llama-server")


def render(unit: Unit) -> Service:
    """The unit's service.json, 0600 environment file and configuration files, and the tools that run them."""
    tools = tools_directory()
    provision = None
    if unit.engine == "litellm":
        provision = _provision("litellm")
        # Named by its Python, not by its first line: that holds the path where the environment was made.
        program = [f"~/{provision.directory}/bin/python", f"~/{provision.directory}/bin/litellm"]
    elif unit.image:  # an executable of the node's own
        program = [unit.image]
    else:
        provision = _provision("llamacpp")
        program = [f"~/{provision.directory}/bin/python", f"~/{tools}/llama-server"]
    unit, spec, directory = identified(
        unit, [program, list(unit.arguments), dict(sorted(unit.environment.items())), dict(unit.files), tools]
    )
    document = {
        "argv": [*program, *unit.arguments],
        "environment_file": "service.env",
        "working_directory": ".",
        "address": unit.address,
        "port": unit.port,
        "labels": dict(unit.labels),
    }
    return Service(
        unit=unit,
        runtime="native",
        spec=spec,
        directory=directory,
        project=f"{unit.cluster}-{unit.name}-{spec}",
        files=(
            *tool_files(),
            File(path=f"{directory}/service.json", content=json.dumps(document, indent=1) + "\n"),
            File(path=f"{directory}/service.env", content=_environment_file(unit), mode=0o600),
            *(
                File(path=f"{directory}/{name}", content=content)
                for name, content in sorted(unit.files.items())
            ),
        ),
        provision=provision,
    )


def tools_directory() -> str:
    """Where the supervisor and its companions lie on a node: named by their content, so that versions do not meet."""
    digest = hashlib.sha256(json.dumps(_tools()).encode()).hexdigest()[:12]
    return f"{CACHE}/tools-{digest}"


def tool_files() -> list[File]:
    """The supervisor and its companions as files for a node."""
    return [File(path=f"{tools_directory()}/{name}", content=content) for name, content in _tools().items()]


def supervise(verb: str, directory: str) -> str:
    """A command line for the supervisor, run from the home on the node."""
    return shlex.join(["python3", f"{tools_directory()}/supervise.py", verb, directory])


def provision_command(provision: Provision) -> str:
    """A command line that makes the environment and ends with one line of JSON, which names its folder."""
    tools = tools_directory()
    return shlex.join(
        [
            "python3",
            f"{tools}/provision.py",
            "--lock",
            f"{tools}/{provision.lock}",
            "--name",
            provision.name,
            "--into",
            CACHE,
        ]
    )


def link_command(provision: Provision, target: str) -> str:
    """The environment's folder is named after the node's Python too; rendered files know it by this link."""
    return shlex.join(["ln", "-sfn", posixpath.basename(target), provision.directory])


@cache
def _tools() -> dict[str, str]:
    folder = resources.path("templates") / "native"
    return {p.name: p.read_text() for p in sorted(folder.iterdir()) if p.name in TOOLS or p.suffix == ".lock"}


def _provision(name: str) -> Provision:
    lock = f"{name}.lock"
    return Provision(
        name=name,
        lock=lock,
        directory=f"{CACHE}/{name}-env-{hashlib.sha256(_tools()[lock].encode()).hexdigest()[:12]}",
    )


def _environment_file(unit: Unit) -> str:
    lines = []
    for name, value in sorted(
        {**unit.environment, **{k: s.get_secret_value() for k, s in unit.secrets.items()}}.items()
    ):
        if any(c in value for c in "\n\r\x00"):
            raise InventoryError(
                f"The value for `{name}` has a line break in it",
                hint="Check the environment variable that it comes from",
            )
        lines.append(f"{name}={value}\n")
    return "".join(lines)
