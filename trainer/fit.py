"""One training from scratch: epochs over the training rows until validation stops improving.

Everything that decides the result is derived from the settings and the seed: the order of an epoch's rows comes from
(seed, epoch), the dropout of a step from (seed, epoch, step). A training that was killed therefore goes on from its
last checkpoint, be it in the middle of an epoch, to bit-equal weights, as long as it runs with the same number of
threads and processes; with another number of processes, to the same but for the order of sums, and for dropout.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import metrics
from trainer.average import RunningAverage
from trainer.checkpoint import Checkpoints, State
from trainer.cpu import multiplies_bf16, prepare_process
from trainer.data import Batch, Table
from trainer.device import device_of
from trainer.metrics import Vector
from trainer.modules.router import Router
from trainer.modules.values import ItemLogits, Output, multiplied_out
from trainer.optim import Optimizers
from trainer.pieces import Piece, Shape, beside, room
from trainer.processes import gather_rows, most, rank_and_world, summed
from trainer.ranking import CELLS, Best, best, items, ranked
from trainer.schema import DatasetSchema, Task
from trainer.settings import SAVE_SECONDS, TrainSettings
from trainer.sharding import ahead, local_weights, pieces, unwrapped

BF16_MACS = 20_000
"""`precision: auto` uses bf16 from this many multiply-adds per row in matrix products, on CPUs that multiply bf16."""
CLOCK_STEPS = 16
"""Steps from one look at the clock to the next; the processes of a training must agree on the time."""


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


Outputs = Callable[[Batch], Tensor]
"""What a model gives for a batch of B rows in the training's number format: (B,) float32."""


class Gates(Protocol):
    """What a search decides while the weights of its supernet train (`engines.supernet`)."""

    names: frozenset[str]
    """Parameters of the model that are no weights: the training leaves them alone."""
    in_order: bool
    """Whether the rows pass in their own order, not in a random one."""

    def before_step(self, batch: Batch, output: Outputs) -> None:
        """Before the forward pass of each step on its `batch`; `output` as in `after_step`."""

    def after_step(self, batch: Batch, output: Outputs) -> None:
        """After the weights' update: gradients of the step are still there.

        `output` gives that of any batch on the model's device; several processes each have their rows of a batch.
        """

    def state(self) -> dict[str, Any]:
        """By name: tensors, or what JSON can hold."""

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
    checkpoints: Path | str | None = None,
    save_seconds: float = SAVE_SECONDS,
    on_epoch: Callable[[EpochRecord], bool] = lambda record: False,
    gates: Gates | None = None,
) -> FitResult:
    """Train `model` in place; at the end it carries the weights of its best epoch (their running average, if on).

    With `gates` it is a supernet, and is left as it stands after its last epoch.

    Args:
        model: as `build.build` makes it, or that after `sharding.shard`; every process then calls `fit` alike. It is
            trained on the device that it is on.
        seed: decides the order of the rows and dropout. The global random state of torch is set from it.
        checkpoints: folder (a path or an fsspec URL) for the states of the training; the newest found is continued.
        save_seconds: time between two states within an epoch.
        on_epoch: sees each epoch; True stops the training as hopeless ("pruned"). After a resume it sees the epochs
            before it again, so that whoever follows the curve has all of it.

    Raises:
        Diverged: the training loss or the validation metric is not finite.
    """
    run = _Run(model, train, valid, settings, task, seed, gates)
    if checkpoints is not None:
        run.resume(checkpoints, save_seconds)
    if any(on_epoch(record) for record in run.history):
        return run.finish("pruned")
    while (stopped := run.stopped()) is None:
        if on_epoch(run.next_epoch()):
            return run.finish("pruned")
    return run.finish(stopped)


@torch.inference_mode()
def predict(model: nn.Module, table: Table, batch_size: int = 16_384) -> Vector:
    """Predictions for all rows of the split in their order, (N,) float64, in full precision.

    ctr: probabilities. rating: ratings within the range seen in training. next_item: (N, 3), what metrics need of each
    row (`ranking.ranked`). Of several processes each predicts the rows it holds, and gets the predictions of all.
    """
    schema = table.schema
    outputs = _outputs(model, table, batch_size)
    if schema.task == "next_item":
        parts = [ranked(logits_BI, batch.label, row).cpu() for row, batch, logits_BI in outputs]
        return cast(Vector, _of_all(table, parts, (3,)).numpy())
    output_N = _of_all(table, [output_B.double().cpu() for _, _, output_B in outputs])
    return cast(Vector, answers(schema, output_N).numpy())


