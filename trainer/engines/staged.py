"""Search in stages: one supernet after the other, each for a part of the architecture (AMEIR, Zhao et al. 2021).

A stage has what the stages before it decided, and one part that is open. Its weights learn from training rows, every
step with a choice drawn for its whole batch; nothing else learns meanwhile. Then choices are scored on validation rows
with the shared weights, and the stage decides. The next one begins with the weights of what was decided, and with all
others of the same name and shape.

A search that was killed goes on: a stage has a folder of checkpoints of its own, of which one that is done is read back
from its last state, and scores are the same again.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.architecture import Architecture
from trainer.data import Batch, Table
from trainer.engines.sampled import DRAWS_OF_ONE, Choice, Scorable, blind, generator, losses
from trainer.engines.supernet import Found, Schedule, Scored, fitted
from trainer.figures import Figure
from trainer.fit import EpochRecord, Outputs
from trainer.metrics import Vector
from trainer.modules.choices import plain_weights
from trainer.processes import rank_and_world
from trainer.settings import SAVE_SECONDS, TrainSettings
from trainer.sharding import local_weights


class Stage(Scorable, Protocol):
    """What a method gives the engine for one part of the architecture."""

    name: str
    """Differs from those of the method's other stages."""
    schedule: Schedule
    candidates: int
    """Blind choices scored in the end, for the stage to decide by."""

    def draw(self, random: torch.Generator) -> Choice:
        """The choice of one step."""

    def decide(self, scored: Sequence[tuple[Choice, Scored]], scores: "Scores") -> None:
        """Take a choice for good. `scored` are the blind ones."""


class Staged(Protocol):
    """What a method gives the engine."""

    sample: int
    """Blind choices of the first stage by which its scores are held against trainings."""

    def stages(self) -> Iterable[Stage]:
        """The stages; each is asked for when the one before it has decided."""

    def derive(self) -> Architecture:
        """What the stages have decided."""

    def figures(self) -> list[Figure]:
        """What the search saw, for the report."""


def search(
    net: Staged,
    train: Table,
    valid: Table,
    settings: TrainSettings,
    *,
    seed: int,
    checkpoints: Path | str | None = None,
    save_seconds: float = SAVE_SECONDS,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> Found:
    """Train and decide one stage after the other. Epochs are counted through all; the rest is as in `supernet.train`.

    Raises:
        Diverged: as `fit`.
    """
    folder = "" if checkpoints is None else f"{checkpoints}/"
    seconds, samples, epochs = 0.0, 0, 0
    weights: dict[str, Tensor] = {}
    sample: tuple[Scored, ...] = ()
    for number, stage in enumerate(net.stages()):
        result, model = fitted(
            stage,
            _Draws(stage, train, settings.batch_size, seed),
            (train, valid),
            settings,
            seed=seed,
            weights=weights,
            checkpoints=f"{folder}{stage.name}" if folder else None,
            save_seconds=save_seconds,
            on_epoch=partial(_tell, on_epoch, epochs),
        )
        started = time.perf_counter()
        scores = Scores(stage, valid, seed)
        wanted = net.sample if number == 0 else 0
        scored = scores.blind(max(stage.candidates, wanted))
        sample += tuple(one for _, one in scored[:wanted])
        stage.decide(scored[: stage.candidates], scores)
        weights = local_weights(model) | plain_weights(stage.model)
        seconds += result.seconds + time.perf_counter() - started
        samples, epochs = samples + result.samples + scores.samples, epochs + stage.schedule.epochs
    return Found(net.derive(), net.figures(), seconds, samples, sample)


def _tell(on_epoch: Callable[[EpochRecord], None], before: int, record: EpochRecord) -> None:
    """Epochs of all stages count on."""
    on_epoch(replace(record, epoch=before + record.epoch))


class Scores:
    """Validation losses (`metrics.MAIN`) of choices with a stage's shared weights."""

    def __init__(self, stage: Stage, rows: Table, seed: int) -> None:
        self.stage, self.rows, self.seed = stage, rows, seed
        self.samples = 0
        """Rows on which choices were scored so far."""

    def __call__(self, choice: Choice, rows: Table | None = None) -> Vector:
        """(N,): of each of all validation rows, or of some of them (`some`)."""
        found = losses(self.stage, choice, rows or self.rows)
        self.samples += len(found)
        return found

    def blind(self, number: int) -> list[tuple[Choice, Scored]]:
        """So many choices drawn as in training, which are different models, with their scores on all rows."""
        places = range(DRAWS_OF_ONE * number)
        draws = (self.stage.draw(generator(self.seed, f"{self.stage.name}/score", place)) for place in places)
        return [
            (choice, Scored(built, float(self(choice).mean()))) for choice, built in blind(self.stage, draws, number)
        ]

    def some(self, number: int) -> Table:
        """So many validation rows, drawn blindly; all if there are fewer."""
        held = number // rank_and_world()[1]
        if held >= self.rows.rows:
            return self.rows
        order = torch.randperm(self.rows.rows, generator=generator(self.seed, f"{self.stage.name}/rows"))
        return self.rows.select(order[:held].sort().values)


class _Draws:
    """Draws a choice for every step (`fit.Gates`). After an epoch, one that is always the same is validated."""

    names: frozenset[str] = frozenset()
    in_order = False

    def __init__(self, stage: Stage, train: Table, batch_size: int, seed: int) -> None:
        self.stage, self.seed, self.per_epoch, self.step = stage, seed, train.steps(batch_size), 0

    def before_step(self, batch: Batch, output: Outputs) -> None:
        self._take("train", self.step)

    def after_step(self, batch: Batch, output: Outputs) -> None:
        self.step += 1
        if self.step % self.per_epoch == 0:
            self._take("valid", 0)

    def _take(self, purpose: str, number: int) -> None:
        self.stage.take(self.stage.draw(generator(self.seed, f"{self.stage.name}/{purpose}", number)))

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state(self, saved: dict[str, Any]) -> None:
        self.step = saved["step"]
