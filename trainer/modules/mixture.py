"""Candidates weighed by relaxed choices, and the noise that relaxes them (Jang, Gu and Poole 2017)."""

import torch
from torch import Tensor, nn

from trainer.modules.interactions import BatchNorm

SCALE = 0.1
"""Where the scale of mixed vectors starts: an FM over unit variances would start with logits in the tens."""

COLDEST = 0.01

SMALLEST = 1e-10
"""Fresh vectors are small, and the fewer coordinates the smaller: torch's eps would weigh on them unequally."""

HIDDEN = 16
"""Units of a controller."""


class Mixture(nn.Module):
    """One of N candidate vectors per field, weighed by softmax((logits + Gumbel noise) / temperature).

    (B, M, N, D) -> (B, M, D). Candidates are first normalised over the batch and the fields (Zhao et al., WWW 2021):
    without it the weights would follow the candidates' sizes. One learned scale then holds for all of them alike, which
    no choice can profit from. Noise is drawn once per step; in evaluation there is none.
    """

    def __init__(self, fields: int, candidates: int, width: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(fields, candidates))
        self.norm = BatchNorm(candidates * width, eps=SMALLEST, affine=False)
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.temperature, self.noisy = 1.0, True

    def anneal(self, progress: float, *, frozen: bool) -> None:
        """From equal weights (`frozen`) to a choice: the temperature falls linearly from 1 to 0.01 (`progress` 0 to 1).

        AutoDim's falls by 5e-5 per step, which is the same over the 20,000 steps of its one pass over Criteo.
        """
        self.temperature, self.noisy = 1 - (1 - COLDEST) * progress, not frozen

    def forward(self, x_BMND: Tensor) -> Tensor:
        with torch.autocast(x_BMND.device.type, enabled=False):
            normal_BMND = _normal(self.norm, x_BMND.to(self.scale.dtype))
            return self.scale * torch.einsum("bmnd,mn->bmd", normal_BMND, self.weights())

    def weights(self) -> Tensor:
        """(M, N), rows sum to 1."""
        noise: Tensor | float = gumbel(self.logits) if self.training and self.noisy else 0.0
        return ((self.logits + noise) / self.temperature).softmax(dim=1)


class ControlledMixture(nn.Module):
    """The same with weights that a small network makes of one number per row and field (AutoEmb, Zhao et al. 2021).

    Candidates (B, M, N, D) and numbers (B, M) -> (B, M, D). Weights are the softmax over N of a layer of `HIDDEN` units
    with tanh and a second one, for each field its own. There is no noise, and the sum is soft in evaluation too.
    """

    def __init__(self, fields: int, candidates: int, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(2, fields, HIDDEN))
        self.second = nn.Parameter(SCALE * torch.randn(fields, HIDDEN, candidates))
        self.bias = nn.Parameter(torch.zeros(fields, candidates))
        self.norm = BatchNorm(candidates * width, eps=SMALLEST, affine=False)
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.frozen = False
        """Whether weights are all equal."""

    def forward(self, x_BMND: Tensor, number_BM: Tensor) -> Tensor:
        with torch.autocast(x_BMND.device.type, enabled=False):
            normal_BMND = _normal(self.norm, x_BMND.to(self.scale.dtype))
            return self.scale * torch.einsum("bmnd,bmn->bmd", normal_BMND, self.weights(number_BM))

    def weights(self, number_BM: Tensor) -> Tensor:
        """(B, M, N), which sum to 1 over N."""
        logit_BMN = self.logits(number_BM)
        return (torch.zeros_like(logit_BMN) if self.frozen else logit_BMN).softmax(dim=2)

    def logits(self, number_BM: Tensor) -> Tensor:
        hidden_BMH = (number_BM[..., None] * self.first[0] + self.first[1]).tanh()
        return torch.einsum("bmh,mhn->bmn", hidden_BMH, self.second) + self.bias


def _normal(norm: BatchNorm, x_BMND: Tensor) -> Tensor:
    """Normalised over the batch and the fields."""
    normal_RN: Tensor = norm(x_BMND.flatten(0, 1).flatten(1))
    return normal_RN.view_as(x_BMND)


def gumbel(like: Tensor) -> Tensor:
    """-log(-log u) of uniform numbers, as many as `like` holds."""
    return -torch.empty_like(like).exponential_().log()
