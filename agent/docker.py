"""Docker on this node, through its Engine API: can this user use it, does it offer the GPU, and which
containers carry our label."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

from . import httpget, processes, services

TIMEOUT_S = 5.0
PROGRAM_PATH = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", "/snap/bin", "~/.local/bin")
# In the bundle's own folder, the one place where the agent may write.
MEMORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "docker.json")
# Where docker/cli looks for plugins (cli-plugins/manager), the user's own first.
PLUGIN_PATH = (
    "~/.docker/cli-plugins",
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
    "/opt/homebrew/lib/docker/cli-plugins",
    "/Applications/Docker.app/Contents/Resources/cli-plugins",
)
DENIED = "permission denied while trying to connect to the Docker daemon socket at unix://%s"
DOWN = "Cannot connect to the Docker daemon at unix://%s. Is the docker daemon running?"


def find_program(name: str) -> str | None:
    """A login by SSH often has a shorter PATH than the desk."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), *PROGRAM_PATH]
    return next(
        (
            p
            for p in (os.path.join(os.path.expanduser(f), name) for f in folders if f)
            if os.path.isfile(p) and os.access(p, os.X_OK)
        ),
        None,
    )


def socket_path() -> str:
    """The engine that the docker command of this user talks to: DOCKER_HOST, its context, else the usual
    places."""
    named = os.environ.get("DOCKER_HOST", "") or context_host()
    if named.startswith("unix://"):
        return named[len("unix://") :]
    rootless = os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}", "docker.sock")
    standard = "/var/run/docker.sock"
    places = (standard, rootless, os.path.expanduser("~/.docker/run/docker.sock"))
    return next((p for p in places if os.path.exists(p)), standard)


