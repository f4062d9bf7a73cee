"""Step `search`: find architectures and tune the hand-made models, all as trials of Optuna studies in one worker pool.

Output:
    studies/<name>.journal  the Optuna study of each method and of each baseline, unless they are in a database, and of
                            the samples by which a supernet's scores are held against trainings
    architectures.json      what the train step trains: the best of each method first, then each baseline at its best
    trials.parquet          every trial of every study
    search.json             each method's search in numbers

A killed step goes on where its studies stand: finished trials stay, running ones resume at their last epoch.
"""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
from scipy.stats import kendalltau, spearmanr

from components.earlier import earlier_trials
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

FOUND, BASELINE = "found", "zoo"
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
    opener = _Opener(spec, train, output, shared, emit)
    methods = list(_method_studies(spec, schema, opener))
    if spec.warm_start and not any(study.earlier for study in methods):
        raise UserError(f"search.warm_start: {spec.warm_start} has no trial with the choices of this search")
    baselines = list(_baseline_studies(spec, train, schema, opener))
    if not methods and not baselines:
        raise UserError("nothing to train: name one of search.methods or at least one of train.baselines")
    watcher = _Watcher(methods, baselines, spec, MAIN[schema.task], emit, tracker)

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

    run(watcher.studies)
    samples = {study.name: sample for study in methods if (sample := _sample(study, opener))}
    watcher.studies += [sample.study for sample in samples.values()]
    run([sample.study for sample in samples.values()])
    watcher.progress()
    if part == TRIALS:
        return
    wanted = {*spec.methods, *train.baselines}
    found = [entry for study in methods for entry in _chosen(study, FOUND, train.candidates, wanted, emit)]
    tuned = [entry for study in baselines for entry in _chosen(study, BASELINE, 1, wanted, emit)]
    if not found and not tuned:
        raise UserError("no method and no baseline gave a model: see the notes above")
    (output / "architectures.json").write_text(json.dumps([*found, *tuned], indent=1))
    _trials(watcher.studies).write_parquet(output / "trials.parquet")
    facts = [_facts(study, spec, samples.get(study.name)) for study in methods]
    (output / "search.json").write_text(json.dumps(facts, indent=1))
    discard(output / "checkpoints")


class _Watcher:
    """What the user sees of the search while it runs."""

    def __init__(
        self, methods: list[Study], baselines: list[Study], spec: SearchSpec, metric: str, emit: Emit, tracker: Tracker
    ) -> None:
        self.studies, self.leading = [*methods, *baselines], methods or baselines
        self.spec, self.metric = spec, metric
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
        total = sum(study.expected() for study in self.studies)
        seconds = [record.seconds for record in records if record.seconds]
        left = sum(seconds) / len(seconds) * (total - done) / self.spec.workers if seconds else None
        name, value = self._best()
        self.emit(
            "progress",
            done=done,
            total=total,
            running=running,
            failed=sum(record.state == "failed" for record in records),
            unit="trials",
            best=value,
            best_trial=name,
            seconds_left=left,
        )

    def _best(self) -> tuple[str | None, float | None]:
        """The best trial of all; values of whole trainings go before those of less."""
        bests = [(study, best) for study in self.leading for best in study.best()]
        if not bests:
            return None, None
        study, best = min(bests, key=lambda pair: (pair[0].fidelity is not None, pair[1].value or 0.0))
        return f"{study.name}-{best.number}", best.value


class _Opener:
    """Opens the studies of a search where they are kept."""

    def __init__(self, spec: SearchSpec, train: TrainSpec, output: Path, shared: Shared | None, emit: Emit) -> None:
        self.spec, self.training, self.emit = spec, train.settings(), emit
        self.shared, self.folder = shared, output / "studies"
        self.folder.mkdir(exist_ok=True)
        self.database = Database(shared.url) if shared else None

    def whole(self, study: Study, space: dict[str, Any], trials: int) -> Study:
        """Whole trainings beside `study` of all that `space` has."""
        return self.open(f"{study.name}-sample", space, trials, sampler="grid", prune=False, budget=None)

    def warm(self, name: str, space: dict[str, Any], trials: int | None, **changes: Any) -> Study:
        """A study of a method, which may know trials of an earlier search."""
        url = self.spec.warm_start
        earlier = earlier_trials(url, name, space) if url else ()
        if earlier:
            self.emit("note", text=f"{name} knows {len(earlier)} trials of {url}")
        return self.open(name, space, trials, earlier=earlier, **changes)

    def open(self, name: str, space: dict[str, Any], trials: int | None, **changes: Any) -> Study:
        spec, prefix = self.spec, f"{self.shared.prefix}/" if self.shared else ""
        settings = {
            "sampler": spec.sampler_of(),
            "budget": spec.budget,
            "seed": spec.seed,
            "prune": spec.prune,
            "lag": 2 * spec.workers - 1,
        }
        storage = self.database or JournalFile(self.folder / f"{name}.journal")
        return Study(storage, name, space, key=prefix + name, trials=trials, **(settings | changes))


def _method_studies(spec: SearchSpec, schema: DatasetSchema, opener: _Opener) -> Iterator[Study]:
    for name in spec.named(schema.task):
        method, own = METHODS[name], spec.section(name)
        template = _fitting(name, name in spec.methods, partial(method.space, schema, own), opener.emit)
        if template is None:
            continue
        trained = method.plan is None
        yield opener.warm(
            name,
            candidate_space(template, opener.training, spec.tune, method.plan(own) if method.plan else None),
            spec.trials,
            sampler=spec.sampler_of(name),
            fidelity=spec.fidelity if trained and not spec.fidelity.full else None,
            inherit=spec.inherit and trained,
        )


def _baseline_studies(spec: SearchSpec, train: TrainSpec, schema: DatasetSchema, opener: _Opener) -> Iterator[Study]:
    for name in train.named(zoo.names(schema.task)):
        settings = train.baseline(name)
        template = _fitting(name, name in train.baselines, partial(zoo.template, name, schema), opener.emit)
        if template is not None:
            space = candidate_space(pinned(template, settings.choices), opener.training, spec.tune)
            yield opener.open(name, space, settings.trials or spec.trials)


def _fitting(name: str, wanted: bool, template: Callable[[], dict[str, Any]], emit: Emit) -> dict[str, Any] | None:
    """The template; None where the dataset has not what it needs and nobody asked for it by its name."""
    try:
        return template()
    except UserError as error:
        if wanted:
            raise
        emit("note", text=f"{name} is left out: {error}")
        return None


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


def _chosen(study: Study, origin: str, most: int, wanted: Collection[str], emit: Emit) -> Iterator[dict[str, Any]]:
    """The study's best candidates as the train step takes them."""
    best = study.best(most)
    if not best:
        errors = [str(record.attrs["error"]) for record in study.records() if "error" in record.attrs]
        text = f"no trial of {study.name} gave a model: {errors[0] if errors else 'all were pruned'}"
        if study.name in wanted:
            raise UserError(text)
        emit("note", text=f"{study.name} is left out: {text}")
    for rank, record in enumerate(best, start=1):
        yield {
            "name": f"{study.name}-{rank}" if origin == FOUND else study.name,
            "origin": origin,
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
    facts: dict[str, Any] = {"method": study.name, "sampler": spec.sampler_of(study.name), **_cost(study)}
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
        "parent": record.attrs.get("parent"),
        "params": json.dumps(record.params),
        "curve": list(record.curve),
    }
