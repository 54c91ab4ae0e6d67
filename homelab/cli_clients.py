"""The verbs for clients: `connect` and `launch`."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homelab.errors import InventoryError
from homelab.verbs import (
    USE,
    InventoryOption,
    JsonOption,
    access_of,
    app,
    completed,
    deployed_secrets,
    household_of,
    inventory_option,
)

if TYPE_CHECKING:
    from homelab.clients import Access, Client


def _complete_client(incomplete: str) -> list[str]:
    from homelab.clients import clients, spelled

    return [name for name in map(spelled, clients()) if name.startswith(incomplete)]


ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="The model to start with.", autocompletion=completed("models", "cloud")),
]


@app.command(rich_help_panel=USE, short_help="How clients reach the gateway; --write sets one up.")
def connect(
    ctx: typer.Context,
    client: Annotated[
        str | None,
        typer.Argument(help="A client, as `homelab connect` lists them.", autocompletion=_complete_client),
    ] = None,
    model: ModelOption = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put it into the client's own file, and keep what is there.")
    ] = False,
    env: Annotated[bool, typer.Option("--env", help="Only the lines for a shell: eval them.")] = False,
    inventory: InventoryOption = None,
    json: JsonOption = False,
) -> None:
    """How clients reach the gateway: alone, all clients and models; with a client, what to put where. Changes
    nothing but the client's file with --write. The key is never in it."""
    from homelab import client_files, ui
    from homelab.clients import exports, trusting
    from homelab.ui import connect as screen

    if client is None and (write or env):
        raise InventoryError(
            "`--write` and `--env` are for one client", hint="Which there are: homelab connect"
        )
    if sum((write, env, json)) > 1:
        raise InventoryError("`--write`, `--env` and `--json` are one at a time")
    name, module = _client(client) if client is not None else ("", None)
    household = household_of(ctx, inventory)
    deployed_secrets(household)
    reached = access_of(household, model)
    if json:
        ui.print_json(_document(reached, name))
        return
    if module is None:
        ui.show(screen.overview(reached, _here(), ui.width()))
        ui.write()
        ui.next_steps(*screen.next_steps(reached, _here(), inventory_option(household)))
        return
    setup = trusting(module, reached)
    if env:
        if not setup.environment:
            raise InventoryError(
                f"{module.TITLE} reads nothing from the environment", hint=f"homelab connect {client}"
            )
        for line in exports(setup, reached.key_file):
            ui.write(line)
        for warning in setup.warnings:
            ui.say(f"warning: {warning}")
        return
    if not write:
        where = client_files.installed(module.BINARY)
        screen.client(name, module, reached, where, inventory_option(household))
        return
    if not setup.files:
        raise InventoryError(
            f"homelab writes no file of {module.TITLE}", hint=f"What to do: homelab connect {client}"
        )
    for file in setup.files:
        outcome, copy = client_files.write(file)
        screen.wrote(file, outcome, copy)
    screen.after_writing(name, module, setup, reached, inventory_option(household))


@app.command(
    rich_help_panel=USE,
    short_help="Start a client on the house's models.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def launch(
    ctx: typer.Context,
    client: Annotated[
        str,
        typer.Argument(help="A client, as `homelab connect` lists them.", autocompletion=_complete_client),
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="For the client itself, after `--`.", metavar="[-- ARGS]")
    ] = None,
    model: ModelOption = None,
    inventory: InventoryOption = None,
) -> None:
    """Start a client at once on the house's models. No file of it is changed: it is told by its environment,
    by flags, and by a file of homelab's own."""
    from homelab import client_files, pipeline, ui
    from homelab.clients import spelled, trusting

    name, module = _client(client)
    household = household_of(ctx, inventory)
    secrets = deployed_secrets(household)
    reached = access_of(household, model)
    setup = trusting(module, reached)
    if setup.launch is None:
        raise InventoryError(
            f"{module.TITLE} cannot be started from here",
            cause=setup.why_not,
            hint=f"homelab connect {spelled(name)}" + (" --write" if setup.files else ""),
        )
    if client_files.installed(module.BINARY) is None:
        raise client_files.ClientError(
            f"{module.TITLE} is not installed here",
            cause=f"no `{module.BINARY}` in PATH",
            hint=module.INSTALL,
        )
    # The key goes to nobody but the gateway.
    asyncio.run(pipeline.proven_gateway(household))
    for warning in setup.warnings:
        ui.say(f"warning: {warning}")
    argv, environment = client_files.prepared(name, setup.launch, secrets.gateway_key.get_secret_value())
    os.execvpe(argv[0], [*argv, *(arguments or ())], environment)


def _client(name: str) -> tuple[str, Client]:
    """The client of that name.

    Raises InventoryError."""
    from homelab.clients import clients, spelled
    from homelab.inventory import did_you_mean

    module = name.replace("-", "_")
    known = clients()
    if module not in known:
        names = [spelled(n) for n in known]
        raise InventoryError(
            f"No client `{name}`{did_you_mean(name, names)}", hint=f"There are: {', '.join(names)}"
        )
    return module, known[module]


def _here() -> dict[str, str | None]:
    """Where each client's program is."""
    from homelab import client_files
    from homelab.clients import clients

    return {name: client_files.installed(c.BINARY) for name, c in clients().items()}


def _document(reached: Access, only: str) -> dict[str, Any]:
    from homelab import documents
    from homelab.clients import clients

    here = _here()
    return documents.connect_document(
        reached, {n: (c, here[n]) for n, c in clients().items() if only in ("", n)}
    )
