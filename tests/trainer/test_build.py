"""The builder: fresh weights, encoders, tables in TorchRec, the head."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torchrec import EmbeddingBagCollection, EmbeddingCollection

from tests.trainer.mixed import (
    ALL,
    architecture,
    batch_of,
    built,
    gradients,
    mixed_schema,
    parameters,
    scale,
    table,
    view,
)
from trainer.architecture import RawEncoder, ScaleEncoder
from trainer.build import build
from trainer.modules.numbers import NumberSource, Raw, Scale
from trainer.shapes import count

DEEPFM = architecture(
    {"first": view(1, *ALL), "e": view(4, *ALL)},
    [{"id": "q", "op": "fm", "in": ["e"]}, {"id": "m", "op": "mlp", "in": ["e"], "units": [8], "dropout": 0.5}],
    ["first", "q", "m"],
)
SEQUENCES = architecture(
    {
        "e": view(4, "user", "item"),
        "narrow": view(2, "item"),
        "s": {"encoders": {"history": {"kind": "share", "view": "e"}}},
        "own": {"encoders": {"history": table(4)}},
        "two": {"encoders": {"history": {"kind": "share", "view": "narrow"}}},
    },
    [{"id": name, "op": "pool", "in": [name[1:]]} for name in ("_s", "_own", "_two")],
    ["_s", "_own", "_two", "e", "narrow"],
    mode="linear",
)


def test_equal_seeds_give_equal_weights_and_leave_the_random_state() -> None:
    state = torch.random.get_rng_state()
    first, second, other = (build(DEEPFM, label_mean=0.3, table_init=0.1, seed=seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_tables_start_with_the_given_deviation() -> None:
    model = build(DEEPFM, label_mean=0.3, table_init=0.02, seed=0)
    weights = torch.cat([parameter.flatten() for parameter in model.table_parameters()])
    assert weights.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(("task", "mean", "start"), [("ctr", 0.2, math.log(0.25)), ("rating", 3.6, 3.6)])
def test_a_model_with_zero_weights_gives_the_base_rate(task: str, mean: float, start: float) -> None:
    model = build(DEEPFM.model_copy(update={"task": task}), label_mean=mean, table_init=0.1, seed=0).eval()
    for name, parameter in model.named_parameters():
        if name != "head.bias":
            parameter.data.zero_()
    output = model(batch_of(mixed_schema()))
    torch.testing.assert_close(output, torch.full((8,), start))


def test_head_without_bias() -> None:
    description = architecture({"e": view(1, "user")}, [], ["e"], bias=False)
    assert "head.bias" not in built(description).state_dict()
    assert count(description).dense == 0


def test_first_order_views_add_up_in_a_sum_head() -> None:
    model = built(architecture({"w": view(1, "user", "item")}, [], ["w"]))
    batch = batch_of(mixed_schema())
    rows = model.tables(batch).fields([("w/user", "user"), ("w/item", "item")])
    expected = rows[:, 0, 0] + rows[:, 1, 0] + model.head.bias
    torch.testing.assert_close(model(batch), expected)


def test_two_field_inner_product_with_bias_view_is_matrix_factorisation() -> None:
    nodes = [{"id": "p", "op": "inner", "in": ["e.user", "e.item"]}]
    model = built(architecture({"w": view(1, "user", "item"), "e": view(4, "user", "item")}, nodes, ["w", "p"]))
    batch = batch_of(mixed_schema())
    user, item = model.tables(batch).fields([("e/user", "user"), ("e/item", "item")]).unbind(1)
    product = (user * item).sum(1)
    bias = model.tables(batch).fields([("w/user", "user"), ("w/item", "item")]).sum((1, 2))
    torch.testing.assert_close(model(batch), model.head.bias + bias + product)


def test_parameters_are_split_into_tables_lifts_and_dense() -> None:
    views = {"e": {"encoders": {"user": table(2), "item": table(4), "price": scale(4)}, "align": "min"}}
    nodes = [{"id": "q", "op": "fm", "in": ["e"], "dim": 3}, {"id": "m", "op": "mlp", "in": ["e"], "units": [3]}]
    description = architecture(views, nodes, ["q", "m"])
    model, counts = built(description), count(description)
    assert parameters(model.table_parameters()) == counts.tables == 20 * 2 + 30 * 4 + 2 * 4
    assert parameters(model.lift_parameters()) == counts.lifts
    assert parameters(model.dense_parameters()) == counts.dense + counts.lifts
    assert {id(p) for p in model.parameters()} == {
        id(p) for p in [*model.table_parameters(), *model.dense_parameters()]
    }


def test_dead_parts_are_not_built() -> None:
    nodes = [{"id": "dead", "op": "mlp", "in": ["e"], "units": [50]}]
    model = built(architecture({"e": view(4, "user", "item"), "unused": view(9, "item")}, nodes, ["e.user"]))
    assert parameters(list(model.parameters())) == 20 * 4 + 4 + 1


def test_every_table_is_held_by_torchrec() -> None:
    model = built(SEQUENCES)
    held = [module for module in model.modules() if isinstance(module, EmbeddingBagCollection | EmbeddingCollection)]
    inside = {id(parameter) for module in held for parameter in module.parameters()}
    assert {id(parameter) for parameter in model.table_parameters()} == inside
    assert {type(module) for module in held} == {EmbeddingBagCollection, EmbeddingCollection}


@pytest.mark.parametrize("description", [DEEPFM, SEQUENCES], ids=["one-id", "sequences"])
def test_reading_rows_equals_asking_torchrec(description: object) -> None:
    """The way that sharded models take gives the same rows and gradients as reading the parameters."""
    assert isinstance(description, type(DEEPFM))
    model, batch = built(description).eval(), batch_of(mixed_schema())
    direct = model(batch)
    direct.square().sum().backward()
    expected = gradients(model)
    model.zero_grad()
    model.tables.release()
    asked = model(batch)
    asked.square().sum().backward()
    torch.testing.assert_close(direct, asked)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_a_moved_model_is_still_read_from_its_own_parameters() -> None:
    model, batch = built(DEEPFM).eval(), batch_of(mixed_schema())
    before = model(batch)
    model.half().float()
    torch.testing.assert_close(model(batch), before, rtol=1e-2, atol=1e-2)
    for parameter in model.table_parameters():
        parameter.data.zero_()
    assert not torch.allclose(model(batch), before)


def test_padding_steps_do_not_train_row_zero() -> None:
    model, batch = built(SEQUENCES), batch_of(mixed_schema())
    padding = torch.arange(6) >= batch.lengths["history"][:, None]
    ids_BT = batch.sequences["history"].clamp(min=3).masked_fill(padding, 0)
    batch = replace(batch, sequences={"history": ids_BT})
    for pool in model.tables.pools:
        pool.sparse = True
    model(batch).sum().backward()
    [own] = [pool for pool in model.tables.pools if pool.specs[0].name == "own/history"]
    assert own.weight.grad is not None
    assert own.weight.grad.is_sparse
    assert 0 not in own.weight.grad.coalesce().indices()


def test_sparse_gradients_equal_dense_ones() -> None:
    dense, sparse = built(DEEPFM).eval(), built(DEEPFM).eval()
    for pool in sparse.tables.pools:
        pool.sparse = True
    batch = batch_of(mixed_schema())
    for model in (dense, sparse):
        model(batch).sum().backward()
    assert all(pool.weight.grad is not None and pool.weight.grad.is_sparse for pool in sparse.tables.pools)
    assert gradients(dense).keys() == dict(dense.named_parameters()).keys()
    torch.testing.assert_close(gradients(sparse), gradients(dense))


def test_gradients_of_repeated_rows_add_up() -> None:
    """Against torch's own rule, for fields that share ids and for a batch of one row."""
    model = built(architecture({"e": view(3, "user", "item")}, [], ["e"], mode="linear"))
    for rows in (1, 50):
        batch = batch_of(mixed_schema(), rows=rows)
        names = [f"tables.bags.embedding_bags.e/{field}.weight" for field in ("user", "item")]
        copies = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]
        parts = [functional.embedding(batch.categorical[:, column], copy) for column, copy in enumerate(copies)]
        torch.cat(parts, dim=1).sin().sum().backward()
        [pool] = model.tables.pools
        pool.weight.grad = None
        model.tables(batch).fields([("e/user", "user"), ("e/item", "item")]).flatten(1).sin().sum().backward()
        for name, copy in zip(names, copies, strict=True):
            torch.testing.assert_close(gradients(model)[name], copy.grad)


