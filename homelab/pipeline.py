"""The stages in their order, as every verb runs them: inventory -> survey -> layout -> services -> plan."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from homelab import state
from homelab.discover import Discovery, discover, read_models
from homelab.errors import DeployError, HomelabError, InventoryError, NodeError
from homelab.inventory import Inventory, Node, did_you_mean, load
from homelab.nodes import connect
from homelab.secrets import Secrets, variables

# What is not needed before the nodes are asked is imported where it is: most of it while they answer, and
# what only planning needs there.
if TYPE_CHECKING:
    from homelab.ask import Answer
    from homelab.cards import Cards
    from homelab.deploy.events import Tell, Took
    from homelab.facts import Facts, Survey
    from homelab.models.recipes import Recipes
    from homelab.models.sampling import Sampling
    from homelab.plan import Change, Options, Place, Plan
    from homelab.speed import Speed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Household:
    """An inventory that was read, where it lies, its text, and the environment that its `env:` values come
    from."""

    inventory: Inventory
    path: Path
    environ: Mapping[str, str]
    text: str = ""


def read_inventory(path: Path) -> Household:
    """The inventory at `path`, `-` for standard input.

    Raises InventoryError, also when there is no such file."""
    import sys

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except FileNotFoundError as e:
        raise InventoryError(
            f"There is no `{path}`",
            hint="Start from an example: homelab init. Or say which file: homelab -i FILE …",
        ) from e
    except (OSError, UnicodeDecodeError) as e:
        raise InventoryError(f"`{path}` cannot be read", cause=str(e)) from e
    inventory = load(text, str(path))
    environ = {**_secrets_file(inventory, path), **os.environ}
    return Household(inventory=inventory, path=path, environ=environ, text=text)


def _secrets_file(inventory: Inventory, path: Path) -> dict[str, str]:
    """What the file beside the inventory holds; nothing where it is not there, for a plan that is replayed
    elsewhere needs none.

    Raises InventoryError for one that others may read, or that is broken."""
    if inventory.secrets_file is None:
        return {}
    file = path.parent / Path(inventory.secrets_file).expanduser()
    try:
        mode, text = file.stat().st_mode, file.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as e:
        raise InventoryError(f"`{file}` cannot be read", cause=str(e)) from e
    if mode & 0o077:
        raise InventoryError(f"`{file}` holds keys, and others may read it", hint=f"chmod 600 {file}")
    return variables(text, str(file))


def known_node(household: Household, node: str) -> None:
    """Raises InventoryError for a node that the inventory has not."""
    nodes = household.inventory.nodes
    if node not in nodes:
        raise InventoryError(
            f"No node `{node}` in `{household.path}`{did_you_mean(node, nodes)}",
            hint=f"There are: {', '.join(nodes)}",
        )


async def survey_nodes(household: Household, meanwhile: Callable[[], object] = bool) -> Discovery:
    """What all nodes say now; what the silent ones said before is kept with it, and all of it is
    remembered."""
    inventory = household.inventory
    state.directory(inventory.cluster)  # without a home, this machine is no node either
    discovery = await discover(inventory, meanwhile=meanwhile)
    before = state.load_survey(inventory.cluster)
    survey = discovery.survey.model_copy(
        update={
            "remembered": _silent(discovery.survey, before) if before else {},
            "gone": _gone(inventory, discovery.survey, before) if before else {},
            "measured": state.load_measurements(inventory.cluster),
        }
    )
    try:
        state.save_survey(inventory.cluster, survey)
    except HomelabError as e:  # what was seen is no less true for it
        logger.warning("What the nodes said is not remembered: %s: %s", e.message, e.cause)
    return Discovery(survey=survey, errors=discovery.errors)


def _how_to_list(name: str, spec: Node, facts: Facts) -> str:
    from homelab.hosting import Refused, runtime_for

    try:
        runtime_for(spec, facts)
    except Refused as e:
        return str(e)
    return f"Mend that first; where homelab is not to use Docker: `runtime: native` under nodes.{name}"


def listed(household: Household, discovery: Discovery) -> Discovery:
    """The discovery for whoever changes something: a node that cannot list its services counts as one that
    does not answer, for what it does not show may run."""
    from homelab.facts import Failure, NodeReport

    nodes, errors = dict(discovery.survey.nodes), dict(discovery.errors)
    remembered = dict(discovery.survey.remembered)
    for name, report in discovery.survey.nodes.items():
        spec = household.inventory.nodes[name]
        unlisted = report.facts.unlisted if report.facts else {}
        # Where somebody wrote `runtime: native`, Docker is not homelab's business.
        why = [
            w
            for runtime, reasons in unlisted.items()
            for w in reasons
            if (runtime, spec.runtime) != ("docker", "native")
        ]
        if report.facts is None or not why:
            continue
        errors[name] = NodeError(
            f"Node `{name}` cannot list its services",
            cause="\n".join(why),
            hint=_how_to_list(name, spec, report.facts),
            kind="services",
        )
        nodes[name] = NodeReport(
            reachable=False,
            error=Failure(message=errors[name].message, cause=errors[name].cause, hint=errors[name].hint),
        )
        remembered[name] = report.facts
    survey = discovery.survey.model_copy(update={"nodes": nodes, "remembered": remembered})
    return Discovery(survey=survey, errors=errors)


def _last_words(before: Survey, name: str) -> Facts | None:
    """What a node said when it last answered."""
    report = before.nodes.get(name)
    said = report.facts if report is not None else None
    return said or before.remembered.get(name) or before.gone.get(name)


def _silent(now: Survey, before: Survey) -> dict[str, Facts]:
    """What the nodes that do not answer said before."""
    names = [name for name, report in now.nodes.items() if report.facts is None]
    return {name: facts for name in names if (facts := _last_words(before, name)) is not None}


def _gone(inventory: Inventory, now: Survey, before: Survey) -> dict[str, Facts]:
    """What the nodes with services of the cluster said that are not in the inventory any more. One that
    answers under another name is not gone."""
    machines = {r.facts.machine_id for r in now.nodes.values() if r.facts and r.facts.machine_id}
    names = {*before.nodes, *before.remembered, *before.gone} - set(inventory.nodes)
    return {
        name: facts
        for name in sorted(names)
        if (facts := _last_words(before, name)) is not None
        and facts.machine_id not in machines
        and any(s.cluster == inventory.cluster for s in facts.services)
    }


async def with_models(household: Household, survey: Survey, *, everything: bool = False) -> Survey:
    """The survey with the headers of the models that must be planned (or, to save it for others, of all)."""
    from homelab.placement import unsettled

    # A file of the controller is looked at each time: where it lies on the nodes is named after its size
    # and time.
    ours = {
        n
        for n, m in household.inventory.models.items()
        if any(v.parsed.where == "controller" for v in m.variants)
    }
    names = set(household.inventory.models) if everything else unsettled(household.inventory, survey) | ours
    base = Path.cwd() if str(household.path) == "-" else household.path.parent
    return await read_models(household.inventory, survey, names, household.environ, base)


def read_facts(path: Path) -> Survey:
    """A saved survey, for planning without a network.

    Raises InventoryError."""
    from homelab.facts import load_survey

    try:
        return load_survey(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as e:
        there = not isinstance(e, FileNotFoundError)
        hint = "" if there else "Save one: homelab discover --save facts.json"
        raise InventoryError(f"`{path}` cannot be read", cause=str(e), hint=hint) from e


def check_variables(household: Household) -> None:
    """Raises InventoryError naming every environment variable that the inventory needs and that is not
    set."""
    missing = [
        f"{household.path}: {where}: environment variable {name} is not set"
        for name, where in household.inventory.variables().items()
        if not household.environ.get(name)
    ]
    if missing:
        names = " ".join(sorted(n for n in household.inventory.variables() if not household.environ.get(n)))
        raise InventoryError(
            "Environment variables are missing",
            mistakes=missing,
            hint=f"Set them in this shell first: export {names.split()[0]}=…"
            + (f" Or write them into `{file}`" if (file := household.inventory.secrets_file) else ""),
        )


@cache
def load_cards() -> Cards:
    """The cards and machines that this release knows by name."""
    from homelab import cards

    return cards.parse((Path(cards.__file__).parent / "cards.yml").read_text())


@cache
def load_recipes() -> Recipes:
    """How models are run with vLLM, as this release knows it."""
    from homelab.models import recipes

    return recipes.parse((Path(recipes.__file__).parent / "recipes.yml").read_text())


@cache
def load_sampling() -> Sampling:
    """How models are sampled where a client does not say, as this release knows it."""
    from homelab.models import sampling

    return sampling.parse((Path(sampling.__file__).parent / "sampling.yml").read_text())


def make_plan(household: Household, survey: Survey, secrets: Secrets, options: Options | None = None) -> Plan:
    """Where everything goes, what would be written, and what that changes; how fast it will be, if it
    changes anything."""
    from homelab import certificate
    from homelab.pace import paced
    from homelab.placement import place
    from homelab.plan import Options, diff
    from homelab.render import render

    asks_vllm = any(v.engine == "vllm" for m in household.inventory.models.values() for v in m.variants)
    layout = place(household.inventory, survey, load_recipes() if asks_vllm else None, load_sampling())
    if not all(p.kept for p in layout):
        layout = paced(layout, load_cards())
    services = render(
        household.inventory,
        layout,
        survey,
        secrets,
        household.environ,
        upgrade=options is not None and options.upgrade,
        keys=options is None or options.keys,
        certificate=certificate.read(household.inventory, household.path, household.text),
    )
    plan = diff(household.inventory, layout, services, survey, options or Options())
    return with_speeds(plan) if plan.todo else plan


def with_speeds(plan: Plan) -> Plan:
    """The plan with how fast each placement will be, as far as its card and its model are known."""
    from homelab.speed import predict

    explains = plan.layout.explains
    speeds: dict[Place, Speed] = {}
    if explains is None or plan.speeds is not None:
        return plan
    for p in plan.layout:
        shape = explains.shape(p)
        if shape is not None:
            device = load_cards().known(p.device)
            found = predict(shape, p.request, p.footprint, device, engine=p.engine)
            speeds |= {(p.node, p.service): found} if found is not None else {}
    return replace(plan, speeds=speeds)


async def plan_now(household: Household, *, for_reasons: bool = False) -> tuple[Plan, Secrets]:
    """The plan of this moment, with the keys of what is deployed. `for_reasons`: with the headers of models
    that stay as they are, and with stand-ins where there are no keys.

    Raises DeployError where nothing is deployed, NodeError where that cannot be known."""
    check_variables(household)
    discovery = listed(household, await survey_nodes(household))
    survey = await with_models(household, discovery.survey, everything=for_reasons)
    secrets = await secrets_of(household, survey)
    if secrets is None and for_reasons:
        secrets = placeholder_secrets()
    if secrets is None:
        may_make_secrets(household, survey)
        raise DeployError(
            f"Nothing is deployed for cluster `{household.inventory.cluster}`", hint="homelab deploy"
        )
    return await asyncio.to_thread(make_plan, household, survey, secrets), secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How a plan was carried out: what each model that was asked said, or why it said nothing, and how long
    what was started took until it was healthy."""

    done: int
    of: int
    failures: tuple[HomelabError, ...]
    answers: tuple[tuple[str, Answer | HomelabError], ...] = ()
    took: Mapping[Place, Took] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """A node that is gone counts only where nothing else failed."""
        return 4 if all(isinstance(e, NodeError) for e in self.failures) else 1

    @property
    def summary(self) -> str:
        return (
            f"{self.done} of {self.of} changes are done, {len(self.failures)} failed. "
            "Mend what is said above, then run it again"
        )


