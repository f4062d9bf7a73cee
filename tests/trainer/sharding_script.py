"""One process of a sharded training: `sharding_script FOLDER MODEL RANK WORLD`; rank 0 writes what came out."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.trainer import small
from trainer.checkpoint import save_weights
from trainer.fit import fit, predict
from trainer.settings import TrainSettings
from trainer.sharding import local_weights, shard

SETTINGS = TrainSettings(
    batch_size=64,
    epochs=3,
    patience=3,
    learning_rate=0.01,
    table_l2=1e-3,
    weight_decay=1e-3,
    average=0.9,
    precision="fp32",  # bf16 would round two half batches otherwise than one whole
)


def main(folder: Path, name: str, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    if world > 1:
        store = f"file://{(folder / 'store').resolve()}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(minutes=5))
    rows = {"small": small.table, "routed": small.table, "sasrec": small.chain}.get(name, small.categorical)
    made = {
        "small": small.model,
        "sasrec": lambda: small.next_item_model("sasrec"),
        "indexed": small.indexed,
        "routed": small.routed_model,
    }
    settings = SETTINGS.model_copy(update={"table_optimizer": "auto" if name == "small" else "lazy_adam"})
    train, valid = rows(320).share(rank, world), rows(101, seed=1).share(rank, world)
    built = made[name]() if name in made else small.zoo_model(name)
    model = shard(built, settings) if world > 1 else built
    result = fit(model, train, valid, settings, task=train.schema.task, seed=4, checkpoints=folder / "checkpoints")
    predictions = predict(model, valid)
    save_weights(model, folder / "weights.safetensors")
    held = [name for name in local_weights(model) if ".embedding_bags." in name]
    facts = {
        "train": [record.train_loss for record in result.history],
        "valid": [list(record.valid.values()) for record in result.history],
        "samples": result.samples,
        "predictions": predictions.tolist(),
        "tables": held,
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(facts))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
