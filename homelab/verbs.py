"""What all verbs share: the application that they are registered on, its options, and the house that they are
about."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from homelab.errors import DeployError, NodeError

if TYPE_CHECKING:
    from homelab.clients import Access
    from homelab.facts import Survey
    from homelab.pipeline import Household
    from homelab.secrets import Secrets

HELP = (
    "Every GPU in the house becomes one private LLM endpoint.\n\n"
    "Exit codes: 0 ok · 1 failed, cancelled, or not healthy (status) · 2 usage or inventory · "
    "3 does not fit · 4 node unreachable · 5 plan --check found changes · 70 bug · 130 ^C\n"
)

SEE, DECIDE, DO, USE = "See", "Decide", "Do", "Use"


class _Grouped(typer.core.TyperGroup):
    """The verbs by what they are for."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        widest = max(map(len, self.commands))
        for title in (SEE, DECIDE, DO, USE):
            verbs = [
                (f"{name:<{widest}}", command.get_short_help_str(formatter.width - widest - 6))
                for name, command in self.commands.items()
                if getattr(command, "rich_help_panel", None) == title
            ]
            with formatter.section(title):
                formatter.write_dl(verbs)


app = typer.Typer(
    cls=_Grouped,
    help=HELP,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode=None,
)


def completed(
    *sections: str, more: tuple[str, ...] = (), themselves: tuple[str, ...] = ()
) -> Callable[[typer.Context, str], list[str]]:
    """Completes names from the inventory that the command line is about: of what stands in `sections`, and
    of `themselves` where it has them; and `more`."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        from homelab import complete

        above = ctx.parent.params.get("inventory") if ctx.parent else None
        path = ctx.params.get("inventory") or above or Path("inventory.yml")
        written = complete.names(path, *sections, themselves=themselves)
        return [n for n in (*written, *more) if n.startswith(incomplete)]

    return complete


InventoryOption = Annotated[
    Path | None,
    typer.Option(
        "--inventory",
        "-i",
        help="The inventory file; `-` reads standard input.",
        envvar="HOMELAB_INVENTORY",
        show_default="inventory.yml",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout (docs/json.md).")]
UpgradeOption = Annotated[
    bool,
    typer.Option(
        "--upgrade",
        help="What runs takes this homelab's images and files too, though nobody asked for a change.",
    ),
]
NodeOption = Annotated[
    str | None,
    typer.Option("--node", help="Only the instance on this node.", autocompletion=completed("nodes")),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def household_of(ctx: typer.Context, inventory: Path | None) -> Household:
    from homelab import pipeline

    return pipeline.read_inventory(inventory or ctx.obj or Path("inventory.yml"))


def inventory_option(household: Household) -> str:
    """The option that says which inventory, for the next command."""
    return (
        ""
        if str(household.path) == "inventory.yml" or os.environ.get("HOMELAB_INVENTORY")
        else f" -i {household.path}"
    )


def deployed_secrets(household: Household) -> Secrets:
    """The keys of what is deployed; without them there is nothing to talk to."""
    from homelab import pipeline

    secrets = asyncio.run(pipeline.secrets_of(household))
    if secrets is None:
        raise DeployError(
            f"Nothing is deployed for cluster `{household.inventory.cluster}`",
            hint=f"homelab deploy{inventory_option(household)}",
        )
    return secrets


def survey_of(household: Household, *, changing: bool = False) -> tuple[Survey, dict[str, NodeError]]:
    """Ask all nodes; where somebody sits in front, unknown host keys are shown and asked about, and those
    nodes asked again."""
    from homelab import pipeline

    # The terminal's library is imported while the nodes answer.
    discovery = asyncio.run(pipeline.survey_nodes(household, lambda: importlib.import_module("homelab.ui")))
    from homelab import ui

    unknown = {n: e for n, e in discovery.errors.items() if e.kind == "host-key-unknown"}
    if unknown and ui.is_terminal():
        from homelab.nodes import ssh

        accepted = False
        for _, e in sorted(unknown.items()):
            ui.say(f"{e.message}: {e.cause}\nCompare it on that machine: {ssh.COMPARE}")
            if isinstance(e, ssh.UnknownHostKey) and ui.confirm("Is that the machine's own key?"):
                ssh.accept(e)
                accepted = True
        if accepted:
            discovery = asyncio.run(pipeline.survey_nodes(household))
    if changing:
        discovery = pipeline.listed(household, discovery)
    return discovery.survey, dict(discovery.errors)


def refuse_unreachable(household: Household, errors: dict[str, NodeError]) -> None:
    if show_unreachable(household, errors):
        raise typer.Exit(NodeError.exit_code)


def show_unreachable(household: Household, errors: dict[str, NodeError]) -> bool:
    """Show all nodes that could not be asked; those marked as away do not count."""
    from homelab import ui

    counted = [e for n, e in sorted(errors.items()) if not household.inventory.nodes[n].away]
    for e in counted:
        ui.error(e)
    return bool(counted)


def access_of(household: Household, model: str | None) -> Access:
    """How clients reach the house, with this model to start with.

    Raises InventoryError, NodeError, DeployError."""
    from homelab import access, pipeline, state

    inventory = household.inventory
    survey = state.load_survey(inventory.cluster)
    if survey is None:
        survey = asyncio.run(pipeline.survey_nodes(household)).survey
    reached = access.access(inventory, survey, str(state.key_file(inventory.cluster)), model)
    if reached.url.startswith("https:") and state.ca_file(inventory.cluster) is None:
        asyncio.run(pipeline.proven_gateway(household))
    return replace(reached, ca_file=state.ca_file(inventory.cluster))
