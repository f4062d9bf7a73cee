"""Candidates weighed by relaxed choices, and the noise that relaxes them (Jang, Gu and Poole 2017)."""

import torch
from torch import Tensor, nn

from trainer.modules.interactions import BatchNorm

SCALE = 0.1
"""Where the scale of mixed vectors starts: an FM over unit variances would start with logits in the tens."""

COLDEST = 0.01


class Mixture(nn.Module):
    """One of N candidate vectors per field, weighed by softmax((logits + Gumbel noise) / temperature).

    (B, M, N, D) -> (B, M, D). Candidates are first normalised over the batch and the fields (Zhao et al., WWW 2021):
    without it the weights would follow the candidates' sizes. One learned scale then holds for all of them alike, which
    no choice can profit from. Noise is drawn once per step; in evaluation there is none.
    """

    def __init__(self, fields: int, candidates: int, width: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(fields, candidates))
        # Fresh vectors are small, and the fewer coordinates the smaller: torch's eps would weigh on them unequally.
        self.norm = BatchNorm(candidates * width, eps=1e-10, affine=False)
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.temperature, self.noisy = 1.0, True

    def anneal(self, progress: float, *, frozen: bool) -> None:
        """From equal weights (`frozen`) to a choice: the temperature falls linearly from 1 to 0.01 (`progress` 0 to 1).

        AutoDim's falls by 5e-5 per step, which is the same over the 20,000 steps of its one pass over Criteo.
        """
        self.temperature, self.noisy = 1 - (1 - COLDEST) * progress, not frozen

    def forward(self, x_BMND: Tensor) -> Tensor:
        with torch.autocast(x_BMND.device.type, enabled=False):
            x_RN = x_BMND.flatten(0, 1).flatten(1).to(self.scale.dtype)
            normal_BMND = self.norm(x_RN).view_as(x_BMND)
            return self.scale * torch.einsum("bmnd,mn->bmd", normal_BMND, self.weights())

    def weights(self) -> Tensor:
        """(M, N), rows sum to 1."""
        noise: Tensor | float = gumbel(self.logits) if self.training and self.noisy else 0.0
        return ((self.logits + noise) / self.temperature).softmax(dim=1)


def gumbel(like: Tensor) -> Tensor:
    """-log(-log u) of uniform numbers, as many as `like` holds."""
    return -torch.empty_like(like).exponential_().log()
