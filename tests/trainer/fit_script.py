"""A training as a process of its own that kills itself with SIGKILL in mid-epoch: `fit_script FOLDER EPOCH STEP`.

Without EPOCH and STEP it runs to its end and writes the final weights and the history.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.trainer import small
from trainer.checkpoint import save_weights
from trainer.data import Batch, Table
from trainer.fit import fit
from trainer.settings import TrainSettings

SETTINGS = TrainSettings(
    batch_size=8, epochs=5, patience=5, learning_rate=0.01, table_optimizer="lazy_adam", table_l2=1e-3, average=0.9
)


@dataclass(frozen=True)
class Deadly(Table):
    """Rows that kill the process when the given step of the given epoch is asked for."""

    epoch: int = -1
    step: int = -1

    def batches(self, batch_size: int, *, seed_epoch: Any = None, start: int = 0, **rest: Any) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(batch_size, seed_epoch=seed_epoch, start=start, **rest), start):
            if seed_epoch is not None and (seed_epoch[1], step) == (self.epoch, self.step):
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def main(folder: Path, epoch: int = -1, step: int = -1) -> None:
    torch.set_num_threads(1)
    rows = small.table(400)
    train = Deadly(rows.schema, rows.categorical, rows.numeric, rows.label, rows.sequences, epoch=epoch, step=step)
    model = small.model(dropout=0.3, norm="batch")
    seen: list[int] = []
    result = fit(
        model,
        train,
        small.table(200, seed=1),
        SETTINGS,
        task="ctr",
        seed=5,
        checkpoints=folder / "checkpoints",
        save_seconds=0,
        on_epoch=lambda record: bool(seen.append(record.epoch)),
    )
    save_weights(model, folder / "weights.safetensors")
    history = [[r.epoch, r.train_loss, r.valid, r.best, r.samples] for r in result.history]
    facts = {"history": history, "best_epoch": result.best_epoch, "samples": result.samples, "seen": seen}
    (folder / "result.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
