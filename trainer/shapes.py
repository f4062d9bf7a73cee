"""Shapes, parameters and multiply-adds of an architecture, from its description alone (no torch).

`infer` refuses every description that cannot be built, with the name of the node at fault, before any weight exists.
The builder takes its sizes from the same functions, so what is counted here is what is built.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb
from typing import Any

from trainer.architecture import (
    FFM,
    FM,
    MHA,
    MLP,
    SE,
    Align,
    Architecture,
    ArchitectureError,
    Attention,
    AttentionLayer,
    BinsEncoder,
    Block,
    BucketsEncoder,
    Concat,
    ConvLayer,
    Cross,
    Dot,
    Elementwise,
    Encoder,
    FeedForwardLayer,
    FieldsNode,
    FieldSpec,
    Groups,
    GRULayer,
    Hadamard,
    IdentityLayer,
    Inner,
    ItemsHead,
    Last,
    Node,
    Pairs,
    PairsTableEncoder,
    Pool,
    PoolLayer,
    Positions,
    QuantizedEncoder,
    RawEncoder,
    RoutedHead,
    RowsEncoder,
    ScaleEncoder,
    Seq,
    Sets,
    ShareEncoder,
    SkipLayer,
    TableEncoder,
    TargetAttention,
    Triples,
    ValueHead,
    View,
    product_name,
    reached,
)
from trainer.index import unpacked


@dataclass(frozen=True)
class V:
    """(B, width)"""

    width: int


@dataclass(frozen=True)
class F:
    """(B, M, d) where all widths are d; otherwise M vectors of their own widths. `names` label the fields."""

    names: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def width(self) -> int:
        """All fields side by side."""
        return sum(self.widths)


@dataclass(frozen=True)
class Q:
    """(B, T, width) and a mask; T is at most `length`."""

    length: int
    width: int


@dataclass(frozen=True)
class P:
    """(B, M, M - 1, dim): field-aware vectors of M fields, partners in field order without the field itself."""

    fields: int
    dim: int


Shape = V | F | Q | P


@dataclass(frozen=True)
class Lift:
    """A bias-free linear map of field `position` (counted over all inputs) from its own width to the common one."""

    position: int
    width_in: int
    width_out: int

    @property
    def parameters(self) -> int:
        return self.width_in * self.width_out


@dataclass(frozen=True)
class Collected:
    """The fields an op works on, and how they get their common width: some lifted, the others padded if narrower."""

    names: tuple[str, ...]
    width: int
    lifts: tuple[Lift, ...] = ()
    places: tuple[tuple[int, ...], ...] | None = None
    """Of each field the columns that its numbers fill, where these are not the first ones of all fields."""

    @property
    def fields(self) -> int:
        return len(self.names)

    @property
    def pairs(self) -> int:
        return comb(self.fields, 2)


@dataclass(frozen=True)
class Counts:
    """Parameters (tables: all encoders; lifts: maps that align widths; dense: the rest) and multiply-adds per row.

    Multiply-adds count products and leave out activations, look-ups, sums and softmax denominators; sequences count
    at full length. Of a routed model parameters are those of all parts; multiply-adds are those of the part that has
    the most. Codes are what the description itself says of categories, and training leaves alone: votes of a router,
    numbers of blocks, codes of centroids. They are counted in the bits that they need, 32 of which are a parameter.
    """

    tables: int
    lifts: int
    dense: int
    flops: int
    codes: int = 0

    @property
    def elsewhere(self) -> int:
        """What is neither in tables nor in maps that align widths."""
        return self.dense + self.codes

    @property
    def total(self) -> int:
        return self.tables + self.lifts + self.elsewhere


def infer(architecture: Architecture) -> dict[str, Shape]:
    """The shape of every view, `view.field` and node, by reference.

    Raises ArchitectureError that names the first view or node whose inputs do not fit.
    """
    shapes: dict[str, Shape] = {}
    for name, view in architecture.views.items():
        shapes.update(_view_shapes(architecture, name, view))
    for node in architecture.nodes:
        shapes[node.id] = _RULES[type(node)](node, _Inputs(f"node '{node.id}'", node.inputs, shapes))
    heads = architecture.head.parts if isinstance(architecture.head, RoutedHead) else [architecture.head]
    for head in heads:
        _Inputs("head", head.inputs, shapes).flat()
    _check_head(architecture)
    return shapes


def count(architecture: Architecture) -> Counts:
    """Parameters and multiply-adds of the built model; what the head does not reach is not built."""
    live = architecture.live()
    if isinstance(live.head, RoutedHead):
        infer(live)
    counts = [_count(part) for part in live.parts()]
    tables, lifts, dense = (sum(getattr(one, name) for one in counts) for name in ("tables", "lifts", "dense"))
    return Counts(tables, lifts, dense, max(one.flops for one in counts), -(-_bits(live) // PARAMETER_BITS))


PARAMETER_BITS = 32
VOTE_BITS = 8


def _bits(live: Architecture) -> int:
    """Of what the description says of categories."""
    encoders = [(field, encoder) for view in live.views.values() for field, encoder in view.encoders.items()]
    indices = sum(index_bits(encoder, live.fields[field].cardinality) for field, encoder in encoders)
    if not isinstance(live.head, RoutedHead):
        return indices
    votes = sum(live.fields[field].cardinality for field in live.head.router) * (len(live.head.parts) - 1)
    return indices + VOTE_BITS * votes


def index_bits(encoder: Encoder, cardinality: int) -> int:
    """The bits that an encoder's index needs, as many for a number as its greatest possible value."""
    match encoder:
        case RowsEncoder(index=str()):
            return cardinality * _bits_of(len(encoder.blocks))
        case QuantizedEncoder():
            tail = cardinality - encoder.tail.first if encoder.tail else 0
            rare = tail * _bits_of(encoder.tail.centroids) if encoder.tail else 0
            return encoder.subspaces * ((cardinality - tail) * _bits_of(encoder.centroids) + rare)
    return 0


