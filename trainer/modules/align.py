"""Bringing fields of unequal widths to one: learned linear maps, or zeros at the end or between."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.modules.values import StepGroups, Steps, Value, flatten
from trainer.shapes import Collected


class Lift(nn.Module):
    """One bias-free linear map per field: (B, M, d) -> (B, M, width)."""

    def __init__(self, fields: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fields, width_in, width_out))
        for map_IO in self.weight.data:
            nn.init.xavier_normal_(map_IO)

    def forward(self, x_BMD: Tensor) -> Tensor:
        return torch.bmm(x_BMD.transpose(0, 1), self.weight).transpose(0, 1)


class Align(nn.Module):
    """V and F inputs as fields of one width: (B, M, width).

    `widths` gives for each input the widths of its fields, `collected` the common width and the fields to be lifted.
    """

    def __init__(self, widths: Sequence[tuple[int, ...]], collected: Collected) -> None:
        super().__init__()
        self.width = collected.width
        blocks = [block for input_widths in widths for block in _blocks(input_widths)]
        lifted = {lift.position for lift in collected.lifts}
        self.lifts = nn.ModuleDict()
        position = 0
        for index, (fields, width) in enumerate(blocks):
            if position in lifted:
                self.lifts[str(index)] = Lift(fields, width, self.width)
            position += fields

    def forward(self, values: Sequence[Value]) -> Tensor:
        parts = [self._block(index, x_BMD) for index, x_BMD in enumerate(_as_blocks(values))]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _block(self, index: int, x_BMD: Tensor) -> Tensor:
        if str(index) in self.lifts:
            lifted: Tensor = self.lifts[str(index)](x_BMD)
            return lifted
        missing = self.width - x_BMD.shape[2]
        return functional.pad(x_BMD, (0, missing)) if missing else x_BMD


class Placed(nn.Module):
    """M fields whose numbers fill the columns `places` of vectors that are zero elsewhere: (B, M, width)."""

    def __init__(self, places: Sequence[Sequence[int]], width: int) -> None:
        super().__init__()
        self.fields, self.width = len(places), width
        flat = [field * width + place for field, filled in enumerate(places) for place in filled]
        self.register_buffer("place_N", torch.tensor(flat), persistent=False)
        self.place_N: Tensor

    def forward(self, values: Sequence[Value]) -> Tensor:
        x_BN = flatten(values)
        zeros = x_BN.new_zeros(len(x_BN), self.fields * self.width)
        return zeros.index_copy(1, self.place_N, x_BN).view(-1, self.fields, self.width)


def _blocks(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """(fields, width) of the tensors that an input consists of: one if its widths are equal, else one per field."""
    return [(len(widths), widths[0])] if len(set(widths)) == 1 else [(1, width) for width in widths]


def _as_blocks(values: Sequence[Value]) -> list[Tensor]:
    blocks: list[Tensor] = []
    for value in values:
        assert not isinstance(value, Steps | StepGroups)
        for x in value if isinstance(value, list) else [value]:
            blocks.append(x if x.dim() == 3 else x[:, None])
    return blocks
