"""A small dataset with something to learn, and small models for it."""

from dataclasses import replace

import numpy as np
import torch

from trainer import zoo
from trainer.architecture import Architecture
from trainer.build import Model, build
from trainer.data import Jagged, Table
from trainer.index import packed
from trainer.routed import routed
from trainer.schema import DatasetSchema, Field, Task
from trainer.space import fill_params

USERS, ITEMS, STEPS = 40, 30, 4
CHAIN_ITEMS = 31


def schema(task: Task, rows: int) -> DatasetSchema:
    return DatasetSchema(
        task=task,
        label="label",
        fields=(
            Field(name="user", kind="categorical", cardinality=USERS),
            Field(name="item", kind="categorical", cardinality=ITEMS),
            Field(name="price", kind="numeric", missing=True),
            Field(name="history", kind="sequence", cardinality=ITEMS, of="item", max_len=STEPS),
        ),
        rows={"train": rows, "valid": rows, "test": rows},
        label_mean=0.5 if task == "ctr" else 3.0,
        label_min=0.0 if task == "ctr" else 1.0,
        label_max=1.0 if task == "ctr" else 5.0,
    )


def table(rows: int, *, task: Task = "ctr", seed: int = 0) -> Table:
    """Rows whose label follows from user and item, with some noise."""
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(99)
    taste = truth.normal(size=(USERS, 1)) + truth.normal(size=ITEMS)
    user, item = random.integers(0, USERS, rows), random.integers(0, ITEMS, rows)
    signal = taste[user, item] + 0.3 * random.normal(size=rows)
    price = random.normal(size=(rows, 1)).astype(np.float32)
    price[random.random(rows) < 0.2] = np.nan
    lengths = random.integers(0, STEPS + 1, rows)
    values = random.integers(1, ITEMS, int(lengths.sum()))
    return Table(
        schema=schema(task, rows),
        categorical=torch.from_numpy(np.stack([user, item], 1).astype(np.int32)),
        numeric=torch.from_numpy(price),
        label=torch.from_numpy((signal > 0 if task == "ctr" else np.clip(3 + signal, 1, 5)).astype(np.float32)),
        sequences={
            "history": Jagged(
                torch.from_numpy(values.astype(np.int32)), torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
            )
        },
    )


def architecture(*, task: Task = "ctr", dropout: float = 0.0, norm: str = "none") -> Architecture:
    """FM, MLP and a pooled history that shares the items' table."""
    encoders = {
        "user": {"kind": "table", "dim": 4},
        "item": {"kind": "table", "dim": 4},
        "price": {"kind": "scale", "dim": 4},
    }
    return Architecture.from_dict(
        {
            "version": 1,
            "task": task,
            "fields": {
                "user": {"kind": "categorical", "cardinality": USERS},
                "item": {"kind": "categorical", "cardinality": ITEMS},
                "price": {"kind": "numeric", "missing": True},
                "history": {"kind": "sequence", "cardinality": ITEMS, "of": "item", "max_len": STEPS},
            },
            "views": {
                "e": {"encoders": encoders},
                "first": {"encoders": {"user": {"kind": "table", "dim": 1}, "item": {"kind": "table", "dim": 1}}},
                "past": {"encoders": {"history": {"kind": "share", "view": "e"}}},
            },
            "nodes": [
                {"id": "fm", "op": "fm", "in": ["e"]},
                {"id": "pool", "op": "pool", "in": ["past"]},
                {"id": "mlp", "op": "mlp", "units": [16], "dropout": dropout, "norm": norm, "in": ["e", "pool"]},
            ],
            "head": {"mode": "sum", "in": ["first", "fm", "mlp"]},
        }
    )


def model(*, task: Task = "ctr", dropout: float = 0.0, norm: str = "none", seed: int = 1) -> Model:
    mean = schema(task, 1).label_mean
    return build(architecture(task=task, dropout=dropout, norm=norm), label_mean=mean, table_init=0.05, seed=seed)


def categorical(rows: int, *, seed: int = 0) -> Table:
    """The rows of `table` with user and item only."""
    whole = table(rows, seed=seed)
    fields = tuple(field for field in whole.schema.fields if field.kind == "categorical")
    schema = whole.schema.model_copy(update={"fields": fields})
    return replace(whole, schema=schema, numeric=torch.empty(rows, 0), sequences={})


