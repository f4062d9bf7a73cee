"""AMEIR: each stage's choices as models of their own, planted rules and products, how products grow, blind draws.

Numbers are those of the tests that the method's description asks for; 1, 2, 6 and 10 are in test_behavior.py,
test_products.py and test_universality.py, 5 is in test_interactions.py, 3 in test_staged.py, 9 in a benchmark.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.trainer import planted_ameir as planted
from tests.trainer.mixed import batch_of, mixed_schema
from tests.trainer.opened import candidate
from tests.trainer.test_staged import SMALL, Seen, opened, searched
from trainer.architecture import Architecture
from trainer.build import Model, build
from trainer.data import Batch, Table
from trainer.engines import staged
from trainer.engines.sampled import Choice, generator
from trainer.errors import UserError
from trainer.methods.ameir import AMEIR
from trainer.methods.ameir.products import LINEAR, blind_products, candidates, ordered
from trainer.methods.base import Opening
from trainer.modules.choices import ElasticMLP, OpenProducts, plain_weights
from trainer.modules.interactions import Shortcut, mlp
from trainer.modules.products import Hadamard
from trainer.modules.values import multiplied_out
from trainer.schema import Task
from trainer.shapes import count


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# ---- sheet, test 4: a choice is the model that it describes ---------------------------------------------------------


def alone(stage: Any, choice: Choice, architecture: Architecture) -> Model:
    """The choice's own model with the weights that the stage shares; of the layer after the MLP the leading columns."""
    model = build(architecture, label_mean=0.5, table_init=0.5, seed=9)
    stage.take(choice)
    shared = stage.model.state_dict() | plain_weights(stage.model)
    for name, value in model.state_dict().items():
        if name.startswith(("head.maps.", "nodes.mlp:state.op.0.weight")):
            value.copy_(shared[name][:, : value.shape[1]])
        else:
            assert shared[name].shape == value.shape, name
            value.copy_(shared[name])
    return model.eval()


@pytest.mark.parametrize("task", ["ctr", "rating", "next_item"])
def test_4_a_choice_gives_what_its_own_model_gives(task: Task) -> None:
    batch = batch_of(mixed_schema(task), rows=12, seed=4)
    net = Seen(opened(task, dropout=[0.2], dims=[6], pooling=["mean", "max", "last", "target"]))
    searched(net, task)
    names = [stage.name for stage in net.all]
    assert names == ["behavior", "layers"] if task == "next_item" else len(names) == 4
    outputs = []
    for stage in net.all:
        stage.model.eval()
        if stage.name.startswith("products"):  # all but the probe's normalisation
            stage.model.node("products").op.norm = torch.nn.Identity()
        for number in range(8):
            choice = stage.draw(generator(11, stage.name, number))
            decided = stage.decided_by(choice)
            if stage.name.startswith("products"):
                decided = type(decided)(**{**vars(decided), **LINEAR})
            model = alone(stage, choice, net.skeleton.architecture(decided))
            outputs.append(multiplied_out(model(batch)))
            torch.testing.assert_close(multiplied_out(stage.model(batch)), outputs[-1], atol=1e-5, rtol=1e-5)
    assert len({tuple(output.flatten().tolist()) for output in outputs}) > len(outputs) / 2


def by_hand(x_BN: Tensor, mlp: ElasticMLP, units: Sequence[int]) -> Tensor:
    """Two layers, ReLU and then SiLU, of the leading rows and columns."""
    (first, _, second, _), (a, b) = mlp.layers, units
    hidden = functional.relu(x_BN @ first.weight[:a].T + first.bias[:a])
    deep = functional.silu(hidden @ second.weight[:b, :a].T + second.bias[:b])
    return deep + x_BN @ mlp.linear.weight[:b].T


@pytest.mark.parametrize("units", [(8, 5), (3, 5), (8, 2), (1, 1)])
def test_4_an_elastic_mlp_has_the_leading_weights(units: tuple[int, int]) -> None:
    torch.manual_seed(0)
    full = Shortcut(mlp(7, (8, 5), ("relu", "silu"), norm=False, dropout=0.0), 7, 5)
    torch.nn.init.normal_(full.layers[0].bias)
    x_BN = torch.randn(9, 7)
    expected = full(x_BN)
    elastic = ElasticMLP(full)
    elastic.take(units, ("relu", "silu"))
    found = elastic(x_BN)
    assert found.shape == (9, 5)
    torch.testing.assert_close(found[:, : units[1]], by_hand(x_BN, elastic, units))
    assert not found[:, units[1] :].any()
    if units == (8, 5):
        torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert not elastic.layers[2].weight.grad[:, units[0] :].any()
    assert not elastic.linear.weight.grad[units[1] :].any()


