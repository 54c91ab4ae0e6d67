"""Writes the generated parts of the documentation: inventory keys, JSON keys, the help of every
verb, the plan in the README.

    python docs/generate.py            rewrite them
    python docs/generate.py --check    change nothing; exit 1 if one is stale

A generated part stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`. What a key means is
written here, in MEANINGS; its type, its default and that it exists at all come from the code. A key without a
sentence, or a sentence without a key, is an error."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import typer.main
from pydantic import BaseModel, BeforeValidator, ByteSize
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from homelab import facts, inventory
from homelab.cli import app
from homelab.clients import Access, Model, clients, exports, needs_key_variable, spelled
from homelab.engines import engines
from homelab.merging import written

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
WIDTH = "100"

# What each key means: {class: {key: sentence}}.
MEANINGS: dict[type[BaseModel], dict[str, str]] = {
    inventory.Inventory: {
        "cluster": "The name of the household. It is on every service that homelab starts; two clusters can "
        "share a machine.",
        "gateway": "Where the one address for all clients is.",
        "front": "What stands before the gateway and owns its port: [gateway.md](gateway.md#the-front). "
        "`{}` has all its defaults; without this line there is none.",
        "images": "Image tags in place of the pinned ones, by the name of an engine or app, `litellm` or "
        "`caddy`: `{llamacpp: …, vllm: …, litellm: …}`.",
        "hub": "Where weights come from, if not from huggingface.co.",
        "secrets_file": "A file of lines `NAME=value` beside the inventory, which only you can read, for "
        "what `env:NAME` names. The environment goes before it.",
        "nodes": "The machines, by a name that you choose.",
        "models": "The models, by the name that clients will use.",
        "cloud": "Models outside the house, by the name that clients will use.",
        "fallbacks": "`{model: [others]}`: who answers when `model` cannot, or when a prompt is too long for "
        "it and not for the other. Names of `models` and `cloud`; never in a circle.",
        "aliases": "`{name: model}`: further names by which clients may ask for a model, as `coder`, "
        "`openai/gpt-4o`, or `claude-*` for all that begin so.",
        "tiers": "`{quality: model, volume: model}`: the same, for what a task is worth.",
        "apps": "Pages for people on these models, by a name that you choose: see [chat.md](chat.md).",
    },
    inventory.Node: {
        "host": "Where SSH goes: an address, a name, or a name of your `~/.ssh/config`. `localhost` is this "
        "machine, without SSH.",
        "user": "Who logs in there. Default: what SSH would take.",
        "port": "The port of its sshd. Default: what SSH would take.",
        "identity": "The private key for it. Default: what SSH would take: `~/.ssh/config`, your ssh-agent, "
        "the usual files.",
        "address": "Where other machines reach its services: one of its own addresses, or a name that means "
        "one there. "
        "Default: see [below](#addresses).",
        "reserve": "Memory left alone on each GPU, for the desktop to grow by. Default: 0.5 GiB on a GPU "
        "with a display, 1 GiB where GPU and "
        "system share memory, else 0. On a node without a GPU: of its RAM, default 1 GiB.",
        "runtime": "How services run. `auto`: Docker where it is, else plain processes.",
        "images": "As `images` above, for this node only.",
        "python": "The node's Python for the agent, 3.8 or newer. Default: the `python3` that is found.",
        "away": "`true` for a machine that is often asleep or out: its absence is no error.",
    },
    inventory.Model: {
        "variants": "Ways to run it, in order of preference: the first that fits somewhere is taken.",
        "kind": "What it does.",
        "context": "Tokens of one request, prompt and answer together. "
        "With `{min, max}`: the largest that fits. Default: 8192, or the model's own limit if that is less.",
        "concurrency": "How many requests at once, each with the whole `context`.",
        "speculative": "How many tokens the model's own prediction layers (MTP) draft at a time, 1 to 16. "
        "`auto`: as many as are known to be good, none where it has no such layers or something forbids it.",
        "private": "Whether its prompts may never leave the house: a fallback that would lead out of it is "
        "refused.",
        "long_prompt": "Whether a deploy asks the engine for prompts near the planned context before it "
        "calls it healthy, as many at once as `concurrency` says: memory that is missing is missing then. "
        "Only on GPUs.",
        "replicas": "How many instances. The gateway balances them.",
        "priority": "Who gets a place when not all can have one: the higher number.",
        "node": "Only on this node.",
        "gpu": "Only on this GPU of `node`: its number or its UUID, as `homelab discover` shows it.",
        "port": "The port of its engine. Default: the engine's own, or the next free one.",
    },
    inventory.Variant: {
        "engine": "An engine's name: see [engines.md](engines.md).",
        "source": "Where the weights are: see [Sources](#sources).",
        "args": "Arguments for the engine, as its own command line spells them, without the dashes. "
        "They win over homelab's, and what they change is counted.",
    },
    inventory.Context: {
        "min": "The least that is any use. The model is placed with this much.",
        "max": "The most that is wanted. It grows up to this into what is left.",
    },
    inventory.Gateway: {
        "node": "The node that runs LiteLLM. It needs no GPU.",
        "port": "The port of the one address.",
        "image": "Another image of LiteLLM.",
        "version": "Another tag of the pinned image.",
    },
    inventory.Front: {
        "tls": "`internal`: a certificate of its own authority, which `homelab connect` gives to clients. "
        "`{certificate: FILE, key: FILE}`: yours. `acme`: from Let's Encrypt. Default: plain HTTP.",
        "hostnames": "Names on the certificate, beside the address. Clients are told the first.",
        "allow": "Networks that clients may come from, as `192.168.1.0/24`; the gateway's own machine always "
        "may. Default: all.",
        "http": "`true`: plain HTTP is wanted even on an address that is not of a private network.",
        "body_limit": "The largest request. Default: 32 MiB, which Anthropic's own API takes.",
    },
    inventory.Certificate: {
        "certificate": "The PEM file with the certificate and those that sign it, on this machine.",
        "key": "Its private key.",
    },
    inventory.Cloud: {
        "model": "LiteLLM's name of it: `anthropic/…`, `openai/…`.",
        "api_key": "`env:NAME`: the environment variable that holds the key when you deploy. A key itself "
        "is refused here.",
        "api_base": "Another address of that provider.",
    },
    inventory.App: {
        "node": "The node that runs it. It needs no GPU.",
        "app": "Which one it is: `open-webui`.",
        "port": "Its port on that node. Default: the app's own, 3000 for Open WebUI.",
        "url": "Another address that people type for it, as `http://chat.home:3000` or that of a proxy of "
        "yours. At an address that it does not know it gives no answers.",
        "models": "The models that it may use, by any of their names. Default: all that chat.",
        "private": "Whether it may use models of the house only.",
    },
    inventory.Hub: {
        "endpoint": "A mirror.",
        "token": "`env:NAME`: the environment variable that holds the token. For gated repositories.",
    },
    facts.NodeReport: {
        "reachable": "Whether it answered.",
        "error": "Why not.",
        "facts": "What it has.",
    },
    facts.Failure: {
        "message": "What happened.",
        "cause": "Why, in the other tool's own words.",
        "hint": "What to type.",
    },
    facts.Facts: {
        "schema_version": "Of the agent's document.",
        "hostname": "As the machine calls itself.",
        "machine_id": "`/etc/machine-id`.",
        "os": "Its name and version.",
        "system": "`linux` or `darwin`.",
        "kernel": "Its version.",
        "arch": "`x86_64`, `aarch64`, `arm64`.",
        "wsl": "Whether it is Linux inside Windows.",
        "cpu": "The processor.",
        "memory_total_bytes": "RAM.",
        "memory_available_bytes": "RAM that can be had without swapping.",
        "home": "The home folder of the user that homelab logs in as.",
        "user": "That user.",
        "python": "The version that the agent ran with.",
        "python_path": "That Python.",
        "hub_cache": "Where repositories of the hub lie.",
        "server_address": "The node's own address that SSH arrived at; null on this machine.",
        "interfaces": "Network interfaces.",
        "resolved": "A name that the inventory gives as `address`, with its addresses as the node sees them.",
        "disks": "The file systems that matter.",
        "gpus": "GPUs, in the driver's order.",
        "docker": "Docker; null where there is none.",
        "programs": "Engines' own executables in PATH, by name; null where there is none.",
        "services": "What carries homelab's labels, running or not.",
        "unlisted": "By runtime, why services may be missing from the list.",
        "ports": "TCP ports that somebody listens on.",
        "weights": "The models of the inventory as far as this node knows them. Without their headers here: "
        "`--save` has those.",
        "secrets_id": "Tells the keys of the cluster that lie there from others, without revealing them; "
        "null where there are none.",
        "leftovers": "What earlier deploys left and no service names.",
        "problems": "What does not work. See [agent.md](agent.md#when-something-is-broken).",
    },
    facts.CPU: {"model": "Its name.", "cores": "Cores.", "threads": "Threads."},
    facts.Interface: {
        "name": "As the system calls it.",
        "mac": "Its hardware address.",
        "addresses": "Its IP addresses.",
        "default_route": "Whether the machine reaches the world through it; not known on macOS.",
    },
    facts.Disk: {
        "purpose": "What homelab needs it for: `models`, `docker`, `homelab`.",
        "path": "The folder that was looked at.",
        "total_bytes": "Its size.",
        "free_bytes": "Free for this user.",
    },
    facts.GPU: {
        "vendor": "`nvidia`.",
        "index": "Its number in the driver's order.",
        "uuid": "Its name for life.",
        "pci_id": "Where it is plugged in.",
        "name": "As the driver calls it.",
        "memory_kind": "`unified`: shared with the system.",
        "memory_total_bytes": "What CUDA sees: the card's memory less what the driver keeps.",
        "memory_free_bytes": "Free now.",
        "memory_used_bytes": "In use now.",
        "memory_reserved_bytes": "What the driver keeps.",
        "driver": "Its version.",
        "cuda": "The newest CUDA that the driver can do.",
        "compute_capability": "As `8.9`.",
        "power_watts": "Drawn now.",
        "power_limit_watts": "The limit.",
        "temperature_celsius": "Now.",
        "utilization_percent": "Now.",
        "display": "Whether a screen hangs on it.",
        "container_obstacle": "Why Docker cannot give it to a container; null where it can.",
        "mig": "Whether it is cut into MIG slices.",
        "mig_devices": "Those slices.",
        "processes": "Who holds its memory.",
    },
    facts.MigDevice: {
        "uuid": "Its name.",
        "name": "Its profile.",
        "memory_total_bytes": "Its size.",
        "memory_free_bytes": "Free now.",
    },
    facts.Process: {
        "pid": "Its number.",
        "name": "Its name.",
        "user": "Whose it is.",
        "memory_bytes": "What it holds; null where the driver does not say.",
        "service": "The service of ours that it belongs to.",
    },
    facts.Docker: {
        "version": "Of the engine.",
        "api_version": "Of its API.",
        "compose_version": "Of the Compose plugin.",
        "reachable": "Whether this user may talk to it.",
        "socket": "The socket of its engine: DOCKER_HOST, the context of the docker command, or the usual "
        "place.",
        "runtimes": "The runtimes that it lists.",
        "data_root": "Where its images lie.",
        "error": "Why it cannot be used, in Docker's words.",
    },
    facts.DeployedService: {
        "cluster": "Whose it is.",
        "name": "Its name on the node.",
        "role": "What it is for: `engine`, `gateway`, `app`.",
        "serves": "The models that it answers for.",
        "spec": "The hash of what is written for it.",
        "runtime": "How it runs.",
        "state": "How it is.",
        "detail": "More about the state, as the exit code.",
        "labels": "Its labels.",
        "directory": "Its folder, relative to the home.",
        "container": "Docker only.",
        "project": "Its Compose project.",
        "pid": "Without Docker.",
        "listens": "Whether it is what listens on its port; null where it does not run.",
        "socket": "The Docker engine that it is in.",
        "python": "The Python that its supervisor is asked with.",
        "restarts": "How often it was started again.",
        "exit_code": "Of the last end.",
        "gpu_memory_bytes": "GPU memory that it holds.",
        "memory_bytes": "RAM that it holds.",
    },
    facts.ListeningPort: {
        "port": "The port.",
        "address": "On which address.",
        "process": "Whose it is, where that may be seen.",
    },
    facts.Leftover: {
        "kind": "`weights` copied there, `keys` of a gateway, `native` environments and tools.",
        "paths": "Where.",
        "bytes": "How much, where that is quick to know.",
    },
    facts.Weights: {
        "source": "As in the inventory.",
        "path": "Where it lies.",
        "present": "Whether all of it is there.",
        "bytes": "How much is there.",
        "revision": "Which version.",
        "header": "Only in `--save`.",
        "error": "Why it cannot be read.",
    },
    facts.Problem: {"source": "Which part.", "message": "In its own words."},
}

INVENTORY = (
    inventory.Inventory, inventory.Gateway, inventory.Node, inventory.Model, inventory.Context,
    inventory.Variant, inventory.Cloud, inventory.App, inventory.Front, inventory.Certificate,
    inventory.Hub,
)  # fmt: skip
FACTS = (
    facts.NodeReport, facts.Failure, facts.Facts, facts.CPU, facts.Interface, facts.Disk,
    facts.GPU, facts.MigDevice, facts.Process,
    facts.Docker, facts.DeployedService, facts.ListeningPort, facts.Weights, facts.Leftover, facts.Problem,
)  # fmt: skip
# What begins a command that installs something.
INSTALLERS = ("npm", "uv", "pip", "apt")
# Not part of the document that is described.
HIDDEN = {(facts.Weights, "header")}


def main(arguments: list[str]) -> int:
    stale = []
    for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]:
        before = path.read_text()
        after = rewritten(before, path.name)
        if after != before:
            stale.append(path)
            if arguments != ["--check"]:
                path.write_text(after)
    outcome = "stale, run: python docs/generate.py" if arguments == ["--check"] else "rewritten"
    for path in stale:
        sys.stderr.write(f"{path.relative_to(ROOT)}: {outcome}\n")
    return 1 if stale and arguments == ["--check"] else 0


def rewritten(text: str, name: str) -> str:
    """The document with its generated parts made anew."""
    parts = generated()
    wanted = re.findall(r"^<!-- generated: (.+) -->$", text, re.MULTILINE)
    for part in wanted:
        if part not in parts:
            raise SystemExit(f"{name}: nothing generates `{part}`; there are: {', '.join(parts)}")
        pattern = re.compile(
            rf"(<!-- generated: {re.escape(part)} -->\n).*?(<!-- end: {re.escape(part)} -->)", re.DOTALL
        )
        text, count = pattern.subn(lambda m, part=part: m[1] + parts[part] + m[2], text)
        if count != 1:
            raise SystemExit(f"{name}: `{part}` must begin once and end once")
    return text


# The houses of suggest.md, each planned as suggested by tests/test_suggest.py.
HOUSES = {
    "laptop": "RTX 4060 Laptop",
    "desktop": "RTX 4090",
    "two cards": "2x RTX 3090",
    "mac": "M4 Max 36GB",
    "spark": "DGX Spark",
}


@cache
def generated() -> Mapping[str, str]:
    """Every generated part by its name."""
    return {f"inventory {c.__name__}": inventory_table(c) for c in INVENTORY} | {
        "facts": facts_tables(),
        "help": help_texts(),
        "plan of the example": example_plan(),
        "a fit": a_fit(),
        "cards": cards_by_size(),
        "household": household(),
        "speeds": speeds(),
        "efficiencies": efficiencies(),
        "clients": clients_part(),
        **{f"suggest {name}": suggested(gpu) for name, gpu in HOUSES.items()},
        **models(),
    }


def inventory_table(cls: type[BaseModel]) -> str:
    rows = [
        f"| `{key}` | {type_in_words(field.annotation, field.metadata)} | {default_in_words(field)} | "
        f"{meaning} |"
        for key, field, meaning in fields(cls)
    ]
    return "\n".join(["| Key | Value | Default | What it is |", "|---|---|---|---|", *rows]) + "\n"


def facts_tables() -> str:
    out = []
    for cls in FACTS:
        rows = [
            f"| `{key}` | {type_in_words(field.annotation, field.metadata, null=True)} | {meaning} |"
            for key, field, meaning in fields(cls)
            if (cls, key) not in HIDDEN
        ]
        out += [f"#### {cls.__name__}", "", "| Key | Value | What it is |", "|---|---|---|", *rows, ""]
    return "\n".join(out)


def fields(cls: type[BaseModel]) -> Iterable[tuple[str, FieldInfo, str]]:
    """Each key of a model with its field and its meaning: the field's own description where it has one."""
    meanings = MEANINGS[cls]
    if unknown := set(meanings) - set(cls.model_fields):
        raise SystemExit(f"docs/generate.py: {cls.__name__} has no key {', '.join(sorted(unknown))}")
    for key, field in cls.model_fields.items():
        meaning = field.description or meanings.get(key)
        if not meaning:
            raise SystemExit(
                f"docs/generate.py: write a sentence for `{key}` of {cls.__name__} into MEANINGS"
            )
        yield key, field, meaning


