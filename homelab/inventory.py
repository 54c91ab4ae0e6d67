"""The wanted state: nodes, models, gateway, cloud. YAML text -> frozen values; every mistake at once, each
with its line."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)

from homelab.apps import apps
from homelab.apps import spelled as app_name
from homelab.bounded_yaml import Loader
from homelab.engines import ArgValue, Kind, engines
from homelab.errors import InventoryError
from homelab.fallbacks import circle, in_place_of
from homelab.models.source import Source, parse_source

Path = tuple[str | int, ...]
Runtime = Literal["auto", "docker", "native"]
# Requests at once, where nobody says: of a model here, and of whatever `homelab fit` is asked.
DEFAULT_CONCURRENCY = 2
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

ClusterName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
# As clients write it: with a maker in front, or `claude-*` for every name that begins so.
Alias = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*(/[A-Za-z0-9][A-Za-z0-9._:-]*)?\*?$", max_length=100
    ),
]
# What ends up in a command line, a host name or an image reference: no blanks, quotes, `$` or control
# characters.
Plain = Annotated[str, StringConstraints(pattern=r"^[^\s$'\"`\\\x00-\x1f\x7f]+$")]


def _address(value: str) -> str:
    """An address of one machine that others can reach, or a name."""
    write = "write the one of your LAN or VPN, as 192.168.1.10"
    if "%" in value:
        raise ValueError(f"`{value}` names a zone, which means something on one machine only: {write}")
    try:
        ip = ipaddress.ip_address(value)
    except ValueError:
        if not re.fullmatch(r"\w[\w-]*(\.\w[\w-]*)*\.?", value, re.ASCII) or re.search(r"\.\d+\.?$", value):
            raise ValueError(f"{shown(value)} is neither an address nor a name: {write}") from None
        return value
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_unspecified:
        raise ValueError(f"`{value}` stands for all interfaces, and services listen on one: {write}")
    if ip.is_link_local:
        raise ValueError(f"`{value}` is of this link only, and may be another one tomorrow: {write}")
    if ip.is_multicast or str(ip) == "255.255.255.255":
        raise ValueError(f"`{value}` is nobody's own: {write}")
    return value


Address = Annotated[Plain, AfterValidator(_address)]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]


def _size(value: Any) -> Any:
    """Without numbers that are none, or that Python reads no further than to an error."""
    if isinstance(value, str) and not re.match(r"\s*\d{1,18}(\D|$)", value):
        raise ValueError(f"a size is a number with a unit, as `1.5 GiB`, not {shown(value)}")
    return value


Count = Annotated[int, Field(ge=1, le=1024, strict=True)]
Size = Annotated[ByteSize, BeforeValidator(_size), Field(ge=0, le=2**50)]


def _tokens(value: Any) -> Any:
    """`32k` is 32768, as vLLM reads it."""
    if isinstance(value, str) and (m := re.fullmatch(r"(\d{1,12})\s*([kKmM])?", value.strip())):
        return int(m[1]) * {"": 1, "k": 1024, "m": 1024**2}[(m[2] or "").lower()]
    return value


Tokens = Annotated[int, BeforeValidator(_tokens), Field(ge=1, le=100_000_000, strict=True)]


def _speculative(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    if value is False:
        return "off"
    if value in ("auto", "off") or (type(value) is int and 1 <= value <= MOST_DRAFTS):
        return value
    raise ValueError(f"write `auto`, `off`, or 1 to {MOST_DRAFTS} tokens at a time, not {shown(value)}")


MOST_DRAFTS = 16
Speculative = Annotated[Literal["auto", "off"] | int, BeforeValidator(_speculative)]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Node(Strict):
    """`host` is where SSH goes, `address` where other machines reach the node's services. What is not written
    of `user`, `port` and `identity` is what ssh would take."""

    host: Plain
    user: Plain | None = None
    port: Port | None = None
    identity: str | None = None
    address: Address | None = None
    reserve: Size | None = None
    runtime: Runtime = "auto"
    images: Mapping[str, Plain] = Field(default_factory=dict)
    python: Plain | None = None
    away: bool = False

    @property
    def is_local(self) -> bool:
        """This machine itself, without SSH. A forwarded port of a virtual machine (`localhost`, port 2222)
        is reached by SSH."""
        return self.host in LOCAL_HOSTS and self.port in (None, 22)


class Context(Strict):
    """Tokens of one request. `min == max` where one number was written."""

    min: Tokens
    max: Tokens

    @model_validator(mode="after")
    def _ordered(self) -> Context:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


def _context(value: Any) -> Any:
    value = _tokens(value)
    return {"min": value, "max": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Variant(Strict):
    """One way to run a model."""

    engine: str
    source: str
    args: Mapping[str, ArgValue] = Field(default_factory=dict)

    @property
    def parsed(self) -> Source:
        return parse_source(self.source)

    @property
    def drafter(self) -> Source | None:
        """The model that `args` name to draft for this one, where that is a source on the hub or a whole
        path on the node."""
        named = engines()[self.engine].drafter(self.args)
        try:
            source = parse_source(named) if named else None
        except ValueError:  # `ngram`, or a file that only the engine's image has
            return None
        ours = source is not None and (source.where == "hub" or source.text.startswith("/"))
        return source if ours and named != self.source else None

    @property
    def reads(self) -> tuple[Source, ...]:
        """All sources that its engine loads."""
        drafter = self.drafter
        return (self.parsed, drafter) if drafter is not None else (self.parsed,)

    @field_validator("engine")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in engines():
            raise ValueError(
                f"no engine `{value}`{did_you_mean(value, engines())}; there are "
                f"{', '.join(sorted(engines()))}"
            )
        return value

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        parse_source(value)
        return value

    @field_validator("args")
    @classmethod
    def _args(cls, value: Mapping[str, ArgValue], info: ValidationInfo) -> Mapping[str, ArgValue]:
        """The arguments as their engine calls them, whichever way they are written."""
        for name in value:
            if not re.fullmatch(r"-{0,2}[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"`{name}` is not the name of an engine argument")
        known = info.data.get("engine")
        return engines()[known].canonical(value) if known is not None else value


class Model(Strict):
    """A model asked for: its variants in order of preference, and how much of it."""

    variants: tuple[Variant, ...]
    kind: Kind = "chat"
    context: Annotated[Context, BeforeValidator(_context)] | None = None
    concurrency: Count = DEFAULT_CONCURRENCY
    speculative: Speculative = "off"
    long_prompt: bool = True
    private: bool = False
    replicas: Count = 1
    priority: Annotated[int, Field(ge=-1000, le=1000, strict=True)] = 0
    node: str | None = None
    gpu: int | str | None = None
    port: Port | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_variant(cls, data: Any) -> Any:
        """`engine`, `source` and `args` may stand on the model itself."""
        if not isinstance(data, dict):
            return data
        own = {k: data[k] for k in ("engine", "source", "args") if k in data}
        if "variants" in data:
            if data["variants"] in ([], None):
                raise ValueError("`variants` is empty")
            if own:
                raise ValueError(f"`{next(iter(own))}` beside `variants`: write it into the variants")
            return data
        missing = [k for k in ("engine", "source") if k not in data]
        if missing:
            raise ValueError(
                f"`{'` and `'.join(missing)}` missing: a model needs `engine` and `source`, or `variants`"
            )
        return {**{k: v for k, v in data.items() if k not in own}, "variants": [own]}

    @model_validator(mode="after")
    def _pinned(self) -> Model:
        if self.gpu is not None and self.node is None:
            raise ValueError("`gpu` needs `node`: say on which machine")
        return self


class Gateway(Strict):
    node: str
    port: Port = 4000
    image: Plain | None = None
    version: Annotated[str, StringConstraints(pattern=r"^v?\d[0-9A-Za-z.+-]*$")] | None = None


class Certificate(Strict):
    """Two PEM files of the controller; a path is relative to the inventory's folder."""

    certificate: str
    key: str


