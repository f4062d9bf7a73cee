"""The processes of one training (those of torchrun), and what they tell each other. Alone: rank 0 of 1, and no talk."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes: (0, 1) outside torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather_rows(mine: Tensor) -> Tensor:
    """On every process: the rows of all of them, (n_0 + n_1 + ..., ...), where process r holds n_r in `mine`."""
    _, world = rank_and_world()
    if world == 1:
        return mine
    rows = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(rows, torch.tensor([mine.shape[0]]))
    longest = max(int(count) for count in rows)
    padded = torch.cat([mine, mine.new_zeros(longest - mine.shape[0], *mine.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, rows, strict=True)])


def most(value: int) -> int:
    """The greatest of the processes' numbers."""
    if rank_and_world()[1] == 1:
        return value
    greatest = torch.tensor(value)
    dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
    return int(greatest)


def summed(value: Tensor) -> Tensor:
    """The sum of the processes' tensors, in place."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(value)
    return value
