"""Puts a gateway in the place of another without anybody noticing: it is asked, then the front is told of it.
The front's file of where it sends to lies beside its revisions; Caddy reads it again and ends no stream."""

from __future__ import annotations

import json
import shlex

from homelab import front, gateway
from homelab.errors import DeployError
from homelab.facts import DeployedService
from homelab.nodes.session import Session
from homelab.runtimes.compose import on_engine
from homelab.service import ENVIRONMENT_FILE, File, Service

CHECK_SECONDS = 60
RELOAD_SECONDS = 60
# A request that the front has just given to the old gateway has reached it by then.
SETTLE_SECONDS = 1

# Runs on the node: a gateway behind a front listens only there, and its key lies there beside it.
CHECK = """
import json, sys, urllib.error, urllib.request
url, environment, variable, seconds = json.loads(sys.argv[1])
key = ""
for line in open(environment):
    name, _, value = line.strip().partition("=")
    if name == variable:
        key = value.strip("'\\"")
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + key})
try:
    models = json.load(opener.open(request, timeout=seconds))["data"]
    print(json.dumps({"models": [m["id"] for m in models]}))
except urllib.error.HTTPError as e:
    print(json.dumps({"failed": "HTTP %d: %s" % (e.code, e.read(600).decode("utf-8", "replace"))}))
except Exception as e:
    print(json.dumps({"failed": str(e) or type(e).__name__}))
"""
# The program that runs is the one that its own files name, whichever release wrote them.
RELOAD = """
import json, os, subprocess, sys
os.chdir(sys.argv[1])
program = os.path.expanduser(json.load(open("service.json"))["argv"][0])
sys.exit(subprocess.call([program, *sys.argv[2:]]))
"""


async def check(session: Session, service: Service) -> None:
    """Return once a gateway has answered a request with its key: it names its models.

    Raises DeployError with its own words."""
    unit = service.unit
    environment = f"{service.directory}/{ENVIRONMENT_FILE}"
    what = [f"{unit.url}/v1/models", environment, gateway.MASTER_KEY_VARIABLE, CHECK_SECONDS]
    done = await session.run(
        shlex.join([unit.python, "-c", CHECK, json.dumps(what)]), timeout=CHECK_SECONDS + 30
    )
    try:
        answer = json.loads(done.text)
    except ValueError:
        answer = {"failed": done.cause}
    missing = sorted(set(unit.serves) - set(answer.get("models", ())))
    if "failed" in answer or missing:
        raise DeployError(
            f"The new gateway on node `{service.node}` lives, and does not answer as it should",
            cause=answer.get("failed") or f"it does not know {', '.join(missing)}",
            hint="homelab logs gateway",
        )


async def point(session: Session, service: Service, fronts: tuple[DeployedService, ...]) -> None:
    """Send what comes to this gateway from now on: the fronts that run read it at once, others when they
    start.

    Raises DeployError with Caddy's words; what was sent elsewhere before still is then."""
    path = front.upstream_path(service.unit.cluster)
    before = await session.run(f"cat {shlex.quote(path)}")
    await session.put([File(path=path, content=front.upstream(service))])
    for there in fronts:
        try:
            await _reload(session, there)
        except DeployError:
            if before.exit_status == 0:
                await session.put([File(path=path, content=before.text)])
            raise


async def _reload(session: Session, there: DeployedService) -> None:
    words = ["reload", "--adapter", "caddyfile", "--config"]
    if there.runtime == "docker":
        words += [f"/app/{front.CONFIGURATION}", "--address", front.ADMIN_IN_CONTAINER]
        command = on_engine(
            there.socket, shlex.join(["docker", "exec", there.container or "", "caddy", *words])
        )
    else:
        words += [front.CONFIGURATION, "--address", front.ADMIN]
        command = shlex.join([there.python, "-c", RELOAD, there.directory or "", *words])
    done = await session.run(command, timeout=RELOAD_SECONDS)
    if done.exit_status != 0:
        raise DeployError(
            f"The front on node `{session.node}` does not take the new gateway",
            cause=done.cause,
            hint="homelab logs front; the gateway before goes on",
        )
