"""What flows between nodes: V, F, Q and P of `trainer.architecture` as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """A sequence (Q). Valid steps stand on the left; the others are zeros."""

    x: Tensor
    """(B, T, d)"""
    mask: Tensor
    """(B, T) bool, True for valid steps"""


Value = Tensor | list[Tensor] | Steps
"""V: (B, n). F: (B, M, d), or a list of M (B, width) where widths differ. P: (B, M, M - 1, d). Q: Steps."""


def flatten(values: Sequence[Value]) -> Tensor:
    """V and F inputs side by side: (B, n)."""
    parts: list[Tensor] = []
    for value in values:
        assert not isinstance(value, Steps)
        parts += value if isinstance(value, list) else [value.flatten(1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
