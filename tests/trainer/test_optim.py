"""The optimizers against torch's Adam and against the update written out."""

import math

import pytest
import torch
from torch import nn

from tests.trainer import small
from trainer.average import RunningAverage
from trainer.data import Batch
from trainer.fit import _penalty_shares
from trainer.modules.tables import Tables, TableSpec
from trainer.optim import LAZY_ROWS_PER_BATCH_ROW, LazyAdam, Optimizers
from trainer.settings import TrainSettings
from trainer.sharding import local_weights


def bag(rows: int, *, sparse: bool) -> nn.EmbeddingBag:
    torch.manual_seed(3)
    return nn.EmbeddingBag(rows, 4, mode="sum", sparse=sparse)


def backward(table: nn.EmbeddingBag, ids: torch.Tensor, step: int) -> None:
    table.weight.grad = None
    loss(table(ids, torch.arange(len(ids))), step).backward()
    if table.sparse:
        table.weight.grad = table.weight.grad.coalesce()


def loss(x_BD: torch.Tensor, step: int) -> torch.Tensor:
    """Its gradient differs from row to row and from step to step; repeated ids add up."""
    return (torch.sin(x_BD * (step + 1)) * torch.arange(1, len(x_BD) + 1)[:, None]).sum()


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_lazy_adam_is_dense_adam_where_every_row_is_touched(l2: float) -> None:
    dense, lazy = bag(10, sparse=False), bag(10, sparse=True)
    reference = torch.optim.Adam(dense.parameters(), lr=0.01, weight_decay=l2, fused=True)
    ours = LazyAdam(lazy.parameters(), lr=0.01, l2=l2)
    for step in range(20):
        ids = torch.cat([torch.randperm(10), torch.tensor([0, 0, 3])])
        for table, optimizer in ((dense, reference), (lazy, ours)):
            backward(table, ids, step)
            optimizer.step()
    torch.testing.assert_close(lazy.weight, dense.weight, rtol=1e-6, atol=1e-6)


def test_lazy_adam_follows_its_formula_row_by_row() -> None:
    """Row 1 is touched in steps 1, 2 and 5; its penalties of steps 3 and 4 are paid in step 5."""
    table, rate, l2 = bag(6, sparse=True), 0.05, 0.2
    optimizer = LazyAdam(table.parameters(), lr=rate, l2=l2)
    row = table.weight[1].detach().double().clone()
    m = v = torch.zeros(4, dtype=torch.float64)
    last = 0
    for step, ids in enumerate([[1, 2], [1], [2, 3], [4], [1, 1, 5]], start=1):
        untouched = [i for i in range(6) if i not in ids]
        before = table.weight.detach().clone()
        backward(table, torch.tensor(ids), step)
        if 1 in ids:
            gradient = table.weight.grad.to_dense()[1].double() + (step - last) * l2 * row
            m, v, last = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2, step
            row = row - rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        optimizer.step()
        assert torch.equal(table.weight[untouched], before[untouched])
        torch.testing.assert_close(table.weight[1].double(), row, rtol=1e-5, atol=1e-6)


def test_lazy_adam_takes_a_batch_that_touches_nothing() -> None:
    table = bag(5, sparse=True)
    before = table.weight.detach().clone()
    optimizer = LazyAdam(table.parameters(), lr=0.1, l2=0.1)
    table.weight.grad = torch.sparse_coo_tensor(torch.empty(1, 0, dtype=torch.int64), torch.empty(0, 4), (5, 4))
    table.weight.grad = table.weight.grad.coalesce()
    optimizer.step()
    assert torch.equal(table.weight, before)


def table_names(model: nn.Module) -> set[str]:
    tables = {id(parameter) for parameter in model.table_parameters()}  # type: ignore[operator]
    return {name for name, parameter in model.named_parameters() if id(parameter) in tables}


def lazy_names(settings: TrainSettings) -> set[str]:
    model = small.model()
    return {name for leaf in Optimizers(model, table_names(model), settings).lazy for name in leaf.parts}


def test_tables_are_lazy_by_size_unless_set() -> None:
    assert lazy_names(TrainSettings(table_optimizer="adam")) == set()
    everything = lazy_names(TrainSettings(table_optimizer="lazy_adam"))
    assert len(everything) == 4  # user and item, in two views; the numeric field's vector has no rows to be lazy with
    assert lazy_names(TrainSettings()) == set()
    between = TrainSettings(batch_size=1)
    assert small.ITEMS > LAZY_ROWS_PER_BATCH_ROW
    assert lazy_names(between) == everything


