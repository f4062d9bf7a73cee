"""AutoDim and the baselines of its table: widths per field, by gradient, by random search and by a power law."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from tests.trainer.mixed import gradients
from tests.trainer.opened import (
    QUICK,
    ROWS,
    SIZES,
    VALID_ROWS,
    Hard,
    Watched,
    candidate,
    opened,
    schema,
    searched,
    table,
)
from trainer import metrics
from trainer.architecture import Architecture, TableEncoder
from trainer.build import Model, build
from trainer.candidate import candidate_space
from trainer.errors import UserError
from trainer.fit import fit
from trainer.methods import field_dims, mde
from trainer.methods.autodim import WidthChoice, single_field_scores
from trainer.methods.base import Opening, within_budget
from trainer.methods.settings import AutoDimSettings, FieldDimsSettings, MDESettings
from trainer.methods.table import METHODS
from trainer.modules.mixture import SCALE, Mixture
from trainer.propose import propose
from trainer.schema import Task
from trainer.settings import TrainSettings, TuneSettings
from trainer.shapes import count
from trainer.space import choices, fill_params

DIMS = [2, 4, 8]
CATEGORICAL = tuple(SIZES)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def settings_of(method: str, **given: Any) -> Any:
    return {"autodim": AutoDimSettings, "field_dims": FieldDimsSettings, "mde": MDESettings}[method](**given)


def choose(net: Any, places: dict[str, int]) -> None:
    """Make the gates clearly prefer a width (by its place among the candidates) for every field."""
    for choice in net.choices.values():
        with torch.no_grad():
            choice.mixture.logits.zero_()
            for row, field in enumerate(choice.fields):
                choice.mixture.logits[row, places[field]] = 5.0


def candidates(choice: WidthChoice, model: Model, rows: int = ROWS) -> Tensor:
    """Every prefix of every open field, mapped: (B, M, N, D)."""
    return choice.candidates(fields_of(choice, model, rows)[:, choice.places])


def fields_of(choice: WidthChoice, model: Model, rows: int = ROWS) -> Tensor:
    """What the view gives before its fields are replaced: (B, all fields, D)."""
    batch = table(rows).take(torch.arange(rows))
    value = choice.view(batch, model.tables(batch))
    return value if isinstance(value, Tensor) else torch.stack(value, dim=1)


# ---- what is derived ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [(0, 1, 2), (2, 2, 2), (1, 0, 0)])
def test_a_derived_model_has_the_tables_that_were_chosen(places: tuple[int, ...]) -> None:
    """An MLP has no other tables: their sizes add up to the sum over fields of categories times width."""
    net = opened("autodim", backbone="mlp", dims=DIMS)
    choose(net, dict(zip(CATEGORICAL, places, strict=True)))
    derived = net.derive()
    chosen = {field: DIMS[place] for field, place in zip(CATEGORICAL, places, strict=True)}
    numeric = (2 + 1) * max(DIMS)  # price has a vector for missing values too
    assert count(derived).tables == sum(SIZES[field] * dim for field, dim in chosen.items()) + numeric
    assert count(derived).lifts == sum(dim * max(DIMS) for dim in chosen.values() if dim < max(DIMS))
    assert_tables(derived, {f"e/{field}": (SIZES[field], dim) for field, dim in chosen.items()})


def assert_tables(architecture: Architecture, expected: dict[str, tuple[int, int]]) -> None:
    """TorchRec holds these tables, with these sizes, and no more memory than they take."""
    model = build(architecture, label_mean=0.5, table_init=0.1, seed=0)
    configs = {one.name: (one.num_embeddings, one.embedding_dim) for one in model.tables.bags.embedding_bag_configs()}
    weights = {name: tuple(bag.weight.shape) for name, bag in model.tables.bags.embedding_bags.items()}
    assert configs == weights == expected
    held = sum(weight.numel() * weight.element_size() for weight in model.tables.parameters())
    assert held == 4 * sum(rows * dim for rows, dim in expected.values())


@pytest.mark.parametrize("method", ["autodim", "field_dims", "mde"])
@pytest.mark.parametrize("align", ["lift", "pad"])
def test_narrow_tables_are_lifted_or_padded(method: str, align: str) -> None:
    rule = {"base": 8, "temperature": [0.5]} if method == "mde" else {"dims": DIMS}
    if method == "autodim":
        net = opened("autodim", backbone="fm", align=[align], **rule)
        choose(net, dict.fromkeys(CATEGORICAL, 0) | {"flag": 2})
        found = net.derive()
    else:
        space = METHODS[method].space(schema(), settings_of(method, backbone="fm", align=[align], **rule))
        found = Architecture.from_dict(fill_params(space, {"dim.user": 0} if method == "field_dims" else {}))
    dims = [found.views["e"].encoders[field].dim for field in CATEGORICAL]
    assert (min(dims), max(dims)) == (2, 8)
    assert (found.views["e"].align, found.views["e"].width) == (align, 8)
    assert count(found).lifts == (8 * sum(dim for dim in dims if dim < 8) if align == "lift" else 0)
    assert found.views["first"].align is None


@pytest.mark.parametrize("method", ["autodim", "field_dims", "mde"])
def test_how_tables_are_aligned_can_be_searched(method: str) -> None:
    settings = settings_of(method, backbone="fm", align=["lift", "pad"])
    space = METHODS[method].plan(settings) if METHODS[method].plan else METHODS[method].space(schema(), settings)
    assert choices(space)[f"{method}.align"].labels == ("lift", "pad")


def test_first_order_weights_are_left_alone() -> None:
    net = opened("autodim", backbone="fm", dims=DIMS)
    assert list(net.gates) == ["e"]
    choose(net, dict.fromkeys(CATEGORICAL, 0))
    first = {f"first/{field}": (size, 1) for field, size in SIZES.items()}
    assert_tables(net.derive(), first | {f"e/{field}": (size, 2) for field, size in SIZES.items()})


def test_the_full_dimension_everywhere_costs_every_category_its_widest_vector() -> None:
    """FDE, from the random search with one width, from AutoDim with all gates at the widest, and by hand."""
    fde = candidate("field_dims", schema(), backbone="mlp", dims=[8]).architecture
    net = opened("autodim", backbone="mlp", dims=DIMS)
    choose(net, dict.fromkeys(CATEGORICAL, 2))
    assert count(fde).tables == count(net.derive()).tables == sum(SIZES.values()) * 8 + 3 * 8
    assert count(fde).lifts == count(net.derive()).lifts == 0


@pytest.mark.parametrize("backbone", ["fm", "wide_deep", "deepfm", "dcn", "autoint", "dlrm", "mf"])
def test_backbones_open_search_derive_and_train(backbone: str) -> None:
    net = opened("autodim", backbone=backbone, dims=DIMS, epochs=1)
    found = searched(net).architecture
    backbone_dims = {name: view.encoders for name, view in net.backbone.views.items()}
    for name, view in found.views.items():
        for field, encoder in view.encoders.items():
            if isinstance(encoder, TableEncoder) and name in net.gates:
                best = int(net.gates[name][net.choices[name].fields.index(field)].argmax())
                assert encoder.dim == DIMS[best]
            else:
                assert encoder == backbone_dims[name][field]
    model = build(found, label_mean=0.5, table_init=0.1, seed=0)
    result = fit(model, table(), table(VALID_ROWS, seed=1), QUICK, task="ctr", seed=0)
    assert len(result.history) == QUICK.epochs


def test_a_dataset_without_categories_is_refused_in_one_line() -> None:
    numeric = schema().model_copy(update={"fields": tuple(f for f in schema().fields if f.kind == "numeric")})
    with pytest.raises(UserError, match=r"^search.methods: autodim .* has none$"):
        METHODS["autodim"].space(numeric, AutoDimSettings())


# ---- the mixture ----------------------------------------------------------------------------------------------------

FIELDS, CANDIDATES, WIDTH = 3, 4, 5


def mixture(temperature: float = 1.0, *, noisy: bool = False, spread: float = 0.0) -> Mixture:
    torch.manual_seed(1)
    made = Mixture(FIELDS, CANDIDATES, WIDTH)
    made.temperature, made.noisy = temperature, noisy
    made.logits.data = spread * torch.stack([torch.randperm(CANDIDATES).float() for _ in range(FIELDS)])
    return made


def uneven(rows: int = 64) -> Tensor:
    """Candidates of very different sizes and places: (B, M, N, D)."""
    torch.manual_seed(2)
    size_N1 = torch.tensor([0.1, 1.0, 10.0, 1000.0])[:, None]
    return size_N1 * (torch.randn(rows, FIELDS, CANDIDATES, WIDTH) + 3 * torch.randn(CANDIDATES, WIDTH))


def normalised(x_BMND: Tensor) -> Tensor:
    """Over the batch and the fields, by the definition."""
    mean, variance = x_BMND.mean(dim=(0, 1)), x_BMND.var(dim=(0, 1), unbiased=False)
    return (x_BMND - mean) / (variance + 1e-10).sqrt()


@pytest.mark.parametrize("noisy", [False, True])
def test_a_high_temperature_gives_the_mean_of_the_normalised_candidates(noisy: bool) -> None:
    mixed = mixture(temperature=1e6, noisy=noisy, spread=1.0)(uneven())
    torch.testing.assert_close(mixed, SCALE * normalised(uneven()).mean(dim=2), rtol=1e-3, atol=1e-5)


def test_frozen_gates_give_equal_weights_whatever_the_progress() -> None:
    made = mixture()
    for progress in (0.0, 0.5):
        made.anneal(progress, frozen=True)
        assert torch.equal(made.weights(), torch.full((FIELDS, CANDIDATES), 1 / CANDIDATES))


@pytest.mark.parametrize("training", [True, False])
def test_a_low_temperature_without_noise_gives_the_likeliest_candidate_exactly(training: bool) -> None:
    made = mixture(spread=2.0)
    for _ in range(200):
        made(uneven())  # settles the running statistics
    made.anneal(1.0, frozen=training)  # in evaluation there is no noise even where it is switched on
    made.temperature = 0.01
    made.train(training)
    normal_BMND = made.norm(uneven().flatten(0, 1).flatten(1)).view(-1, FIELDS, CANDIDATES, WIDTH)
    best_M = made.logits.argmax(dim=1)
    expected = SCALE * normal_BMND[:, torch.arange(FIELDS), best_M]
    assert torch.equal(made(uneven()), expected)


@given(st.integers(0, 2**31))
def test_weights_add_up_to_one(seed: int) -> None:
    made = mixture(temperature=0.3, noisy=True, spread=1.0)
    torch.manual_seed(seed)
    torch.testing.assert_close(made.weights().sum(dim=1), torch.ones(FIELDS))


def test_noise_draws_candidates_as_often_as_the_softmax_says() -> None:
    """The Gumbel-max law: the greatest of logits plus noise is a draw from their softmax."""
    made, draws = mixture(noisy=True, spread=0.7), 4000
    torch.manual_seed(0)
    drawn = torch.stack([made.weights().argmax(dim=1) for _ in range(draws)])
    for field in range(FIELDS):
        expected = draws * made.logits[field].detach().double().softmax(dim=0)
        seen = torch.bincount(drawn[:, field], minlength=CANDIDATES)
        assert stats.chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-3


def test_normalised_candidates_have_mean_0_and_variance_1_over_their_pool() -> None:
    normal_RN = mixture().norm(uneven().flatten(0, 1).flatten(1))
    torch.testing.assert_close(normal_RN.mean(dim=0), torch.zeros(CANDIDATES * WIDTH), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal_RN.var(dim=0, unbiased=False), torch.ones(CANDIDATES * WIDTH), rtol=2e-3, atol=0)


def test_the_statistics_are_pooled_over_fields_and_not_per_field() -> None:
    x_BMND = uneven()
    x_BMND[:, 0] += 50.0
    mixed = mixture(temperature=1e6)(x_BMND)
    assert (mixed[:, 0].mean() - mixed[:, 1].mean()).abs() > SCALE


def test_the_temperature_falls_from_1_to_a_hundredth() -> None:
    made, seen = mixture(), []
    for progress in (0.0, 0.5, 1.0):
        made.anneal(progress, frozen=False)
        seen.append(made.temperature)
    assert seen == pytest.approx([1.0, 0.505, 0.01])
    assert made.noisy


# ---- candidates are prefixes of one table ---------------------------------------------------------------------------


def test_a_column_learns_from_the_candidates_that_are_wide_enough_to_hold_it() -> None:
    net = opened("autodim", backbone="fm", dims=DIMS)
    choice, [pool] = net.choices["e"], [pool for pool in net.model.tables.pools if pool.specs[0].view == "e"]
    for place, dim in enumerate(DIMS):
        pool.weight.grad = None
        candidates(choice, net.model)[:, 0, place].square().sum().backward()
        reached = gradients(net.model)["tables.bags.embedding_bags.e/user.weight"].abs().amax(dim=0) > 0
        assert reached.tolist() == [column < dim for column in range(max(DIMS))]


def test_a_columns_gradient_is_the_sum_over_the_candidates_that_hold_it() -> None:
    net = opened("autodim", backbone="fm", dims=DIMS)
    [pool] = [pool for pool in net.model.tables.pools if pool.specs[0].view == "e"]

    def gradient(places: list[int]) -> Tensor:
        mapped = candidates(net.choices["e"], net.model)[:, 1]
        whole = torch.autograd.grad(mapped[:, places].square().sum(), pool.weight)[0]
        return whole[pool.parts["bags.embedding_bags.e/item.weight"]]

    alone = [gradient([place]) for place in range(len(DIMS))]
    torch.testing.assert_close(gradient([0, 1, 2]), alone[0] + alone[1] + alone[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient([0, 1, 2])[:, DIMS[1] :], alone[2][:, DIMS[1] :], rtol=1e-4, atol=1e-5)


def test_a_candidate_is_its_prefix_through_one_map_for_all_fields() -> None:
    net = opened("autodim", backbone="fm", dims=DIMS)
    choice = net.choices["e"]
    x_BMD, found = fields_of(choice, net.model), candidates(choice, net.model)
    for place, dim in enumerate(DIMS):
        mapped = x_BMD[:, choice.places, :dim] @ choice.maps[place].weight.T + choice.maps[place].bias
        torch.testing.assert_close(found[:, :, place], mapped)


def test_numeric_fields_pass_through_a_choice_of_widths() -> None:
    net = opened("autodim", backbone="fm", dims=DIMS)
    batch = table().take(torch.arange(ROWS))
    mixed = net.choices["e"](batch, net.model.tables(batch))
    places = [list(net.backbone.views["e"].encoders).index(field) for field in ("price", "age")]
    assert torch.equal(mixed[:, places], fields_of(net.choices["e"], net.model)[:, places])
    assert not torch.allclose(mixed[:, net.choices["e"].places], fields_of(net.choices["e"], net.model)[:, [0, 1, 2]])


def test_a_field_is_made_of_its_own_rows_alone() -> None:
    """In evaluation, where the norm's statistics are fixed."""
    net = opened("autodim", backbone="fm", dims=DIMS)
    net.model.eval()
    batch = table().take(torch.arange(ROWS))
    mixed = net.choices["e"](batch, net.model.tables(batch))
    order = list(net.backbone.views["e"].encoders)
    pools = [pool for pool in net.model.tables.pools if pool.specs[0].view == "e"]
    for field in CATEGORICAL:
        for pool in pools:
            pool.weight.grad = None
        mixed[:, order.index(field)].sum().backward(retain_graph=True)
        reached = {name for name, gradient in gradients(net.model).items() if "/" in name and (gradient != 0).any()}
        assert reached == {f"tables.bags.embedding_bags.e/{field}.weight"}


