"""The engine of searches in stages, on AMEIR: exact resuming, what is counted, what a step moves, what is passed on."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts.test_methods import rows_of
from tests.trainer.mixed import mixed_schema
from tests.trainer.opened import QUICK, candidate
from trainer.data import Table
from trainer.engines import staged
from trainer.engines.sampled import Choice, losses
from trainer.engines.staged import Scores
from trainer.engines.supernet import Found
from trainer.fit import EpochRecord
from trainer.methods.ameir import AMEIR
from trainer.methods.base import Opening
from trainer.metrics import Vector
from trainer.schema import Task

EPOCHS, ROWS, VALID_ROWS = 2, 96, 40
STAGES = ["behavior", "products2", "products3", "layers"]
SMALL: dict[str, Any] = {"epochs": EPOCHS, "dims": [4], "units": [[6, 5]], "candidates": 5, "products": 2, "sample": 3}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tables(task: Task = "ctr") -> tuple[Table, Table]:
    return rows_of(mixed_schema(task), ROWS), rows_of(mixed_schema(task), VALID_ROWS, seed=1)


def opened(task: Task = "ctr", **settings: Any) -> AMEIR:
    train, valid = tables(task)
    made = candidate("ameir", train.schema, QUICK, **(SMALL | settings))
    assert made.supernet is not None
    return AMEIR(Opening(made.architecture, made.supernet, QUICK, train, valid, seed=1))


class Seen:
    """A method whose stages can be looked at; pairs are always kept, so that there is a third order."""

    def __init__(self, net: Any) -> None:
        self.net = net
        self.all: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def stages(self) -> Iterator[Any]:
        for stage in self.net.stages():
            self.all.append(stage)
            yield stage
            if stage.name == "products2" and not stage.grown:
                stage.decided = stage.decided_by({"products": torch.tensor([0])})


def searched(net: Any, task: Task = "ctr", **rest: Any) -> Found:
    return staged.search(net, *tables(task), QUICK, **{"seed": 5, **rest})


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process."""


def same(one: Found, other: Found) -> None:
    assert one.architecture == other.architecture
    assert (one.figures, one.samples, one.sample) == (other.figures, other.samples, other.sample)


@pytest.mark.parametrize("last", [0, 1, 4, 7])
def test_a_killed_search_goes_on_and_epochs_count_through_the_stages(last: int, tmp_path: Path) -> None:
    def die(record: EpochRecord) -> None:
        if record.epoch == last:
            raise Killed

    with pytest.raises(Killed):
        searched(Seen(opened()), checkpoints=tmp_path, on_epoch=die)
    seen: list[int] = []
    net = Seen(opened())
    resumed = searched(net, checkpoints=tmp_path, on_epoch=lambda record: seen.append(record.epoch))
    assert [stage.name for stage in net.all] == STAGES
    assert seen == list(range(EPOCHS * len(STAGES)))
    whole = Seen(opened())
    same(resumed, searched(whole))
    for mine, other in zip(net.all, whole.all, strict=True):
        for name, value in mine.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name


class Mortal(Seen):
    """Dies at a step of its last stage."""

    def stages(self) -> Iterator[Any]:
        for stage in super().stages():
            if stage.name == STAGES[-1]:
                stage.take = self._die_at(stage.take, 4)
            yield stage

    def _die_at(self, take: Any, life: int) -> Any:
        def mortal(choice: Choice) -> None:
            nonlocal life
            life -= 1
            if life == 0:
                raise Killed
            take(choice)

        return mortal


def test_a_search_killed_in_an_epoch_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        searched(Mortal(opened()), checkpoints=tmp_path, save_seconds=0.0)
    same(searched(Seen(opened()), checkpoints=tmp_path), searched(Seen(opened())))


def test_trained_and_scored_rows_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    net, scored = Seen(opened()), dict.fromkeys(STAGES, 0)

    def counted(stage: Any, choice: Choice, rows: Table) -> Vector:
        found = losses(stage, choice, rows)
        scored[stage.name] += len(found)
        return found

    monkeypatch.setattr(staged, "losses", counted)
    found = searched(net)
    assert found.samples == len(STAGES) * EPOCHS * ROWS + sum(scored.values())
    assert scored["behavior"] == scored["layers"] == SMALL["candidates"] * VALID_ROWS
    for name in ("products2", "products3"):  # all candidates, then the best in company
        assert VALID_ROWS < scored[name] <= 2 * ROWS + (1 + 2 * SMALL["products"]) * VALID_ROWS