def type_in_words(annotation: Any, metadata: Iterable[Any] = (), *, null: bool = False) -> str:
    """What may be written there."""
    if get_origin(annotation) is Annotated:
        return type_in_words(get_args(annotation)[0], [*get_args(annotation)[1:], *metadata], null=null)
    metadata = list(metadata)
    if get_origin(annotation) in (Union, UnionType):
        inner = [a for a in get_args(annotation) if a is not NoneType]
        words = " or ".join(dict.fromkeys(type_in_words(a, metadata) for a in inner))
        return f"{words} or null" if null else words
    validators = {getattr(m.func, "__name__", "") for m in metadata if isinstance(m, BeforeValidator)}
    if "_context" in validators:
        return "tokens, or `{min, max}`"
    if "_tokens" in validators:
        return "tokens: `8192`, `8k`"
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (tuple, list):
        return f"list of {type_in_words(get_args(annotation)[0])}"
    if get_origin(annotation) is not None:
        value = get_args(annotation)[1]
        return f"{{name: {type_in_words(value)}}}" if value is not Any else "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if annotation is ByteSize:
        return "size: `1 GiB`"
    if annotation is int:
        low, high = ([getattr(m, a) for m in flat(metadata) if hasattr(m, a)] for a in ("ge", "le"))
        return f"number, {low[0]} to {high[0]}" if low and high else "number"
    return {bool: "`true`, `false`", str: "text", float: "number"}[annotation]


