"""AutoRec's space of the pipeline file: HyperInteractions on top of each other over one mapper per kind of field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.architecture import fields_of
from trainer.errors import UserError
from trainer.methods.autorec.blocks import Data, HyperInteraction, Place, Source, view
from trainer.methods.settings import AutoRecSettings
from trainer.schema import DatasetSchema
from trainer.space import choice


def space(schema: DatasetSchema, settings: AutoRecSettings) -> Data:
    """The template of the method `autorec`; each block reads the mappers and all blocks below it."""
    latent = settings.mapper == "latent" or (settings.mapper == "auto" and schema.task == "rating")
    _check_towers(schema, settings, latent)
    mapped = _Mapped(schema, settings, latent)
    return {
        "version": 1,
        "task": schema.task,
        "fields": fields_of(schema),
        "views": mapped.views(),
        "nodes": [
            *mapped.towers(),
            *mapped.pools(),
            _stacked(settings, [block.nodes for block in _blocks(mapped.sources(), settings)]),
        ],
        "head": _head(schema, settings),
    }


@dataclass(frozen=True)
class _Mapped:
    """One mapper for the categorical fields, one for the numeric ones, and one pooled history per sequence field."""

    schema: DatasetSchema
    settings: AutoRecSettings
    latent: bool

    def views(self) -> Data:
        """The views, with a second set of categorical tables where products have tables of their own."""
        settings = self.settings
        dims, usual = (settings.latent_dims, 32) if self.latent else (settings.sparse_dims, 8)
        views = {}
        if self.schema.names("categorical"):
            views["tables"] = self._tables(choice("mapper.dim", dims, default=usual))
        if self.schema.names("numeric"):
            dim = choice("mapper.dense_dim", settings.dense_dims, default=8)
            views["dense"] = view(self.schema.names("numeric"), {"kind": "scale", "dim": dim})
        for number, name in enumerate(self.schema.names("sequence"), start=1):
            views[f"history{number}"] = view([name], {"kind": "share", "view": "tables"})
        if True in settings.first_order:
            views["first"] = self._first_order()
        products = self._tables(choice("mapper.product_dim", dims, default=usual))
        both = {"shared": views, "separate": views | {"products": products}}
        return _tables_choice(settings, both) if "tables" in views else views

    def pools(self) -> list[Data]:
        numbers = range(1, len(self.schema.names("sequence")) + 1)
        return [
            {"id": f"pooled{number}", "op": "pool", "kind": "mean", "in": [f"history{number}"]} for number in numbers
        ]

    def towers(self) -> list[Data]:
        """Each tower's fields added up; once more for products where these have tables of their own."""
        shared = self._tower_nodes("tables", "tower")
        both = {"shared": shared, "separate": shared + self._tower_nodes("products", "product-tower")}
        return [_tables_choice(self.settings, both, splice=True)]

    def _tower_nodes(self, tables: str, prefix: str) -> list[Data]:
        return [
            {
                "id": f"{prefix}-{name}",
                "op": "elementwise",
                "kind": "sum",
                "in": [f"{tables}.{field}" for field in fields],
            }
            for name, fields in self.settings.towers.items()
        ]

    def sources(self) -> list["Source"]:
        """What the first block reads."""
        sources = []
        if self.schema.names("categorical"):
            inside = {field for fields in self.settings.towers.values() for field in fields}
            alone = [name for name in self.schema.names("categorical") if name not in inside]
            towers = self.settings.towers
            sources = [self._source(f"tower-{name}", f"product-tower-{name}") for name in towers]
            refs = [f".{name}" for name in alone] if self.latent else [""]
            sources += [self._source(f"tables{ref}", f"products{ref}") for ref in refs]
        if self.schema.names("numeric"):
            sources.append(Source("dense", fields=True))
        return sources + [Source(node["id"]) for node in self.pools()]

    def _tables(self, dim: Data) -> Data:
        return view(self.schema.names("categorical"), {"kind": "table", "dim": dim})

    def _first_order(self) -> Data:
        tables = view(self.schema.names("categorical"), {"kind": "table", "dim": 1})["encoders"]
        return {"encoders": tables | view(self.schema.names("numeric"), {"kind": "scale", "dim": 1})["encoders"]}

    def _source(self, ref: str, product: str) -> "Source":
        """What interactors read of the tables, and what those that multiply read."""
        either = _tables_choice(self.settings, {"shared": ref, "separate": product})
        return Source(ref, either, fields=not self.latent)


def _check_towers(schema: DatasetSchema, settings: AutoRecSettings, latent: bool) -> None:
    known = schema.names("categorical")
    for name, fields in settings.towers.items():
        if not latent:
            raise UserError("search.autorec.towers: adds up latent mappers: write mapper: latent beside it")
        for field in fields:
            if field not in known:
                raise UserError(
                    f"search.autorec.towers.{name}: no categorical field '{field}'; there are {', '.join(known)}"
                )


def _tables_choice(settings: AutoRecSettings, options: Mapping[str, Any], *, splice: bool = False) -> Data:
    return choice("mapper.tables", [options[name] for name in settings.tables], labels=settings.tables, splice=splice)


@dataclass(frozen=True)
class _Block:
    nodes: list[Data]
    outputs: list[Any]


def _blocks(mapped: Sequence["Source"], settings: AutoRecSettings) -> list[_Block]:
    """The HyperInteractions from the bottom to the highest one that is tried."""
    blocks: list[_Block] = []
    sources = list(mapped)
    for number in range(1, max(settings.blocks) + 1):
        place = Place(f"block{number}", f"block{number}", f"block{number}", settings)
        blocks.append(_Block(HyperInteraction().nodes(place, sources), HyperInteraction().outputs(place)))
        sources.append(Source(place.id))
    return blocks


def _stacked(settings: AutoRecSettings, parts: Sequence[list[Any]]) -> Data:
    """A choice of how many of `parts` are taken, from the bottom."""
    options = [[item for part in parts[:number] for item in part] for number in settings.blocks]
    return choice("optimizer.blocks", options, labels=settings.blocks, splice=True)


def _head(schema: DatasetSchema, settings: AutoRecSettings) -> Data:
    outputs = [block.outputs for block in _blocks([], settings)]
    readings = [_head_inputs(outputs[:number], settings) for number in settings.blocks]
    inputs = [choice("optimizer.blocks", readings, labels=settings.blocks, splice=True)]
    if schema.names("categorical") or schema.names("numeric"):
        extras = [["first"] if wanted else [] for wanted in settings.first_order]
        inputs.append(choice("optimizer.first_order", extras, labels=settings.first_order, splice=True))
    return {"mode": choice("optimizer.head", settings.head), "in": inputs, "bias": True}


def _head_inputs(outputs: Sequence[list[Any]], settings: AutoRecSettings) -> list[Any]:
    if len(outputs) == 1:
        return outputs[0]
    every = [ref for block in outputs for ref in block]
    readings = [outputs[-1] if which == "last" else every for which in settings.head_inputs]
    return [choice("optimizer.inputs", readings, labels=settings.head_inputs, splice=True)]
