"""What a service is a run of: an image, a Python environment of ours, or an executable of the node's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """An image, by its exact tag."""

    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonEnvironment:
    """Packages of the lock `templates/native/NAME.lock`. `program` is a file that stands beside the lock,
    or else a command that the packages install; `compiled` where that is no script of Python's."""

    name: str
    program: str
    compiled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Executable:
    """A program that people installed on the node themselves."""

    path: str


Program = Container | PythonEnvironment | Executable


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The forms in which an engine or the gateway can be had: images by flavour, exact tags that were seen on
    their registries; a Python environment of ours, and whether that is built for GPUs; the name of an
    executable that people may have."""

    name: str
    images: Mapping[str, str] = field(default_factory=dict)
    environment: PythonEnvironment | None = None
    on_gpu: bool = False
    executable: str | None = None


def image_of(program: Program) -> str | None:
    """The image's tag, where it is one."""
    return program.image if isinstance(program, Container) else None