def flat(metadata: Iterable[Any]) -> Iterable[Any]:
    """Constraints, also those inside a `Field(...)`."""
    for m in metadata:
        if isinstance(m, FieldInfo):
            yield from flat(m.metadata)
        elif isinstance(m, annotated_types.GroupedMetadata):
            yield from m
        else:
            yield m


def default_in_words(field: FieldInfo) -> str:
    if field.is_required():
        return "**must be there**"
    default = field.get_default(call_default_factory=True)
    return (
        ""
        if default is None or default == {} or isinstance(default, BaseModel)
        else f"`{json.dumps(default)}`".replace('"', "")
    )


def help_texts() -> str:
    """`--help` of homelab and of each verb, at a fixed width."""
    out = []
    for verb in ([], *verbs()):
        title = f"## {' '.join(['homelab', *verb])}\n"
        out += [title, "```", said(*verb, "--help"), "```", ""]
    return "\n".join(out)


def example_plan() -> str:
    """The household of inventory.example.yml, planned from the tests' machines,
    with the commands that do it."""
    with contextlib.chdir(ROOT), tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(ROOT))
        from tests.machines import household

        facts_file = Path(folder) / "facts.json"
        facts_file.write_text(household().model_dump_json())
        plan = said("plan", "-i", "inventory.example.yml", "--facts", str(facts_file))
        why = said("why", "qwen3-30b", "-i", "inventory.example.yml", "--facts", str(facts_file))
    make = (
        '.venv/bin/python -c "from tests.machines import household; '
        'print(household().model_dump_json())" > facts.json'
    )
    asked = "-i inventory.example.yml --facts facts.json"
    return f"```\n$ {make}\n$ homelab plan {asked}\n{plan}\n\n$ homelab why qwen3-30b {asked}\n{why}\n```\n"


