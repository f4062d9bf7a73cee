"""Step `search`: find architectures and tune the hand-made models, all as trials of Optuna studies in one worker pool.

Output:
    studies/<name>.journal  the Optuna study of the method and of each baseline
    architectures.json      what the train step trains: the best of the method first, then each baseline at its best
    trials.parquet          every trial of every study
    search.json             the method's search in numbers

A killed step goes on where its studies stand: finished trials stay, running ones resume at their last epoch.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import polars as pl

from components.events import Emit
from components.settings import SearchSpec, TrainSpec
from components.tracking import Tracker
from trainer import zoo
from trainer.candidate import candidate_space
from trainer.errors import UserError
from trainer.methods import METHODS, summary
from trainer.schema import DatasetSchema
from trainer.shapes import count
from trainer.study import WAIT, Study, Trial, TrialRecord
from trainer.workers import Epoch, Job, Message, Outcome, discard, run_jobs

BASELINE = "zoo"


def search(spec: SearchSpec, train: TrainSpec, dataset: Path, output: Path, emit: Emit, tracker: Tracker) -> None:
    """Run every study to its end and write what the train step needs.

    Raises:
        UserError: the dataset does not fit a model or the method, or no trial of a study gave a model.
    """
    studies = _studies(spec, train, DatasetSchema.load(dataset), output)
    run = _Run(studies, spec, dataset, output, emit, tracker)
    run_jobs(run.next_job, spec.workers, run.on_message)
    chosen = [entry for study in studies for entry in _chosen(study, spec, train)]
    (output / "architectures.json").write_text(json.dumps(chosen, indent=1))
    _trials(studies).write_parquet(output / "trials.parquet")
    (output / "search.json").write_text(json.dumps(_facts(studies[0], spec), indent=1))
    discard(output / "checkpoints")


class _Run:
    """The trials in flight, what to train next, and what the user sees of it."""

    def __init__(
        self, studies: list[Study], spec: SearchSpec, dataset: Path, output: Path, emit: Emit, tracker: Tracker
    ) -> None:
        self.studies, self.spec, self.dataset, self.output = studies, spec, dataset, output
        self.emit, self.tracker = emit, tracker
        self.running: dict[str, tuple[Study, Trial]] = {}
        self.best = {study.name: min(_values(study), default=math.inf) for study in studies}
        self.started = time.monotonic()
        self.progress()

    def next_job(self) -> Job | Literal["wait"] | None:
        """The next trial of the first study that has one ready: while one study waits, the next goes on."""
        waiting = False
        for study in self.studies:
            trial = study.next()
            if isinstance(trial, Trial):
                return self._job(study, trial)
            waiting = waiting or trial == WAIT
        return "wait" if waiting else None

    def on_message(self, message: Message) -> None:
        study, trial = self.running[message.key]
        if isinstance(message, Epoch):
            study.report(trial.number, message.epoch, message.best)
            self.tracker.log_epoch(message.key, message.epoch, {"train_loss": message.train_loss, **message.valid})
            return
        if message.fatal:
            raise UserError(f"search trial {message.key}: {message.error}")
        self._finish(study, trial, message)
        discard(self.output / "checkpoints" / message.key)
        del self.running[message.key]
        self.progress()

    def progress(self) -> None:
        done = sum(record.state != "running" for study in self.studies for record in study.records())
        total = sum(study.trials for study in self.studies)
        left = [record.seconds for study in self.studies for record in study.records() if record.seconds]
        mean = sum(left) / len(left) if left else None
        self.emit(
            "progress",
            done=done,
            total=total,
            unit="trials",
            best=_finite(self.best[self.studies[0].name]),
            seconds_left=None if mean is None else mean * (total - done) / self.spec.workers,
        )

    def _job(self, study: Study, trial: Trial) -> Job:
        key = f"{study.name}-{trial.number}"
        self.running[key] = (study, trial)
        return Job(
            key=key,
            dataset=self.dataset,
            candidate=trial.candidate.model_dump(mode="json", by_alias=True),
            seed=self.spec.seed,
            checkpoints=self.output / "checkpoints" / key,
            thresholds=trial.thresholds,
        )

    def _finish(self, study: Study, trial: Trial, outcome: Outcome) -> None:
        study.finish(
            trial.number,
            outcome.value,
            curve=outcome.curve,
            samples=outcome.samples,
            seconds=outcome.seconds,
            pruned=outcome.stopped == "pruned",
            attrs={"valid": outcome.valid} if outcome.error is None else {"error": outcome.error},
        )
        self.tracker.log_trial(
            outcome.key,
            params=trial.params,
            metrics={**outcome.valid, "seconds": outcome.seconds, "samples": outcome.samples},
            tags={"architecture": trial.candidate.architecture.hash, "stopped": outcome.stopped},
            status="FINISHED" if outcome.error is None else "FAILED",
        )
        if outcome.error is not None:
            self.emit("note", text=f"trial {outcome.key} gave no model: {outcome.error}")
        elif outcome.value is not None and outcome.value < self.best[study.name]:
            self.best[study.name] = outcome.value
            head = f"{study.name}: trial {trial.number} is the best so far, {outcome.value:.5f}"
            self.emit("best", study=study.name, text=f"{head}\n{summary(trial.candidate, trial.params)}")


def _studies(spec: SearchSpec, train: TrainSpec, schema: DatasetSchema, output: Path) -> list[Study]:
    """The method's study first, then one for each baseline."""
    folder = output / "studies"
    folder.mkdir(exist_ok=True)

    def study(name: str, template: dict[str, Any], trials: int) -> Study:
        space = candidate_space(template, train.settings(), spec.tune)
        return Study(
            folder / f"{name}.journal",
            name,
            space,
            sampler=spec.sampler,
            trials=trials,
            lag=2 * spec.workers - 1,
            seed=spec.seed,
            prune=spec.prune,
        )

    studies = []
    if spec.method != "none":
        template = METHODS[spec.method].space(schema, getattr(spec, spec.method))
        studies.append(study(spec.method, template, spec.trials))
    for baseline in train.baselines:
        studies.append(study(baseline.name, zoo.template(baseline.name, schema), baseline.trials or spec.trials))
    if not studies:
        raise UserError("nothing to train: name a search.method or at least one of train.baselines")
    return studies


