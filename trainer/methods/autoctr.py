"""AutoCTR: blocks of layers, inner products and factorisation machines, wired freely (Song 2020, section 3).

N blocks stand in an order. Each is an MLP of one layer, a Dot or an FM, and reads the numbers, the embeddings and any
blocks before it; the head is one linear map of everything, raw or not, that no block reads. A block that reads nothing
does not exist: it is asked for nothing more, and blocks after it are not asked whether they read it.

An MLP flattens all that it reads. Dot and FM take embeddings as fields; the numbers and the blocks that they read, side
by side, become one more field by one linear map (none if together they are as wide as a field). A Dot gives every inner
product of two fields and of a field with itself, an FM one number: the products of all pairs, and a linear map of all.

Ours differs from the release in this: a Dot keeps the triangle of its products, not as many entries from the front;
maps to fields have no bias; a history is an embedding too, the mean of its items.
"""

from collections.abc import Sequence
from typing import Any

from trainer.architecture import UNREAD, fields_of
from trainer.methods.settings import AutoCTRSettings
from trainer.schema import DatasetSchema
from trainer.space import choice

Data = dict[str, Any]


def space(schema: DatasetSchema, settings: AutoCTRSettings) -> Data:
    """The template. The first trial: products of all fields, and a layer on these and all fields."""
    width = choice("embedding.dim", settings.dims)
    histories = range(1, len(schema.names("sequence")) + 1)
    embedded = [*(["sparse"] if schema.names("categorical") else []), *(f"pooled{number}" for number in histories)]
    names: list[str] = []
    blocks: list[Data] = []
    for number in range(1, settings.blocks + 1):
        name = f"block{number}"
        numbers = [_bit(name, "dense", ["dense"], number)] if schema.names("numeric") else []
        before = [{"if": earlier, "then": [_bit(name, earlier, [earlier], number)]} for earlier in names]
        fields = [_bit(name, "sparse", embedded, number)] if embedded else []
        blocks.append(_block(name, [*numbers, *before], fields, width, settings, "dot" if number == 1 else "mlp"))
        names.append(name)
    pools = [{"id": f"pooled{number}", "op": "pool", "in": [f"history{number}"]} for number in histories]
    return {
        "version": 1,
        "task": schema.task,
        "fields": fields_of(schema),
        "views": _views(schema, width),
        "nodes": [*pools, *blocks],
        "head": {"mode": "linear", "in": [UNREAD]},
    }


def _views(schema: DatasetSchema, width: Data) -> Data:
    views = {}
    if schema.names("numeric"):
        views["dense"] = _view(schema.names("numeric"), {"kind": "raw"})
    if schema.names("categorical"):
        views["sparse"] = _view(schema.names("categorical"), {"kind": "table", "dim": width})
    for number, name in enumerate(schema.names("sequence"), start=1):
        views[f"history{number}"] = _view([name], {"kind": "share", "view": "sparse"})
    return views


def _view(names: Sequence[str], encoder: Data) -> Data:
    return {"encoders": dict.fromkeys(names, encoder)}


def _bit(block: str, name: str, refs: Sequence[str], number: int) -> Data:
    """Whether a block reads something."""
    options = [[], list(refs)]
    return choice(f"{block}.{name}", options, labels=[False, True], default=number < 3, group=block, splice=True)


def _block(
    name: str, dense: Sequence[Data], fields: Sequence[Data], width: Data, settings: AutoCTRSettings, default: str
) -> Data:
    """A choice of the block's type, if it reads anything. Its last node bears its name."""
    side_by_side = f"{name}-dense"
    inputs = [*dense, *fields]
    field = {"if": dense, "then": [{"id": side_by_side, "op": "concat", "in": dense}]}
    aligned = {"in": [{"if": side_by_side, "then": [side_by_side]}, *fields], "dim": width}
    units = choice(f"{name}.units", settings.units, default=128, group=name)
    types = {
        "mlp": [{"id": name, "op": "mlp", "in": inputs, "units": [units]}],
        "dot": [field, {"id": name, "op": "dot", "triangle": "full", **aligned}],
        "fm": [
            field,
            {"id": f"{name}-linear", "op": "mlp", "in": inputs, "units": [1], "activation": "identity"},
            {"id": f"{name}-pairs", "op": "fm", **aligned},
            {"id": name, "op": "elementwise", "kind": "sum", "in": [f"{name}-linear", f"{name}-pairs"]},
        ],
    }
    made = choice(f"{name}.type", list(types.values()), labels=list(types), default=default, group=name, splice=True)
    return {"if": inputs, "then": [made]}