def test_layers_are_as_often_at_their_greatest_and_least_as_by_the_sandwich() -> None:
    net = opened(ratios=[0.5, 1.0, 0.25], units=[[8, 8, 8]])
    stage = net._layers(net.skeleton.start)
    drawn = [tuple(stage.draw(generator(1, "draws", n))["units"].tolist()) for n in range(2000)]
    even = 0.5 / 27
    assert drawn.count((1, 1, 1)) / 2000 == pytest.approx(0.25 + even, abs=0.04)
    assert drawn.count((2, 2, 2)) / 2000 == pytest.approx(0.25 + even, abs=0.04)
    assert drawn.count((0, 0, 0)) / 2000 == pytest.approx(even, abs=0.02)


class Equal:
    """Scores that say nothing."""

    samples = 0


def test_of_equally_good_layers_the_smallest_are_taken() -> None:
    net = opened(units=[[40, 40]], ratios=[0.1, 0.5, 1.0])
    stage = net._layers(net.skeleton.start)
    blind = [(c, stage.architecture(c)) for c in (stage.draw(generator(1, "draws", n)) for n in range(20))]
    scored = [(choice, staged.Scored(built, 0.5)) for choice, built in blind]
    stage.decide(scored, Equal())  # type: ignore[arg-type]
    assert count(stage.architecture(stage.best)).total == min(count(built).total for _, built in blind)


# ---- planted rules and products -------------------------------------------------------------------------------------


def stage_on(train: Table, valid: Table, until: str, seed: int, **settings: Any) -> Any:
    """The method after its stages whose names begin so, each of them searched."""
    training = planted.training()
    made = candidate("ameir", train.schema, training, dims=[8], units=[[16]], sample=0, **settings)
    assert made.supernet is not None
    net = AMEIR(Opening(made.architecture, made.supernet, training, train, valid, seed))
    begun = net.stages

    def some() -> Any:
        for stage in begun():
            if not stage.name.startswith(until):
                return
            yield stage

    net.stages = some  # type: ignore[method-assign]
    staged.search(net, train, valid, training, seed=seed)
    return net


@pytest.mark.parametrize("rule", ["last", "fifth last", "any"])
def test_8_a_planted_sequence_rule_picks_what_can_see_it(rule: planted.Rule) -> None:
    """The last item needs no window. The fifth last lies in none but the wide one. Whether an item was there at all can
    be told of all steps, or at the last by what reaches that far."""
    train, valid = planted.histories(rule, 4000), planted.histories(rule, 1000, seed=1)
    net = stage_on(train, valid, "behavior", 1, blocks=[1], pooling=["mean", "last"], epochs=8, candidates=60)
    [block], pooling = net.decided.blocks["history"], net.decided.pooling["history"]
    kind = (block["layer"]["kind"], block["layer"].get("dilation", 1))
    far = {("conv", 2), ("gru", 1), ("attention", 1)}
    if rule == "any":
        assert pooling == "mean"
    else:
        assert pooling == "last"
        assert rule == "last" or kind in far
    best = min(one.score for _, one in net.searched[0].scored)
    assert best < 0.4  # 0.69 says nothing


@pytest.mark.parametrize("sets", [[(3, 11)], [(3, 11), (3, 7, 11)]], ids=["pair", "pair and triple"])
def test_7_planted_parities_are_found_among_twenty_fields(sets: list[tuple[int, ...]]) -> None:
    """A pair no field of which says anything, and a triple that grows from it: these, and nothing else."""
    train, valid = planted.parities(sets, 6000), planted.parities(sets, 2000, seed=1)
    net = stage_on(train, valid, "products", 1, products=4, epochs=4)
    found = {tuple(sorted(int(name[1:]) for name in one)) for one in net.decided.products}
    assert found == set(sets)
    [pairs, *_] = net.searched
    ranked = sorted(pairs.gains, key=lambda one: -pairs.gains[one])
    assert ranked[0] == ("f3", "f11")
    assert pairs.gains[ranked[0]] > 4 * pairs.gains[ranked[1]]


# ---- how products grow ----------------------------------------------------------------------------------------------

NAMES = ("e", "d", "c", "b", "a")


def test_the_second_round_tries_all_pairs() -> None:
    assert candidates(NAMES, [], 2, 1, 0) == list(combinations(NAMES, 2))


@given(st.sets(st.sampled_from(list(combinations(NAMES, 2)))), st.integers(0, 12))
def test_a_later_round_tries_what_grows_and_some_more(kept: set[tuple[str, ...]], most: int) -> None:
    found = candidates(NAMES, sorted(kept), 3, most, 0)
    grown = {one for one in combinations(NAMES, 3) if any(set(pair) < set(one) for pair in kept)}
    assert len(set(found)) == len(found)
    assert grown <= set(found) <= set(combinations(NAMES, 3))
    assert len(found) == min(len(grown) + most, comb(5, 3))


