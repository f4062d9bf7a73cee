"""Which part of a routed model computes which rows (`trainer.architecture.RoutedHead`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from trainer.data import Batch
from trainer.index import unpacked

_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Share:
    """The N rows of a batch that one part computes."""

    batch: Batch
    places: Tensor | None = None
    """(N,): theirs in the whole batch; None where these are all of its rows, in their order."""

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """Sequence field -> (N, T) bool, True for valid steps."""
        ids = self.batch.sequences
        return {
            name: torch.arange(ids[name].shape[1], device=ids[name].device) < lengths[:, None]
            for name, lengths in self.batch.lengths.items()
        }

    def spread(self, value_N: Tensor, rows: int) -> Tensor:
        """The values at the places of their rows in the whole batch, 0 elsewhere, (rows,)."""
        return value_N if self.places is None else value_N.new_zeros(rows).index_copy_(0, self.places, value_N)


class Router(nn.Module):
    """The group of each row: the votes of its categories are added up, and the greatest sum wins.

    Votes are whole numbers, so that a row's group depends on nothing else, least of all on the rows beside it.
    """

    def __init__(self, votes: Mapping[str, str], columns: Mapping[str, int], groups: int) -> None:
        """Take the votes out of a description.

        Args:
            votes: packed, by field.
            columns: position of each categorical field in `Batch.categorical`.
            groups: number of parts.
        """
        super().__init__()
        self.groups, self.columns = groups, [columns[field] for field in votes]
        vote_FRC = [torch.frombuffer(bytearray(unpacked(text)), dtype=torch.int8) for text in votes.values()]
        tables = [vote_N.view(-1, groups - 1) for vote_N in vote_FRC]
        sizes = torch.tensor([0, *(len(vote_RC) for vote_RC in tables)])
        self.votes: Tensor
        self.first_F: Tensor
        # The description holds the votes: a model's weights are what was learned.
        self.register_buffer("votes", torch.cat(tables), persistent=False)
        self.register_buffer("first_F", sizes.cumsum(0)[:-1], persistent=False)

    def forward(self, id_BC: Tensor) -> Tensor:
        """The categorical columns of B rows -> (B,) int64."""
        row_BF = id_BC[:, self.columns].long() + self.first_F
        vote_BFG = self.votes.index_select(0, row_BF.flatten()).view(*row_BF.shape, self.groups - 1)
        sum_BG = vote_BFG.sum(dim=1, dtype=torch.int32)
        return torch.cat([sum_BG.new_zeros(len(sum_BG), 1), sum_BG], dim=1).argmax(dim=1)

    def groups_of(self, id_NC: Tensor) -> Tensor:
        """The same for the rows of a table, (N, columns) -> (N,), on the CPU."""
        parts = [self(part_BC.to(self.votes.device)).cpu() for part_BC in torch.split(id_NC, _ROWS_AT_ONCE)]
        return torch.cat(parts)

    def shares(self, batch: Batch) -> list[Share]:
        """The rows of each group, in their order."""
        group_B = self(batch.categorical)
        return [_share(batch, (group_B == group).nonzero().squeeze(1)) for group in range(self.groups)]


def _share(batch: Batch, places: Tensor) -> Share:
    return Share(batch.at(places), places)


def put_together(parts: Sequence[tuple[Tensor, Share]]) -> Tensor:
    """What was computed of all shares, (N, ...) each, in the order of the batch."""
    places_B = torch.cat([share.places for _, share in parts if share.places is not None])
    back_B = torch.empty_like(places_B).scatter_(0, places_B, torch.arange(len(places_B), device=places_B.device))
    return torch.cat([value for value, _ in parts]).index_select(0, back_B)
