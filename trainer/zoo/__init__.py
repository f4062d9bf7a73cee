"""Hand-made models as files: templates of architectures that fit any dataset, open where a model has settings to tune.

A file holds `description`, `tasks`, `needs` (what the dataset must have) and `architecture`, which differs from a plain
description in its views only. A view there lists `fields` (all, categorical, numeric, or names) and one `encoder` for
each kind of field; an `optional` view that finds no field vanishes, and so does what stood on it alone. Names in braces
stand for fields of the dataset: {user}, {item}, {sequence} (the first one), {target} (whose history the sequence is).
A model that predicts the next item as well has a second architecture for that, `next_item`: what meets the item's own
vector elsewhere meets those of all items there. It reads nothing but the sequence, for other fields of a row may
describe the very item that was chosen. Settings to tune are choices with `?` (see `trainer.space`); the defaults are
sound without any tuning.
"""

import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from trainer import space
from trainer.architecture import fields_of
from trainer.errors import UserError
from trainer.schema import DatasetSchema, Field, Task

Data = dict[str, Any]

_FOLDER = Path(__file__).parent


def names(task: Task | None = None) -> tuple[str, ...]:
    """All models of the zoo; with a task those that predict it."""
    found = sorted(file.stem for file in _FOLDER.glob("*.yaml"))
    return tuple(name for name in found if task is None or task in tasks(name))


def description(name: str) -> str:
    """One line about the model, with its source."""
    text: str = _load(name)["description"]
    return text


def needs(name: str) -> tuple[str, ...]:
    """What a dataset must have for the model: `user_item`, `categorical`, `sequence`."""
    return tuple(_load(name)["needs"])


def tasks(name: str) -> tuple[Task, ...]:
    """What the model can predict."""
    return tuple(_load(name)["tasks"])


def parts(name: str, task: Task) -> frozenset[str]:
    """The ops, the kinds of encoders, and the choices' names that the model's file holds for the task."""
    return frozenset(_kinds(_architecture(name, task))) | set(choices(name, task))


def choices(name: str, task: Task) -> tuple[str, ...]:
    """The names of the choices that the model's file leaves open for the task."""
    return tuple(space.choices(_architecture(name, task)))


def _architecture(name: str, task: Task) -> Data:
    model = _load(name)
    architecture: Data = model["next_item" if task == "next_item" else "architecture"]
    return architecture


def _kinds(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        yield from (data[key] for key in ("op", "kind") if isinstance(data.get(key), str))
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            yield from _kinds(item)


def template(name: str, schema: DatasetSchema) -> Data:
    """The model for this dataset: an architecture as plain data, every encoder explicit, choices (`?`) kept.

    Raises UserError if there is no such model, or if the dataset has not what it needs.
    """
    if schema.task not in tasks(name):
        raise UserError(f"zoo: {name} does not do task '{schema.task}'; it does {', '.join(tasks(name))}")
    for need in needs(name):
        _check_need(name, need, schema)
    architecture = _named(_architecture(name, schema.task), _roles(schema))
    views = {view: _view(name, view, spec, schema) for view, spec in architecture["views"].items()}
    views = {view: spec for view, spec in views.items() if spec["encoders"]}
    nodes, head = _connected(architecture["nodes"], architecture["head"], set(architecture["views"]) - set(views))
    return {
        "version": 1,
        "task": schema.task,
        "fields": fields_of(schema),
        "views": views,
        "nodes": nodes,
        "head": head,
    }


@cache
def _load(name: str) -> Data:
    file = _FOLDER / f"{name}.yaml"
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names())}"
        raise UserError(f"zoo: no model '{name}'; {advice}")
    data: Data = yaml.safe_load(file.read_text(encoding="utf-8"))
    return data


def _check_need(name: str, need: str, schema: DatasetSchema) -> None:
    if need == "user_item":
        if len(schema.names("categorical")) < 2:
            raise UserError(f"zoo: {name} needs two categorical fields, a user and an item; the dataset has fewer")
    elif need == "sequence":
        if not any(field.kind == "sequence" for field in schema.fields):
            raise UserError(f"zoo: {name} needs a sequence field; give the dataset a history, or leave {name} out")
    elif not any(field.kind == need for field in schema.fields):
        raise UserError(f"zoo: {name} needs a {need} field; the dataset has none")


def _roles(schema: DatasetSchema) -> dict[str, str]:
    """Field names for the braces of a template, as far as the dataset has such fields."""
    categorical, sequences = schema.names("categorical"), schema.names("sequence")
    target = schema.field(sequences[0]).of or "" if sequences else ""
    roles: dict[str, str] = {}
    if len(categorical) >= 2:
        user = schema.group if schema.group in categorical else next(name for name in categorical if name != target)
        roles = {"user": user, "item": next(name for name in categorical if name != user)}
    return roles | ({"sequence": sequences[0], "target": target} if sequences else {})


def _named(data: Any, roles: Mapping[str, str]) -> Any:
    """`data` with every name in braces replaced, in keys as well."""
    if isinstance(data, dict):
        return {_named(key, roles): _named(value, roles) for key, value in data.items()}
    if isinstance(data, list):
        return [_named(value, roles) for value in data]
    if isinstance(data, str):
        for role, field in roles.items():
            data = data.replace(f"{{{role}}}", field)
    return data


def _view(name: str, view: str, spec: Data, schema: DatasetSchema) -> Data:
    fields = [field for field in schema.fields if _chosen(spec["fields"], field)]
    if not fields and not spec.get("optional"):
        raise UserError(f"zoo: {name}: the dataset has no field for its view '{view}' ({spec['fields']})")
    return {"encoders": {field.name: spec["encoder"][field.kind] for field in fields}}


def _chosen(chosen: str | list[str], field: Field) -> bool:
    if isinstance(chosen, list):
        return field.name in chosen
    return field.kind == chosen or (chosen == "all" and field.kind != "sequence")


def _connected(nodes: list[Any], head: Data, gone: set[str]) -> tuple[list[Any], Data]:
    """Nodes and head without references to views that found no field, and without nodes left with no input."""
    kept = []
    for node in nodes:
        if "in" in node:
            inputs = [ref for ref in node["in"] if ref not in gone]
            if not inputs:
                gone = gone | {node["id"]}
                continue
            node = {**node, "in": inputs}
        kept.append(node)
    return kept, {**head, "in": [ref for ref in head["in"] if not isinstance(ref, str) or ref not in gone]}
