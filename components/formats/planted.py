"""Rows drawn from a known architecture, so that what a search finds can be checked against the truth.

score = sum of the fields' own effects + sum over interactions of strength * sum_d prod_f v_f[d], where every share has
mean 0 and the stated standard deviation (the size of a negative strength). A numeric field's own effect is linear, or
a sine in the value's quantile. A click has probability sigmoid(score + bias), mixed with `noise` of blind clicks; a
rating is mean + score + normal noise. The column `truth` holds the best possible prediction.

Interactions that share their vectors can contradict each other: with +ab, +ac, -bc, turning the sign of a field's
vectors turns two of the three, so that one or three stay negative. Inner products of one vector per value can only
follow that with vectors at least twice as long: a = (v, 0), b = (v, 2^0.5 v), c = (v, -2^0.5 v).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import expit, ndtr

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
    weights_seed, bias_seed, rows_seed, phases_seed = np.random.SeedSequence(planted.seed).spawn(4)
    truth = Truth.draw(planted, spec.task, weights_seed, bias_seed, phases_seed)
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
    phases: dict[str, float]
    """Field -> where its wave begins, in radians; without meaning for a field without `waves`."""
    bias: float

    @staticmethod
    def draw(
        planted: PlantedSpec,
        task: Task,
        weights: np.random.SeedSequence,
        rows: np.random.SeedSequence,
        phases: np.random.SeedSequence,
    ) -> "Truth":
        rng = np.random.default_rng(weights)
        effects = {name: _effect(field, rng) for name, field in planted.fields.items()}
        vectors = _vectors(planted, rng)
        truth = Truth(task, planted, effects, vectors, _phases(planted, phases), bias=planted.mean)
        if task == "rating":
            return truth
        score = truth.score(draw_values(planted, _BIAS_ROWS, np.random.default_rng(rows)))
        return replace(truth, bias=_bias(score, planted.mean))

    def score(self, values: dict[str, npt.NDArray[np.generic]]) -> Floats:
        """(N,) score without bias; missing values (-1, NaN) add nothing."""
        score: Floats = sum(
            (self._own_share(name, values[name]) for name in self.effects),
            start=np.zeros(len(next(iter(values.values())))),
        )
        for vectors in self.vectors:
            parts = [_weigh(self.planted.fields[name], values[name], table) for name, table in vectors.items()]
            score += np.prod(parts, axis=0).sum(axis=1)
        return score

    def _own_share(self, name: str, values: npt.NDArray[np.generic]) -> Floats:
        """(N,) values of a field -> (N,) its own effect."""
        field = self.planted.fields[name]
        if field.waves is not None:
            values = _wave(field.waves, self.phases[name], values.astype(np.float64))
        return _weigh(field, values, self.effects[name][:, None])[:, 0]

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


def _phases(planted: PlantedSpec, seed: np.random.SeedSequence) -> dict[str, float]:
    """One per field, from a seed of its own: `waves` set on one field changes nothing else."""
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(planted.fields))
    return dict(zip(planted.fields, phases.tolist(), strict=True))


def _wave(waves: float, phase: float, values: Floats) -> Floats:
    """(N,) numbers -> (N,) a sine in their quantiles: mean 0; deviation 1 for whole waves, else between 0.92 and 1.05.

    By its phase it correlates with the number itself: at most by 0.66 for one wave, 0.23 for four.
    """
    angle = 2 * np.pi * waves
    mean = (np.cos(phase) - np.cos(angle + phase)) / angle
    return np.asarray(np.sqrt(2) * (np.sin(angle * ndtr(values) + phase) - mean))


def _vectors(planted: PlantedSpec, rng: np.random.Generator) -> list[dict[str, Floats]]:
    """Random vectors per interaction; those of one name differ only in the first field's scale."""
    named: dict[str, dict[str, Floats]] = defaultdict(dict)
    vectors = []
    for interaction in planted.interactions:
        tables = {} if interaction.vectors is None else named[interaction.vectors]
        for name in interaction.fields:
            if name not in tables:
                tables[name] = _table(planted.fields[name], interaction.rank, rng)
        vectors.append(_scaled(planted, interaction, tables))
    return vectors


def _table(field: PlantedField, rank: int, rng: np.random.Generator) -> Floats:
    """(cardinality or 1, rank) random vectors."""
    table = rng.standard_normal((field.cardinality or 1, rank))
    return table if field.cardinality is None else _centred(field, table)


def _scaled(planted: PlantedSpec, interaction: PlantedInteraction, tables: dict[str, Floats]) -> dict[str, Floats]:
    """The interaction's tables, the first one scaled to its strength.

    The product's variance is the sum over d, e of the product of the fields' E[v_d v_e].
    """
    moments = np.ones((interaction.rank, interaction.rank))
    for name in interaction.fields:
        field, table = planted.fields[name], tables[name]
        weighted = table if field.cardinality is None else table * _shares(field)[:, None]
        moments *= weighted.T @ table
    first, *others = interaction.fields
    scale = interaction.strength / np.sqrt(moments.sum())
    return {first: tables[first] * scale} | {name: tables[name] for name in others}


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
