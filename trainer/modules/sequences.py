"""Ops on sequences (`Steps`).

An empty sequence gives zeros wherever one vector comes out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.modules.dropout import Dropout
from trainer.modules.interactions import dense
from trainer.modules.values import Steps


class Pool(nn.Module):
    """Mean, sum or maximum over valid steps: (B, d)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, steps: Steps) -> Tensor:
        if self.kind == "max":
            lowest_BTD = steps.x.masked_fill(~steps.mask[..., None], float("-inf"))
            return lowest_BTD.amax(dim=1).masked_fill(~steps.mask.any(dim=1)[:, None], 0.0)
        total_BD = steps.x.sum(dim=1)
        return total_BD / steps.mask.sum(dim=1).clamp(min=1)[:, None] if self.kind == "mean" else total_BD


class Last(nn.Module):
    """The last valid step: (B, d)."""

    def forward(self, steps: Steps) -> Tensor:
        length_B = steps.mask.sum(dim=1)
        rows_B = torch.arange(length_B.shape[0], device=length_B.device)
        last_BD = steps.x[rows_B, (length_B - 1).clamp(min=0)]
        return last_BD * (length_B > 0)[:, None]


class Positions(nn.Module):
    """A learned vector added to each valid step for its distance from the last one: Q -> Q."""

    def __init__(self, width: int, max_len: int, dropout: float, init: float) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(max_len, width).normal_(std=init))
        self.dropout = Dropout(dropout)

    def forward(self, steps: Steps) -> Steps:
        length_B1 = steps.mask.sum(dim=1, keepdim=True)
        age_BT = length_B1 - 1 - torch.arange(steps.mask.shape[1], device=length_B1.device)
        x_BTD = self.dropout(steps.x + functional.embedding(age_BT.clamp(min=0), self.positions))
        return Steps(x_BTD * steps.mask[..., None], steps.mask)


def attended(qkv_BTX: Tensor, heads: int, seen_BT: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Self-attention on queries, keys and values side by side: (B, T, 3 * D) -> (B, T, D).

    Every step sees the steps marked in `seen`, one at least; without it those that are not after it.
    """
    B, T, X = qkv_BTX.shape
    qkv_BTHA = qkv_BTX.view(B, T, 3 * heads, X // (3 * heads))
    query, key, value = qkv_BTHA.transpose(1, 2).chunk(3, dim=1)
    mask_B11T = None if seen_BT is None else seen_BT[:, None, None]
    # With padding on the right the causal mask alone keeps it out of every valid step.
    mixed_BHTA = functional.scaled_dot_product_attention(
        query, key, value, mask_B11T, dropout_p=dropout, is_causal=seen_BT is None
    )
    return mixed_BHTA.transpose(1, 2).flatten(2)


class TargetAttention(nn.Module):
    """Σ_t a_t x_t, a from an MLP on (step, target, difference, product): Q and (B, d) -> (B, d) (DIN, section 4.3)."""

    def __init__(self, width: int, units: Sequence[int]) -> None:
        super().__init__()
        widths = [4 * width, *units]
        layers: list[nn.Module] = []
        for before, after in zip(widths, units, strict=False):
            layers += [dense(before, after), nn.ReLU()]
        self.score = nn.Sequential(*layers, dense(widths[-1], 1))

    def forward(self, steps: Steps, target_BD: Tensor) -> Tensor:
        target_BTD = target_BD[:, None].expand_as(steps.x)
        difference_BTD, product_BTD = steps.x - target_BTD, steps.x * target_BTD
        score_BT1: Tensor = self.score(torch.cat([steps.x, target_BTD, difference_BTD, product_BTD], dim=2))
        # Padding steps are zeros, so their scores drop out of the sum.
        return (score_BT1 * steps.x).sum(dim=1)
