"""A model with the coordinates that one group of rows keeps."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.architecture import MLP, Architecture, Concat, Cross, TableEncoder, ValueHead
from trainer.methods.base import without
from trainer.methods.ihas.groups import Groups


@dataclass(frozen=True)
class Target:
    """What groups are trained as, and of each of its views the one that was gated."""

    architecture: Architecture
    views: Mapping[str, str]


def sized(target: Target, groups: Groups, group: int) -> Architecture:
    """The target, its tables as wide as the group keeps coordinates, and without fields that keep none.

    Where fields meet coordinate by coordinate, coordinates stay in their places; where they only stand side by side,
    they move together.
    """
    architecture, data = target.architecture, target.architecture.to_dict()
    dropped: list[str] = []
    for name, gated in target.views.items():
        view = architecture.views[name]
        tables = {field: one.dim for field, one in view.encoders.items() if isinstance(one, TableEncoder)}
        kept = {field: groups.kept((gated, field), group) for field in tables}
        for field in _needed(architecture, name, kept):
            kept[field] = [int(groups.open[gated, field][group].argmax())]
        if all(len(kept[field]) == width for field, width in tables.items()):
            continue
        placed = not _side_by_side(architecture, name)
        for field, width in tables.items():
            places = kept[field] if placed and 0 < len(kept[field]) < width else None
            data["views"][name]["encoders"][field] |= {"dim": len(kept[field]), "places": places}
            dropped += [] if kept[field] else [f"{name}.{field}"]
        if placed:
            data["views"][name] |= {"align": "pad", "width": max(tables.values())}
    return without(data, dropped)


def _needed(architecture: Architecture, name: str, kept: Mapping[str, list[int]]) -> list[str]:
    """Fields that keep no coordinate, but that the model cannot do without: they have to keep their best one.

    Ops on fields need two of them, and a field that a node reads by its name cannot go.
    """
    empty = [field for field, places in kept.items() if not places]
    refs = {ref for node in architecture.nodes for ref in node.inputs}
    view = architecture.views[name]
    left = len(view.encoders) - len(empty)
    named = [field for field in empty if f"{name}.{field}" in refs]
    others = [field for field in empty if field not in named]
    return named + others[: max(2 - left - len(named), 0)]


def _side_by_side(architecture: Architecture, name: str) -> bool:
    """Whether all that reads a view only takes its fields' numbers side by side."""
    refs = {name, *(f"{name}.{field}" for field in architecture.views[name].encoders)}
    flat = all(isinstance(node, MLP | Concat | Cross) for node in architecture.nodes if refs & set(node.inputs))
    head = architecture.head
    assert isinstance(head, ValueHead)
    return flat and (head.mode == "linear" or not refs & set(head.inputs))
