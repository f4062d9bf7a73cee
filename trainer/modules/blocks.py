"""A field's vector put together from blocks of its table: categories of unlike frequency may have unlike widths."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.architecture import RowsEncoder
from trainer.modules.tables import Key, Rows


@dataclass(frozen=True)
class BlocksSource:
    """A field with a rows encoder: for each block the table that holds it, and the column where its part begins."""

    field: str
    width: int
    keys: Sequence[Key]
    places: Sequence[int]
    encoder: RowsEncoder

    def joins(self, other: object) -> bool:
        """Never: unlike those of whole tables its parts are looked up one by one."""
        return False


class Blocks(nn.Module):
    """Rows of all blocks -> (B, 1, width). A block that rests adds nothing, and its map has no gradient."""

    def __init__(self, source: BlocksSource) -> None:
        super().__init__()
        self.keys, self.places, self.width = list(source.keys), list(source.places), source.width
        self.maps = nn.ParameterDict()
        for number, block in enumerate(source.encoder.blocks):
            if source.encoder.align == "lift" and block.dim < source.width:
                self.maps[str(number)] = nn.Parameter(nn.init.xavier_normal_(torch.empty(block.dim, source.width)))

    def forward(self, rows: Rows, like_BN: Tensor) -> Tensor:
        """`like_BN`: anything with a row per row of the batch, in the number format of the result."""
        total_B1D = like_BN.new_zeros(like_BN.shape[0], 1, self.width)
        for number, (key, place) in enumerate(zip(self.keys, self.places, strict=True)):
            if key in rows:
                total_B1D = total_B1D + self._part(str(number), place, rows.fields([key]))
        return total_B1D

    def _part(self, number: str, place: int, x_B1D: Tensor) -> Tensor:
        if number in self.maps:
            lifted_B1D: Tensor = x_B1D @ self.maps[number]
            return lifted_B1D
        return functional.pad(x_B1D, (place, self.width - place - x_B1D.shape[2]))