def answers(schema: DatasetSchema, output_N: Tensor) -> Tensor:
    """What outputs stand for, of the same shape. ctr: probabilities. rating: ratings in the range seen in training."""
    return output_N.sigmoid() if schema.task == "ctr" else output_N.clamp(schema.label_min, schema.label_max)


@torch.inference_mode()
def recommend(model: nn.Module, table: Table, count: int) -> Best:
    """next_item: the `count` best items of all rows in their order; labels are not looked at."""
    found = [best(logits_BI, count) for _, _, logits_BI in _outputs(model, table)]
    width = (min(count, items(table.schema) - 1),)
    return Best(
        _of_all(table, [part.ids.cpu() for part in found], width, torch.int64),
        _of_all(table, [part.probabilities.cpu() for part in found], width),
    )


def _outputs(model: nn.Module, table: Table, batch_size: int = 16_384) -> Iterator[tuple[int, Batch, Tensor]]:
    """For each batch of the rows held here: the position of its first row in the split, its rows, and the output."""
    if table.schema.task == "next_item":
        batch_size = max(1, min(batch_size, CELLS // items(table.schema)))
    if was_training := model.training:
        model.eval()
    device, first = device_of(model), table.first
    # A sharded model answers all processes or none, so those with fewer rows give their last row again.
    rows_N = torch.arange(most(table.rows)).clamp_(max=table.rows - 1)
    for place in range(0, len(rows_N), batch_size):
        batch = table.take(rows_N[place : place + batch_size]).to(device)
        yield first + place, batch, multiplied_out(model(batch))
    if was_training:
        model.train()


def _of_all(
    table: Table, parts: list[Tensor], width: tuple[int, ...] = (), dtype: torch.dtype = torch.float64
) -> Tensor:
    """The rows of the parts, padding cut off, then those of the other processes."""
    return gather_rows(torch.cat(parts or [torch.empty(0, *width, dtype=dtype)])[: table.rows])


@dataclass
class _Begun:
    """What there is of an epoch after `step` steps; sums over the rows of this process."""

    step: int = 0
    loss: float = 0.0
    samples: float = 0.0
    seconds: float = 0.0
    """Of the time before a resume."""


class _Run:
    """The state of one training between steps."""

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
        self.device = device_of(model)
        self.valid_label = gather_rows(valid.label).numpy()
        self.settings, self.task, self.seed, self.gates = settings, task, seed, gates
        self.key = f"{task} seed {seed} {settings.model_dump_json()}"
        self.history: list[EpochRecord] = []
        self.best_epoch = -1
        self.begun = _Begun()
        self.weights = local_weights(model)
        self.pieces = pieces(model)
        self.best: dict[str, Tensor] = {}
        shares = _penalty_shares(model, train, settings.table_l2_power) if settings.table_l2_power else {}
        without = gates.names if gates else frozenset[str]()
        self.optimizers = Optimizers(unwrapped(model), _table_names(model), settings, shares, without)
        self.average = RunningAverage(self.weights, self.optimizers, settings.average) if settings.average else None
        self.precision = _precision(model, settings)
        self.checkpoints: Checkpoints | None = None
        self.save_seconds = SAVE_SECONDS
        self.saved, self.started = time.monotonic(), time.perf_counter()

    def resume(self, folder: Path | str, save_seconds: float) -> None:
        """Go on from the newest state in `folder`, if there is one, and save there from now on."""
        self.checkpoints, self.save_seconds = Checkpoints(folder, self.key), save_seconds
        live = self._tensors()

        def place(name: str, shape: Shape, dtype: torch.dtype) -> list[Piece]:
            weight = _weight_of(name)
            if weight is None:
                return [Piece.whole(torch.empty(shape, dtype=dtype))]
            return live[name] if name in live else room(self.pieces.get(weight, []), shape, dtype)

        state = self.checkpoints.newest(place)
        if state is not None:
            self._restore(state)

    def stopped(self) -> Literal["patience", "epochs"] | None:
        epochs = len(self.history)
        if epochs and epochs - 1 - self.best_epoch >= self.settings.patience:
            return "patience"
        return "epochs" if epochs >= self.settings.epochs else None

    def next_epoch(self) -> EpochRecord:
        """Train one epoch, or the rest of one, validate, and keep the weights if they are the best so far."""
        self.started = time.perf_counter() - self.begun.seconds
        loss, samples = self._train_epoch()
        with self.average.applied() if self.average else nullcontext():
            valid = metrics.evaluate(self.task, self.valid_label, predict(self.model, self.valid))
            value = valid[metrics.MAIN[self.task]]
            if not math.isfinite(value):
                raise Diverged(f"the validation {metrics.MAIN[self.task]} of epoch {len(self.history)} is {value}")
            better = not self.history or value < self.history[-1].best
            if better:
                self.best_epoch = len(self.history)
                if self.gates is None:
                    self._keep()
        best = value if better else self.history[-1].best
        record = EpochRecord(len(self.history), loss, valid, best, time.perf_counter() - self.started, samples)
        self.history.append(record)
        self.begun, self.started = _Begun(), time.perf_counter()
        self._save()
        return record

    def _keep(self) -> None:
        """Put the weights aside as the best, in the place of those before."""
        if self.best:
            for name, weight in self.weights.items():
                self.best[name].copy_(weight)
        else:
            self.best = {name: weight.clone() for name, weight in self.weights.items()}

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

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        gates = self.gates.state() if self.gates else {}
        facts = {
            "begun": asdict(self._begun_by_all()),
            "best_epoch": self.best_epoch,
            "gates": {name: value for name, value in gates.items() if not isinstance(value, Tensor)},
            "history": [asdict(record) for record in self.history],
        }
        self.checkpoints.save(len(self.history), self.begun.step, State(self._tensors(), facts))
        self.saved = time.monotonic()

    def _tensors(self) -> dict[str, list[Piece]]:
        """All that the coming steps depend on, not copies."""
        values = {f"best/{name}": value for name, value in self.best.items()}
        for name, kept in self.optimizers.state().items():
            values |= {f"optimizer/{key}/{name}": value for key, value in kept.items()}
        if self.average:
            values |= {f"average/{name}": value for name, value in self.average.state().items()}
        if self.gates:
            states = self.gates.state().items()
            values |= {f"gates/{name}": value for name, value in states if isinstance(value, Tensor)}
        tensors = {f"weight/{name}": held for name, held in self.pieces.items()}
        for name, value in values.items():
            weight = _weight_of(name)
            tensors[name] = [Piece.whole(value) if weight is None else beside(self.pieces[weight][0], value)]
        return tensors

    def _restore(self, state: State) -> None:
        """The weights have been read in place."""
        kinds: dict[str, dict[str, Tensor]] = {"best": {}, "average": {}, "gates": {}}
        optimizers: dict[str, dict[str, Tensor]] = {}
        for name, [piece] in state.tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "optimizer":
                key, _, weight = rest.partition("/")
                optimizers.setdefault(weight, {})[key] = piece.tensor
            else:
                kinds.setdefault(kind, {})[rest] = piece.tensor
        assert kinds["weight"].keys() == self.pieces.keys()
        self.best, self.best_epoch = kinds["best"], state.facts["best_epoch"]
        self.optimizers.load_state(optimizers)
        if self.average:
            self.average.load_state(kinds["average"])
        if self.gates:
            self.gates.load_state({**state.facts["gates"], **kinds["gates"]})
        self.history = [EpochRecord(**record) for record in state.facts["history"]]
        self.begun = _Begun(**state.facts["begun"])
        if rank_and_world()[0] > 0:
            self.begun = replace(self.begun, loss=0.0, samples=0.0)

    def _train_epoch(self) -> tuple[float, int]:
        """Mean loss per row and number of rows (of all processes)."""
        epoch, begun = len(self.history), self.begun
        rank, world = rank_and_world()
        seed = _dropout_seed(self.seed, epoch, rank)
        self.model.train()
        order = None if self.gates and self.gates.in_order else (self.seed, epoch)
        batches = self.train.batches(self.settings.batch_size, seed_epoch=order, start=begun.step)
        for batch in ahead(self.model, (batch.to(self.device) for batch in batches)):
            _seed(self.device, seed + begun.step)
            step_loss = self._step(batch)
            begun.loss += step_loss * batch.of / world
            begun.samples += batch.of / world
            begun.step += 1
            # Where there are more processes they have to stop at the same moment, which is the end of the epoch.
            if world == 1 and not math.isfinite(step_loss):
                break
            if self.checkpoints and begun.step % CLOCK_STEPS == 0 and self._due():
                self._save()
        whole = self._begun_by_all()
        mean = whole.loss / max(whole.samples, 1)
        if not math.isfinite(mean):
            raise Diverged(f"the training loss of epoch {epoch} became {mean}")
        return mean, round(whole.samples)

    def _begun_by_all(self) -> _Begun:
        """`begun` with the sums over the rows of all processes."""
        loss, samples = summed(torch.tensor([self.begun.loss, self.begun.samples], dtype=torch.float64)).tolist()
        return replace(self.begun, loss=loss, samples=samples, seconds=time.perf_counter() - self.started)

    def _due(self) -> bool:
        # The clocks of machines differ, but all processes have to save at the same step.
        return most(int(time.monotonic() - self.saved >= self.save_seconds)) > 0

    def _step(self, batch: Batch) -> float:
        """One update of all weights; the loss before it, whose mean over the processes is that of the batch."""

        def output(rows: Batch) -> Tensor:
            return multiplied_out(self._output(rows, unwrapped(self.model)))

        if self.gates:
            self.gates.before_step(batch, output)
        step_loss = loss(self.task, self._output(batch, self.model), batch)
        step_loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers.coalesce()
        self.optimizers.step(without=unwrapped(self.model).tables.resting_parameters())
        if self.average:
            self.average.after_step()
        if self.gates:
            self.gates.after_step(batch, output)
        self.optimizers.zero_grad()
        return step_loss.item()

    def _output(self, batch: Batch, model: nn.Module) -> Output:
        with self.precision:
            output: Output = model(batch)
        return output.float() if isinstance(output, Tensor) else output


def loss(task: Task, output: Output, batch: Batch) -> Tensor:
    """What training minimises; its mean over the processes is that of the batch.

    Args:
        task: ctr: log loss. rating: squared error. next_item: cross-entropy of the soft-max over all items.
        output: of the model, in float32 where it is a tensor.
        batch: the same B rows.
    """
    # Processes may have unequal parts of a batch, but gradients are averaged over processes.
    share = rank_and_world()[1] / batch.of
    if isinstance(output, ItemLogits):
        return output.loss(batch.label) * share
    if task == "ctr":
        return functional.binary_cross_entropy_with_logits(output, batch.label, reduction="sum") * share
    assert task == "rating"
    return functional.mse_loss(output, batch.label, reduction="sum") * share


def _weight_of(name: str) -> str | None:
    """The weight that a tensor of a state belongs to, by its name: `best/<weight>`, `optimizer/<key>/<weight>`."""
    kind, _, rest = name.partition("/")
    if kind in ("optimizer", "average"):
        rest = rest.partition("/")[2]
    return rest if rest and kind != "gates" else None


def _dropout_seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank, 1]).generate_state(1, np.uint64)[0] >> 1)