def _network(value: str) -> str:
    """A network as CIDR, or one address."""
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        raise ValueError(f"{shown(value)} is no network: write it as 192.168.1.0/24") from None


def _tls(value: Any, _: object) -> Any:
    if value in ("internal", "acme"):
        return value
    if isinstance(value, Mapping):
        return Certificate.model_validate(value)
    raise ValueError(f"write `internal`, `acme`, or `{{certificate: FILE, key: FILE}}`, not {shown(value)}")


Network = Annotated[str, AfterValidator(_network)]
HOST_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
HostName = Annotated[str, StringConstraints(pattern=rf"^{HOST_LABEL}(\.{HOST_LABEL})*$", max_length=253)]


class Front(Strict):
    """What stands before the gateway, owns its port and stays when the gateway is replaced."""

    tls: Annotated[Certificate | Literal["internal", "acme"] | None, WrapValidator(_tls)] = None
    hostnames: tuple[HostName, ...] = ()
    allow: tuple[Network, ...] = ()
    http: bool = False
    body_limit: Annotated[ByteSize, BeforeValidator(_size), Field(ge=1024, le=2**32)] | None = None

    @property
    def way(self) -> Literal["internal", "acme", "files"] | None:
        """Where its certificate comes from, None for plain HTTP."""
        return "files" if isinstance(self.tls, Certificate) else self.tls

    @model_validator(mode="after")
    def _consistent(self) -> Front:
        if self.tls and self.http:
            raise ValueError("`tls` or `http: true`: one of them")
        if self.hostnames and not self.tls:
            raise ValueError("`hostnames` are names of the certificate: they need `tls`")
        if self.tls == "acme" and not self.hostnames:
            raise ValueError("`tls: acme` needs `hostnames`: the names that the internet knows it by")
        return self


