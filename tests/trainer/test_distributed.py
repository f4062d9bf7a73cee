"""A training under torchrun on this machine comes to what one process comes to, and its end is heard of."""

from pathlib import Path

import polars as pl
import pytest

from tests.trainer import small
from trainer import zoo
from trainer.architecture import Architecture
from trainer.candidate import Candidate
from trainer.distributed import ADDRESS, NODE, World, launch
from trainer.schema import DatasetSchema
from trainer.settings import TrainSettings
from trainer.space import fill_params
from trainer.workers import Epoch, Job, Message, Outcome, train

ROWS, EPOCHS = 512, 3


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """FM on encoded rows of users and items."""
    folder = tmp_path / "dataset"
    whole = small.schema("ctr", ROWS)
    schema = whole.model_copy(update={"fields": whole.fields[:2]})
    for seed, split in enumerate(("train", "valid")):
        (folder / split).mkdir(parents=True)
        made = small.table(ROWS, seed=seed)
        columns = {name: made.ids(name).numpy() for name in ("user", "item")} | {"label": made.label.numpy()}
        pl.DataFrame(columns).write_parquet(folder / split / "part-00000.parquet")
    (folder / "schema.json").write_text(schema.model_dump_json())
    return Job(
        "fm",
        folder,
        candidate(schema, TrainSettings(batch_size=64, epochs=EPOCHS, patience=EPOCHS, learning_rate=0.05)),
        seed=3,
        checkpoints=tmp_path / "checkpoints",
        weights=tmp_path / "fm.safetensors",
    )


def candidate(schema: DatasetSchema, training: TrainSettings) -> dict[str, object]:
    architecture = Architecture.from_dict(fill_params(zoo.template("fm", schema), {}))
    return Candidate(architecture=architecture, training=training).to_dict()


def alone(job: Job, folder: Path) -> Outcome:
    return train(Job(**{**vars(job), "checkpoints": folder / "alone", "weights": None}), lambda epoch: None)


def test_two_processes_come_to_what_one_comes_to(job: Job, tmp_path: Path) -> None:
    said: list[Message] = []
    launch(job, World(processes=2), said.append)
    *epochs, outcome = said
    assert [epoch.epoch for epoch in epochs if isinstance(epoch, Epoch)] == list(range(EPOCHS))
    assert isinstance(outcome, Outcome)
    assert outcome.error is None
    # The sums of gradients are the same but for the order of their terms.
    assert outcome.value == pytest.approx(alone(job, tmp_path).value, rel=1e-4)
    assert job.weights is not None
    assert job.weights.exists()


def test_a_training_that_cannot_be_done_is_an_outcome(job: Job, tmp_path: Path) -> None:
    data = dict(job.candidate)
    data["training"] = {**data["training"], "learning_rate": 1e30}
    said: list[Message] = []
    launch(Job(**{**vars(job), "candidate": data}), World(processes=2), said.append)
    assert isinstance(said[-1], Outcome)
    assert said[-1].error is not None


def test_a_process_that_dies_is_an_error(job: Job, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="fm ended with exit code"):
        launch(Job(**{**vars(job), "dataset": tmp_path / "nowhere"}), World(processes=2), lambda message: None)


def test_the_world_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert World.here(2, 3) == World(processes=6)
    monkeypatch.setenv(ADDRESS, "first")
    monkeypatch.setenv(NODE, "1")
    assert World.here(2, 3) == World(2, 3, 1, "first")
