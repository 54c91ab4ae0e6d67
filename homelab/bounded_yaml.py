"""YAML of which a few bytes make neither a crash nor gigabytes: what a document may unfold to is bounded, and
a value that YAML itself fails on is an error with its line. Pure."""

from __future__ import annotations

import math
from typing import Any, cast

import yaml

MAX_DEPTH = 30
MAX_ENTRIES = 20_000  # a household of hundreds of models has a few thousand
MAX_DIGITS = 40
KINDS = {"int": "number", "timestamp": "date"}


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader (6.0.3), which by itself ends in ValueError, KeyError, IndexError, RecursionError
    or without memory."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        # By id of a node that is composed: how many entries it stands for, and how deep.
        self._extents: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if self._depth >= MAX_DEPTH:
            raise _error(f"more than {MAX_DEPTH} levels deep", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._extents:
                raise _error(f"`*{event.anchor}` is inside what it stands for", event)
            return node
        extents = [self._extents[id(child)] for child in _children(node)]
        entries, levels = 1 + sum(e for e, _ in extents), 1 + max((lev for _, lev in extents), default=0)
        if entries > MAX_ENTRIES:
            raise _error(f"stands for more than {MAX_ENTRIES} entries", event)
        if levels > MAX_DEPTH:
            raise _error(f"more than {MAX_DEPTH} levels deep", event)
        self._extents[id(node)] = entries, levels
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > math.log2(10) * MAX_DIGITS:
                raise OverflowError
            if isinstance(value, str):
                value.encode()
        except UnicodeEncodeError:
            raise _error("has half of a character (`\\ud800` to `\\udfff`)", node) from None
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):
            kind = node.tag.rpartition(":")[2]
            raise _error(f"`{str(node.value)[:40]}` is no {KINDS.get(kind, kind)}", node) from None
        return value


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _error(problem: str, at: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, cast("yaml.Mark", at.start_mark))