async def clear(household: Household, plan: Plan, tell: Tell) -> list[HomelabError]:
    """Take away what earlier deploys left; what could not be."""
    from homelab.deploy.lock import locked
    from homelab.deploy.prune import prune
    from homelab.plan import still_left

    async with locked(household.inventory, sorted({left.node for left in plan.leftovers})):
        now = (await survey_nodes(household)).survey
        return await prune(household.inventory, still_left(plan.leftovers, now), tell)


async def proven_gateway(household: Household) -> str:
    """Where the gateway answers, after its node has said that it is what listens there.

    Raises NodeError, DeployError."""
    from homelab import endpoints

    node = household.inventory.gateway.node
    only = household.inventory.model_copy(
        update={"nodes": {node: household.inventory.nodes[node]}, "models": {}}
    )
    discovery = await discover(only)
    if node in discovery.errors:
        raise discovery.errors[node]
    url = endpoints.proven_gateway(household.inventory, discovery.survey)
    await learn_authority(household, discovery.survey)
    return url


async def learn_authority(household: Household, survey: Survey) -> None:
    """Keep the certificate of the house's own authority, as it lies on the node of a front that has one, for
    whoever asks the gateway from here.

    Raises NodeError, DeployError where it cannot be read there."""
    from homelab import endpoints, front
    from homelab.runtimes.compose import on_engine

    cluster = household.inventory.cluster
    found = endpoints.entrance(household.inventory, survey)
    if found is None or survey.nodes[found[0]].facts is None:
        return
    node, service = found
    if service.labels.get("homelab.tls") != "internal":
        state.save_ca(cluster, None)
        return
    if service.runtime == "docker":
        words = ["docker", "exec", service.container or "", "cat", front.AUTHORITY_IN_CONTAINER]
        command = on_engine(service.socket, shlex.join(words))
    else:
        command = f"cat {shlex.quote(front.authority_path(cluster))}"
    async with connect(node, household.inventory.nodes[node]) as session:
        said = await session.run(command)
    if said.exit_status != 0 or "BEGIN CERTIFICATE" not in said.text:
        raise DeployError(
            f"The certificate of the front's authority on node `{node}` cannot be read",
            cause=said.cause,
            hint="homelab logs front",
        )
    state.save_ca(cluster, said.text)