# ---- the scale attack -----------------------------------------------------------------------------------------------


def attacked(net: Any, place: int, factor: float = 100.0) -> tuple[Tensor, Tensor]:
    """The mixture before and after one candidate's map was multiplied."""
    choice = net.choices["e"]
    choice.mixture.noisy = False
    before = choice.mixture(candidates(choice, net.model))
    with torch.no_grad():
        for weight in choice.maps[place].parameters():
            weight.mul_(factor)
    return before, choice.mixture(candidates(choice, net.model))


@pytest.mark.parametrize("place", range(len(DIMS)))
def test_the_size_of_a_candidate_is_no_argument_for_it(place: int) -> None:
    net = opened("autodim", backbone="fm", dims=DIMS, training=QUICK.model_copy(update={"table_init": 1.0}))
    before, after = attacked(net, place)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", range(len(DIMS)))
def test_without_the_norm_it_would_be_one(place: int) -> None:
    net = opened("autodim", backbone="fm", dims=DIMS, training=QUICK.model_copy(update={"table_init": 1.0}))
    net.choices["e"].mixture.norm = nn.Identity()
    before, after = attacked(net, place)
    assert not torch.allclose(after, before, rtol=0.5, atol=0.1)


def test_candidates_of_a_fresh_supernet_start_equal_with_the_settings_that_people_have() -> None:
    """Variance 1 for all: with rows of standard deviation 0.01 the norm's epsilon must not be felt either."""
    training = TrainSettings()
    net = opened("autodim", training=training)
    choice = net.choices["e"]
    normal_RN = choice.mixture.norm(candidates(choice, net.model).flatten(0, 1).flatten(1))
    variance_N = normal_RN.var(dim=0, unbiased=False).view(len(choice.maps), -1).mean(dim=1)
    torch.testing.assert_close(variance_N, torch.ones(len(choice.maps)), rtol=0.02, atol=0)


