"""The verbs of `homelab key`, as few lines as those of `cli.py`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from homelab.verbs import InventoryOption, JsonOption, household_of

app = typer.Typer(
    help="Keys of people and apps: each its own, with limits. None restarts the gateway.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
NameArgument = Annotated[str, typer.Argument(help="Whose key: a person or an app.")]


@app.command()
def add(
    ctx: typer.Context,
    name: NameArgument,
    models: Annotated[
        str | None, typer.Option("--models", help="Only these: A,B.", show_default="all")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Nothing that is asked with it leaves the house.")
    ] = False,
    tokens_per_day: Annotated[
        int | None, typer.Option("--tokens-per-day", help="Of prompts and answers, by days in UTC.")
    ] = None,
    rpm: Annotated[int | None, typer.Option("--rpm", help="Requests a minute.")] = None,
    parallel: Annotated[int | None, typer.Option("--parallel", help="Requests at once.")] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="After 12h, 30d, 6w, 1y, or with a day: 2027-01-31.")
    ] = None,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="For Prometheus: reads /metrics and asks no model.")
    ] = False,
    inventory: InventoryOption = None,
) -> None:
    """Make a key and print it, once: only its hash is kept. It works at once."""
    from homelab import key_command, ui

    secret = asyncio.run(
        key_command.add(
            household_of(ctx, inventory),
            name,
            models=models,
            private=private,
            tokens_per_day=tokens_per_day,
            rpm=rpm,
            parallel=parallel,
            expires=expires,
            metrics=metrics,
        )
    )
    ui.write(secret)
    ui.say(f"The key of `{name}`. It works now and is shown only here; a new one: homelab key rotate {name}")


@app.command("list")
def list_(
    ctx: typer.Context,
    inventory: InventoryOption = None,
    json: JsonOption = False,
) -> None:
    """Show the keys, when each was used last, and how many tokens it took. Changes nothing."""
    from homelab import key_command, ui

    found = asyncio.run(key_command.listed(household_of(ctx, inventory)))
    if json:
        ui.print_json(key_command.document(found))
    else:
        from homelab.ui import keys as screen

        ui.show(screen.lines(found, ui.width()))


@app.command()
def revoke(ctx: typer.Context, name: NameArgument, inventory: InventoryOption = None) -> None:
    """Take a key away. It stops with its next request."""
    from homelab import key_command, ui

    asyncio.run(key_command.revoke(household_of(ctx, inventory), name))
    ui.write(f"The key of `{name}` is revoked: its next request is refused")


@app.command()
def rotate(ctx: typer.Context, name: NameArgument, inventory: InventoryOption = None) -> None:
    """Give a key a new secret and print it, once. The old one works on for 15 minutes."""
    from homelab import key_command, ui
    from homelab.keys import GRACE_SECONDS

    ui.write(asyncio.run(key_command.rotate(household_of(ctx, inventory), name)))
    ui.say(f"The new key of `{name}`. The old one works on for {GRACE_SECONDS // 60} minutes")
