"""GPUs by name or by size, for questions about machines that are not there."""

from __future__ import annotations

import re
from collections.abc import Mapping

from homelab.engines import Device
from homelab.errors import InventoryError

GiB = 2**30
UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
# What CUDA reports of cards that people have, in GiB: from engines' logs (3090 23.57, 4090 23.52, 5090
# 31.36, 4060 7.65, A6000-class 47.5), the others by the same share of their nominal size. Total, compute
# capability, vendor.
CARDS: Mapping[str, tuple[float, str | None, str]] = {
    "RTX 3060": (11.63, "8.6", "nvidia"),
    "RTX 3070": (7.65, "8.6", "nvidia"),
    "RTX 3080": (9.65, "8.6", "nvidia"),
    "RTX 3090": (23.57, "8.6", "nvidia"),
    "RTX 4060": (7.65, "8.9", "nvidia"),
    "RTX 4060 Ti": (15.6, "8.9", "nvidia"),
    "RTX 4070": (11.6, "8.9", "nvidia"),
    "RTX 4080": (15.6, "8.9", "nvidia"),
    "RTX 4090": (23.52, "8.9", "nvidia"),
    "RTX 5060 Ti": (15.5, "12.0", "nvidia"),
    "RTX 5070": (11.5, "12.0", "nvidia"),
    "RTX 5070 Ti": (15.5, "12.0", "nvidia"),
    "RTX 5080": (15.5, "12.0", "nvidia"),
    "RTX 5090": (31.36, "12.0", "nvidia"),
    "RTX A6000": (47.4, "8.6", "nvidia"),
    "RTX 6000 Ada": (47.4, "8.9", "nvidia"),
    "L4": (22.0, "8.9", "nvidia"),
    "L40S": (44.4, "8.9", "nvidia"),
    "T4": (14.6, "7.5", "nvidia"),
    "A100 40GB": (39.38, "8.0", "nvidia"),
    "A100 80GB": (79.25, "8.0", "nvidia"),
    "H100": (79.18, "9.0", "nvidia"),
    "RX 7900 XTX": (23.98, None, "amd"),
    "R9700": (31.86, None, "amd"),
}


def parse_gpu(text: str) -> Device:
    """`24GiB` (what CUDA sees), a card's name as `RTX 4090`, or several as `2x RTX 3090`.

    Raises InventoryError with what is known."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x×]\s*)?(.+?)\s*", text)
    count, name = (int(match[1] or 1), match[2]) if match else (1, text)
    if not 1 <= count <= 64:
        raise InventoryError(f"{count} GPUs cannot be reckoned with", hint="1 to 64")
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", name.lower()):
        total = int(float(size[1]) * UNITS[size[2] or ""])
        if total < 2**20:
            raise InventoryError(f"`{text}` is less than a MiB", hint="Write the unit: --gpu 24GiB")
        return Device(vendor="nvidia", name=f"a GPU of {total / GiB:.2f} GiB", total_bytes=total, count=count)
    plain = _plain(name)
    for card, (gib, capability, vendor) in sorted(CARDS.items(), key=lambda item: -len(item[0])):
        if _plain(card) in plain:
            return Device(
                vendor=vendor,
                name=card,
                total_bytes=int(gib * GiB),
                compute_capability=capability,
                count=count,
            )
    raise InventoryError(
        f"No GPU `{text}` is known here", hint=f"Write its memory (24GiB), or one of: {', '.join(CARDS)}"
    )


def _plain(text: str) -> str:
    return re.sub(r"nvidia|geforce|radeon|amd|laptop|[^a-z0-9]", "", text.lower())
