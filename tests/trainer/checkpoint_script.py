"""One process of trainings that stop in the middle of an epoch: `checkpoint_script FOLDER RANK WORLD EPOCH STEP`.

What is found in FOLDER/<model>/checkpoints is first written again to FOLDER/<model>/again-<WORLD>, by these processes.
Rank 0 writes the losses of those that came to their end.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tests.trainer import sharding_script, small
from trainer.data import Batch, Table
from trainer.fit import _Run, fit
from trainer.sharding import local_weights, shard

MODELS = ("deepfm", "one_table")
# Lazily, so that each table has one home.
SETTINGS = sharding_script.SETTINGS.model_copy(update={"batch_size": 8, "table_optimizer": "lazy_adam"})


class Stop(Exception):  # noqa: N818
    pass


@dataclass(frozen=True)
class Halting(Table):
    """Rows that raise Stop when the given step of the given epoch is asked for."""

    epoch: int = -1
    step: int = -1

    def batches(self, batch_size: int, *, seed_epoch: Any = None, start: int = 0, **rest: Any) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(batch_size, seed_epoch=seed_epoch, start=start, **rest), start):
            if seed_epoch is not None and (seed_epoch[1], step) == (self.epoch, self.step):
                raise Stop
            yield batch


def built(name: str) -> nn.Module:
    return small.zoo_model("deepfm") if name == "deepfm" else small.one_table()


def main(folder: Path, rank: int, world: int, epoch: int, step: int) -> None:
    torch.set_num_threads(1)
    if world > 1:
        store = f"file://{(folder / 'store').resolve()}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(minutes=5))
    rows, valid = small.categorical(320).share(rank, world), small.categorical(101, seed=1).share(rank, world)
    train = Halting(**vars(rows), epoch=epoch, step=step)
    for name in MODELS:
        model = shard(built(name), SETTINGS) if world > 1 else built(name)
        if (folder / name / "checkpoints").exists():
            again(model, train, valid, folder / name, world)
        try:
            result = fit(
                model,
                train,
                valid,
                SETTINGS,
                task="ctr",
                seed=4,
                checkpoints=folder / name / "checkpoints",
                save_seconds=0,
            )
        except Stop:
            continue
        finally:
            tables = [weight for weight in local_weights(model) if ".embedding_bags." in weight]
            (folder / name / f"tables-{rank}-of-{world}.json").write_text(json.dumps(tables))
        if rank == 0:
            losses = [[record.train_loss, record.valid["logloss"]] for record in result.history]
            (folder / name / "losses.json").write_text(json.dumps({"losses": losses, "samples": result.samples}))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def again(model: nn.Module, train: Table, valid: Table, folder: Path, world: int) -> None:
    run = _Run(model, train, valid, SETTINGS, "ctr", 4, None)
    run.resume(folder / "checkpoints", 0)
    assert run.begun.step > 0
    run.resume(folder / f"again-{world}", 0)  # nothing is there
    run._save()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
