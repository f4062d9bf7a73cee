"""Residual blocks over sequences (`Steps`), as AMEIR's behavior modelling stacks them (Zhao 2021, arXiv 2006.05933).

A layer takes `Steps` that are zeros at padding and gives (B, T, d), at padding finite numbers that do not matter.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.modules.dropout import Dropout
from trainer.modules.interactions import ACTIVATIONS, dense
from trainer.modules.sequences import attended
from trainer.modules.values import Steps


class Block(nn.Module):
    """activation(layer(norm(x))) + x, the sum only if `residual`: Q -> Q."""

    def __init__(
        self, layer: nn.Module, width: int, norm: bool, activation: str, dropout: float, residual: bool
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.layer = layer
        self.activation = ACTIVATIONS[activation]()
        self.dropout = Dropout(dropout)
        self.residual = residual

    def forward(self, steps: Steps) -> Steps:
        padding_BT1 = ~steps.mask[..., None]
        # A norm's shift, and later a bias, would make padding differ from zero.
        normed_BTD = self.norm(steps.x).masked_fill(padding_BT1, 0.0)
        out_BTD = self.dropout(self.activation(self.layer(Steps(normed_BTD, steps.mask))))
        if self.residual:
            out_BTD = out_BTD + steps.x
        return Steps(out_BTD.masked_fill(padding_BT1, 0.0), steps.mask)


class Conv(nn.Module):
    """Convolution over `kernel` steps, `dilation` apart, with zeros beyond the valid ones."""

    def __init__(self, width: int, kernel: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.margins = _margins((kernel - 1) * dilation, causal)
        self.conv = nn.Conv1d(width, width, kernel, dilation=dilation)
        nn.init.xavier_normal_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, steps: Steps) -> Tensor:
        mixed_BDT: Tensor = self.conv(functional.pad(steps.x.transpose(1, 2), self.margins))
        return mixed_BDT.transpose(1, 2)


class MeanPool(nn.Module):
    """The mean over those of `kernel` neighbouring steps that are valid."""

    def __init__(self, kernel: int, causal: bool) -> None:
        super().__init__()
        self.kernel, self.margins = kernel, _margins(kernel - 1, causal)

    def forward(self, steps: Steps) -> Tensor:
        valid_BT1 = steps.mask[..., None].to(steps.x.dtype)
        total_BTD, number_BT1 = (_windows(x, self.kernel, self.margins, 0.0).sum(dim=3) for x in (steps.x, valid_BT1))
        return total_BTD / number_BT1.clamp(min=1)


class MaxPool(nn.Module):
    """The maximum over those of `kernel` neighbouring steps that are valid."""

    def __init__(self, kernel: int, causal: bool) -> None:
        super().__init__()
        self.kernel, self.margins = kernel, _margins(kernel - 1, causal)

    def forward(self, steps: Steps) -> Tensor:
        padding_BT1, lowest = ~steps.mask[..., None], float("-inf")
        x_BTD = steps.x.masked_fill(padding_BT1, lowest)
        return _windows(x_BTD, self.kernel, self.margins, lowest).amax(dim=3).masked_fill(padding_BT1, 0.0)


POOLS: dict[str, Callable[[int, bool], nn.Module]] = {"mean_pool": MeanPool, "max_pool": MaxPool}


class Recurrent(nn.Module):
    """A GRU's state at every step; unless `causal`, beside one that runs from the last valid step, mapped to d."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)
        self.back = None if causal else nn.GRU(width, width, batch_first=True)
        self.out = None if causal else dense(2 * width, width)

    def forward(self, steps: Steps) -> Tensor:
        states_BTD: Tensor = self.gru(steps.x)[0]
        if self.back is None or self.out is None:
            return states_BTD
        back_BTD = _turned(self.back(_turned(steps.x, steps.mask))[0], steps.mask)
        joined_BTD: Tensor = self.out(torch.cat([states_BTD, back_BTD], dim=2))
        return joined_BTD


class SelfAttention(nn.Module):
    """Self-attention of `heads` heads over the valid steps."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv, self.out = dense(width, 3 * width), dense(width, width)

    def forward(self, steps: Steps) -> Tensor:
        seen_BT, dropout = None if self.causal else _seen(steps.mask), self.dropout if self.training else 0.0
        mixed_BTD: Tensor = self.out(attended(self.qkv(steps.x), self.heads, seen_BT, dropout))
        return mixed_BTD


class FeedForward(nn.Module):
    """Two linear maps of each step, a ReLU and dropout between them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.maps = nn.Sequential(dense(width, width), nn.ReLU(), Dropout(dropout), dense(width, width))

    def forward(self, steps: Steps) -> Tensor:
        mapped_BTD: Tensor = self.maps(steps.x)
        return mapped_BTD


class Identity(nn.Module):
    """Each step as it is."""

    def forward(self, steps: Steps) -> Tensor:
        return steps.x


def _seen(mask_BT: Tensor) -> Tensor:
    """The valid steps; of an empty sequence the first, for not every kernel makes numbers of a softmax over nothing."""
    first_T = torch.arange(mask_BT.shape[1], device=mask_BT.device) == 0
    return mask_BT | first_T


def _margins(surplus: int, causal: bool) -> tuple[int, int]:
    """How far a window reaches to the left and to the right of its step."""
    left = surplus if causal else surplus // 2
    return left, surplus - left


def _windows(x_BTD: Tensor, kernel: int, margins: tuple[int, int], fill: float) -> Tensor:
    """Each step's window, `fill` beyond the ends: (B, T, D, kernel)."""
    return functional.pad(x_BTD, (0, 0, *margins), value=fill).unfold(1, kernel, 1)


def _turned(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Valid steps in opposite order, padding where it was."""
    place_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    turned_BT = torch.where(mask_BT, mask_BT.sum(dim=1, keepdim=True) - 1 - place_T, place_T)
    return x_BTD.gather(1, turned_BT[..., None].expand_as(x_BTD))
