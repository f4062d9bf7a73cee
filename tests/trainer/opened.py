"""Help for tests of searches by gradient: rows with something to learn, and supernets on them."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from components.settings import SearchSpec
from trainer.candidate import Candidate, candidate_space
from trainer.data import Table
from trainer.engines.supernet import Found, Trace
from trainer.methods.base import Opening
from trainer.methods.settings import SECTIONS
from trainer.methods.table import METHODS
from trainer.modules.mixture import Mixture
from trainer.schema import DatasetSchema, Field, Task
from trainer.settings import TrainSettings, TuneSettings
from trainer.space import fill_params

SIZES = {"user": 40, "item": 12, "flag": 3}
QUICK = TrainSettings(batch_size=32, epochs=2, learning_rate=0.01, table_init=0.3, table_l2=0.0)
ROWS, VALID_ROWS = 320, 80


def schema(task: Task = "ctr", rows: int = ROWS) -> DatasetSchema:
    fields = [Field(name=name, kind="categorical", cardinality=size) for name, size in SIZES.items()]
    fields += [Field(name="price", kind="numeric", missing=True), Field(name="age", kind="numeric")]
    return DatasetSchema(
        task=task,
        label="label",
        fields=tuple(fields),
        rows={"train": rows, "valid": rows, "test": rows},
        label_mean=0.5 if task == "ctr" else 3.0,
        label_min=0.0 if task == "ctr" else 1.0,
        label_max=1.0 if task == "ctr" else 5.0,
    )


def table(rows: int = ROWS, *, task: Task = "ctr", seed: int = 0) -> Table:
    """The label follows from user and item and from the sign of age; flag and price (with missing values) are noise."""
    random, truth = np.random.default_rng(seed), np.random.default_rng(99)
    taste = truth.normal(size=(SIZES["user"], 1)) + truth.normal(size=SIZES["item"])
    ids = np.stack([random.integers(0, size, rows) for size in SIZES.values()], axis=1).astype(np.int32)
    numeric = random.normal(size=(rows, 2)).astype(np.float32)
    signal = taste[ids[:, 0], ids[:, 1]] + np.sign(numeric[:, 1]) + 0.3 * random.normal(size=rows)
    numeric[random.random(rows) < 0.2, 0] = np.nan
    label = signal > 0 if task == "ctr" else np.clip(3 + signal, 1, 5)
    return Table(
        schema=schema(task, rows),
        categorical=torch.from_numpy(ids),
        numeric=torch.from_numpy(numeric),
        label=torch.from_numpy(label.astype(np.float32)),
        sequences={},
    )


def written(folder: Path) -> Path:
    """A folder as ingest leaves it, but without a row to test on."""
    for split, made in (("train", table()), ("valid", table(VALID_ROWS, seed=1))):
        (folder / split).mkdir(parents=True)
        columns = {name: made.ids(name).numpy() for name in SIZES}
        columns |= {name: made.numeric[:, place].numpy() for place, name in enumerate(("price", "age"))}
        frame = pl.DataFrame({**columns, "label": made.label.numpy()})
        frame.write_parquet(folder / split / "part-00000.parquet")
    (folder / "schema.json").write_text(schema().model_dump_json())
    return folder


def candidate(method: str, schema: DatasetSchema, training: TrainSettings = QUICK, **settings: Any) -> Candidate:
    """The all-defaults trial of a method."""
    chosen, own = METHODS[method], SearchSpec.model_validate({SECTIONS.get(method, method): settings}).section(method)
    plan = chosen.plan(own) if chosen.plan else None
    space = candidate_space(chosen.space(schema, own), training, TuneSettings(table_l2=[]), plan)
    return Candidate.from_dict(fill_params(space, {}))


def opened(
    method: str,
    *,
    train: Table | None = None,
    valid: Table | None = None,
    training: TrainSettings = QUICK,
    seed: int = 1,
    **settings: Any,
) -> Any:
    """The supernet of the method's all-defaults trial."""
    train, valid = train or table(), valid or table(VALID_ROWS, seed=1)
    made = candidate(method, train.schema, training, **settings)
    open_supernet = METHODS[method].supernet
    assert open_supernet is not None
    assert made.supernet is not None
    return open_supernet(Opening(made.architecture, made.supernet, training, train, valid, seed))


def searched(
    net: Any, *, train: Table | None = None, valid: Table | None = None, training: TrainSettings = QUICK, **rest: Any
) -> Found:
    """A whole search on the rows that `opened` takes."""
    train, valid = train or table(), valid or table(VALID_ROWS, seed=1)
    search = METHODS[net.plan["method"]].search
    assert search is not None
    return search(net, train, valid, training, **{"seed": 5, **rest})


class Watched:
    """A supernet that calls `moment` before every pass of a search, and keeps the trace it is shown."""

    trace: Trace

    def __init__(self, net: Any) -> None:
        self.net = net
        self.now = (0.0, False, False)
        """(progress, frozen, deciding), as the engine said last."""
        self.passes: list[tuple[float, bool, bool]] = []
        """The same for every pass over training or validation rows; passes that only measure are left out."""
        net.model.register_forward_pre_hook(self._before)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def relax(self, progress: float, *, frozen: bool, deciding: bool) -> None:
        self.now = (progress, frozen, deciding)
        self.net.relax(progress, frozen=frozen, deciding=deciding)

    def _before(self, model: nn.Module, inputs: Any) -> None:
        if model.training:
            self.passes.append(self.now)
            self.moment()

    def moment(self) -> None:
        """For those who look closer."""

    def figures(self, trace: Trace) -> list[Any]:
        self.trace = trace
        figures: list[Any] = self.net.figures(trace)
        return figures


class Hard(nn.Module):
    """A mixture that takes the likeliest of its normalised candidates, without any softmax."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x_BMND: Tensor) -> Tensor:
        normal_BMND = self.mixture.norm(x_BMND.flatten(0, 1).flatten(1)).view_as(x_BMND)
        best_M = self.mixture.logits.argmax(dim=1)
        return self.mixture.scale * normal_BMND[:, torch.arange(len(best_M)), best_M]
