"""What searches on a supernet share: weights are trained in the one fit loop, and beside them something is learned.

A method gives a supernet: a built model with choices in it. An engine adds a `Learner`, which learns from what passes
by how to choose; then an architecture is derived, which is data. Training it from scratch is nobody's special case.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.architecture import Architecture
from trainer.build import Model
from trainer.data import Batch, Table
from trainer.device import device_of
from trainer.figures import Figure
from trainer.fit import EpochRecord, FitResult, Gates, Outputs, fit
from trainer.settings import SAVE_SECONDS, TrainSettings
from trainer.sharding import local_weights, placed

TRACE_POINTS = 40
"""Moments at which what is learned is noted."""


@dataclass(frozen=True)
class Schedule:
    """How a supernet is trained.

    `every`: steps of the weights for each step of the learner. `warm_up`: the share of all steps, at the beginning, in
    which it does not learn. `in_order`: rows pass in their own order. `batch_size`, `learning_rate`, `table_l2`: the
    supernet's own, if they differ from the derived model's.
    """

    epochs: int
    every: int = 1
    warm_up: float = 0.0
    in_order: bool = False
    batch_size: int | None = None
    learning_rate: float | None = None
    table_l2: float | None = None

    def training(self, settings: TrainSettings) -> TrainSettings:
        """The settings of the supernet, given those of the derived model.

        What is learned has no best epoch; weights are not averaged, as nobody uses them afterwards.
        """
        own = {name: getattr(self, name) for name in ("batch_size", "learning_rate", "table_l2")}
        given = {name: value for name, value in own.items() if value is not None}
        if "learning_rate" in given:
            given["table_learning_rate"] = None
        return settings.model_copy(update={"epochs": self.epochs, "patience": self.epochs, "average": 0.0, **given})


@dataclass(frozen=True)
class Trace:
    """What was learned at `TRACE_POINTS` moments: name -> (moments, *shape of the value)."""

    epochs: list[float]
    """When, in epochs."""
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Scored:
    """A choice as an architecture, and its validation loss with the supernet's weights (`metrics.MAIN`)."""

    architecture: Architecture
    score: float


