"""Clicks of users and items that are frequent or rare, whose hidden vectors have a high or a low rank."""

import numpy as np
import torch

from trainer.data import Table
from trainer.schema import DatasetSchema, Field
from trainer.settings import TrainSettings

CATEGORIES, HEAD, RANK = 400, 60, 4
"""Of each side: the first are frequent, and their vectors have this rank; those of all others have rank 1."""
NOISE = 200


def planted(rows: int, seed: int = 0) -> tuple[Table, Table]:
    """Training rows, and a fifth as many to validate on. A third field says nothing."""
    truth = np.random.default_rng(11)
    vectors = [truth.normal(size=(CATEGORIES, RANK)) for _ in range(2)]
    for vector in vectors:
        vector[HEAD:, 1:] = 0
    chance = np.where(np.arange(CATEGORIES) < HEAD, 4 / HEAD, 1 / (CATEGORIES - HEAD)) / 5
    return tuple(_rows(count, vectors, chance, seed + place) for place, count in enumerate((rows, rows // 5)))  # type: ignore[return-value]


def _rows(count: int, vectors: list[np.ndarray], chance: np.ndarray, seed: int) -> Table:  # type: ignore[type-arg]
    rng = np.random.default_rng([seed, 5])
    ids = [rng.choice(CATEGORIES, count, p=chance) for _ in vectors]
    score = np.prod([vector[one] for vector, one in zip(vectors, ids, strict=True)], axis=0).sum(axis=1)
    label = rng.random(count) < 1 / (1 + np.exp(-2 * score))
    columns = np.stack([*ids, rng.integers(0, NOISE, count)], axis=1).astype(np.int32)
    sizes = {"user": CATEGORIES, "item": CATEGORIES, "noise": NOISE}
    schema = DatasetSchema(
        task="ctr",
        label="label",
        fields=tuple(Field(name=name, kind="categorical", cardinality=size) for name, size in sizes.items()),
        rows={"train": count, "valid": count, "test": count},
        label_mean=0.5,
        label_min=0.0,
        label_max=1.0,
    )
    numeric = torch.empty(count, 0)
    return Table(schema, torch.from_numpy(columns), numeric, torch.from_numpy(label.astype(np.float32)), {})


def training() -> TrainSettings:
    return TrainSettings(batch_size=1000, epochs=20, patience=3, learning_rate=0.02, table_init=0.1, table_l2=1e-4)
