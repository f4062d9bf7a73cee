"""Numeric fields in soft bins and in buckets: closed forms, laws, missing values, and what is counted."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.mixed import architecture, batch_of, built, mixed_schema, parameters, table, view
from trainer.architecture import BinsEncoder, BucketsEncoder
from trainer.modules.encoders import FieldsView
from trainer.modules.numbers import DEVIATION, Bins, Buckets, NumberSource, numbers
from trainer.shapes import Counts, count

FIELDS, BINS, DIM = 3, 6, 4
NAN = float("nan")
few = settings(max_examples=40, deadline=None)


def reals(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers of float32."""
    low, high = torch.tensor([low, high]).tolist()
    return st.floats(low, high, width=32, allow_subnormal=False)


values = reals(-50, 50)


def bins(missing: Sequence[bool] = (False,) * FIELDS, *, fresh: bool = False, **rest: Any) -> Bins:
    """Fields in `BINS` soft bins, one for each of `missing`; unless `fresh`, far from where they start."""
    encoder = BinsEncoder(**{"dim": DIM, "bins": BINS, **rest})
    torch.manual_seed(0)
    module = numbers([NumberSource(place, held, DIM, encoder) for place, held in enumerate(missing)], init=1.0)
    assert isinstance(module, Bins)
    if not fresh:
        with torch.no_grad():
            for weight in (module.first, module.second, module.biases):
                if weight is not None:
                    weight.normal_(std=3.0)
    return module


def buckets(boundaries: tuple[float, ...], missing: Sequence[bool] = (False,)) -> Buckets:
    encoder = BucketsEncoder(dim=DIM, rule="equal_width", boundaries=boundaries)
    torch.manual_seed(0)
    module = numbers([NumberSource(place, held, DIM, encoder) for place, held in enumerate(missing)], init=1.0)
    assert isinstance(module, Buckets)
    return module


def twins(*variants: dict[str, Any], **common: Any) -> list[Bins]:
    """Modules with equal weights and unequal settings."""
    modules = [bins(**common, **variant) for variant in variants]
    for module in modules[1:]:
        module.load_state_dict(modules[0].state_dict())
    return modules


def alike(value: float) -> Tensor:
    """The same value in every field: (1, FIELDS)."""
    return torch.full((1, FIELDS), value)


