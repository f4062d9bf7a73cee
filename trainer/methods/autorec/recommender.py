"""Recommenders wired in Python: the graph of blocks that a user wrote, as a template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from trainer.architecture import fields_of
from trainer.errors import UserError
from trainer.methods.autorec.blocks import (
    Data,
    DenseFeatureMapper,
    LatentFactorMapper,
    Mapper,
    Output,
    Place,
    SelfAttention,
    Source,
    SparseFeatureMapper,
    view,
)
from trainer.methods.settings import AutoRecSettings
from trainer.schema import DatasetSchema, Task


@dataclass(frozen=True)
class _Recommender:
    """Blocks wired by the user and the optimizer that reads `outputs`: a linear map of all of them to one number."""

    outputs: Sequence[Output]
    head: Literal["linear", "sum"] = "linear"

    task: ClassVar[Task]

    def space(self, schema: DatasetSchema, settings: AutoRecSettings | None = None) -> Data:
        """The template for this dataset. `settings` gives other value lists than the published ones.

        Raises UserError if the dataset is for another task or lacks a field.
        """
        if schema.task != self.task:
            raise UserError(f"the dataset's task is {schema.task}: use {_RECOMMENDERS[schema.task]}")
        graph = _Graph(schema, settings or AutoRecSettings())
        refs = [graph.source(output).ref for output in self.outputs]
        return {
            "version": 1,
            "task": schema.task,
            "fields": fields_of(schema),
            "views": graph.views,
            "nodes": graph.nodes,
            "head": {"mode": self.head, "in": refs, "bias": True},
        }


class RatingRecommender(_Recommender):
    """Predicts a number; trained with the squared error."""

    task = "rating"


class CTRRecommender(_Recommender):
    """Predicts a probability; trained with the log loss."""

    task = "ctr"


_RECOMMENDERS: dict[Task, str] = {"rating": "RatingRecommender", "ctr": "CTRRecommender"}


class _Graph:
    """Names blocks by kind and number in the order in which they are met from the outputs, inputs first."""

    def __init__(self, schema: DatasetSchema, settings: AutoRecSettings) -> None:
        self.views: Data = {}
        self.nodes: list[Data] = []
        self._schema, self._settings = schema, settings
        self._sources: dict[int, Source] = {}
        self._numbers: dict[str, int] = {}

    def source(self, output: Output) -> Source:
        """The reference to `output`, added to the graph with all that it reads if it is not there yet."""
        if id(output) not in self._sources:
            self._sources[id(output)] = self._add(output)
        return self._sources[id(output)]

    def _add(self, output: Output) -> Source:
        block = output.block
        if isinstance(block, Mapper):
            return self._add_mapper(block, output.fields)
        sources = [self.source(node) for node in output.inputs]
        name = self._name(block.kind)
        self.nodes += block.nodes(Place(name, name, name, self._settings), sources)
        return Source(name, fields=isinstance(block, SelfAttention))

    def _add_mapper(self, mapper: Mapper, fields: tuple[str, ...]) -> Source:
        taken, encoder, options, usual = self._mapping(mapper)
        for field in fields:
            if field not in taken:
                raise UserError(f"{type(mapper).__name__}: no such field '{field}'; it takes {', '.join(taken)}")
        name = self._name(mapper.kind)
        dim = Place(name, name, name, self._settings).pick("dim", mapper.embedding_dim, options, usual)
        self.views[name] = view(fields or taken, {"kind": encoder, "dim": dim})
        alone = isinstance(mapper, LatentFactorMapper)
        return Source(f"{name}.{fields[0]}") if alone else Source(name, fields=True)

    def _mapping(self, mapper: Mapper) -> tuple[tuple[str, ...], str, list[int], int]:
        """Fields that a mapper takes, its encoder, its widths and the usual one."""
        categorical, numeric = self._schema.names("categorical"), self._schema.names("numeric")
        if isinstance(mapper, DenseFeatureMapper):
            return numeric, "scale", self._settings.dense_dims, 8
        if isinstance(mapper, SparseFeatureMapper):
            return categorical, "table", self._settings.sparse_dims, 8
        return categorical, "table", self._settings.latent_dims, 32

    def _name(self, kind: str) -> str:
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        return f"{kind}{self._numbers[kind]}"
