"""The second pass of ingest: split every row, and learn from the training rows alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from components.check import LABEL
from components.counters import CategoricalCounter, counter
from components.dataset import DatasetSpec
from components.plan import Plan
from components.source import ahead
from components.splits import Assign, Codes
from components.stage import Stage
from trainer.errors import UserError
from trainer.schema import DatasetSchema, Field, Split

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
"""In the order of the split codes 0, 1, 2."""

Progress = Callable[[int, int | None, str], None]
"""(rows done, rows in all if known, stage)"""


@dataclass
class Labels:
    """Labels by split, and the range of the training ones."""

    rows: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    total: dict[Split, float] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0.0))
    min: float = float("inf")
    max: float = float("-inf")

    def add(self, labels: npt.NDArray[np.float64], codes: Codes) -> None:
        for code, split in enumerate(SPLITS):
            self.rows[split] += int((codes == code).sum())
            self.total[split] += float(labels[codes == code].sum())
        train = labels[codes == 0]
        self.min = float(train.min(initial=self.min))
        self.max = float(train.max(initial=self.max))

    def mean(self, split: Split) -> float:
        return self.total[split] / self.rows[split]


@dataclass(frozen=True)
class Learned:
    """Fields in the plan's order, the vocabularies of those that have one, and figures for the report."""

    fields: tuple[Field, ...]
    vocabularies: dict[str, pl.DataFrame]
    figures: dict[str, dict[str, Any]]
    labels: Labels

    def schema(self, spec: DatasetSpec, planned: Plan, rows: dict[Split, int], rejected: int) -> DatasetSchema:
        categorical = [found.name for found in self.fields if found.kind == "categorical"]
        target = planned.target
        return DatasetSchema(
            task=spec.task,
            label=target.column if target else planned.label or "",
            target=target.name if target else None,
            fields=self.fields,
            group=planned.group if planned.group in categorical else None,
            rows=rows,
            rejected=rejected,
            label_mean=self.labels.mean("train"),
            label_min=self.labels.min,
            label_max=self.labels.max,
        )

    def statistics(self) -> dict[str, Any]:
        return {
            "rows": self.labels.rows,
            "label_mean": {split: self.labels.mean(split) for split in SPLITS},
            "fields": {
                found.name: {"kind": found.kind, "cardinality": found.cardinality, **self.figures[found.name]}
                for found in self.fields
            },
        }


def learn(stage: Stage, planned: Plan, assign: Assign, seed: int, progress: Progress) -> Learned:
    """Raises UserError if a split gets no row."""
    labels, done = Labels(), 0
    rng = np.random.default_rng(seed)
    counters = {one.name: counter(one, stage.texts.get(one.column), rng) for one in planned.fields}
    for frame in ahead(stage.frames()):
        codes = assign(frame)
        labels.add(frame[LABEL].to_numpy(), codes)
        train = frame.filter(pl.Series(codes == 0))
        for planned_field in planned.fields:
            counters[planned_field.name].add(train[planned_field.column])
        done += frame.height
        progress(done, stage.rows, "learning from training rows")
    check_splits(labels.rows)
    found: dict[str, Field] = {}
    for planned_field in sorted(planned.fields, key=lambda one: one.kind == "sequence"):
        found[planned_field.name] = counters[planned_field.name].field(found)
    return Learned(
        fields=tuple(found[one.name] for one in planned.fields),
        vocabularies={
            name: one.vocabulary
            for name, one in counters.items()
            if isinstance(one, CategoricalCounter) and found[name].hash_buckets is None
        },
        figures={name: one.figures() for name, one in counters.items()},
        labels=labels,
    )


def check_splits(rows: dict[Split, int]) -> None:
    """Raises UserError if a split has no row."""
    for split in SPLITS:
        if rows[split] == 0:
            total = sum(rows.values())
            raise UserError(f"dataset.split: none of {total} rows falls into {split}; give more rows or other ratios")