# ---- who learns from which rows -------------------------------------------------------------------------------------


class Snapshots(Watched):
    """Copies of all weights, buffers and gates before every pass, and in the end."""

    def __init__(self, net: Any) -> None:
        super().__init__(net)
        self.taken: list[dict[str, dict[str, Tensor]]] = []

    def moment(self) -> None:
        gates = {id(gate) for gate in self.net.gates.values()}
        named = dict(self.net.model.named_parameters())
        self.taken.append(
            {
                "weights": {name: one.detach().clone() for name, one in named.items() if id(one) not in gates},
                "gates": {name: one.detach().clone() for name, one in named.items() if id(one) in gates},
                "buffers": {name: one.clone() for name, one in self.net.model.named_buffers()},
            }
        )

    def changed(self, kind: str, place: int) -> bool:
        """Whether anything of a kind changed in the pass at `place`."""
        before, after = self.taken[place][kind], self.taken[place + 1][kind]
        return any(not torch.equal(before[name], after[name]) for name in before)


EPOCHS, STEPS = 2, 2 * ROWS // QUICK.batch_size


def watched(**settings: Any) -> Snapshots:
    net = Snapshots(opened("autodim", dims=DIMS, epochs=EPOCHS, gate_learning_rate=0.1, **settings))
    searched(net)
    net.moment()
    return net


