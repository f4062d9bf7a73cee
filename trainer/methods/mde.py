"""MDE, mixed dimension embeddings: widths fall with the cardinality by a power law (Ginart et al., ISIT 2021).

The field-level rule of the authors' code, for one query per field and row: the smallest table is `base` wide, one of n
rows base * (n_min / n)^temperature, rounded and at least 1. Nothing is learned; the temperature is searched.
"""

from typing import Any

from trainer.methods.base import Data, backbone, with_dims
from trainer.methods.settings import MDESettings
from trainer.schema import DatasetSchema
from trainer.space import choice


def space(schema: DatasetSchema, settings: MDESettings) -> Data:
    sizes = {name: schema.field(name).cardinality for name in schema.names("categorical")}
    rules = {temperature: mixed_dims(sizes, settings.base, temperature) for temperature in settings.temperature}

    def dim(name: str) -> Any:
        options = [rule[name] for rule in rules.values()]
        return choice("mde.temperature", options, labels=list(rules)) if len(options) > 1 else options[0]

    align = choice("mde.align", settings.align)
    return with_dims("mde", backbone(schema, settings), {name: dim(name) for name in sizes}, settings.base, align)


def mixed_dims(sizes: dict[str, int], base: int, temperature: float) -> dict[str, int]:
    """Width of each table from its number of rows."""
    least = min(sizes.values(), default=1)
    return {name: max(1, round(base * (least / rows) ** temperature)) for name, rows in sizes.items()}
