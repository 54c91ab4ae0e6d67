"""Values put into the text of a JSON, YAML or TOML file that somebody else keeps: all else in it stays as it
is, comments and order too. Pure.

Only what changes is cut out and written anew. The outcome is then read again: where it is not the old
document with the values in it, nothing is given back."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

Format = Literal["json", "jsonc", "toml", "yaml"]
Edit = tuple[int, int, str]  # this span of the text becomes that


class Unmergeable(Exception):
    """Why a text is left as it is; `line` is where it is broken, if it is."""

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.what, self.line = what, line


def merged(text: str, format: Format, values: Mapping[str, Any], named: str = "name") -> str:
    """The text with the values in it: mappings are joined key by key, lists of mappings entry by entry, which
    are told apart by the key `named`; anything else is replaced.

    Raises Unmergeable where the text is not of this format, or has a form that cannot be kept."""
    before = parsed(text, format)
    wanted = joined(before, values, named)
    if _same(before, wanted):
        return text
    after = text if text.strip() else ""
    if not after:
        return written(wanted, format)
    try:
        after = _EDITORS[format](text, values, named)
        read = parsed(after, format)
    except Unmergeable as e:
        raise Unmergeable(f"it has a form that cannot be kept ({e.what})") from e
    if not _same(read, wanted, in_order=format != "toml"):  # its tables lie where they lay
        raise Unmergeable("it has a form that cannot be kept")
    return after


def parsed(text: str, format: Format) -> dict[str, Any]:
    """What a text of this format says; nothing for an empty one.

    Raises Unmergeable."""
    try:
        if not text.strip():
            document: Any = {}
        elif format == "json":
            document = json.loads(text)
        elif format == "jsonc":
            document = _Jsonc(text).document().value
        elif format == "toml":
            document = tomllib.loads(text)
        else:
            document = yaml.safe_load(text)
    except json.JSONDecodeError as e:
        raise Unmergeable(e.msg, e.lineno) from e
    except tomllib.TOMLDecodeError as e:
        at = re.search(r"at line (\d+)", str(e))
        raise Unmergeable(str(e), int(at[1]) if at else len(text.splitlines())) from e
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        raise Unmergeable(str(getattr(e, "problem", None) or e), mark.line + 1 if mark else None) from e
    except RecursionError as e:
        raise Unmergeable("it is nested too deep") from e
    if document is None:  # comments and nothing else
        return {}
    if not isinstance(document, dict):
        raise Unmergeable("it holds no mapping of keys to values", 1)
    return document


def written(values: Mapping[str, Any], format: Format) -> str:
    """A new file with these values."""
    if format in ("json", "jsonc"):
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    if format == "yaml":
        return _yaml(values)
    parts = []
    for path, scalars in _tables(values):
        lines = [f"{_toml_key(k)} = {_toml(v)}" for k, v in scalars.items()]
        if path and lines:
            lines.insert(0, f"[{'.'.join(map(_toml_key, path))}]")
        if lines:
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def joined(before: Any, values: Any, named: str) -> Any:
    """The document with the values in it."""
    if isinstance(before, Mapping) and isinstance(values, Mapping):
        return {
            **before,
            **{k: joined(before[k], v, named) if k in before else v for k, v in values.items()},
        }
    if _entries(before) and _entries(values) and values:
        out = list(before)
        for value in values:
            at = _position(out, value, named)
            if at is None:
                out.append(value)
            else:
                out[at] = joined(out[at], value, named)
        return out
    return values


def _entries(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(v, Mapping) for v in value)
    )


def _position(entries: Sequence[Mapping[str, Any]], value: Mapping[str, Any], named: str) -> int | None:
    return next((i for i, e in enumerate(entries) if e.get(named) == value.get(named)), None)


def _same(one: Any, other: Any, *, in_order: bool = True) -> bool:
    """Equal, and in the same order; 1 is not true."""
    one, other = (json.dumps(x, default=repr, sort_keys=not in_order) for x in (one, other))
    return bool(one == other)


@dataclass(slots=True)
class _Node:
    """A value with its place in the text. `members` and `items` for what holds others."""

    start: int
    end: int
    value: Any
    members: dict[str, _Node] | None = None
    items: list[_Node] | None = None
    first: int | None = None  # where the first member's key, or the first item, begins
    last: int | None = None  # where the last one ends


class _Jsonc:
    """Reads JSON with comments and commas at the end, as editors take it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.decoder = json.JSONDecoder()

    def document(self) -> _Node:
        node = self.node(self.space(0))
        at = self.space(node.end)
        if at < len(self.text):
            raise json.JSONDecodeError("Extra data", self.text, at)
        return node

    def space(self, at: int) -> int:
        found = re.compile(r"(?:\s|//[^\n]*|/\*.*?\*/)*", re.DOTALL).match(self.text, at)
        return found.end() if found else at

    def node(self, at: int) -> _Node:
        opening = self.text[at : at + 1]
        if opening not in ("{", "["):
            value, end = self.scalar(at)
            return _Node(at, end, value)
        made = _Node(at, at, None)
        members: dict[str, _Node] = {}
        items: list[_Node] = []
        closing = "}" if opening == "{" else "]"
        at = self.space(at + 1)
        while self.text[at : at + 1] != closing:
            made.first = at if made.first is None else made.first
            if opening == "{":
                key, end = self.scalar(at)
                if not isinstance(key, str):
                    raise json.JSONDecodeError(
                        "Expecting property name enclosed in double quotes", self.text, at
                    )
                at = self.space(end)
                if self.text[at : at + 1] != ":":
                    raise json.JSONDecodeError("Expecting ':' delimiter", self.text, at)
                child = self.node(self.space(at + 1))
                members[key] = child
            else:
                child = self.node(at)
                items.append(child)
            made.last = child.end
            at = self.space(child.end)
            if self.text[at : at + 1] == ",":
                at = self.space(at + 1)
            elif self.text[at : at + 1] != closing:
                raise json.JSONDecodeError("Expecting ',' delimiter", self.text, at)
        made.end = at + 1
        if opening == "{":
            made.members, made.value = members, {k: n.value for k, n in members.items()}
        else:
            made.items, made.value = items, [n.value for n in items]
        return made

    def scalar(self, at: int) -> tuple[Any, int]:
        if self.text[at : at + 1] in ("{", "[", ""):
            raise json.JSONDecodeError("Expecting value", self.text, at)
        try:
            return self.decoder.raw_decode(self.text, at)
        except StopIteration as e:
            raise json.JSONDecodeError("Expecting value", self.text, at) from e


