"""Training on two gloo processes of one thread each, beside one process of two threads: same model, same rows.

    python -m tests.benchmarks.two_processes [--categories 1000000] [--rows 500000] [--rounds 3]

DeepFM (dim 16, MLP 400x3), 4096 rows per step over all processes, `fit` with its default settings. Every round starts
both groups afresh, one after the other, and measures their second epoch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.benchmarks.criteo_shaped import Arrays, Criteo, deepfm
from tests.benchmarks.measure import StepClock, quiet, result, show, spread
from trainer.build import build
from trainer.distributed import PATIENCE
from trainer.fit import EpochRecord, fit
from trainer.processes import rank_and_world
from trainer.settings import TrainSettings
from trainer.sharding import shard

BATCH, WARM_UP = 4096, 3
GROUPS = {"one process of two threads": (1, 2), "two processes of one thread": (2, 1)}
"""Processes, and threads of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--categories", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in GROUPS}
    with tempfile.TemporaryDirectory() as folder:
        Criteo(arguments.categories).arrays(arguments.rows).save(Path(folder))
        for _ in range(arguments.rounds):
            for name, (processes, threads) in GROUPS.items():
                found[name].append(_run(Path(folder), processes, threads))
    rates = {name: spread(answer["samples_per_s"] for answer in answers) for name, answers in found.items()}
    one, two = (rates[name]["median"] for name in GROUPS)
    print(f"{arguments.categories:,} categories, {arguments.rounds} rounds, samples/s: median (min to max)")
    for name, figures in rates.items():
        print(f"{name:28} {show(figures)}   validation log loss {found[name][-1]['logloss']:.4f}")
    print(f"two / one: {two / one:.2f}")
    result({"two_processes": {"samples_per_s": rates, "two_over_one": two / one}})


def _run(folder: Path, processes: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "tests.benchmarks.two_processes", "--worker", str(folder)]
    ended = subprocess.run(command, env=quiet(threads), capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{processes} processes ended with exit code {ended.returncode}:\n{ended.stderr}")
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def work(folder: Path) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group("gloo", timeout=PATIENCE)
    data = Arrays.load(folder)
    rank, world = rank_and_world()
    train, valid = data.table().share(rank, world), data.head(BATCH).table().share(rank, world)
    settings = TrainSettings(batch_size=BATCH, epochs=2, patience=2)
    built = build(deepfm(train.schema), label_mean=train.schema.label_mean, table_init=settings.table_init, seed=1)
    model = shard(built, settings) if world > 1 else built
    clock = StepClock(model)
    epochs: list[list[float]] = []

    def on_epoch(record: EpochRecord) -> bool:
        epochs.append(clock.take()[WARM_UP:])
        return False

    fitted = fit(model, train, valid, settings, task="ctr", seed=1, on_epoch=on_epoch)
    if rank == 0:
        rate = BATCH * len(epochs[1]) / sum(epochs[1])
        print(json.dumps({"samples_per_s": rate, "logloss": fitted.history[1].valid["logloss"]}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
