"""YAML text to plain data that knows where each value stands, so that every complaint has a line and column.

Values follow the core schema of YAML 1.2: `1e-3` is a number, `yes` and dates are strings. Nothing but
mappings, lists, strings, numbers, booleans and null is ever made, whatever the file asks for.
"""

from __future__ import annotations

import copy
import math
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode

MAX_VALUES = 100_000  # with every alias written out
MAX_DEPTH = 50

_TAG = "tag:yaml.org,2002:"
_CORE = {  # https://yaml.org/spec/1.2.2/#1032-tag-resolution, less octal and hexadecimal numbers
    "null": (r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"[-+]?[0-9]+$", list("-+0123456789")),
    "float": (
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
}


class FileProblem(NamedTuple):
    """What is wrong, and where; lines and columns count from 1."""

    line: int
    column: int
    message: str


class FileErrors(ValueError):
    """A file that is refused, with everything that is wrong with it."""

    def __init__(self, path: Path, problems: Iterable[FileProblem]) -> None:
        self.path = path
        self.problems = sorted(set(problems))
        super().__init__(path, self.problems)

    def __str__(self) -> str:
        lines = [(p.line, p.column, " ".join(p.message.split())) for p in self.problems]
        return "\n".join(f"{self.path}:{line}:{column}: {message}" for line, column, message in lines)


@dataclass(frozen=True)
class Document:
    """Plain data, what is wrong with how it is written, and where each part of it stands."""

    data: dict[str, Any]
    problems: list[FileProblem]
    root: MappingNode = field(repr=False)

    def position(self, path: Sequence[str | int], *, of_key: bool = False) -> tuple[int, int]:
        """Line and column of a value, or of its key; of the nearest part around it where there is none."""
        here, place = self.root, (1, 1)
        for depth, step in enumerate(path, 1):
            children = _children(here)
            if step not in children:
                break
            key, here = children[step]
            place = _line_and_column(key if of_key and depth == len(path) else here)
        return place


class _Refused(yaml.MarkedYAMLError):
    """There is nothing to go on with."""

    def __init__(self, message: str, mark: yaml.Mark | None = None) -> None:
        super().__init__(problem=message, problem_mark=mark)


def read(path: Path) -> Document:
    """The file's data.

    Raises:
        FileErrors: the file cannot be read, is no YAML, or asks for more than plain data.
    """
    document = parse(path)
    if document.problems:
        raise FileErrors(path, document.problems)
    return document


def parse(path: Path) -> Document:
    """Like `read`, but what can be read around (a repeated key, a tag) is left in the document's problems.

    Raises:
        FileErrors: there is no data to speak of.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start].decode("utf-8"), error.object[error.start]
        raise FileErrors(path, [_after(before, f"the byte 0x{byte:02x} is not UTF-8 text")]) from None
    except (OSError, ValueError) as error:
        reasons = {FileNotFoundError: "no such file", IsADirectoryError: "this is a folder, not a file"}
        why = reasons.get(type(error)) or f"the file cannot be read: {getattr(error, 'strerror', error)}"
        raise FileErrors(path, [FileProblem(1, 1, why)]) from None
    try:
        return _Loader(text).document()
    except yaml.reader.ReaderError as error:
        message = f"a character that YAML does not allow: {text[error.position]!r}"
        raise FileErrors(path, [_after(text[: error.position], message)]) from None
    except yaml.MarkedYAMLError as error:
        raise FileErrors(path, [_syntax(error)]) from None


def to_text(data: Any) -> str:
    """YAML that this module, and a reader of YAML 1.1, reads as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def _after(text: str, message: str) -> FileProblem:
    return FileProblem(text.count("\n") + 1, len(text) - text.rfind("\n"), message)


def _line_and_column(marked: Any) -> tuple[int, int]:
    return marked.start_mark.line + 1, marked.start_mark.column + 1


def _syntax(error: yaml.MarkedYAMLError) -> FileProblem:
    mark, message = error.problem_mark, str(error.problem)
    if error.context and error.context_mark:
        message = f"{message} ({error.context} that begins in line {error.context_mark.line + 1})"
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    return FileProblem(line, column, message if isinstance(error, _Refused) else f"not YAML: {message}")


def _children(node: Node) -> dict[str | int, tuple[Node, Node]]:
    """Key and value nodes; a scalar has none, and the first of repeated keys counts."""
    if isinstance(node, ScalarNode):
        return {}
    if isinstance(node, MappingNode):
        return {key.value: (key, value) for key, value in reversed(node.value) if isinstance(key, ScalarNode)}
    return {i: (item, item) for i, item in enumerate(node.value)}


class _Loader(yaml.SafeLoader):
    """Nodes, and from them plain values; nothing is constructed by its tag."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.problems: list[FileProblem] = []
        self.values = 0
        self.around: list[int] = []  # the collections that the present value is inside of

    def document(self) -> Document:
        try:
            root = self.get_node() if self.check_node() else None
            if self.check_node():
                raise _Refused("a second document begins here", self.peek_event().start_mark)
        except RecursionError:
            raise _Refused(f"values are nested more than {MAX_DEPTH} deep", self.get_mark()) from None
        except (ValueError, OverflowError) as error:  # an escape such as "\UFFFFFFFF"
            raise _Refused(str(error), self.get_mark()) from None
        if root is None:
            raise _Refused("the file is empty")
        data = self.plain(root)
        if not isinstance(root, MappingNode):
            raise _Refused("the top level must be a mapping of keys to values", root.start_mark)
        return Document(data, self.problems, root)

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()
        if getattr(event, "tag", None) is not None:
            self.refuse(event, f"tags such as {event.tag.replace(_TAG, '!!')} are not allowed")
            event.tag, event.implicit = None, (True, False)
        node = super().compose_node(parent, index)
        if isinstance(event, AliasEvent):  # a value stands where its alias does
            node = copy.copy(node)
            setattr(node, "start_mark", event.start_mark)  # noqa: B010 (the stubs call it a property of None)
        return node

    def refuse(self, marked: Any, message: str) -> None:
        self.problems.append(FileProblem(*_line_and_column(marked), message))

    def plain(self, node: Node) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise _Refused(f"more than {MAX_VALUES:,} values, with all aliases written out", node.start_mark)
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        if id(node.value) in self.around:
            raise _Refused("this alias contains itself", node.start_mark)
        if len(self.around) == MAX_DEPTH:
            raise _Refused(f"values are nested more than {MAX_DEPTH} deep", node.start_mark)
        self.around.append(id(node.value))
        value = self.mapping(node) if isinstance(node, MappingNode) else [self.plain(item) for item in node.value]
        self.around.pop()
        return value

    def mapping(self, node: MappingNode) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, item in node.value:
            value = self.plain(item)
            name = self.scalar(key) if isinstance(key, ScalarNode) else None
            if not isinstance(name, str):
                self.refuse(key, "a key must be a string; quotes make it one")
            elif name == "<<" and key.style is None:
                self.refuse(key, "merge keys (<<) are not allowed; write the keys out")
            elif name in found:
                self.refuse(key, f"the key {name!r} stands in line {lines[name]} already")
            else:
                found[name], lines[name] = value, _line_and_column(key)[0]
        return found

    def scalar(self, node: ScalarNode) -> str | int | float | bool | None:
        text: str = node.value
        match node.tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return self.number(node, int)
            case "float":
                return self.number(node, float)
        whole = text.encode("utf-8", "replace").decode("utf-8")
        if whole != text:
            self.refuse(node, f"half a character: {text!r}")
        return whole

    def number(self, node: ScalarNode, kind: type[int] | type[float]) -> int | float:
        try:
            value = kind(node.value)
        except ValueError:  # .inf, or more digits than Python converts
            value = math.inf
        if value in (math.inf, -math.inf):
            self.refuse(node, f"{reprlib.repr(node.value)} is not a finite number")
        return value


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 takes for something else than a string."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)