async def roll_out(
    household: Household,
    plan: Plan,
    secrets: Secrets,
    tell: Tell,
    asks: Callable[[str], None],
) -> Rollout:
    """Deploy, ask every model that should answer one question of its kind, and look again: what is
    remembered of a node that sleeps later, what was predicted beside what is used, and how long it took.
    `asks` is told the name of each model when it is asked."""
    from homelab import endpoints
    from homelab.ask import ask
    from homelab.deploy.apply import deploy
    from homelab.deploy.lock import locked
    from homelab.deploy.prune import prune
    from homelab.measure import measure
    from homelab.plan import outdated, still_left

    inventory = household.inventory
    async with locked(
        inventory, sorted({*(c.node for c in plan.todo), *(left.node for left in plan.leftovers)})
    ):
        now = listed(household, await survey_nodes(household)).survey
        if changed := outdated(plan, inventory, now):
            raise DeployError(
                "The house has changed since this plan was made",
                cause=f"other services than before on {', '.join(changed)}",
                hint="homelab deploy",
            )
        outcome = await deploy(inventory, plan, secrets, tell)
        _remember_times(inventory.cluster, plan, outcome.took)
        after = (await survey_nodes(household)).survey
        pruned = [] if outcome.failed else await prune(inventory, still_left(plan.leftovers, after), tell)
    failures = [*outcome.failed, *pruned]
    try:
        await learn_authority(household, after)
    except HomelabError as e:
        failures.append(e)
    answers: list[tuple[str, Answer | HomelabError]] = []
    left = {(c.node, c.service) for c in plan.todo} - set(outcome.done)
    if any(s.role == "gateway" for s in plan.services) and not any(
        isinstance(e, NodeError) for e in failures
    ):
        placed = {p.model for p in plan.layout if (p.node, p.service) not in left}
        for name, model in sorted(inventory.models.items()):
            if name not in placed:
                continue
            asks(name)
            try:
                url = endpoints.proven_gateway(inventory, after)
                key, ca_file = secrets.gateway_key.get_secret_value(), state.ca_file(inventory.cluster)
                answer = await ask(url, key, name, model.kind, ca_file=ca_file)
                answers.append((name, answer))
            except HomelabError as e:
                failures.append(e)
                answers.append((name, e))
    await measure(inventory, plan.layout, after, outcome.done)
    return Rollout(
        done=len(outcome.done),
        of=len(plan.todo),
        failures=tuple(failures),
        answers=tuple(answers),
        took=outcome.took,
    )


