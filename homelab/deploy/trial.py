"""Tries an engine that is healthy with one long prompt for each request that it is planned for: memory that
is taken only then is missing now, not in the middle of somebody's work."""

from __future__ import annotations

import json
import shlex
from collections.abc import Awaitable, Callable

from homelab.deploy.events import Event, Tell
from homelab.errors import DeployError
from homelab.nodes.session import Session
from homelab.service import ENVIRONMENT_FILE, Service

# A card that needs longer is slow, not out of memory.
TRIAL_SECONDS = 120

# Runs on the node: an engine may listen only there, and its key lies there beside it.
SCRIPT = """
import json, sys, threading, time, urllib.error, urllib.request
url, body, tokens, at_once, seconds, environment, variable = json.loads(sys.argv[1])
key = ""
for line in open(environment):
    name, _, value = line.strip().partition("=")
    if name == variable:
        key = value.strip("'\\"")
failed = []
def ask(number):
    prompt = dict(body, prompt=[100 + number % 100] * tokens)
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + key}
    request = urllib.request.Request(url, json.dumps(prompt).encode(), headers)
    try:
        opener.open(request).read()
    except urllib.error.HTTPError as e:
        failed.append("HTTP %d: %s" % (e.code, e.read(600).decode("utf-8", "replace")))
    except Exception as e:
        failed.append(str(e) or type(e).__name__)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
threads = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(at_once)]
for t in threads:
    t.start()
end = time.monotonic() + seconds
while any(t.is_alive() for t in threads) and not failed and time.monotonic() < end:
    time.sleep(0.1)
print(json.dumps({"failed": failed, "computes": any(t.is_alive() for t in threads)}))
"""


async def try_out(
    session: Session,
    service: Service,
    last_log: Callable[[], Awaitable[str]],
    tell: Tell,
    seconds: float = TRIAL_SECONDS,
) -> None:
    """Return once the engine has answered its trial, or still computes it after `seconds`.

    Raises DeployError with the engine's own words where it refuses or dies."""
    unit, trial = service.unit, service.unit.trial
    if trial is None:
        return

    def say(text: str) -> None:
        tell(Event(node=service.node, service=service.name, step="load", text=text))

    tokens = f"{trial.tokens:,}".replace(",", " ")
    say(f"a prompt of {tokens} tokens × {trial.at_once}")
    environment = f"{service.directory}/{ENVIRONMENT_FILE}"
    what = [
        f"{unit.url}{trial.path}", dict(trial.body), trial.tokens, trial.at_once, seconds, environment,
        unit.key_variable,
    ]  # fmt: skip
    command = shlex.join([unit.python, "-c", SCRIPT, json.dumps(what)])
    done = await session.run(command, timeout=seconds + 30)
    try:
        answer = json.loads(done.text)
    except ValueError:
        answer = {"failed": [done.cause]}
    if answer["failed"]:
        raise DeployError(
            f"`{service.name}` on node `{service.node}` is healthy, and did not answer prompts of {tokens} "
            f"tokens, {trial.at_once} at once",
            cause=f"{answer['failed'][0]}\n{await last_log()}",
            hint=f"Give `{service.subject}` less `context` or `concurrency`; `long_prompt: false` "
            "leaves this check out",
        )
    if answer["computes"]:
        say(f"still computes after {seconds:.0f} s: slow, and no error")
