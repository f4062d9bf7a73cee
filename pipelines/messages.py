"""Validation errors in plain words: which key, what was wrong with it, and what to write instead."""

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainer.errors import UserError

Key = str | int
KeyPath = tuple[Key, ...]


class SpecError(UserError):
    """A pipeline file or a `--set` that is not valid. `str(error)` has one line per mistake, each with its place."""


@dataclass(frozen=True)
class Problem:
    """A mistake at a key of the file."""

    path: KeyPath
    message: str

    def __str__(self) -> str:
        where = dotted(self.path)
        return f"{where}: {self.message}" if where else self.message


def dotted(path: KeyPath) -> str:
    """`("spec", "train", "baselines", 0)` as `spec.train.baselines[0]`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


def suggest(word: str, valid: Collection[str]) -> str:
    """`did you mean ...?` if one of the valid words is near, otherwise the whole list."""
    if near := _near(word, valid):
        return f"did you mean '{near[0]}'?"
    return f"valid here: {', '.join(valid)}" if valid else "nothing is valid here"


def explain(root: type[BaseModel], data: Any, error: ValidationError) -> list[Problem]:
    """pydantic's errors as problems; a required key that was only misspelt is not called missing as well."""
    problems = [_explain_one(root, data, detail) for detail in error.errors()]
    misspelt = {
        (*problem.path[:-1], near[0])
        for problem in problems
        if problem.message.startswith(_UNKNOWN)
        if (near := _near(str(problem.path[-1]), _keys(_annotation(root, problem.path[:-1]))))
    }
    return [problem for problem in problems if problem.message != _MISSING or problem.path not in misspelt]


NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
MEMORY_PATTERN = r"^[0-9]+(Mi|Gi)$"
PATTERNS = {
    NAME_PATTERN: "lower-case letters, digits and '-' only, such as movielens-1m",
    MEMORY_PATTERN: "write a whole number of Mi or Gi, such as 4Gi",
}

_UNKNOWN = "unknown key"
_MISSING = "is missing"


def _explain_one(root: type[BaseModel], data: Any, detail: ErrorDetails) -> Problem:
    path = _path_in(data, detail)
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden":
        return Problem(path, f"{_UNKNOWN}; {_nearest_key(root, path)}")
    if kind == "missing":
        return Problem(path, _MISSING)
    if kind == "literal_error":
        return Problem(path, _not_one_of(value, _annotation(root, path)))
    if kind in _WANTED:
        return Problem(path, f"must be {_WANTED[kind]}, not {_shown(value)}")
    if kind in _LIMITS:
        sign, limit = _LIMITS[kind]
        return Problem(path, f"must be {sign} {context[limit]:g}, not {_shown(value)}")
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return Problem(path, f"must have {bound} items, not {context['actual_length']}")
    if kind == "string_pattern_mismatch":
        return Problem(path, f"{_shown(value)} does not fit: {PATTERNS[context['pattern']]}")
    if kind == "string_too_short":
        return Problem(path, "must not be empty")
    if kind == "string_too_long":
        return Problem(path, f"longer than {context['max_length']} characters")
    return Problem(path, detail["msg"].removeprefix("Value error, "))


_MAPPING = "a mapping (indented 'key: value' lines)"
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list such as [a, b]",
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
}
_LIMITS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _near(word: str, valid: Collection[str]) -> list[str]:
    """The nearest valid word, if one is near."""
    return difflib.get_close_matches(word.lower(), valid, n=1, cutoff=0.6)


def _path_in(data: Any, detail: ErrorDetails) -> KeyPath:
    """The error's location without pydantic's own marks (names of union branches); a missing key stays as last part."""
    path: list[Key] = []
    *way, last = detail["loc"]
    for key in way:
        try:
            data = data[key]
        except (LookupError, TypeError):
            continue
        path.append(key)
    is_ours = detail["type"] == "missing" or (isinstance(data, dict) and last in data) or isinstance(last, int)
    return (*path, last) if is_ours else tuple(path)


def _nearest_key(root: type[BaseModel], path: KeyPath) -> str:
    key, here = str(path[-1]), _keys(_annotation(root, path[:-1]))
    if not _near(key, here):
        places = [place for place, keys in _all_keys(root) if key in keys]
        if places:
            return f"'{key}' belongs in {dotted(min(places, key=len))}"
    return suggest(key, here)


def _not_one_of(value: Any, annotation: Any) -> str:
    options = [str(option) for option in _literals(annotation)]
    near = _near(str(value), options)
    return f"{_shown(value)} is not one of {', '.join(options)}" + (f"; did you mean '{near[0]}'?" if near else "")


def _literals(annotation: Any) -> Iterator[Any]:
    """Values of the Literal in an annotation such as `Literal[...]` or `Literal[...] | None`."""
    for item in get_args(annotation):
        if isinstance(item, str | int):
            yield item
        else:
            yield from _literals(item)


def _annotation(root: type[BaseModel], path: KeyPath) -> Any:
    """The type that the model gives to the value at `path`."""
    annotation: Any = root
    for key in path:
        keys = _keys(annotation)
        # Values of dict[str, X] and items of list[X]: the last argument is X.
        annotation = keys[str(key)] if str(key) in keys else get_args(annotation)[-1]
    return annotation


def _keys(annotation: Any) -> dict[str, Any]:
    """Keys of the model in `Model` or `Model | None`, as written in files, with their types; {} without a model."""
    models = [item for item in (annotation, *get_args(annotation)) if isinstance(item, type)]
    model = next((item for item in models if issubclass(item, BaseModel)), None)
    if model is None or get_origin(annotation) in (list, dict):
        return {}
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _all_keys(annotation: Any, place: KeyPath = ()) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Every mapping of fixed keys, from the top down."""
    if keys := _keys(annotation):
        yield place, keys
        for key, inner in keys.items():
            yield from _all_keys(inner, (*place, key))