@pytest.mark.parametrize(("every", "warm_up"), [(1, 0.0), (3, 0.25), (4, 0.5), (50, 0.0)])
def test_validation_rows_change_the_gates_alone_and_training_rows_all_but_them(every: int, warm_up: float) -> None:
    net = watched(every=every, warm_up=warm_up)
    for place, (_, _, deciding) in enumerate(net.passes):
        assert net.changed("gates", place) == deciding
        assert net.changed("weights", place) != deciding
        assert net.changed("buffers", place) != deciding


@pytest.mark.parametrize(("every", "warm_up"), [(1, 0.0), (3, 0.25), (4, 0.5), (50, 0.0)])
def test_gates_change_once_in_so_many_steps_after_the_warm_up(every: int, warm_up: float) -> None:
    passes = watched(every=every, warm_up=warm_up).passes
    frozen = round(warm_up * STEPS)
    assert sum(not deciding for _, _, deciding in passes) == STEPS
    steps_before = np.cumsum([not deciding for _, _, deciding in passes])
    decided = [int(step) for step, (_, _, deciding) in zip(steps_before, passes, strict=True) if deciding]
    assert decided == [step for step in range(frozen + 1, STEPS + 1) if (step - frozen) % every == 0]


def test_progress_rises_from_0_to_1_once_the_warm_up_is_over() -> None:
    net = watched(every=3, warm_up=0.25)
    frozen = round(0.25 * STEPS)
    training = [(progress, is_frozen) for progress, is_frozen, deciding in net.passes if not deciding]
    assert [is_frozen for _, is_frozen in training] == [True] * frozen + [False] * (STEPS - frozen)
    learning = STEPS - frozen
    assert [progress for progress, _ in training] == pytest.approx(
        [0.0] * frozen + [step / learning for step in range(learning)]
    )
    assert net.now == (1.0, False, False)


