"""A gate for every coordinate of an embedding, open or closed by what the embedding itself is (iHAS, Yu 2023).

A field's vector is all that its gates see, and it follows from the field's category: so do the gates.
"""

import math

import torch
from torch import Tensor, nn

from trainer.modules.penalty import penalised
from trainer.processes import rank_and_world

START = 2.0
"""Logit of fresh gates: they are open."""
COLDEST = 0.1


class Gates(nn.Module):
    """Bernoulli gates with probabilities π = σ(W_m x_m + b_m): fields (B, M, D) -> those times their gates, (B, M, D).

    In training gates are relaxed, z = σ((logit π + log u - log(1 - u)) / temperature) with uniform u, the binary
    concrete distribution (Maddison 2017); otherwise z = 1 where π > `threshold`, else 0. To the loss of a step is added

        sparse · mean(π) + polar · mean(π (1 - π)),

    the mean share of open gates and their mean variance, which is 0 only where all are decided.
    """

    def __init__(self, fields: int, width: int, threshold: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(fields, width, width))
        self.bias = nn.Parameter(torch.full((fields, width), START))
        self.cut = math.log(threshold / (1 - threshold))
        self.temperature, self.sparse, self.polar = 1.0, 0.0, 0.0
        self.at_work = True
        """Else all are open, and nothing is added to the loss."""

    def forward(self, x_BMD: Tensor, of: int) -> Tensor:
        """`of`: rows of the whole batch, of which this process has B."""
        if not self.at_work:
            return x_BMD
        with torch.autocast(x_BMD.device.type, enabled=False):
            logit_BMD = self.logits(x_BMD)
            if not self.training:
                return x_BMD * (logit_BMD > self.cut)
            # As the loss is: its mean over the processes is that of the batch.
            share = len(x_BMD) * rank_and_world()[1] / of
            open_BMD = ((logit_BMD + logistic(logit_BMD)) / self.temperature).sigmoid()
            return penalised(x_BMD * open_BMD, self.penalty(logit_BMD) * share)

    def logits(self, x_BMD: Tensor) -> Tensor:
        """log(π / (1 - π)), (B, M, D)."""
        return torch.einsum("bmd,mde->bme", x_BMD.to(self.weight.dtype), self.weight) + self.bias

    def open(self, x_BMD: Tensor) -> Tensor:
        """The deterministic gates, (B, M, D) bool."""
        return self.logits(x_BMD) > self.cut

    def penalty(self, logit_BMD: Tensor) -> Tensor:
        chance_BMD = logit_BMD.sigmoid()
        return self.sparse * chance_BMD.mean() + self.polar * (chance_BMD * (1 - chance_BMD)).mean()


def logistic(like: Tensor) -> Tensor:
    """log u - log(1 - u) of uniform numbers, as many as `like` holds."""
    return torch.logit(torch.rand_like(like), eps=1e-6)
