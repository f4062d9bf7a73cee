"""A field's vector put together from blocks of its table: categories of unlike frequency may have unlike widths."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.architecture import RowsEncoder
from trainer.modules.interactions import BatchNorm, dense
from trainer.modules.tables import Key, Rows
from trainer.shapes import block_maps, block_parts, chain_widths

MOMENTUM, SMALLEST = 0.1, 1e-10
"""Variance that a chain's normalisation adds: fresh rows are small, and torch's 1e-5 would weigh on the narrow ones."""


@dataclass(frozen=True)
class BlocksSource:
    """A field with a rows encoder, and the key of each block's table."""

    field: str
    width: int
    keys: Sequence[Key]
    encoder: RowsEncoder

    def joins(self, other: object) -> bool:
        """Never: unlike those of whole tables its parts are looked up one by one."""
        return False


class Blocks(nn.Module):
    """Rows of all blocks -> (B, 1, width). A block that rests adds nothing; a map of none but these has no gradient."""

    def __init__(self, source: BlocksSource) -> None:
        super().__init__()
        self.keys, self.width = list(source.keys), source.width
        self.parts = block_parts(source.encoder)
        mapped = sorted({part for part in block_maps(source.encoder) if part is not None})
        self.maps = nn.ParameterDict(
            {_name(part): nn.Parameter(nn.init.xavier_normal_(torch.empty(part[1], self.width))) for part in mapped}
        )

    def forward(self, rows: Rows, like_BN: Tensor) -> Tensor:
        """`like_BN`: anything with a row per row of the batch, in the number format of the result."""
        parts: dict[tuple[int, int], Tensor] = {}
        for part, key in zip(self.parts, self.keys, strict=True):
            if key in rows:
                x_B1D = rows.fields([key])
                parts[part] = parts[part] + x_B1D if part in parts else x_B1D
        total_B1D = like_BN.new_zeros(like_BN.shape[0], 1, self.width)
        for part, x_B1D in parts.items():
            total_B1D = total_B1D + self._placed(part, x_B1D)
        return total_B1D

    def _placed(self, part: tuple[int, int], x_B1D: Tensor) -> Tensor:
        """The columns of a part within, or mapped to, the full width."""
        if _name(part) in self.maps:
            lifted_B1D: Tensor = x_B1D @ self.maps[_name(part)]
            return lifted_B1D
        place, dim = part
        return functional.pad(x_B1D, (place, self.width - place - dim))


class Chain(nn.Module):
    """Rows of all blocks -> (B, 1, width): tanh(BN(h)) of h = W_n ( ... W_1 e_1 + b_1 ... ) + b_n.

    A row of the batch enters where a block holds it: h_1 = e_1 and h_{k+1} = W_k h_k + b_k [held by one of 1 to k] +
    e_{k+1}, so that each map is one product over the batch.
    """

    def __init__(self, source: BlocksSource) -> None:
        super().__init__()
        self.keys, widths = list(source.keys), chain_widths(source.encoder)
        self.maps = nn.ModuleList(dense(before, after) for before, after in pairwise(widths))
        self.norm = Settling(source.width, eps=SMALLEST)

    def forward(self, rows: Rows, like_BN: Tensor) -> Tensor:
        """`like_BN` is for what `Blocks` needs it for."""
        x_BD: Tensor = self.norm(self.lifted(rows))
        return x_BD.tanh()[:, None]

    def lifted(self, rows: Rows) -> Tensor:
        """Before the normalisation, (B, width)."""
        h_BD, held_B = rows.fields(self.keys[:1]).squeeze(1), rows.held[self.keys[0]]
        for number, map_ in enumerate(self.maps, start=1):
            assert isinstance(map_, nn.Linear)
            h_BD = functional.linear(h_BD, map_.weight) + held_B[:, None] * map_.bias
            if number < len(self.keys):
                h_BD = h_BD + rows.fields([self.keys[number]]).squeeze(1)
                held_B = held_B | rows.held[self.keys[number]]
        return h_BD


class Settling(BatchNorm):
    """Keeps the plain mean of the first batches' statistics, then a running one: they hold from the second batch on.

    Fresh rows have a variance far below 1, at which kept ones start, and on a stream the first batches count.
    """

    def forward(self, x_BN: Tensor) -> Tensor:
        if not self.training or x_BN.shape[0] < 2:
            return super().forward(x_BN)
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            # On the device, for asking it for the number would hold up every step.
            rate = self.num_batches_tracked.to(self.running_mean.dtype).reciprocal().clamp(min=MOMENTUM)
            variance_N, mean_N = torch.var_mean(x_BN.to(self.running_mean.dtype), dim=0)
            self.running_mean.lerp_(mean_N, rate)
            self.running_var.lerp_(variance_N, rate)
        return functional.batch_norm(x_BN, None, None, self.weight, self.bias, True, 0.0, self.eps)


def _name(part: tuple[int, int]) -> str:
    """Of a map: the column at which its parts begin, and their width."""
    return f"{part[0]}+{part[1]}"
