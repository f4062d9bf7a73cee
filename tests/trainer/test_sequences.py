"""Ops on sequences: padding never matters, and each op agrees with a loop over valid steps."""

import pytest
import torch
from torch import Tensor, nn

from trainer.modules import sequences
from trainer.modules.values import Steps

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
    "gru": lambda: sequences.GRU(D, 3),
    "transformer": lambda: nn.Sequential(sequences.Transformer(D, 9, 2, 2, 0.0, 0.5), sequences.Last()),
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


def test_gru_is_the_state_after_the_last_valid_step() -> None:
    module = sequences.GRU(D, 3)
    output = module(steps())
    for row, x_TD in enumerate(rows(steps())):
        if len(x_TD):
            torch.testing.assert_close(output[row], module.gru(x_TD[None])[1][0, 0])


def test_transformer_is_causal() -> None:
    torch.manual_seed(1)
    module = sequences.Transformer(D, T, 2, 1, 0.0, 0.5).eval()
    before = steps()
    changed = before.x.clone()
    changed[3, 4:] *= -2.0
    first, second = module(before).x, module(Steps(changed, before.mask)).x
    torch.testing.assert_close(first[3, :4], second[3, :4])
    assert not torch.allclose(first[3, 4:], second[3, 4:])


def test_transformer_block_by_hand() -> None:
    torch.manual_seed(1)
    module = sequences.Transformer(D, T, 1, 1, 0.0, 0.5).eval()
    block = module.blocks[0]
    output = module(steps()).x
    for row, x_TD in enumerate(rows(steps())):
        length = len(x_TD)
        x = x_TD + module.positions[:length].flip(0)  # the last valid step has position 0
        query, key, value = block.qkv(block.attention_norm(x)).chunk(3, 1)
        scores = (query @ key.T / D**0.5).masked_fill(~torch.ones(length, length).tril().bool(), float("-inf"))
        x = x + block.out(scores.softmax(1) @ value)
        x = module.norm(x + block.feed_forward(block.forward_norm(x)))
        torch.testing.assert_close(output[row, :length], x, rtol=1e-4, atol=1e-5)


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