def expected_times(cluster: str, changes: Iterable[Change]) -> dict[Place, Took]:
    """How long each of these took the last time, where it was the same engine and source then."""
    from homelab.deploy.events import Took

    times = state.load_times(cluster)
    found = {}
    for change in changes:
        time = times.get("/".join(change.place))
        if time is not None and time.what == _what(change):
            found[change.place] = Took(seconds=time.seconds, load_seconds=time.load_seconds)
    return found


def _remember_times(cluster: str, plan: Plan, took: Mapping[Place, Took]) -> None:
    times = {
        "/".join(c.place): state.Time(
            what=_what(c), seconds=took[c.place].seconds, load_seconds=took[c.place].load_seconds
        )
        for c in plan.todo
        if c.place in took
    }
    try:
        state.save_times(cluster, times)
    except HomelabError as e:  # it took no less for it
        logger.warning("How long it took is not remembered: %s: %s", e.message, e.cause)


def _what(change: Change) -> str:
    """What a service's time is a time of: its engine and the source of its model."""
    if change.wanted is None:
        return ""
    unit = change.wanted.unit
    variants = unit.asked.get("model", {}).get("variants", ())
    sources = [v["source"] for v in variants[unit.numbers.get("variant", 0) :][:1]]
    return " ".join([unit.engine, *sources])


