"""The evaluate step: the test split is read once, every model is compared on it, and the champion is shipped.

Output: report.json and report.html (`docs/report.md`), predictions.parquet (row, label, and what the shipped model
answers on the test split) and model/ (an MLflow model folder, see `components.serve`).
"""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from components import report, serve
from components.bins import learned_bins
from components.events import Emit
from components.paired import PairedLosses, Vector
from components.serve import Answers, answer, item_names, score
from components.settings import EvaluateSpec
from components.tracking import Tracker
from trainer import data, metrics
from trainer.architecture import Architecture
from trainer.build import Model
from trainer.data import Table
from trainer.metrics import HIGHER_IS_BETTER
from trainer.schema import DatasetSchema
from trainer.shapes import count

LATENCY_CALLS = 50
THROUGHPUT_ROWS = 10_000


def evaluate(
    pipeline: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
    output: Path,
    emit: Emit,
    tracker: Tracker,
) -> dict[str, Any]:
    """Compare the models of the train step and write the report and the champion's MLflow model; returns the report.

    Args:
        pipeline: name of the pipeline.
        settings: all sections of the spec, every default filled in; `settings["evaluate"]` is an EvaluateSpec.
        inputs: output folders of the steps `ingest`, `search` and `train`.
        output: an existing folder; gets report.json, report.html, predictions.parquet and model/.
        emit: takes progress events.
        tracker: takes figures, artifacts and the registration.
    """
    spec = EvaluateSpec.model_validate(settings["evaluate"])
    schema = DatasetSchema.load(inputs["ingest"])
    models: list[dict[str, Any]] = _read(inputs["train"] / "models.json")
    metric = spec.metric or metrics.MAIN[schema.task]
    comparison = _Comparison(schema, data.load(inputs["ingest"], "test", schema), metric, inputs["train"])
    champion = min(models, key=lambda model: comparison.validation(model))
    emit("progress", done=0, total=len(models), unit="models")
    entries = []
    file = output / "losses.partial"
    losses = PairedLosses(file, [model["name"] for model in models], comparison.test.rows)
    for model in models:
        entries.append(comparison.entry(model, losses))
        emit("progress", done=len(entries), total=len(models), unit="models")
    beaten = losses.beaten()
    for entry in entries:
        entry["against_champion"] = losses.test(entry["name"], champion["name"])
        entry["beats"] = beaten[entry["name"]]
    file.unlink()
    shipped = comparison.shipped(champion, inputs["ingest"])
    facts = _facts(pipeline, settings, inputs, schema, metric, _ranked(entries, metric), champion["name"])
    facts["shipped"] = {"seed": shipped.seed, "registered_as": spec.register_as, "alias": "champion"}
    _write(facts, output)
    shipped.predictions.write_parquet(output / "predictions.parquet")
    shutil.rmtree(output / "model", ignore_errors=True)  # what a killed evaluation may have left half-written
    serve.save(output / "model", comparison.architecture(champion), shipped.weights, inputs["ingest"])
    _track(tracker, facts, output, spec.register_as)
    value = next(entry["metrics"]["test"][metric]["mean"] for entry in entries if entry["name"] == champion["name"])
    emit("champion", name=champion["name"], metric=metric, value=value, registered_as=spec.register_as)
    return facts


@dataclass(frozen=True)
class _Shipped:
    """The seed of the champion that is registered: the one that is best on the validation split."""

    seed: int
    weights: Path
    predictions: pl.DataFrame
    """On the test split: `row`, the position there, `label`, and what the model is served with."""