def a_fit() -> str:
    """A model of the catalog that does not fit as it is asked for."""
    asked = ("fit", "qwen3-30b-a3b", "--gpu", "RTX 4090", "--context", "32k", "--concurrency", "4")
    return f"```\n$ {shlex.join(('homelab', *asked))}\n{said(*asked)}\n```\n"


def household() -> str:
    """Measured peaks beside the prediction."""
    sys.path.insert(0, str(ROOT / "bench" / "fit"))
    import household as measured

    return str(measured.table()) + "\n"


def speeds() -> str:
    """Published speeds beside the prediction."""
    sys.path.insert(0, str(ROOT / "bench" / "fit"))
    import speed as measured

    done, left = measured.results()
    return "\n".join([*measured.summary(done), "", *measured.left_out(left)]) + "\n"


def efficiencies() -> str:
    """What each engine reaches of each kind of card."""
    out = [
        "| engine | kind of card | of bandwidth | µs a layer | of FP16 | of a mixture | spread | fitted to |"
    ]
    out.append("|---|---|---:|---:|---:|---:|---:|---|")
    for engine in engines().values():
        for kind, e in engine.EFFICIENCIES.items():
            more = f" + {e.parallel_us:g} for each further GPU" if e.parallel_us else ""
            drafts = "" if e.drafts == 1 else f"; drafts gain {e.drafts:.0%}"
            prefill = f"{e.prefill:g}" if e.prefill else "not said"
            mixture = f"{e.prefill * e.experts:.2g}" if e.prefill else "-"
            spread = f"±{e.spread:.0%}" + (f", prompts ±{e.prefill_spread:.0%}" if e.prefill else "")
            cells = [engine.NAME, kind, f"{e.decode:g}{drafts}", f"{e.layer_us:g}{more}", prefill, mixture]
            out.append(f"| {' | '.join([*cells, spread, ', '.join(e.sources)])} |")
    return "\n".join(out) + "\n"


