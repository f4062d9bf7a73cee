"""Searches on a supernet, by both engines: exact resuming, equal seeds, what is counted, the way through a study."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer import opened as rows
from tests.trainer.opened import QUICK, ROWS, VALID_ROWS, Watched, candidate, opened, schema, searched, table
from trainer.architecture import Architecture
from trainer.candidate import Candidate, candidate_space
from trainer.data import Batch, Table
from trainer.engines import gradient
from trainer.engines.supernet import TRACE_POINTS, Found
from trainer.fit import EpochRecord
from trainer.methods.base import Opening
from trainer.methods.table import METHODS
from trainer.schema import Task
from trainer.search import run_studies
from trainer.settings import TrainSettings, TuneSettings
from trainer.space import choice
from trainer.storage import JournalFile
from trainer.study import Study, Trial, TrialRecord
from trainer.workers import Epoch, Job, Outcome, train

EPOCHS = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "autofis": {"epochs": EPOCHS, "triples": [True]},
    "autodim": {"epochs": EPOCHS, "dims": [2, 4, 8], "every": 3, "warm_up": 0.2},
    "autodis": {"epochs": EPOCHS, "encoders": ["scale", "bins", "tree"], "every": 3, "warm_up": 0.2},
    "autogroup": {"epochs": EPOCHS, "dims": [4], "first": [2], "second": [4], "third": [3]},
    "ihas": {"epochs": EPOCHS, "groups": [2], "sparse": [0.3], "warm_up": 0.2, "least": 0.01},
    "mgqe": {"epochs": EPOCHS, "dim": 8, "subspaces": [2], "centroids": [8], "tail_centroids": [4], "warm_up": 0.2},
    "nis": {"epochs": EPOCHS, "dim": 8, "columns": 2, "rows": [0.5, 1.0], "every": 3, "warm_up": 0.2, "sample": 3},
}
every_method = pytest.mark.parametrize("method", SETTINGS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def learned(net: Any) -> dict[str, Tensor]:
    """The gates of a supernet, or its policy."""
    values: dict[str, Tensor] = net.policy if hasattr(net.net, "policy") else net.gates
    return values


def supernet(method: str, **rest: Any) -> Watched:
    torch.manual_seed(0)
    return Watched(opened(method, **SETTINGS[method], **rest))


@dataclass
class End:
    """All that a search leaves."""

    weights: dict[str, Tensor]
    trace: list[Tensor]
    epochs: list[float]
    found: Found

    def assert_equal(self, other: "End") -> None:
        assert self.weights.keys() == other.weights.keys()
        for name, weight in self.weights.items():
            assert torch.equal(weight, other.weights[name]), name
        assert self.epochs == other.epochs
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(self.trace, other.trace, strict=True))
        assert self.found.architecture == other.found.architecture
        assert (self.found.figures, self.found.samples) == (other.found.figures, other.found.samples)


def ended(net: Watched, **rest: Any) -> End:
    found = searched(net, **rest)
    weights = {name: value.clone() for name, value in [*net.model.named_parameters(), *net.model.named_buffers()]}
    return End(weights, list(net.trace.values.values()), net.trace.epochs, found)


# ---- resuming and seeds ---------------------------------------------------------------------------------------------


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process."""


def killed_after(epoch: int) -> Callable[[EpochRecord], None]:
    def on_epoch(record: EpochRecord) -> None:
        if record.epoch == epoch:
            raise Killed

    return on_epoch


