"""AutoDis: the rules by which numbers are put into buckets, and the choice between encoders."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.opened import QUICK, VALID_ROWS, Hard, candidate, opened, schema, searched, table
from trainer.architecture import BinsEncoder, BucketsEncoder, ScaleEncoder, TableEncoder
from trainer.build import build
from trainer.data import Table
from trainer.errors import UserError
from trainer.fit import fit, predict
from trainer.methods import autodis
from trainer.methods.autodis import boundaries, spread
from trainer.methods.settings import AutoDisSettings, NumberEncoder
from trainer.methods.table import METHODS
from trainer.schema import DatasetSchema, Task
from trainer.shapes import count
from trainer.space import choices

FIXED = ("equal_width", "equal_frequency", "logarithm", "tree")
KINDS: tuple[NumberEncoder, ...] = get_args(NumberEncoder)
NUMERIC = ("price", "age")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def found(kind: str, values: Any, buckets: int, label: Any = None, task: Task = "ctr") -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    label = np.arange(len(values)) % 2 if label is None else label
    return np.array(boundaries(kind, values, np.asarray(label, dtype=np.float64), buckets, task))  # type: ignore[arg-type]


def sizes(boundaries: np.ndarray, values: Any) -> list[int]:
    """Rows in each bucket; a value equal to a boundary belongs below it."""
    return np.bincount(np.searchsorted(boundaries, values, side="left"), minlength=len(boundaries) + 1).tolist()


# ---- rules ----------------------------------------------------------------------------------------------------------

LADDER = np.linspace(0.0, 100.0, 1001)
"""Its 1st and 99th percentiles are 1 and 99."""


def test_equal_widths_are_equal_steps_between_the_outer_percentiles() -> None:
    assert found("equal_width", LADDER, 7) == pytest.approx([15, 29, 43, 57, 71, 85])
    heavy = np.append(LADDER, [1e6])  # one value far away moves nothing by much
    assert found("equal_width", heavy, 7) == pytest.approx([15, 29, 43, 57, 71, 85], rel=0.01)


@pytest.mark.parametrize("buckets", [2, 5, 10])
def test_equal_frequencies_are_equal_counts(buckets: int) -> None:
    values = np.random.default_rng(0).lognormal(0, 3, 1000).astype(np.float32)
    assert sizes(found("equal_frequency", values, buckets), values) == [1000 // buckets] * buckets


def test_ties_stay_together_in_one_bucket_of_equal_frequency() -> None:
    values = np.repeat([0.0, 1.0, 2.0], [900, 50, 50])
    for buckets in (10, 20):
        limits = found("equal_frequency", values, buckets)
        assert 0.0 in limits
        assert len(limits) < 5
    assert [rows for rows in sizes(limits, values) if rows] == [900, 50, 50]


def test_the_logarithm_is_symmetric_and_denser_near_0() -> None:
    values = np.linspace(-1000, 1000, 2001)
    limits = found("logarithm", values, 8)
    assert limits == pytest.approx(-limits[::-1], abs=1e-3)
    steps = np.diff(limits[limits >= -1e-6])
    assert all(later > 2 * earlier for earlier, later in pairwise(steps))
    top = 980.0  # the 99th percentile
    assert limits[3:] == pytest.approx(np.expm1(np.log1p(top) * np.array([0, 0.25, 0.5, 0.75])), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("task", ["ctr", "rating"])
def test_a_tree_finds_a_planted_step(task: Task) -> None:
    values = np.random.default_rng(1).normal(size=2000).astype(np.float32).astype(np.float64)
    label = (values > 0.37).astype(float) * (1 if task == "ctr" else 4)
    step = found("tree", values, 2, label, task)
    assert len(step) == 1
    assert values[values <= 0.37].max() <= step[0] <= values[values > 0.37].min()


def test_a_tree_finds_several_steps_where_even_buckets_miss_them() -> None:
    values = np.random.default_rng(2).uniform(0, 1, 4000)
    steps = [0.15, 0.4, 0.83]
    label = np.array([0.0, 4.0, 1.0, 5.0])[np.searchsorted(steps, values)]
    assert found("tree", values, 4, label, "rating") == pytest.approx(steps, abs=0.002)


def test_leaves_of_a_tree_hold_at_least_half_an_even_share() -> None:
    values = np.random.default_rng(3).normal(size=1000)
    limits = found("tree", values, 10, np.random.default_rng(4).integers(0, 2, 1000))
    assert 1 < len(limits) <= 9
    assert min(sizes(limits, values)) >= 50


def test_a_tree_is_grown_on_rows_from_all_over_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ingest leaves rows in the order of their source, by time or by user: the first ones are no sample."""
    monkeypatch.setattr(autodis, "TREE_ROWS", 200)
    values = np.linspace(0, 1, 1000)
    assert found("tree", values, 2, values > 0.7) == pytest.approx([0.7], abs=0.05)


numbers = st.floats(-(2.0**40), 2.0**40, width=32, allow_subnormal=False)


