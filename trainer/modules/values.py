"""What flows between nodes: V, F, Q and P of `trainer.architecture` as tensors."""

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class StepGroups:
    """The same (Q) with rows of like length in a group: short sequences are not computed as long as the longest."""

    parts: list[Steps]
    order: Tensor
    """(B,) int64: the rows of the parts, one part behind the other."""

    def apply(self, op: Callable[..., Tensor | Steps], beside: Sequence[Tensor]) -> "Tensor | StepGroups":
        """What `op` gives for a sequence and what is `beside` it, (B, n) each; rows are in their own order again."""
        sizes = [len(part.x) for part in self.parts]
        split = [torch.split(x_BN.index_select(0, self.order), sizes) for x_BN in beside]
        found = [op(*inputs) for inputs in zip(self.parts, *split, strict=True)]
        parts = [one for one in found if isinstance(one, Steps)]
        if parts:
            return StepGroups(parts, self.order)
        places_B = torch.empty_like(self.order).scatter_(0, self.order, torch.arange(len(self.order)))
        return torch.cat([one for one in found if isinstance(one, Tensor)]).index_select(0, places_B)


Value = Tensor | list[Tensor] | Steps | StepGroups
"""V: (B, n). F: (B, M, d), or a list of M (B, width) where widths differ. P: (B, M, M - 1, d). Q: the others."""


def flatten(values: Sequence[Value]) -> Tensor:
    """V and F inputs side by side: (B, n)."""
    parts: list[Tensor] = []
    for value in values:
        assert not isinstance(value, Steps | StepGroups)
        parts += value if isinstance(value, list) else [value.flatten(1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
