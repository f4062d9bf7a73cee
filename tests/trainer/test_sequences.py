"""Ops on sequences: padding never matters, and each op agrees with a loop over valid steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.trainer.mixed import batch_of, mixed_schema
from trainer import fit, zoo
from trainer.architecture import Architecture
from trainer.build import build
from trainer.modules import sequences, tables
from trainer.modules.values import StepGroups, Steps
from trainer.schema import Task
from trainer.space import fill_params

B, T, D = 5, 6, 4
LENGTHS = (0, 1, 3, 6, 4)


def steps(width: int = T, seed: int = 0) -> Steps:
    """Equal valid steps for every padded width."""
    x_BTD = torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed))
    mask_BT = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    x_BTD = nn.functional.pad(x_BTD, (0, 0, 0, width - T))
    return Steps(x_BTD * mask_BT[..., None], mask_BT)


def rows(sequence: Steps) -> list[Tensor]:
    return [sequence.x[row, :length] for row, length in enumerate(LENGTHS)]


MODULES = {
    "mean": lambda: sequences.Pool("mean"),
    "max": lambda: sequences.Pool("max"),
    "last": sequences.Last,
    "positions": lambda: nn.Sequential(sequences.Positions(D, 9, 0.0, 0.5), sequences.Pool("sum")),
    "attention": lambda: Target(),
}


class Target(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = sequences.TargetAttention(D, [8])
        self.target = torch.randn(B, D)

    def forward(self, sequence: Steps) -> Tensor:
        output: Tensor = self.attention(sequence, self.target)
        return output


@pytest.mark.parametrize("name", MODULES)
def test_padding_does_not_matter_and_empty_gives_zeros(name: str) -> None:
    torch.manual_seed(1)
    module = MODULES[name]().eval()
    output = module(steps())
    torch.testing.assert_close(module(steps(width=9)), output)
    assert torch.equal(output[0], torch.zeros_like(output[0]))
    assert output[1:].abs().sum() > 0


@pytest.mark.parametrize("kind", ["mean", "sum", "max"])
def test_pool(kind: str) -> None:
    pooled = sequences.Pool(kind)(steps())
    reduce = {"mean": lambda x: x.mean(0), "sum": lambda x: x.sum(0), "max": lambda x: x.amax(0)}[kind]
    for row, x_TD in enumerate(rows(steps())):
        torch.testing.assert_close(pooled[row], reduce(x_TD) if len(x_TD) else torch.zeros(D))


def test_target_attention_by_hand() -> None:
    torch.manual_seed(1)
    module = sequences.TargetAttention(D, [8])
    target = torch.randn(B, D)
    output = module(steps(), target)
    for row, x_TD in enumerate(rows(steps())):
        total = torch.zeros(D)
        for x_D in x_TD:
            query = target[row]
            total = total + module.score(torch.cat([x_D, query, x_D - query, x_D * query])) * x_D
        torch.testing.assert_close(output[row], total)


# ---- rows of like length are computed together ----------------------------------------------------------------------


@given(st.lists(st.integers(0, 40), min_size=tables.FEW_ROWS, max_size=tables.FEW_ROWS + 9))
def test_groups_hold_every_step_once_and_little_padding(lengths: list[int]) -> None:
    mask_BT = torch.arange(max(*lengths, 1)) < torch.tensor(lengths)[:, None]
    x_ND = torch.arange(1.0, sum(lengths) + 1)[:, None]
    found = tables.in_groups(x_ND, mask_BT)
    assert isinstance(found, StepGroups)
    assert sorted(found.order.tolist()) == list(range(len(lengths)))
    whole, places = tables.padded(x_ND, mask_BT), iter(found.order.tolist())
    for part in found.parts:
        width = part.x.shape[1]
        for x_TD, mask_T in zip(part.x, part.mask, strict=True):
            row = next(places)
            assert torch.equal(x_TD, whole.x[row, :width])
            assert torch.equal(mask_T, whole.mask[row, :width])
            assert not mask_BT[row, width:].any()
            assert width <= max(tables.BOUNDS[0], 2 * lengths[row])


def test_a_few_rows_are_one_group() -> None:
    few = torch.ones(tables.FEW_ROWS - 1, 2, dtype=torch.bool)
    assert isinstance(tables.in_groups(torch.ones(few.numel(), 3), few), Steps)


@pytest.mark.parametrize(
    ("name", "task"),
    [(name, task) for name in zoo.names() if "sequence" in zoo.needs(name) for task in zoo.tasks(name)],
)
def test_models_give_the_same_whether_rows_are_grouped_or_not(
    name: str, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = mixed_schema(task)
    architecture = Architecture.from_dict(fill_params(zoo.template(name, schema), {}))
    model = build(architecture, label_mean=0.5, table_init=0.5, seed=0).eval()
    batch = batch_of(schema, rows=tables.FEW_ROWS, seed=1)
    results = []
    for few in (tables.FEW_ROWS, tables.FEW_ROWS + 1):
        monkeypatch.setattr(tables, "FEW_ROWS", few)
        model.zero_grad()
        output = model(batch)
        fit.loss(task, output, batch).backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        results.append((output, gradients))
    torch.testing.assert_close(*results)
