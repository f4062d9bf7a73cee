"""The one builder: an architecture becomes a module with fresh weights.

Searches, final trainings, baselines and serving all make their models here, and sizes come from `trainer.shapes`, so
nothing is ever trained that its description does not tell.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trainer.architecture import (
    FM,
    MHA,
    MLP,
    SE,
    Architecture,
    Attention,
    AttentionLayer,
    Concat,
    ConvLayer,
    Cross,
    Dot,
    Elementwise,
    FeedForwardLayer,
    Groups,
    GRULayer,
    Hadamard,
    IdentityLayer,
    Inner,
    ItemsHead,
    Last,
    Node,
    Pairs,
    Pool,
    PoolLayer,
    Positions,
    QuantizedEncoder,
    RoutedHead,
    RowsEncoder,
    Seq,
    SequenceLayer,
    ShareEncoder,
    TargetAttention,
    Triples,
    ValueHead,
    reached,
)
from trainer.data import Batch
from trainer.modules import behavior, interactions, numbers, products, quantized, sequences
from trainer.modules.align import Align, Placed
from trainer.modules.blocks import BlocksSource
from trainer.modules.encoders import FieldsView, SequenceView, Source, TableSource
from trainer.modules.numbers import NumberSource
from trainer.modules.quantized import QuantizedSource
from trainer.modules.router import Router, put_together
from trainer.modules.tables import Held, Rows, Tables, TableSpec
from trainer.modules.values import ItemLogits, Output, StepGroups, Steps, Value, flatten
from trainer.shapes import (
    Collected,
    F,
    ItemsTable,
    P,
    Q,
    Shape,
    V,
    collected,
    encoder_width,
    fields_op,
    grouped,
    head_map_widths,
    infer,
    items_table,
    kept,
    multiplied,
    squeezed,
    view_collected,
)


def build(
    architecture: Architecture, *, label_mean: float, table_init: float, seed: int, empty_tables: bool = False
) -> "Model":
    """The model of an architecture, without the parts that its head does not reach.

    Equal arguments give equal weights, and the caller's random state is left as it was. The head's bias starts where
    the model gives the base rate (ctr) or the mean rating, or at 0 (next_item). `table_init` is the standard deviation
    of encoder weights. `empty_tables`: no memory is taken for tables, which `sharding.shard` will draw where
    it puts them.

    Raises ArchitectureError for a description that cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(architecture.live(), label_mean, table_init, seed, empty_tables)