def _bits_of(options: int) -> int:
    return (options - 1).bit_length()


def _count(live: Architecture) -> Counts:
    shapes = infer(live)
    tables = lifts = dense = flops = 0
    for name, view in live.views.items():
        tables += sum(encoder_parameters(live, view, field) for field in view.encoders)
        view_lifts = sum(lift.parameters for lift in view_collected(live, name).lifts)
        lifts += view_lifts + sum(_encoder_lifts(encoder) for encoder in view.encoders.values())
        flops += view_lifts + sum(_encoder_flops(live, view, field) for field in view.encoders)
    for node in live.nodes:
        inputs = _Inputs(node.id, node.inputs, shapes)
        node_lifts = sum(lift.parameters for lift in collected(node, shapes).lifts) if fields_op(node) else 0
        parameters, multiply_adds = _COUNTS[type(node)](node, inputs)
        lifts, dense, flops = lifts + node_lifts, dense + parameters, flops + node_lifts + multiply_adds
    head_parameters, head_flops = _head_count(live, shapes)
    return Counts(tables, lifts, dense + head_parameters, flops + head_flops)


# ---- views ----------------------------------------------------------------------------------------------------------


def encoder_width(field: FieldSpec, encoder: Encoder, view: View, architecture: Architecture) -> int:
    """How many numbers the encoder gives per row (per step, for a sequence)."""
    match encoder:
        case RawEncoder():
            return 2 if field.missing else 1
        case ShareEncoder():
            shared = architecture.views[encoder.view].encoders[field.of or ""]
            assert isinstance(shared, TableEncoder)
            return shared.dim
        case PairsTableEncoder():
            return encoder.dim * (len(view.encoders) - 1)
        case TableEncoder() | RowsEncoder() | QuantizedEncoder() | ScaleEncoder() | BinsEncoder() | BucketsEncoder():
            return encoder.dim


def encoder_parameters(architecture: Architecture, view: View, name: str) -> int:
    """Number of weights of the encoder of field `name`."""
    field, encoder = architecture.fields[name], view.encoders[name]
    if isinstance(encoder, RawEncoder | ShareEncoder):
        return 0
    width = encoder_width(field, encoder, view, architecture)
    match encoder:
        case RowsEncoder():
            return sum(block.rows * block.dim for block in encoder.blocks)
        case QuantizedEncoder():
            return encoder.centroids * encoder.dim
        case BinsEncoder():
            return (encoder.bins + field.missing) * width + bins_network(encoder)[0]
        case BucketsEncoder():
            return (len(encoder.boundaries) + 1 + field.missing) * width
    rows = 1 + field.missing if field.kind == "numeric" else field.cardinality
    return rows * width


def block_places(encoder: RowsEncoder) -> list[int]:
    """The column at which each block's part of a category's vector begins."""
    places: list[int] = []
    for block in encoder.blocks:
        before = zip(encoder.blocks, places, strict=False)
        places.append(max((place + other.dim for other, place in before if _overlap(other, block)), default=0))
    return places


def block_parts(encoder: RowsEncoder) -> list[tuple[int, int]]:
    """For each block (place, width) of its part of a category's vector."""
    return [(place, block.dim) for place, block in zip(block_places(encoder), encoder.blocks, strict=True)]


def block_maps(encoder: RowsEncoder) -> list[tuple[int, int] | None]:
    """The same for those that have a map to the full width, which is one for all blocks of a part; None for others."""
    parts = block_parts(encoder)
    return [part if encoder.align == "lift" and part[1] < encoder.dim else None for part in parts]


def chain_widths(encoder: RowsEncoder) -> list[int]:
    """The widths that the maps of a chain lead through, from that of the first block to `dim`."""
    dims = [block.dim for block in encoder.blocks]
    return dims if dims[-1] == encoder.dim else [*dims, encoder.dim]


def _encoder_lifts(encoder: Encoder) -> int:
    """Weights of an encoder's own maps, and of the normalisation after a chain."""
    if not isinstance(encoder, RowsEncoder):
        return 0
    if encoder.align == "chain":
        first, *units = chain_widths(encoder)
        return mlp_parameters(first, units)[0] + 2 * encoder.dim
    return encoder.dim * sum(part[1] for part in set(block_maps(encoder)) if part)


