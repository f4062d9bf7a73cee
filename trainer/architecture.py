"""The one description of a recommender model: pure data that every search emits and that the one builder builds.

An architecture names the fields of a dataset, encodes them into *views* (one embedding per field), connects views by
*nodes* (interactions, layers), and ends in a *head* that makes one number per row. Sizes only, never weights: a
description fixes the shape of every parameter. `trainer.shapes` infers shapes and counts parameters without torch;
`trainer.build` makes the module.

References, as used by nodes and by the head: `view` (all fields of a view), `view.field` (one of them), or a node's id.

Kinds of values between nodes (B rows):

- V: (B, n), one vector per row; with n = 1 a logit.
- F: (B, M, d), one vector for each of M fields. The widths may differ until an op aligns them.
- Q: (B, T, d) with a mask of valid steps: a sequence.
- P: (B, M, M - 1, d), one vector per field and partner field: what `ffm` takes.

This module and `trainer.shapes` import no torch, so that a description can be checked where torch is not installed.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from trainer.errors import UserError
from trainer.index import unpacked
from trainer.schema import DatasetSchema, FieldKind, Task

Align = Literal["lift", "min", "pad"]
Activation = Literal["relu", "gelu", "silu", "tanh", "identity"]
BucketRule = Literal["equal_width", "equal_frequency", "logarithm", "tree"]
Sets = tuple[tuple[str, ...], ...]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
Dropout = Annotated[float, Field(ge=0, lt=1)]


UNREAD = "unread"
"""Written as the one input of a head: all that no node reads."""


class ArchitectureError(UserError):
    """A description that cannot be built. The message names the node, view or field that is wrong."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class FieldSpec(_Data):
    """One field of the dataset, as far as a model must know it (see `trainer.schema.Field`)."""

    kind: FieldKind
    cardinality: int = 0
    missing: bool = False
    of: str | None = None
    max_len: int = 0


class TableEncoder(_Data):
    """One learned row of `dim` numbers per category (categorical), or per step (sequence).

    `places`: the columns, rising, that these numbers fill of the width that their view pads them to (`align: pad`), the
    first ones if left out. They matter where fields meet coordinate by coordinate, as in an inner product.
    """

    kind: Literal["table"] = "table"
    dim: PositiveInt
    places: tuple[NonNegativeInt, ...] | None = None


class Block(_Data):
    """A table of its own for `rows` categories of a field, the first of them number `first`, `dim` wide."""

    first: NonNegativeInt
    rows: PositiveInt
    dim: PositiveInt


class RowsEncoder(_Data):
    """Categorical: a width for each range of categories, which are numbered by falling frequency (NIS, Joglekar 2020).

    With an `index` (`trainer.index`), the number of every category's block, ranges are of the categories in the order
    of these numbers and then of their ids: blocks follow each other and hold exactly what the index puts in them.

    A category's vector is what the blocks that hold it have for it, side by side in their order, `dim` wide at most. It
    comes to `dim` by zeros at the end (`pad`), or as the sum of bias-free linear maps of its parts (`lift`): one map
    for all parts of one width that begin at one column, none for a part `dim` wide. The vector of a category that no
    block holds is zero.

    `chain`: blocks rise in width, and affine maps lead from each width to the next, from the last to `dim` if that is
    greater. A category's row enters at its block and passes all maps after it; the result is normalised over the batch
    and passes tanh (ESAPN, Liu 2020). Every category is in a block.
    """

    kind: Literal["rows"] = "rows"
    dim: PositiveInt
    blocks: tuple[Block, ...] = Field(min_length=1)
    align: Literal["lift", "pad", "chain"] = "lift"
    index: str | None = None


class Tail(_Data):
    """The categories from number `first` on, whose codes are all below `centroids`."""

    first: NonNegativeInt
    centroids: PositiveInt


class QuantizedEncoder(_Data):
    """Categorical: `subspaces` vectors side by side, each one of `centroids` that categories share (DPQ, Chen 2020).

    The `index` (`trainer.index`) has for every category a code, a byte, for each of its sub-vectors. It is fixed; what
    is learned are the centroids, a table of its own for each sub-space, `dim` / `subspaces` wide. Rare categories may
    have fewer centroids to choose from than frequent ones (`tail`; MGQE, Kang 2020).
    """

    kind: Literal["quantized"] = "quantized"
    dim: PositiveInt
    subspaces: PositiveInt
    centroids: Annotated[int, Field(ge=1, le=256)]
    index: str
    tail: Tail | None = None


class ScaleEncoder(_Data):
    """Numeric: value times a learned vector; a second learned vector stands for a missing value if there are any."""

    kind: Literal["scale"] = "scale"
    dim: PositiveInt