class Model(nn.Module):
    """A built architecture: `Batch` -> `Output`."""

    def __init__(
        self, architecture: Architecture, label_mean: float, table_init: float, seed: int, empty_tables: bool
    ) -> None:
        super().__init__()
        shapes = infer(architecture)
        self.architecture, self.parts = architecture, architecture.parts()
        categorical, head = _columns(architecture, "categorical"), architecture.head
        router = Router(head.router, categorical, len(self.parts)) if isinstance(head, RoutedHead) else None
        self.tables = Tables(table_specs(architecture), categorical, table_init, seed, empty_tables, router)
        # Keys hold a colon, so that no name meets an attribute of ModuleDict.
        self.views = nn.ModuleDict(
            {f"view:{name}": _view(architecture, name, shapes, table_init) for name in architecture.views}
        )
        self.nodes = nn.ModuleDict(
            {f"{node.op}:{node.id}": NodeModule(node, shapes, table_init) for node in architecture.nodes}
        )
        heads = [_head(part, shapes, label_mean) for part in self.parts]
        self.head = heads[0] if router is None else nn.ModuleList(heads)
        self._places = _places(architecture)

    def forward(self, batch: Batch) -> Output:
        rows: Rows = self.tables(batch)
        if not isinstance(self.head, nn.ModuleList):
            return self._part(self.architecture, self.head, batch, rows)
        found = []
        for part, head, share in zip(self.parts, self.head, rows.shares, strict=True):
            # Where there are more processes they must agree on what has a gradient, be it zero.
            if share.batch.size or self.tables.sharded:
                output = self._part(part, head, share.batch, rows)
                assert isinstance(output, Tensor)
                found.append((output, share))
        return put_together(found)

    def _part(self, part: Architecture, head: nn.Module, batch: Batch, rows: Rows) -> Output:
        """The output of a plain architecture, which this is or has as a part."""
        values: dict[str, Value] = {name: self.views[f"view:{name}"](batch, rows) for name in part.views}
        for node in part.nodes:
            values[node.id] = self.nodes[f"{node.op}:{node.id}"]([self._input(values, ref) for ref in node.inputs])
        assert not isinstance(part.head, RoutedHead)
        inputs = [self._input(values, ref) for ref in part.head.inputs]
        if isinstance(head, _ItemsHead):
            inputs.append(self.tables.whole(head.table))
        output: Output = head(inputs)
        return output

    def node(self, name: str) -> "NodeModule":
        """The module of a node."""
        places = dict(zip((node.id for node in self.architecture.nodes), self.nodes.values(), strict=True))
        found = places[name]
        assert isinstance(found, NodeModule)
        return found

    def table_parameters(self) -> list[nn.Parameter]:
        """What encodes fields: all tables, the vectors of numeric fields, and centroids."""
        parts = [numbers.table_parameters(self.views), quantized.table_parameters(self.views)]
        return [*self.tables.parameters(), *itertools.chain(*parts)]

    def dense_parameters(self) -> list[nn.Parameter]:
        """All other parameters: lifts, nodes and the head."""
        tables = {id(parameter) for parameter in self.table_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in tables]

    def lift_parameters(self) -> list[nn.Parameter]:
        """The part of the dense parameters that only aligns widths."""
        aligns = (node.align for node in self.nodes.values() if isinstance(node, NodeModule) and node.align is not None)
        return [*self._view_lifts(), *(parameter for align in aligns for parameter in align.parameters())]

    def _view_lifts(self) -> list[nn.Parameter]:
        views = [view for view in self.views.values() if isinstance(view, FieldsView)]
        aligns = [part for view in views for part in (view.align, view.blocks) if part is not None]
        return [parameter for align in aligns for parameter in align.parameters()]

    def _input(self, values: Mapping[str, Value], ref: str) -> Value:
        """The value of a reference; `view.field` is cut out of its view."""
        place = self._places.get(ref)
        if place is None:
            return values[ref]
        value = values[place.view]
        if isinstance(value, Steps | StepGroups):
            return value
        if isinstance(value, list):
            return value[place.position]
        return value[:, place.position] if value.dim() == 3 else value[:, place.columns]


# ---- tables and views -----------------------------------------------------------------------------------------------


def _columns(architecture: Architecture, kind: str) -> dict[str, int]:
    """Position of each field among the columns of its kind in a batch."""
    names = [name for name, field in architecture.fields.items() if field.kind == kind]
    return {name: position for position, name in enumerate(names)}


def table_specs(architecture: Architecture) -> list[TableSpec]:
    """The tables of the built model: what `build` makes of a live architecture, and what a capacity plan places."""
    shared: dict[str, list[str]] = {}
    for view in architecture.views.values():
        for name, encoder in view.encoders.items():
            if isinstance(encoder, ShareEncoder):
                table = _table_name(encoder.view, architecture.fields[name].of or "")
                shared.setdefault(table, []).append(name)
    specs = list(_specs(architecture, shared))
    if not isinstance(architecture.head, RoutedHead):
        return specs
    part_of = {view: number for number, part in enumerate(architecture.parts()) for view in part.views}
    return [replace(spec, part=part_of[spec.view]) for spec in specs]


