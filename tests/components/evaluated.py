"""Output folders of the evaluate step and those before, made small by the real parts: ingest, zoo, builder and fit."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from components import evaluate as step
from components.dataset import DatasetSpec
from components.ingest import ingest
from components.settings import EvaluateSpec, SearchSpec, TrainSpec
from components.tracking import Tracker
from trainer import data, fit, space, zoo
from trainer.architecture import Architecture
from trainer.build import build
from trainer.checkpoint import save_weights
from trainer.schema import DatasetSchema
from trainer.settings import TrainSettings
from trainer.shapes import count

PLANTED: dict[str, Any] = {
    "rows": 6000,
    "mean": 0.3,
    "fields": {
        "user": {"cardinality": 40, "effect": 0.5},
        "item": {"cardinality": 30, "effect": 0.5},
        "age": {"effect": 0.4, "missing": 0.1},
    },
    "interactions": [{"fields": ["user", "item"], "strength": 0.9}],
}
SETTINGS = TrainSettings(epochs=2, batch_size=256, learning_rate=5e-3)


def settings(task: str = "ctr", register: str | None = None, source: Path | None = None) -> dict[str, Any]:
    """All sections of a spec, as a step gets them; for next items `source` is a sequence file."""
    planted = PLANTED | ({"mean": 3.5, "noise": 0.5} if task == "rating" else {})
    rows = (
        {"format": "planted", "planted": planted} if source is None else {"format": "sequence", "source": str(source)}
    )
    sections = {
        "dataset": DatasetSpec.model_validate({"task": task, **rows}),
        "search": SearchSpec(trials=3),
        "train": TrainSpec(seeds=2, baselines=["fm", "deepfm"]),
        "evaluate": EvaluateSpec(register=register, metric=None if source is None else "ndcg_at_10"),
    }
    return {name: section.model_dump(mode="json") for name, section in sections.items()} | {"tracking": {"uri": None}}


def evaluation(
    root: Path,
    inputs: dict[str, Path],
    task: str = "ctr",
    register: str | None = None,
    source: Path | None = None,
) -> Path:
    """The output folder of the evaluate step for `inputs`."""
    output = root / "evaluate.partial"
    output.mkdir()
    with Tracker(output, pipeline="small", step="evaluate") as tracker:
        step.evaluate("small", settings(task, register, source), inputs, output, lambda *_, **__: None, tracker)
    return output


def steps(
    root: Path, task: str = "ctr", names: tuple[str, ...] = ("mlp", "fm", "deepfm"), source: Path | None = None
) -> dict[str, Path]:
    """The folders ingest, search and train below `root`; the first model counts as found by the search."""
    folders = {name: root / name for name in ("ingest", "search", "train")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    dataset = settings(task, source=source)["dataset"]
    ingest(DatasetSpec.model_validate(dataset), folders["ingest"], lambda *_: None)
    schema = DatasetSchema.load(folders["ingest"])
    models = [_model(name, name == names[0], schema, folders) for name in names]
    (folders["train"] / "models.json").write_text(json.dumps(models))
    _write_search(folders["search"], models)
    return folders


def _model(name: str, found: bool, schema: DatasetSchema, folders: dict[str, Path]) -> dict[str, Any]:
    architecture = Architecture.from_dict(space.fill(zoo.template(name, schema), lambda choice: choice.default))
    return {
        "name": "autorec-1" if found else name,
        "origin": "found" if found else "zoo",
        "architecture": architecture.to_dict(),
        "training": SETTINGS.model_dump(mode="json"),
        "hash": architecture.hash,
        "search": {"trials": 3, "seconds": 1.5, "samples": 15_000, "value": 0.5},
        "seeds": [_seed(name, architecture, seed, schema, folders) for seed in (1, 2)],
    }


def _seed(
    name: str, architecture: Architecture, seed: int, schema: DatasetSchema, folders: dict[str, Path]
) -> dict[str, Any]:
    train, valid = (data.load(folders["ingest"], split, schema) for split in ("train", "valid"))
    model = build(architecture, label_mean=schema.label_mean, table_init=SETTINGS.table_init, seed=seed)
    result = fit.fit(model, train, valid, SETTINGS, task=schema.task, seed=seed)
    weights = f"weights/{name}-seed-{seed}.safetensors"
    (folders["train"] / "weights").mkdir(exist_ok=True)
    save_weights(model, folders["train"] / weights)
    return {
        "seed": seed,
        "weights": weights,
        "valid": result.history[result.best_epoch].valid,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "seconds": result.seconds,
        "samples": result.samples,
    }


def _write_search(folder: Path, models: list[dict[str, Any]]) -> None:
    trials = [
        {
            "study": model["name"].removesuffix("-1"),
            "number": number,
            "state": "complete",
            "value": 0.6 - 0.01 * number,
            "hash": f"{model['hash']}{number}",
            "tables": counts.tables,
            "lifts": counts.lifts,
            "dense": counts.dense,
            "flops": counts.flops,
            "seconds": 0.5,
            "samples": 5000,
            "duplicate_of": 0 if number == 2 else None,
            "params": json.dumps({"training.learning_rate": 0.005}),
            "curve": [0.61, 0.6],
        }
        for model in models
        for counts in [count(Architecture.from_dict(model["architecture"]))]
        for number in range(3)
    ]
    pl.DataFrame(trials).write_parquet(folder / "trials.parquet")
    facts = {"method": "autorec", "sampler": "bayesian", "trials": 3, "seconds": 1.5, "samples": 15_000}
    (folder / "search.json").write_text(json.dumps([facts]))