def _merge_json(text: str, values: Mapping[str, Any], named: str) -> str:
    return _applied(text, _json_edits(text, _Jsonc(text).document(), values, named))


def _json_edits(text: str, node: _Node, value: Any, named: str) -> Iterator[Edit]:
    if node.members is not None and isinstance(value, Mapping):
        new = []
        for key, one in value.items():
            if key in node.members:
                yield from _json_edits(text, node.members[key], one, named)
            else:
                new.append((f"{json.dumps(key, ensure_ascii=False)}: ", one))
        yield from _json_added(text, node, new)
    elif node.items is not None and _entries(node.value) and _entries(value) and value:
        new = []
        for one in value:
            at = _position(node.value, one, named)
            if at is None:
                new.append(("", one))
            else:
                yield from _json_edits(text, node.items[at], one, named)
        yield from _json_added(text, node, new)
    elif not _same(node.value, value):
        yield node.start, node.end, _json(value, _indentation(text, node.start))


def _json_added(text: str, node: _Node, new: Sequence[tuple[str, Any]]) -> Iterator[Edit]:
    """New members or items behind those that are there."""
    if not new:
        return
    outer = _indentation(text, node.start)
    if node.first is None or node.last is None:
        inner = outer + "  "
        made = ",".join(f"\n{inner}{key}{_json(value, inner)}" for key, value in new)
        empty = not text[node.start + 1 : node.end - 1].strip()
        at = node.end - 1 if empty else node.start + 1
        start = node.start + 1
        yield start, at, f"{made}\n{outer}" if empty else made
        return
    own_line = "\n" in text[node.start : node.first]
    inner = _indentation(text, node.first) if own_line else outer
    before = f"\n{inner}" if own_line else " "
    yield (
        node.last,
        node.last,
        "".join(
            f",{before}{key}" + (_json(value, inner) if own_line else json.dumps(value, ensure_ascii=False))
            for key, value in new
        ),
    )


def _json(value: Any, indentation: str) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", f"\n{indentation}")


def _indentation(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 :]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _merge_yaml(text: str, values: Mapping[str, Any], named: str) -> str:
    if not text.endswith("\n"):
        text += "\n"
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:  # comments and nothing else
        return text + _yaml(values)
    return _applied(text, _yaml_edits(text, root, values, named))


def _yaml_edits(text: str, node: yaml.Node, value: Any, named: str) -> Iterator[Edit]:
    if isinstance(node, yaml.MappingNode) and isinstance(value, Mapping) and not node.flow_style:
        there = {key.value: child for key, child in node.value}
        column = node.start_mark.column
        new = {key: one for key, one in value.items() if key not in there}
        for key, one in value.items():
            if key in there:
                yield from _yaml_edits(text, there[key], one, named)
        if new:
            yield _after(text, node, column, _yaml(new))
    elif (
        isinstance(node, yaml.SequenceNode)
        and not node.flow_style
        and _entries(before := _value(node))
        and _entries(value)
        and value
    ):
        added = []
        for one in value:
            at = _position(before, one, named)
            if at is None:
                added.append(one)
            else:
                yield from _yaml_edits(text, node.value[at], one, named)
        if added:
            yield _after(text, node, node.start_mark.column, _yaml(added))
    else:
        before = _value(node)
        wanted = joined(before, value, named)
        if not _same(before, wanted):
            start, end = node.start_mark.index, _end(node)
            space = " " if text[start - 1 : start] == ":" else ""
            yield start, end, space + _flow(wanted)


