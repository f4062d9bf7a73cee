"""Rows drawn from a known architecture, so that what a search finds can be checked against the truth.

score = sum of the fields' own effects + sum over interactions of strength * sum_d prod_f v_f[d], where every share has
mean 0 and the stated standard deviation. A click has probability sigmoid(score + bias), mixed with `noise` of blind
clicks; a rating is mean + score + normal noise. The column `truth` holds the best possible prediction.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import expit

from components.dataset import DatasetSpec, PlantedField, PlantedInteraction, PlantedSpec
from components.formats.layout import Format, Layout
from components.rejects import LINE, Rejects
from trainer.schema import Task

Floats = npt.NDArray[np.float64]
_ROWS = 1 << 16
_BIAS_ROWS = 200_000


def describe(spec: DatasetSpec, urls: list[str]) -> Layout:
    assert spec.planted is not None
    return Layout(
        {name: "categorical" if field.cardinality else "numeric" for name, field in spec.planted.fields.items()},
        label="label",
        transform="none",
        truth="truth",
    )


def rows(spec: DatasetSpec, layout: Layout, url: str, rejects: Rejects) -> Iterator[pl.DataFrame]:
    planted = spec.planted
    assert planted is not None
    weights_seed, bias_seed, rows_seed = np.random.SeedSequence(planted.seed).spawn(3)
    truth = Truth.draw(planted, spec.task, weights_seed, bias_seed)
    rng = np.random.default_rng(rows_seed)
    for first in range(0, planted.rows, _ROWS):
        values = draw_values(planted, min(_ROWS, planted.rows - first), rng)
        best = truth.predict(values)
        columns = {name: _column(planted.fields[name], column) for name, column in values.items()}
        lines = np.arange(first + 1, first + len(best) + 1)
        label = _label(spec.task, planted, best, rng)
        yield pl.DataFrame({LINE: lines, **columns, "label": label, "truth": best})


FORMAT = Format(describe, rows)


@dataclass(frozen=True)
class Truth:
    """The hidden weights."""

    task: Task
    planted: PlantedSpec
    effects: dict[str, Floats]
    """Field -> (cardinality,), or (1,) for a numeric field."""
    vectors: list[dict[str, Floats]]
    """Per interaction: field -> (cardinality or 1, rank), scaled to the interaction's strength."""
    bias: float

    @staticmethod
    def draw(
        planted: PlantedSpec, task: Task, weights: np.random.SeedSequence, rows: np.random.SeedSequence
    ) -> "Truth":
        rng = np.random.default_rng(weights)
        effects = {name: _effect(field, rng) for name, field in planted.fields.items()}
        vectors = [_vectors(planted, interaction, rng) for interaction in planted.interactions]
        truth = Truth(task, planted, effects, vectors, bias=planted.mean)
        if task == "rating":
            return truth
        score = truth.score(draw_values(planted, _BIAS_ROWS, np.random.default_rng(rows)))
        return Truth(task, planted, effects, vectors, _bias(score, planted.mean))

    def score(self, values: dict[str, npt.NDArray[np.generic]]) -> Floats:
        """(N,) score without bias; missing values (-1, NaN) add nothing."""
        score: Floats = sum(
            (
                _weigh(self.planted.fields[name], values[name], weight[:, None])[:, 0]
                for name, weight in self.effects.items()
            ),
            start=np.zeros(len(next(iter(values.values())))),
        )
        for vectors in self.vectors:
            parts = [_weigh(self.planted.fields[name], values[name], table) for name, table in vectors.items()]
            score += np.prod(parts, axis=0).sum(axis=1)
        return score

    def predict(self, values: dict[str, npt.NDArray[np.generic]]) -> Floats:
        """(N,) probability of a click, or expected rating."""
        score = self.score(values) + self.bias
        if self.task == "rating":
            return score
        noise, mean = self.planted.noise, self.planted.mean
        return np.asarray((1 - noise) * expit(score) + noise * mean)


def draw_values(planted: PlantedSpec, rows: int, rng: np.random.Generator) -> dict[str, npt.NDArray[np.generic]]:
    """Field -> (rows,): category numbers (-1 is missing) or numbers (NaN is missing)."""
    return {name: _draw(field, rows, rng) for name, field in planted.fields.items()}


def _draw(field: PlantedField, rows: int, rng: np.random.Generator) -> npt.NDArray[np.generic]:
    missing = rng.random(rows) < field.missing
    if field.cardinality is None:
        return np.where(missing, np.nan, rng.standard_normal(rows))
    category = np.searchsorted(np.cumsum(_shares(field))[:-1], rng.random(rows), side="right")
    return np.where(missing, -1, category)


def _shares(field: PlantedField) -> Floats:
    """(cardinality,) probability of each category."""
    assert field.cardinality is not None
    weight = np.arange(1, field.cardinality + 1, dtype=np.float64) ** -field.zipf
    return np.asarray(weight / weight.sum())


def _effect(field: PlantedField, rng: np.random.Generator) -> Floats:
    if field.cardinality is None:
        return np.asarray([field.effect * rng.choice([-1.0, 1.0])])
    weight = _centred(field, rng.standard_normal((field.cardinality, 1)))[:, 0]
    return np.asarray(field.effect * weight / np.sqrt(_shares(field) @ weight**2))


def _vectors(planted: PlantedSpec, interaction: PlantedInteraction, rng: np.random.Generator) -> dict[str, Floats]:
    """Random vectors; the product's variance is the sum over d, e of the product of the fields' E[v_d v_e]."""
    tables, moments = {}, np.ones((interaction.rank, interaction.rank))
    for name in interaction.fields:
        field = planted.fields[name]
        table = rng.standard_normal((field.cardinality or 1, interaction.rank))
        if field.cardinality is not None:
            table = _centred(field, table)
            moments *= (table * _shares(field)[:, None]).T @ table
        else:
            moments *= table.T @ table
        tables[name] = table
    tables[interaction.fields[0]] *= interaction.strength / np.sqrt(moments.sum())
    return tables


def _centred(field: PlantedField, table: Floats) -> Floats:
    """Mean 0 over rows: an interaction then holds nothing that its fields' own effects could explain."""
    return np.asarray(table - _shares(field) @ table)


def _weigh(field: PlantedField, values: npt.NDArray[np.generic], table: Floats) -> Floats:
    """(N,) values and (cardinality or 1, rank) weights -> (N, rank)."""
    if field.cardinality is None:
        return np.asarray(np.nan_to_num(values.astype(np.float64))[:, None] * table)
    return np.where(values[:, None] == -1, 0.0, table[values.astype(np.int64)])


def _bias(score: Floats, mean: float) -> float:
    """The bias that makes the mean probability `mean`, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if expit(score + middle).mean() > mean else (middle, high)
    return (low + high) / 2


def _label(task: Task, planted: PlantedSpec, best: Floats, rng: np.random.Generator) -> Floats:
    if task == "rating":
        return np.asarray(best + planted.noise * rng.standard_normal(len(best)))
    return (rng.random(len(best)) < best).astype(np.float64)


def _column(field: PlantedField, values: npt.NDArray[np.generic]) -> pl.Series:
    if field.cardinality is None:
        return pl.Series(values, nan_to_null=True)
    numbers = pl.Series(values)
    return numbers.replace(-1, None).cast(pl.String)
