"""The one address, and how clients reach it."""

from __future__ import annotations

from homelab import ui
from homelab.clients import Access, clients


def deployed(url: str, key_file: str | None, again: str) -> None:
    """What is now true, and the next commands. `again` is the option that names the inventory."""
    key = f"key in {key_file}" if key_file else "no key is known here"
    line = f"Gateway  {url}   {key}"
    ui.write(line if len(line) <= ui.width() else f"Gateway  {url}\n  {key}")
    ui.next_steps(f"homelab connect{again}", f"take it down: homelab remove{again}")


def connections(access: Access, again: str) -> None:
    """How clients reach the gateway: address, key and model. What is to be pasted is not broken."""
    line = f"Gateway  {access.url}   key in {access.key_file}"
    ui.write(line if len(line) <= ui.width() else f"Gateway  {access.url}\n  key in {access.key_file}")
    ui.write()
    for client in clients().values():
        ui.write(f"{client.TITLE}:")
        for line in client.setup(access):
            ui.write(f"  {line}")
    ui.write()
    ui.next_steps(
        f"homelab ask{again} {access.model} 'your question'",
        f"health: homelab status{again}",
        f"take it down: homelab remove{again}",
    )