class RawEncoder(_Data):
    """Numeric: the value itself, missing as 0, and a column that marks it if there are any. Makes the view a V."""

    kind: Literal["raw"] = "raw"


class BinsEncoder(_Data):
    """Numeric: soft bins with a learned vector each (AutoDis, Guo 2021); a missing value has a vector of its own.

    The value, mapped from `range` to [0, 1], gives `bins` logits (bins - 1)^2 (h + W h + c), h = LeakyReLU(w x + b);
    their softmax at `temperature` weighs the bins' vectors. At temperature 1 fresh bins are as wide as their distance;
    the paper's skip factor is 1, for with a free W any other gives the same networks. `adaptive`: the temperature is
    `temperature` plus or minus at most this, by a small network of the value. `aggregation`: the weighted average of
    all vectors, the vector of the greatest weight, or the plain sum of the `top` greatest. `bias: false` leaves out b
    and c, as version 2 of the paper has it; logits are then proportional to a value of one sign, and the order of the
    bins is the same for all of these.
    """

    kind: Literal["bins"] = "bins"
    dim: PositiveInt
    bins: PositiveInt = 20
    temperature: PositiveFloat = 1.0
    adaptive: PositiveFloat | None = None
    bias: bool = True
    aggregation: Literal["average", "max", "top"] = "average"
    top: PositiveInt = 3
    range: tuple[float, float] = (0.0, 1.0)


class BucketsEncoder(_Data):
    """Numeric: a learned vector per bucket between fixed `boundaries`, and one for a missing value if there are any.

    A value equal to a boundary belongs below it. `rule` says how the boundaries were found in the training rows.
    """

    kind: Literal["buckets"] = "buckets"
    dim: PositiveInt
    rule: BucketRule
    boundaries: tuple[float, ...] = Field(min_length=1)


class ShareEncoder(_Data):
    """Sequence: the table that the field it is `of` has in another view."""

    kind: Literal["share"] = "share"
    view: Name


class PairsTableEncoder(_Data):
    """Field-aware: one vector of `dim` numbers per category (or a scaled one per numeric field) and partner field."""

    kind: Literal["pairs_table"] = "pairs_table"
    dim: PositiveInt


Encoder = Annotated[
    TableEncoder
    | RowsEncoder
    | QuantizedEncoder
    | ScaleEncoder
    | RawEncoder
    | BinsEncoder
    | BucketsEncoder
    | ShareEncoder
    | PairsTableEncoder,
    Field(discriminator="kind"),
]


class View(_Data):
    """One embedding of some fields. A field may be encoded in several views.

    `align` brings encoders of unequal dims to one width: `lift` and `pad` to `width` (the widest if not set), `min`
    to the narrowest. A view with a sequence field holds nothing else and is a Q; one with a raw encoder is a V;
    field-aware encoders make a P; all others an F.
    """

    encoders: dict[str, Encoder] = Field(min_length=1)
    align: Align | None = None
    width: PositiveInt | None = None


class _Op(_Data):
    id: Name
    inputs: tuple[str, ...] = Field(alias="in", min_length=1)


class _FieldsOp(_Op):
    """An op on fields: an F input gives its M fields, a V input one field.

    Unequal widths need a rule. `dim` set: every field of another width passes its own bias-free linear map to `dim`.
    `align: min`: the same to the least width. `align: pad`: zeros up to the greatest width.
    """

    align: Align | None = None
    dim: PositiveInt | None = None


class Concat(_Op):
    """All inputs flattened, side by side. V."""

    op: Literal["concat"] = "concat"


class Inner(_FieldsOp):
    """Sum over coordinates of the product over fields: V(1). With two fields the inner product (AutoRec section 2)."""

    op: Literal["inner"] = "inner"


class Elementwise(_FieldsOp):
    """One operation over the fields, coordinate by coordinate: V(d)."""

    op: Literal["elementwise"] = "elementwise"
    kind: Literal["sum", "average", "multiply", "max", "min"]


class FM(_FieldsOp):
    """Sum of the inner products of all pairs of fields: V(1) (Rendle 2010)."""

    op: Literal["fm"] = "fm"


class Attention(_Data):
    """Pair weights by a softmax over pairs of h·relu(W(a*b) + c) with `attention` hidden units (AFM, Xiao 2017)."""

    attention: PositiveInt


class Pairs(_FieldsOp):
    """Weighted products of pairs of fields.

    `keep` lists pairs by field name (or by node id). `weight`: one, a learned scalar per pair (FwFM, Pan 2018), or
    attention. `norm`: batch normalisation of each inner product before its weight, without learned scale and shift
    (AutoFIS, Liu 2020). `out`: `sum` of the inner products, V(1); `each` of them, V(pairs); `vector`, the sum of the
    elementwise products, V(d); `linear`, that vector through a bias-free linear map, V(1).
    """

    op: Literal["pairs"] = "pairs"
    keep: Literal["all"] | tuple[tuple[str, str], ...] = "all"
    weight: Literal["one", "scalar"] | Attention = "one"
    norm: Literal["none", "batch"] = "none"
    out: Literal["sum", "each", "linear", "vector"] = "sum"


