"""The blocks of AutoRec: mappers and interactors, with every unset argument a choice (thesis, chapter 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar, Final

from trainer.methods.settings import AutoRecSettings
from trainer.space import choice


class Unset(Enum):
    """The type of UNSET, so that 0, 0.0 and False are values like any other."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET
"""An argument that is searched."""

Data = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Output:
    """What a block gives: a node of the graph that the user wires."""

    block: "Mapper | Interactor"
    inputs: tuple["Output", ...] = ()
    fields: tuple[str, ...] = ()


# ---- what mappers and interactors read ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A tensor as an interactor reads it: `ref`, or `product` for interactors that multiply, where tables may differ.

    `fields`: several fields side by side, which InnerProduct and Elementwise read flattened, as one input.
    """

    ref: Any
    product: Any = None
    fields: bool = False

    @property
    def multiplied(self) -> Any:
        return self.ref if self.product is None else self.product


@dataclass(frozen=True)
class Place:
    """Where an interactor's nodes go: the id of its last node, how its choices are called and grouped, value lists."""

    id: str
    name: str
    group: str
    values: AutoRecSettings

    def pick(self, argument: str, value: Any, options: Sequence[Any], default: Any) -> Any:
        """`value`, or the choice among `options` if it is UNSET."""
        if value is not UNSET:
            return value
        return choice(f"{self.name}.{argument}", options, default=default, group=self.group)


# ---- mappers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mapper:
    """A block at the bottom: fields of the dataset to vectors. Call it on field names."""

    embedding_dim: int | Unset = UNSET

    kind: ClassVar[str]

    def __call__(self, *fields: str) -> "Output":
        """The embedding of `fields`; without any, of all fields of the dataset that the mapper takes."""
        return Output(self, (), fields)


class LatentFactorMapper(Mapper):
    """One categorical field to (B, d): a table of its own."""

    kind = "latent"

    def __call__(self, field: str) -> "Output":  # type: ignore[override]
        """The embedding of one field."""
        return Output(self, (), (field,))


class SparseFeatureMapper(Mapper):
    """Categorical fields to (B, M, d), one table per field."""

    kind = "sparse"


class DenseFeatureMapper(Mapper):
    """Numeric fields to (B, M, d): each value times a learned vector."""

    kind = "dense"


# ---- interactors ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interactor:
    """A block in the middle. Call it on a list of outputs of other blocks."""

    kind: ClassVar[str]

    def __call__(self, inputs: "Sequence[Output]") -> "Output":
        return Output(self, tuple(inputs))

    def nodes(self, place: Place, sources: Sequence[Source]) -> list[Data]:
        """The nodes of this interactor; the last one bears the id of `place` and is its output."""
        raise NotImplementedError


class RandomSelect(Interactor):
    """One of the inputs, unchanged; which one is searched."""

    kind = "select"

    def nodes(self, place: Place, sources: Sequence[Source]) -> list[Data]:
        refs = [source.ref for source in sources]
        chosen = choice(f"{place.name}.input", refs, group=place.group)
        return [{"id": place.id, "op": "concat", "in": [chosen]}]


class Concatenate(Interactor):
    """All inputs, flattened, side by side."""

    kind = "concat"

    def nodes(self, place: Place, sources: Sequence[Source]) -> list[Data]:
        return [{"id": place.id, "op": "concat", "in": [source.ref for source in sources]}]


class InnerProduct(Interactor):
    """The sum over coordinates of the product of all inputs; wider ones pass a learned map to the least width."""

    kind = "inner"

    def nodes(self, place: Place, sources: Sequence[Source]) -> list[Data]:
        flat, refs = _flattened(place, sources)
        return [*flat, {"id": place.id, "op": "inner", "in": refs, "align": "min"}]


@dataclass(frozen=True)
class Elementwise(Interactor):
    """One operation over the inputs, coordinate by coordinate; wider ones pass a learned map to the least width."""

    operation: str | Unset = UNSET

    kind = "elementwise"

    def nodes(self, place: Place, sources: Sequence[Source]) -> list[Data]:
        flat, refs = _flattened(place, sources)
        operation = place.pick("operation", self.operation, place.values.elementwise, "average")
        return [*flat, {"id": place.id, "op": "elementwise", "in": refs, "align": "min", "kind": operation}]


@dataclass(frozen=True)
class MLP(Interactor):
    """Layers of linear map, batch normalisation, ReLU, dropout. `units`: the width of each layer."""

    units: Sequence[int] | Unset = UNSET
    layers: int | Unset = UNSET
    batch_norm: bool | Unset = UNSET
    dropout: float | Unset = UNSET

    kind = "mlp"

    def nodes(self, place: Place, sources: Sequence[Source]) -> list[Data]:
        values = place.values
        node: Data = {
            "id": place.id,
            "op": "mlp",
            "in": [source.ref for source in sources],
            "units": self._units(place),
        }
        norm = {False: "none", True: "batch"}
        if self.batch_norm is UNSET:
            options = [norm[wanted] for wanted in values.mlp_batch_norm]
            node["norm"] = choice(f"{place.name}.norm", options, default="none", group=place.group)
        else:
            node["norm"] = norm[self.batch_norm]
        return [node | {"dropout": place.pick("dropout", self.dropout, values.mlp_dropout, 0.0)}]

    def _units(self, place: Place) -> list[Any]:
        if not isinstance(self.units, Unset):
            return list(self.units)
        depths = place.values.mlp_layers if isinstance(self.layers, Unset) else [self.layers]
        units = [place.pick(f"units{n}", UNSET, place.values.mlp_units, 32) for n in range(1, max(depths) + 1)]
        options = [units[:depth] for depth in depths]
        name = f"{place.name}.layers"
        return [choice(name, options, default=2, labels=depths, group=place.group, splice=True)]


