"""Planted rows: what the settings promise about the hidden truth, and that old settings give the rows they gave."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from pydantic import ValidationError
from scipy.special import ndtr, ndtri

from components.dataset import DatasetSpec, PlantedSpec
from components.formats import planted
from components.formats.planted import Truth
from components.rejects import Rejects

Floats = npt.NDArray[np.float64]
SIZES = {"a": 6, "b": 7, "c": 5}
TRIANGLE = (["a", "b"], ["a", "c"], ["b", "c"])


def _rows(**settings: Any) -> pl.DataFrame:
    spec = DatasetSpec.model_validate({"format": "planted", **settings})
    return pl.concat(planted.rows(spec, planted.describe(spec, []), "", Rejects(None)))


def _truth(fields: dict[str, Any], interactions: list[dict[str, Any]], seed: int = 0) -> Truth:
    spec = PlantedSpec.model_validate({"fields": fields, "interactions": interactions, "seed": seed})
    weights, rows, phases = np.random.SeedSequence(seed).spawn(3)
    return Truth.draw(spec, "rating", weights, rows, phases)


def _triangle(strengths: tuple[float, float, float], rank: int, **more: Any) -> Truth:
    """Zipf-distributed a, b, c without own effects, and an interaction of every two."""
    fields = {name: {"cardinality": size, "zipf": 0.7} for name, size in SIZES.items()}
    pairs = zip(TRIANGLE, strengths, strict=True)
    return _truth(fields, [{"fields": pair, "rank": rank, "strength": s, **more} for pair, s in pairs])


def _every_row() -> dict[str, npt.NDArray[np.generic]]:
    """Each combination of categories once: field -> (6 * 7 * 5,)"""
    grid = np.meshgrid(*(np.arange(size) for size in SIZES.values()), indexing="ij")
    return {name: column.ravel() for name, column in zip(SIZES, grid, strict=True)}


def _probability(name: str) -> Floats:
    weight = np.arange(1, SIZES[name] + 1) ** -0.7
    return np.asarray(weight / weight.sum())


def _pair_scores(truth: Truth) -> dict[str, Floats]:
    """From scores alone: `ab` -> (6, 7) what the pair adds, the third field missing, and so on."""
    values = _every_row()
    scores = {}
    for pair in TRIANGLE:
        (other,) = set(SIZES) - set(pair)
        score = truth.score(values | {other: np.full_like(values[other], -1)}).reshape(tuple(SIZES.values()))
        scores["".join(pair)] = np.asarray(score.take(0, axis=list(SIZES).index(other)))
    return scores


# ---- shared vectors


@pytest.mark.parametrize("rank", [1, 3])
def test_shared_vectors_score_as_the_formula_says(rank: int) -> None:
    strengths = (0.9, 0.6, -1.3)
    truth = _triangle(strengths, rank, vectors="one")
    # The first field's table carries the interaction's scale, so the plain ones are read where they stand second.
    plain = {"a": truth.vectors[0]["a"], "b": truth.vectors[0]["b"], "c": truth.vectors[1]["c"]}
    values, expected = _every_row(), np.zeros(6 * 7 * 5)
    for (left, right), strength in zip(TRIANGLE, strengths, strict=True):
        products = np.asarray([[sum(x * y) for y in plain[right]] for x in plain[left]])
        deviation = np.sqrt(_probability(left) @ products**2 @ _probability(right))
        expected += strength * products[values[left], values[right]] / deviation
    np.testing.assert_allclose(truth.score(values), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strengths", [(1.0, 0.5, 2.0), (1.0, 0.5, -2.0), (-1.0, -0.5, 2.0), (-1.0, -0.5, -2.0)])
def test_turning_signs_cannot_hide_a_contradiction(strengths: tuple[float, float, float]) -> None:
    """At rank 1 the product ab bc ca is a product of squares times the strengths, whatever the vectors' signs."""
    scores = _pair_scores(_triangle(strengths, rank=1, vectors="one"))
    loop = np.einsum("ab,bc,ac->abc", scores["ab"], scores["bc"], scores["ac"])
    assert np.all(np.sign(loop) == np.sign(np.prod(strengths)))


def test_vectors_of_their_own_have_no_common_sign() -> None:
    scores = _pair_scores(_triangle((1.0, 1.0, 1.0), rank=1))
    loop = np.einsum("ab,bc,ac->abc", scores["ab"], scores["bc"], scores["ac"])
    assert loop.min() < 0 < loop.max()


