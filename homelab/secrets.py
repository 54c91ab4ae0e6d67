"""The keys of a cluster as values. Making, saving and reading them back is the business of `state.py` and
`pipeline.py`."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from homelab.errors import InventoryError

VARIABLE = re.compile(r"""(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?:'([^']*)'|"([^"]*)"|([^'"]*))""")


def variables(text: str, path: str) -> dict[str, str]:
    """What a file of lines `NAME=value` says. A value may stand in quotes, and nothing in it is expanded.

    Raises InventoryError with the lines that are none; never with what is in them."""
    found, mistakes = {}, []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if match := VARIABLE.fullmatch(stripped):
            found[match[1]] = next((g for g in match.groups()[1:] if g is not None), "")
        else:
            mistakes.append(f"{path}:{number}: not a line `NAME=value`")
    if mistakes:
        raise InventoryError(f"`{path}` cannot be read", mistakes=mistakes)
    return found


def engine_key_reference(node: str, service: str) -> str:
    """Names one engine's key without being it."""
    return f"engine:{node}/{service}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """`gateway_key` is what clients send; every engine's own key is derived from `engine_secret`, so none
    of them must be stored."""

    gateway_key: SecretStr
    engine_secret: SecretStr

    def engine_key(self, node: str, service: str) -> SecretStr:
        """The key that one engine demands: HMAC-SHA256 of its place, so that it reveals nothing about the
        others."""
        secret = self.engine_secret.get_secret_value().encode()
        return SecretStr("sk-" + hmac.new(secret, f"{node}/{service}".encode(), hashlib.sha256).hexdigest())

    def app_key(self, name: str) -> SecretStr:
        """The key by which an app asks the gateway, on whichever node it runs: derived as an engine's is. No
        node is called `app:`."""
        return self.engine_key("app:key", name)

    def app_secret(self, name: str) -> SecretStr:
        """What an app signs its sessions with: the same after every deploy, so that nobody is logged out."""
        return self.engine_key("app:secret", name)

    def resolve(self, reference: str | None, environ: Mapping[str, str]) -> SecretStr | None:
        """The secret that a reference names: `env:NAME` of the environment, or an engine's own; None where
        there is none."""
        if not reference:
            return None
        kind, _, name = reference.partition(":")
        if kind == "env":
            value = environ.get(name)
            return SecretStr(value) if value else None
        node, _, service = name.partition("/")
        return self.engine_key(node, service)

    def to_json(self) -> str:
        return json.dumps(
            {
                "gateway_key": self.gateway_key.get_secret_value(),
                "engine_secret": self.engine_secret.get_secret_value(),
            }
        )

    @property
    def id(self) -> str:
        """What the agent says of the file that `to_json` is written to."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, text: str) -> Secrets:
        """Raises ValueError when the text is not what `to_json` wrote."""
        document = json.loads(text)
        try:
            gateway_key, engine_secret = document["gateway_key"], document["engine_secret"]
        except (KeyError, TypeError) as e:
            raise ValueError("no gateway_key or engine_secret in it") from e
        if not isinstance(gateway_key, str) or not isinstance(engine_secret, str):
            raise ValueError("gateway_key and engine_secret are strings")
        return cls(gateway_key=SecretStr(gateway_key), engine_secret=SecretStr(engine_secret))
