"""What flows between nodes: V, F, Q and P of `trainer.architecture` as tensors; and what comes out of a head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

LOSS_CELLS = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Logits that a loss computes at a time: on a processor as many as its cache holds, faster than all at once; on a
GPU enough to keep it busy."""
LOSS_ROWS = 64
"""At the least: every piece goes through all items again, and through their gradients."""


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


class ItemLogits(NamedTuple):
    """Logits of I items for B rows as the product that they are: rows times items are more than all else together.

    A tuple, so that data parallelism sees the tensors in it: what it does not see it does not average.
    """

    x: Tensor
    """(B, D)"""
    items: Tensor
    """(I, D)"""
    bias: Tensor
    """(I,), -inf where an item takes no part"""

    def whole(self) -> Tensor:
        """(B, I) float32"""
        return functional.linear(self.x, self.items, self.bias).float()

    def loss(self, target_B: Tensor) -> Tensor:
        """The sum of the rows' cross-entropies, of x' format. Its memory does not grow with rows times items."""
        at_a_time = nn.LinearCrossEntropyOptions(
            batch_chunk_size=max(LOSS_ROWS, LOSS_CELLS[self.x.device.type] // len(self.items)), chunking_method=None
        )
        return functional.linear_cross_entropy(
            self.x, self.items, target_B, linear_bias=self.bias, reduction="sum", options=at_a_time
        )


Output = Tensor | ItemLogits
"""What a model gives for B rows: logits (ctr) or ratings, (B,); or the logits of all items (next_item)."""


def multiplied_out(output: Output) -> Tensor:
    """The output as numbers: (B,), or (B, I)."""
    return output.whole() if isinstance(output, ItemLogits) else output


def flatten(values: Sequence[Value]) -> Tensor:
    """V and F inputs side by side: (B, n)."""
    parts: list[Tensor] = []
    for value in values:
        assert not isinstance(value, Steps | StepGroups)
        parts += value if isinstance(value, list) else [value.flatten(1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
