"""Whether a model fits a cluster, and how fast it would train there, without the cluster: TorchRec's planner on meta
tensors.

The tables are those that the builder would make, the sharding and the time of each shard come from TorchRec's planner.
Counted here, for the planner knows nothing of it: what the optimizer and `fit` keep beside each weight, the dense part
on every GPU, and the width that FBGEMM gives a row on a GPU. Sizes are bytes, GiB are 1024**3; times are milliseconds.
"""

import gc
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from operator import add
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.constants import UVM_CACHING_RATIO
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.perf_models import NoopPerfModel, NoopStorageModel
from torchrec.distributed.planner.proposers import GreedyProposer, GridSearchProposer, UniformProposer
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import (
    CollectiveType,
    ParameterConstraints,
    PlannerError,
    ShardEstimator,
    Stats,
    Storage,
)

from trainer.architecture import Architecture
from trainer.build import build, table_specs
from trainer.data import Batch
from trainer.modules.tables import Tables, TableSpec
from trainer.settings import TrainSettings
from trainer.shapes import count

TablePrecision = Literal["fp32", "fp16", "bf16", "int8"]

BYTES: dict[TablePrecision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Per weight of a table. An int8 row has a scale and a bias of four bytes each besides."""
_DTYPES: dict[TablePrecision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
INT8_ROW = 8

RESERVE = 0.15
"""Share of each GPU's memory that stays free: CUDA's own, fragments, buffers of NCCL, gradients of activations."""
DENSE_FLOPS = 20e12
"""Floating-point operations per second that the dense part is taken to run at: an assumption (an A100 in fp32)."""
GRID, GREEDY, GREEDY_WIDE, WIDE = 200, 500, 30, 10_000
"""Most proposals of a full search, beyond which only others are tried, and of each of the two greedy ones; fewer where
there are more than WIDE tables times ranks.
"""
UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Cluster:
    """`nodes` machines with `gpus` each. `hbm`: bytes of a GPU; `host`: bytes of a machine that tables may take."""

    nodes: int
    gpus: int
    hbm: int
    host: int = 0

    @property
    def world(self) -> int:
        return self.nodes * self.gpus


@dataclass(frozen=True)
class Problem:
    """What is to be trained: a live architecture, its settings, and the number format of its tables."""

    architecture: Architecture
    settings: TrainSettings
    precision: TablePrecision = "fp32"

    @cached_property
    def specs(self) -> list[TableSpec]:
        return table_specs(self.architecture)

    @property
    def kept(self) -> int:
        """Copies of each weight beside it, as `fit` keeps them: that of the best epoch; with a running average its
        sum, and the weights that are put aside while the average is validated.
        """
        return 3 if self.settings.average else 1

    def table_bytes(self, rows: int, dim: int) -> int:
        """Weights of a table or of a shard of it."""
        return rows * (padded(dim) * BYTES[self.precision] + (INT8_ROW if self.precision == "int8" else 0))

    def optimizer_bytes(self, rows: int, dim: int) -> int:
        """Adam's two values for each weight, in fp32 whatever the weights are in."""
        return 4 * rows * 2 * padded(dim)

    def kept_bytes(self, rows: int, dim: int) -> int:
        return self.kept * self.table_bytes(rows, dim)

    @cached_property
    def size(self) -> int:
        """Bytes of all tables with all that is kept beside their weights, once."""
        return sum(self.row_bytes(spec) * spec.rows for spec in self.specs)

    def row_bytes(self, spec: TableSpec) -> int:
        return sum(size(1, spec.dim) for size in (self.table_bytes, self.optimizer_bytes, self.kept_bytes))


def padded(dim: int) -> int:
    """Numbers that a row takes on a GPU: FBGEMM's CUDA kernels know widths in fours only."""
    return -(-dim // 4) * 4


class _Sum:
    """Values that are added one by one."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(add, vars(self).values(), vars(other).values()))


@dataclass(frozen=True)
class Times(_Sum):
    """TorchRec's estimate of one step, by its parts, in milliseconds."""

    forward_compute: float = 0.0
    forward_comms: float = 0.0
    backward_compute: float = 0.0
    backward_comms: float = 0.0
    prefetch: float = 0.0

    @property
    def total(self) -> float:
        return float(sum(vars(self).values()))


@dataclass(frozen=True)
class Memory(_Sum):
    """Bytes of one shard, or of all shards of a rank. Host memory holds weights, optimizer and copies alike.

    `tables`: weights, or the cache of weights that lie in the host. `io`: ids and looked-up rows. `gradients`: of
    tables that every rank has.
    """

    tables: int = 0
    optimizer: int = 0
    copies: int = 0
    gradients: int = 0
    io: int = 0
    host: int = 0

    @property
    def hbm(self) -> int:
        return int(sum(vars(self).values())) - self.host


@dataclass(frozen=True)
class Shard:
    """A part of a table on one rank: `rows` x `dim` of it."""

    rank: int
    rows: int
    dim: int
    memory: Memory
    times: Times


@dataclass(frozen=True)
class Placement:
    """One table: its size, and where and how it would be trained."""

    name: str
    rows: int
    dim: int
    sharding: str
    kernel: str
    shards: tuple[Shard, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Those that hold rows of it."""
        return tuple(sorted({shard.rank for shard in self.shards if shard.rows}))

    @property
    def memory(self) -> Memory:
        return sum((shard.memory for shard in self.shards), start=Memory())


@dataclass(frozen=True)
class Dense:
    """The part that every rank has: all weights outside TorchRec's tables, for one rank.

    `weights`: bytes of the weights, their gradients, Adam's two moments and the copies that are kept. `activations`:
    what autograd keeps of a batch. `inputs`: TorchRec's reserve for ids on their way. Times in milliseconds, an
    estimate from multiply-adds (`compute`) and from the weights' gradients (`comms`).
    """

    parameters: int
    multiply_adds: int
    weights: int
    activations: int
    inputs: int
    compute: float
    comms: float

    @property
    def hbm(self) -> int:
        return self.weights + self.activations + self.inputs


@dataclass(frozen=True)
class Rates:
    """What the times rest on, TorchRec's defaults: bytes per second of a GPU's memory, of host memory from a GPU, of a
    GPU within its machine, and of a GPU to other machines; and DENSE_FLOPS.
    """

    hbm: float
    host: float
    inside: float
    across: float
    flops: float


@dataclass(frozen=True)
class Plan:
    """Where every table goes. If the model does not fit, this is the plan for GPUs that would hold it (`needs`)."""

    cluster: Cluster
    batch: int
    """Rows per rank and step."""
    tables: tuple[Placement, ...]
    dense: Dense
    rates: Rates
    needs: int
    """Bytes of HBM of each GPU for which this plan is made: the cluster's, or more if the model does not fit."""

    @property
    def fits(self) -> bool:
        return self.needs <= self.cluster.hbm

    @property
    def budget(self) -> int:
        """Bytes of each GPU that may be used."""
        return usable(self.cluster.hbm)

    @cached_property
    def ranks(self) -> tuple[tuple[Memory, Times], ...]:
        """Tables' memory and times, by rank."""
        loads = [(Memory(), Times())] * self.cluster.world
        for shard in (shard for table in self.tables for shard in table.shards):
            memory, times = loads[shard.rank]
            loads[shard.rank] = (memory + shard.memory, times + shard.times)
        return tuple(loads)

    def hbm(self, rank: int) -> int:
        """Bytes used of a rank's HBM, the dense part included."""
        return self.ranks[rank][0].hbm + self.dense.hbm

    @property
    def fullest(self) -> int:
        return max(range(self.cluster.world), key=self.hbm)

    @property
    def slowest(self) -> int:
        return max(range(self.cluster.world), key=lambda rank: self.ranks[rank][1].total)

    @property
    def missing(self) -> int:
        """Bytes that the fullest GPU has too little; 0 if the model fits."""
        return max(0, self.hbm(self.fullest) - self.budget)

    @property
    def step(self) -> float:
        """Milliseconds of a step: the slowest rank's parts and the dense part, one after another."""
        return self.ranks[self.slowest][1].total + self.dense.compute + self.dense.comms


def usable(hbm: int) -> int:
    """Bytes of a GPU that a plan may use."""
    return int((1 - RESERVE) * hbm)


def plan(problem: Problem, cluster: Cluster) -> Plan:
    """The fastest plan that the planner finds; if none fits, `even_plan`."""
    planner = _Planner(problem, cluster)
    options = planner.solve(cluster.hbm, NoopPerfModel(planner.topology))
    return even_plan(problem, cluster) if options is None else planner.plan(options)


def even_plan(problem: Problem, cluster: Cluster) -> Plan:
    """The plan that asks least of the fullest GPU: large tables cut by rows over all ranks, small ones whole on one.

    With host memory it is the fastest of these that fits, and where none does, the one with the most in the host.
    """
    planner = _Planner(problem, cluster, even=True)
    options = planner.solve(cluster.hbm, NoopPerfModel(planner.topology)) if cluster.host else None
    if options is None:
        options = planner.solve(UNLIMITED, NoopStorageModel(planner.topology))
    assert options is not None, "without a limit every proposal is a plan"
    return planner.plan(options)


class _Planner:
    """One problem on one cluster. The search space is made once, for it does not depend on the GPUs' size.

    `even`: see `even_plan`. Otherwise what cannot win is left out: host memory where there is none or for what is
    small, and columns of what is one block of columns. Where tables and ranks are many (`wide`), small tables are not
    cut up and fewer proposals are made.
    """

    def __init__(self, problem: Problem, cluster: Cluster, *, even: bool = False) -> None:
        self.problem, self.cluster, self.even = problem, cluster, even
        self.batch = -(-problem.settings.batch_size // cluster.world)
        self.wide = len(problem.specs) * cluster.world > WIDE
        self.tables = _meta_tables(problem)
        self.sharders = [EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder()]
        with _quiet():
            self.topology = self._topology(cluster.hbm)
            self.constraints = {spec.name: self._constraint(spec) for spec in problem.specs}
            estimator = _Estimator(self.topology, self.constraints, problem)
            self.enumerator = EmbeddingEnumerator(self.topology, self.batch, self.constraints, estimator)
        self.dense = self._dense()

    def solve(self, hbm: int, rating: Any) -> list[Any] | None:
        """TorchRec's sharding options of the best plan for GPUs of `hbm` bytes, or None."""
        if not self.problem.specs:
            return []
        with _quiet():
            reservation = HeuristicalStorageReservation(
                RESERVE, dense_tensor_estimate=self.dense.hbm - self.dense.inputs
            )
            kept = _Kept()
            planner = EmbeddingShardingPlanner(
                topology=self._topology(hbm),
                batch_size=self.batch,
                enumerator=self.enumerator,
                storage_reservation=reservation,
                proposer=[GridSearchProposer(GRID), UniformProposer(), *self._greedy()],
                performance_model=rating,
                stats=kept,
                constraints=self.constraints,
            )
            try:
                with _uncollected():
                    planner.plan(self.tables, self.sharders)
            except PlannerError:
                return None
        return kept.options

    def _greedy(self) -> list[Any]:
        most = GREEDY_WIDE if self.wide else GREEDY
        return [_Greedy(most, use_depth=use_depth) for use_depth in (True, False)]

    def _topology(self, hbm: int) -> Topology:
        cluster = self.cluster
        return Topology(
            world_size=cluster.world,
            compute_device="cuda",
            hbm_cap=hbm,
            ddr_cap=cluster.host // cluster.gpus,
            ssd_cap=0,
            local_world_size=cluster.gpus,
        )

    def _constraint(self, spec: TableSpec) -> ParameterConstraints:
        types, kernels = ["data_parallel", "table_wise"], ["dense", "fused"]
        large = self.problem.row_bytes(spec) * spec.rows / self.problem.size > SMALL / self.cluster.world
        if self.even:
            types, kernels = ["row_wise" if large else "table_wise"], ["fused"]
        elif large or not self.wide:
            types += ["row_wise", "table_row_wise"]
            types += ["column_wise", "table_column_wise"] if padded(spec.dim) > COLUMNS else []
        if large and self.cluster.host:
            kernels += ["fused_uvm", "fused_uvm_caching"]
        fields = self.problem.architecture.fields
        lengths = [1.0] if spec.field else []
        lengths += [float(fields[name].max_len) for name in spec.sequences]
        return ParameterConstraints(sharding_types=types, compute_kernels=kernels, pooling_factors=lengths)

    def _dense(self) -> Dense:
        architecture, topology = self.problem.architecture, self.topology
        counts = count(architecture)
        parameters = counts.total - sum(spec.rows * spec.dim for spec in self.problem.specs)
        ids = sum(sum(self.constraints[spec.name].pooling_factors) for spec in self.problem.specs)
        reduced = topology.comms_bandwidths.get_bw(self.cluster.gpus, self.cluster.world, CollectiveType.ALL_REDUCE)
        return Dense(
            parameters=parameters,
            multiply_adds=counts.flops,
            weights=4 * parameters * (4 + self.problem.kept),
            activations=math.ceil(saved_bytes(architecture) * self.batch),
            inputs=math.ceil(ids * self.batch * 8) * 20,  # HeuristicalStorageReservation's own rule
            compute=6 * counts.flops * self.batch / DENSE_FLOPS * 1e3,
            comms=2 * 4 * parameters / reduced if self.cluster.world > 1 else 0.0,
        )

    def plan(self, options: Sequence[Any]) -> Plan:
        specs = {spec.name: spec for spec in self.problem.specs}
        tables = tuple(self._placement(specs[option.name], option) for option in options)
        order = {name: position for position, name in enumerate(specs)}
        topology = self.topology
        rates = Rates(
            hbm=topology.hbm_mem_bw * 1e3,
            host=topology.hbm_to_ddr_mem_bw * 1e3,
            inside=topology.intra_host_bw * 1e3,
            across=topology.inter_host_bw * 1e3,
            flops=DENSE_FLOPS,
        )
        tables = tuple(sorted(tables, key=lambda table: order[table.name]))
        found = Plan(self.cluster, self.batch, tables, self.dense, rates, needs=self.cluster.hbm)
        # The least size whose usable part holds the fullest GPU, to the next 1/10 GiB.
        needs = math.ceil(found.hbm(found.fullest) / (1 - RESERVE) / _TENTH) * _TENTH
        return found if found.missing == 0 else replace(found, needs=needs)

    def _placement(self, spec: TableSpec, option: Any) -> Placement:
        kernel: str = option.compute_kernel
        return Placement(
            name=spec.name,
            rows=spec.rows,
            dim=spec.dim,
            sharding=option.sharding_type,
            kernel=kernel,
            shards=tuple(
                Shard(
                    rank=shard.rank,
                    rows=shard.size[0],
                    dim=min(shard.size[1], spec.dim),
                    memory=_memory(self.problem, kernel, shard.size, shard.storage.hbm),
                    times=Times(
                        shard.perf.fwd_compute,
                        shard.perf.fwd_comms,
                        shard.perf.bwd_compute,
                        shard.perf.bwd_comms,
                        shard.perf.prefetch_compute,
                    ),
                )
                for shard in option.shards
            ),
        )


_TENTH = 1024**3 // 10
SMALL = 0.01
"""A table of less than this share of what falls on each rank is not worth cutting up."""
COLUMNS = 128
"""TorchRec cuts no narrower column blocks than this."""


def _memory(problem: Problem, kernel: str, size: Sequence[int], hbm: int) -> Memory:
    """A shard's bytes by their purpose; `hbm`: all of them in HBM, as `_Estimator` has added them up."""
    own = _kept_beside(problem, kernel, size)
    if kernel == "fused_uvm":
        return replace(own, io=hbm)
    if kernel == "fused_uvm_caching":
        cached = math.prod(size) * BYTES[problem.precision] * UVM_CACHING_RATIO
        cache = math.ceil(cached) + math.ceil(size[0] * (4 + 16 * UVM_CACHING_RATIO))
        return replace(own, tables=cache, io=hbm - cache)
    weights = problem.table_bytes(*size)
    return replace(own, tables=weights, io=hbm - weights - own.hbm)


def _kept_beside(problem: Problem, kernel: str, size: Sequence[int]) -> Memory:
    """What TorchRec does not count: the optimizer's values, copies, gradients; with tables in the host all of these."""
    optimizer, copies = problem.optimizer_bytes(*size), problem.kept_bytes(*size)
    if kernel.startswith("fused_uvm"):
        return Memory(host=problem.table_bytes(*size) + optimizer + copies)
    # A dense kernel's gradient is as large as the table; DDP uses it as its bucket.
    gradients = problem.table_bytes(*size) if kernel == "dense" else 0
    return Memory(optimizer=optimizer, copies=copies, gradients=gradients)


class _Greedy(GreedyProposer):  # type: ignore[misc]
    """TorchRec's: each table as fast as can be, then step by step the largest into less memory; here not for ever."""

    def __init__(self, most: int, *, use_depth: bool) -> None:
        super().__init__(use_depth=use_depth)
        self.left = most

    def propose(self) -> Any:
        self.left -= 1
        return super().propose() if self.left >= 0 else None


class _Estimator(ShardEstimator):  # type: ignore[misc]
    """TorchRec's estimates of time and memory, and what is kept beside the weights.

    Shards of one size cost the same, so of each option one shard per size is estimated: with 128 ranks that is what
    makes planning quick.
    """

    def __init__(self, topology: Topology, constraints: Any, problem: Problem) -> None:
        self.problem = problem
        self.estimators = [
            EmbeddingPerfEstimator(topology, constraints),
            EmbeddingStorageEstimator(topology, constraints),
        ]

    def estimate(self, sharding_options: list[Any], sharder_data_map: Any = None) -> None:
        every = [option.shards for option in sharding_options]
        for option in sharding_options:
            option.shards = list({tuple(shard.size): shard for shard in option.shards}.values())
        for estimator in self.estimators:
            estimator.estimate(sharding_options, sharder_data_map)
        for option, shards in zip(sharding_options, every, strict=True):
            sizes = {tuple(shard.size): self._with_own(option, shard) for shard in option.shards}
            for shard in shards:
                shard.perf, shard.storage = sizes[tuple(shard.size)]
            option.shards = shards

    def _with_own(self, option: Any, shard: Any) -> tuple[Any, Any]:
        kernel, storage = option.compute_kernel, shard.storage
        own = _kept_beside(self.problem, kernel, shard.size)
        # TorchRec counts the weights by the tensor's type, which does not know the ends of int8 rows.
        ends = self.problem.table_bytes(*shard.size) - math.prod(shard.size) * BYTES[self.problem.precision]
        if kernel.startswith("fused_uvm"):
            return shard.perf, Storage(hbm=storage.hbm, ddr=own.host)
        return shard.perf, Storage(hbm=storage.hbm + own.hbm + ends, ddr=storage.ddr)


class _Kept(Stats):  # type: ignore[misc]
    """Takes the place of TorchRec's printed report: remembers the best plan."""

    options: list[Any] | None = None

    def log(self, *, best_plan: list[Any], **rest: Any) -> None:
        self.options = best_plan


def _meta_tables(problem: Problem) -> Tables:
    """The model's tables as the GPU would hold them, without memory."""
    specs = (replace(spec, dim=padded(spec.dim)) for spec in problem.specs)
    tables = Tables(specs, {}, table_init=1.0, seed=0, empty=True)
    for module in tables.modules():
        if isinstance(module, nn.EmbeddingBag | nn.Embedding):
            weight = torch.empty_like(module.weight, dtype=_DTYPES[problem.precision])
            module.weight = nn.Parameter(weight, requires_grad=False)
    return tables


def saved_bytes(architecture: Architecture) -> float:
    """Bytes that autograd keeps of one row from the forward pass to the backward pass, sequences at full length.

    Counted, not derived: the same model, its tables cut to two rows, runs one batch.
    """
    rows = 64
    fields = {
        name: field.model_copy(update={"cardinality": min(field.cardinality, 2)})
        for name, field in architecture.fields.items()
    }
    model = build(architecture.model_copy(update={"fields": fields}), label_mean=0.5, table_init=0.01, seed=0)
    weights = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)  # so that no later tensor gets the same address
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(_batch(architecture, rows))
    return sum(saved.values()) / rows


def _batch(architecture: Architecture, rows: int) -> Batch:
    kinds = [field.kind for field in architecture.fields.values()]
    lengths = {name: field.max_len for name, field in architecture.fields.items() if field.kind == "sequence"}
    return Batch(
        categorical=torch.zeros(rows, kinds.count("categorical"), dtype=torch.int64),
        numeric=torch.zeros(rows, kinds.count("numeric")),
        label=torch.zeros(rows),
        sequences={name: torch.zeros(rows, length, dtype=torch.int64) for name, length in lengths.items()},
        lengths={name: torch.full((rows,), length) for name, length in lengths.items()},
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """The planner copies hundreds of thousands of small objects, which the garbage collector walks over and over."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    """TorchRec's planner speaks to people who run clusters; what it says of importance is in the plan."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