def test_gates_of_the_warm_up_are_left_at_equal_weights() -> None:
    net = watched(every=1, warm_up=0.5)
    frozen = round(0.5 * STEPS)
    for taken in net.taken[: frozen + 1]:
        assert all((gate == 0).all() for gate in taken["gates"].values())
    assert all((gate != 0).any() for gate in net.taken[-1]["gates"].values())


def test_the_simple_variant_learns_its_gates_from_training_rows_alone() -> None:
    net = watched(update="training", every=2, warm_up=0.0)
    assert not any(deciding for _, _, deciding in net.passes)
    changes = [net.changed("gates", place) for place in range(len(net.passes))]
    assert changes == [step % 2 == 0 for step in range(1, STEPS + 1)]


@pytest.mark.parametrize(("update", "same"), [("training", True), ("validation", False)])
def test_validation_rows_decide_only_where_they_should(update: str, same: bool) -> None:
    gates, samples = [], []
    for seed in (1, 2):
        valid = table(VALID_ROWS, seed=seed)
        torch.manual_seed(0)
        net = opened("autodim", dims=DIMS, update=update, valid=valid, every=1, epochs=EPOCHS)
        found = searched(net, valid=valid)
        gates.append(net.gates["e"].detach().clone())
        samples.append(found.samples)
    assert torch.equal(*gates) == same
    assert samples[0] == samples[1]
    assert (samples[0] == EPOCHS * ROWS) == same


