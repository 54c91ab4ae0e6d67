"""GPUs by name or by size, for questions about machines that are not there. Pure: `cards.yml` is read by
whoever asks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from homelab.engines import Device
from homelab.errors import InventoryError

MiB, GiB = 2**20, 2**30
UNITS = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
SMALLEST, LARGEST = MiB, 2 * 2**40  # the largest memory of one GPU is 288 GB, of a Mac 512
MOST_GPUS = 64
# How far a driver's total may lie from what is known of a card: less than cards of one name lie apart.
NEARLY = 0.15
# What drivers, shops and people write around the name of a card.
FILLERS = re.compile(
    r"\((?:r|tm)\)|[®™]|generation|blackwell|edition|graphics|design|with|gpu|tesla|instinct|"
    r"nvidia|geforce|radeon|amd|intel|arc|apple"
)
LAPTOP = re.compile(r"mobile|notebook")
MAKERS = {
    "nvidia": "nvidia",
    "geforce": "nvidia",
    "amd": "amd",
    "radeon": "amd",
    "intel": "intel",
    "apple": "apple",
}
# homelab's own share of a memory that everything else lives in too, where nobody has seen what that takes.
OS_KEEPS = GiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU as it is sold. `reports_bytes` is the total that an engine sees; `derived` where no log says it.
    `usable_bytes` is less where the operating system lives in it too. None is what is not known:
    `gb_per_s` of the memory, `tflops` in FP16, `arch` as ROCm or Metal call it. `tier`: `workstation`,
    `datacentre`, or empty for what is sold to people."""

    name: str
    vendor: str
    gb: int
    reports_bytes: int
    usable_bytes: int
    derived: bool
    unified: bool = False
    gb_per_s: float | None = None
    tflops: float | None = None
    compute_capability: str | None = None
    arch: str | None = None
    tier: str = ""
    note: str = ""
    sources: tuple[str, ...] = ()

    def device(self, count: int = 1) -> Device:
        return Device(
            vendor=self.vendor,
            name=self.name,
            total_bytes=self.reports_bytes,
            memory_kind="unified" if self.unified else "dedicated",
            compute_capability=self.compute_capability,
            count=count,
            gb_per_s=self.gb_per_s,
            tflops=self.tflops,
            tier=self.tier,
        )


@dataclass(frozen=True, slots=True)
class Cards:
    """All cards by canonical name, and under which plain names each is known: more than one card under one
    name is a question."""

    entries: Mapping[str, Card]
    names: Mapping[str, tuple[Card, ...]]

    def find(self, text: str) -> Card | None:
        """The card of that name, whole and not in part; None where there is none.

        Raises InventoryError where several have that name."""
        makers = {vendor for word, vendor in MAKERS.items() if word in text.lower()}
        found = [c for c in self.names.get(plain(text), ()) if not makers or c.vendor in makers]
        if len(found) > 1:
            choices = ", ".join(f"`{c.name}`" for c in found)
            raise InventoryError(f"There are several `{_shown(text)}`", hint=f"Write which: {choices}")
        return found[0] if found else None

    def known(self, device: Device) -> Device:
        """A device of a node with what its card is known by; unchanged where no card has its name, or none
        with its memory."""
        among = [c for c in self.names.get(plain(device.name), ()) if c.vendor == device.vendor]
        away = {c.name: abs(c.reports_bytes - device.total_bytes) for c in among}
        card = min(among, key=lambda c: away[c.name], default=None)
        if card is None or away[card.name] > device.total_bytes * NEARLY:
            return device
        return replace(device, gb_per_s=card.gb_per_s, tflops=card.tflops, tier=card.tier)

    def like(self, text: str) -> list[str]:
        """Names that may have been meant: the same card with another memory, or what is written alike."""
        asked = plain(text)
        if same := self.names.get(plain(re.sub(r"\s*\d+\s*gi?b\s*$", "", text.lower()))):
            return [c.name if c.name.endswith("GB") else f"{c.name} ({c.gb} GB)" for c in same]
        close = difflib.get_close_matches(asked, self.names, n=3, cutoff=0.7)
        return list(dict.fromkeys(c.name for k in close for c in self.names[k]))[:4]


def parse(text: str) -> Cards:
    """The cards of a `cards.yml`."""
    # libyaml's loader where PyYAML has it: the same values, seven times as fast.
    document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    rows = [(group, row) for group in document["groups"] for row in group["cards"]]
    named = [row["name"] for _, row in rows]
    entries: dict[str, Card] = {}
    names: dict[str, list[Card]] = {}
    for group, row in rows:
        card = _card(group, row, alone=named.count(row["name"]) == 1)
        assert card.name not in entries, card.name
        entries[card.name] = card
        for name in _written(row):
            names.setdefault(name, []).append(card)
    return Cards(entries, {name: tuple(of) for name, of in names.items()})


def plain(text: str) -> str:
    """A name without what says nothing about the card: case, spaces, makers. `gib` is `gb`, mobile is
    laptop."""
    words = LAPTOP.sub("laptop", FILLERS.sub(" ", text.lower()))
    return re.sub(r"(?<=\d)gib$", "gb", re.sub(r"[^a-z0-9]", "", words))