def context_host() -> str:
    """Where the chosen context of the docker command points (docker/cli: cli/context/store)."""
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        name = os.environ.get("DOCKER_CONTEXT") or ""
        if not name:
            with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
                name = json.load(f).get("currentContext") or ""
        if name in ("", "default"):
            return ""
        import hashlib

        digest = hashlib.sha256(name.encode()).hexdigest()
        with open(os.path.join(folder, "contexts", "meta", digest, "meta.json"), encoding="utf-8") as f:
            return str(json.load(f)["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def collect(problems: list[dict[str, str]]) -> dict[str, Any]:
    path = socket_path()
    present = (
        os.path.exists(path) or find_program("docker") is not None or bool(os.environ.get("DOCKER_HOST"))
    )
    if not present:
        return {"docker": None, "services": [], "ports": [], "unlisted": []}
    compose = in_thread(compose_version)
    engine: dict[str, Any] = {"reachable": False, "socket": path, "runtimes": [], "cdi": []}
    ours: list[dict[str, Any]] = []
    ports: list[dict[str, Any]] = []
    unlisted: list[str] = []
    try:
        engine.update(known(path))
        containers = httpget.get_json(path, "/containers/json?all=1", TIMEOUT_S)
        ports = [p for c in containers for p in published(c)]
        ours = details(
            path,
            [c for c in containers if "homelab.cluster" in (c.get("Labels") or {})],
            engine["api_version"],
            unlisted,
        )
    except PermissionError as e:
        engine["error"] = f"{DENIED % path}: {e.strerror}"
    except (FileNotFoundError, ConnectionRefusedError):
        engine["error"] = DOWN % path
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as e:  # whatever answers there may not be Docker
        engine["error"] = f"{path}: {e}"
    if engine.get("error"):
        unlisted.append(engine["error"])
    engine["compose_version"] = compose.result(TIMEOUT_S)
    return {"docker": engine, "services": ours, "ports": ports, "unlisted": unlisted}


class InThread:
    """A call whose failure is None."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = call
        self.arguments = arguments
        self.value: Any = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        try:
            self.value = self.call(*self.arguments)
        except Exception:
            self.value = None

    def result(self, timeout_s: float) -> Any:
        self.thread.join(timeout_s)
        return self.value


CALLS: dict[Any, InThread] = {}


def in_thread(call: Any, *arguments: Any) -> InThread:
    """Calls it, unless the same call of an earlier look still hangs: then it is that one."""
    for key in [k for k, known in CALLS.items() if not known.thread.is_alive()]:
        del CALLS[key]
    key = (call, arguments)
    if key not in CALLS:
        CALLS[key] = InThread(call, *arguments)
    return CALLS[key]


def known(path: str) -> dict[str, Any]:
    """What the engine says of itself, kept until it is started anew: for /info and /version Docker runs runc
    and others for their versions, which takes longer than everything else that is asked here (20.10)."""
    identity = "engine"
    for name in (path, "/var/run/docker.pid"):
        if os.path.exists(name):
            found = os.stat(name)
            identity += " %s %d %d" % (name, found.st_ino, found.st_mtime_ns)
    kept = recall(identity)
    if isinstance(kept, dict):
        httpget.get(path, "/_ping", TIMEOUT_S)  # still there, and this user may ask
        return kept
    said = describe(path)
    keep(identity, said)
    return said


def recall(identity: str) -> Any:
    try:
        with open(MEMORY, encoding="utf-8") as f:
            return json.load(f).get(identity)
    except (OSError, ValueError, AttributeError):
        return None


def keep(identity: str, value: Any) -> None:
    """The newest of each kind, which is the first word of its identity."""
    try:
        with open(MEMORY, encoding="utf-8") as f:
            kept = {k: v for k, v in json.load(f).items() if k.split()[0] != identity.split()[0]}
    except (OSError, ValueError, AttributeError):
        kept = {}
    try:
        partial = "%s.%d" % (MEMORY, os.getpid())
        with open(partial, "w", encoding="utf-8") as f:
            json.dump(dict(kept, **{identity: value}), f)
        os.replace(partial, MEMORY)
    except OSError:
        pass  # a full disk: it is asked again next time


def describe(path: str) -> dict[str, Any]:
    information = in_thread(httpget.get_json, path, "/info", TIMEOUT_S)
    version = httpget.get_json(path, "/version", TIMEOUT_S)
    found: dict[str, Any] = {
        "reachable": True,
        "version": version.get("Version"),
        "api_version": version.get("ApiVersion"),
        "error": None,
    }
    info = information.result(TIMEOUT_S) or {}
    found["data_root"] = info.get("DockerRootDir")
    found["cgroup_version"] = info.get("CgroupVersion")
    found["runtimes"] = sorted(info.get("Runtimes") or {})
    found["cdi"] = cdi_files(info.get("CDISpecDirs") or [])
    return found


def cdi_files(directories: list[str]) -> list[str]:
    """Descriptions of devices that containers can be given by name (Container Device Interface)."""
    return sorted(name for d in directories if os.path.isdir(d) for name in os.listdir(d))


def compose_version() -> str | None:
    """Asked of the plugin itself, as the docker command does; running `docker compose version`
    would start two programs.

    Starting even the one costs more than all the rest of the agent, so what it said is
    kept until its file changes."""
    directories = [os.path.expanduser(d) for d in PLUGIN_PATH]
    configured = os.environ.get("DOCKER_CONFIG")
    if configured:
        directories.insert(0, os.path.join(configured, "cli-plugins"))
    for plugin in (os.path.join(d, "docker-compose") for d in directories):
        if os.path.isfile(plugin) and os.access(plugin, os.X_OK):
            found = os.stat(plugin)
            identity = "compose %s %d %d" % (os.path.realpath(plugin), found.st_size, found.st_mtime_ns)
            return recall(identity) or asked(plugin, identity)
    return None


def asked(plugin: str, identity: str) -> str | None:
    import subprocess

    answer = subprocess.run(
        [plugin, "docker-cli-plugin-metadata"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
        check=False,
    )
    version = str(json.loads(answer.stdout.decode("utf-8", "replace")).get("Version") or "").lstrip("v")
    keep(identity, version)
    return version or None


def published(container: dict[str, Any]) -> list[dict[str, Any]]:
    name = (container.get("Names") or ["/"])[0].lstrip("/")
    rows = [p for p in container.get("Ports") or [] if p.get("PublicPort") and p.get("Type") == "tcp"]
    return [
        {
            "port": p["PublicPort"],
            "address": p.get("IP") or "0.0.0.0",
            "process": name,
            "container": container["Id"],
        }
        for p in rows
    ]


def details(
    path: str, containers: list[dict[str, Any]], api: str, unlisted: list[str]
) -> list[dict[str, Any]]:
    inspections = [
        in_thread(httpget.get_json, path, "/containers/{}/json".format(c["Id"]), TIMEOUT_S)
        for c in containers
    ]
    found = []
    for container, inspection in zip(containers, inspections):
        inspected = inspection.result(TIMEOUT_S)
        if inspected is None:
            if still_there(path, container["Id"]):
                unlisted.append("container {} could not be inspected".format(container["Id"][:12]))
            continue
        found.append(dict(service(container, inspected), socket=path))
    one_shot = tuple(int(n) for n in (api or "0").split(".")) >= (1, 41)
    # Docker 20.10 takes a second for this, one-shot or not: it is asked only where the kernel does not tell.
    statistics = [
        (
            each,
            in_thread(
                httpget.get_json,
                path,
                "/containers/{}/stats?stream=false&one-shot=true".format(each["container"]),
                TIMEOUT_S,
            ),
        )
        for each in found
        if one_shot and each["memory_bytes"] is None and each["state"] != "stopped"
    ]
    for each, statistic in statistics:
        each["memory_bytes"] = memory((statistic.result(TIMEOUT_S) or {}).get("memory_stats") or {})
    return found


def still_there(path: str, identity: str) -> bool:
    """A container that was removed since it was listed is no secret."""
    try:
        return httpget.get(path, f"/containers/{identity}/json", TIMEOUT_S)[0] != 404
    except OSError:
        return True


def service(container: dict[str, Any], inspected: dict[str, Any]) -> dict[str, Any]:
    labels = container["Labels"]
    now = inspected.get("State") or {}
    state, detail = condition(now)
    return {
        "cluster": labels["homelab.cluster"],
        "name": labels.get("homelab.service")
        or labels.get("com.docker.compose.service")
        or inspected.get("Name", "").lstrip("/"),
        "role": labels.get("homelab.role", ""),
        "serves": services.serves(labels),
        "spec": labels.get("homelab.spec", ""),
        "runtime": "docker",
        "state": state,
        "detail": detail,
        "labels": labels,
        "directory": labels.get("com.docker.compose.project.working_dir"),
        "container": container["Id"],
        "project": labels.get("com.docker.compose.project"),
        "pid": now.get("Pid") or None,
        "restarts": inspected.get("RestartCount") or 0,
        "exit_code": None if now.get("Running") and not now.get("Restarting") else now.get("ExitCode"),
        "memory_bytes": processes.memory_of_container(now.get("Pid") or 0, container["Id"]),
    }


def condition(now: dict[str, Any]) -> tuple[str, str | None]:
    status = now.get("Status")
    health = now.get("Health") or {}
    ended = (
        "out of memory"
        if now.get("OOMKilled")
        else now.get("Error") or "exit code {}".format(now.get("ExitCode"))
    )
    if status == "restarting":
        return "unhealthy", f"restarting after {ended}"
    if status != "running":
        return "stopped", f"{status}, {ended}" if status in ("exited", "dead") else status
    if health.get("Status") == "starting":
        return "starting", None
    if health.get("Status") == "unhealthy":
        log = health.get("Log") or [{}]
        return "unhealthy", (log[-1].get("Output") or "").strip()[:300] or None
    return "running", None


def memory(statistics: dict[str, Any]) -> int | None:
    """As `docker stats` counts: without the page cache that can be given back (total_inactive_file in cgroup
    v1, inactive_file in v2)."""
    usage = statistics.get("usage")
    if usage is None:
        return None
    more = statistics.get("stats") or {}
    return int(max(0, usage - more.get("total_inactive_file", more.get("inactive_file", 0))))