def test_two_names_are_two_sets_of_vectors() -> None:
    fields = {"a": {"cardinality": 5}, "b": {"cardinality": 5}}
    names = ["one", "two", "one"]
    truth = _truth(fields, [{"fields": ["a", "b"], "rank": 2, "vectors": name} for name in names])
    first, second, third = (vectors["b"] for vectors in truth.vectors)
    assert np.array_equal(first, third)
    assert not np.allclose(first, second)


def test_a_shared_triple_with_a_number_has_its_deviation() -> None:
    fields = {"a": {"cardinality": 4}, "b": {"cardinality": 5}, "x": {}}
    settings = {"rank": 2, "vectors": "one"}
    pair, triple = {"fields": ["a", "x"], **settings}, {"fields": ["x", "b", "a"], "strength": -0.8, **settings}
    both, alone = _truth(fields, [pair, triple]), _truth(fields, [pair])
    a, b, x = (column.ravel() for column in np.meshgrid(np.arange(4), np.arange(5), [-1.0, 1.0]))
    values = {"a": a, "b": b, "x": x}
    share = both.score(values) - alone.score(values)
    assert share.mean() == pytest.approx(0, abs=1e-12)
    assert share.std() == pytest.approx(0.8)


@pytest.mark.parametrize("vectors", [None, "one"])
def test_a_negative_strength_turns_the_share(vectors: str | None) -> None:
    plus, minus = (_triangle((0.4, 0.7, sign * 1.1), rank=3, vectors=vectors) for sign in (1, -1))
    np.testing.assert_array_equal(_pair_scores(plus)["bc"], -_pair_scores(minus)["bc"])
    np.testing.assert_array_equal(_pair_scores(plus)["ab"], _pair_scores(minus)["ab"])
    share = _pair_scores(minus)["bc"]
    assert _probability("b") @ share @ _probability("c") == pytest.approx(0, abs=1e-12)
    assert np.sqrt(_probability("b") @ share**2 @ _probability("c")) == pytest.approx(1.1)


# ---- waves

QUANTILES = (np.arange(100_000) + 0.5) / 100_000
NORMAL = np.asarray(ndtri(QUANTILES))


def _wave_share(waves: float, seed: int, effect: float = 0.6) -> Floats:
    """(100_000,) the share of a standard normal field."""
    return _truth({"x": {"effect": effect, "waves": waves}}, [], seed).score({"x": NORMAL})


