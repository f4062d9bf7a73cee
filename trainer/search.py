"""A whole search from Python: what is searched, a dataset that ingest wrote, and the trials, in one call.

    user, movie = LatentFactorMapper(64)("user"), LatentFactorMapper(64)("movie")
    low = HyperInteraction()([user, movie])
    high = HyperInteraction()([user, movie, low])
    best = search(RatingRecommender([high]), Path("runs/movielens/ingest"), Path("runs/mine"), trials=20)

A pipeline does more (baselines, final training, records); this is for notebooks and scripts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from trainer.candidate import candidate_space
from trainer.errors import UserError
from trainer.propose import Sampler
from trainer.schema import DatasetSchema
from trainer.settings import TrainSettings, TuneSettings
from trainer.study import Study, Trial, TrialRecord
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
    study = Study(output / "study.journal", "search", space, sampler=sampler, trials=trials, lag=lag, seed=seed)
    run = _Run(study, dataset, output / "checkpoints", seed, "mse" if schema.task == "rating" else "logloss", tell)
    run_jobs(run.next_job, workers, run.on_message)
    return study.best(trials)


class _Run:
    """The trials in flight."""

    def __init__(
        self, study: Study, dataset: Path, checkpoints: Path, seed: int, metric: str, tell: Callable[[str], None]
    ) -> None:
        self.study, self.dataset, self.checkpoints, self.seed = study, dataset, checkpoints, seed
        self.metric, self.tell = metric, tell
        self.running: dict[str, Trial] = {}

    def next_job(self) -> Job | Literal["wait"] | None:
        trial = self.study.next()
        if not isinstance(trial, Trial):
            return trial
        key = str(trial.number)
        self.running[key] = trial
        return Job(
            key, self.dataset, trial.candidate.to_dict(), self.seed, self.checkpoints / key, None, trial.thresholds
        )

    def on_message(self, message: Message) -> None:
        if isinstance(message, Epoch):
            self.study.report(int(message.key), message.epoch, message.best)
        elif message.fatal:
            raise UserError(f"trial {message.key}: {message.error}")
        else:
            self._finish(self.running.pop(message.key), message)

    def _finish(self, trial: Trial, outcome: Outcome) -> None:
        self.study.finish(
            trial.number,
            outcome.value,
            curve=outcome.curve,
            samples=outcome.samples,
            seconds=outcome.seconds,
            pruned=outcome.stopped == "pruned",
            attrs={"valid": outcome.valid} if outcome.error is None else {"error": outcome.error},
        )
        discard(self.checkpoints / outcome.key)
        best = self.study.best()
        if best and best[0].number == trial.number and outcome.value is not None:
            self.tell(summary(trial.candidate, trial=trial.number, metric=self.metric, value=outcome.value))