def _specs(architecture: Architecture, shared: Mapping[str, Sequence[str]]) -> Iterable[TableSpec]:
    for view_name, view in architecture.views.items():
        for name, encoder in view.encoders.items():
            field = architecture.fields[name]
            if field.kind == "numeric" or isinstance(encoder, ShareEncoder | QuantizedEncoder):
                continue
            table = _table_name(view_name, name)
            if isinstance(encoder, RowsEncoder):
                for number, (block, block_table) in enumerate(
                    zip(encoder.blocks, _block_tables(table, encoder), strict=True)
                ):
                    held = Held(number, block.first, encoder.index)
                    yield TableSpec(block_table, view_name, block.rows, block.dim, name, block=held)
                continue
            width = encoder_width(field, encoder, view, architecture)
            single = name if field.kind == "categorical" else None
            readers = [*([] if single else [name]), *shared.get(table, [])]
            head = architecture.head
            whole = isinstance(head, ItemsHead) and head.items == f"{view_name}.{name}"
            yield TableSpec(
                table, view_name, field.cardinality, width, single, tuple(dict.fromkeys(readers)), whole=whole
            )


def _table_name(view: str, field: str) -> str:
    # A module's name may hold no dot, and brackets number blocks; the percent sign keeps names apart.
    return f"{view}/{field}".replace("%", "%25").replace(".", "%2E").replace("[", "%5B")


def _block_tables(table: str, encoder: RowsEncoder) -> list[str]:
    return [f"{table}[{number}]" for number in range(len(encoder.blocks))]


def _view(architecture: Architecture, name: str, shapes: Mapping[str, Shape], table_init: float) -> nn.Module:
    view, shape = architecture.views[name], shapes[name]
    if isinstance(shape, Q):
        field, encoder = next(iter(view.encoders.items()))
        owner, of = (
            (encoder.view, architecture.fields[field].of or "") if isinstance(encoder, ShareEncoder) else (name, field)
        )
        return SequenceView(TableSource(_table_name(owner, of), field, shape.width))
    columns = _columns(architecture, "numeric") | _columns(architecture, "categorical")
    sources = [_source(architecture, name, field, columns) for field in view.encoders]
    align: Align | Placed | None = None
    if view.align is not None:
        aligned = view_collected(architecture, name)
        widths = [tuple(source.width for source in sources)]
        align = Align(widths, aligned) if aligned.places is None else Placed(aligned.places, aligned.width)
    return FieldsView(
        sources,
        flat=isinstance(shape, V),
        joined=align is not None or isinstance(shape, P) or name in reached(architecture),
        partners=shape.fields - 1 if isinstance(shape, P) else None,
        align=align,
        init=table_init,
    )


def _source(architecture: Architecture, view_name: str, name: str, columns: Mapping[str, int]) -> Source:
    """`columns`: position of each field among the columns of its kind."""
    view, field = architecture.views[view_name], architecture.fields[name]
    encoder = view.encoders[name]
    width = encoder_width(field, encoder, view, architecture)
    if field.kind == "numeric":
        return NumberSource(columns[name], field.missing, width, encoder)
    if isinstance(encoder, RowsEncoder):
        tables = _block_tables(_table_name(view_name, name), encoder)
        return BlocksSource(name, width, [(table, name) for table in tables], encoder)
    if isinstance(encoder, QuantizedEncoder):
        return QuantizedSource(columns[name], width, encoder)
    return TableSource(_table_name(view_name, name), name, width)


@dataclass(frozen=True)
class _Place:
    """Where the value of `view.field` lies in its view: the field's position, or its columns where the view is a V."""

    view: str
    position: int
    columns: slice


def _places(architecture: Architecture) -> dict[str, _Place]:
    places = {}
    for name, view in architecture.views.items():
        start = 0
        for position, (field, encoder) in enumerate(view.encoders.items()):
            stop = start + encoder_width(architecture.fields[field], encoder, view, architecture)
            places[f"{name}.{field}"] = _Place(name, position, slice(start, stop))
            start = stop
    return places


# ---- nodes and head -------------------------------------------------------------------------------------------------


class NodeModule(nn.Module):
    """One node: brings its inputs into the form its op takes, then applies the op."""

    def __init__(self, node: Node, shapes: Mapping[str, Shape], init: float) -> None:
        super().__init__()
        inputs = [shapes[ref] for ref in node.inputs]
        self.sequence = isinstance(inputs[0], Q)
        self.field_aware = isinstance(inputs[0], P)
        fields = collected(node, shapes) if fields_op(node) else None
        self.align = Align([_widths(shape) for shape in inputs], fields) if fields else None
        self.op: nn.Module = _op(node, inputs, fields, init)

    def forward(self, values: Sequence[Value]) -> Value:
        if self.align is not None:
            output: Value = self.op(self.align(values))
        elif isinstance(values[0], StepGroups):
            output = values[0].apply(self.op, [value for value in values[1:] if isinstance(value, Tensor)])
        elif self.sequence or self.field_aware:
            output = self.op(*values)
        else:
            output = self.op(flatten(values))
        return output


