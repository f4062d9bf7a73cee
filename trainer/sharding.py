"""One model on several processes: TorchRec's `DistributedModelParallel` over gloo, and what `fit` needs around it.

Each table of an `EmbeddingBagCollection` lives whole on one process, the rest of the model on all of them. Tables keep
TorchRec's dense compute kernel, so that Adam and its L2 penalty work as in one process (FBGEMM's fused optimizers on
CPU know neither). The planner refuses that kernel for placed tables, though the sharded module runs it; so the plan is
made here.

Tables that sequences read (`EmbeddingCollection`) stay on every process, their gradients averaged: in FBGEMM 1.8 the
dense kernel on CPU takes "no pooling" for "sum", without a word, and then writes where it should not.

Dropout is drawn by each process and batch norm uses each process's rows; without them, losses are those of one process.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes: (0, 1) outside torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shard(model: nn.Module) -> nn.Module:
    """Spread a model over the processes of the default group; each must pass the same model.

    Returns:
        The model as `DistributedModelParallel`, with the same weights under the same names. Its loss must be the mean
        over this process's rows: gradients are averaged over the processes.
    """
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.types import ShardingPlan

    weights = {name: value.clone() for name, value in model.state_dict().items()}
    sharder = _bag_sharder()
    bags = {name: module for name, module in model.named_modules() if isinstance(module, sharder.module_type)}
    loads = [0] * rank_and_world()[1]
    plan = ShardingPlan({name: _place(module, sharder, loads) for name, module in bags.items()})
    sharded: nn.Module = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=[sharder])
    for name, value in local_weights(sharded).items():
        value.copy_(weights[name])  # the sharded collection has drawn fresh ones
    return sharded


def local_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers that live on this process, by their names in the whole model (not copies)."""
    local = {}
    for name, value in model.state_dict().items():
        shards = value.local_shards() if isinstance(value, ShardedTensor) else []
        if shards:
            local[name] = shards[0].tensor.detach()
        elif not isinstance(value, ShardedTensor):
            local[name] = value
    return local


def gather(state: dict[str, Any]) -> dict[str, Any] | None:
    """Merge the processes' states (nested dicts) on rank 0; None elsewhere. One process: the state itself."""
    rank, world = rank_and_world()
    if world == 1:
        return state
    parts: list[Any] = [None] * world
    dist.gather_object(state, parts if rank == 0 else None)
    return _merge(parts) if rank == 0 else None


def gather_rows(mine: Tensor) -> Tensor:
    """On every process: the rows of all, where process r holds the rows r, r + world, ... in `mine` (n,)."""
    _, world = rank_and_world()
    if world == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(parts, mine)
    return torch.stack(parts, 1).flatten()


def mean_over_processes(value: float) -> float:
    """The mean of a number over the processes, the same everywhere."""
    _, world = rank_and_world()
    if world == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / world


def _merge(parts: list[Any]) -> Any:
    """Union of nested dicts; where several processes hold the same entry, it is the same value."""
    if not isinstance(parts[0], dict):
        return parts[0]
    merged: dict[str, list[Any]] = {}
    for part in parts:
        for key, value in part.items():
            merged.setdefault(key, []).append(value)
    return {key: _merge(values) for key, values in merged.items()}


def _place(collection: nn.Module, sharder: Any, loads: list[int]) -> Any:
    """Give each table, largest first, to the process with the least to hold; `loads` counts the weights placed."""
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise

    tables = sharder.shardable_parameters(collection)
    generators = {}
    for name in sorted(tables, key=lambda name: (-tables[name].numel(), name)):
        rank = loads.index(min(loads))
        loads[rank] += tables[name].numel()
        generators[name] = table_wise(rank=rank, compute_kernel="dense")
    in_order = {name: generators[name] for name in tables}
    world = len(loads)
    return construct_module_sharding_plan(
        collection, in_order, sharder=sharder, local_size=world, world_size=world, device_type="cpu"
    )


def _bag_sharder() -> Any:
    """TorchRec's sharder, with the dense kernel allowed for placed tables."""
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

    class DenseSharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
        def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
            return ["dense"]

    return DenseSharder()