def _front(value: Any, _: object) -> Any:
    """`true` and `false` say only whether there is one."""
    if value is False:
        return False
    return Front.model_validate({} if value is True else value)


class Cloud(Strict):
    """A model outside the house. Prompts go there only if a client asks for it or a fallback that you wrote
    names it."""

    model: Plain
    api_key: Annotated[str, StringConstraints(pattern=r"^env:[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    api_base: Plain | None = None

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        """A provider that LiteLLM does not know is asked in vain; a model of one that it knows may be newer
        than it."""
        from homelab import litellm_names

        provider, slash, _ = value.partition("/")
        if slash and provider not in litellm_names.PROVIDERS:
            meant = did_you_mean(provider, litellm_names.PROVIDERS)
            raise ValueError(f"LiteLLM {litellm_names.VERSION} knows no provider `{provider}`{meant}")
        if not slash and value not in litellm_names.MODELS:
            meant = did_you_mean(value, litellm_names.MODELS)
            raise ValueError(
                f"LiteLLM {litellm_names.VERSION} knows no model `{value}`{meant}; with its provider in "
                "front (`anthropic/…`) it may be one that LiteLLM has not heard of"
            )
        return value


class App(Strict):
    """A page for people on the house's models. `models` and `private` are its key's: what it may ask for."""

    node: str
    app: str = "open-webui"
    port: Port | None = None
    url: Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.\[\]:-]+$")] | None = None
    models: tuple[str, ...] = ()
    private: bool = False

    @property
    def module(self) -> str:
        """The name of its file in `homelab/apps/`."""
        return self.app.replace("-", "_")

    @property
    def at(self) -> int:
        """Its port."""
        return self.port or apps()[self.module].PORT

    @field_validator("app")
    @classmethod
    def _known(cls, value: str) -> str:
        known = [app_name(name) for name in apps()]
        if value not in known:
            raise ValueError(f"no app `{value}`{did_you_mean(value, known)}; there are {', '.join(known)}")
        return value


class Hub(Strict):
    """Where weights come from, if not from huggingface.co; the token is for gated repositories."""

    endpoint: Plain | None = None
    token: Annotated[str, StringConstraints(pattern=r"^env:[A-Za-z_][A-Za-z0-9_]*$")] | None = None


class Inventory(Strict):
    cluster: ClusterName = "home"
    gateway: Gateway
    front: Annotated[Front | Literal[False] | None, WrapValidator(_front)] = None
    images: Mapping[str, Plain] = Field(default_factory=dict)
    hub: Hub = Field(default_factory=Hub)
    secrets_file: Plain | None = None
    nodes: Mapping[Name, Node]
    models: Mapping[Name, Model] = Field(default_factory=dict)
    cloud: Mapping[Name, Cloud] = Field(default_factory=dict)
    fallbacks: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    aliases: Mapping[Alias, str] = Field(default_factory=dict)
    tiers: Mapping[Name, str] = Field(default_factory=dict)
    apps: Mapping[ClusterName, App] = Field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether all of it runs on the controller's own machine: then everything binds to 127.0.0.1."""
        return all(n.is_local for n in self.nodes.values())

    def variables(self) -> dict[str, str]:
        """Environment variables that the inventory names, with the path of the entry that does."""
        named = [(f"cloud.{n}.api_key", c.api_key) for n, c in self.cloud.items()] + [
            ("hub.token", self.hub.token)
        ]
        return {value.removeprefix("env:"): where for where, value in named if value}


def load(text: str, path: str) -> Inventory:
    """The inventory in `text`; `path` is its name in messages.

    Raises InventoryError with all mistakes, each as `path:LINE: key: what`."""
    try:
        loader = Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise _refused(path, [f"{path}:{line}: {e.problem or 'not YAML'}"]) from e
    except yaml.YAMLError as e:
        raise _refused(path, [f"{path}:1: not YAML: {str(e).splitlines()[0]}"]) from e
    if not isinstance(root, yaml.MappingNode):
        raise _refused(path, [f"{path}:1: an inventory is a mapping with `nodes`, `models` and `gateway`"])
    lines: dict[Path, int] = {(): 1}
    mistakes: list[tuple[int, str]] = []
    for where, line, duplicate in _walk(root, ()):
        if duplicate:
            mistakes.append((line, f"{_dotted(where)}: written twice"))
        lines.setdefault(where, line)
    try:
        data = cast("dict[str, Any]", loader.construct_document(root))
        inventory = Inventory.model_validate(data)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        mistakes.append((mark.line + 1 if mark else 1, str(getattr(e, "problem", e))))
    except ValidationError as e:
        mistakes += [_mistake(error["loc"], error, lines) for error in e.errors()]
        sound, gone = _sound_part(data, [error["loc"] for error in e.errors()])
        mistakes += (
            [
                (_line(where, lines), f"{_dotted(where)}: {what}")
                for where, what in _inconsistencies(sound, gone)
            ]
            if sound
            else []
        )
    else:
        mistakes += [
            (_line(where, lines), f"{_dotted(where)}: {what}") for where, what in _inconsistencies(inventory)
        ]
    if mistakes:
        raise _refused(path, [f"{path}:{line}: {what}" for line, what in sorted(set(mistakes))])
    return inventory


def line_of(text: str, *where: str | int) -> int:
    """The line of a sound inventory on which a key stands, or the nearest one above it that is there."""
    root = Loader(text).get_single_node()
    lines: dict[Path, int] = {(): 1}
    for path, line, _ in _walk(root, ()) if root is not None else ():
        lines.setdefault(path, line)
    return _line(where, lines)


def did_you_mean(word: object, known: Any) -> str:
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f", did you mean `{close[0]}`?" if close else ""


def shown(value: object) -> str:
    """A value in a message: no more of it than a line holds."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


def is_ip(text: str) -> bool:
    """Whether it is an address, and no name that must be looked up."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def slug(model: str) -> str:
    """The name of a model's service: what Compose and directories accept."""
    return re.sub(r"[^a-z0-9-]+", "-", model.lower()).strip("-")


def _refused(path: str, mistakes: list[str]) -> InventoryError:
    count = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "A mistake"
    return InventoryError(
        f"{count} in `{path}`",
        mistakes=mistakes,
        hint="inventory.example.yml shows every key: docs/inventory.md explains them",
    )


def _walk(node: yaml.Node, where: Path) -> Iterator[tuple[Path, int, bool]]:
    """Every key and item with its line, and whether the key stood there before (YAML itself takes the last
    one silently)."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            yield (*where, name), key.start_mark.line + 1, name in seen
            seen.add(name)
            yield from _walk(value, (*where, name))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*where, i), value.start_mark.line + 1, False
            yield from _walk(value, (*where, i))


def _line(where: Path, lines: Mapping[Path, int]) -> int:
    while where and where not in lines:
        where = where[:-1]
    return lines[where]


def _dotted(where: Path) -> str:
    return (
        "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in where).removeprefix(".") or "inventory"
    )


def _mistake(loc: Path, error: Any, lines: Mapping[Path, int]) -> tuple[int, str]:
    where = tuple(p for p in loc if p != "[key]")
    # An argument on the model itself was moved into `variants[0]`: point at what was written.
    if len(where) > 3 and where[0] == "models" and where[2:4] == ("variants", 0) and where[:3] not in lines:
        where = (*where[:2], *where[4:])
    known = _fields_at(where[:-1])
    kind, what = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        what = f"unknown key{did_you_mean(where[-1], known)}" + (
            f" (known: {', '.join(known)})"
            if not difflib.get_close_matches(str(where[-1]), known, 1, 0.5)
            else ""
        )
    elif kind == "missing":
        what = "missing"
    elif kind == "string_pattern_mismatch":
        what = f"{shown(error['input'])} has characters that cannot stand here"
        if loc[-1] == "[key]" or where in (("cluster",),):
            what += (
                ": letters, digits, `.`, `_` and `-`"
                if where != ("cluster",)
                else ": lower-case letters, digits and `-`"
            )
        elif "env:" in error["ctx"]["pattern"]:
            what = (
                "write `env:NAME`, the environment variable that holds it: no secret belongs into this file"
            )
    elif kind == "literal_error":
        expected = error["ctx"]["expected"]
        close = did_you_mean(error["input"], re.findall("'([^']+)", expected))
        what = f"{shown(error['input'])} is not one of {expected}{close}"
    elif kind not in ("value_error",):
        what = f"{what[0].lower()}{what[1:]}, not {shown(error['input'])}"
    return _line(where, lines), f"{_dotted(where)}: {what}"


def _fields_at(where: Path) -> list[str]:
    """The keys known at a path."""
    match where:
        case ():
            cls: type[Strict] = Inventory
        case ("nodes", _):
            cls = Node
        case ("models", _):
            return ["engine", "source", "args", *Model.model_fields]
        case ("models", _, "context"):
            cls = Context
        case ("models", _, "variants", _):
            cls = Variant
        case ("cloud", _):
            cls = Cloud
        case ("apps", _):
            cls = App
        case ("gateway",):
            cls = Gateway
        case ("front",):
            cls = Front
        case ("front", "tls"):
            cls = Certificate
        case ("hub",):
            cls = Hub
        case _:
            return []
    return list(cls.model_fields)


def _sound_part(data: dict[str, Any], wrong: list[Path]) -> tuple[Inventory | None, frozenset[str]]:
    """The inventory without the entries that are wrong by themselves, and their names: so that what is
    wrong between the others is said in the same breath."""
    rest = {k: dict(v) if isinstance(v, dict) else v for k, v in data.items()}
    gone = {""}
    for loc in wrong:
        section = rest.get(str(loc[0]))
        if (
            len(loc) > 1
            and loc[0] in ("nodes", "models", "cloud", "fallbacks", "images", "apps")
            and isinstance(section, dict)
        ):
            section.pop(loc[1], None)
            gone.add(str(loc[1]))
        else:
            rest.pop(str(loc[0]), None)
    rest.setdefault("gateway", {"node": ""})
    try:
        return Inventory.model_validate({"nodes": {}, **rest}), frozenset(gone)
    except ValidationError:
        return None, frozenset()


def _routes(inventory: Inventory, gone: frozenset[str]) -> Iterator[tuple[Path, str]]:
    """What is wrong with the names that models are asked by, and with who answers for whom."""
    names = [*inventory.models, *inventory.cloud]
    for key in ("aliases", "tiers"):
        for alias, model in getattr(inventory, key).items():
            if alias in names:
                yield (key, alias), f"`{alias}` is a model already, which nobody would reach any more"
            elif key == "tiers" and alias in inventory.aliases:
                yield (key, alias), "is an alias too: names are unique"
            if model not in names and model not in gone:
                yield (key, alias), f"no model `{model}`{did_you_mean(model, names)}"
    seen: set[str] = set()
    for name in inventory.fallbacks:
        chain = circle(inventory.fallbacks, name)
        if chain and not seen & set(chain):
            seen |= set(chain)
            yield ("fallbacks", name), f"goes in a circle: {' -> '.join(chain)}"
    for name, model in inventory.models.items():
        if model.private:
            for chain in in_place_of(inventory.fallbacks, name):
                if chain[-1] in inventory.cloud:
                    yield (
                        ("fallbacks", name),
                        f"`{name}` is private, and this leads out of the house: {' -> '.join(chain)}",
                    )


def _apps(
    inventory: Inventory,
    gone: frozenset[str],
    services: dict[str, str],
    ports: dict[tuple[str, int], str],
) -> Iterator[tuple[Path, str]]:
    """What is wrong with apps beside the models that have these service names and ports."""
    further = {**inventory.aliases, **inventory.tiers}
    names = [*inventory.models, *inventory.cloud, *(a for a in further if not a.endswith("*"))]
    for name, app in inventory.apps.items():
        where: Path = ("apps", name)
        if app.node not in inventory.nodes and app.node not in gone:
            yield (*where, "node"), f"no node `{app.node}`{did_you_mean(app.node, inventory.nodes)}"
        if name in services:
            other = services[name]
            yield where, f"would have the same service name as {other}: give it another name"
        if (taken := ports.setdefault((app.node, app.at), f"the app `{name}`")) != f"the app `{name}`":
            yield (*where, "port"), f"port {app.at} on {app.node} is {taken}'s: give another `port`"
        for model in app.models:
            if model not in names and model not in gone:
                yield (*where, "models"), f"no model `{model}`{did_you_mean(model, names)}"
            elif app.private and further.get(model, model) in inventory.cloud:
                yield (*where, "models"), f"`{model}` is outside the house, and the app is private"


def _inconsistencies(inventory: Inventory, gone: frozenset[str] = frozenset()) -> Iterator[tuple[Path, str]]:
    """What is wrong between entries that are right by themselves. Names in `gone` are known, though their
    entries are not here."""
    nodes, models = inventory.nodes, inventory.models
    names = [*models, *inventory.cloud]
    if not nodes and not gone:
        yield ("nodes",), "no node in it"
    elif inventory.gateway.node not in nodes and inventory.gateway.node not in gone:
        yield (
            ("gateway", "node"),
            f"no node `{inventory.gateway.node}`{did_you_mean(inventory.gateway.node, nodes)}",
        )
    if inventory.cloud and "cloud" in nodes:
        yield (
            ("nodes", "cloud"),
            "is what the models under `cloud` are counted to: give the node another name",
        )
    if inventory.front and inventory.front.tls == "acme" and inventory.gateway.port != 443:
        yield ("front", "tls"), "`acme` proves the name on port 443: `gateway: {port: 443}`"
    services: dict[str, str] = {"gateway": "the gateway", "front": "the front"}
    ports: dict[tuple[str, int], str] = {(inventory.gateway.node, inventory.gateway.port): "the gateway"}
    for name, model in models.items():
        where: Path = ("models", name)
        if model.node is not None and model.node not in nodes and model.node not in gone:
            yield (*where, "node"), f"no node `{model.node}`{did_you_mean(model.node, nodes)}"
        if (other := services.setdefault(slug(name), name)) != name:
            yield where, f"would have the same service name as {other}"
        if name in inventory.cloud:
            yield ("cloud", name), "is a model of the house too: names are unique"
        if model.port is not None:
            for node in [model.node] if model.node else nodes:
                if (taken := ports.setdefault((node, model.port), f"`{name}`")) != f"`{name}`":
                    yield (*where, "port"), f"port {model.port} is {taken}'s"
                    break
        for i, variant in enumerate(model.variants):
            if model.kind not in engines()[variant.engine].KINDS:
                yield (
                    (*where, "variants", i, "engine"),
                    f"{variant.engine} does not serve models of kind {model.kind}",
                )
            if (fmt := variant.parsed.format) and fmt not in engines()[variant.engine].FORMATS:
                yield (*where, "variants", i, "source"), f"{variant.engine} does not read {fmt} files"
    yield from _apps(inventory, gone, services, ports)
    images = (*engines(), "litellm", "caddy", *(a.OFFER.name for a in apps().values()))
    for key in [*inventory.images, *(k for n in nodes.values() for k in n.images)]:
        if key not in images:
            yield ("images", key), f"no such image{did_you_mean(key, images)}"
    for name, targets in inventory.fallbacks.items():
        for target in (name, *targets):
            if target not in names and target not in gone:
                yield ("fallbacks", name), f"no model `{target}`{did_you_mean(target, names)}"
    yield from _routes(inventory, gone)
    local = [n for n, node in nodes.items() if node.is_local]
    if local and not inventory.is_local and not gone:
        for name in local:
            if nodes[name].address is None:
                yield (
                    ("nodes", name),
                    "is this machine, and other nodes are not: give the `address` where they reach it",
                )
    if len(local) > 1:
        yield ("nodes", local[1]), f"is this machine, as `{local[0]}` is"
