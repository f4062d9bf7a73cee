"""What training rows teach about one field: its vocabulary, its transform's statistics, and figures for the report."""

from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from components.encode import taken
from components.plan import PlannedField
from trainer.schema import Field

QUANTILES = 255
"""Inner quantiles of the transform `quantile`."""
_RESERVOIR = 100_000

Floats = npt.NDArray[np.float64]


class Counter(Protocol):
    """Sees a field's checked training values in pieces, then describes the field."""

    def add(self, column: pl.Series) -> None: ...

    def field(self, others: dict[str, Field]) -> Field:
        """Args: others: the fields described before (categorical and numeric ones come first)."""

    def figures(self) -> dict[str, Any]:
        """Facts for statistics.json; shares are of training rows."""


def counter(planned: PlannedField, texts: pl.Series | None, rng: np.random.Generator) -> Counter:
    """Args: texts: the values of the column by number, where the counter is to see numbers (`Stage`)."""
    if planned.kind == "categorical":
        return CategoricalCounter(planned, texts)
    return NumericCounter(planned, rng) if planned.kind == "numeric" else SequenceCounter(planned)


class CategoricalCounter:
    """Counts of every token; of a hashed field's text only how many are missing."""

    def __init__(self, planned: PlannedField, texts: pl.Series | None) -> None:
        self._planned, self._texts = planned, texts
        self._rows = self._missing = 0
        self._counts = np.zeros(0 if texts is None else len(texts), np.int64)

    @property
    def _hashed(self) -> bool:
        return self._planned.settings.hash_buckets is not None

    def add(self, column: pl.Series) -> None:
        self._rows += len(column)
        if self._texts is None:
            self._missing += int((taken(column, self._planned.part) == "").sum())
        else:
            np.add.at(self._counts, column.to_numpy(), 1)

    @cached_property
    def vocabulary(self) -> pl.DataFrame:
        """token, count of every category seen `min_count` times, most frequent first (id 1). Counting ends here."""
        frequent = self._tokens.filter(pl.col("count") >= self._planned.min_count)
        return frequent.sort("count", "token", descending=[True, False])

    @cached_property
    def _tokens(self) -> pl.DataFrame:
        """token, count of every category"""
        texts = pl.Series(dtype=pl.String) if self._texts is None else taken(self._texts, self._planned.part)
        tokens = pl.DataFrame({"token": texts, "count": self._counts})
        return tokens.group_by("token").agg(pl.col("count").sum()) if self._planned.part else tokens

    def field(self, others: dict[str, Field]) -> Field:
        planned, buckets = self._planned, self._planned.settings.hash_buckets
        cardinality = 1 + (self.vocabulary.height if buckets is None else buckets)
        return Field(
            name=planned.name,
            kind="categorical",
            column=None if planned.column == planned.name else planned.column,
            part=planned.part,
            cardinality=cardinality,
            hash_buckets=buckets,
        )

    def figures(self) -> dict[str, Any]:
        vocabulary = self.vocabulary.clear() if self._hashed else self.vocabulary
        missing = self._missing + self._tokens.filter(pl.col("token") == "")["count"].sum()
        return {
            "missing_share": missing / self._rows,
            "most_frequent_share": vocabulary["count"][0] / self._rows if vocabulary.height else None,
            "unknown_share": 0.0 if self._hashed else 1 - vocabulary["count"].sum() / self._rows,
        }


class NumericCounter:
    """Mean, deviation and range of raw values in one pass, and a uniform sample for quantiles."""

    def __init__(self, planned: PlannedField, rng: np.random.Generator) -> None:
        self._planned, self._rng = planned, rng
        self._rows = self._present = 0
        self._mean = self._squares = 0.0
        self._min, self._max = np.inf, -np.inf
        self._sample: Floats = np.empty(0)
        self._keys: Floats = np.empty(0)

    def add(self, column: pl.Series) -> None:
        self._rows += len(column)
        values: Floats = column.drop_nulls().to_numpy()
        if len(values) == 0:
            return
        # Chan, Golub and LeVeque's update: a plain sum of squares of large values would lose their digits
        count, mean = self._present + len(values), float(values.mean())
        shift = mean - self._mean
        self._squares += float(((values - mean) ** 2).sum()) + shift**2 * self._present * len(values) / count
        self._mean += shift * len(values) / count
        self._present = count
        self._min, self._max = min(self._min, float(values.min())), max(self._max, float(values.max()))
        if self._planned.transform == "quantile":
            self._keep(values)

    def field(self, others: dict[str, Field]) -> Field:
        return Field(
            name=self._planned.name,
            kind="numeric",
            transform=self._planned.transform,
            missing=self._present < self._rows,
            statistics=self._statistics(),
        )

    def figures(self) -> dict[str, Any]:
        facts = {"min": self._min, "max": self._max, "mean": self._mean, "std": self._deviation}
        known = self._present > 0
        return {
            "missing_share": 1 - self._present / self._rows,
            **{name: value if known else None for name, value in facts.items()},
        }

    def _keep(self, values: Floats) -> None:
        """The values with the smallest random keys are a uniform sample."""
        self._sample = np.concatenate([self._sample, values])
        self._keys = np.concatenate([self._keys, self._rng.random(len(values))])
        if len(self._keys) > _RESERVOIR:
            kept = np.argpartition(self._keys, _RESERVOIR)[:_RESERVOIR]
            self._sample, self._keys = self._sample[kept], self._keys[kept]

    @property
    def _deviation(self) -> float:
        return float(np.sqrt(self._squares / self._present)) if self._present else 0.0

    def _statistics(self) -> tuple[float, ...]:
        if self._planned.transform == "standardize":
            return self._mean, self._deviation or 1.0
        if self._planned.transform == "quantile":
            inner = np.arange(1, QUANTILES + 1) / (QUANTILES + 1)
            return tuple(np.quantile(self._sample, inner).tolist()) if len(self._sample) else (0.0,)
        return ()


class SequenceCounter:
    """How long a sequence field's lists are, as they are kept."""

    def __init__(self, planned: PlannedField) -> None:
        self._planned = planned
        self._rows = self._empty = self._total = self._longest = 0

    def add(self, column: pl.Series) -> None:
        lengths = column.list.len().fill_null(0).to_numpy().clip(max=self._planned.settings.max_len)
        self._rows += len(column)
        self._empty += int((lengths == 0).sum())
        self._total += int(lengths.sum())
        self._longest = max(self._longest, int(lengths.max(initial=0)))

    def field(self, others: dict[str, Field]) -> Field:
        of = others[self._planned.of or ""]
        max_len = self._planned.settings.max_len
        return Field(name=self._planned.name, kind="sequence", cardinality=of.cardinality, of=of.name, max_len=max_len)

    def figures(self) -> dict[str, Any]:
        return {
            "missing_share": self._empty / self._rows,
            "mean_length": self._total / self._rows,
            "max_length": self._longest,
        }
