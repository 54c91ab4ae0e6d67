"""Keys of people and apps, as values: what each may do, and the document that the gateway reads them from.
Only hashes are in it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from calendar import timegm
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from homelab.endpoints import Endpoint
from homelab.errors import HomelabError, InventoryError
from homelab.inventory import App, Inventory, did_you_mean
from homelab.service import cluster_directory

# Beside the revisions of the gateway: no part of any, so that none is restarted for a key.
FOLDER = "keys"
FILE = "keys.json"
AUTH_FILE = "homelab_auth.py"
HOUSE_FILE = "house.json"
GRACE_SECONDS = 15 * 60
# LiteLLM's word for none. A gateway that an earlier homelab deployed knows no keys for metrics, and would
# take one for a key of all models.
NO_MODELS = ("no-default-models",)
DAY_SECONDS = 86400
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
DURATION = re.compile(r"([1-9][0-9]{0,5})([mhdwy])")
SECONDS = {"m": 60, "h": 3600, "d": DAY_SECONDS, "w": 7 * DAY_SECONDS, "y": 365 * DAY_SECONDS}
DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
LONGEST_SECONDS = 100 * 365 * DAY_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Hash:
    """One secret of a key; `until` is when it ends, in seconds since 1970, None for never."""

    sha256: str
    until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """`id` names it in the ledger and is no secret. No `models` are all of them; times are in seconds since
    1970. `metrics`: it reads the gateway's counters and opens nothing else."""

    id: str
    hashes: tuple[Hash, ...]
    created: float
    models: tuple[str, ...] = ()
    private: bool = False
    tokens_per_day: int | None = None
    rpm: int | None = None
    parallel: int | None = None
    expires: float | None = None
    revoked: float | None = None
    metrics: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a key has used: the day's and all requests and tokens, and when last."""

    last_use: float | None = None
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_today: int = 0


Keys = Mapping[str, Key]


def folder(cluster: str) -> str:
    """Where keys and ledger lie on the gateway's node, relative to the home."""
    return f"{cluster_directory(cluster)}/gateway/{FOLDER}"


def app_id(name: str) -> str:
    """Names an app's key in the ledger."""
    return f"key-{hashlib.sha256(f'app:{name}'.encode()).hexdigest()[:32]}"


def of_app(name: str, app: App) -> Key:
    """An app's key as those of people are, but for its hashes: the gateway is given the key itself."""
    return Key(id=app_id(name), hashes=(), created=0, models=app.models, private=app.private)


def house(
    endpoints: Sequence[Endpoint],
    aliases: Mapping[str, str],
    apps: Mapping[str, App] | None = None,
    variables: Mapping[str, str] | None = None,
) -> str:
    """What the gateway is told of the house: the models that no prompt leaves it for, by all their names; and
    each app with the variable that has its key. An app that names no models gets those that chat."""
    outside = {e.name for e in endpoints if e.origin == "cloud"}
    inside = {e.name for e in endpoints} - outside
    also = {alias for alias, model in aliases.items() if model in inside}
    document: dict[str, Any] = {"models": sorted(inside | also)}
    chat = {e.name for e in endpoints if e.kind == "chat"}
    chat |= {alias for alias, model in aliases.items() if model in chat and not alias.endswith("*")}
    for name, app in sorted((apps or {}).items()):
        may = sorted(app.models or (chat & (inside | also) if app.private else chat))
        document.setdefault("apps", {})[name] = {
            "id": app_id(name),
            "variable": (variables or {})[name],
            "models": may or ["no-default-models"],
            "private": app.private,
        }
    return json.dumps(document) + "\n"


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def to_json(keys: Keys) -> str:
    entries = {n: asdict(k) for n, k in sorted(keys.items())}
    for entry in entries.values():
        if not entry["metrics"]:  # a homelab that knows no such keys reads all the others
            del entry["metrics"]
    return json.dumps({"schema_version": 1, "keys": entries}, indent=1)


