"""What every search method owes the pipeline, from the outside: one trial as a worker does it, on a small dataset."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer import opened
from trainer.architecture import Architecture
from trainer.candidate import Candidate
from trainer.methods.settings import SECTIONS
from trainer.methods.table import METHODS
from trainer.settings import TrainSettings
from trainer.workers import Epoch, Job, Outcome, train

TRAINING = TrainSettings(batch_size=32, epochs=2, patience=2, learning_rate=0.01, table_init=0.3)
SETTINGS: dict[str, dict[str, Any]] = {
    "autorec": {"mlp_units": [16]},
    "autofis": {"epochs": 2},
    "autodim": {"epochs": 2, "dims": [2, 4], "every": 3},
    "autodis": {"epochs": 2, "encoders": ["scale", "bins"], "every": 3},
    "autogroup": {"epochs": 2, "dims": [4], "first": [2], "second": [3], "third": [2]},
    "nis": {"epochs": 2, "dim": 4, "columns": 2, "rows": [0.5, 1.0], "every": 3},
    "dpq": {"epochs": 2, "dim": 4, "subspaces": [2], "centroids": [4]},
    "mgqe": {"epochs": 2, "dim": 4, "subspaces": [2], "centroids": [4], "tail_centroids": [2]},
    "autoemb": {"epochs": 2, "dims": [2, 4], "every": 3},
    "ihas": {"epochs": 2, "groups": [2], "sparse": [0.3], "least": 0.01},
    "ameir": {"epochs": 2, "dims": [4], "units": [[8]], "candidates": 4},
    "autoctr": {"blocks": 3, "units": [8], "dims": [4]},
}
"""What makes a search short, for methods whose defaults are long."""

every_method = pytest.mark.parametrize("method", METHODS)


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return opened.written(tmp_path_factory.mktemp("contract") / "dataset")


@cache
def candidate(method: str) -> Candidate:
    given = SETTINGS.get(SECTIONS.get(method, method), {})
    return opened.candidate(method, opened.schema(), TRAINING, **given)


def told(method: str, dataset: Path, folder: Path, *, die_after: int = 99) -> tuple[Outcome, list[Epoch]]:
    """A trial done in this process as if in a fresh one, which dies after so many epochs."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    epochs: list[Epoch] = []

    def say(epoch: Epoch) -> None:
        epochs.append(epoch)
        if len(epochs) == die_after:
            raise Killed

    job = Job("one", dataset, candidate(method).to_dict(), seed=3, checkpoints=folder / "checkpoints")
    return train(job, say), epochs


def result(outcome: Outcome) -> dict[str, Any]:
    """All of an outcome that must not depend on what happened on the way: everything but times."""
    facts = dataclasses.asdict(outcome) | {"seconds": 0}
    return facts | {"found": outcome.found and outcome.found | {"seconds": 0}}


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trial of a method that nothing has disturbed."""

    @cache
    def whole(method: str) -> tuple[Outcome, list[Epoch]]:
        return told(method, dataset, tmp_path_factory.mktemp(f"whole-{method}"))

    return whole


@every_method
def test_a_trial_ends_in_a_model_without_a_look_at_test_rows(method: str, dataset: Path, whole: Any) -> None:
    assert not (dataset / "test").exists()
    outcome, epochs = whole(method)
    assert outcome.error is None
    training = [epoch for epoch in epochs if epoch.stage == "training"]
    assert epochs[-len(training) :] == training  # behind all of the supernet's
    assert [epoch.epoch for epoch in training] == [0, 1]
    assert outcome.curve == tuple(epoch.best for epoch in training)
    assert outcome.value == min(epoch.valid["logloss"] for epoch in training)
    assert json.loads(outcome.to_json()) == json.loads(Outcome.from_json(outcome.to_json()).to_json())


@every_method
def test_its_cost_counts_the_search_and_the_training(method: str, whole: Any) -> None:
    outcome, epochs = whole(method)
    trained = opened.ROWS * sum(epoch.stage == "training" for epoch in epochs)
    assert (outcome.found is None) == (METHODS[method].supernet is None)
    if outcome.found is None:
        assert outcome.samples == trained
    else:
        assert outcome.samples == outcome.found["samples"] + trained
        assert outcome.found["samples"] >= opened.ROWS
        assert outcome.seconds > outcome.found["seconds"] > 0


@every_method
def test_what_is_trained_is_what_the_search_has_led_to(method: str, dataset: Path, whole: Any, tmp_path: Path) -> None:
    """The description as it is kept, trained by itself, comes to the trial's value bit by bit."""
    outcome, _ = whole(method)
    made = candidate(method)
    if outcome.found is not None:
        kept = json.loads(json.dumps(outcome.found["architecture"]))
        made = made.derived(Architecture.from_dict(kept))
        assert made.architecture.to_dict() == kept
    torch.manual_seed(0)
    alone = Job("alone", dataset, made.to_dict(), seed=3, checkpoints=tmp_path / "alone")
    assert train(alone, lambda epoch: None).value == outcome.value


@pytest.mark.parametrize("die_after", [1, 3])
@every_method
def test_a_killed_trial_ends_as_one_left_alone(
    method: str, die_after: int, dataset: Path, whole: Any, tmp_path: Path
) -> None:
    """Bit by bit; with nothing to kill it is the same search made twice with one seed."""
    outcome, epochs = whole(method)
    if die_after < len(epochs):
        with pytest.raises(Killed):
            told(method, dataset, tmp_path, die_after=die_after)
    assert result(told(method, dataset, tmp_path)[0]) == result(outcome)