def test_scaled_numbers() -> None:
    module = Scale([NumberSource(0, False, 3, ScaleEncoder(dim=3)), NumberSource(1, True, 3, ScaleEncoder(dim=3))], 0.5)
    x = torch.tensor([[2.0, -1.0], [float("nan"), float("nan")]])
    first, second = module(x)
    torch.testing.assert_close(first, x[0, :, None] * module.weight)
    assert module.missing is not None
    torch.testing.assert_close(second, torch.stack([torch.zeros(3), module.missing.vectors[0]]))


def test_raw_numbers() -> None:
    module = Raw([NumberSource(0, False, 1, RawEncoder()), NumberSource(1, True, 2, RawEncoder())])
    x = torch.tensor([[2.0, -1.0], [float("nan"), float("nan")]])
    torch.testing.assert_close(module(x), torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 1.0]]))


def test_fields_of_a_raw_view_are_cut_by_columns() -> None:
    views = {"v": {"encoders": {"price": {"kind": "raw"}, "user": table(3), "age": {"kind": "raw"}}}}
    nodes = [{"id": "c", "op": "concat", "in": ["v.price", "v.user", "v.age"]}]
    whole = built(architecture(views, [], ["v"], mode="linear"))
    parts = built(architecture(views, nodes, ["c"], mode="linear"))
    parts.load_state_dict(whole.state_dict())
    batch = batch_of(mixed_schema())
    torch.testing.assert_close(whole(batch), parts(batch))