def placeholder_secrets() -> Secrets:
    """Stand-ins for planning where the keys are not known: real ones have no place in somebody else's
    household."""
    return Secrets(gateway_key=SecretStr("sk-offline"), engine_secret=SecretStr("offline"))


def offline(household: Household) -> Household:
    """The household with stand-ins for all that its `env:` values name."""
    return replace(household, environ=dict.fromkeys(household.inventory.variables(), "offline"))


def may_make_secrets(household: Household, survey: Survey) -> None:
    """Raises NodeError where it cannot be known that the cluster has no keys: they may lie on the gateway's
    node."""
    node = household.inventory.gateway.node
    report = survey.nodes[node]
    if not report.reachable:
        raise NodeError(
            f"The gateway's node `{node}` cannot be asked for the cluster's keys, and this controller has "
            "none",
            cause=report.error.message if report.error else "",
            hint=(report.error and report.error.hint) or "Bring that node up first",
        )


def make_secrets(household: Household, survey: Survey) -> Secrets:
    """New keys for a cluster that has none anywhere, saved on the controller.

    Raises NodeError where that cannot be known."""
    may_make_secrets(household, survey)
    secrets = state.new_secrets()
    state.save_secrets(household.inventory.cluster, secrets)
    return secrets


async def secrets_of(household: Household, survey: Survey | None = None) -> Secrets | None:
    """The cluster's keys, None if there are none. Those on the gateway's node are the house's; what this
    controller has is a copy of them, good enough where the node is not asked."""
    inventory = household.inventory
    cluster, node = inventory.cluster, inventory.gateway.node
    mine = state.load_secrets(cluster)
    if mine is None or survey is not None:
        facts = survey.nodes[node].facts if survey is not None else None
        # The survey tells without another login whether there are other keys than ours.
        other = facts is not None and facts.secrets_id not in (None, mine and mine.id)
        theirs = await _secrets_on(household, node) if other or survey is None else None
        if theirs is not None and theirs != mine:
            if mine is not None:
                logger.warning("Node `%s` has other keys than this controller: they are kept here now", node)
            try:
                state.save_secrets(cluster, theirs)
            except HomelabError as e:
                logger.warning("The keys are not kept here: %s: %s", e.message, e.cause)
            return theirs
    if mine is not None:
        path = state.key_file(cluster)
        try:
            if state.mend_key_file(cluster, mine):
                logger.warning("`%s` did not hold the gateway's key: it is written again", path)
        except HomelabError as e:
            logger.warning("`%s` does not hold the gateway's key: %s", path, e.cause)
    return mine


async def _secrets_on(household: Household, node: str) -> Secrets | None:
    """The keys that lie on a node.

    Raises NodeError where that cannot be known."""
    from homelab.service import cluster_directory

    file = f"{cluster_directory(household.inventory.cluster)}/secrets.json"
    async with connect(node, household.inventory.nodes[node]) as session:
        there = await session.run(f"[ ! -e {file} ] || cat {file}")
    if there.exit_status != 0:
        raise NodeError(
            f"The keys on node `{node}` cannot be read",
            cause=there.cause,
            hint=f"Look whose it is, on that node: ls -l ~/{file}",
            kind="keys",
        )
    if not there.text:
        return None
    try:
        return Secrets.from_json(there.text)
    except ValueError as e:
        raise HomelabError(
            f"The keys on node `{node}` cannot be read",
            cause=str(e),
            hint=f"Remove ~/{file} there and deploy again: clients then need the new key",
        ) from e
