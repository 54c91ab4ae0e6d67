"""`homelab key`: people's keys, added to and taken from the gateway that runs, which is not restarted."""

from __future__ import annotations

import secrets as random
import time
from dataclasses import dataclass
from typing import Any

from homelab import keys, pipeline, state
from homelab.deploy import key_store
from homelab.discover import discover
from homelab.endpoints import deployed
from homelab.errors import DeployError, InventoryError
from homelab.facts import DeployedService
from homelab.keys import Key, Usage
from homelab.pipeline import Household
from homelab.service import read_label, revision_folder

MOST = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """The keys that there are, what each has used, why that may be too little, and when it was so."""

    keys: dict[str, Key]
    usage: dict[str, Usage]
    ledger_error: str
    now: float


async def add(
    household: Household,
    name: str,
    *,
    models: str | None = None,
    private: bool = False,
    tokens_per_day: int | None = None,
    rpm: int | None = None,
    parallel: int | None = None,
    expires: str | None = None,
    metrics: bool = False,
) -> str:
    """The new key, which is kept nowhere.

    Raises InventoryError, DeployError, NodeError."""
    now = time.time()
    keys.check_name(name)
    if metrics and (models is not None or private or any((tokens_per_day, rpm, parallel))):
        raise InventoryError(
            "--metrics is for a key that asks no model, so no limit of one goes with it",
            hint=f"homelab key add {name} --metrics",
        )
    for option, number in (("--tokens-per-day", tokens_per_day), ("--rpm", rpm), ("--parallel", parallel)):
        if number is not None and not 0 < number <= MOST:
            raise InventoryError(
                f"{option} {number} is no limit", hint=f"1 to {MOST:.0e}; leave it out for no limit"
            )
    secret, key = keys.new(
        random.token_hex(32),
        random.token_hex(16),
        now,
        models=keys.NO_MODELS if metrics else keys.models_of(household.inventory, models, private=private),
        private=private,
        tokens_per_day=tokens_per_day,
        rpm=rpm,
        parallel=parallel,
        expires=keys.expiry(expires, now),
        metrics=metrics,
    )
    await key_store.change(
        household.inventory, await _auth(household), lambda known: keys.added(known, name, key)
    )
    return secret


async def revoke(household: Household, name: str) -> None:
    """Raises InventoryError, DeployError, NodeError."""
    now = time.time()
    await key_store.change(
        household.inventory, await _auth(household), lambda known: keys.revoked(known, name, now)
    )


async def rotate(household: Household, name: str) -> str:
    """The new secret of a key. Raises InventoryError, DeployError, NodeError."""
    secret, now = f"sk-{random.token_hex(32)}", time.time()
    await key_store.change(
        household.inventory, await _auth(household), lambda known: keys.rotated(known, name, secret, now)
    )
    return secret


async def listed(household: Household) -> Listed:
    """Raises DeployError, NodeError."""
    gateway = await _gateway(household)
    stored = await key_store.load(household.inventory, _file(household, gateway))
    now = time.time()
    # Of the apps that it knows too: no name of a key has a colon.
    known = read_label(gateway.labels, "homelab.asked").get("apps")
    of_apps = {
        f"app:{name}": keys.of_app(name, app)
        for name, app in household.inventory.apps.items()
        if isinstance(known, dict) and name in known
    }
    return Listed(
        keys={**keys.live(stored.keys), **of_apps},
        usage=keys.usage_of(stored.usage, now),
        ledger_error=stored.ledger_error,
        now=now,
    )


async def _auth(household: Household) -> str:
    """Where the file lies by which the deployed gateway asks for keys, relative to its node's home.

    Raises NodeError, DeployError."""
    return _file(household, await _gateway(household))


def _file(household: Household, gateway: DeployedService) -> str:
    return f"{revision_folder(household.inventory.cluster, gateway.name, gateway.spec)}/{keys.AUTH_FILE}"


async def _gateway(household: Household) -> DeployedService:
    """The gateway that is deployed.

    Raises NodeError where the node is silent, DeployError where no gateway is deployed."""
    inventory = household.inventory
    node = inventory.gateway.node
    only = inventory.model_copy(update={"nodes": {node: inventory.nodes[node]}, "models": {}})
    state.directory(inventory.cluster)
    discovery = await discover(only)
    if node in discovery.errors:
        raise discovery.errors[node]
    discovery = pipeline.listed(household, discovery)
    for where, service in deployed(inventory, discovery.survey):
        if where == node and service.role == "gateway":
            return service
    raise DeployError(
        f"No gateway of cluster `{inventory.cluster}` is deployed on node `{node}`", hint="homelab deploy"
    )


def document(found: Listed) -> dict[str, Any]:
    """`homelab key list --json`."""
    from homelab.facts import SCHEMA_VERSION

    def usage(key: Key) -> dict[str, Any]:
        used = found.usage.get(key.id, Usage())
        return {
            "last_use": used.last_use,
            "requests": used.requests,
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
            "tokens_today": used.tokens_today,
        }

    return {
        "schema_version": SCHEMA_VERSION,
        "ledger_error": found.ledger_error or None,
        "keys": [
            {
                "name": name,
                "state": keys.state_of(key, found.now),
                "models": [] if key.metrics else list(key.models) or None,
                "private": key.private,
                "metrics": key.metrics,
                "tokens_per_day": key.tokens_per_day,
                "rpm": key.rpm,
                "parallel": key.parallel,
                "created": key.created,
                "expires": key.expires,
                **usage(key),
            }
            for name, key in sorted(found.keys.items())
        ],
    }
