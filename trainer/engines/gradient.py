"""Search by gradient: a supernet whose choices are relaxed to gates is trained once, then an architecture is derived.

A method gives a `Supernet`: a built model, the gates in it, how they are relaxed and when they are updated, and what
the gates say in the end. The engine trains it in the one fit loop, with the same tables, batches and number format as
any model, and knows no method. The derived architecture is data; training it from scratch is nobody's special case.

Weights always learn from training rows. The gates learn (`Schedule.level`)

* single: from the same gradient as the weights (AutoFIS);
* alternating: from a second pass over the same batch, after the weights' step (AutoGroup);
* bilevel: from a batch of validation rows after every `every` steps of the weights (AutoDim): DARTS' bilevel problem in
  its first-order form (Liu, Simonyan and Yang 2019, section 2.3). These batches change nothing but the gates.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from trainer.architecture import Architecture
from trainer.build import Model
from trainer.data import Batch, Table
from trainer.figures import Figure
from trainer.fit import EpochRecord, fit
from trainer.processes import rank_and_world, summed
from trainer.settings import SAVE_SECONDS, TrainSettings
from trainer.sharding import placed

Level = Literal["single", "alternating", "bilevel"]

TRACE_POINTS = 40
"""Moments at which the gates' values are noted."""


@dataclass(frozen=True)
class Schedule:
    """How a supernet is trained.

    `warm_up`: the share of all steps, at the beginning, in which gates are frozen. `table_l2`: the supernet's own, if
    that differs from the derived model's.
    """

    epochs: int
    level: Level
    every: int = 1
    warm_up: float = 0.0
    table_l2: float | None = None


class Supernet(Protocol):
    """What a method gives the engine."""

    model: Model
    gates: dict[str, nn.Parameter]
    """The gates by a name for the reader; all are parameters of the model."""
    schedule: Schedule

    def optimizer(self, steps: int) -> torch.optim.Optimizer:
        """The optimizer of the gates, which will be updated `steps` times."""

    def relax(self, progress: float, *, frozen: bool, deciding: bool) -> None:
        """Set temperature and noise before a forward pass.

        `progress` goes from 0 to 1 over the steps in which the gates learn; `frozen`: these have not begun; `deciding`:
        the pass is for the gates alone.
        """

    def derive(self) -> Architecture:
        """The architecture that the gates now stand for."""

    def figures(self, trace: "Trace") -> list[Figure]:
        """What the search saw, for the report."""


@dataclass(frozen=True)
class Trace:
    """The gates' values at `TRACE_POINTS` moments: name -> (moments, *shape of the gate)."""

    epochs: list[float]
    """When, in epochs."""
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """A finished search on one supernet. `samples`: rows that weights or gates were trained on."""

    architecture: Architecture
    figures: list[Figure]
    seconds: float
    samples: int