@given(st.sets(st.sampled_from([one for size in (2, 3, 4) for one in combinations(NAMES, size)]), min_size=1))
def test_sets_stand_as_hadamard_gives_them(sets: set[tuple[str, ...]]) -> None:
    found = ordered(sets, NAMES)
    data = opened().skeleton.data
    fields = {name: {**data["fields"]["user"]} for name in NAMES}
    views = {"e": {"encoders": {name: {"kind": "table", "dim": 2} for name in NAMES}}}
    nodes = [{"id": "q", "op": "hadamard", "in": ["e"], "sets": [list(one) for one in sets]}]
    head = {"mode": "linear", "in": ["e", "q"]}
    built = Architecture.from_dict({**data, "fields": fields, "views": views, "nodes": nodes, "head": head})
    module = build(built, label_mean=0.5, table_init=0.1, seed=0).node("q").op
    assert isinstance(module, Hadamard)
    places = [[NAMES.index(name) for name in one] for one in found]
    assert [[place for place in column if place < 5] for column in module.members.T.tolist()] == places


def test_normalised_products_are_as_large_at_any_order() -> None:
    """They would shrink with the power of the embeddings' size; normalised by hand they do not."""
    x_BMD = 0.1 * torch.randn(4000, 4, 3, generator=torch.Generator().manual_seed(0)).double() + 0.02
    normal = (x_BMD - x_BMD.mean(0)) / (x_BMD.var(0, unbiased=False) + 1e-3).sqrt()
    module = OpenProducts(4, 3, [(0, 1), (0, 1, 2, 3)]).double()
    module.taken = [0, 1]
    found = module(x_BMD)
    torch.testing.assert_close(found[:, 0], normal[:, 0] * normal[:, 1])
    torch.testing.assert_close(found[:, 1], normal.prod(1))
    plain = Hadamard(4, [(0, 1), (0, 1, 2, 3)])(x_BMD)
    assert plain.std(dim=(0, 2))[1] < 0.02 * plain.std(dim=(0, 2))[0]
    assert found.std(dim=(0, 2))[1] > 0.5 * found.std(dim=(0, 2))[0]


# ---- blind draws and tasks ------------------------------------------------------------------------------------------


def test_a_blind_draw_costs_nothing_and_covers_the_space() -> None:
    found = [searched(opened(select="random", **{"layers": ["skip", "gru"]})) for _ in range(2)]
    assert found[0] == found[1]
    assert (found[0].samples, found[0].seconds, found[0].sample, found[0].figures) == (0, 0.0, (), [])
    drawn = []
    for number in range(60):
        net = opened()
        net.plan = {**net.plan, "draw": number}
        drawn.append(net._blind())
    assert {one.excitation for one in drawn} == {False, True}
    assert {one.pooling["history"] for one in drawn} == {"mean", "last", "target"}
    assert {len(product) for one in drawn for product in one.products} == {2, 3}
    assert len({one.units for one in drawn}) > 8  # of 16
    kinds = {block["layer"]["kind"] for one in drawn for block in one.blocks["history"]}
    assert kinds == {"skip", "conv", "mean_pool", "max_pool", "gru", "attention", "feed_forward"}


def test_blind_products_have_each_order() -> None:
    random = torch.Generator().manual_seed(0)
    drawn = [blind_products(NAMES, 4, 2, random) for _ in range(200)]
    sizes = {tuple(sorted(len(one) for one in sets)) for sets in drawn}
    assert () in sizes
    assert (2, 2, 3, 3, 4, 4) in sizes
    assert all(list(sets) == ordered(sets, NAMES) for sets in drawn)


def test_the_next_item_is_told_by_histories_alone() -> None:
    """No field of the row is read, and none is multiplied."""
    net = opened("next_item")
    found = searched(net, "next_item").architecture
    assert set(found.views) == {"e", "history0"}
    assert set(found.views["e"].encoders) == {"item"}
    assert not any(node.op in ("hadamard", "target_attention", "se") for node in found.nodes)
    rows: Batch = batch_of(mixed_schema("next_item"))
    model = build(found, label_mean=1, table_init=0.1, seed=0)
    assert multiplied_out(model(rows)).shape == (8, 30)


def test_a_dataset_of_sequences_alone_is_refused() -> None:
    schema = mixed_schema()
    only = schema.model_copy(update={"fields": tuple(one for one in schema.fields if one.kind == "sequence")})
    with pytest.raises(UserError, match=r"^search\.methods: ameir needs .* none$"):
        candidate("ameir", only)


def test_a_space_without_products_has_no_search_for_them() -> None:
    assert [stage.name for stage in _all(opened(products=0))] == ["behavior", "layers"]
    flat = opened(**(SMALL | {"order": 2}))
    assert "products3" not in [stage.name for stage in _all(flat)]


def _all(net: AMEIR) -> list[Any]:
    seen = Seen(net)
    searched(seen)
    return seen.all