def _widths(shape: Shape) -> tuple[int, ...]:
    assert isinstance(shape, V | F)
    return shape.widths if isinstance(shape, F) else (shape.width,)


def _op(node: Node, inputs: Sequence[Shape], fields: Collected | None, init: float) -> nn.Module:
    if fields is not None:
        return _FIELD_OPS[type(node)](node, fields)
    first = inputs[0]
    if isinstance(first, Q):
        return _SEQUENCE_OPS[type(node)](node, first, init)
    if isinstance(first, P):
        return interactions.FFM(first.fields)
    return _FLAT_OPS[type(node)](node, sum(sum(_widths(shape)) for shape in inputs))


def _pairs(node: Pairs, fields: Collected) -> nn.Module:
    pairs = kept(node, fields.names)
    if node.norm == "batch" or node.out == "each":
        return _products(node, fields)
    weighted: nn.Module
    if isinstance(node.weight, Attention):
        weighted = interactions.AttentionPairs(fields.width, node.weight.attention, pairs)
    else:
        weighted = interactions.WeightedPairs(fields.fields, pairs, learned=node.weight == "scalar")
    return interactions.Pairs(weighted, fields.width, node.out)


def _products(node: Pairs | Triples, fields: Collected) -> nn.Module:
    return products.Products(
        fields.fields,
        kept(node, fields.names),
        learned=node.weight == "scalar",
        norm=node.norm == "batch",
        each=node.out == "each",
    )


def _groups(node: Groups, fields: Collected) -> nn.Module:
    return products.Groups(
        fields.fields, fields.width, grouped(node, fields.names), node.order, norm=node.norm == "batch"
    )


def _hadamard(node: Hadamard, fields: Collected) -> nn.Module:
    return products.Hadamard(fields.fields, multiplied(node, fields.names))


def _se(node: SE, fields: Collected) -> nn.Module:
    return interactions.SqueezeExcitation(fields.fields, squeezed(node, fields))


def _mha(node: MHA, fields: Collected) -> nn.Module:
    widths = [fields.width] + [node.heads * node.dim] * (node.layers - 1)
    return nn.Sequential(*(interactions.FieldAttention(width, node.dim, node.heads, node.residual) for width in widths))


_FIELD_OPS: dict[type[Node], Callable[[Any, Collected], nn.Module]] = {
    Inner: lambda node, fields: interactions.Inner(),
    Elementwise: lambda node, fields: interactions.Elementwise(node.kind),
    FM: lambda node, fields: interactions.FM(),
    Pairs: _pairs,
    Triples: _products,
    Groups: _groups,
    Hadamard: _hadamard,
    SE: _se,
    Dot: lambda node, fields: interactions.Dot(fields.fields, full=node.triangle == "full"),
    MHA: _mha,
}


def _mlp(node: MLP, width: int) -> nn.Module:
    layers = interactions.mlp(width, node.units, node.activation, node.norm == "batch", node.dropout)
    return layers if node.shortcut == "none" else interactions.Shortcut(layers, width, node.units[-1])


_FLAT_OPS: dict[type[Node], Callable[[Any, int], nn.Module]] = {
    Concat: lambda node, width: nn.Identity(),
    Cross: lambda node, width: interactions.Cross(width, node.layers, matrix=node.kind == "matrix"),
    MLP: _mlp,
}


def block(node: Seq, width: int) -> behavior.Block:
    """The module of a residual block, which skips no layer, on steps `width` wide."""
    layer = _SEQUENCE_LAYERS[type(node.layer)](node, width)
    return behavior.Block(layer, width, node.norm == "layer", node.activation, node.dropout, node.residual)


