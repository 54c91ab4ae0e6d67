"""What can be planned on: the devices of a node, and what is free on each. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from homelab.engines import Device
from homelab.facts import GPU, DeployedService, Facts
from homelab.inventory import Inventory, Node
from homelab.service import numbers_of

GIB = 1024**3
# What a desktop may still grow by, where the inventory gives no `reserve`: a browser tab with video is
# 100-300 MiB.
DISPLAY_RESERVE_BYTES = GIB // 2
# What the operating system keeps of a pool that models share with it.
RAM_RESERVE_BYTES = GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A device of a node and what is left of it. `gpus` is empty for the machine's RAM; `reserve_bytes` is
    what is left alone for the desktop or the system."""

    node: str
    gpus: tuple[GPU, ...]
    device: Device
    free_bytes: int
    explained: str
    reserve_bytes: int = 0

    @property
    def label(self) -> str:
        names = (f"GPU {g.index} {g.name}" if g.mig else f"GPU {g.index}" for g in self.gpus)
        return " + ".join(names) if self.gpus else "RAM"

    @property
    def key(self) -> str:
        """What tells it from the other slots of its node; two slices of a GPU have one index."""
        return "+".join(g.uuid for g in self.gpus) or "ram"


def slots_of(inventory: Inventory, name: str, facts: Facts) -> list[Slot]:
    """The devices of a node: each GPU (MIG slices by themselves), groups of like GPUs, and the RAM where
    there is no GPU that can be planned."""
    node = inventory.nodes[name]
    ours = [s for s in facts.services if s.cluster == inventory.cluster]
    single = [s for gpu in facts.gpus for s in _gpu_slots(name, node, facts, gpu, ours)]
    groups = []
    for size in (2, 4, 8):
        for alike in sorted({g.gpus[0].name for g in single}):
            pool = sorted(
                (
                    s
                    for s in single
                    if s.gpus[0].name == alike and s.device.memory_kind == "dedicated" and not s.gpus[0].mig
                ),
                key=lambda s: (-s.free_bytes, s.gpus[0].index),
            )
            # The two with most free, the next two …: no GPU is in two groups of one size.
            groups += [group_of(pool[start : start + size]) for start in range(0, len(pool) - size + 1, size)]
    if single:
        return single + sorted(groups, key=lambda s: (len(s.gpus), [g.index for g in s.gpus]))
    held = sum(
        _planned(s)
        for s in ours
        if s.state in ("running", "starting") and s.memory_bytes is None and s.role == "engine"
    )
    held += sum(s.memory_bytes or 0 for s in ours if s.role == "engine")
    reserve = RAM_RESERVE_BYTES if node.reserve is None else int(node.reserve)
    free = min(facts.memory_available_bytes + held, facts.memory_total_bytes) - reserve
    device = Device(
        vendor="cpu",
        name=facts.cpu.model or "CPU",
        total_bytes=facts.memory_total_bytes,
        memory_kind="ram",
        wsl=facts.wsl,
    )
    return [
        Slot(
            node=name,
            gpus=(),
            device=device,
            free_bytes=free,
            explained=f" of {gib(facts.memory_total_bytes)} RAM after a reserve of {gib(reserve)}",
            reserve_bytes=reserve,
        )
    ]


def group_of(slots: Sequence[Slot]) -> Slot:
    """Several GPUs of a node as one device to split a model over; each gives the same."""
    chosen = sorted(slots, key=lambda s: s.gpus[0].index)
    return Slot(
        node=chosen[0].node,
        gpus=tuple(s.gpus[0] for s in chosen),
        device=replace(
            chosen[0].device, total_bytes=min(s.device.total_bytes for s in chosen), count=len(chosen)
        ),
        free_bytes=min(s.free_bytes for s in chosen),
        explained=" on the fullest of them",
    )


def _gpu_slots(
    name: str, node: Node, facts: Facts, gpu: GPU, ours: Sequence[DeployedService]
) -> Iterator[Slot]:
    if gpu.mig:
        for slice_ in gpu.mig_devices:
            part = gpu.model_copy(update={"uuid": slice_.uuid, "name": slice_.name})
            device = Device(
                vendor=gpu.vendor,
                name=slice_.name,
                total_bytes=slice_.memory_total_bytes,
                compute_capability=gpu.compute_capability,
                wsl=facts.wsl,
            )
            yield Slot(
                node=name,
                gpus=(part,),
                device=device,
                free_bytes=min(slice_.memory_free_bytes, slice_.memory_total_bytes),
                explained=" in this MIG slice",
            )
        return
    if gpu.memory_total_bytes is None or gpu.memory_free_bytes is None:
        return
    labels = {p.service for p in gpu.processes if p.service}
    held = sum(p.memory_bytes or 0 for p in gpu.processes if p.service)
    # A service of ours that NVML shows no process for (another pid namespace): what was planned for it, as
    # far as it is in use.
    hidden = sum(
        _planned(s)
        for s in ours
        if s.state in ("running", "starting", "unhealthy")
        and s.name not in labels
        and gpu.uuid in s.labels.get("homelab.gpus", "").split(",")
    )
    held += min(hidden, max(0, (gpu.memory_total_bytes - gpu.memory_free_bytes) - held))
    if node.reserve is not None:
        reserve = int(node.reserve)
    elif gpu.memory_kind == "unified":
        reserve = RAM_RESERVE_BYTES
    else:
        reserve = DISPLAY_RESERVE_BYTES if gpu.display else 0
    strangers = [p for p in gpu.processes if not p.service and p.memory_bytes]
    told = [
        f"`{p.name}` holds {gib(p.memory_bytes or 0)}"
        for p in sorted(strangers, key=lambda p: -(p.memory_bytes or 0))[:3]
    ]
    if reserve:
        told.append(f"{gib(reserve)} reserved for the desktop")
    device = Device(
        vendor=gpu.vendor,
        name=gpu.name,
        total_bytes=gpu.memory_total_bytes,
        memory_kind=gpu.memory_kind,
        compute_capability=gpu.compute_capability,
        wsl=facts.wsl,
    )
    free = min(gpu.memory_free_bytes + held, gpu.memory_total_bytes) - reserve
    yield Slot(
        node=name,
        gpus=(gpu,),
        device=device,
        free_bytes=free,
        explained=f" of {gib(gpu.memory_total_bytes)}" + (f" ({', '.join(told)})" if told else ""),
        reserve_bytes=reserve,
    )


def gib(size: int) -> str:
    return f"{size / GIB:.2f}" if abs(size) < 10 * GIB else f"{size / GIB:.1f}"


def names_of(gpus: Sequence[GPU | str]) -> list[str]:
    """What a slot's devices are called in the books of its node."""
    return [g if isinstance(g, str) else g.uuid for g in gpus] or ["ram"]


def _planned(service: DeployedService) -> int:
    try:
        return int(numbers_of(service.labels).get("bytes", 0))
    except (ValueError, TypeError):
        return 0
