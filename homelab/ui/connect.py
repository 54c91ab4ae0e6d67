"""The one address, and how clients reach it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote

from rich.text import Text

from homelab import ui
from homelab.clients import (
    KEY_VARIABLE,
    Access,
    Client,
    File,
    Setup,
    clients,
    exports,
    needs_key_variable,
    reading,
    spelled,
    trusting,
)
from homelab.merging import written
from homelab.ui.cells import Column, Rows, tokens


def deployed(url: str, key_file: str | None, again: str) -> None:
    """What is now true, and the next commands. `again` is the option that names the inventory."""
    key = f"key in {key_file}" if key_file else "no key is known here"
    line = f"Gateway  {url}   {key}"
    ui.write(line if len(line) <= ui.width() else f"Gateway  {url}\n  {key}")
    ui.next_steps(f"homelab connect{again}", f"take it down: homelab remove{again}")


def overview(access: Access, here: Mapping[str, str | None], width: int) -> Iterator[Text]:
    """The address, the models with their contexts, and the clients with where they are."""
    line = f"Gateway  {access.url}   key in {access.key_file}"
    shown = [line] if len(line) <= width else [f"Gateway  {access.url}", f"  key in {access.key_file}"]
    if access.ca_file:
        shown.append(f"Its certificate is signed by the house itself: clients trust {access.ca_file}")
    yield from map(Text, [*shown, ""])
    models = Rows(
        (
            Column(head="MODEL", least=12, middle=True),
            Column(head="CONTEXT", right=True),
            Column(head="", drop=1),
        )
    )
    for model in access.models:
        told: list[str] = [model.kind] if model.kind != "chat" else []
        told += ["outside the house"] if model.cloud else []
        told += ["first"] if model.name == access.model.name else []
        told += ["small"] if access.small and model.name == access.small.name else []
        models.add(model.name, "-" if model.context is None else tokens(model.context), ", ".join(told))
    if access.models:
        yield from models.lines(width)
    else:
        yield Text("No model runs")
    yield Text("")
    rows = Rows(
        (Column(head="CLIENT"), Column(head="", least=8), Column(head="HERE", least=8, middle=True, drop=1))
    )
    for name, client in clients().items():
        where = here[name] or ("-" if client.BINARY is None else "not installed")
        rows.add(spelled(name), client.TITLE, where)
    yield from rows.lines(width)


def next_steps(access: Access, here: Mapping[str, str | None], again: str) -> list[str]:
    """What to type: for a client that is here, if there is one."""
    can = [n for n, c in clients().items() if here[n] and c.setup(access).launch is not None]
    name = spelled(can[0]) if can else "claude-code"
    steps = [f"homelab connect{again} {name}"]
    if can:
        steps.append(f"homelab launch{again} {name}")
    return [*steps, f"homelab ask{again} {access.model.name} 'your question'"]


def client(name: str, module: Client, access: Access, where: str | None, again: str) -> None:
    """What to put where for one client. What is to be pasted is not broken."""
    setup, typed = trusting(module, access), spelled(name)
    if module.BINARY is None:
        ui.write(module.TITLE)
    else:
        ui.write(
            f"{module.TITLE}   " + (f"here: {where}" if where else f"not installed here: {module.INSTALL}")
        )
    for file in setup.files:
        ui.write(f"\nInto ~/{file.path}:")
        for line in written(file.values, file.format).splitlines():
            ui.write(f"  {line}")
    if needs_key_variable(setup):
        ui.write("\nInto your shell's profile, for the key:")
        ui.write(f"  export {KEY_VARIABLE}={reading(access.key_file)}")
    elif setup.environment:
        ui.write("\nIn a shell, in place of that:" if setup.files else "\nIn a shell:")
        for line in exports(setup, access.key_file):
            ui.write(f"  {line}")
    if setup.lines:
        ui.write("\nThen:" if setup.files or setup.environment else "\nType:")
        for line in setup.lines:
            ui.write(f"  {line}")
    if setup.steps:
        ui.write()
        for number, step in enumerate(setup.steps, 1):
            ui.write(f"{number:>3}. {step}")
    ui.write()
    for warning in setup.warnings:
        ui.sentence(f"warning: {warning}")
    steps = [f"homelab connect{again} {typed} --write"] if setup.files else []
    steps += [f"homelab launch{again} {typed}"] if setup.launch else []
    ui.next_steps(*(steps or [f"homelab ask{again} {access.model.name} 'your question'"]))


def wrote(file: File, outcome: str, copy: Path | None) -> None:
    """What became of a client's file."""
    said = {"unchanged": "nothing to change in", "changed": "changed", "made": "made"}[outcome]
    ui.write(f"{said} ~/{file.path}" + (f"   as it was: {copy}" if copy else ""))


def after_writing(name: str, module: Client, setup: Setup, access: Access, again: str) -> None:
    """What is left to do by hand."""
    for warning in setup.warnings:
        ui.sentence(f"warning: {warning}")
    if needs_key_variable(setup):
        ui.write("The key is not in it. Into your shell's profile:")
        ui.write(f"  export {KEY_VARIABLE}={reading(access.key_file)}")
    for line in setup.lines if module.BINARY else ():
        ui.write(f"Then: {line}")
    if not setup.lines and module.BINARY:
        ui.next_steps(quote(module.BINARY))
