"""Look-up, gradient and update of 26 tables alone: ours beside FBGEMM's fused kernel and torch's own modules.

    python -m tests.benchmarks.tables [--categories 10000000] [--rounds 3]

Criteo-shaped ids, width 16, 4096 rows a step, two threads; the gradient is given. Every contender has a process of its
own, and in each round one after the other takes 20 steps. Ours also with small pages of memory.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.benchmarks.criteo_shaped import Criteo
from tests.benchmarks.measure import Turns, answer, questions, result, spread
from trainer.cpu import prepare_process
from trainer.data import Batch
from trainer.modules.tables import Tables, TableSpec
from trainer.optim import Optimizers
from trainer.settings import TrainSettings

BATCH, DIM, STEPS, THREADS = 4096, 16, 20, 2
CONTENDERS = {
    "pools, LazyAdam": "ours",
    "the same in small pages": "small_pages",
    "FBGEMM, fused row-wise Adagrad": "fbgemm",
    "torch, nn.Embedding and SparseAdam": "torch",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--categories", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        work(arguments.contender, arguments.categories)
        return
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.tables",
        "--categories",
        str(arguments.categories),
        "--contender",
    ]
    workers = {name: Turns([*command, contender], THREADS) for name, contender in CONTENDERS.items()}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(arguments.rounds):
        for name, worker in workers.items():
            times[name].append(worker.ask()["ms"])
    for worker in workers.values():
        worker.close()
    figures = {name: spread(found) for name, found in times.items()}
    print(f"{arguments.categories:,} categories, ms per step: median (min to max)")
    for name, found in figures.items():
        print(f"{name:36} {found['median']:6.1f} ({found['min']:.1f} to {found['max']:.1f})")
    result({"tables": {"categories": arguments.categories, "ms": figures}})


def work(contender: str, categories: int) -> None:
    """Take steps whenever asked."""
    if contender == "small_pages" and os.environ.get("NUMPY_MADVISE_HUGEPAGE") != "0":
        os.environ["NUMPY_MADVISE_HUGEPAGE"] = "0"  # NumPy reads it when it is imported
        os.execv(sys.executable, [sys.executable, "-m", "tests.benchmarks.tables", *sys.argv[1:]])
    torch.set_num_threads(THREADS)
    prepare_process()
    table = Criteo(categories).arrays(BATCH * STEPS).table()
    sizes = [field.cardinality for field in table.schema.fields if field.kind == "categorical"]
    ids = [batch.categorical for batch in table.batches(BATCH)]
    step = {"fbgemm": _fbgemm, "torch": _torch}.get(contender, _ours)(sizes)
    gradient = torch.randn(BATCH, len(sizes) * DIM)
    for id_BF in ids:
        step(id_BF, gradient)
    for _ in questions():
        started = time.perf_counter()
        for id_BF in ids:
            step(id_BF, gradient)
        answer({"ms": (time.perf_counter() - started) * 1000 / len(ids)})


Step = Callable[[Tensor, Tensor], None]


def _ours(sizes: list[int]) -> Step:
    names = [f"f{place}" for place in range(len(sizes))]
    specs = [TableSpec(f"t/{name}", "t", size, DIM, name) for name, size in zip(names, sizes, strict=True)]
    tables = Tables(specs, {name: place for place, name in enumerate(names)}, 0.01, seed=1)
    settings = TrainSettings(table_optimizer="lazy_adam", average=0.0)
    optimizers = Optimizers(tables, {spec.parameter for spec in specs}, settings)
    keys = [(spec.name, spec.field or "") for spec in specs]

    def step(id_BF: Tensor, gradient: Tensor) -> None:
        batch = Batch(id_BF, torch.empty(len(id_BF), 0), torch.empty(len(id_BF)))
        tables(batch).fields(keys).flatten(1).backward(gradient)
        optimizers.coalesce()
        optimizers.step()
        optimizers.zero_grad()

    return step


def _fbgemm(sizes: list[int]) -> Step:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen as Bags

    specs = [(size, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU) for size in sizes]
    bags = Bags(specs, optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, learning_rate=1e-3)
    offsets = torch.arange(BATCH * len(sizes) + 1)

    def step(id_BF: Tensor, gradient: Tensor) -> None:
        bags(id_BF.t().reshape(-1), offsets).backward(gradient)

    return step


def _torch(sizes: list[int]) -> Step:
    tables = nn.ModuleList(nn.Embedding(size, DIM, sparse=True) for size in sizes)
    optimizer = torch.optim.SparseAdam(list(tables.parameters()))

    def step(id_BF: Tensor, gradient: Tensor) -> None:
        columns = zip(tables, id_BF.unbind(1), strict=True)
        torch.cat([table(id_B) for table, id_B in columns], dim=1).backward(gradient)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