def parse_gpu(text: str, known: Cards) -> Device:
    """`24GiB` (what CUDA sees), a card's name as `RTX 4090`, or several as `2x RTX 3090`.

    Raises InventoryError with what to write instead."""
    _, device = find_gpu(text, known)
    return device


def find_gpu(text: str, known: Cards) -> tuple[Card | None, Device]:
    """The same with the card where one was named.

    Raises InventoryError."""
    # `7900xtx` is a card, and not 7900 of anything.
    several = None if known.find(text) else re.fullmatch(r"\s*([-+]?\d+)\s*[x×]\s*(.+?)\s*", text)
    count, name = (several[1], several[2]) if several else (None, text.strip())
    number = 1 if count is None else int(count[:9])
    if not 1 <= number <= MOST_GPUS:
        raise InventoryError(
            f"`{_shown(text)}`: {number} GPUs cannot be reckoned with", hint=f"1 to {MOST_GPUS}"
        )
    if card := known.find(name):
        if card.unified and number > 1:
            raise InventoryError(
                f"A {card.name} has one GPU, and {number} are asked", hint="Ask for one of them"
            )
        return card, card.device(number)
    if size := re.fullmatch(r"([-+]?\d{1,12}(?:\.\d{1,6})?)\s*(?:([kmgt]i?)b?)?", name.lower()):
        total = _size(text, size[1], size[2])
        return None, Device(
            vendor="nvidia", name=f"a GPU of {total / GiB:.2f} GiB", total_bytes=total, count=number
        )
    like = known.like(name)
    meant = f", did you mean {' or '.join(f'`{n}`' for n in like)}?" if like else ""
    raise InventoryError(
        f"No GPU `{_shown(text)}` is known here{meant}", hint="Or give its memory: --gpu 24GiB"
    )


def _size(text: str, number: str, unit: str | None) -> int:
    if unit is None:
        raise InventoryError(
            f"`{_shown(text)}` is neither a card nor a size",
            hint=f"Write the unit: --gpu {number.lstrip(chr(45) + chr(43))}GiB",
        )
    if float(number) <= 0:
        raise InventoryError(f"`{_shown(text)}`: a size is positive", hint="As --gpu 24GiB")
    total = int(float(number) * UNITS[unit])
    if not SMALLEST <= total <= LARGEST:
        raise InventoryError(
            f"`{_shown(text)}`: no GPU has that much memory", hint="1 MiB to 2 TiB, as --gpu 24GiB"
        )
    return total


def _card(group: Mapping[str, Any], row: Mapping[str, Any], *, alone: bool) -> Card:
    unified, gb = group.get("unified", False), row["gb"]
    logged = row.get("reports_mib")
    reports = logged or derived(group["vendor"], gb, unified=unified, ecc=group.get("ecc", False))
    # Metal's figure and AMD's share of the RAM leave room for the system already.
    keeps = group.get("os_keeps_mib", OS_KEEPS // MiB if unified and group["vendor"] == "nvidia" else 0)
    return Card(
        name=row["name"] if alone else f"{row['name']} {gb}GB",
        vendor=group["vendor"],
        gb=gb,
        reports_bytes=reports * MiB,
        usable_bytes=(reports - keeps) * MiB,
        derived=logged is None,
        unified=unified,
        gb_per_s=row["gb_per_s"],
        tflops=row["tflops"],
        compute_capability=group.get("compute_capability"),
        arch=group.get("gfx") or group.get("metal"),
        tier=group.get("tier", ""),
        note=group.get("note", ""),
        sources=tuple(group["sources"]),
    )


def derived(vendor: str, gb: int, *, unified: bool = False, ecc: bool = False) -> int:
    """MiB that a driver reports of a memory of `gb` at least: no more than any log in `cards.yml` says of
    its vendor."""
    mib = gb * 1024
    if vendor == "apple":
        # Metal's recommendedMaxWorkingSetSize: 5461 MiB of 8 GB, 10922 of 16, 16384 of 24, 21845 of 32; 27648
        # of 36, 36864 of 48, 98304 of 128 (llama.cpp's logs of M1 to M3). Newer macOS gives more: 12124 of
        # 16, 38338 of 48, 110100 of 128 on an M4; `llama-server --list-devices` prints it.
        return mib * 2 // 3 if gb < 36 else mib * 3 // 4
    mib -= mib // 16 if ecc else 0
    if vendor == "amd":
        return mib * 3 // 4 if unified else mib - mib // 200
    if vendor == "intel":
        return mib - mib // 100
    if unified:  # 7607 of 8 GB, 62827 of 64 GB on Orin
        return mib - mib * 72 // 1000
    return mib - (464 if gb < 16 or mib < 16 * 1024 else max(576, mib * 21 // 1000))


def _written(row: Mapping[str, Any]) -> set[str]:
    """Plain names of one entry: with the memory behind it or not, and without the `RTX` before it."""
    texts = [row["name"], *row.get("aliases", ()), *row.get("also", ())]
    return {name for text in texts for name in _forms(plain(text), row["gb"])}


def _forms(name: str, gb: int) -> Iterator[str]:
    # `4090` is a card, `6000` a number that wants a unit.
    for short in {name, re.sub(r"^(rtx|rx)(?!\d000$)(?=\w)", "", name)}:
        yield short
        yield f"{short}{gb}gb"


def _shown(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"
