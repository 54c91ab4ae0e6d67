"""A unit as a Compose project of its own: one project per service revision, so that an old one can wait,
stopped, beside a new one."""

from __future__ import annotations

import shlex

from homelab.errors import InventoryError
from homelab.program import image_of
from homelab.service import (
    ENVIRONMENT_FILE,
    Service,
    Unit,
    assembled,
    files_hash,
    health_line,
    labels_of,
    project_of,
    spec_of,
    without_keys,
)
from homelab.templating import render_template

# Weights are read at no less than this, a first download included; until then a container counts as
# starting, not as unhealthy.
SLOWEST_LOAD_BYTES_PER_SECOND = 10 * 1024**2
START_SECONDS = 900
SOCKET = "/var/run/docker.sock"


def render(unit: Unit) -> Service:
    """The unit's compose.yml, its 0600 environment file and its configuration files."""
    mounts = [f"{m.source}:{m.target}{':ro' if m.read_only else ''}" for m in unit.mounts]
    mounts += [f"./{name}:/app/{name}:ro" for name in sorted({**unit.files, **unit.secret_files})]
    mounts += [f"{name}:{target}" for name, target in unit.volumes.items()]
    devices = {**unit.hosting.reservation, "device_ids": list(unit.gpus)}
    definition = {
        "name": unit.name,
        "image": image_of(unit.program),
        "command": list(unit.arguments),
        "environment": dict(sorted(unit.environment.items())),
        "loopback": unit.is_loopback,
        # An IPv6 address stands in brackets in Compose's short syntax.
        "publish": f"[{unit.address}]" if ":" in unit.address else unit.address,
        "port": unit.port,
        "network": network(unit.cluster),
        "ipc_host": unit.ipc_host,
        "memory_limit_bytes": unit.memory_limit_bytes,
        "capabilities": unit.capabilities,
        "volumes": mounts,
        "named_volumes": {name: {"name": f"homelab-{unit.cluster}-{name}"} for name in unit.volumes},
        "healthcheck": ["CMD-SHELL", health_line(unit, "127.0.0.1")],
        "start_period_seconds": START_SECONDS + unit.load_bytes // SLOWEST_LOAD_BYTES_PER_SECOND,
        "reservation": devices if unit.gpus and unit.hosting.reservation else None,
        "devices": list(unit.hosting.devices) if unit.gpus else [],
        "groups": list(unit.hosting.groups) if unit.gpus else [],
    }
    configuration = dict(sorted(unit.files.items()))
    nameless = render_template("compose.yml.j2", project="", labels={}, **definition)
    blank = {"compose.yml": nameless, ENVIRONMENT_FILE: environment_file(without_keys(unit)), **configuration}
    hashed = files_hash(blank)
    project = project_of(unit, spec_of(unit, hashed))
    text = render_template("compose.yml.j2", project=project, labels=labels_of(unit, hashed), **definition)
    # The configuration is read by a process in the container that need not be root.
    files = {"compose.yml": text, ENVIRONMENT_FILE: environment_file(unit), **configuration}
    return assembled(unit, "docker", hashed, files)


def on_engine(socket: str | None, command: str) -> str:
    """A command line of docker's, for the engine that the agent found: it may be a user's own."""
    if socket in (None, SOCKET):
        return command
    return f"export DOCKER_HOST={shlex.quote(f'unix://{socket}')}; {command}"


def network(cluster: str) -> str:
    """The cluster's network on a node. Between two networks of one machine Docker lets nothing through, not
    even to a published port of the machine's own address (where it runs without its userland proxy, or
    behind a firewall such as ufw)."""
    return f"homelab-{cluster}"


def create_network_command(cluster: str) -> str:
    """Makes the cluster's network where it is not there yet."""
    name, label = shlex.quote(network(cluster)), shlex.quote(f"homelab.cluster={cluster}")
    return f"docker network inspect {name} >/dev/null 2>&1 || docker network create --label {label} {name}"


def remove_network_command(cluster: str) -> str:
    """Takes it away again, if there is Docker and nothing is in it."""
    return f"docker network rm {shlex.quote(network(cluster))} >/dev/null 2>&1; true"


def environment_file(unit: Unit) -> str:
    """The secrets as Compose reads them: single-quoted values are taken literally.

    Raises InventoryError for a secret that no environment file can carry."""
    lines = []
    for name, secret in sorted(unit.secrets.items()):
        value = secret.get_secret_value()
        if any(c in value for c in "'\n\r\x00"):
            raise InventoryError(
                f"The secret for `{name}` has a quote or a line break in it",
                hint="Check the environment variable that it comes from",
            )
        lines.append(f"{name}='{value}'\n")
    return "".join(lines)


def compose_command(project: str, directory: str, *arguments: str) -> str:
    """A `docker compose` command line for a revision's project, run from the home on the node."""
    file = f"{directory}/compose.yml"
    options = ["--project-name", project, "--project-directory", directory, "-f", file]
    return shlex.join(["docker", "compose", *options, *arguments])