# ---- the supernet after its search ----------------------------------------------------------------------------------


def test_a_cold_supernet_in_evaluation_is_that_of_its_likeliest_widths() -> None:
    net = opened("autodim", dims=DIMS, epochs=1)
    searched(net, training=QUICK.model_copy(update={"precision": "fp32"}))
    choose(net, {"user": 2, "item": 0, "flag": 1})
    net.relax(1.0, frozen=False, deciding=False)
    model, batch = net.model.eval(), table(64, seed=3).take(torch.arange(64))
    soft = model(batch)
    for choice in net.choices.values():
        choice.mixture = Hard(choice.mixture)
    torch.testing.assert_close(model(batch), soft)
    choose_other = net.choices["e"].mixture.mixture.logits
    choose_other.data = choose_other.roll(1, dims=1)
    assert not torch.allclose(model(batch), soft, atol=1e-4)


def test_the_report_shows_the_chosen_widths() -> None:
    net = opened("autodim", dims=DIMS, epochs=1)
    widths, curves = searched(net).figures
    shown = {row[0]: row[2] for row in widths["rows"]}
    derived = net.derive().views["e"].encoders
    assert shown == {field: derived[field].dim for field in CATEGORICAL}
    assert [line["name"] for line in curves["series"]] == list(CATEGORICAL)
    assert all(line["values"][0] == pytest.approx(sum(DIMS) / len(DIMS), rel=1e-4) for line in curves["series"])


# ---- single fields --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["ctr", "rating"])
def test_scores_of_single_fields_are_those_of_their_smoothed_mean_labels(task: Task) -> None:
    train, valid = table(task=task), table(VALID_ROWS, task=task, seed=1)
    scores = single_field_scores(train, valid)
    assert list(scores) == list(CATEGORICAL)
    for column, name in enumerate(CATEGORICAL):
        ids, label = train.categorical[:, column].tolist(), train.label.tolist()
        mean = {
            one: (sum(y for i, y in zip(ids, label, strict=True) if i == one) + 20 * train.schema.label_mean)
            / (ids.count(one) + 20)
            for one in range(SIZES[name])
        }
        predicted = np.array([mean[one] for one in valid.categorical[:, column].tolist()])
        measure = metrics.auc if task == "ctr" else metrics.mse
        assert scores[name] == pytest.approx(measure(valid.label.numpy(), predicted))