def _check_blocks(where: str, encoder: RowsEncoder, cardinality: int) -> None:
    if encoder.index is not None:
        _check_index(where, encoder, unpacked(encoder.index), cardinality)
    if encoder.align == "chain":
        _check_chain(where, encoder, cardinality)
    for number, (block, place) in enumerate(zip(encoder.blocks, block_places(encoder), strict=True)):
        if block.first + block.rows > cardinality:
            message = f"block {number} ends at row {block.first + block.rows} of a table of {cardinality}"
            raise ArchitectureError(f"{where}: {message}; make it end there")
        if encoder.align != "chain" and place + block.dim > encoder.dim:
            message = f"its blocks give a category {place + block.dim} numbers, more than dim {encoder.dim}"
            raise ArchitectureError(f"{where}: {message}; make blocks narrower or let them overlap less")


def _check_index(where: str, encoder: RowsEncoder, number_R: bytes, cardinality: int) -> None:
    if len(number_R) != cardinality:
        raise ArchitectureError(f"{where}: index is of {len(number_R)} categories, not of the field's {cardinality}")
    if max(number_R) >= len(encoder.blocks):
        message = f"index names block {max(number_R)} of {len(encoder.blocks)}; blocks are numbered from 0"
        raise ArchitectureError(f"{where}: {message}")
    first = 0
    for number, block in enumerate(encoder.blocks):
        rows = number_R.count(number)
        if (block.first, block.rows) != (first, rows):
            message = f"block {number} has {block.rows} rows from {block.first} on, by the index {rows} from {first} on"
            raise ArchitectureError(f"{where}: {message}")
        first += rows


def _check_chain(where: str, encoder: RowsEncoder, cardinality: int) -> None:
    dims = [block.dim for block in encoder.blocks]
    if any(before >= after for before, after in pairwise(dims)) or dims[-1] > encoder.dim:
        raise ArchitectureError(f"{where}: align 'chain' needs blocks that rise in width up to dim {encoder.dim}")
    end = 0
    for block in sorted(encoder.blocks, key=lambda block: block.first):
        if block.first > end:
            break
        end = max(end, block.first + block.rows)
    if end < cardinality:
        raise ArchitectureError(f"{where}: align 'chain' needs every category in a block, and row {end} is in none")


def _check_codes(where: str, encoder: QuantizedEncoder, cardinality: int) -> None:
    if encoder.dim % encoder.subspaces:
        raise ArchitectureError(f"{where}: dim {encoder.dim} does not divide into {encoder.subspaces} subspaces")
    codes, wanted = unpacked(encoder.index), cardinality * encoder.subspaces
    if len(codes) != wanted:
        message = f"index has {len(codes)} codes; {cardinality} categories have {encoder.subspaces} each: {wanted}"
        raise ArchitectureError(f"{where}: {message}")
    if max(codes) >= encoder.centroids:
        message = f"index names centroid {max(codes)} of {encoder.centroids}; centroids are numbered from 0"
        raise ArchitectureError(f"{where}: {message}")
    tail = encoder.tail
    if tail is not None and (tail.first >= cardinality or tail.centroids > encoder.centroids):
        message = f"tail must begin below {cardinality} and have at most {encoder.centroids} centroids"
        raise ArchitectureError(f"{where}: {message}")
    if tail is not None and max(codes[tail.first * encoder.subspaces :]) >= tail.centroids:
        message = f"index gives categories from {tail.first} on centroids beyond the tail's {tail.centroids}"
        raise ArchitectureError(f"{where}: {message}")


def _overlap(block: Block, other: Block) -> bool:
    return block.first < other.first + other.rows and other.first < block.first + block.rows


def bins_network(encoder: BinsEncoder) -> tuple[int, int]:
    """Weights and multiply-adds of what turns a value into the weights of `BinsEncoder`'s bins."""
    bins, temperature = encoder.bins, 3 * encoder.bins + 1 if encoder.adaptive is not None else 0
    products = bins + bins * bins + (2 * bins if encoder.adaptive is not None else 0)
    return bins + bins * bins + 2 * bins * encoder.bias + temperature, products + bins


def view_collected(architecture: Architecture, name: str) -> Collected:
    """The fields of a view and their common width; the width is 0 where they stay unequal."""
    view = architecture.views[name]
    widths = _encoder_widths(architecture, view)
    names = tuple(view.encoders)
    if view.align is None:
        return Collected(names, widths[0] if len(set(widths)) == 1 else 0)
    width = view.width or (min(widths) if view.align == "min" else max(widths))
    if view.align == "pad":
        return Collected(names, width, places=_placed(view, widths))
    return Collected(names, width, _lifts(widths, width))


def _placed(view: View, widths: Sequence[int]) -> tuple[tuple[int, ...], ...] | None:
    given = [getattr(encoder, "places", None) for encoder in view.encoders.values()]
    if not any(given):
        return None
    return tuple(places or tuple(range(width)) for places, width in zip(given, widths, strict=True))


