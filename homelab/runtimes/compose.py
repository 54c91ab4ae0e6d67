"""Docker Compose: one project per service revision, so that an old one can wait, stopped, beside a new one."""

from __future__ import annotations

import shlex

from homelab.errors import InventoryError
from homelab.service import File, Service, Unit, identified
from homelab.templating import render_template

# Weights are read at no less than this, a first download included; until then a container counts as starting, not as unhealthy.
SLOWEST_LOAD_BYTES_PER_SECOND = 10 * 1024**2
START_SECONDS = 900


def render(unit: Unit) -> Service:
    """The unit's compose.yml, its 0600 environment file and its configuration files."""
    url = f"http://127.0.0.1:{unit.port}{unit.health}"
    mounts = [f"{m.source}:{m.target}{':ro' if m.read_only else ''}" for m in unit.mounts]
    mounts += [f"./{name}:/app/{name}:ro" for name in sorted(unit.files)]
    volumes = {
        f"cache{i}": {"name": f"homelab-{unit.engine}-cache{i or ''}"} for i, _ in enumerate(unit.caches)
    }
    mounts += [f"cache{i}:{target}" for i, target in enumerate(unit.caches)]
    definition = {
        "name": unit.name,
        "image": unit.image,
        "command": list(unit.arguments),
        "environment": dict(sorted(unit.environment.items())),
        "loopback": unit.is_loopback,
        # An IPv6 address stands in brackets in Compose's short syntax.
        "publish": f"[{unit.address}]" if ":" in unit.address else unit.address,
        "port": unit.port,
        "network": network(unit.cluster),
        "ipc_host": bool(unit.gpus) or unit.engine == "vllm",
        "memory_limit": unit.memory_limit,
        "volumes": mounts,
        "named_volumes": volumes,
        # The images agree on a shell, not on curl or python3.
        "healthcheck": [
            "CMD-SHELL",
            f'curl -fsS -o /dev/null {url} || python3 -c "import urllib.request as r; r.urlopen({url!r}, timeout=4)"',
        ],
        "start_period_seconds": START_SECONDS + unit.load_bytes // SLOWEST_LOAD_BYTES_PER_SECOND,
        "gpus": list(unit.gpus),
    }
    unit, spec, directory = identified(unit, [definition, dict(unit.files)])
    project = f"{unit.cluster}-{unit.name}-{spec}"
    text = render_template("compose.yml.j2", project=project, labels=dict(unit.labels), **definition)
    return Service(
        unit=unit,
        runtime="docker",
        spec=spec,
        directory=directory,
        project=project,
        files=(
            File(path=f"{directory}/compose.yml", content=text),
            File(path=f"{directory}/service.env", content=environment_file(unit), mode=0o600),
            # Read by a process in the container that need not be root.
            *(
                File(path=f"{directory}/{name}", content=content)
                for name, content in sorted(unit.files.items())
            ),
        ),
    )


def network(cluster: str) -> str:
    """The cluster's network on a node. Between two networks of one machine Docker lets nothing through, not even to a published port of
    the machine's own address (where it runs without its userland proxy, or behind a firewall such as ufw)."""
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
    return shlex.join(
        [
            "docker",
            "compose",
            "--project-name",
            project,
            "--project-directory",
            directory,
            "-f",
            f"{directory}/compose.yml",
            *arguments,
        ]
    )