def test_the_sample_holds_blind_choices_of_the_first_stage() -> None:
    found = searched(opened(candidates=2))
    assert len({one.architecture.hash for one in found.sample}) == SMALL["sample"] == len(found.sample)
    assert all(any(node.op == "seq" for node in one.architecture.nodes) for one in found.sample[:2])
    assert not any(node.op == "hadamard" for one in found.sample for node in one.architecture.nodes)


# ---- sheet, test 3: only what was drawn is updated ------------------------------------------------------------------


def parts_of(stage: Any, choice: Choice) -> set[str]:
    """The beginnings of the names of the weights that belong to the alternatives that a choice takes."""
    if stage.name == "behavior":
        norms, layers = choice["history/norm"].tolist(), choice["history/layer"].tolist()
        blocks = enumerate(zip(norms, layers, strict=True))
        found = {f"nodes.seq:history0-block{place}.op.blocks.{norm}-{layer}." for place, (norm, layer) in blocks}
        pooling = stage.skeleton.poolings("history")[int(choice["history/pooling"])]
        return {*found, f"nodes.target_attention:history0-pool.op.kinds.{pooling}."}
    names = ["*".join(sorted(stage.sets[place])).replace(".", "%2E") for place in choice["products"].tolist()]
    return {f"nodes.mlp:deep.op.{layer}.columns.{name}" for name in names for layer in ("layers.0", "linear")}


@pytest.mark.parametrize("name", ["behavior", "products2", "products3"])
def test_3_only_what_was_drawn_is_updated(name: str) -> None:
    """Not even by what Adam remembers of former steps."""
    net = Seen(opened())
    moments: list[tuple[Choice, dict[str, Tensor]]] = []

    def stages() -> Iterator[Any]:
        for stage in Seen.stages(net):
            take = stage.take
            if stage.name == name:

                def noted(choice: Choice, stage: Any = stage, take: Any = take) -> None:
                    weights = {key: value.detach().clone() for key, value in stage.model.named_parameters()}
                    moments.append((choice, weights))
                    take(choice)

                stage.take = noted
            yield stage

    object.__setattr__(net, "stages", stages)
    searched(net)
    [stage] = [one for one in net.all if one.name == name]
    steps = ROWS // QUICK.batch_size
    marks = (".op.blocks.", ".op.kinds.", ".columns.")
    moved = 0
    for (choice, before), (_, after) in pairwise(moments[: steps + 1]):
        drawn = parts_of(stage, choice)
        for key in (key for key in before if any(mark in key for mark in marks)):
            taken = any(key.startswith(part) for part in drawn)
            assert taken or torch.equal(before[key], after[key]), key
            moved += taken and not torch.equal(before[key], after[key])
    assert moved > 0


# ---- what is passed on ----------------------------------------------------------------------------------------------


def test_a_stage_begins_with_the_weights_of_what_was_decided() -> None:
    net = Seen(opened(pooling=["target", "mean"], layers=["conv3", "gru"]))
    begun: dict[str, dict[str, Tensor]] = {}

    def stages() -> Iterator[Any]:
        for stage in Seen.stages(net):
            take = stage.take

            def first(choice: Choice, stage: Any = stage, take: Any = take) -> None:
                begun.setdefault(stage.name, {k: v.detach().clone() for k, v in stage.model.named_parameters()})
                take(choice)

            stage.take = first
            yield stage

    object.__setattr__(net, "stages", stages)
    searched(net)
    behavior = net.all[0]
    for place in range(2):
        block = behavior.model.node(f"history0-block{place}").op.taken
        for name, value in block.named_parameters():
            assert torch.equal(begun["products2"][f"nodes.seq:history0-block{place}.op.{name}"], value), name
    tables = {name: value for name, value in behavior.model.named_parameters() if name.startswith("tables.")}
    assert tables
    assert all(torch.equal(begun["products2"][name], value) for name, value in tables.items())
    old = {name: value for name, value in net.all[1].model.named_parameters() if "columns" in name}
    kept = ["*".join(sorted(one)).replace(".", "%2E") for one in net.all[1].decided.products]
    for name, value in old.items():
        if name.rpartition("columns.")[2] in kept:
            assert torch.equal(begun["products3"][name], value)


def test_some_rows_are_drawn_without_repetition() -> None:
    net = opened()
    stage = next(iter(net.stages()))
    scores = Scores(stage, tables()[1], seed=3)
    some = scores.some(10)
    assert some.rows == 10
    assert scores.some(VALID_ROWS) is scores.rows
    assert torch.equal(some.label, scores.some(10).label)
    choice = stage.draw(torch.Generator().manual_seed(0))
    assert scores(choice, some).shape == (10,)
    assert scores(choice).tolist() == losses(stage, choice, tables()[1]).tolist()
    assert scores.samples == 10 + VALID_ROWS