def from_json(text: str) -> dict[str, Key]:
    """The keys by name; none of an empty text.

    Raises HomelabError for what `to_json` did not write."""
    if not text:
        return {}
    try:
        document = json.loads(text)
        return {
            name: Key(
                **{
                    **entry,
                    "hashes": tuple(Hash(**h) for h in entry["hashes"]),
                    "models": tuple(entry["models"]),
                }
            )
            for name, entry in document["keys"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise HomelabError(
            "The gateway's list of keys is damaged",
            cause=f"{FILE}: {type(e).__name__}: {e}",
            hint="Only the gateway's own key works. Move it away on the gateway's node, then add them anew",
        ) from e


def live(keys: Keys) -> dict[str, Key]:
    return {name: key for name, key in keys.items() if key.revoked is None}


def added(keys: Keys, name: str, key: Key) -> dict[str, Key]:
    """With one more. A revoked one's name is free.

    Raises InventoryError."""
    check_name(name)
    if name in live(keys):
        raise InventoryError(
            f"There is a key `{name}` already", hint=f"A new secret for it: homelab key rotate {name}"
        )
    return {**keys, name: key}


def revoked(keys: Keys, name: str, now: float) -> dict[str, Key]:
    """Raises InventoryError where there is none of that name."""
    return {**keys, name: replace(_known(keys, name), revoked=now)}


def rotated(keys: Keys, name: str, secret: str, now: float) -> dict[str, Key]:
    """With a new secret; those before it end after GRACE_SECONDS, or when they would have.

    Raises InventoryError where there is none of that name, or it has expired."""
    key = _known(keys, name)
    if key.expires is not None and key.expires <= now:
        raise InventoryError(
            f"The key `{name}` has expired, a new secret would not work either",
            hint=f"homelab key revoke {name}, then: homelab key add {name}",
        )
    ending = now + GRACE_SECONDS
    # Those that ended are kept: whoever still has one is told so.
    old = tuple(replace(h, until=ending if h.until is None else min(h.until, ending)) for h in key.hashes)
    return {**keys, name: replace(key, hashes=(*old[-7:], Hash(sha256=digest(secret))))}


def _known(keys: Keys, name: str) -> Key:
    known = sorted(live(keys))
    if name not in known:
        raise InventoryError(
            f"No key `{name}`{did_you_mean(name, known)}",
            hint=f"There are: {', '.join(known)}" if known else "There are none: homelab key add NAME",
        )
    return keys[name]


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InventoryError(
            f"`{name[:80]}` is no name for a key",
            hint="Letters, digits, and . _ @ - after the first; 63 at most",
        )


def models_of(inventory: Inventory, text: str | None, *, private: bool) -> tuple[str, ...]:
    """The models that `--models A,B` names; none where it is not given.

    Raises InventoryError for one that is not there, or that a private key may not ask for."""
    if text is None:
        return ()
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise InventoryError("--models names no model", hint="Leave it out for all of them")
    known = [*inventory.models, *inventory.cloud]
    for name in names:
        if name not in known:
            raise InventoryError(
                f"No model `{name}`{did_you_mean(name, known)}", hint=f"There are: {', '.join(known)}"
            )
        if private and name not in inventory.models:
            raise InventoryError(
                f"`{name}` is outside the house, and a private key reaches nothing there",
                hint=f"Leave out --private or `{name}`",
            )
    return tuple(names)


def expiry(text: str | None, now: float) -> float | None:
    """When `30d`, `12h` or `2027-01-31` (the end of that day, UTC) is, in seconds since 1970.

    Raises InventoryError for what is none of these, or is over."""
    if text is None:
        return None
    hint = "As 12h, 30d, 6w, 1y, or a day: 2027-01-31"
    if found := DURATION.fullmatch(text):
        seconds = int(found[1]) * SECONDS[found[2]]
        if seconds > LONGEST_SECONDS:
            raise InventoryError(f"--expires {text} is more than 100 years", hint=hint)
        return math.floor(now) + seconds
    found = DATE.fullmatch(text)
    if found is None:
        raise InventoryError(f"--expires {text[:40]} is neither a time nor a day", hint=hint)
    year, month, day = (int(part) for part in found.groups())
    if not year >= 1970 or not _is_day(year, month, day):
        raise InventoryError(f"There is no day {text}", hint=hint)
    end = float(timegm((year, month, day, 0, 0, 0)) + DAY_SECONDS)
    if end <= now:
        raise InventoryError(f"--expires {text} is over", hint=hint)
    return end


def _is_day(year: int, month: int, day: int) -> bool:
    from calendar import monthrange

    return 1 <= month <= 12 and 1 <= day <= monthrange(year, month)[1]


def state_of(key: Key, now: float) -> str:
    return "expired" if key.expires is not None and key.expires <= now else "works"


def usage_of(rows: Sequence[Sequence[Any]], now: float) -> dict[str, Usage]:
    """By id, from the ledger's rows: key, day since 1970, requests, prompt and completion tokens, last
    use."""
    today, found = int(now // DAY_SECONDS), dict[str, Usage]()
    for key, day, requests, prompt, completion, last in rows:
        before = found.get(key, Usage())
        found[key] = Usage(
            last_use=max(last, before.last_use or 0.0),
            requests=before.requests + requests,
            prompt_tokens=before.prompt_tokens + prompt,
            completion_tokens=before.completion_tokens + completion,
            tokens_today=before.tokens_today + (prompt + completion if day == today else 0),
        )
    return found


def new(secret_hex: str, id_hex: str, now: float, **may: Any) -> tuple[str, Key]:
    """A secret as clients send it, and the key that it opens, of random digits that the caller has drawn.
    `may` are limits, as `Key` has them."""
    secret = f"sk-{secret_hex}"
    return secret, Key(id=f"key-{id_hex}", hashes=(Hash(sha256=digest(secret)),), created=now, **may)