@pytest.mark.parametrize("table_optimizer", ["adam", "lazy_adam"])
def test_penalties_reach_tables_and_matrices_but_no_biases(table_optimizer: str) -> None:
    """Adam's first step moves a weight by the rate against the sign of its gradient: here the penalty alone."""
    model = small.model()
    settings = TrainSettings(
        table_optimizer=table_optimizer,  # type: ignore[arg-type]
        learning_rate=0.01,
        table_learning_rate=0.02,
        weight_decay=0.5,
        table_l2=0.5,
    )
    tables = table_names(model)
    optimizers = Optimizers(model, tables, settings)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for leaf in optimizers.leaves:
        zeros = torch.zeros_like(leaf.weight)
        leaf.weight.grad = zeros
        if leaf in optimizers.lazy:
            rows = torch.arange(leaf.weight.shape[0])[None]
            leaf.weight.grad = torch.sparse_coo_tensor(rows, zeros, is_coalesced=True)
    optimizers.step()
    for name, parameter in model.named_parameters():
        rate = 0.02 if name in tables else 0.01 if parameter.dim() > 1 else 0.0
        torch.testing.assert_close(parameter, before[name] - rate * before[name].sign(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("table_optimizer", ["adam", "lazy_adam"])
def test_running_average_is_the_weighted_mean_of_all_steps(table_optimizer: str) -> None:
    """Against the definition, for dense weights and for rows that rest between touches."""
    model, decay, steps = small.model(norm="batch"), 0.8, 12
    settings = TrainSettings(table_optimizer=table_optimizer, learning_rate=0.05, average=decay)  # type: ignore[arg-type]
    optimizers = Optimizers(model, table_names(model), settings)
    weights = local_weights(model)
    average = RunningAverage(weights, optimizers, decay)
    seen: list[dict[str, torch.Tensor]] = []
    for batch in small.table(5 * steps).batches(5):
        model(batch).square().sum().backward()
        optimizers.coalesce()
        optimizers.step()
        average.after_step()
        optimizers.zero_grad()
        seen.append({name: value.clone() for name, value in weights.items()})
    shares = [(1 - decay) * decay ** (steps - 1 - step) / (1 - decay**steps) for step in range(steps)]
    assert math.isclose(sum(shares), 1)
    with average.applied():
        for name, value in weights.items():
            if value.is_floating_point():
                expected = sum(share * step[name] for share, step in zip(shares, seen, strict=True))
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    for name, value in weights.items():
        assert torch.equal(value, seen[-1][name])


@pytest.mark.parametrize("sparse", [False, True])
def test_shares_weigh_the_penalty_of_each_row(sparse: bool) -> None:
    """The same steps as Adam on a loss that holds the weighted penalty itself."""
    ours, reference = Tables([TableSpec("t", "v", 6, 4, "f")], {"f": 0}, table_init=1.0, seed=0), bag(6, sparse=False)
    name = "bags.embedding_bags.t.weight"
    ours.get_parameter(name).data.copy_(reference.weight)
    share, l2 = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 4.0]), 0.3
    settings = TrainSettings(learning_rate=0.02, table_l2=l2, table_optimizer="lazy_adam" if sparse else "adam")
    optimizers = Optimizers(ours, {name}, settings, {name: share})
    adam = torch.optim.Adam(reference.parameters(), lr=0.02)
    for step in range(10):
        ids = torch.randperm(6)
        rows = ours(Batch(ids[:, None], torch.empty(6, 0), torch.zeros(6))).fields([("t", "f")])
        loss(rows[:, 0], step).backward()
        optimizers.coalesce()
        optimizers.step()
        optimizers.zero_grad()
        backward(reference, ids, step)
        with torch.enable_grad():
            (l2 / 2 * (share[:, None] * reference.weight**2).sum()).backward()
        adam.step()
    torch.testing.assert_close(ours.get_parameter(name), reference.weight, rtol=1e-5, atol=1e-6)


def test_shares_are_powers_of_the_training_frequency() -> None:
    train = small.table(500)
    model = small.model()
    shares = _penalty_shares(model, train, 0.5)
    items = torch.bincount(train.categorical[:, 1], minlength=small.ITEMS)
    history = torch.bincount(train.sequences["history"].values, minlength=small.ITEMS)
    by_table = {name.rsplit(".", 2)[-2]: share for name, share in shares.items()}
    torch.testing.assert_close(by_table["first/item"], (items / 500).sqrt())
    torch.testing.assert_close(by_table["e/item"], ((items + history) / 500).sqrt())  # the history shares this table