def test_a_field_that_tells_the_label_scores_better_than_one_of_noise() -> None:
    scores = single_field_scores(table(2000), table(1000, seed=1))
    assert scores["user"] > 0.6 > 0.55 > abs(scores["flag"] - 0.5) + 0.5


# ---- random search and the power law --------------------------------------------------------------------------------


def test_random_search_draws_every_width_equally_often() -> None:
    space = candidate_space(
        field_dims.space(schema(), FieldDimsSettings(backbone="fm", dims=DIMS)), QUICK, TuneSettings(table_l2=[])
    )
    trials = 600
    drawn = [propose(space, "random", seed=3, number=number, past=[]).candidate for number in range(1, trials)]
    for field in CATEGORICAL:
        seen = Counter(one.architecture.views["e"].encoders[field].dim for one in drawn)
        assert stats.chisquare([seen[dim] for dim in DIMS]).pvalue > 1e-3
    sets = {tuple(one.architecture.views["e"].encoders[field].dim for field in CATEGORICAL) for one in drawn}
    assert len(sets) == len(DIMS) ** len(CATEGORICAL)


def test_random_search_starts_from_the_widest_and_one_width_leaves_no_choice() -> None:
    first = candidate("field_dims", schema(), backbone="fm", dims=DIMS).architecture
    assert {first.views["e"].encoders[field].dim for field in CATEGORICAL} == {max(DIMS)}
    one = field_dims.space(schema(), FieldDimsSettings(backbone="fm", dims=[8]))
    assert not choices(one)


def test_the_power_law_of_the_authors_example() -> None:
    sizes = {"small": 100, "middle": 10_000, "large": 1_000_000}
    assert mde.mixed_dims(sizes, 32, 0.3) == {"small": 32, "middle": 8, "large": 2}
    assert mde.mixed_dims(sizes, 32, 0.2) == {"small": 32, "middle": 13, "large": 5}  # 12.74 and 5.07
    assert mde.mixed_dims(sizes, 32, 0.0) == dict.fromkeys(sizes, 32)


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 10**8), min_size=1, max_size=6),
    st.integers(1, 256),
    st.floats(0, 3, allow_subnormal=False),
)
def test_widths_fall_with_the_number_of_rows(sizes: dict[str, int], base: int, temperature: float) -> None:
    dims = mde.mixed_dims(sizes, base, temperature)
    ordered = sorted(sizes, key=lambda name: sizes[name])
    assert [dims[name] for name in ordered] == sorted(dims.values(), reverse=True)
    assert dims[ordered[0]] == base
    assert min(dims.values()) >= 1
    if temperature == 0:
        assert set(dims.values()) == {base}
    colder = mde.mixed_dims(sizes, base, temperature / 2)
    assert all(colder[name] >= dims[name] for name in sizes)


def test_the_search_over_temperatures_sets_all_widths_at_once() -> None:
    settings = MDESettings(backbone="fm", base=32, temperature=[0.0, 0.3, 1.0])
    space = mde.space(schema(), settings)
    assert choices(space)["mde.temperature"].labels == (0.0, 0.3, 1.0)
    for index, temperature in enumerate(settings.temperature):
        filled = Architecture.from_dict(fill_params(space, {"mde.temperature": index}))
        found = {field: filled.views["e"].encoders[field].dim for field in CATEGORICAL}
        assert found == mde.mixed_dims(SIZES, 32, temperature)
        assert count(filled).lifts == sum(32 * dim for dim in found.values() if dim < 32)
        assert {filled.views["first"].encoders[field].dim for field in CATEGORICAL} == {1}


# ---- budgets --------------------------------------------------------------------------------------------------------