@pytest.mark.parametrize("waves", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_whole_waves_are_exact(waves: int, seed: int) -> None:
    """Mean 0, deviation `effect`, nothing in common with waves of another number, turning points as announced."""
    share = _wave_share(waves, seed)
    assert share.mean() == pytest.approx(0, abs=1e-9)
    assert share.std() == pytest.approx(0.6, rel=1e-9)
    assert np.mean(share * _wave_share(waves + 1, seed + 1)) == pytest.approx(0, abs=1e-9)
    turns = np.count_nonzero(np.diff(np.sign(np.diff(share))))
    assert turns == 2 * waves


@pytest.mark.parametrize(("waves", "most"), [(1, 0.656), (2, 0.398), (4, 0.231), (8, 0.131)])
def test_a_line_explains_little_of_many_whole_waves(waves: int, most: float) -> None:
    """With phase p the correlation with x is `most` * cos(p), and more waves leave less of it."""
    found = [abs(np.corrcoef(NORMAL, _wave_share(waves, seed))[0, 1]) for seed in range(40)]
    assert 0.95 * most < max(found) < most + 0.001
    assert min(found) < 0.2 * most


@pytest.mark.parametrize("waves", [1.25, 1.5, 2.7])
@pytest.mark.parametrize("seed", range(8))
def test_broken_waves_keep_mean_0_and_about_their_deviation(waves: float, seed: int) -> None:
    share = _wave_share(waves, seed)
    assert share.mean() == pytest.approx(0, abs=1e-6)
    assert share.std() == pytest.approx(0.6, rel=0.08)


def test_waves_are_a_sine_in_the_quantile() -> None:
    truth = _truth({"x": {"effect": 0.6, "waves": 3}}, [])
    x = np.asarray([-2.0, -0.3, 0.0, 1.1, np.nan])
    sign = np.sign(truth.effects["x"][0])
    expected = sign * 0.6 * np.sqrt(2) * np.sin(2 * np.pi * 3 * ndtr(x) + truth.phases["x"])
    np.testing.assert_allclose(truth.score({"x": x}), np.nan_to_num(expected), atol=1e-12)


def test_waves_change_nothing_but_their_field() -> None:
    fields: dict[str, Any] = {"x": {"effect": 0.5}, "y": {"effect": 0.3, "waves": 2}, "a": {"cardinality": 9}}
    interactions = [{"fields": ["x", "a"], "rank": 2}]
    line, wave = (_truth(fields | {"x": x}, interactions) for x in ({"effect": 0.5}, {"effect": 0.5, "waves": 2}))
    unknown = {"x": np.full(9, np.nan), "y": np.linspace(-2, 2, 9), "a": np.arange(9)}
    np.testing.assert_array_equal(line.score(unknown), wave.score(unknown))
    np.testing.assert_array_equal(line.vectors[0]["a"], wave.vectors[0]["a"])


# ---- rows


def test_the_same_seed_gives_the_same_rows() -> None:
    settings = {
        "rows": 500,
        "fields": {"a": {"cardinality": 5}, "b": {"cardinality": 5}, "x": {"effect": 0.5, "waves": 2, "missing": 0.1}},
        "interactions": [
            {"fields": ["a", "b"], "vectors": "one"},
            {"fields": ["a", "x"], "vectors": "one", "strength": -1.0},
        ],
    }
    rows = _rows(planted=settings)
    assert rows.equals(_rows(planted=settings))
    assert not rows["truth"].equals(_rows(planted=settings | {"seed": 1})["truth"])


# Drawn before `vectors`, `waves` and negative strengths were known; kinds and seeds of old files must not move.
OLD: dict[str, Any] = {
    "rows": 100,
    "seed": 7,
    "fields": {"u": {"cardinality": 5, "zipf": 1.0, "effect": 0.5}, "x": {"effect": 0.4, "missing": 0.2}},
    "interactions": [{"fields": ["u", "x"], "rank": 2, "strength": 0.7}],
    "noise": 0.1,
}
QUICKSTART: dict[str, Any] = {
    "fields": {
        "segment": {"cardinality": 20, "effect": 0.4},
        "topic": {"cardinality": 14, "effect": 0.4},
        "hour": {"cardinality": 12, "effect": 0.4},
    },
    "interactions": [{"fields": ["segment", "topic", "hour"], "rank": 2, "strength": 1.2}],
}


def test_old_settings_give_their_old_rows() -> None:
    rows = _rows(planted=OLD)
    assert rows["u"].head(5).to_list() == ["1", "1", "3", "0", "0"]
    assert rows["x"].sum() == pytest.approx(7.851039628416962, rel=1e-12)
    assert rows["label"].sum() == 33
    truth = [0.3318954749902725, 0.38921516066345196, 0.37565196723079675, 0.21066939133783455, 0.21066939133783455]
    assert rows["truth"].head(5).to_list() == pytest.approx(truth, rel=1e-12)


def test_the_quickstart_keeps_its_rows() -> None:
    rows = _rows(planted=QUICKSTART)
    assert rows.select("segment", "topic", "hour").head(2).rows() == [("19", "13", "11"), ("13", "12", "5")]
    assert rows["truth"].head(2).to_list() == pytest.approx([0.40610369520615075, 0.15914049938070793], rel=1e-12)


# ---- mistakes

AB, AC = {"fields": ["a", "b"], "vectors": "one"}, {"fields": ["a", "c"], "vectors": "one"}
MISTAKES: list[tuple[dict[str, Any], list[dict[str, Any]], str]] = [
    (
        {},
        [AB | {"rank": 2}, AC | {"rank": 3}],
        "interactions ['a', 'b'] (rank 2) and ['a', 'c'] (rank 3) share the vectors 'one': give both one rank",
    ),
    ({}, [AB | {"strength": 0}], "'strength' must not be 0: leave the interaction out"),
    ({}, [{"fields": ["a", "a"]}], "interaction ['a', 'a']: a field stands there twice"),
    ({"a": {"cardinality": 5, "waves": 2}}, [], "'waves' is for numeric fields, 'cardinality' for categorical ones"),
    ({"a": {"waves": 0.5}}, [], "greater than or equal to 1"),
]


@pytest.mark.parametrize(("fields", "interactions", "message"), MISTAKES, ids=[message for *_, message in MISTAKES])
def test_a_mistake_is_refused(fields: dict[str, Any], interactions: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PlantedSpec.model_validate({"fields": {"a": {}, "b": {}, "c": {}} | fields, "interactions": interactions})
    (error,) = caught.value.errors()
    assert message in error["msg"]
    assert "\n" not in error["msg"]


def test_ranks_of_other_names_may_differ() -> None:
    other = [AB | {"rank": 2}, AC | {"rank": 3, "vectors": "two"}, {"fields": ["b", "c"], "rank": 5}]
    PlantedSpec.model_validate({"fields": {"a": {}, "b": {}, "c": {}}, "interactions": other})
