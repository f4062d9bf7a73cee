"""Vectors put together from centroids that all categories of a field share: product quantisation.

`Quantized` is what a description says: every category's codes are fixed, and the centroids learn. `Quantizer` is how
codes are found: each sub-vector of a full table is replaced by the nearest of the centroids while both learn (DPQ,
Chen, Li and Sun, ICML 2020, the variant by vector quantisation).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.architecture import QuantizedEncoder
from trainer.index import unpacked
from trainer.modules.penalty import penalised
from trainer.processes import rank_and_world


@dataclass(frozen=True)
class QuantizedSource:
    """A field with a quantized encoder, whose ids stand in one column."""

    column: int
    width: int
    encoder: QuantizedEncoder

    def joins(self, other: object) -> bool:
        """Never: each field has centroids of its own."""
        return False


class Quantized(nn.Module):
    """Ids (B,) -> (B, 1, dim): for each sub-space the centroid that the category's code names."""

    def __init__(self, source: QuantizedSource, init: float) -> None:
        """`init`: standard deviation of fresh centroids."""
        super().__init__()
        encoder = source.encoder
        width = encoder.dim // encoder.subspaces
        self.centroids = nn.Parameter(torch.empty(encoder.subspaces, encoder.centroids, width).normal_(std=init))
        code_RS = torch.frombuffer(bytearray(unpacked(encoder.index)), dtype=torch.uint8).view(-1, encoder.subspaces)
        # The description holds the codes: a model's weights are what was learned.
        self.register_buffer("codes", code_RS, persistent=False)
        self.register_buffer("first_S", torch.arange(encoder.subspaces) * encoder.centroids, persistent=False)
        self.codes: Tensor
        self.first_S: Tensor

    def forward(self, id_B: Tensor) -> Tensor:
        row_BS = self.codes.index_select(0, id_B) + self.first_S
        return functional.embedding(row_BS, self.centroids.flatten(0, 1)).flatten(1)[:, None]


def table_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The centroids of all `Quantized` within `module`."""
    for part in module.modules():
        if isinstance(part, Quantized):
            yield part.centroids


class Quantizer(nn.Module):
    """Fields (B, M, D) -> each sub-vector q replaced by the nearest of its field's and sub-space's centroids c.

    The gradient goes straight through to q. To the loss of a step is added the mean of (c - sg(q))², from which alone
    the centroids learn; q is not drawn to them (the published weight of that, 0). Until it is at work, it changes
    nothing.
    """

    def __init__(self, fields: int, width: int, subspaces: int, centroids: int) -> None:
        super().__init__()
        self.centroids = nn.Parameter(torch.zeros(fields, subspaces, centroids, width // subspaces))
        self.at_work = False
        self.register_buffer("placed", torch.tensor(False))
        self.placed: Tensor
        """Whether centroids have been given a place to begin; kept with the weights of a search that goes on."""

    def forward(self, x_BMD: Tensor, allowed_BM: Tensor, of: int) -> Tensor:
        """`allowed_BM`: so many of the centroids, the first ones, may stand for the field's category.

        `of`: rows of the whole batch, of which this process has B.
        """
        if not self.at_work:
            return x_BMD
        with torch.autocast(x_BMD.device.type, enabled=False):
            q_BMD = x_BMD.to(self.centroids.dtype)
            c_BMD = self.decoded(self.codes(q_BMD, allowed_BM))
            straight_BMD = c_BMD.detach() + (q_BMD - q_BMD.detach())
            if not self.training:
                return straight_BMD
            # As the loss is: its mean over the processes is that of the batch.
            share = len(x_BMD) * rank_and_world()[1] / of
            return penalised(straight_BMD, (c_BMD - q_BMD.detach()).square().mean() * share)

    @torch.no_grad()
    def codes(self, x_BMD: Tensor, allowed_BM: Tensor) -> Tensor:
        """The nearest allowed centroids, (B, M, S) int64."""
        x_BMSW = x_BMD.view(*x_BMD.shape[:2], self.centroids.shape[1], -1)
        fields = zip(x_BMSW.unbind(1), self.centroids, allowed_BM.unbind(1), strict=True)
        # Field by field, for distances to all centroids are the largest tensor of all.
        return torch.stack([_nearest(*field) for field in fields], dim=1)

    def decoded(self, code_BMS: Tensor) -> Tensor:
        """The centroids that codes name, side by side: (B, M, D)."""
        fields, subspaces, centroids, _ = self.centroids.shape
        first_MS = torch.arange(fields * subspaces, device=code_BMS.device).view(fields, subspaces) * centroids
        return functional.embedding(code_BMS + first_MS, self.centroids.flatten(0, 2)).flatten(2)

    @torch.no_grad()
    def place(self, field: int, x_KD: Tensor) -> None:
        """Let a field's centroids begin at these vectors."""
        self.centroids[field] = x_KD.view(len(x_KD), self.centroids.shape[1], -1).transpose(0, 1)


def _nearest(x_BSW: Tensor, c_SKW: Tensor, allowed_B: Tensor) -> Tensor:
    """(B, S): of the first `allowed_B` centroids the one at the least distance, of equals the first."""
    distance_BSK = c_SKW.square().sum(dim=2) - 2 * torch.einsum("bsw,skw->bsk", x_BSW, c_SKW)
    barred_BK = torch.arange(c_SKW.shape[1], device=allowed_B.device) >= allowed_B[:, None]
    return distance_BSK.masked_fill(barred_BK[:, None], torch.inf).argmin(dim=2)