@dataclass(frozen=True)
class Found:
    """A finished search on one supernet. `samples`: rows that were trained on or learned from.

    `sample`: choices scored with the supernet's weights, by which their scores can be held against trainings.
    """

    architecture: Architecture
    figures: list[Figure]
    seconds: float
    samples: int
    sample: tuple[Scored, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data (JSON), architectures as `Architecture.to_dict` gives them."""
        sample = [{"architecture": one.architecture.to_dict(), "score": one.score} for one in self.sample]
        return {**vars(self), "architecture": self.architecture.to_dict(), "sample": sample}


class Supernet(Protocol):
    """What a method gives any engine."""

    model: Model
    schedule: Schedule

    def derive(self) -> Architecture:
        """The architecture that was learned."""

    def figures(self, trace: Trace) -> list[Figure]:
        """What the search saw, for the report."""


class Learner(ABC):
    """What learns beside the weights (`fit.Gates`): counts steps, notes values, and can be put aside and go on."""

    names: frozenset[str] = frozenset()
    in_order: bool

    def __init__(
        self,
        supernet: Supernet,
        values: Mapping[str, nn.Parameter],
        optimizer: Callable[[int], torch.optim.Optimizer],
        train: Table,
        valid: Table,
        batch_size: int,
        seed: int,
    ) -> None:
        """`values` is learned; `optimizer` makes what updates it, from the number of updates to come."""
        self.schedule, self.model, self.values = supernet.schedule, supernet.model, dict(values)
        self.in_order = self.schedule.in_order
        self.valid, self.batch_size, self.seed, self.task = valid, batch_size, seed, train.schema.task
        self.per_epoch = train.steps(batch_size)
        self.steps = self.per_epoch * self.schedule.epochs
        self.frozen = round(self.schedule.warm_up * self.steps)
        self.optimizer = optimizer(max((self.steps - self.frozen) // self.schedule.every, 1))
        self.step = self.learned = self.samples = 0
        self.rows: Iterator[Batch] | None = None
        self.epochs: list[float] = []
        self.noted: dict[str, list[Tensor]] = {name: [] for name in self.notes()}
        self._note()

    @abstractmethod
    def before_step(self, batch: Batch, output: Outputs) -> None:
        """Set the model for the next step of the weights."""

    @abstractmethod
    def learn(self, batch: Batch, output: Outputs) -> None:
        """One update of what is learned, after the weights' step on `batch`."""

    def after_step(self, batch: Batch, output: Outputs) -> None:
        self.step += 1
        if self.step > self.frozen and (self.step - self.frozen) % self.schedule.every == 0:
            self.learn(batch, output)
            self.learned += 1
        for value in self.values.values():
            value.grad = None
        if self.step * TRACE_POINTS // self.steps > (self.step - 1) * TRACE_POINTS // self.steps:
            self._note()

    def notes(self) -> Mapping[str, Tensor]:
        """What is noted now and then: what is learned, where that is a few numbers."""
        return self.values

    def figures(self) -> list[Figure]:
        """What the engine itself saw."""
        return []

    def trace(self) -> Trace:
        return Trace(self.epochs, {name: torch.stack(noted) for name, noted in self.noted.items()})

    def progress(self) -> float:
        """How much of the learning, which begins after the warm-up, is done: 0 to 1."""
        return max(self.step - self.frozen, 0) / max(self.steps - self.frozen, 1)

    def next_valid(self) -> Batch:
        """Validation rows, in another order on every pass over them."""
        passes, start = divmod(self.learned, self.valid.steps(self.batch_size))
        if self.rows is None or start == 0:
            # Another stream of orders than that of the training rows.
            order = (self.seed, (1 << 20) + passes)
            self.rows = self.valid.batches(self.batch_size, seed_epoch=order, start=start)
        return next(self.rows).to(device_of(self.model))

    def state(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("step", "learned", "samples", "epochs")}
        state: dict[str, Any] = dict(counts)
        state |= {f"noted/{name}": torch.stack(noted) for name, noted in self.noted.items()}
        for name, value in self.values.items():
            state[f"values/{name}"] = value.detach()
            state |= {f"optimizer/{key}/{name}": part for key, part in self.optimizer.state[value].items()}
        return state

    def load_state(self, saved: dict[str, Any]) -> None:
        self.step, self.learned, self.samples = saved["step"], saved["learned"], saved["samples"]
        self.epochs = saved["epochs"]
        self.noted = {name: list(saved[f"noted/{name}"]) for name in self.noted}
        for name, value in self.values.items():
            value.data.copy_(saved[f"values/{name}"])
        for name, part in saved.items():
            kind, _, rest = name.partition("/")
            if kind == "optimizer":
                key, _, learned = rest.partition("/")
                value = self.values[learned]
                # Numbers of steps stay where Adam reads them.
                self.optimizer.state[value][key] = part.to(value.device) if part.dim() else part
        self.rows = None

    def _note(self) -> None:
        self.epochs.append(self.step / self.per_epoch)
        for name, value in self.notes().items():
            self.noted[name].append(value.detach().clone().cpu())


def train(
    supernet: Supernet,
    learner: Learner,
    rows: tuple[Table, Table],
    settings: TrainSettings,
    *,
    seed: int,
    finish: Callable[[], Sequence[Scored]] = tuple,
    checkpoints: Path | str | None = None,
    save_seconds: float = SAVE_SECONDS,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> Found:
    """Train a supernet on training and validation `rows` to the end of its schedule, and derive.

    `finish` is called before deriving; what it scores becomes the `sample`. `checkpoints` and `save_seconds` as in
    `fit`.

    Raises:
        Diverged: as `fit`.
    """
    result, _ = fitted(
        supernet,
        learner,
        rows,
        settings,
        seed=seed,
        checkpoints=checkpoints,
        save_seconds=save_seconds,
        on_epoch=on_epoch,
    )
    started = time.perf_counter()
    for value in learner.values.values():  # a few numbers, which methods read where their other data are
        value.data = value.data.cpu()
    sample = tuple(finish())
    architecture, figures = supernet.derive(), [*supernet.figures(learner.trace()), *learner.figures()]
    seconds = result.seconds + time.perf_counter() - started
    return Found(architecture, figures, seconds, result.samples + learner.samples, sample)


class Trained(Protocol):
    """A model with choices in it, and how it is trained."""

    @property
    def model(self) -> Model: ...

    @property
    def schedule(self) -> Schedule: ...


def fitted(
    supernet: Trained,
    gates: Gates,
    rows: tuple[Table, Table],
    settings: TrainSettings,
    *,
    seed: int,
    checkpoints: Path | str | None,
    save_seconds: float,
    on_epoch: Callable[[EpochRecord], None],
    weights: Mapping[str, Tensor] | None = None,
) -> tuple[FitResult, nn.Module]:
    """Train a supernet's weights to the end of its schedule; the result, and the model as it is placed.

    The weights begin where `weights` has some of the same name and shape.
    """
    settings = supernet.schedule.training(settings)

    def watch(record: EpochRecord) -> bool:
        on_epoch(record)
        return False

    model = placed(supernet.model, settings, partly=True)
    for name, value in local_weights(model).items():
        if weights and name in weights and weights[name].shape == value.shape:
            value.copy_(weights[name])
    result = fit(
        model,
        *rows,
        settings,
        task=rows[0].schema.task,
        seed=seed,
        checkpoints=checkpoints,
        save_seconds=save_seconds,
        on_epoch=watch,
        gates=gates,
    )
    return result, model


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Statistics of normalisations stay as they are: a pass beside training must teach the weights' side nothing."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in kept:
            buffer.copy_(value)