def _chosen(study: Study, spec: SearchSpec, train: TrainSpec) -> Iterator[dict[str, Any]]:
    """The study's best candidates as the train step takes them."""
    found = study.name == spec.method
    best = study.best(train.candidates if found else 1)
    if not best:
        errors = [str(record.attrs["error"]) for record in study.records() if "error" in record.attrs]
        raise UserError(f"no trial of {study.name} gave a model: {errors[0] if errors else 'all were pruned'}")
    for rank, record in enumerate(best, start=1):
        yield {
            "name": f"{study.name}-{rank}" if found else study.name,
            "origin": "found" if found else BASELINE,
            **record.candidate.model_dump(mode="json", by_alias=True),
            "hash": record.candidate.hash,
            "params": record.params,
            "search": {**_cost(study), "value": record.value, "number": record.number},
        }


def _cost(study: Study) -> dict[str, float]:
    records = study.records()
    seconds = sum(record.seconds for record in records)
    return {"trials": len(records), "seconds": seconds, "samples": sum(record.samples for record in records)}


def _facts(study: Study, spec: SearchSpec) -> dict[str, Any]:
    return {"method": spec.method, "sampler": spec.sampler, **_cost(study)}


def _trials(studies: list[Study]) -> pl.DataFrame:
    return pl.DataFrame(
        [_row(study, record) for study in studies for record in study.records()], infer_schema_length=None
    )


def _row(study: Study, record: TrialRecord) -> dict[str, Any]:
    counts = count(record.candidate.architecture)
    return {
        "study": study.name,
        "number": record.number,
        "state": record.state,
        "value": record.value,
        "hash": record.candidate.hash,
        "tables": counts.tables,
        "lifts": counts.lifts,
        "dense": counts.dense,
        "flops": counts.flops,
        "seconds": record.seconds,
        "samples": record.samples,
        "duplicate_of": record.duplicate_of,
        "params": json.dumps(record.params),
        "curve": list(record.curve),
    }


def _values(study: Study) -> Iterator[float]:
    return (record.value for record in study.records() if record.value is not None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