def test_names_that_modules_use_themselves_are_allowed() -> None:
    nodes = [
        {"id": "keys", "op": "fm", "in": ["forward"]},
        {"id": "items", "op": "mlp", "in": ["forward"], "units": [2]},
    ]
    model = built(architecture({"forward": view(2, "user", "item")}, nodes, ["keys", "items"]))
    assert model(batch_of(mixed_schema())).shape == (8,)


def test_one_row_alone() -> None:
    model = built(DEEPFM).eval()
    many = batch_of(mixed_schema(), rows=8)
    one = replace(
        many, categorical=many.categorical[:1], numeric=many.numeric[:1], label=many.label[:1], sequences={}, lengths={}
    )
    torch.testing.assert_close(model(one), model(many)[:1])
    assert model(batch_of(mixed_schema().model_copy(update={"fields": mixed_schema().fields[:5]}), rows=1)).shape == (
        1,
    )


def test_flops_equal_those_that_torch_counts() -> None:
    """Layers only: what torch counts (matrix products, two operations per multiply-add)."""
    from torch.utils.flop_counter import FlopCounterMode

    nodes = [
        {"id": "k", "op": "cross", "kind": "matrix", "layers": 2, "in": ["e"]},
        {"id": "m", "op": "mlp", "in": ["k"], "units": [8, 3]},
    ]
    description = architecture({"e": view(4, "user", "item")}, nodes, ["m"])
    model, batch = built(description), batch_of(mixed_schema(), rows=16)
    with FlopCounterMode(display=False) as counter:
        model(batch)
    elementwise = 2 * 8  # the product of x0 with each layer's map
    assert count(description).flops == counter.get_total_flops() / 2 / 16 + elementwise
