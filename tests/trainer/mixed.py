"""Help for tests of models: a dataset with every kind of field, batches of it, and short architectures."""

from typing import Any

import torch

from trainer.architecture import Architecture, fields_of
from trainer.build import Model, build
from trainer.data import Batch
from trainer.modules.tables import leaves
from trainer.schema import DatasetSchema, Field, Task


def mixed_schema(task: Task = "ctr") -> DatasetSchema:
    """Three categorical fields, two numeric ones (one with missing values), and a history of `item`."""
    fields = (
        Field(name="user", kind="categorical", cardinality=20),
        Field(name="price", kind="numeric", missing=True),
        Field(name="item", kind="categorical", cardinality=30),
        Field(name="age", kind="numeric"),
        Field(name="site.id", kind="categorical", cardinality=7),
        Field(name="history", kind="sequence", of="item", cardinality=30, max_len=6),
    )
    return DatasetSchema(
        task=task,
        label="item" if task == "next_item" else "label",
        target="item" if task == "next_item" else None,
        fields=fields,
        group="user",
        rows={"train": 100},
        label_mean={"ctr": 0.3, "rating": 3.5, "next_item": 1}[task],
        label_min=0 if task == "ctr" else 1,
        label_max=5 if task == "rating" else 1,
    )


def flat_schema(task: Task = "ctr") -> DatasetSchema:
    """The categorical fields of the mixed one only."""
    schema = mixed_schema(task)
    return schema.model_copy(update={"fields": tuple(f for f in schema.fields if f.kind == "categorical")})


def batch_of(schema: DatasetSchema, rows: int = 8, seed: int = 0, steps: int | None = None) -> Batch:
    """Random rows; numeric values of fields that may miss are NaN now and then; the first sequence is empty."""
    draw = torch.Generator().manual_seed(seed)
    categorical = [schema.field(name).cardinality for name in schema.names("categorical")]
    ids = [torch.randint(0, rows_of, (rows,), generator=draw) for rows_of in categorical]
    numeric = torch.randn(rows, len(schema.names("numeric")), generator=draw)
    for column, name in enumerate(schema.names("numeric")):
        if schema.field(name).missing:
            numeric[::3, column] = float("nan")
    sequences, lengths = {}, {}
    for name in schema.names("sequence"):
        field = schema.field(name)
        width = steps or field.max_len
        lengths[name] = torch.randint(0, width + 1, (rows,), generator=draw)
        lengths[name][0] = 0
        ids_BT = torch.randint(0, field.cardinality, (rows, width), generator=draw)
        sequences[name] = ids_BT * (torch.arange(width) < lengths[name][:, None])
    if schema.target is None:
        label = torch.randint(0, 2, (rows,), generator=draw).float()
    else:
        column = schema.names("categorical").index(schema.target)
        label = ids[column] = torch.randint(1, categorical[column], (rows,), generator=draw)
    stacked = torch.stack(ids, 1) if ids else torch.zeros(rows, 0, dtype=torch.int64)
    return Batch(stacked, numeric, label, sequences, lengths, of=rows)


def table(dim: int) -> dict[str, Any]:
    return {"kind": "table", "dim": dim}


def scale(dim: int) -> dict[str, Any]:
    return {"kind": "scale", "dim": dim}


def view(dim: int, *fields: str) -> dict[str, Any]:
    """A view of fields of the mixed dataset, all of one width."""
    numeric = ("price", "age")
    return {"encoders": {name: scale(dim) if name in numeric else table(dim) for name in fields}}


ALL = ("user", "price", "item", "age", "site.id")


def architecture(
    views: dict[str, Any], nodes: list[dict[str, Any]], head: list[str], mode: str = "sum", bias: bool = True
) -> Architecture:
    """An architecture on the mixed dataset."""
    return Architecture.from_dict(
        {
            "task": "ctr",
            "fields": fields_of(mixed_schema()),
            "views": views,
            "nodes": nodes,
            "head": {"mode": mode, "in": head, "bias": bias},
        }
    )


def built(description: Architecture, seed: int = 0, init: float = 0.5) -> Model:
    """The model with table rows large enough that outputs differ visibly."""
    return build(description, label_mean=0.3, table_init=init, seed=seed)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameter -> its gradient, dense, for those that have one (gradients of tables arrive at their pool)."""
    return {
        name: part
        for leaf in leaves(model)
        if leaf.weight.grad is not None
        for name, part in leaf.split(leaf.weight.grad.to_dense()).items()
    }


def parameters(parts: list[torch.nn.Parameter]) -> int:
    return sum(part.numel() for part in parts)
