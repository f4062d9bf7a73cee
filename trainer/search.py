"""Searches as they run: studies in one worker pool, for the pipeline's search step and for Python alike.

    user, movie = LatentFactorMapper(64)("user"), LatentFactorMapper(64)("movie")
    low = HyperInteraction()([user, movie])
    high = HyperInteraction()([user, movie, low])
    best = search(RatingRecommender([high]), Path("runs/movielens/ingest"), Path("runs/mine"), trials=20)

A pipeline does more (baselines, final training, records); `search` is for notebooks and scripts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from trainer.candidate import candidate_space
from trainer.errors import NoSpaceError
from trainer.inheritance import keep
from trainer.metrics import MAIN
from trainer.propose import Sampler
from trainer.schema import DatasetSchema
from trainer.settings import TrainSettings, TuneSettings
from trainer.storage import JournalFile
from trainer.study import WAIT, Study, Trial, TrialRecord
from trainer.summary import summary
from trainer.workers import Epoch, Job, Message, Outcome, discard, run_jobs


class Searchable(Protocol):
    """Something that has a template for a dataset, such as a recommender of `trainer.methods.autorec`."""

    def space(self, schema: DatasetSchema) -> dict[str, Any]: ...


def search(
    searchable: Searchable,
    dataset: Path,
    output: Path,
    *,
    trials: int = 10,
    sampler: Sampler = "bayesian",
    workers: int = 1,
    seed: int = 2026,
    settings: TrainSettings | None = None,
    tune: TuneSettings | None = None,
    tell: Callable[[str], None] = print,
) -> list[TrialRecord]:
    """Try `trials` candidates and return those that trained to their end, best first.

    `output` keeps the Optuna study (`study.journal`); the same call on it goes on where the last one was stopped.
    `tell` gets the summary of each new best trial. Call it below `if __name__ == "__main__":` in a script, because
    trials are trained in processes of their own.
    """
    schema = DatasetSchema.load(dataset)
    space = candidate_space(searchable.space(schema), settings or TrainSettings(), tune or TuneSettings())
    lag = 2 * workers - 1
    study = Study(
        JournalFile(output / "study.journal"), "search", space, sampler=sampler, trials=trials, lag=lag, seed=seed
    )

    def on_end(study: Study, trial: TrialRecord, outcome: Outcome, best: bool) -> None:
        if best and trial.value is not None:
            tell(summary(trial.found, trial=trial.number, metric=MAIN[schema.task], value=trial.value))

    run_studies([study], dataset, output / "checkpoints", seed=seed, workers=workers, on_end=on_end)
    return study.best(trials)


def run_studies(
    studies: Sequence[Study],
    dataset: Path,
    checkpoints: Path,
    *,
    seed: int,
    workers: int,
    on_epoch: Callable[[str, Epoch], None] = lambda name, epoch: None,
    on_end: Callable[[Study, TrialRecord, Outcome, bool], None],
) -> None:
    """Bring studies to their end in one worker pool: while a trial of one waits for results, the next one goes on.

    `on_epoch` gets the trial's name (`<study>-<number>`) and the epoch; `on_end` the study, the trial, how it ended and
    whether it is the study's new best. Every trial is trained with `seed`.

    Raises:
        NoSpaceError: the disk is full, which would meet every trial.
    """
    running: dict[str, tuple[Study, Trial]] = {}

    def tables(study: Study, number: int) -> Path:
        return checkpoints / f"{study.name}-tables" / f"{number}.safetensors"

    def next_job() -> Job | Literal["wait"] | None:
        waiting = False
        for study in studies:
            trial = study.next()
            if isinstance(trial, Trial):
                name = f"{study.name}-{trial.number}"
                running[name] = (study, trial)
                candidate = trial.candidate.to_dict()
                return Job(
                    name,
                    dataset,
                    candidate,
                    seed,
                    checkpoints / name,
                    thresholds=trial.thresholds,
                    fidelity=study.fidelity,
                    parent=None if trial.parent is None else tables(study, trial.parent),
                    tables=tables(study, trial.number) if study.inherit else None,
                )
            waiting = waiting or trial == WAIT
        return WAIT if waiting else None

    def on_message(message: Message) -> None:
        study, trial = running[message.key]
        if isinstance(message, Epoch):
            if message.stage == "training":
                study.report(trial.number, message.epoch, message.best)
            on_epoch(message.key, message)
        elif message.fatal:
            raise NoSpaceError(f"trial {message.key}: {message.error}")
        else:
            _finish(study, trial, message)
            del running[message.key]
            discard(checkpoints / message.key)
            if study.inherit:
                keep(tables(study, trial.number).parent, study.possible_parents())
            best = study.best()
            on_end(study, study.record(trial.number), message, bool(best) and best[0].number == trial.number)

    def beat() -> None:
        for study in studies:
            study.beat()

    def look_ahead() -> None:
        for study in studies:
            study.look_ahead()

    alone = not any(study.shared for study in studies)
    run_jobs(next_job, workers, on_message, beat=beat, meanwhile=look_ahead, alone=alone)


def _finish(study: Study, trial: Trial, outcome: Outcome) -> None:
    attrs: dict[str, Any] = {"valid": outcome.valid} if outcome.error is None else {"error": outcome.error}
    if outcome.found is not None:
        attrs["found"] = outcome.found
    if trial.parent is not None:
        attrs["parent"] = trial.parent
    study.finish(
        trial.number,
        outcome.value,
        curve=outcome.curve,
        samples=outcome.samples,
        seconds=outcome.seconds,
        pruned=outcome.stopped == "pruned",
        attrs=attrs,
    )