def search(
    supernet: Supernet,
    train: Table,
    valid: Table,
    settings: TrainSettings,
    *,
    seed: int,
    checkpoints: Path | str | None = None,
    save_seconds: float = SAVE_SECONDS,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> Found:
    """Train the supernet and derive; one without gates has nothing to learn.

    The number of epochs is the schedule's, for gates have no best epoch; weights are not averaged, as nobody uses them
    afterwards. `checkpoints` and `save_seconds` as in `fit`.

    Raises:
        Diverged: as `fit`.
    """
    if not supernet.gates:
        return Found(supernet.derive(), supernet.figures(Trace([], {})), 0.0, 0)
    schedule = supernet.schedule
    settings = settings.model_copy(update={"epochs": schedule.epochs, "patience": schedule.epochs, "average": 0.0})
    if schedule.table_l2 is not None:
        settings = settings.model_copy(update={"table_l2": schedule.table_l2})
    gates = _Gates(supernet, train, valid, settings.batch_size, seed)

    def watch(record: EpochRecord) -> bool:
        on_epoch(record)
        return False

    result = fit(
        placed(supernet.model, settings, partly=True),
        train,
        valid,
        settings,
        task=train.schema.task,
        seed=seed,
        checkpoints=checkpoints,
        save_seconds=save_seconds,
        on_epoch=watch,
        gates=gates,
    )
    started = time.perf_counter()
    for gate in supernet.gates.values():  # a few numbers, which methods read where their other data are
        gate.data = gate.data.cpu()
    supernet.relax(1.0, frozen=False, deciding=False)
    architecture, figures = supernet.derive(), supernet.figures(gates.trace())
    seconds = result.seconds + time.perf_counter() - started
    return Found(architecture, figures, seconds, result.samples + gates.samples)


class _Gates:
    """The gates' side of the fit loop (`fit.Gates`)."""

    def __init__(self, supernet: Supernet, train: Table, valid: Table, batch_size: int, seed: int) -> None:
        self.supernet, self.schedule = supernet, supernet.schedule
        self.model, self.valid, self.batch_size, self.seed = supernet.model, valid, batch_size, seed
        names = {id(weight): name for name, weight in supernet.model.named_parameters()}
        self.names = frozenset(names[id(gate)] for gate in supernet.gates.values())
        self.per_epoch = train.steps(batch_size)
        self.steps = self.per_epoch * self.schedule.epochs
        self.frozen = round(self.schedule.warm_up * self.steps)
        self.optimizer = supernet.optimizer(max((self.steps - self.frozen) // self.schedule.every, 1))
        self.step = self.decided = self.samples = 0
        self.rows: Iterator[Batch] | None = None
        self.epochs: list[float] = []
        self.values: dict[str, list[Tensor]] = {name: [] for name in supernet.gates}
        self._note()

    def trace(self) -> Trace:
        return Trace(self.epochs, {name: torch.stack(values) for name, values in self.values.items()})

    def before_step(self) -> None:
        self._relax(deciding=False)

    def after_step(self, batch: Batch, loss: Callable[[Batch], Tensor]) -> None:
        self.step += 1
        if self.step > self.frozen and (self.step - self.frozen) % self.schedule.every == 0:
            self._decide(batch, loss)
        for gate in self.supernet.gates.values():
            gate.grad = None
        if self.step * TRACE_POINTS // self.steps > (self.step - 1) * TRACE_POINTS // self.steps:
            self._note()

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "step": self.step,
            "decided": self.decided,
            "samples": self.samples,
            "epochs": self.epochs,
        }
        for name, gate in self.supernet.gates.items():
            state[f"values/{name}"] = torch.stack(self.values[name])
            state |= {f"optimizer/{key}/{name}": value for key, value in self.optimizer.state[gate].items()}
        return state

    def load_state(self, saved: dict[str, Any]) -> None:
        self.step, self.decided, self.samples = saved["step"], saved["decided"], saved["samples"]
        self.epochs = saved["epochs"]
        self.values = {name: list(saved[f"values/{name}"]) for name in self.supernet.gates}
        for name, value in saved.items():
            kind, _, rest = name.partition("/")
            if kind == "optimizer":
                key, _, gate = rest.partition("/")
                parameter = self.supernet.gates[gate]
                # Numbers of steps stay where Adam reads them.
                self.optimizer.state[parameter][key] = value.to(parameter.device) if value.dim() else value
        self.rows = None

    def _decide(self, batch: Batch, loss: Callable[[Batch], Tensor]) -> None:
        """One update of the gates."""
        if self.schedule.level != "single":
            batch = batch if self.schedule.level == "alternating" else self._next_valid()
            self._relax(deciding=True)
            gates = list(self.supernet.gates.values())
            with _buffers_kept(self.model):
                # Gradients of the gates alone: those of the weights are not even computed.
                gradients = torch.autograd.grad(loss(batch), gates)
            for gate, gradient in zip(gates, gradients, strict=True):
                gate.grad = summed(gradient) / rank_and_world()[1]
            self.samples += batch.of
            self._relax(deciding=False)
        self.optimizer.step()
        self.decided += 1

    def _next_valid(self) -> Batch:
        """Validation rows, in another order on every pass over them."""
        passes, start = divmod(self.decided, self.valid.steps(self.batch_size))
        if self.rows is None or start == 0:
            # Another stream of orders than that of the training rows.
            order = (self.seed, (1 << 20) + passes)
            self.rows = self.valid.batches(self.batch_size, seed_epoch=order, start=start)
        return next(self.rows)

    def _relax(self, *, deciding: bool) -> None:
        learning = max(self.step - self.frozen, 0) / max(self.steps - self.frozen, 1)
        self.supernet.relax(learning, frozen=self.step < self.frozen, deciding=deciding)

    def _note(self) -> None:
        self.epochs.append(self.step / self.per_epoch)
        for name, gate in self.supernet.gates.items():
            self.values[name].append(gate.detach().clone().cpu())


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Statistics of normalisations stay as they are: a pass for the gates must teach the rest of the model nothing."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in kept:
            buffer.copy_(value)
