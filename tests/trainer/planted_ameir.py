"""Clicks whose label follows from a history by one rule, or from the parities of a few of twenty fields."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from trainer.data import Jagged, Table
from trainer.schema import DatasetSchema, Field
from trainer.settings import TrainSettings

Rule = Literal["last", "fifth last", "any"]
ITEMS, STEPS = 30, 10
FIELDS, SIZE = 20, 6


def histories(rule: Rule, rows: int, seed: int = 0) -> Table:
    """Full histories of items, half of which the rule likes; "any": one rare item is there. A field says nothing."""
    random = np.random.default_rng([seed, 1])
    items_NT = random.integers(2, ITEMS, (rows, STEPS))
    rare_N = random.random(rows) < 0.5
    items_NT[np.arange(rows)[rare_N], random.integers(0, STEPS, rare_N.sum())] = 1
    liked_I = np.random.default_rng(7).permutation(ITEMS) % 2 == 0
    label_N = {"last": liked_I[items_NT[:, -1]], "fifth last": liked_I[items_NT[:, -5]], "any": rare_N}[rule]
    ids_NC = np.stack([random.integers(0, ITEMS, rows), random.integers(0, 5, rows)], axis=1)
    fields = (
        Field(name="item", kind="categorical", cardinality=ITEMS),
        Field(name="noise", kind="categorical", cardinality=5),
        Field(name="history", kind="sequence", of="item", cardinality=ITEMS, max_len=STEPS),
    )
    history = Jagged(torch.from_numpy(items_NT.astype(np.int32).ravel()), torch.arange(rows + 1) * STEPS)
    return _table(fields, ids_NC, label_N, {"history": history})


def parities(sets: Sequence[tuple[int, ...]], rows: int, seed: int = 0) -> Table:
    """Twenty fields of even and odd categories; a set is for label 1 if an even number of its fields is odd."""
    random = np.random.default_rng([seed, 2])
    ids_NC = random.integers(0, SIZE, (rows, FIELDS))
    odd_CI = np.stack([np.random.default_rng([c, 3]).permutation(SIZE) % 2 for c in range(FIELDS)])
    sign_NC = 1 - 2 * np.take_along_axis(odd_CI.T, ids_NC, axis=0)
    score_N = sum(sign_NC[:, list(one)].prod(axis=1) for one in sets)
    fields = tuple(Field(name=f"f{c}", kind="categorical", cardinality=SIZE) for c in range(FIELDS))
    return _table(fields, ids_NC, random.random(rows) < 1 / (1 + np.exp(-4 * score_N)), {})


def _table(
    fields: tuple[Field, ...],
    ids_NC: "np.typing.NDArray[np.int64]",
    label_N: "np.typing.NDArray[np.bool_]",
    sequences: dict[str, Jagged],
) -> Table:
    rows = len(label_N)
    schema = DatasetSchema(
        task="ctr",
        label="label",
        fields=fields,
        rows={"train": rows, "valid": rows, "test": rows},
        label_mean=0.5,
        label_min=0.0,
        label_max=1.0,
    )
    label = torch.from_numpy(label_N.astype(np.float32))
    return Table(schema, torch.from_numpy(ids_NC.astype(np.int32)), torch.empty(rows, 0), label, sequences)


def training() -> TrainSettings:
    return TrainSettings(
        batch_size=100,
        epochs=20,
        patience=3,
        learning_rate=3e-3,
        table_learning_rate=0.01,
        table_init=0.1,
        table_l2=0.0,
    )