def _after(text: str, node: yaml.Node, column: int, block: str) -> Edit:
    """The block below the last line of a node."""
    at = text.find("\n", max(_end(node) - 1, 0)) + 1
    return at, at, "".join(f"{' ' * column}{line}\n" for line in block.splitlines())


def _end(node: yaml.Node) -> int:
    """Where the last of it ends: the end of what is in blocks is where the next thing begins."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return max(_end(child) for _, child in node.value)
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return max(_end(child) for child in node.value)
    return int(node.end_mark.index)


def _value(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=False, allow_unicode=True, width=4096)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False)  # JSON is YAML in flow style
    return yaml.safe_dump(value, allow_unicode=True, width=4096).removesuffix("\n").removesuffix("\n...")


@dataclass(slots=True)
class _Table:
    """The lines of a table: its header is line `header`, -1 for the top of the file; it ends before `end`."""

    path: tuple[str, ...]
    header: int
    end: int
    keys: dict[str, int] = field(default_factory=dict)


def _merge_toml(text: str, values: Mapping[str, Any], named: str) -> str:
    lines = text.splitlines()
    for path, scalars in _tables(values):
        for key, value in scalars.items():
            tables = {t.path: t for t in _toml_tables(lines)}
            table = tables.get(path)
            line = f"{_toml_key(key)} = {_toml(value)}"
            if table is None:
                lines += ["", f"[{'.'.join(map(_toml_key, path))}]", line]
            elif key in table.keys:
                lines[table.keys[key]] = _toml_replaced(lines[table.keys[key]], key, value)
            elif table.keys or table.header >= 0:
                lines.insert(max([table.header, *table.keys.values()]) + 1, line)
            else:
                lines[:0] = [line, ""] if lines and lines[0].strip() else [line]
    return "\n".join(lines) + "\n"


def _toml_tables(lines: Sequence[str]) -> Iterator[_Table]:
    table = _Table((), -1, len(lines))
    for number, line in enumerate(lines):
        if re.match(r"\s*\[", line):
            table.end = number
            yield table
            table = _Table(_toml_path(line), number, len(lines))
        elif match := re.match(r"""\s*(?:([\w-]+)|"([^"\\]+)"|'([^']+)')\s*=""", line):
            table.keys.setdefault(match[1] or match[2] or match[3], number)
    yield table


def _toml_path(line: str) -> tuple[str, ...]:
    """The table that a header names; an array of tables is none that we know."""
    try:
        found: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ("", line)
    path = []
    while isinstance(found, dict) and found:
        [(key, found)] = found.items()
        path.append(key)
    return tuple(path) if isinstance(found, dict) else ("", line)


def _toml_replaced(line: str, key: str, value: Any) -> str:
    """The line with another value; a comment behind it stays.

    Raises Unmergeable where the value goes on in the next line."""
    try:
        said = tomllib.loads(line)
    except tomllib.TOMLDecodeError as e:
        raise Unmergeable(f"`{key}` goes over several lines") from e
    if said.get(key) == value and type(said.get(key)) is type(value):
        return line
    comment = ""
    for found in re.finditer("#", line):
        try:
            if tomllib.loads(line[: found.start()]) == said:
                comment = "  " + line[found.start() :]
                break
        except tomllib.TOMLDecodeError:
            continue
    indentation = line[: len(line) - len(line.lstrip())]
    return f"{indentation}{_toml_key(key)} = {_toml(value)}{comment}"


def _tables(
    values: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The scalars of each table, those at the top first."""
    yield path, {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _tables(value, (*path, key))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key, ensure_ascii=False)


def _toml(value: Any) -> str:
    """Texts, numbers, truth and lists of them are written as in JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _applied(text: str, edits: Iterator[Edit]) -> str:
    # From the back. Of those at one place the inner ones, which came first, stay before the outer ones.
    for _, (start, end, new) in sorted(enumerate(edits), key=lambda e: (e[1][0], e[0]), reverse=True):
        text = text[:start] + new + text[end:]
    return text


_EDITORS: Mapping[Format, Callable[[str, Mapping[str, Any], str], str]] = {
    "json": _merge_json,
    "jsonc": _merge_json,
    "yaml": _merge_yaml,
    "toml": _merge_toml,
}