def _seed(device: torch.device, seed: int) -> None:
    """As `torch.manual_seed`, which at every call writes down its stack for each kind of device that is not there."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _precision(model: nn.Module, settings: TrainSettings) -> AbstractContextManager[Any]:
    """The number format of the forward pass.

    auto: bf16 pays only where the machine multiplies it (a CPU with AVX-512 BF16 or AMX, a GPU from Ampere on) and the
    products outweigh the casts. The choice follows the machine and the model's shapes, never a stopwatch, so that a
    training repeats itself.
    """
    kind = device_of(model).type
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if kind == "cuda" else multiplies_bf16()
    macs = sum(weight.numel() for weight in unwrapped(model).dense_parameters() if weight.dim() == 2)
    if settings.precision == "bf16" or (settings.precision == "auto" and fast and macs >= BF16_MACS):
        return torch.autocast(kind, dtype=torch.bfloat16)
    return nullcontext()


def _table_names(model: nn.Module) -> set[str]:
    inner = unwrapped(model)
    tables = {id(table) for table in inner.table_parameters()}
    return {name for name, parameter in inner.named_parameters() if id(parameter) in tables}


def _penalty_shares(model: nn.Module, train: Table, power: float) -> dict[str, Tensor]:
    """Table's parameter name -> (rows,) float32: (share of training rows that visit the row) ** power.

    With power 1 a row is penalised in proportion to its visits, as by plain SGD; with 0 all rows are, at every step.
    """
    tables = unwrapped(model).tables
    rows_of = {None: train} if tables.router is None else _by_part(tables.router, train)
    visits = {spec.name: summed(rows_of[spec.part].visits(spec.readers, spec.held)) for spec in tables.specs}
    shares = {table: (count / train.total).pow(power) for table, count in visits.items()}
    # ...embedding_bags.<table>.weight
    names = {name: name.rsplit(".", 2)[-2] for name, _ in unwrapped(model).named_parameters() if "." in name}
    return {name: shares[table] for name, table in names.items() if table in shares}


def _by_part(router: Router, train: Table) -> dict[int | None, Table]:
    """The rows of each part of a routed model."""
    group_N = router.groups_of(train.categorical)
    return {group: train.select((group_N == group).nonzero().squeeze(1)) for group in range(router.groups)}
