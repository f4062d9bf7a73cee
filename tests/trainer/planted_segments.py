"""Clicks of two segments of rows, in each of which other fields say something, as apps and sites do in advertising."""

import numpy as np
import torch
from torch import Tensor

from trainer.data import Table
from trainer.schema import DatasetSchema, Field
from trainer.settings import TrainSettings

OF_SEGMENT = (("app", "maker"), ("site", "owner"))
"""The fields that say something in each segment. In rows of the other one they have category 1, which says nothing."""
NOISE = ("slot", "hour")
FIELDS = (*OF_SEGMENT[0], *OF_SEGMENT[1], *NOISE)
CATEGORIES, SHARE = 42, 0.6
"""Of each field; of the first segment."""


def planted(rows: int, seed: int = 0) -> tuple[Table, Table]:
    """Training rows, and a fifth as many to validate on."""
    strength = np.random.default_rng(3).uniform(0.7, 1.7, size=(2, 2, CATEGORIES))
    return tuple(_rows(count, strength, seed + place) for place, count in enumerate((rows, rows // 5)))  # type: ignore[return-value]


def segment_of(table: Table) -> Tensor:
    """(N,): 0 or 1."""
    return (table.ids(OF_SEGMENT[0][0]) == 1).long()


def _rows(count: int, strength: np.ndarray, seed: int) -> Table:  # type: ignore[type-arg]
    """The logit is 4 (s t - 1.4) with the strengths of the two categories that say something."""
    rng = np.random.default_rng([seed, 8])
    segment = (rng.random(count) > SHARE).astype(int)
    ids = rng.integers(2, CATEGORIES, (count, len(FIELDS)))
    own = [ids[np.arange(count), 2 * segment + place] for place in range(2)]
    product = strength[segment, 0, own[0]] * strength[segment, 1, own[1]]
    label = rng.random(count) < 1 / (1 + np.exp(-4 * (product - 1.4)))
    for number in range(2):
        ids[segment != number, 2 * number : 2 * number + 2] = 1
    schema = DatasetSchema(
        task="ctr",
        label="label",
        fields=tuple(Field(name=name, kind="categorical", cardinality=CATEGORIES) for name in FIELDS),
        rows={"train": count, "valid": count, "test": count},
        label_mean=float(label.mean()),
        label_min=0.0,
        label_max=1.0,
    )
    columns, numeric = torch.from_numpy(ids.astype(np.int32)), torch.empty(count, 0)
    return Table(schema, columns, numeric, torch.from_numpy(label.astype(np.float32)), {})


def training() -> TrainSettings:
    return TrainSettings(batch_size=500, epochs=12, patience=3, learning_rate=0.02, table_init=0.1, table_l2=1e-4)