class Triples(_FieldsOp):
    """Weighted products of three fields, each summed over its coordinates; settings as in `Pairs` (AutoFIS)."""

    op: Literal["triples"] = "triples"
    keep: Literal["all"] | tuple[tuple[str, str, str], ...] = "all"
    weight: Literal["one", "scalar"] = "one"
    norm: Literal["none", "batch"] = "none"
    out: Literal["sum", "each"] = "sum"


class Groups(_FieldsOp):
    """Interactions of `order` p within sets of fields, listed by name (AutoGroup, Liu 2020).

    A set's vector is g = sum of w_i x_i over its fields, every w learned. p = 1: all g, V(sets * d). Else the sum over
    coordinates of g^p - sum of (w_i x_i)^p, V(sets): all ordered p-tuples of its fields that are not p times one field.
    `norm`: batch normalisation of each coordinate of each field first, without learned scale and shift.
    """

    op: Literal["groups"] = "groups"
    order: Literal[1, 2, 3]
    sets: Sets = Field(min_length=1)
    norm: Literal["none", "batch"] = "none"


class Hadamard(_FieldsOp):
    """The elementwise product over each set of two or more fields, listed by name: F(sets, d) (AMEIR, Zhao 2021).

    Products stand in the order of the fields and are called by the names of theirs, sorted: `item*user`.
    """

    op: Literal["hadamard"] = "hadamard"
    sets: Sets = Field(min_length=1)


class SE(_FieldsOp):
    """Squeeze and excitation: each field times a weight between 0 and 1: F(M, d) (SENet, Hu 2018; AMEIR, Zhao 2021).

    The weights are made from the fields' means by a layer with M / `reduction` units (rounded down, at least one) and
    ReLU, and a second one with a sigmoid.
    """

    op: Literal["se"] = "se"
    reduction: PositiveInt = 2


class FFM(_Op):
    """Field-aware pairs: each field meets a partner with the vector it keeps for that partner: V(1) (Juan 2016)."""

    op: Literal["ffm"] = "ffm"


class Dot(_FieldsOp):
    """The inner product of every pair of fields (with itself too: `full`): V(pairs) (DLRM, Naumov 2019)."""

    op: Literal["dot"] = "dot"
    triangle: Literal["strict", "full"] = "strict"


class Cross(_Op):
    """Layers x0 * f(x) + x on the flattened inputs: f gives one number per row (DCN) or is a matrix map (DCNv2)."""

    op: Literal["cross"] = "cross"
    layers: PositiveInt
    kind: Literal["vector", "matrix"] = "vector"


class MHA(_Op):
    """Self-attention between fields: F(M, heads * dim) (AutoInt, Song 2019).

    `width`: every field of another width passes its own bias-free linear map to `width` first. `align` as in other
    ops on fields.
    """

    op: Literal["mha"] = "mha"
    dim: PositiveInt
    heads: PositiveInt = 2
    layers: PositiveInt = 1
    residual: bool = True
    width: PositiveInt | None = None
    align: Align | None = None


class MLP(_Op):
    """Layers of linear, normalisation, activation, dropout on the flattened inputs: V(units[-1]).

    `activation` is one for all layers or a list with one for each. `shortcut: linear` adds a bias-free linear map of
    the inputs to what the last layer gives.
    """

    op: Literal["mlp"] = "mlp"
    units: tuple[PositiveInt, ...] = Field(min_length=1)
    activation: Activation | tuple[Activation, ...] = "relu"
    norm: Literal["none", "batch"] = "none"
    dropout: Dropout = 0.0
    shortcut: Literal["none", "linear"] = "none"


class Pool(_Op):
    """Mean, sum or maximum over the valid steps of a sequence: V(d); an empty sequence gives zeros."""

    op: Literal["pool"] = "pool"
    kind: Literal["mean", "sum", "max"] = "mean"


class Positions(_Op):
    """A learned vector added to each step for its distance from the last valid one: Q(d)."""

    op: Literal["positions"] = "positions"
    dropout: Dropout = 0.0


class SkipLayer(_Data):
    """Zeros: the block passes its input on, and a model is built without it."""

    kind: Literal["skip"]


class ConvLayer(_Data):
    """Convolution over `kernel` steps that stand `dilation` apart."""

    kind: Literal["conv"]
    kernel: PositiveInt = 3
    dilation: PositiveInt = 1