class _Comparison:
    """All models on one test split."""

    def __init__(self, schema: DatasetSchema, test: Table, metric: str, trained: Path) -> None:
        self.schema, self.test, self.metric, self.trained = schema, test, metric, trained
        self.sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
        self.label: Vector = test.label.numpy().astype(np.float64)

    def architecture(self, model: dict[str, Any]) -> Architecture:
        return Architecture.from_dict(model["architecture"])

    def validation(self, model: dict[str, Any]) -> float:
        """Mean validation metric over the seeds, lower is better: what the champion is chosen by."""
        return self.sign * float(np.mean([seed["valid"][self.metric] for seed in model["seeds"]]))

    def entry(self, model: dict[str, Any], losses: PairedLosses) -> dict[str, Any]:
        """The model's line of the leaderboard, as far as it needs no other model; its losses go to `losses`."""
        architecture = self.architecture(model)
        counts = count(architecture)
        losses[model["name"]], test = self._test(model)
        seeds = model["seeds"]
        first = self._load(model, seeds[0])
        return {
            "name": model["name"],
            "origin": model["origin"],
            "hash": model["hash"],
            "architecture": model["architecture"],
            "training": model["training"],
            "metrics": {"test": _summaries(test), "valid": _summaries([seed["valid"] for seed in seeds])},
            "parameters": {"tables": counts.tables, "lifts": counts.lifts, "dense": counts.elsewhere},
            "flops": counts.flops,
            "search_trials": model["search"]["trials"],
            "search_seconds": model["search"]["seconds"],
            "search_samples": model["search"]["samples"],
            "train_seconds": sum(seed["seconds"] for seed in seeds),
            "train_samples": sum(seed["samples"] for seed in seeds),
            "seeds": [{key: seed[key] for key in ("seed", "best_epoch", "epochs", "seconds")} for seed in seeds],
            "figures": learned_bins(first, self.schema),
            "latency": self._latency(first),
        }

    def shipped(self, champion: dict[str, Any], dataset: Path) -> _Shipped:
        best = min(champion["seeds"], key=lambda seed: self.sign * seed["valid"][self.metric])
        answers = Answers(self._load(champion, best), item_names(dataset, self.schema))
        facts = {"row": np.arange(self.test.rows), "label": answers.labels(self.test), **answers(self.test)}
        return _Shipped(best["seed"], self.trained / best["weights"], pl.DataFrame(facts))

    def _load(self, model: dict[str, Any], seed: dict[str, Any]) -> Model:
        return serve.load_model(self.architecture(model), self.schema, self.trained / seed["weights"])

    def _test(self, model: dict[str, Any]) -> tuple[Vector, list[dict[str, float]]]:
        """Losses of the rows (N,), their mean over the seeds, and the metrics of each seed."""
        losses, measured = np.zeros(self.test.rows), []
        for seed in model["seeds"]:
            prediction = score(self._load(model, seed), self.test)
            losses += metrics.losses(self.schema.task, self.label, prediction) / len(model["seeds"])
            measured.append(self._metrics(prediction))
        return losses, measured

    def _metrics(self, prediction: Vector) -> dict[str, float]:
        measured = metrics.evaluate(self.schema.task, self.label, prediction)
        group = self.schema.group
        if self.schema.task == "ctr" and group is not None and group in self.schema.names("categorical"):
            measured["gauc"] = metrics.gauc(self.label, prediction, self.test.ids(group).numpy())
        # Where every user has one test row nothing can be ranked within users.
        return {name: value for name, value in measured.items() if not np.isnan(value)}

    def _latency(self, model: Model) -> dict[str, float]:
        """Milliseconds for one row (median), and rows per second in a batch, from encoded rows to predictions."""
        rows = torch.arange(THROUGHPUT_ROWS) % self.test.rows
        single = [self.test.select(rows[i : i + 1]) for i in range(LATENCY_CALLS)]
        batch = self.test.select(rows)
        for table in (*single[:5], batch):
            answer(model, table)
        times = [_seconds(model, table) for table in single]
        return {
            "row_milliseconds": 1000 * float(np.median(times)),
            "rows_per_second": THROUGHPUT_ROWS / min(_seconds(model, batch) for _ in range(3)),
        }


def _seconds(model: Model, table: Table) -> float:
    started = time.perf_counter()
    answer(model, table)
    return time.perf_counter() - started


def _summaries(measured: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, deviation and values over seeds (ddof = 1; 0 for one seed) of each metric."""
    summaries = {}
    for name in measured[0]:
        values = [float(seed[name]) for seed in measured]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        summaries[name] = {"mean": float(np.mean(values)), "std": std, "values": values}
    return summaries


def _ranked(entries: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Best first, each with its Pareto mark: no other model is better and not larger, or as good and smaller."""
    sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0

    def position(entry: dict[str, Any]) -> tuple[float, float]:
        return sign * entry["metrics"]["test"][metric]["mean"], sum(entry["parameters"].values())

    ranked = sorted(entries, key=position)
    front = (-math.inf, math.inf)
    for entry in ranked:
        place = position(entry)
        entry["pareto"] = place == front or place[1] < front[1]
        if entry["pareto"]:
            front = place
    return ranked


def _facts(
    pipeline: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
    schema: DatasetSchema,
    metric: str,
    leaderboard: list[dict[str, Any]],
    champion: str,
) -> dict[str, Any]:
    """The content of report.json."""
    trials = pl.read_parquet(inputs["search"] / "trials.parquet").to_dicts()
    return {
        "version": 1,
        "pipeline": pipeline,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": schema.task,
        "metric": metric,
        "leaderboard": leaderboard,
        "champion": champion,
        "searches": _read(inputs["search"] / "search.json"),
        "trials": [{**trial, "params": json.loads(trial["params"])} for trial in trials],
        "data": {
            "rows": dict(schema.rows),
            "rejected": schema.rejected,
            "label": {
                "name": schema.label,
                "mean": schema.label_mean,
                "min": schema.label_min,
                "max": schema.label_max,
            },
            "target": schema.target,
            "group": schema.group,
            "fields": [field.model_dump(exclude={"statistics"}) for field in schema.fields],
            "statistics": _read(inputs["ingest"] / "statistics.json"),
        },
        "settings": dict(settings),
    }


def _write(facts: dict[str, Any], output: Path) -> None:
    (output / "report.json").write_text(json.dumps(facts, indent=1))
    (output / "report.html").write_text(report.page(facts))


def _track(tracker: Tracker, facts: dict[str, Any], output: Path, register_as: str | None) -> None:
    champion = next(entry for entry in facts["leaderboard"] if entry["name"] == facts["champion"])
    figures = {f"test_{name}": summary["mean"] for name, summary in champion["metrics"]["test"].items()}
    figures |= {f"parameters_{part}": size for part, size in champion["parameters"].items()}
    tracker.log_metrics({**figures, "flops": champion["flops"]})
    tracker.log_metrics(figures, on_parent=True)
    for entry in facts["leaderboard"]:
        tested = {f"test_{name}": summary["mean"] for name, summary in entry["metrics"]["test"].items()}
        spread = {f"test_{name}_std": summary["std"] for name, summary in entry["metrics"]["test"].items()}
        tracker.log_trial(entry["name"], params={"origin": entry["origin"]}, metrics={**tested, **spread})
    for name in ("report.json", "report.html"):
        tracker.log_artifact(output / name)
    tracker.log_artifact(output / "predictions.parquet")
    if register_as is not None:
        tracker.register(output / "model", register_as)


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
