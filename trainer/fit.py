"""One training from scratch: epochs over the training rows until validation stops improving.

Everything that decides the result is derived from the settings and the seed: the order of the rows and the dropout of
an epoch come from (seed, epoch). A training that was killed therefore goes on from its last checkpoint to bit-equal
weights, as long as it runs with the same number of threads and processes.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import metrics
from trainer.average import RunningAverage
from trainer.checkpoint import Checkpoints
from trainer.cpu import prepare_process
from trainer.data import Batch, Table
from trainer.metrics import Vector
from trainer.optim import Optimizers
from trainer.schema import Task
from trainer.settings import TrainSettings
from trainer.sharding import gather_rows, local_weights, mean_over_processes, rank_and_world

BF16_MACS = 20_000
"""`precision: auto` uses bf16 from this many multiply-adds per row in matrix products, on CPUs that multiply bf16."""


class Diverged(Exception):  # noqa: N818 - a fate of a training, not a fault in it
    """The loss is no finite number: a candidate that cannot be trained with these settings, not a user's mistake."""


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to. Epochs count from 0."""

    epoch: int
    train_loss: float
    """Mean loss of the steps, without penalties."""
    valid: dict[str, float]
    """The task's metrics on the validation rows."""
    best: float
    """Best value so far of the main metric (`metrics.MAIN`), the lower the better."""
    seconds: float
    """Wall time of this epoch, validation included."""
    samples: int
    """Rows trained on in this epoch."""