def models() -> Mapping[str, str]:
    """The tables of models.md."""
    sys.path.insert(0, str(DOCS))
    import model_tables as tables

    return tables.parts()


def clients_part() -> str:
    """Each client with what it is told, for a house with two models."""
    big, small = Model(name="coder", context=65536), Model(name="fast", context=65536)
    access = Access(
        url="http://gateway:4000",
        key_file="/home/me/.local/state/homelab/home/gateway.key",
        model=big,
        small=small,
        models=(big, small),
    )
    out = []
    for name, client in sorted(clients().items(), key=lambda c: c[1].TITLE.lower()):
        setup, typed = client.setup(access), spelled(name)
        ways = [f"`homelab connect {typed}`"]
        ways += [f"`homelab connect {typed} --write`"] if setup.files else []
        ways += [f"`homelab launch {typed}`"] if setup.launch else []
        out += [f"### {client.TITLE}", f"{', '.join(ways)}.", ""]
        if not setup.launch:
            out += [f"* Not launched: {setup.why_not}."]
        installed = f"`{client.INSTALL}`" if client.INSTALL.split()[0] in INSTALLERS else client.INSTALL
        out += [f"* Installed by: {installed}", f"* Tested: {client.TESTED}", f"* Source: {client.SOURCE}"]
        out += [f"* {trap}" for trap in (*client.TRAPS, *setup.warnings)]
        for file in setup.files:
            body = written(file.values, file.format).rstrip()
            out += ["", f"Into `~/{file.path}`:", f"```{file.format}", body, "```"]
        lines = [] if needs_key_variable(setup) else list(exports(setup, access.key_file))
        if lines:
            out += [
                "",
                "In a shell" + (", in place of that:" if setup.files else ":"),
                "```sh",
                *lines,
                "```",
            ]
        if setup.lines:
            out += ["", "Then:" if setup.files or lines else "Type:", "```", *setup.lines, "```"]
        out += ["", *(f"{n}. {step}" for n, step in enumerate(setup.steps, 1))] if setup.steps else []
        out += [""]
    return "\n".join(out)


def suggested(gpu: str) -> str:
    """What is suggested for a machine."""
    asked = ("suggest", "--gpu", gpu)
    return f"```\n$ {shlex.join(('homelab', *asked))}\n{said(*asked)}\n```\n"


def cards_by_size() -> str:
    """What is promised for cards of usual sizes, planned."""
    sys.path.insert(0, str(ROOT))
    from tests import cards

    return cards.table() + "\n"


def said(*arguments: str) -> str:
    """What homelab prints, without colours, at a fixed width."""
    environment = {"COLUMNS": WIDTH, "NO_COLOR": "1", "TERM": "dumb", "HOMELAB_INVENTORY": None}
    done = CliRunner().invoke(app, arguments, prog_name="homelab", env=environment, catch_exceptions=False)
    return "\n".join(line.rstrip() for line in done.output.strip().splitlines())


def verbs() -> list[list[str]]:
    """The words of every verb, in the order of `--help`."""
    found = []
    for name, command in typer.main.get_command(app).commands.items():
        found.append([name])
        found += [[name, part] for part in getattr(command, "commands", {})]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
