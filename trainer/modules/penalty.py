"""A summand of the loss from within a model."""

from typing import Any

import torch
from torch import Tensor


def penalised(x: Tensor, penalty: Tensor) -> Tensor:
    """`x` as it is; in the backward pass `penalty`, a number, counts as a summand of the loss."""
    added: Tensor = _Penalised.apply(x, penalty)  # type: ignore[no-untyped-call]
    return added


class _Penalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, penalty: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.new_ones(())