class Gates(Protocol):
    """What a search decides while the weights of its supernet train (`engines.gradient`)."""

    names: frozenset[str]
    """Parameters of the model that are no weights: the training leaves them alone."""

    def before_step(self) -> None:
        """Before the forward pass of each step."""

    def after_step(self, batch: Batch, loss: Callable[[Batch], Tensor]) -> None:
        """After the weights' update: gradients of the step are still there; `loss` gives that of any batch."""

    def state(self) -> dict[str, Any]: ...

    def load_state(self, saved: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class FitResult:
    """A finished training. `seconds` and `samples` are sums over all epochs, also those before a resume."""

    history: tuple[EpochRecord, ...]
    best_epoch: int
    best_value: float
    stopped: Literal["patience", "epochs", "pruned"]
    seconds: float
    samples: int


def fit(
    model: nn.Module,
    train: Table,
    valid: Table,
    settings: TrainSettings,
    *,
    task: Task,
    seed: int,
    checkpoints: Path | None = None,
    on_epoch: Callable[[EpochRecord], bool] = lambda record: False,
    gates: Gates | None = None,
) -> FitResult:
    """Train `model` in place; at the end it carries the weights of its best epoch (their running average, if on).

    With `gates` it is a supernet, and is left as it stands after its last epoch.

    Args:
        model: as `build.build` makes it, or that after `sharding.shard`; every process then calls `fit` alike.
        seed: decides the order of the rows and dropout. The global random state of torch is set from it.
        checkpoints: folder for the states after each epoch; a state found there is continued.
        on_epoch: sees each epoch; True stops the training as hopeless ("pruned"). After a resume it sees the epochs
            before it again, so that whoever follows the curve has all of it.

    Raises:
        Diverged: the training loss or the validation metric is not finite.
    """
    run = _Run(model, train, valid, settings, task, seed, gates)
    store = Checkpoints(checkpoints, run.key) if checkpoints is not None else None
    state = store.newest() if store else None
    if state:
        run.restore(state)
    if any(on_epoch(record) for record in run.history):
        return run.finish("pruned")
    while (stopped := run.stopped()) is None:
        record = run.next_epoch()
        if store:
            store.save(record.epoch, run.state())
        if on_epoch(record):
            return run.finish("pruned")
    return run.finish(stopped)


@torch.inference_mode()
def predict(model: nn.Module, table: Table, batch_size: int = 16_384) -> Vector:
    """Predictions for all rows in their order, (N,) float64, in full precision.

    ctr: probabilities. rating: ratings within the range seen in training. Of a sharded model every process gets all.
    """
    was_training = model.training
    model.eval()
    rank, world = rank_and_world()
    even = -(-table.rows // world) * world
    mine = torch.arange(even).clamp_(max=table.rows - 1)[rank::world]
    outputs = [model(table.take(rows)).double() for rows in torch.split(mine, batch_size)] if table.rows else []
    model.train(was_training)
    output_N = gather_rows(torch.cat(outputs or [torch.empty(0, dtype=torch.float64)]))[: table.rows]
    schema = table.schema
    if schema.task == "ctr":
        return cast(Vector, output_N.sigmoid().numpy())
    return cast(Vector, output_N.clamp(schema.label_min, schema.label_max).numpy())


class _Run:
    """The state of one training between epochs."""

    def __init__(
        self,
        model: nn.Module,
        train: Table,
        valid: Table,
        settings: TrainSettings,
        task: Task,
        seed: int,
        gates: Gates | None,
    ) -> None:
        prepare_process()
        self.model, self.train, self.valid = model, train, valid
        self.settings, self.task, self.seed, self.gates = settings, task, seed, gates
        self.key = f"{task} seed {seed} {settings.model_dump_json()}"
        self.history: list[EpochRecord] = []
        self.best_epoch = -1
        self.weights = local_weights(model)
        self.best: dict[str, Tensor] = {}
        shares = _penalty_shares(model, train, settings.table_l2_power) if settings.table_l2_power else {}
        without = gates.names if gates else frozenset[str]()
        self.optimizers = Optimizers(model, _table_names(model), settings, shares, without)
        self.average = RunningAverage(self.weights, self.optimizers, settings.average) if settings.average else None
        self.precision = _precision(model, settings)

    def stopped(self) -> Literal["patience", "epochs"] | None:
        epochs = len(self.history)
        if epochs and epochs - 1 - self.best_epoch >= self.settings.patience:
            return "patience"
        return "epochs" if epochs >= self.settings.epochs else None

    def next_epoch(self) -> EpochRecord:
        """Train one epoch, validate, and keep the weights if they are the best so far."""
        started = time.perf_counter()
        loss, samples = self._train_epoch(len(self.history))
        with self.average.applied() if self.average else nullcontext():
            valid = metrics.evaluate(self.task, self.valid.label.numpy(), predict(self.model, self.valid))
            value = valid[metrics.MAIN[self.task]]
            if not math.isfinite(value):
                raise Diverged(f"the validation {metrics.MAIN[self.task]} of epoch {len(self.history)} is {value}")
            better = not self.history or value < self.history[-1].best
            if better:
                self.best_epoch = len(self.history)
                if self.gates is None:
                    self.best = {name: weight.clone() for name, weight in self.weights.items()}
        best = value if better else self.history[-1].best
        record = EpochRecord(len(self.history), loss, valid, best, time.perf_counter() - started, samples)
        self.history.append(record)
        return record

    def state(self) -> dict[str, Any]:
        """All that the coming epochs depend on; tensors are not copies."""
        return {
            "weights": self.weights,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "optimizers": self.optimizers.state(),
            "average": self.average.state() if self.average else {},
            "gates": self.gates.state() if self.gates else {},
            "history": [asdict(record) for record in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
        self.best = state["best"]
        self.best_epoch = state["best_epoch"]
        self.optimizers.load_state(state["optimizers"])
        if self.average:
            self.average.load_state(state["average"])
        if self.gates:
            self.gates.load_state(state["gates"])
        self.history = [EpochRecord(**record) for record in state["history"]]

    def finish(self, stopped: Literal["patience", "epochs", "pruned"]) -> FitResult:
        for name, weight in self.best.items():
            self.weights[name].copy_(weight)
        self.optimizers.zero_grad()
        return FitResult(
            history=tuple(self.history),
            best_epoch=self.best_epoch,
            best_value=self.history[-1].best,
            stopped=stopped,
            seconds=sum(record.seconds for record in self.history),
            samples=sum(record.samples for record in self.history),
        )

    def _train_epoch(self, epoch: int) -> tuple[float, int]:
        """Mean loss per row and number of rows (of all processes)."""
        rank, world = rank_and_world()
        torch.manual_seed(_dropout_seed(self.seed, epoch, rank))
        self.model.train()
        total, samples = 0.0, 0
        order = (self.seed, epoch)
        for batch in self.train.batches(self.settings.batch_size, seed_epoch=order, rank=rank, world=world):
            loss = self._step(batch)
            if not math.isfinite(loss):
                raise Diverged(f"the training loss of epoch {epoch} became {loss}")
            total, samples = total + loss * batch.size, samples + batch.size
        return mean_over_processes(total / max(samples, 1)), samples * world

    def _step(self, batch: Batch) -> float:
        """One update of all weights; the loss before it, a mean over this process's rows."""
        if self.gates:
            self.gates.before_step()
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers.coalesce()
        if self.average:
            self.average.before_step()
        self.optimizers.step()
        if self.average:
            self.average.after_step()
        if self.gates:
            self.gates.after_step(batch, self._loss)
        self.optimizers.zero_grad()
        return loss.item()

    def _loss(self, batch: Batch) -> Tensor:
        with self.precision:
            output_B = self.model(batch)
        return _loss(self.task, output_B.float(), batch.label)


def _loss(task: Task, output_B: Tensor, label_B: Tensor) -> Tensor:
    if task == "ctr":
        return functional.binary_cross_entropy_with_logits(output_B, label_B)
    return functional.mse_loss(output_B, label_B)


def _dropout_seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank, 1]).generate_state(1, np.uint64)[0] >> 1)


def _precision(model: nn.Module, settings: TrainSettings) -> AbstractContextManager[Any]:
    """The number format of the forward pass.

    auto: bf16 pays only where the CPU multiplies it (AVX-512 BF16 or AMX) and the products outweigh the casts. The
    choice follows the machine and the model's shapes, never a stopwatch, so that a training repeats itself.
    """
    macs = sum(weight.numel() for weight in _inner(model).dense_parameters() if weight.dim() == 2)
    pays = (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()) and macs >= BF16_MACS
    if settings.precision == "bf16" or (settings.precision == "auto" and pays):
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()


def _table_names(model: nn.Module) -> set[str]:
    tables = {id(table) for table in _inner(model).table_parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in tables}


def _penalty_shares(model: nn.Module, train: Table, power: float) -> dict[str, Tensor]:
    """Table's parameter name -> (rows,) float32: (share of training rows that visit the row) ** power.

    With power 1 a row is penalised in proportion to its visits, as by plain SGD; with 0 all rows are, at every step.
    """
    visits = {spec.name: train.visits(spec.features, spec.rows) for spec in _inner(model).tables.specs}
    shares = {table: (count / train.rows).pow(power) for table, count in visits.items()}
    # ...embedding_bags.<table>.weight
    names = {name: name.rsplit(".", 2)[-2] for name, _ in model.named_parameters() if "." in name}
    return {name: shares[table] for name, table in names.items() if table in shares}


def _inner(model: nn.Module) -> Any:
    """The built model (`build.Model`) inside a sharded one."""
    return getattr(model, "module", model)
