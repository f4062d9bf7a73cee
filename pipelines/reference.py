"""The reference page docs/pipeline.md, written from the pipeline model itself."""

import json
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipelines.messages import KeyPath, dotted
from pipelines.spec import SearchPipeline

Schema = dict[str, Any]

_TABLE = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
_HEAD = """# The pipeline file

Every key of a `SearchPipeline`, with its default. This page is written by `dalil schema --markdown` from the model that
checks the file, and a test keeps it up to date. `dalil render FILE` prints a file with all its defaults filled in.
"""


def reference_page() -> str:
    """The page as Markdown: one table per section of the file, from the top down."""
    return _HEAD + "".join(_sections(SearchPipeline, ()))


def _sections(model: type[BaseModel], path: KeyPath) -> Iterator[str]:
    heading = f"`{dotted(path)}`" if path else "top level"
    yield f"\n## {heading}\n\n{_unwrapped(model.__doc__)}\n\n{_TABLE}"
    properties = model.model_json_schema()["properties"]
    inner: list[tuple[type[BaseModel], KeyPath]] = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        nested = _nested(field)
        if nested:
            inner.append((nested[0], (*path, key + nested[1])))
        kind = _kind(properties[key]) if not nested else _nested_kind(nested, (*path, key + nested[1]))
        yield f"| `{key}` | {kind} | {_default(field)} | {_cell(field.description or '')} |\n"
    for nested_model, nested_path in inner:
        yield from _sections(nested_model, nested_path)


def _unwrapped(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _nested(field: FieldInfo) -> tuple[type[BaseModel], str] | None:
    """The model below a key, and how the key goes on: `` (one), `[]` (a list), `.NAME` (a mapping by name)."""
    return _model_in(field.annotation)


def _model_in(annotation: Any, suffix: str = "") -> tuple[type[BaseModel], str] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, suffix
    kinds: dict[Any, str] = {list: "[]", dict: ".NAME"}
    kind = kinds.get(get_origin(annotation), "")
    return next((found for item in get_args(annotation) if (found := _model_in(item, suffix + kind))), None)


def _nested_kind(nested: tuple[type[BaseModel], str], path: KeyPath) -> str:
    anchor = "".join(letter for letter in dotted(path).lower() if letter.isalnum())
    words = {"": "section", "[]": "list", ".NAME": "mapping by name"}[nested[1]]
    return f"[{words}](#{anchor})"


def _kind(node: Schema) -> str:
    """A JSON schema in words."""
    options = [option for option in node.get("anyOf", [node]) if option.get("type") != "null"]
    return " or ".join(_one_kind(option) for option in options)


def _one_kind(node: Schema) -> str:
    if "enum" in node or "const" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    if node.get("type") == "array":
        inner = _kind(node["items"])
        return f"list of {inner}" if "`" not in inner else f"list out of {inner}"
    if node["type"] == "object":
        values = node.get("additionalProperties")
        return f"mapping of {_kind(values)}" if isinstance(values, dict) else "mapping"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return words[node["type"]] + _limits(node)


def _limits(node: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {node[key]:g}" for key, sign in signs.items() if key in node]
    return f" ({', '.join(limits)})" if limits else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    if isinstance(field.default, BaseModel) or field.default is PydanticUndefined:
        return "–"
    return "not set" if field.default is None else f"`{_cell(json.dumps(field.default))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