class PoolLayer(_Data):
    """Mean or maximum over those of `kernel` neighbouring steps that are valid."""

    kind: Literal["mean_pool", "max_pool"]
    kernel: Annotated[int, Field(ge=2)] = 3


class GRULayer(_Data):
    """A gated recurrent unit's state at every step; with a second one from the end, a linear map joins the two."""

    kind: Literal["gru"]


class AttentionLayer(_Data):
    """Self-attention over the valid steps."""

    kind: Literal["attention"]
    heads: PositiveInt = 1


class FeedForwardLayer(_Data):
    """Two linear maps as wide as a step, a ReLU between them (SASRec, Kang 2018, equation 4)."""

    kind: Literal["feed_forward"]


class IdentityLayer(_Data):
    """Each step as it is: without `residual` the block is its norm and activation alone."""

    kind: Literal["identity"]


SequenceLayer = Annotated[
    SkipLayer | ConvLayer | PoolLayer | GRULayer | AttentionLayer | FeedForwardLayer | IdentityLayer,
    Field(discriminator="kind"),
]


class Seq(_Op):
    """A block activation(layer(norm(x))) + x over a sequence, zero where no step is valid: Q(d) (AMEIR, Zhao 2021).

    `residual: false` leaves out the sum. `causal: true`: no step sees later ones; windows end at the step itself (else
    it stands in their middle), and only the GRU from the start is there. `dropout` is that of what is added to x, of
    the weights of attention, and of what the ReLU of a feed-forward layer gives.
    """

    op: Literal["seq"] = "seq"
    norm: Literal["none", "layer"] = "none"
    layer: SequenceLayer
    activation: Activation = "identity"
    residual: bool = True
    causal: bool = False
    dropout: Dropout = 0.0


class Last(_Op):
    """The last valid step of a sequence: V(d); an empty sequence gives zeros."""

    op: Literal["last"] = "last"


class TargetAttention(_Op):
    """The first input, a sequence, summed with weights from an MLP on each step and the second, the target: V(d) (DIN).

    The target is a V as wide as a step. Weights are not normalised (Zhou 2018, section 4.3).
    """

    op: Literal["target_attention"] = "target_attention"
    units: tuple[PositiveInt, ...] = Field(default=(32,), min_length=1)


Node = Annotated[
    Concat
    | Inner
    | Elementwise
    | FM
    | Pairs
    | Triples
    | Groups
    | Hadamard
    | SE
    | FFM
    | Dot
    | Cross
    | MHA
    | MLP
    | Pool
    | Positions
    | Seq
    | Last
    | TargetAttention,
    Field(discriminator="op"),
]
FieldsNode = Inner | Elementwise | FM | Pairs | Triples | Groups | Hadamard | SE | Dot | MHA
"""Ops that collect fields and may align their widths."""


class ValueHead(_Data):
    """The one number per row (tasks ctr and rating).

    `linear`: all inputs flattened, through one linear map. `sum`: the inputs are added. There an F of width-1 fields
    (first-order weights) counts as the sum of its fields, and any other input wider than 1 passes its own bias-free
    linear map to 1 first. `in: [unread]` stands for every view, field and node that no node reads.
    """

    mode: Literal["sum", "linear"]
    inputs: tuple[str, ...] = Field(alias="in", min_length=1)
    bias: bool = True


class ItemsHead(_Data):
    """A logit for each category of a field, (B, cardinality) (task next_item).

    All inputs flattened, through one bias-free linear map if they are not as wide as the table of `items`, meet every
    row of that table in an inner product; `bias` adds a learned number per category. Category 0, the unknown, has logit
    -inf. `items` names the table as `view.field`. That field's value in the row is the answer: no node may read it.
    """

    mode: Literal["items"]
    inputs: tuple[str, ...] = Field(alias="in", min_length=1)
    items: str
    bias: bool = True


class RoutedHead(_Data):
    """One of several models for each row (tasks ctr and rating): part k computes the rows of group k.

    `router`: for some categorical fields the votes of each category, packed as `trainer.index` does it: a signed byte
    for each group but the first, (cardinality, parts - 1). The group of a row is the one with the greatest sum of
    votes, the first group having 0, and of equals the lowest. So a router holds every rule "the nearest of some
    centroids" for vectors that each field's category decides alone: a category's votes are what its squared distance to
    the first centroid is greater than to the others (iHAS, Yu 2023).

    No part reads a view or node that another one reads.
    """

    mode: Literal["routed"]
    router: dict[str, str] = Field(min_length=1)
    parts: tuple[ValueHead, ...] = Field(min_length=2)


Head = Annotated[ValueHead | ItemsHead | RoutedHead, Field(discriminator="mode")]