def _view_shapes(architecture: Architecture, name: str, view: View) -> dict[str, Shape]:
    where = f"view '{name}'"
    kind = _view_kind(architecture, where, view)
    _check_align(where, view, kind)
    widths = _encoder_widths(architecture, view)
    for field, encoder in view.encoders.items():
        if isinstance(encoder, RowsEncoder):
            _check_blocks(f"{where}: field '{field}'", encoder, architecture.fields[field].cardinality)
        if isinstance(encoder, QuantizedEncoder):
            _check_codes(f"{where}: field '{field}'", encoder, architecture.fields[field].cardinality)
        if isinstance(encoder, TableEncoder) and encoder.places is not None:
            _check_places(f"{where}: field '{field}'", encoder, view, view.width or max(widths))
    if kind is P:
        return {name: _field_aware_shape(where, view)}
    if kind is Q:
        field = next(iter(view.encoders))
        sequence = Q(architecture.fields[field].max_len, widths[0])
        return {name: sequence, f"{name}.{field}": sequence}
    if view.align is not None:
        width = view_collected(architecture, name).width
        if view.align == "pad" and width < max(widths):
            raise ArchitectureError(f"{where}: align 'pad' cannot make width {max(widths)} narrower; use 'lift'")
        widths = (width,) * len(widths)
    shapes: dict[str, Shape] = {f"{name}.{field}": V(width) for field, width in zip(view.encoders, widths, strict=True)}
    shapes[name] = V(sum(widths)) if kind is V else F(tuple(view.encoders), widths)
    return shapes


def _check_places(where: str, encoder: TableEncoder, view: View, width: int) -> None:
    places = encoder.places or ()
    if view.align != "pad":
        raise ArchitectureError(f"{where}: places are columns of a padded vector; set the view's align: pad")
    if len(places) != encoder.dim or any(a >= b for a, b in pairwise(places)) or places[-1] >= width:
        message = f"places must be {encoder.dim} rising columns below {width}, not {list(places)}"
        raise ArchitectureError(f"{where}: {message}")


def _check_align(where: str, view: View, kind: type[Shape]) -> None:
    if view.align is not None and kind is not F:
        raise ArchitectureError(f"{where}: align needs plain tables and scaled numbers only")
    if view.align is None and view.width is not None:
        raise ArchitectureError(f"{where}: width needs an align rule (lift or pad)")
    if view.align == "min" and view.width is not None:
        raise ArchitectureError(f"{where}: align 'min' takes the least width, so leave width out")


def _view_kind(architecture: Architecture, where: str, view: View) -> type[Shape]:
    kinds = {type(encoder) for encoder in view.encoders.values()}
    if any(architecture.fields[field].kind == "sequence" for field in view.encoders):
        if len(view.encoders) > 1:
            raise ArchitectureError(f"{where}: a sequence field needs a view of its own")
        return Q
    if PairsTableEncoder in kinds:
        return P
    return V if RawEncoder in kinds else F


def _field_aware_shape(where: str, view: View) -> P:
    dims = {encoder.dim for encoder in view.encoders.values() if isinstance(encoder, PairsTableEncoder)}
    same_kind = all(isinstance(encoder, PairsTableEncoder) for encoder in view.encoders.values())
    if len(dims) > 1 or not same_kind or len(view.encoders) < 2:
        raise ArchitectureError(f"{where}: field-aware encoders need two fields or more, all pairs_table of one dim")
    return P(len(view.encoders), dims.pop())


def _encoder_widths(architecture: Architecture, view: View) -> tuple[int, ...]:
    return tuple(
        encoder_width(architecture.fields[name], encoder, view, architecture) for name, encoder in view.encoders.items()
    )


def _encoder_flops(architecture: Architecture, view: View, name: str) -> int:
    # Look-ups are free; a number times a vector is one product per coordinate.
    field, encoder = architecture.fields[name], view.encoders[name]
    if isinstance(encoder, RowsEncoder):
        return _most_lifts(encoder) if encoder.align != "chain" else _chain_flops(encoder)
    if isinstance(encoder, BinsEncoder):
        average = encoder.bins * encoder.dim if encoder.aggregation == "average" else 0
        return bins_network(encoder)[1] + average
    scaled = field.kind == "numeric" and not isinstance(encoder, RawEncoder | BucketsEncoder)
    return encoder_width(field, encoder, view, architecture) if scaled else 0


def _chain_flops(encoder: RowsEncoder) -> int:
    """Every row passes every map, that of a wider block with zeros, and the normalisation."""
    first, *units = chain_widths(encoder)
    return mlp_parameters(first, units)[1] + encoder.dim


def _most_lifts(encoder: RowsEncoder) -> int:
    """Multiply-adds of the maps of the blocks that hold one category, at most."""
    mapped = [block for block, part in zip(encoder.blocks, block_maps(encoder), strict=True) if part]
    firsts = [block.model_copy(update={"rows": 1}) for block in mapped]
    held = [sum(block.dim for block in mapped if _overlap(block, first)) for first in firsts]
    return encoder.dim * max(held, default=0)


# ---- inputs of nodes ------------------------------------------------------------------------------------------------


