"""The stages in their order, as every verb runs them: inventory -> survey -> layout -> services -> plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from homelab import state
from homelab.discover import Discovery, discover, read_models
from homelab.errors import DeployError, HomelabError, InventoryError, NodeError
from homelab.inventory import Inventory, load
from homelab.nodes import connect
from homelab.secrets import Secrets

# What is not needed before the nodes are asked is imported where it is: most of it while they answer, and
# what only planning needs there.
if TYPE_CHECKING:
    from homelab.ask import Answer
    from homelab.deploy.events import Tell
    from homelab.facts import Survey
    from homelab.plan import Options, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Household:
    """An inventory that was read, where it lies, and the environment that its `env:` values come from."""

    inventory: Inventory
    path: Path
    environ: Mapping[str, str]


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
    return Household(inventory=load(text, str(path)), path=path, environ=dict(os.environ))


async def survey_nodes(household: Household, meanwhile: Callable[[], object] = bool) -> Discovery:
    """What all nodes say now; what the silent ones said before is kept with it, and all of it is
    remembered."""
    inventory = household.inventory
    discovery = await discover(inventory, meanwhile=meanwhile)
    silent = [name for name, report in discovery.survey.nodes.items() if report.facts is None]
    remembered = {}
    if silent and (before := state.load_survey(inventory.cluster)) is not None:
        for name in silent:
            last = before.nodes.get(name)
            facts = last.facts if last is not None and last.facts is not None else before.remembered.get(name)
            if facts is not None:
                remembered[name] = facts
    survey = discovery.survey.model_copy(
        update={"remembered": remembered, "measured": state.load_measurements(inventory.cluster)}
    )
    state.save_survey(inventory.cluster, survey)
    return Discovery(survey=survey, errors=discovery.errors)


def listed(household: Household, discovery: Discovery) -> Discovery:
    """The discovery for whoever changes something: a node that cannot list its services counts as one that does
    not answer, for what it does not show may run."""
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
            hint=f"Mend that first; where homelab is not to use Docker there: `runtime: native` under nodes.{name}",
            kind="services",
        )
        nodes[name] = NodeReport(
            reachable=False,
            error=Failure(message=errors[name].message, cause=errors[name].cause, hint=errors[name].hint),
        )
        remembered[name] = report.facts
    survey = discovery.survey.model_copy(update={"nodes": nodes, "remembered": remembered})
    return Discovery(survey=survey, errors=errors)


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
        raise InventoryError(
            f"`{path}` cannot be read", cause=str(e), hint="Save one: homelab discover --save facts.json"
        ) from e


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
            hint=f"Set them in this shell first: export {names.split()[0]}=…",
        )


def make_plan(household: Household, survey: Survey, secrets: Secrets, options: Options | None = None) -> Plan:
    """Where everything goes, what would be written, and what that changes."""
    from homelab.placement import place
    from homelab.plan import Options, diff
    from homelab.render import render

    layout = place(household.inventory, survey)
    services = render(household.inventory, layout, survey, secrets, household.environ)
    return diff(household.inventory, layout, services, survey, options or Options())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How a plan was carried out."""

    done: int
    of: int
    failures: tuple[HomelabError, ...]

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
    return endpoints.proven_gateway(household.inventory, discovery.survey)


async def roll_out(
    household: Household,
    plan: Plan,
    secrets: Secrets,
    tell: Tell,
    answered: Callable[[Answer | HomelabError], None],
) -> Rollout:
    """Deploy, ask every model that should answer one question of its kind, and look again: what is
    remembered of a node that sleeps later, and what was predicted beside what is used."""
    from homelab import endpoints
    from homelab.ask import ask
    from homelab.deploy.apply import deploy
    from homelab.deploy.lock import locked
    from homelab.measure import measure
    from homelab.plan import outdated

    inventory = household.inventory
    async with locked(inventory, sorted({c.node for c in plan.todo})):
        now = listed(household, await survey_nodes(household)).survey
        if changed := outdated(plan, inventory, now):
            raise DeployError(
                "The house has changed since this plan was made",
                cause=f"other services than before on {', '.join(changed)}",
                hint="homelab deploy",
            )
        outcome = await deploy(inventory, plan, secrets, tell)
    failures = list(outcome.failed)
    left = {(c.node, c.service) for c in plan.todo} - set(outcome.done)
    after = (await survey_nodes(household)).survey
    if any(s.role == "gateway" for s in plan.services) and not any(
        isinstance(e, NodeError) for e in failures
    ):
        placed = {p.model for p in plan.layout if (p.node, p.service) not in left}
        for name, model in sorted(inventory.models.items()):
            if name not in placed:
                continue
            try:
                url = endpoints.proven_gateway(inventory, after)
                answered(await ask(url, secrets.gateway_key.get_secret_value(), name, model.kind))
            except HomelabError as e:
                failures.append(e)
                answered(e)
    await measure(inventory, plan.layout, after, outcome.done)
    return Rollout(done=len(outcome.done), of=len(plan.todo), failures=tuple(failures))


def placeholder_secrets() -> Secrets:
    """Stand-ins for planning offline: real keys have no place in somebody else's household."""
    return Secrets(gateway_key=SecretStr("sk-offline"), engine_secret=SecretStr("offline"))


def make_secrets(household: Household, survey: Survey) -> Secrets:
    """New keys for a cluster that has none anywhere, saved on the controller.

    Raises NodeError where that cannot be known: other keys may lie on the gateway's node."""
    node = household.inventory.gateway.node
    if not survey.nodes[node].reachable:
        raise NodeError(
            (
                f"The gateway's node `{node}` cannot be asked for the cluster's keys, and "
                "this controller has none"
            ),
            cause=((e := survey.nodes[node].error) and e.message) or "",
            hint="Bring that node up first",
        )
    secrets = state.new_secrets()
    state.save_secrets(household.inventory.cluster, secrets)
    return secrets


async def secrets_of(household: Household, survey: Survey | None = None) -> Secrets | None:
    """The cluster's keys from this controller, else read back from the gateway's node; None if there are
    none."""
    inventory = household.inventory
    if (mine := state.load_secrets(inventory.cluster)) is not None:
        return mine
    from homelab.service import cluster_directory

    node = inventory.gateway.node
    if survey is not None and not survey.nodes[node].reachable:
        return None
    file = f"{cluster_directory(inventory.cluster)}/secrets.json"
    async with connect(node, inventory.nodes[node]) as session:
        there = await session.run(f"cat {file}")
    if there.exit_status != 0:
        return None
    try:
        secrets = Secrets.from_json(there.text)
    except ValueError as e:
        raise HomelabError(
            f"The keys on node `{node}` cannot be read",
            cause=str(e),
            hint=f"Remove ~/{file} there and deploy again: clients then need the new key",
        ) from e
    state.save_secrets(inventory.cluster, secrets)
    return secrets
