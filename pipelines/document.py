"""A YAML file that remembers on which line each of its keys stands."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.messages import Key, KeyPath, Problem, SpecError, dotted

SECTIONS_OUTSIDE_SPEC = ("apiVersion", "kind", "metadata", "spec")


@dataclass(frozen=True)
class Override:
    """A `--set` argument. Keys are relative to `spec`, unless the first is a top-level one such as `metadata`."""

    text: str
    path: KeyPath
    value: Any

    @staticmethod
    def parse(text: str) -> "Override":
        """
        Raises:
            SpecError: no `=`, an empty key, or a value that is not YAML.
        """
        key, equals, value = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise SpecError(f"--set {text}: write KEY=VALUE, such as --set search.trials=20")
        try:
            node = yaml.compose(value, Loader=_Loader)
            data = None if node is None else _Reader(node).data
        except (yaml.YAMLError, _FormatError) as error:
            raise SpecError(f"--set {text}: the value is not YAML ({_reason(error)})") from None
        prefix = () if parts[0] in SECTIONS_OUTSIDE_SPEC else ("spec",)
        keys = tuple(int(part) if part.isdecimal() else part for part in parts)
        return Override(text, prefix + keys, data)


class Document:
    """The data of a pipeline file, and where each key of it was written."""

    def __init__(self, path: Path, data: dict[str, Any], lines: dict[KeyPath, int]) -> None:
        self.path = path
        self.data = data
        self._lines = lines
        self._overrides: list[Override] = []

    @staticmethod
    def read(path: Path) -> "Document":
        """
        Raises:
            SpecError: the file cannot be read, is not YAML, or is not a mapping without duplicate keys.
        """
        try:
            node = yaml.compose(_text(path), Loader=_Loader)
            if not isinstance(node, yaml.MappingNode):
                raise _FormatError("not a pipeline: the file must begin with 'apiVersion: dalil.dev/v1alpha1'", node)
            reader = _Reader(node)
        except (yaml.YAMLError, _FormatError) as error:
            raise SpecError(f"{path}:{_error_line(error)}: {_reason(error)}") from None
        return Document(path, reader.data, reader.lines)

    def apply(self, override: Override) -> None:
        """Put the override's value in place; mappings on the way are made where they are missing.

        Raises:
            SpecError: the way leads through a value that has no keys.
        """
        place: Any = self.data
        *way, last = override.path
        for depth, key in enumerate(way):
            place = _descend(place, key, override, depth)
        _check_place(place, last, override, len(way))
        place[last] = override.value
        self._overrides.append(override)

    def line(self, path: KeyPath) -> int:
        """Line of the key at `path`, or of the nearest key above it."""
        while path not in self._lines and path:
            path = path[:-1]
        return self._lines.get(path, 1)

    def locate(self, problem: Problem) -> str:
        """The problem as one line: `FILE:LINE: key: message`, or `--set KEY=VALUE: key: message`."""
        for override in reversed(self._overrides):
            if problem.path[: len(override.path)] == override.path:
                return f"--set {override.text}: {problem}"
        return f"{self.path}:{self.line(problem.path)}: {problem}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text (byte {error.start}); a pipeline file is plain YAML") from None
    except OSError as error:
        hint = "; `ls pipelines/gallery` shows ready-made files" if isinstance(error, FileNotFoundError) else ""
        raise SpecError(f"{path}: {(error.strerror or str(error)).lower()}{hint}") from None


def _descend(place: Any, key: Key, override: Override, depth: int) -> Any:
    _check_place(place, key, override, depth)
    if isinstance(place, dict) and place.get(key) is None:
        place[key] = {}
    return place[key]


def _check_place(place: Any, key: Key, override: Override, depth: int) -> None:
    where = dotted(override.path[:depth])
    if isinstance(place, dict):
        return
    if not isinstance(place, list):
        raise SpecError(f"--set {override.text}: {where} is {place!r} and has no key {key!r}")
    if not isinstance(key, int) or key >= len(place):
        raise SpecError(f"--set {override.text}: {where} is a list; its items are 0 to {len(place) - 1}")


class _FormatError(Exception):
    """Something that YAML allows and a pipeline file does not."""

    def __init__(self, message: str, node: yaml.Node | None) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1 if node else 1


def _error_line(error: Exception) -> int:
    if isinstance(error, _FormatError):
        return error.line
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return mark.line + 1 if mark else 1


def _reason(error: Exception) -> str:
    if isinstance(error, _FormatError):
        return str(error)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    if "'\\t'" in problem:
        return "a tab; YAML indents with spaces"
    if "expected a single document" in str(getattr(error, "context", "")):
        return "a second document begins here; one file holds one pipeline"
    context = getattr(error, "context", None)
    return f"not YAML: {problem}" + (f" ({context})" if context else "")


class _Loader(yaml.SafeLoader):
    """Numbers as YAML 1.2 and Kubernetes read them (1e-3 is one, 1:30 is not); dates stay text, as in JSON."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] not in ("float", "int", "timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^([-+]?\d+|0x[0-9a-fA-F]+|0o[0-7]+)$"), list("-+0123456789")
)


class _Reader:
    """Plain data out of YAML nodes, with the line of every key and item."""

    def __init__(self, root: yaml.Node) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._loader = _Loader("")
        self._open: list[yaml.Node] = []
        self.data: Any = self._read(root, ())

    def _read(self, node: yaml.Node, path: KeyPath) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node in self._open:
            raise _FormatError(f"{dotted(path)}: an alias that contains itself", node)
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self._read(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        own: dict[str, int] = {}
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _FormatError(f"{dotted(path) or 'top level'}: '<<' is not supported; repeat the keys", key_node)
            key = self._key(key_node, path)
            if key in own:
                message = f"{dotted((*path, key))}: a second time; the first is on line {own[key]}"
                raise _FormatError(message, key_node)
            own[key] = self.lines[(*path, key)] = key_node.start_mark.line + 1
            data[key] = self._read(value_node, (*path, key))
        return data

    def _key(self, node: yaml.Node, path: KeyPath) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise _FormatError(f"{dotted(path)}: a key must be plain text", node)
        if node.tag != "tag:yaml.org,2002:str":
            raise _FormatError(
                f"{dotted((*path, node.value))}: a key must be text; write '{node.value}' in quotes", node
            )
        return str(node.value)

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        if node.tag == "tag:yaml.org,2002:int":
            return _integer(node.value)
        if not node.tag.startswith("tag:yaml.org,2002:"):
            raise _FormatError(f"{dotted(path)}: the tag {node.tag} is not supported", node)
        value = self._loader.construct_object(node, deep=True)
        if isinstance(value, float) and not math.isfinite(value):
            raise _FormatError(f"{dotted(path)}: {node.value} is not a number that JSON knows", node)
        return value


def _integer(text: str) -> int:
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
