"""The training loop: it learns, stops, resumes exactly, and says when a candidate cannot be trained."""

import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer import small
from trainer import metrics
from trainer.build import Model
from trainer.checkpoint import load_weights, save_weights
from trainer.fit import Diverged, EpochRecord, FitResult, fit, predict
from trainer.schema import Task
from trainer.settings import TrainSettings

QUICK = TrainSettings(batch_size=64, epochs=4, patience=4, learning_rate=0.01, table_l2=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def trained(model: Model, settings: TrainSettings, *, task: Task = "ctr", seed: int = 3, **rest: object) -> FitResult:
    train, valid = small.table(600, task=task), small.table(300, task=task, seed=1)
    return fit(model, train, valid, settings, task=task, seed=seed, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["ctr", "rating"])
@pytest.mark.parametrize("table_optimizer", ["adam", "lazy_adam"])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_it_learns_what_is_there_to_learn(task: Task, table_optimizer: str, average: float) -> None:
    model = small.model(task=task)
    valid = small.table(300, task=task, seed=1)
    before = metrics.evaluate(task, valid.label, predict(model, valid))[metrics.MAIN[task]]
    settings = QUICK.model_copy(update={"table_optimizer": table_optimizer, "average": average, "epochs": 30})
    result = trained(model, settings, task=task)
    assert result.best_value < 0.95 * before
    assert result.samples == 600 * len(result.history)
    assert [record.epoch for record in result.history] == list(range(len(result.history)))


@pytest.mark.parametrize("name", ["fm", "deepfm", "dcnv2"])
def test_models_of_the_zoo_learn(name: str) -> None:
    rows, valid = small.categorical(600), small.categorical(300, seed=1)
    model = small.zoo_model(name)
    chances = predict(model, valid)
    fit(model, rows, valid, QUICK.model_copy(update={"epochs": 20}), task="ctr", seed=0)
    assert metrics.auc(valid.label, predict(model, valid)) > max(0.75, metrics.auc(valid.label, chances))


def test_the_model_ends_with_its_best_weights() -> None:
    """Also where the last epochs were worse, and where the best are averaged weights."""
    for average in (0.0, 0.9):
        model = small.model()
        settings = QUICK.model_copy(update={"learning_rate": 0.1, "epochs": 8, "patience": 3, "average": average})
        result = trained(model, settings)
        values = [record.valid["logloss"] for record in result.history]
        assert result.best_epoch == int(np.argmin(values)) < len(values) - 1
        valid = small.table(300, seed=1)
        assert metrics.logloss(valid.label, predict(model, valid)) == result.best_value == min(values)
        assert [record.best for record in result.history] == np.minimum.accumulate(values).tolist()


def test_patience_ends_a_training() -> None:
    result = trained(small.model(), QUICK.model_copy(update={"learning_rate": 0.3, "epochs": 50, "patience": 2}))
    assert result.stopped == "patience"
    assert len(result.history) == result.best_epoch + 3


def test_a_hopeless_training_is_pruned() -> None:
    result = trained(small.model(), QUICK, on_epoch=lambda record: record.epoch == 1)
    assert (result.stopped, len(result.history)) == ("pruned", 2)


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = small.model(dropout=0.3)
        torch.manual_seed(np.random.default_rng().integers(1 << 30))  # what ran before must not matter
        trained(model, QUICK, seed=seed)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_average_of_the_weights_is_what_is_validated() -> None:
    plain, averaged = small.model(), small.model()
    settings = QUICK.model_copy(update={"learning_rate": 0.05})
    without = trained(plain, settings)
    with_average = trained(averaged, settings.model_copy(update={"average": 0.95}))
    assert [r.train_loss for r in without.history] == [r.train_loss for r in with_average.history]
    assert [r.valid for r in without.history] != [r.valid for r in with_average.history]


def test_a_rate_too_high_is_diverged() -> None:
    with pytest.raises(Diverged, match=r"loss of epoch 0 became (nan|inf)"):
        trained(small.model(task="rating"), QUICK.model_copy(update={"learning_rate": 1e15}), task="rating")


def test_bf16_trains_to_about_the_same_loss() -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        model = small.model()
        result = trained(model, QUICK.model_copy(update={"precision": precision}))
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        losses.append(result.best_value)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_predictions_are_in_order_and_in_range() -> None:
    model, rows = small.model(), small.table(100)
    whole = predict(model, rows)
    assert whole.dtype == np.float64
    assert ((whole > 0) & (whole < 1)).all()
    np.testing.assert_allclose(predict(model, rows, batch_size=7), whole, atol=1e-6)
    assert predict(model, rows.select(torch.empty(0, dtype=torch.int64))).shape == (0,)
    ratings = small.model(task="rating")
    with torch.no_grad():
        ratings.head.bias.fill_(99.0)
    assert set(predict(ratings, small.table(10, task="rating"))) == {5.0}


def test_weights_come_back_from_safetensors(tmp_path: Path) -> None:
    model, other, rows = small.model(norm="batch"), small.model(norm="batch", seed=2), small.table(50)
    trained(model, QUICK.model_copy(update={"epochs": 1}))
    save_weights(model, tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(predict(model, rows), predict(other, rows))


# ---- resuming -------------------------------------------------------------------------------------------------------


def run_script(folder: Path, *death: int) -> int:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "tests.trainer.fit_script", str(folder), *map(str, death)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], timeout=300).returncode


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights_bit_by_bit(tmp_path: Path) -> None:
    """SIGKILL before the first checkpoint and in the middle of epochs of 50 steps, with checkpoints at 16, 32 and 48;
    once the newest checkpoint is torn too.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_script(whole) == 0
    assert run_script(killed, 0, 5) == -signal.SIGKILL
    assert run_script(killed, 1, 45) == -signal.SIGKILL
    assert run_script(killed, 3, 20) == -signal.SIGKILL
    before, newest = sorted((killed / "checkpoints").iterdir())
    assert (before.name, newest.name) == ("epoch-00003-step-000000000", "epoch-00003-step-000000016")
    shard = newest / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    assert run_script(killed, 3, 20) == -signal.SIGKILL
    assert run_script(killed) == 0
    for name in ("weights.safetensors", "result.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    first, again = small.model(), small.model(seed=9)
    seen: list[int] = []
    result = trained(first, QUICK, checkpoints=tmp_path)
    resumed = trained(again, QUICK, checkpoints=tmp_path, on_epoch=lambda record: bool(seen.append(record.epoch)))
    assert resumed == result
    assert seen == [0, 1, 2, 3]
    rows = small.table(50)
    np.testing.assert_array_equal(predict(first, rows), predict(again, rows))


def test_a_kill_between_checkpoint_and_pruning_prunes_after_the_resume(tmp_path: Path) -> None:
    def die(record: EpochRecord) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(small.model(), QUICK, checkpoints=tmp_path, on_epoch=die)
    result = trained(small.model(), QUICK, checkpoints=tmp_path, on_epoch=lambda record: True)
    assert (result.stopped, len(result.history)) == ("pruned", 1)


def test_states_of_another_training_do_not_count(tmp_path: Path) -> None:
    trained(small.model(), QUICK, checkpoints=tmp_path, seed=1)
    fresh = trained(small.model(), QUICK, seed=2)
    other = trained(small.model(), QUICK, checkpoints=tmp_path, seed=2)
    assert [replace(r, seconds=0) for r in other.history] == [replace(r, seconds=0) for r in fresh.history]
    assert math.isfinite(other.best_value)