LOG_WEIGHTS = torch.tensor([[-3.0, -2.0, -0.1], [-0.2, -2.0, -3.0], [-1.2, -1.1, -1.0]])
ROWS_TIMES_WIDTH = torch.tensor([[20, 40, 80], [10, 20, 40], [200, 400, 800]])


@pytest.mark.parametrize(
    ("budget", "best"),
    [
        (1000, [2, 0, 2]),  # the heaviest: 80 + 10 + 800
        (890, [2, 0, 2]),
        (889, [2, 0, 1]),  # the third field loses least per parameter
        (489, [2, 0, 0]),
        (290, [2, 0, 0]),
        (231, [0, 0, 0]),  # the middle candidate of the first field is worth no price
        (1, [0, 0, 0]),  # nothing fits: the smallest
    ],
)
def test_the_likeliest_widths_that_fit(budget: float, best: list[int]) -> None:
    assert within_budget(list(LOG_WEIGHTS), list(ROWS_TIMES_WIDTH), budget) == best


@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 1.0, allow_subnormal=False))
def test_a_budget_is_kept_and_only_costs_weight(seed: int, share: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight_MN = torch.randn(5, 4, generator=draw).log_softmax(dim=1)
    size_MN = torch.randint(2, 5000, (5, 1), generator=draw) * torch.tensor([2, 4, 8, 16])
    budget = share * float(size_MN[:, -1].sum())
    best_M = torch.tensor(within_budget(list(weight_MN), list(size_MN), budget))
    assert float(size_MN.gather(1, best_M[:, None]).sum()) <= budget
    free_M = torch.tensor(within_budget(list(weight_MN), list(size_MN), float("inf")))
    assert torch.equal(free_M, weight_MN.argmax(dim=1))
    assert weight_MN.gather(1, best_M[:, None]).sum() <= weight_MN.gather(1, free_M[:, None]).sum()
    spare = budget - float(size_MN.gather(1, best_M[:, None]).sum())
    likelier_MN = weight_MN > weight_MN.gather(1, best_M[:, None])
    fits_MN = size_MN - size_MN.gather(1, best_M[:, None]) <= spare
    assert not (likelier_MN & fits_MN).any()  # the budget has no room left for a likelier width


# ---- blind widths ---------------------------------------------------------------------------------------------------


def blind_widths(draw: int, budget: float, dims: Sequence[int] = DIMS) -> tuple[int, ...]:
    """The widths of one draw; no row has been looked at for it."""
    plan = METHODS["autodim"].plan(AutoDimSettings(dims=dims, select="random", budget=[budget]))
    base = opened("autodim", backbone="mlp", dims=dims)
    opening = Opening(base.backbone, fill_params(plan, {"autodim.draw": draw}), QUICK, base.train, base.valid, 1)
    found = searched(METHODS["autodim"].supernet(opening))
    assert (found.samples, found.seconds, found.figures) == (0, 0.0, [])
    return tuple(found.architecture.views["e"].encoders[field].dim for field in SIZES)


def test_every_trial_draws_blind_widths_of_its_own_and_draws_them_again() -> None:
    drawn = [blind_widths(draw, 0.5, range(1, 9)) for draw in range(30)]
    assert [blind_widths(draw, 0.5, range(1, 9)) for draw in range(3)] == drawn[:3]
    # 40 users, 12 items and 3 flags fill half of 440 parameters in these two ways.
    assert {(4, 4, 4), (4, 3, 8)} <= set(drawn)


@pytest.mark.parametrize("budget", [0.4, 0.5, 0.8, 1.0])
def test_blind_widths_are_as_large_as_the_budget_lets(budget: float) -> None:
    full = max(DIMS) * sum(SIZES.values())
    sizes = {np.dot(dims, [*SIZES.values()]) for dims in product(DIMS, repeat=3)}
    largest = max(size for size in sizes if size <= budget * full)
    assert all(np.dot(blind_widths(draw, budget), [*SIZES.values()]) == largest for draw in range(5))


def test_a_budget_below_the_smallest_widths_gets_these() -> None:
    assert set(blind_widths(0, 0.1)) == {min(DIMS)}