@every_method
@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_a_killed_search_ends_like_one_left_alone_bit_by_bit(method: str, epoch: int, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        ended(supernet(method), checkpoints=tmp_path, on_epoch=killed_after(epoch))
    seen: list[int] = []
    resumed = ended(supernet(method), checkpoints=tmp_path, on_epoch=lambda record: seen.append(record.epoch))
    assert seen == list(range(EPOCHS))
    resumed.assert_equal(ended(supernet(method)))


class Mortal(Watched):
    """Dies after so many steps."""

    def __init__(self, net: Any, life: int) -> None:
        super().__init__(net)
        self.life = life

    def moment(self) -> None:
        if sum(not deciding for _, _, deciding in self.passes) > self.life:
            raise Killed


@every_method
def test_a_kill_in_the_middle_of_an_epoch_costs_that_epoch_alone(method: str, tmp_path: Path) -> None:
    steps = ROWS // QUICK.batch_size
    for life in (steps + 3, 4):  # killed twice in the second epoch
        with pytest.raises(Killed):
            ended(Mortal(supernet(method).net, life), checkpoints=tmp_path)
    net = supernet(method)
    resumed = ended(net, checkpoints=tmp_path)
    assert sum(not deciding for _, _, deciding in net.passes) == 2 * steps
    resumed.assert_equal(ended(supernet(method)))


@every_method
def test_a_search_goes_on_within_an_epoch(method: str, tmp_path: Path) -> None:
    """From the state that was saved 16 steps into the second epoch of 40."""
    training = QUICK.model_copy(update={"batch_size": 8})
    steps = ROWS // training.batch_size
    mortal = Mortal(supernet(method, training=training).net, steps + 20)
    with pytest.raises(Killed):
        ended(mortal, training=training, checkpoints=tmp_path, save_seconds=0.0)
    net = supernet(method, training=training)
    resumed = ended(net, training=training, checkpoints=tmp_path)
    assert sum(not deciding for _, _, deciding in net.passes) == EPOCHS * steps - (steps + 16)
    resumed.assert_equal(ended(supernet(method, training=training), training=training))


@every_method
def test_a_finished_search_is_not_made_again(method: str, tmp_path: Path) -> None:
    whole = ended(supernet(method), checkpoints=tmp_path)
    again = supernet(method)
    ended(again, checkpoints=tmp_path).assert_equal(whole)
    assert again.passes == []


@every_method
def test_equal_seeds_give_equal_searches(method: str) -> None:
    """Whatever ran before in the same process: a worker makes one search after another."""
    ends = []
    for before in (1, 2):
        torch.manual_seed(before)
        ends.append(ended(Watched(opened(method, **SETTINGS[method]))))
    ends[0].assert_equal(ends[1])


@every_method
def test_another_seed_gives_another_search(method: str) -> None:
    first, second = ended(supernet(method)), ended(supernet(method, seed=2), seed=6)
    assert not all(torch.equal(mine, theirs) for mine, theirs in zip(first.trace, second.trace, strict=True))


VARIETY: dict[str, tuple[Task, int, dict[str, Any]]] = {
    "ratings": ("rating", ROWS, {}),
    "bf16": ("ctr", ROWS, {"precision": "bf16"}),
    "a last batch of one row": ("ctr", QUICK.batch_size + 1, {}),
    "one row at a time": ("ctr", 5, {"batch_size": 1}),
}


@every_method
@pytest.mark.parametrize("what", VARIETY)
def test_searches_of_every_make_end_in_finite_gates(method: str, what: str) -> None:
    task, size, changed = VARIETY[what]
    train, valid = table(size, task=task), table(size, task=task, seed=1)
    training = QUICK.model_copy(update=changed)
    net = supernet(method, train=train, valid=valid, training=training)
    found = searched(net, train=train, valid=valid, training=training)
    assert found.architecture.task == task
    assert all(weight.isfinite().all() for weight in net.model.parameters())


class Fresh(Watched):
    """Sees to it that no step begins with a gradient of an earlier one, which would count twice."""

    def moment(self) -> None:
        _, _, deciding = self.passes[-1]
        assert deciding or all(value.grad is None or not value.grad.any() for value in learned(self).values())


@every_method
def test_gates_learn_from_one_batch_at_a_time(method: str) -> None:
    net = Fresh(opened(method, **SETTINGS[method]))
    searched(net)
    assert len(net.passes) >= EPOCHS * ROWS // QUICK.batch_size


# ---- what a search sees and counts ----------------------------------------------------------------------------------


def test_no_search_is_given_the_test_rows() -> None:
    tables = {"train", "valid"}
    assert {name for name, one in inspect.signature(gradient.search).parameters.items() if one.annotation is Table} == (
        tables
    )
    assert {field.name for field in dataclasses.fields(Opening) if field.type is Table} == tables


@every_method
@pytest.mark.parametrize("valid_rows", [VALID_ROWS, 77])
def test_rows_that_weights_or_gates_were_trained_on_are_counted(method: str, valid_rows: int) -> None:
    valid = table(valid_rows, seed=1)
    found = searched(supernet(method, valid=valid), valid=valid)
    steps = EPOCHS * ROWS // QUICK.batch_size
    if method in ("autofis", "ihas", "mgqe"):
        deciding = 0
    elif method == "autogroup":
        deciding = EPOCHS * ROWS
    else:
        batches = [min(QUICK.batch_size, valid_rows - first) for first in range(0, valid_rows, QUICK.batch_size)]
        decisions = (steps - round(0.2 * steps)) // 3
        deciding = sum(batches[number % len(batches)] for number in range(decisions))
        if method == "nis":  # several draws see the same rows, and a sample all of them
            deciding = 4 * deciding + SETTINGS["nis"]["sample"] * valid_rows
    assert found.samples == EPOCHS * ROWS + deciding


@dataclass(frozen=True)
class Recorded(Table):
    """Rows that remember how they were asked for."""

    passes: list[tuple[Any, list[float]]] = dataclasses.field(default_factory=list)

    def batches(self, batch_size: int, *, seed_epoch: Any = None, **rest: Any) -> Iterator[Batch]:
        ages: list[float] = []
        self.passes.append((seed_epoch, ages))
        for batch in super().batches(batch_size, seed_epoch=seed_epoch, **rest):
            ages += batch.numeric[:, 1].tolist()
            yield batch


def recorded(made: Table) -> Recorded:
    return Recorded(made.schema, made.categorical, made.numeric, made.label, made.sequences)


def test_every_pass_for_the_gates_takes_each_validation_row_once_in_an_order_of_its_own() -> None:
    train, valid = recorded(table()), recorded(table(VALID_ROWS, seed=1))
    net = opened("autodim", train=train, valid=valid, epochs=2, every=1, warm_up=0.0)
    searched(net, train=train, valid=valid)
    *whole, last = [ages for _, ages in valid.passes]
    assert len(whole) >= 5
    assert all(sorted(ages) == sorted(valid.numeric[:, 1].tolist()) for ages in whole)
    assert len({tuple(ages) for ages in whole}) == len(whole)
    assert set(last) <= set(valid.numeric[:, 1].tolist())
    orders = [order for order, _ in [*train.passes, *valid.passes]]
    assert len(set(orders)) == len(orders)


@every_method
def test_opening_a_supernet_leaves_the_random_state(method: str) -> None:
    state = torch.random.get_rng_state()
    opened(method, **SETTINGS[method])
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_schedule_alone_says_how_long_a_search_takes() -> None:
    """Gates have no best epoch: patience does not end it, and it is left as it stands after its last epoch."""
    seen: list[float] = []
    last: list[Tensor] = []
    net = opened("autofis", epochs=4)

    def on_epoch(record: EpochRecord) -> None:
        seen.append(record.valid["logloss"])
        last[:] = [weight.detach().clone() for weight in net.model.parameters()]

    settings = QUICK.model_copy(update={"epochs": 1, "patience": 1, "learning_rate": 0.03, "average": 0.99})
    searched(net, training=settings, on_epoch=on_epoch)
    assert len(seen) == 4
    assert int(np.argmin(seen)) < 3  # the last epoch is not the best
    assert all(torch.equal(*both) for both in zip(last, net.model.parameters(), strict=True))


@pytest.mark.parametrize("method", ["autodim", "autodis"])
def test_a_supernet_may_have_a_table_l2_of_its_own(method: str) -> None:
    """None: the training's. Either way it is as if the training had it, as far as the search goes."""
    strong = QUICK.model_copy(update={"table_l2": 0.1})
    own = ended(supernet(method, training=QUICK, **{"table_l2": 0.1}))
    own.assert_equal(ended(supernet(method, training=strong), training=strong))
    other = ended(supernet(method, training=QUICK))
    assert not all(torch.equal(mine, other.weights[name]) for name, mine in own.weights.items())


def test_the_trace_begins_before_the_first_step_and_ends_after_the_last() -> None:
    net = supernet("autodim")
    found = searched(net)
    assert net.trace.epochs[0] == 0
    assert net.trace.epochs[-1] == EPOCHS
    assert len(net.trace.epochs) == min(TRACE_POINTS, EPOCHS * ROWS // QUICK.batch_size) + 1
    assert net.trace.epochs == sorted(set(net.trace.epochs))
    for name, gate in learned(net).items():
        assert torch.equal(net.trace.values[name][0], torch.zeros_like(gate))
        assert torch.equal(net.trace.values[name][-1], gate)
    assert found.seconds > 0


def test_a_long_search_is_traced_at_so_many_moments() -> None:
    net = Watched(opened("autofis", epochs=5))
    searched(net, training=QUICK.model_copy(update={"batch_size": 16}))
    assert len(net.trace.epochs) == TRACE_POINTS + 1


# ---- lazily trained tables ------------------------------------------------------------------------------------------


@every_method
def test_tables_may_be_trained_lazily(method: str, tmp_path: Path) -> None:
    """Only rows that a training batch held change, also while gates learn from rows that hold others."""
    training = QUICK.model_copy(update={"table_optimizer": "lazy_adam", "table_l2": 1e-3})
    train, valid = table(24), table(VALID_ROWS, seed=1)
    untouched = sorted(set(range(rows.SIZES["user"])) - set(train.ids("user").tolist()))
    assert set(untouched) & set(valid.ids("user").tolist())

    def fresh() -> Watched:
        return supernet(method, train=train, valid=valid, training=training)

    def run(**rest: Any) -> End:
        small_batches = training.model_copy(update={"batch_size": 4})
        return ended(fresh(), train=train, valid=valid, training=small_batches, **rest)

    end, before = run(), dict(fresh().model.named_parameters())
    changed = changed_users(before, end.weights)
    assert changed
    for changed_R in changed:
        assert not changed_R[untouched].any()
        assert method == "nis" or changed_R.sum() == rows.SIZES["user"] - len(untouched)
    assert any((moments_T[0] != moments_T[-1]).any() for moments_T in end.trace)
    with pytest.raises(Killed):
        run(checkpoints=tmp_path, on_epoch=killed_after(0))
    run(checkpoints=tmp_path).assert_equal(end)


def changed_users(before: dict[str, Any], after: dict[str, Tensor]) -> list[Tensor]:
    """For each table of all users which rows have changed, (40,); NIS has the first 20 in a table of their own."""

    def tables(weights: dict[str, Any]) -> dict[str, Tensor]:
        whole = {name: value for name, value in weights.items() if name.endswith("user.weight")}
        for head in (name for name in weights if name.endswith(("user[0].weight", "user[2].weight"))):
            tail = head.replace("[0]", "[1]").replace("[2]", "[3]")
            whole[head] = torch.cat([weights[head], weights[tail]])
        return whole

    old, new = tables(before), tables(after)
    return [(old[name] != new[name]).any(dim=1) for name in old]


# ---- studies --------------------------------------------------------------------------------------------------------

FREE = TuneSettings(table_l2=[])


def space(options: int = 6) -> dict[str, Any]:
    """Candidates that differ in one setting of their search."""
    one = candidate("autofis", schema())
    assert one.supernet is not None
    plan = {**one.supernet, "threshold": choice("autofis.threshold", [float(n) for n in range(options)])}
    return candidate_space(one.architecture.to_dict(), QUICK, FREE, plan)


def model(dim: int) -> Architecture:
    """One of the models that a search may have led to."""
    return candidate("field_dims", schema(), dims=[dim]).architecture


def found(dim: int) -> dict[str, Any]:
    return {
        "found": {"architecture": model(dim).to_dict(), "figures": [{"kind": "table"}], "seconds": 1.5, "samples": 7}
    }


def study(path: Path, trials: int = 6, **rest: Any) -> Study:
    return Study(JournalFile(path), "s", space(**rest), sampler="random", trials=trials, lag=1, seed=1)


def finish(search: Study, value: float, dim: int) -> int:
    trial = search.next()
    assert isinstance(trial, Trial)
    search.finish(trial.number, value, attrs=found(dim))
    return trial.number


def test_what_a_trial_found_is_the_derived_model_trained_as_its_candidate_was(tmp_path: Path) -> None:
    search = study(tmp_path / "j")
    finish(search, 0.5, dim=4)
    record = search.records()[0]
    assert record.candidate.supernet is not None
    assert record.found == Candidate(architecture=model(4), training=QUICK)
    assert record.found.supernet is None
    assert record.found.hash != record.candidate.hash


def test_what_a_trial_without_a_supernet_found_is_its_candidate(tmp_path: Path) -> None:
    plain = candidate_space(candidate("field_dims", schema()).architecture.to_dict(), QUICK, FREE)
    search = Study(JournalFile(tmp_path / "j"), "s", plain, sampler="random", trials=2, lag=1, seed=1)
    trial = search.next()
    assert isinstance(trial, Trial)
    assert search.records()[0].found == search.records()[0].candidate
    search.finish(trial.number, 0.5)
    assert search.records()[0].found == search.records()[0].candidate == trial.candidate


def test_records_come_back_from_the_journal(tmp_path: Path) -> None:
    search = study(tmp_path / "j")
    for value, dim in ((0.5, 4), (0.3, 8)):
        finish(search, value, dim)
    again = study(tmp_path / "j")
    assert again.records() == search.records()
    assert again.best(2) == search.best(2)
    assert again.records()[0].attrs == found(4)


def test_the_best_found_different_models(tmp_path: Path) -> None:
    search = study(tmp_path / "j")
    numbers = [finish(search, value, dim) for value, dim in ((0.5, 4), (0.4, 8), (0.4, 8), (0.6, 2))]
    assert [record.number for record in search.best(9)] == [numbers[1], numbers[0], numbers[3]]
    assert [record.number for record in search.best(1)] == [numbers[1]]


def test_a_model_found_again_with_a_worse_value_keeps_its_better_place(tmp_path: Path) -> None:
    """One hash may have two values: names and the order of inputs are not part of it, but of the fresh weights."""
    search = study(tmp_path / "j")
    numbers = [finish(search, value, dim) for value, dim in ((0.1, 4), (0.2, 8), (0.3, 4))]
    assert [record.value for record in search.best(2)] == [0.1, 0.2]
    assert [record.number for record in search.best(1)] == numbers[:1]


def test_the_best_are_ranked_and_different_whatever_was_found(tmp_path: Path) -> None:
    random = Random(3)
    for case in range(10):
        search = study(tmp_path / str(case), trials=8, options=40)
        for _ in range(8):
            finish(search, random.randrange(5) / 4, dim=random.choice([2, 4, 8]))
        best = search.best(8)
        least: dict[str, tuple[float, int]] = {}
        for record in search.records():
            assert record.value is not None
            key = record.found.hash
            least[key] = min(least.get(key, (record.value, record.number)), (record.value, record.number))
        assert [(record.value, record.number) for record in best] == sorted(least.values())


def test_a_repeated_search_found_what_the_first_one_did(tmp_path: Path) -> None:
    """Its value is that of the derived model, and so must be its model."""
    search = study(tmp_path / "j", trials=4, options=2)
    for dim in (4, 8):
        finish(search, dim / 10, dim)
    assert search.next() is None
    duplicates = [record for record in search.records() if record.duplicate_of is not None]
    assert len(duplicates) == 2
    for record in duplicates:
        original = search.records()[record.duplicate_of or 0]
        assert (record.value, record.candidate) == (original.value, original.candidate)
        assert record.found == original.found


# ---- workers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return rows.written(tmp_path / "dataset")


TRAINING = TrainSettings(batch_size=32, epochs=2, patience=2, learning_rate=0.01, table_init=0.3)


def test_a_backbone_with_nothing_to_open_is_a_failed_trial_in_one_line(dataset: Path, tmp_path: Path) -> None:
    epochs: list[Epoch] = []
    made = candidate("autodis", schema(), TRAINING, backbone="mf")
    job = Job("one", dataset, made.to_dict(), seed=3, checkpoints=tmp_path / "checkpoints")
    outcome = train(job, epochs.append)
    assert (outcome.value, outcome.found, outcome.fatal, epochs) == (None, None, False, [])
    assert outcome.error == "autodis: the backbone encodes no numeric field, or the dataset has none"


@pytest.mark.slow
def test_studies_of_supernets_run_in_a_pool(dataset: Path, tmp_path: Path) -> None:
    method = METHODS["autodim"]
    spec = rows.SearchSpec.model_validate(
        {"methods": ["autodim"], "autodim": {"backbone": "fm", "dims": [2, 8], "epochs": 2, "every": 2}}
    )
    assert method.plan is not None
    tune = TuneSettings(table_l2=[1e-5, 1e-2])
    made = candidate_space(method.space(schema(), spec.autodim), TRAINING, tune, method.plan(spec.autodim))
    search = Study(JournalFile(tmp_path / "j"), "autodim", made, sampler="random", trials=3, lag=1, seed=1)
    epochs: list[tuple[str, str]] = []
    ends: list[tuple[TrialRecord, Outcome, bool]] = []
    run_studies(
        [search],
        dataset,
        tmp_path / "checkpoints",
        seed=3,
        workers=1,
        on_epoch=lambda name, epoch: epochs.append((name, epoch.stage)),
        on_end=lambda study, record, outcome, best: ends.append((record, outcome, best)),
    )
    trained = [record for record in search.records() if record.state == "complete"]
    assert len(trained) == len(ends) == 2  # the third repeats one of the two
    assert epochs == [
        (f"autodim-{record.number}", stage)
        for record in trained
        for stage in ("supernet", "supernet", "training", "training")
    ]
    for record, outcome, _ in ends:
        assert outcome.found is not None
        assert record.attrs["found"] == outcome.found
        assert record.found.architecture == Architecture.from_dict(outcome.found["architecture"])
        assert record.curve == outcome.curve
        assert len(record.curve) == 2
    assert ends[0][2]
    assert search.best()[0].value == min(record.value for record in trained if record.value is not None)
    assert not (tmp_path / "checkpoints" / "autodim-0").exists()