def grid(low: float, high: float, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values that rise in all fields alike: (steps, FIELDS)."""
    return torch.linspace(low, high, steps, dtype=dtype)[:, None].repeat(1, FIELDS)


# ---- soft bins: closed forms ----------------------------------------------------------------------------------------


def test_without_biases_zero_is_the_mean_of_all_vectors() -> None:
    module = bins(bias=False)
    torch.testing.assert_close(module(alike(0.0))[0], module.vectors.mean(dim=1))
    other = bins(bias=True)
    assert not torch.allclose(other(alike(0.0))[0], other.vectors.mean(dim=1), atol=1e-2)


@pytest.mark.parametrize("bias", [False, True])
@few
@given(value=values)
def test_a_high_temperature_gives_the_mean_of_all_vectors(bias: bool, value: float) -> None:
    module = bins(bias=bias, temperature=1e8)
    torch.testing.assert_close(module(alike(value))[0], module.vectors.mean(dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@few
@given(value=values.filter(lambda value: abs(value) > 0.01))
def test_a_low_temperature_gives_the_vector_of_the_greatest_logit(bias: bool, value: float) -> None:
    module = bins(bias=bias, temperature=1e-6)
    best_N = module.logits(alike(value))[0].argmax(dim=1)
    torch.testing.assert_close(module(alike(value))[0], module.vectors[torch.arange(FIELDS), best_N])


def test_the_logits_are_those_of_the_description() -> None:
    """(bins - 1)^2 (h + W h + c) with h = LeakyReLU(w x + b), each a deviation from equal-width bins; bin by bin."""
    module, x = bins().double(), 0.7
    assert module.biases is not None
    steps, reach = BINS - 1, DEVIATION / (BINS - 1)
    for field in range(FIELDS):
        centre_H = torch.linspace(0, 1, BINS, dtype=torch.float64)
        w_H, b_H = centre_H + reach * module.first[field], reach * module.biases[0, field]
        c_H = reach * module.biases[1, field] - centre_H**2 / 2
        hidden = [torch.nn.functional.leaky_relu(x * w_H[h] + b_H[h]) for h in range(BINS)]
        mixed = [sum(hidden[h] * module.second[field, h, k] for h in range(BINS)) for k in range(BINS)]
        expected = [steps**2 * (hidden[k] + reach / steps * mixed[k] + c_H[k]) for k in range(BINS)]
        torch.testing.assert_close(
            module.logits(alike(x).double())[0, field], torch.stack(expected), rtol=1e-5, atol=1e-6
        )


@few
@given(value=reals(0, 1), temperature=reals(0.1, 3), size=st.integers(2, 40))
def test_fresh_bins_are_gaussians_around_even_centres(value: float, temperature: float, size: int) -> None:
    """As wide as the distance of the centres at temperature 1; W is 0 then, and no gradient dies of it."""
    module = bins(fresh=True, bins=size, temperature=temperature).double()
    width = 1 / (size - 1)
    distance_H = (value - torch.linspace(0, 1, size, dtype=torch.float64)) / width
    expected = (-(distance_H**2) / 2 / temperature).softmax(dim=0)
    weight_NH = module.weights(alike(value).double())[0]
    torch.testing.assert_close(weight_NH, expected.expand(FIELDS, -1), rtol=1e-4, atol=1e-6)


def test_fresh_bins_learn_in_all_their_weights() -> None:
    module = bins(fresh=True)
    module(grid(0.1, 0.9, 7)).square().sum().backward()
    assert all(weight.grad is not None and (weight.grad != 0).any() for weight in module.parameters())


@pytest.mark.parametrize("adaptive", [None, 0.05])
@pytest.mark.parametrize("bias", [False, True])
@few
@given(value=values, temperature=reals(0.1, 100))
def test_weights_add_up_to_one(bias: bool, adaptive: float | None, value: float, temperature: float) -> None:
    weight_NH = bins(bias=bias, adaptive=adaptive, temperature=temperature).weights(alike(value))[0]
    torch.testing.assert_close(weight_NH.sum(dim=1), torch.ones(FIELDS))
    assert (weight_NH >= 0).all()


@few
@given(value=values, top=st.integers(BINS, BINS + 3))
def test_the_top_of_all_bins_is_the_plain_sum(value: float, top: int) -> None:
    module = bins(aggregation="top", top=top)
    torch.testing.assert_close(module(alike(value))[0], module.vectors.sum(dim=1))


@few
@given(value=values)
def test_the_top_one_is_the_greatest(value: float) -> None:
    one, greatest = twins({"aggregation": "top", "top": 1}, {"aggregation": "max"})
    torch.testing.assert_close(one(alike(value)), greatest(alike(value)))


@few
@given(value=reals(0, 1), top=st.integers(1, BINS), temperature=st.sampled_from([1.0, 0.1, 0.01, 1e-5]))
def test_the_top_is_the_sum_of_the_vectors_of_the_greatest_logits(value: float, top: int, temperature: float) -> None:
    """Also where the weights of all but one are too small for a float: temperatures of the paper go down to 1e-5."""
    module = bins(aggregation="top", top=top, temperature=temperature)
    order_NH = module.logits(alike(value))[0].argsort(dim=1, descending=True)
    expected = [module.vectors[field, order_NH[field, :top]].sum(dim=0) for field in range(FIELDS)]
    torch.testing.assert_close(module(alike(value))[0], torch.stack(expected))


# ---- soft bins: laws ------------------------------------------------------------------------------------------------


@few
@given(value=reals(0.01, 20), factor=reals(0.1, 10))
def test_without_biases_logits_are_proportional_to_a_positive_value(value: float, factor: float) -> None:
    """Version 2 of the paper: one curve, along which the order of the bins never changes."""
    module = bins(bias=False).double()
    x = alike(value).double()
    torch.testing.assert_close(module.logits(factor * x), factor * module.logits(x))
    order = module.logits(x).argsort(dim=2)
    assert torch.equal(order, module.logits(factor * x).argsort(dim=2))


def test_values_of_two_signs_lie_on_two_rays() -> None:
    module = bins(bias=False).double()
    x = alike(1.0).double()
    assert not torch.allclose(module.logits(-x), -module.logits(x), atol=1e-2)


def test_with_biases_logits_are_not_proportional_and_the_greatest_bin_changes() -> None:
    plain, biased = bins(bias=False, aggregation="max"), bins(aggregation="max")
    assert not torch.allclose(biased.logits(alike(2.0)), 2 * biased.logits(alike(1.0)), atol=1e-2)
    x_BN = grid(0.01, 1.0, 200)
    assert all(len(plain(x_BN)[:, field].unique(dim=0)) == 1 for field in range(FIELDS))
    assert sum(len(biased(x_BN)[:, field].unique(dim=0)) for field in range(FIELDS)) > FIELDS


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"adaptive": 0.4}], ids=["bias", "plain", "adaptive"])
def test_small_steps_are_small_changes_where_buckets_jump(settings: dict[str, Any]) -> None:
    soft = bins(**settings, temperature=0.5).double()
    hard = buckets((0.25, 0.5, 0.75), missing=(False,) * FIELDS).double()

    def greatest_change(module: Any, step: float) -> float:
        # The grid starts off the boundaries, so that every step size meets them within a step.
        x_BN = grid(0.001, 0.997, 2001, torch.float64)
        return float((module(x_BN + step) - module(x_BN)).abs().max())

    steps = [1e-2, 1e-3, 1e-4]
    soft_changes = [greatest_change(soft, step) for step in steps]
    hard_changes = [greatest_change(hard, step) for step in (1e-2, 1e-3)]
    assert all(small < 0.2 * large for large, small in pairwise(soft_changes))
    assert hard_changes[0] == hard_changes[1] > 0.1


def test_different_values_have_different_vectors_where_buckets_tie() -> None:
    x_BN = grid(0.0, 1.0, 101)
    soft, hard = bins()(x_BN), buckets((0.25, 0.5, 0.75), missing=(False,) * FIELDS)(x_BN)
    for field in range(FIELDS):
        assert len(soft[:, field].unique(dim=0)) == 101
        assert len(hard[:, field].unique(dim=0)) == 4


def test_gradients_reach_every_weight_and_no_other_field() -> None:
    module = bins(missing=(True, True, False), adaptive=0.3, temperature=0.7)
    x_BN = torch.tensor([[0.2, -0.5, 0.9], [1.4, 0.3, -0.2], [NAN, NAN, 0.1]])
    module(x_BN)[:, 1].square().sum().backward()
    missing = module.missing
    assert missing is not None
    assert module.temperature is not None
    by_field = {
        "vectors": module.vectors.grad,
        "first": module.first.grad,
        "second": module.second.grad,
        "biases": module.biases.grad.transpose(0, 1),
        "temperature.first": module.temperature.first.grad.transpose(0, 1),
        "temperature.second": module.temperature.second.grad,
        "temperature.bias": module.temperature.bias.grad[:, None],
    }
    for name, gradient in by_field.items():
        assert gradient[1].abs().max() > 0, name
        assert (gradient[[0, 2]] == 0).all(), name
    assert missing.vectors.grad[1].abs().max() > 0
    assert (missing.vectors.grad[0] == 0).all()
    assert all(weight.grad.isfinite().all() for weight in module.parameters())


@pytest.mark.parametrize("aggregation", ["max", "top"])
def test_hard_aggregations_teach_the_chosen_vectors_only(aggregation: str) -> None:
    module = bins(aggregation=aggregation, top=2)
    x_BN = alike(0.4)
    module(x_BN).sum().backward()
    chosen = module.logits(x_BN)[0].topk(1 if aggregation == "max" else 2, dim=1).indices
    touched = module.vectors.grad.abs().amax(dim=2) > 0
    assert torch.equal(touched, torch.zeros(FIELDS, BINS, dtype=torch.bool).scatter(1, chosen, True))
    assert module.first.grad is None
    assert module.second.grad is None


@few
@given(value=reals(-1e6, 1e6), temperature=reals(0.01, 5), share=reals(0.1, 0.9))
def test_adaptive_temperatures_stay_near_the_global_one(value: float, temperature: float, share: float) -> None:
    module = bins(temperature=temperature, adaptive=share * temperature)
    found = module._temperatures(alike(value))
    assert isinstance(found, Tensor)
    distance = (found - temperature).abs().max().item()
    assert distance <= share * temperature * (1 + 1e-5) + 1e-6


def test_adaptive_temperatures_follow_the_value_and_bend_the_weights() -> None:
    adaptive = bins(temperature=0.5, adaptive=0.4)
    found = adaptive._temperatures(grid(-3.0, 3.0, 50))
    assert isinstance(found, Tensor)
    assert (found.amax(dim=0) - found.amin(dim=0) > 0.05).all()
    x_BN = alike(0.8)
    expected = (adaptive.logits(x_BN) / adaptive._temperatures(x_BN)).softmax(dim=2)
    torch.testing.assert_close(adaptive(x_BN), torch.einsum("bnh,nhd->bnd", expected, adaptive.vectors))


# ---- missing values and ranges --------------------------------------------------------------------------------------


def test_a_missing_value_has_its_own_vector_where_the_field_has_any() -> None:
    module = bins(missing=(True, False, True), range=(-2.0, 5.0))
    assert module.missing is not None
    x_BN = torch.tensor([[NAN, NAN, NAN], [0.0, 0.0, 0.0], [NAN, 0.7, 0.2]])
    gone, zero, mixed = module(x_BN)
    torch.testing.assert_close(gone[0], module.missing.vectors[0])
    torch.testing.assert_close(gone[2], module.missing.vectors[1])
    torch.testing.assert_close(gone[1], zero[1])
    assert not torch.allclose(gone[0], zero[0], atol=1e-2)
    torch.testing.assert_close(mixed[0], module.missing.vectors[0])
    torch.testing.assert_close(mixed[1:], module(torch.tensor([[0.1, 0.7, 0.2]]))[0, 1:])


def test_a_missing_value_teaches_its_vector_and_nothing_else() -> None:
    module = bins(missing=(True,) * FIELDS)
    module(alike(NAN)).sum().backward()
    assert module.missing is not None
    assert (module.missing.vectors.grad == 1).all()
    assert all((weight.grad == 0).all() for name, weight in module.named_parameters() if not name.startswith("missing"))


RANGES = ((0.0, 1.0), (-5.0, 3.0), (100.0, 400.0))


def test_fields_that_differ_in_their_range_share_a_module_that_maps_each_by_its_own() -> None:
    """The same as fields in [0, 1] whose values were mapped before."""
    sources = [
        NumberSource(place, True, DIM, BinsEncoder(dim=DIM, bins=BINS, range=bounds))
        for place, bounds in enumerate(RANGES)
    ]
    assert sources[0].joins(sources[1])
    torch.manual_seed(0)
    module, plain = numbers(sources, init=1.0), bins(missing=(True,) * FIELDS)
    assert isinstance(module, Bins)
    plain.load_state_dict(module.state_dict())
    share_BN = torch.rand(20, FIELDS)
    low, high = torch.tensor(RANGES).T
    torch.testing.assert_close(module(low + share_BN * (high - low)), plain(share_BN), rtol=1e-4, atol=1e-5)


def one_view(**encoders: dict[str, Any]) -> Any:
    return architecture({"v": {"encoders": encoders}}, [], ["v"], mode="linear")


@pytest.mark.parametrize(
    ("other", "modules"), [({"range": (2.0, 9.0)}, 1), ({"bins": 5}, 2), ({"temperature": 0.2}, 2)]
)
def test_neighbours_are_encoded_together_if_they_differ_in_nothing_but_the_range(
    other: dict[str, Any], modules: int
) -> None:
    soft = {"kind": "bins", "dim": DIM, "bins": BINS}
    description = one_view(price=soft, age={**soft, **other})
    model, batch = built(description), batch_of(mixed_schema())
    fields = model.views["view:v"]
    assert isinstance(fields, FieldsView)
    assert len(fields.numbers) == modules
    assert parameters(model.table_parameters()) == count(description).tables
    alone = [
        built(one_view(**{name: description.to_dict()["views"]["v"]["encoders"][name]})) for name in ("price", "age")
    ]
    for place, single in enumerate(alone):
        own = single.views["view:v"].numbers["0"]
        for name, weight in own.named_parameters():
            weight.data = _of_field(fields, place, name)
        torch.testing.assert_close(
            single.views["view:v"](batch, single.tables(batch))[:, 0], fields(batch, model.tables(batch))[:, place]
        )


def _of_field(fields: FieldsView, place: int, name: str) -> Tensor:
    """The part of a shared weight that is one field's; only the first field (price) may miss."""
    joined = len(fields.numbers) == 1
    weight = fields.numbers["0" if joined else str(place)].get_parameter(name).data
    if not joined or name == "missing.vectors":
        return weight
    return weight[:, place : place + 1] if name == "biases" else weight[place : place + 1]


# ---- buckets --------------------------------------------------------------------------------------------------------


def test_a_boundary_belongs_below_and_the_outer_buckets_are_open() -> None:
    module = buckets((-1.0, 0.5, 2.0), missing=(False, False))
    x = torch.tensor([-1e9, -1.0, -0.999, 0.5, 0.501, 2.0, 2.001, 1e9])
    expected = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    for field in range(2):
        torch.testing.assert_close(module(x[:, None].repeat(1, 2))[:, field], module.vectors[field, expected])


@few
@given(
    bounds=st.lists(reals(-100, 100), min_size=1, max_size=6, unique=True),
    value=reals(-200, 200),
)
def test_a_value_falls_into_the_bucket_whose_lower_boundaries_it_exceeds(bounds: list[float], value: float) -> None:
    module = buckets(tuple(sorted(bounds)))
    bucket = sum(value > bound for bound in bounds)
    torch.testing.assert_close(module(torch.tensor([[value]]))[0, 0], module.vectors[0, bucket])


def test_buckets_of_missing_values() -> None:
    module = buckets((-1.0, 1.0), missing=(False, True))
    assert module.missing is not None
    gone, zero = module(torch.tensor([[NAN, NAN], [0.0, 0.0]]))
    torch.testing.assert_close(gone, torch.stack([zero[0], module.missing.vectors[0]]))
    assert not torch.allclose(gone[1], zero[1], atol=1e-2)


def test_only_the_vectors_of_buckets_that_were_met_learn() -> None:
    module = buckets((0.0, 1.0), missing=(True, True))
    module(torch.tensor([[0.5, NAN], [0.7, 3.0]]))[:, 1].sum().backward()
    assert module.vectors.grad[:, :, 0].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert module.missing is not None
    assert module.missing.vectors.grad[:, 0].tolist() == [0, 1]


# ---- what is counted, and number formats ----------------------------------------------------------------------------

ENCODERS = {
    "bins": {"kind": "bins", "dim": 4, "bins": 6},
    "without biases": {"kind": "bins", "dim": 4, "bins": 6, "bias": False},
    "adaptive": {"kind": "bins", "dim": 3, "bins": 5, "adaptive": 0.2},
    "adaptive without biases": {"kind": "bins", "dim": 3, "bins": 5, "adaptive": 0.2, "bias": False},
    "one bin": {"kind": "bins", "dim": 4, "bins": 1},
    "max": {"kind": "bins", "dim": 4, "bins": 6, "aggregation": "max"},
    "top": {"kind": "bins", "dim": 4, "bins": 6, "aggregation": "top"},
    "buckets": {"kind": "buckets", "dim": 4, "rule": "tree", "boundaries": [0.0, 0.5, 2.0]},
}
WEIGHTS = {
    "bins": 2 * (6 + 36 + 12 + 6 * 4) + 4,  # first, second, biases, vectors; and one vector for a missing price
    "without biases": 2 * (6 + 36 + 6 * 4) + 4,
    "adaptive": 2 * (5 + 25 + 10 + 5 * 3 + 16) + 3,  # 16: a temperature's two layers
    "adaptive without biases": 2 * (5 + 25 + 5 * 3 + 16) + 3,
    "one bin": 2 * (1 + 1 + 2 + 4) + 4,
    "max": 2 * (6 + 36 + 12 + 6 * 4) + 4,
    "top": 2 * (6 + 36 + 12 + 6 * 4) + 4,
    "buckets": 2 * 4 * 4 + 4,
}


@pytest.mark.parametrize("name", ENCODERS)
def test_counted_weights_are_built(name: str) -> None:
    encoder = ENCODERS[name]
    width = encoder["dim"]
    description = architecture(
        {"v": {"encoders": {"price": encoder, "age": encoder, "user": table(width)}}},
        [{"id": "q", "op": "fm", "in": ["v"]}],
        ["q"],
    )
    model, counts = built(description), count(description)
    assert parameters(model.table_parameters()) == counts.tables == WEIGHTS[name] + 20 * width
    assert parameters(model.dense_parameters()) == counts.dense == 1
    model(batch_of(mixed_schema())).sum().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


def test_multiply_adds_by_hand() -> None:
    """x w, W h, skip * h, and the weighted vectors; buckets are looked up."""

    def flops(encoder: dict[str, Any]) -> Counts:
        return count(architecture({"v": {"encoders": {"age": encoder}}}, [], ["v"], mode="linear"))

    assert flops(ENCODERS["bins"]).flops == 6 + 36 + 6 + 6 * 4 + 4
    assert flops(ENCODERS["adaptive"]).flops == 5 + 25 + 5 + 2 * 5 + 5 * 3 + 3
    assert flops(ENCODERS["max"]).flops == 6 + 36 + 6 + 4
    assert flops(ENCODERS["buckets"]).flops == 4


@pytest.mark.parametrize("name", ENCODERS)
def test_serving_in_float64_gives_the_same_numbers(name: str) -> None:
    encoder = ENCODERS[name]
    description = architecture(
        {"v": {"encoders": {"price": encoder, "age": encoder}}, "e": view(2, "user")},
        [{"id": "m", "op": "mlp", "in": ["v", "e"], "units": [8]}],
        ["m"],
    )
    single, double = built(description).eval(), built(description).eval().double()
    batch, exact = batch_of(mixed_schema(), rows=64), batch_of(mixed_schema(), rows=64)
    exact = type(exact)(exact.categorical, exact.numeric.double(), exact.label, exact.sequences, exact.lengths)
    output = double(exact)
    assert output.dtype == torch.float64
    torch.testing.assert_close(single(batch).double(), output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aggregation", ["max", "top"])
@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_the_bins_chosen_in_serving_are_those_chosen_in_training(aggregation: str, temperature: float) -> None:
    single, double = twins({}, {}, aggregation=aggregation, temperature=temperature)
    x_BN = grid(0.0, 1.0, 101)
    torch.testing.assert_close(single(x_BN).double(), double.double()(x_BN.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_bf16_around_them_changes_nothing(name: str, temperature: float) -> None:
    """A low temperature would blow up what bf16 rounds off."""
    encoder = dict(ENCODERS[name])
    if encoder["kind"] == "bins":
        encoder |= {"temperature": temperature}
        encoder |= {"adaptive": temperature / 2} if "adaptive" in encoder else {}
    model, batch = built(one_view(price=encoder, age=encoder)), batch_of(mixed_schema(), rows=64)
    fields = model.views["view:v"]
    full = fields(batch, model.tables(batch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = fields(batch, model.tables(batch))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=1e-6)