def zoo_model(name: str) -> Model:
    """A model of the zoo by default, but without dropout, for the rows of `categorical`."""
    description = fill_params(zoo.template(name, categorical(1).schema), {"mlp.dropout": 0})
    return build(Architecture.from_dict(description), label_mean=0.5, table_init=0.05, seed=1)


def indexed() -> Model:
    """DeepFM for the rows of `categorical`, every third user with a wide row and the others with narrow ones."""
    data = fill_params(zoo.template("deepfm", categorical(1).schema), {"mlp.dropout": 0})
    number_R = bytes(user % 3 > 0 for user in range(USERS))
    wide = number_R.count(0)
    blocks = [{"first": 0, "rows": wide, "dim": 16}, {"first": wide, "rows": USERS - wide, "dim": 4}]
    encoder = {"kind": "rows", "dim": 16, "blocks": blocks, "index": packed(number_R)}
    data["views"]["e"]["encoders"]["user"] = encoder
    return build(Architecture.from_dict(data), label_mean=0.5, table_init=0.05, seed=1)


def routed_model() -> Model:
    """Three models for the rows of `table`: even users, odd users, and the first four, of whom few rows are."""
    vote_RC = np.array([[user % 2 * 10, (user < 4) * 20] for user in range(USERS)], dtype=np.int8)
    parts = [architecture().to_dict() for _ in range(3)]
    for part in parts:  # tables that sequences read are not trained lazily by several processes
        part["nodes"][2]["in"] = ["e"]
    blocks = [{"first": 0, "rows": 9, "dim": 4}, {"first": 9, "rows": USERS - 9, "dim": 2}]
    parts[1]["views"]["e"]["encoders"]["user"] = {"kind": "rows", "dim": 4, "blocks": blocks}
    made = routed({"user": packed(vote_RC.tobytes())}, [Architecture.from_dict(part) for part in parts])
    return build(made, label_mean=0.5, table_init=0.05, seed=1)


def one_table() -> Model:
    """A model for the rows of `categorical` whose only table is that of the users."""
    return build(
        Architecture.from_dict(
            {
                "fields": {"user": {"kind": "categorical", "cardinality": USERS}},
                "task": "ctr",
                "views": {"e": {"encoders": {"user": {"kind": "table", "dim": 4}}}},
                "nodes": [{"id": "mlp", "op": "mlp", "units": [8], "in": ["e"]}],
                "head": {"mode": "sum", "in": ["mlp"]},
            }
        ),
        label_mean=0.5,
        table_init=0.05,
        seed=1,
    )


def chain_schema(rows: int) -> DatasetSchema:
    return DatasetSchema(
        task="next_item",
        label="item",
        target="item",
        fields=(
            Field(name="item", kind="categorical", cardinality=CHAIN_ITEMS),
            Field(name="history", kind="sequence", cardinality=CHAIN_ITEMS, of="item", max_len=STEPS),
        ),
        rows={"train": rows, "valid": rows, "test": rows},
        label_mean=1,
        label_min=1,
        label_max=1,
    )


def chain(rows: int, *, seed: int = 0) -> Table:
    """The next item is a fixed function of the last one; what came before is noise."""
    follows = 1 + np.random.default_rng(7).permutation(CHAIN_ITEMS - 1)
    random = np.random.default_rng(seed)
    lengths = random.integers(1, STEPS + 1, rows)
    offsets = np.concatenate([[0], lengths.cumsum()])
    values = random.integers(1, CHAIN_ITEMS, offsets[-1])
    target = torch.from_numpy(follows[values[offsets[1:] - 1] - 1])
    past = Jagged(torch.from_numpy(values.astype(np.int32)), torch.from_numpy(offsets))
    ids = target.int()[:, None]
    return Table(chain_schema(rows), ids, torch.empty(rows, 0), target, {"history": past})


def next_item_model(name: str) -> Model:
    """A model of the zoo by default, but without dropout, for the rows of `chain`."""
    filled = fill_params(zoo.template(name, chain_schema(1)), {"attention.dropout": 0})
    return build(Architecture.from_dict(filled), label_mean=1, table_init=0.05, seed=1)
