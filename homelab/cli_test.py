"""`homelab test`: what an agent will do, proven through the gateway."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from homelab.verbs import (
    USE,
    InventoryOption,
    JsonOption,
    app,
    completed,
    deployed_secrets,
    household_of,
    inventory_option,
    show_unreachable,
    survey_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from homelab.facts import Survey
    from homelab.pipeline import Household
    from homelab.secrets import Secrets


@app.command(
    "test", rich_help_panel=USE, short_help="Prove tool calls, thinking and contexts through the gateway."
)
def prove_models(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models of the inventory; without any, all of the house that chat.",
            autocompletion=completed("models", "cloud"),
        ),
    ] = None,
    inventory: InventoryOption = None,
    json: JsonOption = False,
) -> None:
    """Do what an agent will do with each model, streamed through the gateway by each protocol: call tools,
    think, go on from results, fill the context. Exit code 1 where not all works. Takes minutes; changes
    nothing."""
    from homelab.proofs.subjects import check_names

    household = household_of(ctx, inventory)
    check_names(household.inventory, models or ())
    secrets = deployed_secrets(household)
    survey, errors = survey_of(household)
    show_unreachable(household, errors)
    if not prove(household, survey, secrets, models or (), json=json):
        raise typer.Exit(1)


def prove(
    household: Household, survey: Survey, secrets: Secrets, models: Sequence[str], *, json: bool = False
) -> bool:
    """Prove the models and show it; whether all works."""
    from homelab import documents, endpoints, gateway, pipeline, state, ui
    from homelab.proofs import is_well
    from homelab.proofs.subjects import subjects
    from homelab.proving import Prover
    from homelab.ui import proofs as screen

    wanted = subjects(household.inventory, survey, models)
    # The key goes to nobody but the gateway.
    url = endpoints.proven_gateway(household.inventory, survey)
    silences = [gateway.silence_seconds(e) for e in endpoints.running(household.inventory, survey)]
    prover = Prover(
        url,
        secrets.gateway_key.get_secret_value(),
        pipeline.load_recipes(),
        # It is the gateway who gives up first, and says why.
        silence_seconds=max(silences) + 60,
        ca_file=state.ca_file(household.inventory.cluster),
    )
    proven = []
    shown = ""

    def watch(model: str, proof: str, _: str) -> None:
        nonlocal shown
        line = f"{model}: {proof}"
        if line != shown:
            ui.say(line)
            shown = line

    for subject in wanted:
        results = asyncio.run(prover.model(subject, watch))
        proven.append((subject, results))
        if not json:
            ui.show(screen.lines(subject, results, ui.width()))
            ui.write()
    if json:
        ui.print_json(documents.proofs_document(proven))
    else:
        ui.show(screen.summary(proven, ui.width()))
        if not all(is_well(r) for _, r in proven):
            ui.next_steps(
                f"homelab logs MODEL{inventory_option(household)}", "what each proof is: docs/proofs.md"
            )
    return all(is_well(r) for _, r in proven)
