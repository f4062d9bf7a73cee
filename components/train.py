"""Step `train`: every chosen candidate from scratch, several seeds each, in parallel workers.

Output: `models.json` (candidates with the validation metrics of each seed), `weights/<name>-seed-<n>.safetensors`, and
`outcomes/<name>-seed-<n>.json`, by which a step killed in its last moment knows that nothing is left to train.
A killed step goes on where each training's last checkpoint stands.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.artifacts import write_whole
from components.events import Emit
from components.settings import SearchSpec, TrainSpec
from components.tracking import Tracker
from trainer.distributed import World, launch
from trainer.errors import NoSpaceError, UserError
from trainer.workers import Epoch, Job, Message, Outcome, discard, run_jobs


def train(
    search: SearchSpec,
    spec: TrainSpec,
    dataset: Path,
    searched: Path,
    output: Path,
    emit: Emit,
    tracker: Tracker,
    *,
    world: World,
    part: str | None = None,
) -> None:
    """Train the candidates that the search step left in `searched`/architectures.json.

    With `part`, the key of one training (`<name>-seed-<n>`), do that one and leave the rest to others. A training that
    needs a `world` of several processes has the machine for itself.

    Raises:
        UserError: a training ended without a model; the line says which and why.
    """
    candidates: list[dict[str, Any]] = json.loads((searched / "architectures.json").read_text())
    run = _Run(candidates, spec, dataset, output, emit, tracker, part)
    if world.size == 1:
        run_jobs(run.next_job, search.workers, run.on_message)
    while job := run.next_job():
        launch(job, world, run.on_message)
    if part is not None:
        return
    models = [{**candidate, "seeds": run.seeds(candidate["name"])} for candidate in candidates]
    (output / "models.json").write_text(json.dumps(models, indent=1))
    discard(output / "checkpoints")


class _Run:
    """The trainings of one step: which are left, and what became of each."""

    def __init__(
        self,
        candidates: list[dict[str, Any]],
        spec: TrainSpec,
        dataset: Path,
        output: Path,
        emit: Emit,
        tracker: Tracker,
        part: str | None,
    ) -> None:
        self.spec, self.output, self.emit, self.tracker = spec, output, emit, tracker
        self.done: dict[str, Outcome] = {}
        self.jobs: list[Job] = []
        for key, candidate, seed in _trainings(candidates, spec):
            if part not in (None, key):
                continue
            if self._outcome(key).exists():
                self.done[key] = Outcome.from_json(self._outcome(key).read_text())
            else:
                self.jobs.append(self._job(key, candidate, seed, dataset))
        self.total = len(self.jobs) + len(self.done)
        self._progress()

    def next_job(self) -> Job | None:
        return self.jobs.pop(0) if self.jobs else None

    def on_message(self, message: Message) -> None:
        if isinstance(message, Epoch):
            self.tracker.log_epoch(message.key, message.epoch, {"train_loss": message.train_loss, **message.valid})
            return
        if message.error is not None:
            kind = NoSpaceError if message.fatal else UserError
            raise kind(f"training {message.key} failed: {message.error}")
        write_whole(self._outcome(message.key), message.to_json())
        discard(self.output / "checkpoints" / message.key)
        self.done[message.key] = message
        self.tracker.log_trial(
            message.key,
            params={"stopped": message.stopped},
            metrics={**message.valid, "seconds": message.seconds, "samples": message.samples},
        )
        self._progress()

    def seeds(self, name: str) -> list[dict[str, Any]]:
        """What evaluation needs of each seed of one candidate."""
        outcomes = [(seed, self.done[_key(name, seed)]) for seed in range(1, self.spec.seeds + 1)]
        return [
            {
                "seed": seed,
                "weights": str(_weights(outcome.key)),
                "valid": outcome.valid,
                "best_epoch": outcome.best_epoch,
                "epochs": len(outcome.curve),
                "seconds": outcome.seconds,
                "samples": outcome.samples,
            }
            for seed, outcome in outcomes
        ]

    def _job(self, key: str, candidate: dict[str, Any], seed: int, dataset: Path) -> Job:
        return Job(
            key=key,
            dataset=dataset,
            candidate={"architecture": candidate["architecture"], "training": candidate["training"]},
            seed=seed,
            checkpoints=self.output / "checkpoints" / key,
            weights=self.output / _weights(key),
        )

    def _outcome(self, key: str) -> Path:
        folder = self.output / "outcomes"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{key}.json"

    def _progress(self) -> None:
        seconds = sum(outcome.seconds for outcome in self.done.values())
        self.emit("progress", done=len(self.done), total=self.total, unit="trainings", training_seconds=seconds)


def _key(name: str, seed: int) -> str:
    return f"{name}-seed-{seed}"


def _weights(key: str) -> Path:
    return Path("weights") / f"{key}.safetensors"


def parts(searched: Path, spec: TrainSpec) -> list[str]:
    """The keys of all trainings of the step, in the order in which they should begin."""
    candidates = json.loads((searched / "architectures.json").read_text())
    return [key for key, _, _ in _trainings(candidates, spec)]


def _trainings(candidates: list[dict[str, Any]], spec: TrainSpec) -> Iterator[tuple[str, dict[str, Any], int]]:
    """(key, candidate, seed) of every training; a first seed of all comes before a second of any."""
    for seed in range(1, spec.seeds + 1):
        for candidate in candidates:
            yield _key(candidate["name"], seed), candidate, seed
