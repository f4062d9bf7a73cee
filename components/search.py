"""Step `search`: find architectures and tune the hand-made models, all as trials of Optuna studies in one worker pool.

Output:
    studies/<name>.journal  the Optuna study of the method and of each baseline, unless they are in a database, and of
                            the sample by which a supernet's scores are held against trainings
    architectures.json      what the train step trains: the best of the method first, then each baseline at its best
    trials.parquet          every trial of every study
    search.json             the method's search in numbers

A killed step goes on where its studies stand: finished trials stay, running ones resume at their last epoch.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
from scipy.stats import kendalltau, spearmanr

from components.events import Emit
from components.settings import SearchSpec, TrainSpec
from components.tracking import Tracker
from trainer import figures, zoo
from trainer.candidate import candidate_space
from trainer.errors import UserError
from trainer.methods.table import METHODS
from trainer.metrics import MAIN
from trainer.schema import DatasetSchema
from trainer.search import run_studies
from trainer.shapes import count
from trainer.space import choice, pinned
from trainer.storage import Database, JournalFile
from trainer.study import Study, TrialRecord
from trainer.summary import summary
from trainer.workers import Epoch, Outcome, discard

BASELINE = "zoo"


TRIALS = "trials"
"""The part of the step that several workers may do side by side."""


@dataclass(frozen=True)
class Shared:
    """Studies in a database, for workers on several machines: `url` for SQLAlchemy, `prefix` of the studies' names."""

    url: str
    prefix: str


def search(
    spec: SearchSpec,
    train: TrainSpec,
    dataset: Path,
    output: Path,
    emit: Emit,
    tracker: Tracker,
    *,
    part: str | None = None,
    shared: Shared | None = None,
) -> None:
    """Run every study to its end and write what the train step needs; with `part` TRIALS only the former.

    Raises:
        UserError: the dataset does not fit a model or the method, or no trial of a study gave a model.
    """
    schema = DatasetSchema.load(dataset)
    opener = _Opener(spec, output, shared)
    studies = _studies(spec, train, schema, opener)
    watcher = _Watcher(studies, spec, MAIN[schema.task], emit, tracker)

    def run(these: list[Study]) -> None:
        run_studies(
            these,
            dataset,
            output / "checkpoints",
            seed=spec.seed,
            workers=1 if shared else spec.workers,
            on_epoch=watcher.on_epoch,
            on_end=watcher.on_end,
        )

    run(studies)
    sample = _sample(studies[0], opener)
    if sample is not None:
        watcher.studies = [*studies, sample.study]
        run([sample.study])
    if part == TRIALS:
        return
    chosen = [entry for study in studies for entry in _chosen(study, spec, train)]
    (output / "architectures.json").write_text(json.dumps(chosen, indent=1))
    _trials(watcher.studies).write_parquet(output / "trials.parquet")
    (output / "search.json").write_text(json.dumps(_facts(studies[0], spec, sample), indent=1))
    discard(output / "checkpoints")


