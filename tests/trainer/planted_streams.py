"""Ratings of users who come and go: some are met often and differ in taste, the others seldom, and in mood alone."""

from dataclasses import dataclass

import numpy as np
import torch

from trainer.data import Table
from trainer.schema import DatasetSchema, Field

BATCH, ITEMS, RANK = 500, 20, 4
OFTEN, SELDOM = 30, 150
"""Users of both kinds at a time; they stay for `STAY` batches, those of the start for fewer."""
ROWS_OF_SELDOM, STAY = 37, 20
"""Rows of a batch that are of users met seldom, each of a different one."""


@dataclass(frozen=True)
class Stream:
    """Rows in their order, and which users are met often."""

    rows: Table
    often: torch.Tensor


def stream(batches: int, seed: int = 0) -> Stream:
    """A rating is 3 plus the product of the taste, of rank 4, with the item's vector; or 3 plus the mood."""
    rng = np.random.default_rng(seed)
    item_vectors = np.random.default_rng(3).normal(size=(ITEMS, RANK)) / RANK**0.5
    places = OFTEN + SELDOM
    leaves = 1 + rng.integers(STAY, size=places)
    users = 1 + np.arange(places)
    taste, often = [np.zeros(RANK + 1)], [False]
    taste += [_taste(rng, place) for place in range(places)]
    often += [place < OFTEN for place in range(places)]
    ids, ratings = [], []
    for batch in range(batches):
        for place in np.flatnonzero(leaves == batch):
            leaves[place], users[place] = batch + STAY, len(taste)
            taste.append(_taste(rng, place))
            often.append(place < OFTEN)
        met = np.concatenate(
            [
                rng.integers(OFTEN, size=BATCH - ROWS_OF_SELDOM),
                OFTEN + rng.choice(SELDOM, ROWS_OF_SELDOM, replace=False),
            ]
        )
        items = rng.integers(ITEMS, size=BATCH)
        of_user = np.stack([taste[user] for user in users[met]])
        ids.append(np.stack([users[met], items], axis=1))
        noise = 0.3 * rng.normal(size=BATCH)
        ratings.append(3 + (of_user[:, :RANK] * item_vectors[items]).sum(axis=1) + of_user[:, RANK] + noise)
    return Stream(_table(np.concatenate(ids), np.concatenate(ratings), len(taste)), torch.tensor(often))


def _taste(rng: np.random.Generator, place: int) -> np.ndarray:  # type: ignore[type-arg]
    """(RANK + 1,): the taste and the mood."""
    vector = np.zeros(RANK + 1)
    if place < OFTEN:
        vector[:RANK] = rng.normal(size=RANK)
    else:
        vector[RANK] = 0.5 * rng.normal()
    return vector


def _table(ids: np.ndarray, ratings: np.ndarray, users: int) -> Table:  # type: ignore[type-arg]
    sizes = {"user": users, "item": ITEMS}
    schema = DatasetSchema(
        task="rating",
        label="label",
        fields=tuple(Field(name=name, kind="categorical", cardinality=size) for name, size in sizes.items()),
        rows={"train": len(ids), "valid": len(ids), "test": len(ids)},
        label_mean=3.0,
        label_min=-5.0,
        label_max=11.0,
    )
    label = torch.from_numpy(ratings.astype(np.float32))
    return Table(schema, torch.from_numpy(ids.astype(np.int32)), torch.empty(len(ids), 0), label, {})
