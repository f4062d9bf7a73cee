"""Next item: from logits over all items to what metrics need of each row, and to the best items.

Id 0 stands for unknown items and takes no part: its logit is -inf. Nothing here holds more than one batch of logits.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainer.data import mixed
from trainer.metrics import NEGATIVES
from trainer.schema import DatasetSchema

CELLS = 1 << 24
"""Logits (rows times items) that a prediction computes at a time."""


@dataclass(frozen=True)
class Best:
    """The K best items of each row, best first."""

    ids: Tensor
    """(N, K) int64"""
    probabilities: Tensor
    """(N, K) float64, of all items"""


def items(schema: DatasetSchema) -> int:
    """Rows of the table of items, the unknown one included."""
    assert schema.target is not None
    return schema.field(schema.target).cardinality


def ranked(logits_BI: Tensor, target_B: Tensor, first: int) -> Tensor:
    """(B, 3) float64: negative log-likelihood of the target, its rank, and its rank among sampled negatives.

    Ranks count from 1. Items with the target's very logit share their places, and each takes the mean of these.

    Args:
        logits_BI: of float32 or float64.
        target_B: ids of the targets; none is 0.
        first: position of the first row in its split, which decides the negatives (`negatives`).
    """
    right_B1 = logits_BI.gather(1, target_B[:, None])
    nll_B = functional.cross_entropy(logits_BI, target_B, reduction="none")
    drawn_BN = negatives(target_B, logits_BI.shape[1], first)
    # The target's own column is among all items and counts as one tie too many.
    whole_B = _rank(logits_BI, right_B1) - 0.5
    return torch.stack([nll_B.double(), whole_B, _rank(logits_BI.gather(1, drawn_BN), right_B1)], dim=1)


def best(logits_BI: Tensor, count: int) -> Best:
    """The `count` items of the greatest logits, or as many as there are."""
    exact_BI = logits_BI.double()
    top = exact_BI.topk(min(count, exact_BI.shape[1] - 1), dim=1)
    return Best(top.indices, (top.values - exact_BI.logsumexp(dim=1, keepdim=True)).exp())


def negatives(target_B: Tensor, items: int, first: int) -> Tensor:
    """(B, NEGATIVES) ids, uniform with replacement among the known items (1 .. items - 1) that are not the target.

    They depend on the row's position alone, so that a figure repeats itself, whatever the batches or the processes.
    """
    numbers = np.arange(first * NEGATIVES, (first + len(target_B)) * NEGATIVES, dtype=np.uint64)
    drawn_BN = (mixed(numbers) % np.uint64(items - 2)).astype(np.int64).reshape(-1, NEGATIVES)
    other_BN = torch.from_numpy(drawn_BN).to(target_B.device) + 1
    return other_BN + (other_BN >= target_B[:, None])


def _rank(logit_BN: Tensor, right_B1: Tensor) -> Tensor:
    """The place of a logit beside N others, (B,) float64: above it count 1, equal to it 1/2, below it 0."""
    # Sums of ones are exact in float32 up to 2^24; counting comparisons takes three times as long.
    sum_B = (logit_BN - right_B1).sign_().sum(dim=1)
    return 1 + (sum_B.double() + logit_BN.shape[1]) / 2