@dataclass(frozen=True)
class FM(Interactor):
    """Sum of the inner products of all pairs of inputs, each brought to width `dim` by a learned map if need be."""

    dim: int | Unset = UNSET

    kind = "fm"

    def nodes(self, place: Place, sources: Sequence[Source]) -> list[Data]:
        dim = place.pick("dim", self.dim, place.values.fm_dims, 8)
        return [{"id": place.id, "op": "fm", "in": [source.multiplied for source in sources], "dim": dim}]


@dataclass(frozen=True)
class CrossNet(Interactor):
    """Cross layers on all inputs side by side (DCN; with `cross` = matrix DCNv2)."""

    layers: int | Unset = UNSET
    cross: str | Unset = UNSET

    kind = "cross"

    def nodes(self, place: Place, sources: Sequence[Source]) -> list[Data]:
        values = place.values
        return [
            {
                "id": place.id,
                "op": "cross",
                "in": [source.ref for source in sources],
                "layers": place.pick("layers", self.layers, values.cross_layers, 1),
                "kind": place.pick("cross", self.cross, values.cross_kind, "vector"),
            }
        ]


@dataclass(frozen=True)
class SelfAttention(Interactor):
    """Attention between the inputs, each brought to `width`; `heads` heads of width `dim` side by side."""

    width: int | Unset = UNSET
    dim: int | Unset = UNSET
    heads: int | Unset = UNSET
    residual: bool | Unset = UNSET

    kind = "attention"

    def nodes(self, place: Place, sources: Sequence[Source]) -> list[Data]:
        values = place.values
        return [
            {
                "id": place.id,
                "op": "mha",
                "in": [source.ref for source in sources],
                "width": place.pick("width", self.width, values.attention_widths, 8),
                "dim": place.pick("dim", self.dim, values.attention_dims, 8),
                "heads": place.pick("heads", self.heads, values.attention_heads, 2),
                "residual": place.pick("residual", self.residual, values.attention_residual, True),
            }
        ]


@dataclass(frozen=True)
class HyperInteraction(Interactor):
    """`parallel` interactors side by side on the same inputs, their kinds searched, flattened into one vector."""

    parallel: int | Unset = UNSET

    kind = "hyper"

    def nodes(self, place: Place, sources: Sequence[Source]) -> list[Data]:
        slots = [self._slot(place, number, sources) for number in range(1, max(self._counts(place)) + 1)]
        return [self._side_by_side(place, slots), {"id": place.id, "op": "concat", "in": self.outputs(place)}]

    def outputs(self, place: Place) -> list[Any]:
        """References to the interactors, each by itself."""
        ids = [f"{place.id}_{number}" for number in range(1, max(self._counts(place)) + 1)]
        return [self._side_by_side(place, ids)]

    def _side_by_side(self, place: Place, items: Sequence[Any]) -> Data:
        counts = self._counts(place)
        options = [list(items[:count]) for count in counts]
        name = f"{place.name}.parallel"
        return choice(name, options, default=3, labels=counts, group=place.group, splice=True)

    def _counts(self, place: Place) -> list[int]:
        return place.values.parallel if isinstance(self.parallel, Unset) else [self.parallel]

    def _slot(self, place: Place, number: int, sources: Sequence[Source]) -> Data:
        """One interactor whose kind is searched; its choices are one group, for the greedy sampler."""
        kinds, name = place.values.interactors, f"{place.name}.{number}"
        options = []
        for kind in kinds:
            interactor = INTERACTORS[kind]()
            inner = replace(place, id=f"{place.id}_{number}", name=f"{name}.{interactor.kind}", group=name)
            options.append(interactor.nodes(inner, sources))
        default = kinds[(number - 1) % len(kinds)]
        return choice(f"{name}.type", options, default=default, labels=kinds, group=name, splice=True)


def _flattened(place: Place, sources: Sequence[Source]) -> tuple[list[Data], list[Any]]:
    """Nodes that flatten the sources of several fields, and one reference per source: each source is one factor."""
    flat: list[Data] = []
    refs: list[Any] = []
    for position, source in enumerate(sources, start=1):
        if source.fields:
            flat.append({"id": f"{place.id}_flat{position}", "op": "concat", "in": [source.multiplied]})
        refs.append(flat[-1]["id"] if source.fields else source.multiplied)
    return flat, refs


INTERACTORS: dict[str, Callable[[], Interactor]] = {
    "RandomSelect": RandomSelect,
    "Concatenate": Concatenate,
    "InnerProduct": InnerProduct,
    "Elementwise": Elementwise,
    "MLP": MLP,
    "FM": FM,
    "CrossNet": CrossNet,
    "SelfAttention": SelfAttention,
}


def view(names: Sequence[str], encoder: Data) -> Data:
    """A view that encodes all of `names` alike."""
    return {"encoders": dict.fromkeys(names, encoder)}
