"""The keys of people and apps: who has one, for what, and what it has used."""

from __future__ import annotations

import time

from rich.text import Text

from homelab import keys
from homelab.key_command import Listed
from homelab.keys import Key, Usage
from homelab.ui.cells import Column, Rows, tokens, wrapped


def lines(found: Listed, width: int) -> list[Text]:
    """A line for each key, and what is wrong with the counting."""
    if not found.keys:
        return [Text("No keys but the gateway's own. A key for somebody: homelab key add NAME")]
    rows = Rows(
        [
            Column(head="key", least=8, first=True, style="bold"),
            Column(head="state"),
            Column(head="last use", drop=1),
            Column(head="requests", right=True, drop=4),
            Column(head="tokens", right=True, drop=3),
            Column(head="today", right=True),
            Column(head="may", least=10),
        ]
    )
    for name, key in sorted(found.keys.items()):
        used = found.usage.get(key.id, Usage())
        limit = f" of {tokens(key.tokens_per_day)}" if key.tokens_per_day is not None else ""
        rows.add(
            name,
            keys.state_of(key, found.now),
            ago(used.last_use, found.now),
            str(used.requests),
            tokens(used.prompt_tokens + used.completion_tokens),
            f"{tokens(used.tokens_today)}{limit}",
            may(key),
        )
    shown = rows.lines(width)
    if found.ledger_error:
        said = (
            f"What is used is not saved: {found.ledger_error}. Keys work and the gateway counts in memory; "
            "it saves that once the disk takes it again. Make room on the gateway's node"
        )
        shown += wrapped(said, width, rest="  ")
    return shown


def may(key: Key) -> str:
    """What a key is for, in words."""
    if key.metrics:
        words = ["metrics only"]
    else:
        words = [", ".join(key.models) or ("all models of the house" if key.private else "all models")]
    words += ["private"] if key.private else []
    words += [f"{key.rpm} a minute"] if key.rpm is not None else []
    words += [f"{key.parallel} at once"] if key.parallel is not None else []
    words += [f"until {time.strftime('%Y-%m-%d', time.gmtime(key.expires))}"] if key.expires else []
    return "; ".join(words)


def ago(then: float | None, now: float) -> str:
    """`3 min ago`; `never`."""
    if then is None:
        return "never"
    seconds = max(now - then, 0)
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {word} ago"
    return "now"