class _Watcher:
    """What the user sees of the search while it runs."""

    def __init__(self, studies: list[Study], spec: SearchSpec, metric: str, emit: Emit, tracker: Tracker) -> None:
        self.studies, self.spec, self.metric = studies, spec, metric
        self.emit, self.tracker = emit, tracker
        self.progress()

    def on_epoch(self, name: str, epoch: Epoch) -> None:
        prefix = "supernet_" if epoch.stage == "supernet" else ""
        metrics = {"train_loss": epoch.train_loss, **epoch.valid}
        self.tracker.log_epoch(name, epoch.epoch, {f"{prefix}{key}": value for key, value in metrics.items()})

    def on_end(self, study: Study, trial: TrialRecord, outcome: Outcome, best: bool) -> None:
        name = f"{study.name}-{trial.number}"
        supernet = {f"supernet_{key}": outcome.found[key] for key in ("seconds", "samples")} if outcome.found else {}
        self.tracker.log_trial(
            name,
            params=trial.params,
            metrics={**outcome.valid, "seconds": outcome.seconds, "samples": outcome.samples, **supernet},
            tags={"architecture": trial.found.architecture.hash, "stopped": outcome.stopped},
            status="FINISHED" if outcome.error is None else "FAILED",
        )
        if outcome.error is not None:
            self.emit("note", text=f"trial {name} gave no model: {outcome.error}")
        elif best and trial.value is not None:
            text = summary(trial.found, trial=trial.number, metric=self.metric, value=trial.value)
            self.emit("best", study=study.name, text=f"{study.name}: a new best\n{text}")
        self.progress()

    def progress(self) -> None:
        records = [record for study in self.studies for record in study.records()]
        running = sum(record.state == "running" for record in records)
        done = len(records) - running
        total = max(len(records), sum(study.trials for study in self.studies))  # more, where trials were lowered
        seconds = [record.seconds for record in records if record.seconds]
        left = sum(seconds) / len(seconds) * (total - done) / self.spec.workers if seconds else None
        best = self.studies[0].best()
        self.emit(
            "progress",
            done=done,
            total=total,
            running=running,
            failed=sum(record.state == "failed" for record in records),
            unit="trials",
            best=best[0].value if best else None,
            best_trial=f"{self.studies[0].name}-{best[0].number}" if best else None,
            seconds_left=left,
        )


class _Opener:
    """Opens the studies of a search where they are kept."""

    def __init__(self, spec: SearchSpec, output: Path, shared: Shared | None) -> None:
        self.spec, self.shared, self.folder = spec, shared, output / "studies"
        self.folder.mkdir(exist_ok=True)
        self.database = Database(shared.url) if shared else None

    def whole(self, study: Study, space: dict[str, Any], trials: int) -> Study:
        """Whole trainings beside `study` of all that `space` has."""
        return self.open(f"{study.name}-sample", space, trials, sampler="grid", prune=False)

    def open(self, name: str, space: dict[str, Any], trials: int, **changes: Any) -> Study:
        spec, prefix = self.spec, f"{self.shared.prefix}/" if self.shared else ""
        settings = {"sampler": spec.sampler, "seed": spec.seed, "prune": spec.prune, "lag": 2 * spec.workers - 1}
        storage = self.database or JournalFile(self.folder / f"{name}.journal")
        return Study(storage, name, space, key=prefix + name, trials=trials, **(settings | changes))


def _studies(spec: SearchSpec, train: TrainSpec, schema: DatasetSchema, opener: _Opener) -> list[Study]:
    """The method's study first, then one for each baseline."""

    def study(
        name: str, template: dict[str, Any], trials: int, supernet: dict[str, Any] | None = None, **others: Any
    ) -> Study:
        return opener.open(name, candidate_space(template, train.settings(), spec.tune, supernet), trials, **others)

    studies = []
    if spec.method != "none":
        method, own = METHODS[spec.method], getattr(spec, spec.method)
        supernet = method.plan(own) if method.plan else None
        fidelity = None if spec.fidelity.full else spec.fidelity
        studies.append(
            study(
                spec.method, method.space(schema, own), spec.trials, supernet, fidelity=fidelity, inherit=spec.inherit
            )
        )
    for name in train.baselines:
        settings = train.baseline(name)
        template = pinned(zoo.template(name, schema), settings.choices)
        studies.append(study(name, template, settings.trials or spec.trials))
    if not studies:
        raise UserError("nothing to train: name a search.method or at least one of train.baselines")
    return studies


@dataclass(frozen=True)
class _Sample:
    """Trainings from scratch of what was scored in a cheaper way: trial n of `study` has `scores[n]`."""

    study: Study
    scores: list[float]
    title: str
    cheap: str


