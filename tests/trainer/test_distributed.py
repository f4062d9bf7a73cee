"""A training under torchrun on this machine comes to what one process comes to, and its end is heard of."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl
import psutil
import pytest

from tests.trainer import opened, small
from trainer import zoo
from trainer.architecture import Architecture
from trainer.candidate import Candidate
from trainer.checkpoint import COMMIT
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


@pytest.mark.parametrize("method", ["autodim", "autofis", "nis", "ameir", "ihas", "mgqe"])
def test_two_processes_search_a_supernet_as_one_does(job: Job, tmp_path: Path, method: str) -> None:
    """Gates that learn from passes of their own (autodim), and with the weights (autofis); a policy (nis); stages.

    Centroids (mgqe) begin at rows of tables that live elsewhere, and those of the derived model are on every process.

    AutoDim and AMEIR normalise batches, and iHAS draws its gates, each process for itself: what they find need not be
    that of one process.
    """
    schema = DatasetSchema.load(job.dataset)
    training = TrainSettings(batch_size=64, epochs=2, patience=2, precision="fp32")
    grid = {"dim": 4, "columns": 2, "rows": [0.5, 1.0], "sample": 2, "warm_up": 0.2}
    fm = {"backbone": "fm"}
    settings: dict[str, dict[str, Any]] = {
        "autodim": {**fm, "dims": [2, 4]},
        "autofis": fm,
        "nis": {**fm, **grid},
        "ihas": {"groups": [2], "least": 0.0},
        "mgqe": {**fm, "dim": 4, "subspaces": [2], "centroids": [4], "tail_centroids": [2]},
        "ameir": {"dims": [4], "units": [[6]], "candidates": 4, "sample": 2},
    }
    found = opened.candidate(method, schema, training, epochs=2, **settings[method])
    searched = Job(**{**vars(job), "candidate": found.to_dict(), "weights": None})
    said: list[Message] = []
    launch(searched, World(processes=2), said.append)
    outcome, expected = said[-1], alone(searched, tmp_path)
    assert isinstance(outcome, Outcome)
    assert outcome.error is None
    assert outcome.found is not None
    assert expected.found is not None
    assert outcome.found["samples"] == expected.found["samples"]
    if method not in ("autodim", "ameir", "ihas"):
        assert outcome.found["architecture"] == expected.found["architecture"]
        assert outcome.value == pytest.approx(expected.value, rel=1e-4)
    for mine, theirs in zip(outcome.found["sample"], expected.found["sample"], strict=True):
        assert mine["architecture"] == theirs["architecture"]
        assert mine["score"] == pytest.approx(theirs["score"], rel=1e-2 if method == "ameir" else 1e-4)


def test_a_stream_is_for_one_process(job: Job) -> None:
    schema = DatasetSchema.load(job.dataset)
    found = opened.candidate("esapn", schema, TrainSettings(), sizes=[2, 4])
    said: list[Message] = []
    launch(Job(**{**vars(job), "candidate": found.to_dict()}), World(processes=2), said.append)
    [outcome] = said
    assert isinstance(outcome, Outcome)
    assert outcome.error == "rows in time order are for one process: leave out train.processes"


def test_a_training_that_cannot_be_done_is_an_outcome(job: Job, tmp_path: Path) -> None:
    data = dict(job.candidate)
    data["training"] = {**data["training"], "learning_rate": 1e30}
    said: list[Message] = []
    launch(Job(**{**vars(job), "candidate": data}), World(processes=2), said.append)
    assert isinstance(said[-1], Outcome)
    assert said[-1].error is not None


def test_what_no_restart_would_mend_is_an_outcome(job: Job, tmp_path: Path) -> None:
    said: list[Message] = []
    launch(Job(**{**vars(job), "dataset": tmp_path / "nowhere"}), World(processes=2), said.append)
    [outcome] = said
    assert isinstance(outcome, Outcome)
    assert outcome.fatal
    assert "nowhere" in str(outcome.error)


def kill(rank: int) -> None:
    """SIGKILL for this process of the training that a thread of ours launches."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # one that has just ended
            if process.environ().get("RANK") == str(rank):
                process.kill()
                return
    raise AssertionError(f"there is no process of rank {rank}")


ONE_MACHINE = [World(processes=2)]
TWO_MACHINES = [World(2, 1, node, "127.0.0.1") for node in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("machines", [ONE_MACHINE, TWO_MACHINES], ids=["one machine", "two machines"])
def test_a_killed_process_changes_nothing(job: Job, tmp_path: Path, machines: list[World]) -> None:
    """SIGKILL in the middle of an epoch of 128 steps; torchrun (each machine has its own) starts both again."""
    settings = {**job.candidate["training"], "batch_size": 4, "epochs": 4, "patience": 4}
    job = Job(**{**vars(job), "candidate": {**job.candidate, "training": settings}, "save_seconds": 0.0})
    said: dict[str, list[Message]] = {}

    def run(name: str) -> None:
        folder = tmp_path / name
        launched = Job(**{**vars(job), "checkpoints": folder, "weights": None})
        said[name] = []
        with ThreadPoolExecutor() as pool:
            ends = [pool.submit(launch, launched, machine, said[name].append) for machine in machines]
        for end in ends:
            end.result()

    run("quiet")
    thread = Thread(target=run, args=("killed",))
    thread.start()
    for rank in (1, 0):
        middle = tmp_path / "killed" / f"epoch-0000{2 - rank}-step-000000048" / COMMIT
        while not middle.exists():
            assert thread.is_alive()
            time.sleep(0.001)
        kill(rank)
    thread.join()
    *quiet_epochs, quiet = said["quiet"]
    *killed_epochs, killed = said["killed"]
    assert isinstance(quiet, Outcome)
    assert isinstance(killed, Outcome)
    assert killed.curve == pytest.approx(quiet.curve, rel=1e-6)
    assert killed.valid == pytest.approx(quiet.valid, rel=1e-6)
    assert killed.samples == quiet.samples
    # Epochs are told of again, as they were.
    losses = {epoch.epoch: epoch.train_loss for epoch in quiet_epochs if isinstance(epoch, Epoch)}
    told = [(epoch.epoch, epoch.train_loss) for epoch in killed_epochs if isinstance(epoch, Epoch)]
    assert [epoch for epoch, _ in told] == [0, 0, 1, 0, 1, 2, 3]
    assert all(loss == pytest.approx(losses[epoch], rel=1e-6) for epoch, loss in told)


def test_the_world_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert World.here(2, 3) == World(processes=6)
    monkeypatch.setenv(ADDRESS, "first")
    monkeypatch.setenv(NODE, "1")
    assert World.here(2, 3) == World(2, 3, 1, "first")