_SEQUENCE_LAYERS: dict[type[SequenceLayer], Callable[[Any, int], nn.Module]] = {
    ConvLayer: lambda node, width: behavior.Conv(width, node.layer.kernel, node.layer.dilation, node.causal),
    PoolLayer: lambda node, width: behavior.POOLS[node.layer.kind](node.layer.kernel, node.causal),
    GRULayer: lambda node, width: behavior.Recurrent(width, node.causal),
    AttentionLayer: lambda node, width: behavior.SelfAttention(width, node.layer.heads, node.causal, node.dropout),
    FeedForwardLayer: lambda node, width: behavior.FeedForward(width, node.dropout),
    IdentityLayer: lambda node, width: behavior.Identity(),
}
"""A live architecture has no block that skips its layer."""

_SEQUENCE_OPS: dict[type[Node], Callable[[Any, Q, float], nn.Module]] = {
    Pool: lambda node, shape, init: sequences.Pool(node.kind),
    Positions: lambda node, shape, init: sequences.Positions(shape.width, shape.length, node.dropout, init),
    Seq: lambda node, shape, init: block(node, shape.width),
    Last: lambda node, shape, init: sequences.Last(),
    TargetAttention: lambda node, shape, init: sequences.TargetAttention(shape.width, node.units),
}


def _head(architecture: Architecture, shapes: Mapping[str, Shape], label_mean: float) -> nn.Module:
    head = architecture.head
    assert not isinstance(head, RoutedHead)
    if isinstance(head, ItemsHead):
        return _ItemsHead(head, items_table(architecture, head, shapes))
    start = label_mean if architecture.task == "rating" else math.log(label_mean / (1 - label_mean))
    return _ValueHead(head, head_map_widths(head, shapes), shapes, start)


class _ItemsHead(nn.Module):
    """Inputs, the last of them a whole table of I items, (I, D) -> logits of B rows; that of item 0 is -inf."""

    def __init__(self, head: ItemsHead, items: ItemsTable) -> None:
        super().__init__()
        self.table = _table_name(items.view, items.field)
        mapped = items.width != items.dim
        self.map = interactions.dense(items.width, items.dim, bias=False) if mapped else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(items.rows)) if head.bias else None
        self.never_I: Tensor
        self.register_buffer("never_I", torch.zeros(items.rows), persistent=False)
        self.never_I[0] = -math.inf

    def forward(self, values: Sequence[Value]) -> ItemLogits:
        *inputs, items_ID = values
        assert isinstance(items_ID, Tensor)
        x_BD: Tensor = self.map(flatten(inputs))
        bias_I = self.never_I if self.bias is None else self.bias + self.never_I
        return ItemLogits(x_BD, items_ID.to(x_BD.dtype), bias_I.to(x_BD.dtype))


class _ValueHead(nn.Module):
    """Inputs -> (B,): one linear map over all of them, or a sum of logits."""

    def __init__(self, head: ValueHead, map_widths: Sequence[int], shapes: Mapping[str, Shape], start: float) -> None:
        super().__init__()
        self.linear = head.mode == "linear"
        self.maps = nn.ModuleList(interactions.dense(width, 1, bias=False) for width in map_widths)
        wide = [not _adds_up(shapes[ref]) for ref in head.inputs]
        self.mapped = [True] if self.linear else wide
        self.bias = nn.Parameter(torch.tensor(start)) if head.bias else None

    def forward(self, values: Sequence[Value]) -> Tensor:
        summands = [flatten(values)] if self.linear else [flatten([value]) for value in values]
        maps = iter(self.maps)
        parts = [
            next(maps)(x_BN).squeeze(1) if mapped else x_BN.sum(dim=1)
            for x_BN, mapped in zip(summands, self.mapped, strict=True)
        ]
        total: Tensor = sum(parts[1:], start=parts[0])
        return total if self.bias is None else total + self.bias


def _adds_up(shape: Shape) -> bool:
    """Whether a summand of the head is one number, or first-order weights that add up to one."""
    assert isinstance(shape, V | F)
    return shape.width == 1 or (isinstance(shape, F) and set(shape.widths) == {1})
