"""Rows per second of training DeepFM (8 categorical fields, dim 16, MLP 128-128) on one thread, validation included.

    python -m tests.benchmarks.training_speed [--rows 400000] [--batch-size 4096] [--table-optimizer adam] [--average 0]

Figures are per second of processor time, so that a busy machine measures alike, and per second of wall time.
"""

import argparse
import time

import numpy as np
import torch

from trainer import zoo
from trainer.architecture import Architecture
from trainer.build import build
from trainer.data import Table
from trainer.fit import fit
from trainer.schema import DatasetSchema, Field
from trainer.settings import TrainSettings
from trainer.space import fill_params

CARDINALITIES = (6041, 3707, 3, 8, 22, 3440, 302, 82)
"""Those of MovieLens-1M."""


def table(rows: int, seed: int) -> Table:
    random = np.random.default_rng(seed)
    ids = np.stack([(size * random.random(rows) ** 3).astype(np.int32) for size in CARDINALITIES], 1)
    label = (random.random(rows) < 0.5).astype(np.float32)
    fields = tuple(Field(name=f"f{i}", kind="categorical", cardinality=size) for i, size in enumerate(CARDINALITIES))
    schema = DatasetSchema(
        task="ctr",
        label="label",
        fields=fields,
        rows={"train": rows, "valid": rows, "test": 0},
        label_mean=0.5,
        label_min=0,
        label_max=1,
    )
    return Table(schema, torch.from_numpy(ids), torch.empty(rows, 0), torch.from_numpy(label), {})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--table-optimizer", default="adam")
    parser.add_argument("--average", type=float, default=0.0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    train, valid = table(chosen.rows, 0), table(chosen.rows // 8, 1)
    description = fill_params(zoo.template("deepfm", train.schema), {"mlp.dropout": 0})
    model = build(Architecture.from_dict(description), label_mean=0.5, table_init=0.01, seed=1)
    settings = TrainSettings(
        epochs=3,
        patience=3,
        table_l2=1e-4,
        batch_size=chosen.batch_size,
        table_optimizer=chosen.table_optimizer,
        average=chosen.average,
    )
    started = time.process_time()
    result = fit(model, train, valid, settings, task="ctr", seed=1)
    processor = time.process_time() - started
    print(
        f"{result.samples / processor:,.0f} rows per processor second, {result.samples / result.seconds:,.0f} by clock"
    )


if __name__ == "__main__":
    main()