@settings(deadline=None)
@given(st.sampled_from(FIXED), st.lists(numbers, min_size=1, max_size=40), st.integers(1, 12))
def test_boundaries_rise_and_are_no_more_than_asked_for(kind: str, values: list[float], buckets: int) -> None:
    limits = found(kind, values, buckets)
    assert 1 <= len(limits) <= max(buckets - 1, 1)
    assert np.isfinite(limits).all()
    assert (np.diff(limits.astype(np.float32)) > 0).all()


@pytest.mark.parametrize("kind", FIXED)
def test_a_constant_column_has_boundaries(kind: str) -> None:
    for constant in (0.0, -3.0, 1e9):
        assert np.isfinite(found(kind, np.full(50, constant), 5)).all()


@pytest.mark.parametrize("kind", FIXED)
def test_a_column_without_any_value_has_boundaries(kind: str) -> None:
    assert np.isfinite(found(kind, [], 5)).all()


def test_the_spread_leaves_out_the_outer_hundredths() -> None:
    assert spread(LADDER) == pytest.approx((1.0, 99.0))
    assert spread(np.full(9, 7.0)) == (7.0, 8.0)
    assert spread(np.array([])) == (0.0, 1.0)


@given(st.lists(numbers, max_size=20))
def test_a_spread_is_no_point_in_float32_either(values: list[float]) -> None:
    """The bins divide by it in float32."""
    low, high = np.array(spread(np.array(values)), dtype=np.float32)
    assert high > low


# ---- what is opened -------------------------------------------------------------------------------------------------


