"""How an engine in a lab image takes memory of the GPUs that its container was granted.

/run/lab-gpu is the node's: `devices`, which describes its GPUs, and `held/`, one file for each process that
holds memory. A file counts while its writer lives: the writer keeps a POSIX lock on it, across exec too, and
the kernel drops it however the writer dies.
"""

import contextlib
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

MIB = 1 << 20
GIB = 1 << 30
CONTEXT = GIB // 2  # what a CUDA context and its libraries cost
SHARED = "/run/lab-gpu"
GRANTED = "/run/lab-gpu-granted"


class NoRoom(Exception):
    """device: its position among the granted; wanted and free in bytes."""

    def __init__(self, device: int, wanted: int, free: int, total: int) -> None:
        super().__init__(device, wanted, free, total)
        self.device, self.wanted, self.free, self.total = device, wanted, free, total


def granted() -> list[str]:
    try:
        with open(GRANTED) as f:
            return f.read().split()
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with open(f"{SHARED}/lock", "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _lives(path: str) -> bool:
    with open(path) as f:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return bool(struct.unpack("hhqqi4x", fcntl.fcntl(f, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK)


def _taken() -> dict[str, int]:
    taken: dict[str, int] = {}
    for name in os.listdir(f"{SHARED}/held"):
        path = f"{SHARED}/held/{name}"
        if not _lives(path):
            os.unlink(path)
            continue
        with open(path) as f:
            for line in f:
                fields = dict(part.split("=", 1) for part in line.split())
                taken[fields["gpu"]] = taken.get(fields["gpu"], 0) + int(fields["bytes"])
    return taken


def _memory() -> dict[str, tuple[int, int]]:
    """uuid -> (total, free) in bytes, before what is in held/. A GPU without memory of its own has
    `room` instead of a total."""
    found, position = dict[str, tuple[int, int]](), 0
    with open(f"{SHARED}/devices") as f:
        for line in f:
            kind, *fields = [part.strip() for part in line.split(";")]
            if kind not in ("gpu", "mig"):
                continue
            record = dict(field.split("=", 1) for field in fields if "=" in field)
            uuid = record.get("uuid", f"GPU-00000000-0000-0000-0000-{position:012d}")
            position += kind == "gpu"
            total = int(record.get("total", record.get("room", 1 << 20)))
            total -= int(record.get("reserved", 0))  # CUDA does not count what the driver keeps
            found[uuid] = (total * MIB, (total - int(record.get("used", 0))) * MIB)
    return found


def _rooms() -> list[tuple[str, int, int]]:
    memory, taken = _memory(), _taken()
    return [(uuid, memory[uuid][0], max(0, memory[uuid][1] - taken.get(uuid, 0))) for uuid in granted()]


def take(decide: Callable[[list[tuple[int, int]]], list[int]]) -> list[int]:
    """Atomically: decide([(total, free), ...] of the granted GPUs) gives bytes for each, or raises; they are
    then held until this process ends."""
    with _alone():
        rooms = _rooms()
        shares = decide([(total, free) for _, total, free in rooms])
        for device, ((_, total, free), bytes_) in enumerate(zip(rooms, shares, strict=True)):
            if bytes_ > free:
                raise NoRoom(device, bytes_, free, total)
        part = f"{SHARED}/.{socket.gethostname()}-{time.time_ns()}"
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        os.write(
            fd,
            "".join(
                f"gpu={room[0]} bytes={int(b)}\n" for room, b in zip(rooms, shares, strict=True) if b
            ).encode(),
        )
        os.set_inheritable(fd, True)
        os.rename(part, f"{SHARED}/held/{os.path.basename(part)[1:]}")
    return shares