def _sample(study: Study, opener: _Opener) -> _Sample | None:
    """Of trials that are less than a training; else of what the best trial's supernet has scored, if it has."""
    if study.fidelity is not None:
        return _sample_of_trials(study, study.fidelity.sample, opener)
    best = study.best()
    sample = best[0].attrs.get("found", {}).get("sample") if best else None
    if not sample:
        return None
    architectures = [one["architecture"] for one in sample]
    space = {
        "architecture": choice("sample", architectures, labels=range(len(sample))),
        "training": best[0].found.training.model_dump(),
        "supernet": None,
    }
    scores = [one["score"] for one in sample]
    return _Sample(opener.whole(study, space, len(sample)), scores, "the supernet", "with shared weights")


def _sample_of_trials(study: Study, size: int, opener: _Opener) -> _Sample | None:
    """Of `size` trials drawn blindly from those that came to their end."""
    ended = [record for record in study.records() if record.state == "complete"]
    drawn = sorted(Random(opener.spec.seed).sample(ended, min(size, len(ended))), key=lambda record: record.number)
    if not drawn:
        return None
    candidates = [record.candidate.to_dict() for record in drawn]
    space = choice("trial", candidates, labels=[record.number for record in drawn])
    scores = [record.value for record in drawn if record.value is not None]
    return _Sample(opener.whole(study, space, len(drawn)), scores, "low fidelity", "at low fidelity")


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
            "architecture": record.found.architecture.to_dict(),
            "training": record.found.training.model_dump(mode="json"),
            "hash": record.found.hash,
            "params": record.params,
            "search": {**_cost(study), "value": record.value, "number": record.number},
        }


def _cost(study: Study) -> dict[str, float]:
    records = study.records()
    seconds = sum(record.seconds for record in records)
    return {"trials": len(records), "seconds": seconds, "samples": sum(record.samples for record in records)}


def _facts(study: Study, spec: SearchSpec, sample: _Sample | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"method": spec.method, "sampler": spec.sampler, **_cost(study)}
    if sample:
        facts["figures"] = [_ranks(sample)]
    best = study.best()
    if best and best[0].candidate.supernet is not None:
        facts["found"] = f"{study.name}-1"
        facts["backbone"] = best[0].candidate.architecture.to_dict()
        facts["figures"] = [*best[0].attrs["found"]["figures"], *facts.get("figures", [])]
    return facts


def _ranks(sample: _Sample) -> figures.Figure:
    """Do the cheaper scores rank architectures as trainings from scratch do?"""
    points = [
        (f"{count(record.found.architecture).total:,} parameters", sample.scores[record.number], record.value)
        for record in sample.study.records()  # of a grid: trial n is choice n
        if record.value is not None
    ]
    seconds = sum(record.seconds for record in sample.study.records())
    note = f"{len(points)} blind choices: validation loss {sample.cheap}, and after training from scratch."
    note += f" These trainings took {seconds:.0f} s beside the search."
    if len(points) > 2:
        _, x, y = zip(*points, strict=True)
        note += f" Rank correlation: Spearman {spearmanr(x, y)[0]:.2f}, Kendall {kendalltau(x, y)[0]:.2f}."
    return figures.scatter(f"Can {sample.title} be trusted?", note, sample.cheap, "trained from scratch", points)


def _trials(studies: list[Study]) -> pl.DataFrame:
    return pl.DataFrame(
        [_row(study, record) for study in studies for record in study.records()], infer_schema_length=None
    )


def _row(study: Study, record: TrialRecord) -> dict[str, Any]:
    counts = count(record.found.architecture)
    return {
        "study": study.name,
        "number": record.number,
        "state": record.state,
        "value": record.value,
        "hash": record.found.hash,
        "tables": counts.tables,
        "lifts": counts.lifts,
        "dense": counts.elsewhere,
        "flops": counts.flops,
        "seconds": record.seconds,
        "samples": record.samples,
        "duplicate_of": record.duplicate_of,
        "params": json.dumps(record.params),
        "curve": list(record.curve),
    }
