"""Modules found by looking into a folder: a new engine or client is one new file, named nowhere else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TypeVar, cast

T = TypeVar("T")


class Plugins(Mapping[str, T]):
    """The modules of a package that satisfy a Protocol, by name, which is their file's; each is imported
    when it is first asked for."""

    def __init__(self, package: ModuleType, protocol: type[T]) -> None:
        self._package, self._protocol = package.__name__, protocol
        self._names = tuple(info.name for info in pkgutil.iter_modules(package.__path__))
        self._modules: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> T:
        if name in self._modules:
            return self._modules[name]
        if name not in self:
            raise KeyError(name)
        module = importlib.import_module(f"{self._package}.{name}")
        if not isinstance(module, self._protocol) or getattr(module, "NAME", name) != name:
            raise TypeError(
                f"{module.__file__} is no {self._protocol.__name__}: see the Protocol in {self._package}"
            )
        return self._modules.setdefault(name, cast(T, module))
