"""The third task in the trainer: the head over all items, what it refuses, its loss, and that it learns."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.trainer import small
from tests.trainer.mixed import batch_of, mixed_schema, table, view
from trainer import fit, metrics, ranking
from trainer.architecture import Architecture, ArchitectureError, fields_of
from trainer.build import Model, build
from trainer.modules import values
from trainer.modules.tables import leaves
from trainer.modules.values import ItemLogits, multiplied_out
from trainer.optim import LazyAdam, Optimizers
from trainer.settings import TrainSettings
from trainer.shapes import count, infer

SCHEMA = mixed_schema("next_item")
HISTORY = {"encoders": {"history": {"kind": "share", "view": "e"}}}
POOLED = {"id": "taste", "op": "pool", "in": ["past"]}


def architecture(**changes: Any) -> Architecture:
    """The pooled history against all items; `changes` replace parts."""
    data: dict[str, Any] = {
        "task": "next_item",
        "fields": fields_of(SCHEMA),
        "views": {"e": view(4, "user", "item"), "past": HISTORY},
        "nodes": [POOLED],
        "head": {"mode": "items", "in": ["taste"], "items": "e.item"},
    }
    return Architecture.from_dict(data | changes)


def built(description: Architecture) -> Model:
    return build(description, label_mean=1.0, table_init=0.5, seed=0)


# ---- the head


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inputs", [["taste"], ["taste", "e.user"]])
def test_logits_are_inner_products_with_every_row_of_the_table(inputs: list[str], bias: bool) -> None:
    description = architecture(head={"mode": "items", "in": inputs, "items": "e.item", "bias": bias})
    model, batch = built(description), batch_of(SCHEMA)
    weights = dict(model.named_parameters())
    items_ID, users = weights["tables.embeddings.4.embeddings.e/item.weight"], batch.categorical[:, 0]
    rows = zip(batch.sequences["history"], batch.lengths["history"], strict=True)
    pooled = [items_ID[ids[:length]].mean(0) if length else torch.zeros(4) for ids, length in rows]
    x_BN = torch.stack(pooled)
    if len(inputs) == 2:
        x_BN = torch.cat([x_BN, weights["tables.bags.embedding_bags.e/user.weight"][users]], dim=1)
        x_BN = x_BN @ weights["head.map.weight"].T
    expected_BI = x_BN @ items_ID.T
    if bias:
        weights["head.bias"].data.normal_()
        expected_BI = expected_BI + weights["head.bias"]
    output_BI = multiplied_out(model(batch))
    torch.testing.assert_close(output_BI[:, 1:], expected_BI[:, 1:])
    assert output_BI[:, 0].isneginf().all()
    assert sum(weight.numel() for weight in weights.values()) == count(description).total


def test_the_loss_is_cross_entropy_and_reaches_every_row_of_the_table_but_the_unknown() -> None:
    model, batch = built(architecture()), batch_of(SCHEMA)
    found = fit.loss("next_item", model(batch), batch)
    torch.testing.assert_close(found, functional.cross_entropy(multiplied_out(model(batch)), batch.label))
    found.backward()
    [leaf] = [leaf for leaf in leaves(model) if leaf.pool and leaf.pool.specs[0].whole]
    touched_I = (leaf.weight.grad != 0).any(dim=1)  # type: ignore[operator]
    assert touched_I[1:].all()
    batch_with_unknown = (batch.sequences["history"] * 0 == batch.sequences["history"]).any()
    assert bool(batch_with_unknown)  # row 0 has a gradient as a step of a history, never as an item


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_loss_of_a_few_rows_at_a_time_is_that_of_all_logits_at_once(
    dtype: torch.dtype, rtol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(1)
    x_BD, items_ID = (torch.randn(rows, 8, generator=draw).requires_grad_() for rows in (10, 50))
    bias_I = torch.randn(50, generator=draw)
    bias_I[0] = -math.inf
    bias_I.requires_grad_()
    logits = ItemLogits(x_BD.to(dtype), items_ID.to(dtype), bias_I.to(dtype))
    target_B = torch.randint(1, 50, (10,), generator=draw)
    monkeypatch.setattr(values, "LOSS_ROWS", 3)
    monkeypatch.setitem(values.LOSS_CELLS, "cpu", 0)
    expected = functional.cross_entropy(logits.whole(), target_B, reduction="sum")
    torch.testing.assert_close(logits.loss(target_B).float(), expected, rtol=rtol, atol=0)
    wanted = torch.autograd.grad(expected, [x_BD, items_ID, bias_I], retain_graph=True)
    for found, one in zip(torch.autograd.grad(logits.loss(target_B), [x_BD, items_ID, bias_I]), wanted, strict=True):
        assert (found - one).norm() < rtol * one.norm()


def test_items_of_their_own_table_need_no_sequence_that_shares_it() -> None:
    own = architecture(views={"e": view(4, "item"), "past": {"encoders": {"history": table(3)}}})
    model = built(own)
    fit.loss("next_item", model(batch_of(SCHEMA)), batch_of(SCHEMA)).backward()
    assert count(own).total == sum(parameter.numel() for parameter in model.parameters())
    assert "head.map.weight" in dict(model.named_parameters())


def test_a_table_that_is_read_whole_is_trained_densely_even_by_lazy_adam() -> None:
    model = built(architecture(head={"mode": "items", "in": ["taste", "e.user"], "items": "e.item"}))
    tables = {name for name, _ in model.named_parameters() if name.startswith("tables.")}
    optimizers = Optimizers(model, tables, TrainSettings(table_optimizer="lazy_adam"))
    assert [[spec.name for spec in leaf.pool.specs] for leaf in optimizers.lazy if leaf.pool] == [["e/user"]]
    assert any(isinstance(one, LazyAdam) for one in optimizers._all)


# ---- what is refused

LEAKS: list[tuple[dict[str, Any], str]] = [
    ({"nodes": [POOLED, {"id": "x", "op": "mlp", "units": [4], "in": ["e.item"]}]}, "node 'x': 'e.item' holds"),
    ({"nodes": [POOLED, {"id": "x", "op": "fm", "in": ["e"]}]}, "node 'x': 'e' holds the row's own 'item'"),
    (
        {
            "views": {"e": view(4, "item"), "past": HISTORY, "first": view(1, "user", "item")},
            "head": {"mode": "items", "in": ["taste", "first"], "items": "e.item"},
        },
        "head: 'first' holds the row's own 'item', which is what the model predicts; read other fields, or a sequence",
    ),
    (
        {"nodes": [POOLED, {"id": "x", "op": "target_attention", "in": ["past", "e.item"]}]},
        "node 'x': 'e.item' holds the row's own 'item'",
    ),
    (
        {
            "views": {
                "e": view(4, "item"),
                "past": HISTORY,
                "aware": {"encoders": {name: {"kind": "pairs_table", "dim": 2} for name in ("user", "item")}},
            },
            "nodes": [POOLED, {"id": "x", "op": "ffm", "in": ["aware"]}],
        },
        "node 'x': 'aware' holds the row's own 'item'",
    ),
]


@pytest.mark.parametrize(("changes", "message"), LEAKS)
def test_reading_the_answer_is_refused_wherever_it_happens(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        infer(architecture(**changes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {"mode": "sum", "in": ["taste"]}}, "head: mode 'sum' gives one number; task next_item needs mode"),
        ({"task": "ctr"}, "head: mode 'items' is for task next_item; use sum or linear for ctr"),
        ({"head": {"mode": "items", "in": ["taste"], "items": "e"}}, "head: items: 'e' is no table"),
        ({"head": {"mode": "items", "in": ["taste"], "items": "past.history"}}, "head: items: 'past.history' is no"),
        ({"head": {"mode": "items", "in": ["taste"], "items": "e.gone"}}, "head: 'e.gone': 'e' has no field 'gone'"),
        ({"head": {"mode": "items", "in": ["past"], "items": "e.item"}}, "head: 'past' is a sequence; pool it first"),
        (
            {"views": {"e": view(4, "item") | {"align": "lift", "width": 6}, "past": HISTORY}},
            "head: items: view 'e' aligns its fields; give 'item' a view without align",
        ),
    ],
)
def test_what_does_not_fit_the_task_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        infer(architecture(**changes))
    assert message in str(caught.value)


def test_the_table_of_items_counts_as_reached_and_decides_the_hash() -> None:
    other = view(4, "user", "item", "site.id")
    views = {"e": other, "past": {"encoders": {"history": table(4)}}}
    described = architecture(views=views)
    assert set(described.live().views["e"].encoders) == {"item"}
    assert described.live().hash == described.hash != architecture().hash
    renamed = {"f": other, "past": views["past"]}
    same = architecture(views=renamed, head={"mode": "items", "in": ["taste"], "items": "f.item"})
    assert same.hash == described.hash
    sites = architecture(views=views, head={"mode": "items", "in": ["taste"], "items": "e.site.id"})
    assert sites.hash != described.hash


# ---- training and prediction

SETTINGS = TrainSettings(batch_size=128, epochs=12, patience=12, learning_rate=0.02, table_l2=0, precision="fp32")


@pytest.mark.parametrize("name", ["gru4rec", "sasrec"])
def test_a_planted_rule_is_learned(name: str) -> None:
    model, train, valid = small.next_item_model(name), small.chain(2000, seed=1), small.chain(300, seed=2)
    result = fit.fit(model, train, valid, SETTINGS, task="next_item", seed=3)
    rank_N = fit.predict(model, small.chain(400, seed=4))[:, 1]
    assert (rank_N == 1).mean() > 0.97
    assert result.best_value == min(record.valid["nll"] for record in result.history)
    assert result.history[-1].valid.keys() == metrics.evaluate("next_item", [], np.ones((1, 3))).keys()


def test_predictions_do_not_depend_on_batches_which_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = small.next_item_model("sasrec"), small.chain(100, seed=1)
    whole = fit.predict(model, rows)
    assert whole.shape == (100, 3)
    np.testing.assert_allclose(fit.predict(model, rows, batch_size=7), whole, atol=1e-5)
    sizes: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(output.whole().numel()))
    monkeypatch.setattr(fit, "CELLS", 10 * small.CHAIN_ITEMS)
    np.testing.assert_allclose(fit.predict(model, rows), whole, atol=1e-5)
    assert sizes == [10 * small.CHAIN_ITEMS] * 10
    assert fit.predict(model, rows.select(torch.empty(0, dtype=torch.int64))).shape == (0, 3)


def test_recommended_items_are_those_that_rank_first() -> None:
    model, rows = small.next_item_model("sasrec"), small.chain(100, seed=1)
    found, rank_N = fit.recommend(model, rows, 10), fit.predict(model, rows)[:, 1]
    assert (found.ids == rows.label[:, None]).any(dim=1).tolist() == (rank_N <= 10).tolist()
    nobody = replace(rows, label=torch.zeros_like(rows.label), categorical=torch.zeros_like(rows.categorical))
    assert torch.equal(fit.recommend(model, nobody, 10).ids, found.ids)
    everything = fit.recommend(model, rows, 1000)
    assert everything.ids.shape == (100, small.CHAIN_ITEMS - 1)
    torch.testing.assert_close(everything.probabilities.sum(dim=1), torch.ones(100, dtype=torch.float64))


def test_a_share_of_the_rows_has_the_negatives_of_its_place() -> None:
    model, rows = small.next_item_model("sasrec"), small.chain(100, seed=1)
    second = rows.share(1, 2)
    part = fit.predict(model, second)
    np.testing.assert_allclose(part, fit.predict(model, rows)[second.first :], atol=1e-5)
    assert math.isclose(ranking.CELLS, 2**24)