class _Inputs:
    """The inputs of one node (or the head) with their shapes, and how to read them."""

    def __init__(self, where: str, refs: Sequence[str], shapes: Mapping[str, Shape]) -> None:
        self.where, self.refs = where, refs
        for ref in refs:
            if ref not in shapes:
                raise ArchitectureError(f"{where}: '{ref}' is field-aware and cannot be used alone")
        self.shapes = [shapes[ref] for ref in refs]

    def flat(self) -> int:
        """The width of all inputs flattened and put side by side."""
        return sum(shape.width for shape in self._vectors())

    def fields(self) -> F:
        """All inputs as fields of their own widths."""
        names: list[str] = []
        widths: list[int] = []
        for ref, shape in zip(self.refs, self._vectors(), strict=True):
            names += shape.names if isinstance(shape, F) else [_label(ref)]
            widths += shape.widths if isinstance(shape, F) else [shape.width]
        return F(tuple(names), tuple(widths))

    def _vectors(self) -> list[V | F]:
        vectors: list[V | F] = []
        for ref, shape in zip(self.refs, self.shapes, strict=True):
            if not isinstance(shape, V | F):
                advice = "pool it first" if isinstance(shape, Q) else "only ffm takes it"
                raise ArchitectureError(f"{self.where}: '{ref}' is {_KIND_WORDS[type(shape)]}; {advice}")
            vectors.append(shape)
        return vectors

    def sequence(self, others: int = 0) -> Q:
        """The first input, which must be a sequence, followed by `others` inputs."""
        first = self.shapes[0]
        if not isinstance(first, Q) or len(self.shapes) != 1 + others:
            raise ArchitectureError(f"{self.where}: needs one sequence{' and one vector' if others else ''} as input")
        return first

    def field_aware(self) -> P:
        first = self.shapes[0]
        if not isinstance(first, P) or len(self.shapes) != 1:
            raise ArchitectureError(f"{self.where}: needs one whole view of pairs_table encoders as input")
        return first


_KIND_WORDS: dict[type[Shape], str] = {Q: "a sequence", P: "field-aware"}


def _label(ref: str) -> str:
    """The name under which `pairs` finds a V input: the field of `view.field`, or the node's or view's own."""
    return ref.partition(".")[2] or ref


def fields_op(node: Node) -> bool:
    """Whether the node collects fields of one width."""
    return isinstance(node, FieldsNode)


def collected(node: Node, shapes: Mapping[str, Shape]) -> Collected:
    """The fields that a fields op works on, and the lifts that bring them to one width."""
    assert isinstance(node, FieldsNode)
    return _collected(node, _Inputs(f"node '{node.id}'", node.inputs, shapes))


def _collected(node: FieldsNode, inputs: _Inputs) -> Collected:
    fields = inputs.fields()
    width = _common_width(inputs.where, fields.widths, node.align, node.width if isinstance(node, MHA) else node.dim)
    return Collected(fields.names, width, () if node.align == "pad" else _lifts(fields.widths, width))


def _common_width(where: str, widths: tuple[int, ...], align: Align | None, dim: int | None) -> int:
    if dim is not None:
        if align in ("min", "pad"):
            raise ArchitectureError(f"{where}: dim sets the width, so align must be 'lift' or left out, not '{align}'")
        return dim
    if align == "min":
        return min(widths)
    if align == "pad":
        return max(widths)
    if len(set(widths)) > 1:
        raise ArchitectureError(f"{where}: inputs are {sorted(set(widths))} wide; set dim, or align: min or pad")
    return widths[0]


def _lifts(widths: tuple[int, ...], width: int) -> tuple[Lift, ...]:
    return tuple(Lift(position, w, width) for position, w in enumerate(widths) if w != width)


