"""One model on several processes: TorchRec's `DistributedModelParallel` and what `fit` needs around it.

Tables that are trained densely (`optim.lazily`) live on every process, their gradients averaged. The others live whole
on one process each, where TorchRec's planner puts them, and are trained as in one process: FBGEMM's fused optimizers on
CPU know neither Adam nor its penalty, and its dense kernel pays for every row at every step, so the kernel's look-up is
replaced by that of a `Pool`, whose gradient is sparse.

Tables that sequences read (`EmbeddingCollection`) stay on every process too: in FBGEMM 1.8 the dense kernel on CPU
takes "no pooling" for "sum", without a word, and then writes where it should not.

Dropout is drawn by each process and batch norm uses each process's rows; without them, losses are those of one process.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from trainer.data import Batch
from trainer.device import device
from trainer.modules.tables import Ids, Pool, Tables, padded
from trainer.optim import lazily
from trainer.pieces import Piece
from trainer.processes import rank_and_world
from trainer.settings import TrainSettings


def placed(model: nn.Module, settings: TrainSettings, *, partly: bool = False) -> nn.Module:
    """A built model where it will train: on this process's device, or spread over all processes (`shard`)."""
    return model.to(device()) if rank_and_world()[1] == 1 else shard(model, settings, partly=partly)


def shard(model: nn.Module, settings: TrainSettings, *, partly: bool = False) -> nn.Module:
    """Spread a built model over the processes of the default group; each must pass the same model.

    Args:
        model: as `build.build` makes it; its tables may be empty.
        settings: of the training that follows.
        partly: not every parameter has a part in every step (supernets).

    Returns:
        The model as `DistributedModelParallel`, with the same weights under the same names. Its loss must be the mean
        over this process's rows: gradients are averaged over the processes.
    """
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DefaultDataParallelWrapper

    weights = {name: value.clone() for name, value in model.state_dict().items() if not value.is_meta}
    tables = next(module for module in model.modules() if isinstance(module, Tables))
    tables.release()
    here = device()
    model._apply(lambda value: value if value.is_meta else value.to(here))  # type: ignore[no-untyped-call]
    sharder = EmbeddingBagCollectionSharder()
    sharded: nn.Module = DistributedModelParallel(
        model,
        device=here,
        plan=_plan(model, tables, sharder, settings),
        sharders=[sharder],
        data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=not partly, find_unused_parameters=partly),
    )
    specs = {f"tables.{spec.parameter}": spec for spec in tables.specs}
    for name, value in local_weights(sharded).items():  # TorchRec has drawn some of its own
        if name in weights:
            value.copy_(weights[name])
        else:
            tables.draw(specs[name], value)
    if tables.bags is not None:
        tables.pools = [pool for kernel in _kernels(tables.bags) for pool in _take_over(kernel, tables)]
    return sharded


def unwrapped(model: nn.Module) -> Any:
    """The built model (`build.Model`) inside a sharded one."""
    return getattr(model, "module", model)


def ahead(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, each begun while the one before it is trained on; of a sharded model its ids travel meanwhile."""
    tables: Tables = unwrapped(model).tables
    for batch, following in itertools.pairwise(itertools.chain(batches, [None])):
        assert batch is not None
        if following is not None:
            tables.send(following)
        yield batch


def local_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers that live on this process, by their names in the whole model (not copies)."""
    return {name: held[0].tensor for name, held in pieces(model).items()}


def pieces(model: nn.Module) -> dict[str, list[Piece]]:
    """The same as pieces of the whole, which other processes may hold too. Names that this one has no part of lack."""
    held = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, ShardedTensor):
            held[name] = [Piece.whole(value)]
        elif shards := value.local_shards():
            shape = tuple(value.size())
            held[name] = [Piece(s.tensor.detach(), shape, tuple(s.metadata.shard_offsets)) for s in shards]
    return held


def _plan(model: nn.Module, tables: Tables, sharder: Any, settings: TrainSettings) -> Any:
    """Where each table of the bags goes: TorchRec's planner decides for those that are not on every process."""
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.types import Topology
    from torchrec.distributed.types import ShardingPlan

    if tables.bags is None:
        return ShardingPlan({})
    everywhere = ParameterConstraints(sharding_types=["data_parallel"], compute_kernels=["dense"])
    somewhere = ParameterConstraints(sharding_types=["table_wise"], compute_kernels=["fused"])
    constraints = {
        spec.name: somewhere if lazily(sum(one.rows for one in group), settings) else everywhere
        for group in tables.groups()
        for spec in group
    }
    world = dist.get_world_size()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    memory = psutil.virtual_memory().total // here
    kind = device().type
    gpu = torch.cuda.mem_get_info()[1] if kind == "cuda" else None
    topology = Topology(world, kind, hbm_cap=gpu, ddr_cap=memory, local_world_size=here)
    rows = -(-settings.batch_size // world)
    planner = EmbeddingShardingPlanner(topology=topology, batch_size=rows, constraints=constraints)
    plan: Any = planner.collective_plan(model, [sharder], dist.group.WORLD)
    for tables_plan in plan.plan.values():
        for placed in tables_plan.values():
            placed.compute_kernel = "dense"
    return plan


def _kernels(collection: Any) -> list[Any]:
    """The kernels of a sharded collection that hold this process's own tables."""
    from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup

    lookups = [one for one in collection._lookups if isinstance(one, GroupedPooledEmbeddingsLookup)]
    return [kernel for lookup in lookups for kernel in lookup._emb_modules]


def _take_over(kernel: Any, tables: Tables) -> list[Pool]:
    """Have the tables of a dense kernel looked up, and their gradients computed, by pools."""
    by_name = {spec.name: spec for spec in tables.specs}
    specs = [by_name[table.name] for table in kernel.config.embedding_tables]
    first, pools = 0, []
    for (dim, *_), group in itertools.groupby(specs, key=lambda spec: (spec.dim, spec.part, spec.block and spec.name)):
        held = list(group)
        last = first + dim * sum(spec.rows for spec in held)
        weight = kernel.emb_module.weights.detach()[first:last].view(-1, dim)
        pools.append(Pool(held, weight, sharded=True))
        first = last

    def look_up(indices: Tensor, offsets: Tensor, *_: object, **__: object) -> Tensor:
        """What FBGEMM's kernel gives, for bags of one id at most: ids of tables * batch bags -> (batch, sum of dims).

        The tables of a pool have ids in the same bags: in all, or, being a block or of one part, in some.
        """
        held_FB = (offsets.diff() > 0).view(len(specs), -1)
        parts, begin = [], 0
        for pool in pools:
            end = begin + len(pool.specs)
            first, last = offsets[[begin * held_FB.shape[1], end * held_FB.shape[1]]].tolist()
            ids_NF = indices[first:last].view(len(pool.specs), (last - first) // len(pool.specs)).t() + pool.first_F
            x_ND = pool.look_up(Ids(ids_NF)).flatten(1)
            parts.append(x_ND if len(x_ND) == held_FB.shape[1] else padded(x_ND, held_FB[begin][:, None]).x.flatten(1))
            begin = end
        return torch.cat(parts, dim=1)

    kernel.emb_module.forward = look_up
    return pools
