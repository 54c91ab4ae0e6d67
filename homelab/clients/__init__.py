"""How programs are connected to the gateway: one module a client, found by looking into this folder. Pure: a
client gives values, and others write files and start programs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from shlex import quote
from typing import Any, Protocol, runtime_checkable

from homelab.engines import Kind
from homelab.merging import Format
from homelab.plugins import Plugins

# Where a client's file or flag names an environment variable, this one holds the gateway's key.
KEY_VARIABLE = "HOMELAB_API_KEY"
# The longest answer that a client should ask for. An agent writes a file in one; a quarter of the context
# leaves room for what it has read.
MAX_OUTPUT_TOKENS = 8192


class Secret(Enum):
    """A value that is known only when it is used, and is never written into a client's file."""

    KEY = "the gateway's key"


Environment = Mapping[str, str | Secret]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as clients see it. `context`: the tokens of one request, prompt and answer together, that each
    of its instances serves; None where that is not known. `silence_seconds`: how long the gateway waits for a
    word of it."""

    name: str
    kind: Kind = "chat"
    context: int | None = None
    cloud: bool = False
    silence_seconds: int = 300

    @property
    def max_output_tokens(self) -> int | None:
        """The longest answer that a client should ask for; None where the context is not known."""
        return None if self.context is None else min(MAX_OUTPUT_TOKENS, self.context // 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a client needs: the gateway's address (without `/v1`), the file that holds its key, the model to
    start with, a smaller one for small tasks and one for the hardest, if there are, and all models.
    `ca_file`: the certificate of the house's own authority, where that signed the gateway's."""

    url: str
    key_file: str
    model: Model
    small: Model | None = None
    quality: Model | None = None
    models: tuple[Model, ...] = ()
    ca_file: str | None = None

    @property
    def chat(self) -> tuple[Model, ...]:
        """The models that chat, the one to start with first."""
        others = (m for m in self.models if m.kind == "chat" and m.name != self.model.name)
        return (self.model, *others)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the client that gets these values beside what is in it. `path` is relative to the home
    folder; lists of mappings are joined by the key `named`."""

    path: str
    format: Format
    values: Mapping[str, Any]
    named: str = "name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How the client is started with none of its files changed. `environment` and `argv` may hold `{NAME}` in
    place of the path of one of `files`, which homelab writes for itself: text by name, with `{key}` where the
    client can take the key no other way."""

    argv: tuple[str, ...]
    environment: Environment = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a client needs for one access.

    `environment` is for a shell; `lines` are commands or code to paste, `steps` what is done by hand.
    `launch` is None, with `why_not`, where it cannot be started without a change to its files."""

    environment: Environment = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    lines: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    launch: Launch | None = None
    why_not: str = ""


# How programs are told of one authority more: those that run on Node and Bun. A client's file may name others
# (`CA_VARIABLES`).
CA_VARIABLES = ("NODE_EXTRA_CA_CERTS",)


def trusting(client: Client, access: Access) -> Setup:
    """What the client needs, with the house's own authority where that signed the gateway's certificate."""
    setup = client.setup(access)
    if access.ca_file is None:
        return setup
    named: tuple[str, ...] = getattr(client, "CA_VARIABLES", CA_VARIABLES)
    told = dict.fromkeys(named, access.ca_file)
    launch = setup.launch
    if launch is not None:
        launch = replace(launch, environment={**launch.environment, **told})
    by_hand = f"Let it trust {access.ca_file}, which signed the gateway's certificate"
    return replace(
        setup,
        environment={**setup.environment, **told} if setup.environment else setup.environment,
        steps=(*setup.steps, f"{by_hand}: " + " ".join(f"{n}={access.ca_file}" for n in named))
        if named
        else setup.steps,
        launch=launch,
    )


@runtime_checkable
class Client(Protocol):
    """A module under `homelab/clients/` has these names."""

    TITLE: str  # what it is called
    BINARY: str | None  # its program's name in PATH, None where there is none to look for
    INSTALL: str  # how it is installed: a command, or a sentence
    SOURCE: str  # where its settings are documented
    TESTED: str  # the version and the date of the run, or `not run` and what it was read from
    TRAPS: tuple[str, ...]  # what goes wrong with it, a sentence each

    def setup(self, access: Access) -> Setup:
        """What it needs. No key stands in it."""
        ...


@cache
def clients() -> Mapping[str, Client]:
    """Client modules by name, which on the command line has `-` for `_`."""
    return Plugins(sys.modules[__name__], Client)  # type: ignore[type-abstract]


def spelled(name: str) -> str:
    """A client's name as people type it."""
    return name.replace("_", "-")


def needs_key_variable(setup: Setup) -> bool:
    """Whether its files rely on the variable that holds the key."""
    return any(KEY_VARIABLE in str(f.values) for f in setup.files)


def exports(setup: Setup, key_file: str) -> Iterator[str]:
    """The environment as lines for a shell; the key is read from its file when they run."""
    for name in setup.unset:
        yield f"unset {name}"
    for name, value in setup.environment.items():
        yield f"export {name}=" + (reading(key_file) if isinstance(value, Secret) else quote(value))


def reading(key_file: str) -> str:
    """What a shell replaces by the key."""
    return f'"$(cat {quote(key_file)})"'


def limits(model: Model, context: str, output: str) -> dict[str, int]:
    """A model's context and longest answer under the names that a client has for them; nothing where they are
    not known."""
    if model.context is None or model.max_output_tokens is None:
        return {}
    return {context: model.context, output: model.max_output_tokens}


def unknown_context(access: Access, what: str) -> Iterator[str]:
    """The warning that the client was not told the context, and so does `what`."""
    if access.model.context is None:
        yield f"It is not known how much context {access.model.name} serves: {what}"