def kept(node: Pairs | Triples, names: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The pairs (or triples) as positions among the collected fields, in field order."""
    where, size = f"node '{node.id}'", ORDERS[type(node)]
    if len(names) < size:
        raise ArchitectureError(f"{where}: {node.op} need {_NUMBERS[size]} fields or more")
    if node.keep == "all":
        return tuple(combinations(range(len(names)), size))
    return tuple(sorted(_positions(where, "keep", node.keep, names, least=size)))


ORDERS: dict[type[Node], int] = {Pairs: 2, Triples: 3}


def grouped(node: Groups, names: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The sets as positions among the collected fields, in the node's order."""
    return _positions(f"node '{node.id}'", "sets", node.sets, names, least=min(node.order, 2))


def multiplied(node: Hadamard, names: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The sets as positions among the collected fields, in field order."""
    where = f"node '{node.id}'"
    found = tuple(sorted(_positions(where, "sets", node.sets, names, least=2)))
    if len(set(found)) < len(found):
        raise ArchitectureError(f"{where}: sets must list each product once")
    return found


def _positions(where: str, key: str, sets: Sets, names: tuple[str, ...], least: int) -> tuple[tuple[int, ...], ...]:
    if len(set(names)) < len(names):
        raise ArchitectureError(f"{where}: {key} cannot tell fields of equal name apart: {', '.join(sorted(names))}")
    for name in (name for one in sets for name in one):
        if name not in names:
            raise ArchitectureError(f"{where}: {key}: no field '{name}' among {', '.join(names)}")
    found = tuple(tuple(sorted(map(names.index, one))) for one in sets)
    repeated = key == "keep" and len(set(found)) < len(found)
    if not found or repeated or any(len(set(one)) < max(least, len(one)) for one in found):
        size = "one field" if least == 1 else f"{_NUMBERS[least]} different fields"
        rest = ", each once" if key == "keep" else " or more, each once in its set"
        raise ArchitectureError(f"{where}: {key} must list one set or more, of {size}{rest}")
    return found


_NUMBERS = {2: "two", 3: "three"}


def head_map_widths(head: ValueHead, shapes: Mapping[str, Shape]) -> list[int]:
    """The width of each linear map to one number in the head: one over everything, or one per wide summand."""
    if head.mode == "linear":
        return [_Inputs("head", head.inputs, shapes).flat()]
    return [width for width in map(_summand_width, (shapes[ref] for ref in head.inputs)) if width > 1]


@dataclass(frozen=True)
class ItemsTable:
    """What a head of mode `items` works with."""

    view: str
    field: str
    rows: int
    dim: int
    width: int
    """Of the inputs side by side; a linear map brings them to `dim` where it differs."""

    @property
    def map_parameters(self) -> int:
        return self.width * self.dim if self.width != self.dim else 0


def items_table(architecture: Architecture, head: ItemsHead, shapes: Mapping[str, Shape]) -> ItemsTable:
    """The table that the head meets."""
    view, field = architecture.resolve(head.items)
    assert field is not None
    encoder = architecture.views[view].encoders[field]
    assert isinstance(encoder, TableEncoder)
    width = _Inputs("head", head.inputs, shapes).flat()
    return ItemsTable(view, field, architecture.fields[field].cardinality, encoder.dim, width)


def _head_count(architecture: Architecture, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Parameters and multiply-adds of the head."""
    head = architecture.head
    assert not isinstance(head, RoutedHead)
    if isinstance(head, ItemsHead):
        items = items_table(architecture, head, shapes)
        return items.map_parameters + head.bias * items.rows, items.map_parameters + items.rows * items.dim
    maps = sum(head_map_widths(head, shapes))
    return maps + head.bias, maps


def _check_head(architecture: Architecture) -> None:
    """The head fits the task; where it predicts a field, that field's value in the row is read nowhere."""
    head, task = architecture.head, architecture.task
    if isinstance(head, RoutedHead):
        _check_apart(architecture)
    if not isinstance(head, ItemsHead):
        if task == "next_item":
            raise ArchitectureError(f"head: mode '{head.mode}' gives one number; task next_item needs mode: items")
        return
    if task != "next_item":
        raise ArchitectureError(f"head: mode 'items' is for task next_item; use sum or linear for {task}")
    name, target = architecture.resolve(head.items)
    view = architecture.views.get(name)
    if view is None or target is None or not isinstance(view.encoders[target], TableEncoder):
        raise ArchitectureError(f"head: items: '{head.items}' is no table of a categorical field; write view.field")
    if architecture.fields[target].kind != "categorical":
        raise ArchitectureError(f"head: items: '{target}' is no categorical field")
    if view.align is not None:
        raise ArchitectureError(f"head: items: view '{name}' aligns its fields; give '{target}' a view without align")
    for reader in architecture.nodes:
        _check_reads(architecture, f"node '{reader.id}'", reader.inputs, target)
    _check_reads(architecture, "head", head.inputs, target)


def _check_apart(architecture: Architecture) -> None:
    owner: dict[str, int] = {}
    for number, part in enumerate(architecture.parts()):
        names = {architecture.resolve(ref)[0] for ref in reached(part)}
        for name in sorted(names, key=lambda name: (name in architecture.views, name)):  # views come with their readers
            if owner.setdefault(name, number) != number:
                message = f"'{name}' is read by part {owner[name]} and by part {number}; give each its own"
                raise ArchitectureError(f"head: {message}")


def _check_reads(architecture: Architecture, where: str, refs: Sequence[str], target: str) -> None:
    for ref in refs:
        name, field = architecture.resolve(ref)
        view = architecture.views.get(name)
        if view is not None and target in (view.encoders if field is None else (field,)):
            raise ArchitectureError(
                f"{where}: '{ref}' holds the row's own '{target}', which is what the model predicts; read other fields,"
                f" or a sequence of '{target}'"
            )


def _summand_width(shape: Shape) -> int:
    assert isinstance(shape, V | F)
    first_order = isinstance(shape, F) and set(shape.widths) == {1}
    return 1 if first_order else shape.width


# ---- one rule per op: the output's shape ----------------------------------------------------------------------------


def _flat_rule(node: Concat | Cross, inputs: _Inputs) -> Shape:
    return V(inputs.flat())


def _number_rule(node: Inner | FM, inputs: _Inputs) -> Shape:
    _collected(node, inputs)
    return V(1)


def _elementwise_rule(node: Elementwise, inputs: _Inputs) -> Shape:
    return V(_collected(node, inputs).width)


def _pairs_rule(node: Pairs, inputs: _Inputs) -> Shape:
    fields = _collected(node, inputs)
    pairs = len(kept(node, fields.names))
    products = node.norm == "batch" or node.out == "each"
    if products and (isinstance(node.weight, Attention) or node.out in ("vector", "linear")):
        message = "norm: batch and out: each are for inner products: use weight one or scalar, and out sum or each"
        raise ArchitectureError(f"{inputs.where}: {message}")
    return V({"vector": fields.width, "each": pairs}.get(node.out, 1))


def _triples_rule(node: Triples, inputs: _Inputs) -> Shape:
    triples = len(kept(node, _collected(node, inputs).names))
    return V(triples if node.out == "each" else 1)


def _groups_rule(node: Groups, inputs: _Inputs) -> Shape:
    fields = _collected(node, inputs)
    sets = len(grouped(node, fields.names))
    return V(sets * fields.width if node.order == 1 else sets)


def _hadamard_rule(node: Hadamard, inputs: _Inputs) -> Shape:
    fields = _collected(node, inputs)
    products = tuple(product_name(fields.names[m] for m in one) for one in multiplied(node, fields.names))
    return F(products, (fields.width,) * len(products))


def _se_rule(node: SE, inputs: _Inputs) -> Shape:
    fields = _collected(node, inputs)
    return F(fields.names, (fields.width,) * fields.fields)


def squeezed(node: SE, fields: Collected) -> int:
    """Units of the first of the two layers."""
    return max(1, fields.fields // node.reduction)


def _ffm_rule(node: FFM, inputs: _Inputs) -> Shape:
    inputs.field_aware()
    return V(1)


def _dot_rule(node: Dot, inputs: _Inputs) -> Shape:
    fields = _collected(node, inputs)
    if node.triangle == "strict" and fields.fields < 2:
        raise ArchitectureError(f"{inputs.where}: dot needs two fields or more, or triangle: full")
    return V(dot_width(node, fields))


def dot_width(node: Dot, fields: Collected) -> int:
    """Number of inner products."""
    return fields.pairs + (fields.fields if node.triangle == "full" else 0)


def _mha_rule(node: MHA, inputs: _Inputs) -> Shape:
    fields = _collected(node, inputs)
    return F(fields.names, (node.heads * node.dim,) * fields.fields)


def _mlp_rule(node: MLP, inputs: _Inputs) -> Shape:
    inputs.flat()
    layers, listed = len(node.units), node.activation
    if isinstance(listed, tuple) and len(listed) != layers:
        raise ArchitectureError(
            f"{inputs.where}: activation lists {len(listed)} for {layers} layers; list one for each"
        )
    return V(node.units[-1])


def _to_vector_rule(node: Pool | Last, inputs: _Inputs) -> Shape:
    return V(inputs.sequence().width)


def _positions_rule(node: Positions, inputs: _Inputs) -> Shape:
    return inputs.sequence()


def _seq_rule(node: Seq, inputs: _Inputs) -> Shape:
    if isinstance(node.layer, SkipLayer) and not node.residual:
        raise ArchitectureError(f"{inputs.where}: layer skip without residual gives zeros; set residual: true")
    sequence, heads = inputs.sequence(), node.layer.heads if isinstance(node.layer, AttentionLayer) else 1
    if sequence.width % heads:
        raise ArchitectureError(f"{inputs.where}: width {sequence.width} does not divide into {heads} heads")
    return sequence


def _target_attention_rule(node: TargetAttention, inputs: _Inputs) -> Shape:
    sequence = inputs.sequence(others=1)
    target = inputs.shapes[1]
    if not isinstance(target, V) or target.width != sequence.width:
        raise ArchitectureError(f"{inputs.where}: the target (second input) must be a vector {sequence.width} wide")
    return V(sequence.width)


_RULES: dict[type[Node], Callable[[Any, _Inputs], Shape]] = {
    Concat: _flat_rule,
    Inner: _number_rule,
    Elementwise: _elementwise_rule,
    FM: _number_rule,
    Pairs: _pairs_rule,
    Triples: _triples_rule,
    Groups: _groups_rule,
    Hadamard: _hadamard_rule,
    SE: _se_rule,
    FFM: _ffm_rule,
    Dot: _dot_rule,
    Cross: _flat_rule,
    MHA: _mha_rule,
    MLP: _mlp_rule,
    Pool: _to_vector_rule,
    Positions: _positions_rule,
    Seq: _seq_rule,
    Last: _to_vector_rule,
    TargetAttention: _target_attention_rule,
}


# ---- one count per op: (parameters, multiply-adds per row) without lifts --------------------------------------------


def _free_count(node: Concat | Last, inputs: _Inputs) -> tuple[int, int]:
    return 0, 0


def _product_count(node: Inner | Elementwise, inputs: _Inputs) -> tuple[int, int]:
    fields = _collected(node, inputs)
    return 0, (fields.fields - 1) * fields.width


def _fm_count(node: FM, inputs: _Inputs) -> tuple[int, int]:
    # Through the power sums: one square per coordinate of each field, one of their sum.
    fields = _collected(node, inputs)
    return 0, (fields.fields + 1) * fields.width


def _pairs_count(node: Pairs, inputs: _Inputs) -> tuple[int, int]:
    fields = _collected(node, inputs)
    pairs, width = len(kept(node, fields.names)), fields.width
    out = width if node.out == "linear" else 0
    if isinstance(node.weight, Attention):
        hidden = node.weight.attention
        return hidden * (width + 2) + out, pairs * (2 * width + hidden * (width + 1)) + out
    if node.norm == "batch" or node.out == "each":
        return _weights(node, pairs), pairs * (width + 1)
    if node.weight == "scalar":
        return pairs + out, 2 * pairs * width + out
    return out, pairs * width + out


def _weights(node: Pairs | Triples, sets: int) -> int:
    return sets if node.weight == "scalar" else 0


def _triples_count(node: Triples, inputs: _Inputs) -> tuple[int, int]:
    fields = _collected(node, inputs)
    triples = len(kept(node, fields.names))
    return _weights(node, triples), triples * (2 * fields.width + 1)


def _groups_count(node: Groups, inputs: _Inputs) -> tuple[int, int]:
    # Per set and coordinate: a product for each field's weight, and for p > 1 p - 1 for each power.
    fields = _collected(node, inputs)
    members = [len(one) for one in grouped(node, fields.names)]
    powers = sum((node.order - 1) * (members_of + 1) for members_of in members)
    return sum(members), (sum(members) + powers) * fields.width


def _hadamard_count(node: Hadamard, inputs: _Inputs) -> tuple[int, int]:
    fields = _collected(node, inputs)
    return 0, sum(len(one) - 1 for one in multiplied(node, fields.names)) * fields.width


def _se_count(node: SE, inputs: _Inputs) -> tuple[int, int]:
    fields = _collected(node, inputs)
    parameters, flops = mlp_parameters(fields.fields, [squeezed(node, fields), fields.fields])
    return parameters, flops + fields.fields * fields.width


def _ffm_count(node: FFM, inputs: _Inputs) -> tuple[int, int]:
    shape = inputs.field_aware()
    return 0, comb(shape.fields, 2) * shape.dim


def _dot_count(node: Dot, inputs: _Inputs) -> tuple[int, int]:
    fields = _collected(node, inputs)
    return 0, dot_width(node, fields) * fields.width


def _cross_count(node: Cross, inputs: _Inputs) -> tuple[int, int]:
    n = inputs.flat()
    weights = n if node.kind == "vector" else n * n
    return node.layers * (weights + n), node.layers * (weights + n)


def _mha_count(node: MHA, inputs: _Inputs) -> tuple[int, int]:
    fields = _collected(node, inputs)
    out = node.heads * node.dim
    widths = [fields.width] + [out] * (node.layers - 1)
    maps = sum((3 + node.residual) * width * out for width in widths)
    return maps, fields.fields * maps + node.layers * 2 * fields.fields**2 * out


def mlp_parameters(width: int, units: Sequence[int]) -> tuple[int, int]:
    """Weights with biases, and multiply-adds, of linear layers from `width` through `units`."""
    pairs = list(zip([width, *units], units, strict=False))
    products = sum(before * after for before, after in pairs)
    return products + sum(units), products


def _mlp_count(node: MLP, inputs: _Inputs) -> tuple[int, int]:
    parameters, flops = mlp_parameters(inputs.flat(), node.units)
    shortcut = inputs.flat() * node.units[-1] if node.shortcut == "linear" else 0
    norm = sum(node.units) if node.norm == "batch" else 0
    return parameters + 2 * norm + shortcut, flops + norm + shortcut


def _pool_count(node: Pool, inputs: _Inputs) -> tuple[int, int]:
    sequence = inputs.sequence()
    return 0, sequence.length * sequence.width


def _positions_count(node: Positions, inputs: _Inputs) -> tuple[int, int]:
    sequence = inputs.sequence()
    return sequence.length * sequence.width, 0


def _seq_count(node: Seq, inputs: _Inputs) -> tuple[int, int]:
    sequence = inputs.sequence()
    parameters, flops = _layer_count(node, sequence.length, sequence.width)
    return parameters + (2 * sequence.width if node.norm == "layer" else 0), flops


def _layer_count(node: Seq, steps: int, d: int) -> tuple[int, int]:
    match node.layer:
        case ConvLayer(kernel=kernel):
            return kernel * d * d + d, steps * kernel * d * d
        case PoolLayer(kernel=kernel):
            return 0, steps * kernel * d
        case GRULayer():
            weights = 6 * d * d if node.causal else 14 * d * d
            return weights + (6 * d if node.causal else 13 * d), steps * weights
        case AttentionLayer():
            return 4 * d * d + 4 * d, steps * 4 * d * d + 2 * steps * steps * d
        case FeedForwardLayer():
            return 2 * d * d + 2 * d, steps * 2 * d * d
        case SkipLayer() | IdentityLayer():
            return 0, 0


def _target_attention_count(node: TargetAttention, inputs: _Inputs) -> tuple[int, int]:
    sequence = inputs.sequence(others=1)
    parameters, flops = mlp_parameters(4 * sequence.width, [*node.units, 1])
    return parameters, sequence.length * (flops + 2 * sequence.width)


_COUNTS: dict[type[Node], Callable[[Any, _Inputs], tuple[int, int]]] = {
    Concat: _free_count,
    Inner: _product_count,
    Elementwise: _product_count,
    FM: _fm_count,
    Pairs: _pairs_count,
    Triples: _triples_count,
    Groups: _groups_count,
    Hadamard: _hadamard_count,
    SE: _se_count,
    FFM: _ffm_count,
    Dot: _dot_count,
    Cross: _cross_count,
    MHA: _mha_count,
    MLP: _mlp_count,
    Pool: _pool_count,
    Positions: _positions_count,
    Seq: _seq_count,
    Last: _free_count,
    TargetAttention: _target_attention_count,
}