def with_age(age: Tensor) -> Table:
    rows = table(len(age))
    return replace(rows, numeric=torch.stack([rows.numeric[:, 0], age], dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_one_encoder_needs_no_training(kind: NumberEncoder) -> None:
    net = opened("autodis", encoders=[kind], buckets=[5], bins=[7], temperature=[0.3])
    result = searched(net)
    assert (result.samples, result.figures) == (0, [])
    assert result.seconds < 0.1
    expected = {"scale": ScaleEncoder, "bins": BinsEncoder}.get(kind, BucketsEncoder)
    encoders = result.architecture.views["e"].encoders
    assert all(isinstance(encoders[field], expected) for field in NUMERIC)
    assert all(isinstance(encoders[field], TableEncoder) for field in encoders if field not in NUMERIC)
    first = result.architecture.views["first"].encoders
    assert all(first[field] == ScaleEncoder(dim=1) for field in NUMERIC)


def test_soft_bins_span_each_field_and_have_the_settings_of_the_trial() -> None:
    settings = {"bins": [7], "temperature": [0.4], "adaptive": [True], "aggregation": ["top"]}
    encoders = opened("autodis", encoders=["bins"], **settings).derive().views["e"].encoders
    for column, field in enumerate(NUMERIC):
        values = table().numeric[:, column].double().numpy()
        assert encoders[field] == BinsEncoder(
            dim=16, bins=7, temperature=0.4, adaptive=0.2, aggregation="top", range=spread(values[~np.isnan(values)])
        )


@pytest.mark.parametrize("kind", FIXED)
def test_buckets_are_found_in_the_training_rows_of_each_field(kind: str) -> None:
    encoders = opened("autodis", encoders=[kind], buckets=[6]).derive().views["e"].encoders
    rows = table()
    for column, field in enumerate(NUMERIC):
        values = rows.numeric[:, column].double().numpy()
        known = ~np.isnan(values)
        expected = found(kind, values[known], 6, rows.label.numpy()[known])
        assert encoders[field].boundaries == pytest.approx(expected)
        assert encoders[field].rule == kind


@pytest.mark.parametrize("age", [0.0, 1e9, float("nan")], ids=["constant", "a large constant", "all missing"])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_say_nothing_are_encoded_in_finite_numbers(kind: NumberEncoder, age: float) -> None:
    rows = with_age(torch.full((100,), age))
    derived = opened("autodis", encoders=[kind], train=rows, valid=rows).derive()
    model = build(derived, label_mean=0.5, table_init=0.1, seed=0)
    assert np.isfinite(predict(model, rows)).all()
    fit(model, rows, rows, QUICK, task="ctr", seed=0)


def test_choices_that_an_encoder_has_not_are_not_asked() -> None:
    """Else trials would be drawn that differ in nothing."""
    plan = METHODS["autodis"].plan
    assert plan is not None

    def asked(*encoders: NumberEncoder) -> set[str]:
        lists = {"bins": [5, 6], "temperature": [0.1, 1.0], "adaptive": [False, True], "buckets": [4, 8]}
        more = {"aggregation": ["average", "max"]}
        return set(choices(plan(AutoDisSettings(encoders=list(encoders), **lists, **more))))  # type: ignore[arg-type]

    soft = {f"autodis.{name}" for name in ("bins", "temperature", "adaptive", "aggregation")}
    assert asked("scale") == set()
    assert asked("bins", "scale") == soft
    assert asked("tree", "equal_width") == {"autodis.buckets"}
    assert asked("bins", "tree") == soft | {"autodis.buckets"}


def test_a_dataset_without_numbers_is_refused_in_one_line() -> None:
    fields = tuple(field for field in schema().fields if field.kind != "numeric")
    categorical: DatasetSchema = schema().model_copy(update={"fields": fields})
    with pytest.raises(UserError, match=r"^search.methods: autodis .* has none$"):
        METHODS["autodis"].space(categorical, AutoDisSettings())


# ---- several encoders -----------------------------------------------------------------------------------------------


def choose(net: Any, places: dict[str, int]) -> None:
    for name, opened_view in net.choices.items():
        with torch.no_grad():
            net.gates[name].zero_()
            for row, field in enumerate(opened_view.fields):
                net.gates[name][row, places[field]] = 5.0


@pytest.mark.parametrize("price", range(len(KINDS)))
def test_every_field_gets_the_encoder_of_its_greatest_gate(price: int) -> None:
    net = opened("autodis", encoders=list(KINDS))
    age = (price + 2) % len(KINDS)
    choose(net, {"price": price, "age": age})
    encoders = net.derive().views["e"].encoders
    for field, place in (("price", price), ("age", age)):
        alone = opened("autodis", encoders=[KINDS[place]]).derive().views["e"].encoders
        assert encoders[field] == alone[field]


def test_a_search_derives_what_its_gates_say_in_the_end() -> None:
    net = opened("autodis", encoders=list(KINDS), gate_learning_rate=0.3, every=1, warm_up=0.0)
    result = searched(net)
    assert result.samples > 0
    assert (net.gates["e"] != 0).any()
    for place, field in enumerate(net.choices["e"].fields):
        encoder = result.architecture.views["e"].encoders[field]
        kind = getattr(encoder, "rule", encoder.kind)
        assert kind == KINDS[int(net.gates["e"][place].argmax())]
    assert [figure["title"] for figure in result.figures] == ["Encoders of price", "Encoders of age"]
    model = build(result.architecture, label_mean=0.5, table_init=0.1, seed=0)
    fit(model, table(), table(VALID_ROWS, seed=1), QUICK, task="ctr", seed=0)
    assert sum(weight.numel() for weight in model.parameters()) == count(result.architecture).total


def test_a_field_whose_step_no_line_can_follow_gets_no_line() -> None:
    """Of age, whose absolute value decides, a multiple of a vector says nothing."""

    def rows(count: int, seed: int) -> Table:
        made = table(count, seed=seed)
        return replace(made, label=(made.numeric[:, 1].abs() > 0.67).float())

    train, valid = rows(2000, 0), rows(500, 1)
    training = QUICK.model_copy(update={"batch_size": 64, "table_init": 0.1})
    net = opened(
        "autodis",
        backbone="wide_deep",
        encoders=["scale", "tree"],
        train=train,
        valid=valid,
        training=training,
        gate_learning_rate=0.1,
        every=2,
        epochs=4,
    )
    derived = searched(net, train=train, valid=valid, training=training).architecture
    assert derived.views["e"].encoders["age"].kind == "buckets"


def test_a_cold_supernet_in_evaluation_is_that_of_its_likeliest_encoders() -> None:
    net = opened("autodis", encoders=list(KINDS), epochs=1)
    searched(net, training=QUICK.model_copy(update={"precision": "fp32"}))
    choose(net, {"price": 1, "age": 4})
    net.relax(1.0, frozen=False, deciding=False)
    model, batch = net.model.eval(), table(64, seed=3).take(torch.arange(64))
    soft = model(batch)
    choice = net.choices["e"]
    choice.mixture = Hard(choice.mixture)
    torch.testing.assert_close(model(batch), soft)


def test_candidates_are_the_encoders_each_on_its_own_column() -> None:
    net = opened("autodis", encoders=["scale", "bins"])
    choice, batch = net.choices["e"], table().take(torch.arange(50))
    seen: list[Tensor] = []
    choice.mixture.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    choice(batch, net.model.tables(batch))
    for place, field in enumerate(choice.fields):
        column = batch.numeric[:, NUMERIC.index(field)][:, None]
        for option in range(2):
            torch.testing.assert_close(seen[0][:, place, option], choice.encoders[2 * place + option](column)[:, 0])


def test_vectors_of_candidates_are_table_parameters_like_those_of_any_encoder() -> None:
    """They are trained with the tables' rate and penalty in a plain model, so they are in a supernet."""
    net = opened("autodis", encoders=["scale", "equal_width"])
    tables = {id(weight) for weight in net.model.table_parameters()}
    for name, weight in net.choices["e"].encoders.named_parameters():
        assert id(weight) in tables, name


def test_one_trial_of_each_setting_is_another_candidate() -> None:
    one = candidate("autodis", schema(), temperature=[0.3])
    other = candidate("autodis", schema(), temperature=[1.0])
    assert one.hash != other.hash
    assert one.architecture.hash == other.architecture.hash