class Architecture(_Data):
    """A whole model. Build it with `from_dict`, which reports every mistake in its form as an `ArchitectureError`.

    `fields` holds all fields of the dataset in the order of its schema, used or not: it is the order of the columns of
    a batch. Nodes stand in an order in which each uses only nodes above it.
    """

    version: Literal[1] = 1
    task: Task
    fields: dict[str, FieldSpec]
    views: dict[Name, View]
    nodes: tuple[Node, ...] = ()
    head: Head

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Architecture":
        """The architecture that `data` describes, shapes not yet checked (see `trainer.shapes.infer`).

        Raises ArchitectureError for a wrong form, an unknown reference, or a node that uses one below it.
        """
        try:
            architecture = _with_unread(Architecture.model_validate(data))
        except ValidationError as error:
            raise ArchitectureError(_form_message(data, error)) from None
        _check_references(architecture)
        return architecture

    def to_dict(self) -> dict[str, Any]:
        """Plain data, every default shown; `from_dict` reads it back."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the canonical form: equal for descriptions of the same model whatever their names, the
        order of keys, of fields and of inputs that may be swapped, and whatever parts the head does not reach.
        """
        text = json.dumps(_canonical(self.live()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def live(self) -> "Architecture":
        """This architecture without nodes, views and encoders that no way to the head reads, and without blocks of
        sequences that skip their layer. Fields all stay.
        """
        plain = _without_skips(self)
        used = reached(plain)
        nodes = tuple(node for node in plain.nodes if node.id in used)
        listed = plain.model_copy(update={"nodes": nodes, "views": _live_views(plain, used)})
        return listed.model_copy(update={"views": {name: _listed_view(listed, name) for name in listed.views}})

    def parts(self) -> "tuple[Architecture, ...]":
        """What rows are sent to by a routed head, each as an architecture of its own; a plain one is its only part."""
        if not isinstance(self.head, RoutedHead):
            return (self,)
        return tuple(self.model_copy(update={"head": head}).live() for head in self.head.parts)

    def resolve(self, ref: str) -> tuple[str, str | None]:
        """(view, field) or (view, None) for a reference to a view, (node id, None) for one to a node."""
        view, dot, field = ref.partition(".")
        return (view, field) if dot else (ref, None)


def fields_of(schema: DatasetSchema) -> dict[str, dict[str, Any]]:
    """The `fields` part of every architecture for this dataset."""
    names = FieldSpec.model_fields
    return {
        field.name: FieldSpec(**{name: getattr(field, name) for name in names}).model_dump() for field in schema.fields
    }


# ---- form -----------------------------------------------------------------------------------------------------------


def _form_message(data: dict[str, Any], error: ValidationError) -> str:
    first = error.errors()[0]
    place, keys = "architecture", [str(part) for part in first["loc"]]
    if len(keys) > 1 and keys[0] == "nodes":
        node = data["nodes"][int(keys[1])]
        place = f"node '{node.get('id', keys[1]) if isinstance(node, dict) else keys[1]}'"
        # What stands after the op, by which the union chose, without the types that a value could have had.
        keys = [key for key in keys[3:] if "[" not in key]
    message = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].lower()
    return ": ".join([place, *([".".join(keys)] if keys else []), message])


def _check_references(architecture: Architecture) -> None:
    for name, view in architecture.views.items():
        _check_encoders(architecture, name, view)
    known = set(architecture.views)
    for node in architecture.nodes:
        for ref in node.inputs:
            _check_reference(architecture, f"node '{node.id}'", ref, known)
        if node.id in known:
            raise ArchitectureError(f"node '{node.id}': the name is taken; give every node and view its own")
        known.add(node.id)
    for ref in head_refs(architecture):
        _check_reference(architecture, "head", ref, known)
    if isinstance(architecture.head, RoutedHead):
        _check_router(architecture.fields, architecture.head)


def _check_router(fields: Mapping[str, FieldSpec], head: RoutedHead) -> None:
    for field, votes in head.router.items():
        where = f"head: router: field '{field}'"
        if field not in fields or fields[field].kind != "categorical":
            raise ArchitectureError(f"{where} is no categorical field of the dataset; leave it out")
        try:
            size = len(unpacked(votes))
        except ValueError:
            message = "votes are no base64 of deflated bytes; write what trainer.index.packed makes"
            raise ArchitectureError(f"{where}: {message}") from None
        rows, columns = fields[field].cardinality, len(head.parts) - 1
        if size != rows * columns:
            message = f"{rows} categories have {columns} votes each, which is not {size} bytes"
            raise ArchitectureError(f"{where}: {message}")


_ENCODERS_OF_KIND: dict[FieldKind, tuple[type[_Data], ...]] = {
    "categorical": (TableEncoder, RowsEncoder, QuantizedEncoder, PairsTableEncoder),
    "numeric": (ScaleEncoder, RawEncoder, BinsEncoder, BucketsEncoder, PairsTableEncoder),
    "sequence": (TableEncoder, ShareEncoder),
}


def _check_encoders(architecture: Architecture, name: str, view: View) -> None:
    for field, encoder in view.encoders.items():
        where = f"view '{name}'"
        if field not in architecture.fields:
            raise ArchitectureError(f"{where}: there is no field '{field}'")
        kind = architecture.fields[field].kind
        if not isinstance(encoder, _ENCODERS_OF_KIND[kind]):
            raise ArchitectureError(f"{where}: encoder '{encoder.kind}' does not take the {kind} field '{field}'")
        _check_numbers(f"{where}: field '{field}'", encoder)
        if isinstance(encoder, ShareEncoder):
            _check_shared(architecture, f"{where}: field '{field}'", encoder.view, architecture.fields[field].of)


def _check_numbers(where: str, encoder: Encoder) -> None:
    if isinstance(encoder, BinsEncoder):
        if not encoder.range[0] < encoder.range[1]:
            raise ArchitectureError(f"{where}: range must rise, not {list(encoder.range)}")
        if encoder.adaptive is not None and encoder.adaptive >= encoder.temperature:
            raise ArchitectureError(f"{where}: adaptive must be less than temperature, which could fall to 0 otherwise")
    if isinstance(encoder, BucketsEncoder) and any(a >= b for a, b in pairwise(encoder.boundaries)):
        raise ArchitectureError(f"{where}: boundaries must rise")
    if isinstance(encoder, RowsEncoder | QuantizedEncoder) and encoder.index is not None:
        try:
            unpacked(encoder.index)
        except ValueError:
            message = "index is no base64 of deflated bytes of categories; write what trainer.index.packed makes"
            raise ArchitectureError(f"{where}: {message}") from None


def _check_shared(architecture: Architecture, where: str, shared: str, of: str | None) -> None:
    view = architecture.views.get(shared)
    if view is None or not isinstance(view.encoders.get(of or ""), TableEncoder):
        raise ArchitectureError(f"{where} shares the table of '{of}' in view '{shared}', which is not there")


def _check_reference(architecture: Architecture, user: str, ref: str, known: set[str]) -> None:
    name, field = architecture.resolve(ref)
    if name not in known:
        raise ArchitectureError(f"{user}: '{ref}' is no view and no node above it; known: {', '.join(sorted(known))}")
    if field is not None and (name not in architecture.views or field not in architecture.views[name].encoders):
        raise ArchitectureError(f"{user}: '{ref}': '{name}' has no field '{field}'")


def head_refs(architecture: Architecture) -> tuple[str, ...]:
    """What the head refers to: its inputs, and the table of items."""
    head = architecture.head
    if isinstance(head, RoutedHead):
        return tuple(ref for part in head.parts for ref in part.inputs)
    return (*head.inputs, head.items) if isinstance(head, ItemsHead) else head.inputs


def _with_unread(architecture: Architecture) -> Architecture:
    """A head that reads `unread` reads what no node does."""
    head = architecture.head
    if not isinstance(head, ValueHead) or head.inputs != (UNREAD,):
        return architecture
    read = {ref for node in architecture.nodes for ref in node.inputs}
    refs: list[str] = []
    for name, view in architecture.views.items():
        fields = [f"{name}.{field}" for field in view.encoders]
        if name not in read:
            refs += [ref for ref in fields if ref not in read] if read & set(fields) else [name]
    refs += [node.id for node in architecture.nodes if node.id not in read]
    return architecture.model_copy(update={"head": head.model_copy(update={"inputs": tuple(refs)})})


# ---- what the head reaches ------------------------------------------------------------------------------------------


def reached(architecture: Architecture) -> set[str]:
    """Node ids and view references that the head reaches: `view` where it is read whole, `view.field` where not."""
    inputs = {node.id: node.inputs for node in architecture.nodes}
    used: set[str] = set()
    waiting = list(head_refs(architecture))
    while waiting:
        ref = waiting.pop()
        if ref not in used:
            used.add(ref)
            waiting.extend(inputs.get(ref, ()))
            waiting.extend(_shared(architecture, ref))
    return used


def _without_skips(architecture: Architecture) -> Architecture:
    """What reads a block that skips its layer reads the block's input instead."""
    sequences = {
        name
        for name, view in architecture.views.items()
        if any(architecture.fields[field].kind == "sequence" for field in view.encoders)
    }
    passed: dict[str, str] = {}
    nodes = []
    for node in architecture.nodes:
        inputs = tuple(passed.get(ref, ref) for ref in node.inputs)
        one_sequence = len(inputs) == 1 and architecture.resolve(inputs[0])[0] in sequences
        # A skip that cannot be built stays, to be refused as it is written.
        if isinstance(node, Seq) and isinstance(node.layer, SkipLayer) and node.residual and one_sequence:
            passed[node.id] = inputs[0]
            continue
        if isinstance(node, Seq | Positions):
            sequences.add(node.id)
        nodes.append(node.model_copy(update={"inputs": inputs}))
    return architecture.model_copy(update={"nodes": tuple(nodes), "head": _renamed_head(architecture.head, passed)})


def _renamed_head(head: Any, names: Mapping[str, str]) -> Any:
    if isinstance(head, RoutedHead):
        return head.model_copy(update={"parts": tuple(_renamed_head(part, names) for part in head.parts)})
    return head.model_copy(update={"inputs": tuple(names.get(ref, ref) for ref in head.inputs)})


def _shared(architecture: Architecture, ref: str) -> Iterator[str]:
    """The table references that a reference to a sequence view brings along."""
    name, _ = architecture.resolve(ref)
    view = architecture.views.get(name)
    for field, encoder in view.encoders.items() if view else ():
        if isinstance(encoder, ShareEncoder):
            yield f"{encoder.view}.{architecture.fields[field].of}"


def _live_views(architecture: Architecture, used: set[str]) -> dict[str, View]:
    views = {}
    for name, view in architecture.views.items():
        whole = name in used or _indivisible(view)
        fields = [field for field in view.encoders if f"{name}.{field}" in used]
        if name in used or fields:
            kept = view.encoders if whole else {field: view.encoders[field] for field in fields}
            views[name] = view.model_copy(update={"encoders": kept})
    return views


def _listed_view(architecture: Architecture, name: str) -> View:
    """A view without the fields that nobody reads: those in no set of the nodes that are its only readers."""
    view = architecture.views[name]
    parts = {name, *(f"{name}.{field}" for field in view.encoders)}
    readers = [node for node in architecture.nodes if parts & set(node.inputs)]
    sets = [named_sets(node) for node in readers if getattr(node, "align", None) in (None, "lift")]
    shared = any(_shared_view(other) == name for other in architecture.views.values())
    if shared or _indivisible(view) or len(sets) < len(readers) or None in sets or parts & set(head_refs(architecture)):
        return view
    used = {field for listed in sets for one in listed or () for field in one}
    return view.model_copy(
        update={"encoders": {field: view.encoders[field] for field in view.encoders if field in used}}
    )


def _shared_view(view: View) -> str | None:
    return next((encoder.view for encoder in view.encoders.values() if isinstance(encoder, ShareEncoder)), None)


def _indivisible(view: View) -> bool:
    """Whether encoders that nobody reads must stay: the widths of the others follow from them."""
    field_aware = any(isinstance(encoder, PairsTableEncoder) for encoder in view.encoders.values())
    return field_aware or (view.align is not None and view.width is None)


# ---- canonical form -------------------------------------------------------------------------------------------------

_COMMUTATIVE = (Inner, Elementwise, FM, Pairs, Triples, Groups, Hadamard, FFM, MLP)
"""Ops whose inputs may be swapped: the result is the same, or a first linear map takes up the order."""


def _canonical(architecture: Architecture) -> dict[str, Any]:
    """Plain data without names: views and nodes are numbered in the order in which a walk from the head meets them."""
    nodes = {node.id: node for node in architecture.nodes}
    contents = _contents(architecture)
    numbers: dict[str, str] = {}
    emitted: list[tuple[str, Any]] = []

    def renamed(ref: str) -> str:
        name, field = architecture.resolve(ref)
        if name not in numbers:
            body = node_body(nodes[name]) if name in nodes else view_body(architecture.views[name])
            numbers[name] = str(len(numbers))
            emitted.append((numbers[name], body))
        return numbers[name] if field is None else f"{numbers[name]}.{field}"

    def ordered(refs: Iterable[str]) -> list[str]:
        return sorted(refs, key=lambda ref: contents[ref])

    def node_body(node: Any) -> dict[str, Any]:
        refs = ordered(node.inputs) if isinstance(node, _COMMUTATIVE) else node.inputs
        body = _without_names(node)
        body["in"] = [renamed(ref) for ref in refs]
        body["sets"] = _renamed_sets(architecture, node, numbers)
        return body

    def view_body(view: View) -> dict[str, Any]:
        body = _plain_view(view)
        for field, encoder in view.encoders.items():
            if isinstance(encoder, ShareEncoder):
                body["encoders"][field]["view"] = renamed(encoder.view)
        return body

    def head_body(head: Any) -> dict[str, Any]:
        body: dict[str, Any] = head.model_dump(mode="json", by_alias=True)
        if isinstance(head, RoutedHead):
            votes = {field: _said(text) for field, text in head.router.items()}
            return body | {"router": votes, "parts": [head_body(part) for part in head.parts]}
        body["in"] = [renamed(ref) for ref in ordered(head.inputs)]
        if isinstance(head, ItemsHead):
            body["items"] = renamed(head.items)
        return body

    head = head_body(architecture.head)
    used = {field for view in architecture.views.values() for field in view.encoders}
    used |= set(head.get("router", ()))
    fields = {name: field.model_dump() for name, field in architecture.fields.items() if name in used}
    return {
        "version": architecture.version,
        "task": architecture.task,
        "fields": fields,
        "graph": emitted,
        "head": head,
    }


def _said(packed: str) -> str:
    """A digest of what packed bytes say, for one thing can be deflated in several ways."""
    return hashlib.sha256(unpacked(packed)).hexdigest()


def named_sets(node: Any) -> Sets | None:
    """The sets of fields that a node lists by name; None where it takes all or has none."""
    listed = isinstance(node, Groups | Hadamard)
    sets: Literal["all"] | Sets | None = node.sets if listed else getattr(node, "keep", None)
    return None if sets == "all" else sets


def _renamed_sets(architecture: Architecture, node: Any, names: Mapping[str, str]) -> list[list[str]] | None:
    """The node's sets in one order, with the ids of nodes and views that stand for themselves replaced by `names`.

    Groups keep their order, which is that of the node's output.
    """
    sets = named_sets(node)
    if sets is None:
        return None
    called = _called(architecture, node, names)
    inside = [sorted(called.get(name, name) for name in one) for one in sets]
    return inside if isinstance(node, Groups) else sorted(inside)


def _called(architecture: Architecture, node: Any, names: Mapping[str, str]) -> dict[str, str]:
    """What sets of the node's fields hold in place of a field's name, where that comes from the ids of nodes or views.

    One vector goes by its own name and not by those of its fields.
    """
    nodes = {other.id: other for other in architecture.nodes}
    called: dict[str, str] = {}
    for ref in node.inputs:
        source, view = nodes.get(ref), architecture.views.get(ref)
        if isinstance(source, Hadamard):
            inner = _called(architecture, source, names)
            called |= {product_name(one): product_name(inner.get(name, name) for name in one) for one in source.sets}
        elif isinstance(source, MHA | SE):
            called |= _called(architecture, source, names)
        elif source or (view and any(isinstance(encoder, RawEncoder) for encoder in view.encoders.values())):
            called[ref] = f"part {names[ref]}"
    return called


def product_name(fields: Iterable[str]) -> str:
    """What the product of these fields is called."""
    return "*".join(sorted(fields))


def _without_names(node: Any) -> dict[str, Any]:
    hidden = {"id", "inputs"} | ({"sets", "keep"} if named_sets(node) is not None else set())
    body: dict[str, Any] = _plain(node).model_dump(mode="json", by_alias=True, exclude=hidden)
    return body


def _plain_view(view: View) -> dict[str, Any]:
    """The view as plain data, what can be said in several ways said in one."""
    body: dict[str, Any] = view.model_dump(mode="json")
    for field, encoder in view.encoders.items():
        if isinstance(encoder, RowsEncoder | QuantizedEncoder) and encoder.index is not None:
            body["encoders"][field]["index"] = _said(encoder.index)
        if isinstance(encoder, TableEncoder) and encoder.places in (None, tuple(range(encoder.dim))):
            del body["encoders"][field]["places"]
    return body


def _plain(node: Any) -> Any:
    """The node with what can be said in several ways said in one."""
    match node:
        case MLP(activation=tuple() as listed) if len(set(listed)) == 1:
            return node.model_copy(update={"activation": listed[0]})
        case Seq(layer=ConvLayer(kernel=1)):
            return node.model_copy(update={"layer": ConvLayer(kind="conv", kernel=1), "causal": False})
        case Seq(layer=FeedForwardLayer() | IdentityLayer()):
            return node.model_copy(update={"causal": False})
    return node


def _contents(architecture: Architecture) -> dict[str, str]:
    """For each reference a text that depends on what it computes and not on names: the key to sort inputs by."""
    texts: dict[str, str] = {}
    for name, view in architecture.views.items():
        body: Any = _plain_view(view)
        for field, encoder in view.encoders.items():
            if isinstance(encoder, ShareEncoder):
                body = [field, _plain_view(architecture.views[encoder.view])]
        texts[name] = _digest(json.dumps(body, sort_keys=True))
        texts.update({f"{name}.{field}": _digest(texts[name] + field) for field in view.encoders})
    for node in architecture.nodes:
        inputs = [texts[ref] for ref in node.inputs]
        inputs = sorted(inputs) if isinstance(node, _COMMUTATIVE) else inputs
        node_text = json.dumps([_without_names(node), inputs, _renamed_sets(architecture, node, texts)], sort_keys=True)
        texts[node.id] = _digest(node_text)
    return texts


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
