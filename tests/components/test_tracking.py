"""Records reach MLflow once, whatever dies on the way: the step, the shipping process, or MLflow itself."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from components import shipping
from components.replay import Replay
from components.tracking import Tracker, flat

TRIALS, EPOCHS = 4, 3


def record(tracker: Tracker, trials: range = range(TRIALS)) -> None:
    """What a search step records."""
    tracker.log_params({"search": {"trials": TRIALS}})
    for trial in trials:
        for epoch in range(EPOCHS):
            tracker.log_epoch(f"autorec-{trial}", epoch, {"logloss": 0.5 - 0.01 * epoch})
        tracker.log_trial(f"autorec-{trial}", params={"lr": 1e-3}, metrics={"value": 0.48})


def step_folder(root: Path, name: str = "search") -> Path:
    folder = root / f"{name}.partial"
    folder.mkdir(parents=True)
    return folder


def events(tracker: Tracker) -> list[dict[str, object]]:
    return [json.loads(line) for line in tracker.spool.read_text().splitlines()]


def check_complete(client: MlflowClient, pipeline: str, trials: int = TRIALS) -> Run:
    """Every run, parameter and metric is there once; returns the step's run."""
    experiment = client.get_experiment_by_name(pipeline)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = sorted(run.info.run_name for run in runs)
    assert names == sorted([pipeline, "search", *(f"autorec-{trial}" for trial in range(trials))])
    by_name = {run.info.run_name: run for run in runs}
    for trial in range(trials):
        run = by_name[f"autorec-{trial}"]
        assert run.info.status == "FINISHED"
        assert run.data.params == {"lr": "0.001"}
        assert run.data.tags["mlflow.parentRunId"] == by_name["search"].info.run_id
        history = client.get_metric_history(run.info.run_id, "logloss")
        assert [(point.step, point.value) for point in history] == [(e, 0.5 - 0.01 * e) for e in range(EPOCHS)]
    assert by_name["search"].data.tags["mlflow.parentRunId"] == by_name[pipeline].info.run_id
    return by_name["search"]


# ---- the spool ------------------------------------------------------------------------------------------------------


def test_a_resumed_step_writes_nothing_twice(tmp_path: Path) -> None:
    folder = step_folder(tmp_path)
    killed = Tracker(folder, pipeline="p", step="search")
    record(killed, range(2))
    killed._file.write(b'{"key": "epoch autor')  # torn by the kill
    killed._file.close()
    resumed = Tracker(folder, pipeline="p", step="search")
    record(resumed)
    resumed.close()
    keys = [event["key"] for event in events(resumed) if event["key"] is not None]
    assert len(keys) == len(set(keys))
    assert resumed.key == killed.key
    assert sum(event["op"] == "metrics" for event in events(resumed)) == TRIALS * (EPOCHS + 1)


def test_a_fresh_output_folder_is_a_new_run_below_the_same_parent(tmp_path: Path) -> None:
    folder = step_folder(tmp_path)
    first = Tracker(folder, pipeline="p", step="search")
    first.close("FAILED")
    (folder / ".tracking.json").unlink()
    second = Tracker(folder, pipeline="p", step="search")
    second.close()
    assert second.key != first.key
    assert second.parent == first.parent


def test_a_finished_evaluation_ends_the_parent_run(tmp_path: Path) -> None:
    with Tracker(step_folder(tmp_path, "evaluate"), pipeline="p", step="evaluate") as evaluate:
        pass
    ended = {event["run"] for event in events(evaluate) if event.get("status") == "FINISHED"}
    assert ended == {evaluate.key, evaluate.parent}
    with Tracker(step_folder(tmp_path, "train"), pipeline="p", step="train") as train:
        assert train.parent != evaluate.parent


def test_an_exception_fails_the_run_and_the_parent(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="wrong"),
        Tracker(step_folder(tmp_path), pipeline="p", step="search") as tracker,
    ):
        raise ValueError("wrong")
    assert {event["run"] for event in events(tracker) if event.get("status") == "FAILED"} == {
        tracker.key,
        tracker.parent,
    }


def test_tracking_imports_no_mlflow() -> None:
    code = "import sys, components.tracking; sys.exit(any(name.split('.')[0] == 'mlflow' for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nested_settings_become_dotted_parameters() -> None:
    assert flat({"a": {"b": 1, "c": [1, 2]}, "d": "x", "e": None}) == {
        "a.b": "1",
        "a.c": "[1, 2]",
        "d": "x",
        "e": "null",
    }


# ---- replaying ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite backend for the module: creating its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def test_replaying_everything_twice_changes_nothing(tmp_path: Path, database: str) -> None:
    folder = step_folder(tmp_path)
    (folder / "architectures.json").write_text("[]")
    with Tracker(folder, pipeline="twice", step="search") as tracker:
        record(tracker)
        tracker.log_artifact(folder / "architectures.json")
    opening, *rest = events(tracker)
    artifacts = (tmp_path / "artifacts").as_uri()
    Replay(database, artifacts, {}, {}).replay(opening, rest)
    folder.rename(tmp_path / "search")  # as after the step's commit
    Replay(database, artifacts, {}, {}).replay(opening, rest)  # as after a kill before the state was written
    client = MlflowClient(database)
    run = check_complete(client, "twice")
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["architectures.json"]


def test_a_model_is_registered_once_per_evaluation_and_the_alias_moves(tmp_path: Path, database: str) -> None:
    client = MlflowClient(database)
    for number in ("1", "2"):
        folder = step_folder(tmp_path / number, "evaluate")
        (folder / "model").mkdir()
        (folder / "model" / "MLmodel").write_text(number)
        with Tracker(folder, pipeline="registered", step="evaluate") as tracker:
            tracker.register(folder / "model", "ctr")
        opening, *rest = events(tracker)
        for _ in range(2):
            Replay(database, (tmp_path / "artifacts").as_uri(), {}, {}).replay(opening, rest)
        champion = client.get_model_version_by_alias("ctr", "champion")
        assert int(champion.version) == int(number)
        assert (Path(champion.source.removeprefix("file://")) / "MLmodel").read_text() == number
    assert len(client.search_model_versions("name = 'ctr'")) == 2


def test_a_model_arrives_though_its_step_ends_while_it_is_sent(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = step_folder(tmp_path, "evaluate")
    (folder / "model").mkdir()
    (folder / "model" / "MLmodel").write_text("whole")
    with Tracker(folder, pipeline="moved", step="evaluate") as tracker:
        tracker.register(folder / "model", "moved")
    opening, *rest = events(tracker)
    send = MlflowClient.log_artifacts

    def sent(*arguments: Any) -> None:
        if folder.exists():
            folder.rename(tmp_path / "evaluate")
        send(*arguments)

    monkeypatch.setattr(MlflowClient, "log_artifacts", sent)
    Replay(database, (tmp_path / "artifacts").as_uri(), {}, {}).replay(opening, rest)
    champion = MlflowClient(database).get_model_version_by_alias("moved", "champion")
    assert (Path(champion.source.removeprefix("file://")) / "MLmodel").read_text() == "whole"


def test_what_mlflow_refuses_is_dropped_and_the_rest_arrives(
    tmp_path: Path, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracker(step_folder(tmp_path), pipeline="refused", step="search") as tracker:
        tracker.log_trial("autorec-0", params={"a bad: name?": 1}, metrics={"value": 0.5})
    opening, *rest = events(tracker)
    Replay(database, (tmp_path / "artifacts").as_uri(), {}, {}).replay(opening, rest)
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("refused")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], "attributes.run_name = 'autorec-0'")[0]
    assert run.data.metrics == {"value": 0.5}
    assert "refused" in caplog.text


# ---- real processes -------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real MLflow server over `folder`, up."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination",
        str(folder / "art"),
    ]
    log = (folder / "server.log").open("ab")
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: listening(port), 90)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: object, seconds: float) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)


@pytest.mark.slow
def test_an_outage_neither_stops_the_step_nor_loses_nor_doubles_anything(tmp_path: Path) -> None:
    root, port = tmp_path / "runs" / "outage", free_port()
    uri = f"http://127.0.0.1:{port}"
    folder = step_folder(root)
    with server(tmp_path, port) as process:
        tracker = Tracker(folder, pipeline="outage", step="search")
        shipping.start(root, uri)
        record(tracker, range(2))
        assert shipping.wait(root, 240) is None
        os.killpg(process.pid, signal.SIGKILL)
    started, started_at = time.monotonic(), time.time()
    record(tracker)
    tracker.close()
    assert time.monotonic() - started < 1, "the step waited for a dead server"
    wait_until(lambda: shipping._trouble(root.resolve() / "tracking", started_at), 240)  # an attempt has failed
    note = shipping.wait(root, 240)
    assert note is not None
    assert uri in note
    with server(tmp_path, port):
        shipping.start(root, uri)  # as the next `dalil run` does
        assert shipping.wait(root, 240) is None
        step = check_complete(MlflowClient(uri), "outage")
    assert step.info.status == "FINISHED"
    assert any(name.startswith("system/") for name in step.data.metrics)


@pytest.mark.slow
def test_killed_steps_and_a_killed_shipper_leave_each_record_once(tmp_path: Path) -> None:
    """A step that is killed shows as KILLED, and as one FINISHED run with all its trials once it was resumed."""
    root = tmp_path / "runs" / "killed"
    folder = step_folder(root)
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    shipping.start(root, database)
    code = (
        "import os, signal; from pathlib import Path; from components.tracking import Tracker;"
        "from tests.components.test_tracking import record;"
        f"record(Tracker(Path({str(folder)!r}), pipeline='killed', step='search'), range(2));"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    shipping.start(root, database)
    assert shipping.wait(root, 240) is None
    wait_until(lambda: status_of(tmp_path / "mlflow.db", "search") == "KILLED", 240)
    shipping.start(root, database)
    tracker = Tracker(folder, pipeline="killed", step="search")
    record(tracker)
    for shipper in shippers(root):
        os.kill(shipper, signal.SIGKILL)
    tracker.close()
    shipping.start(root, database)
    assert shipping.wait(root, 240) is None
    assert check_complete(MlflowClient(database), "killed").info.status == "FINISHED"
    wait_until(lambda: not shippers(root), 60)


def status_of(database: Path, name: str) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return str(connection.execute("select status from runs where name = ?", (name,)).fetchone()[0])


def shippers(root: Path) -> list[int]:
    """Process ids of what ships this folder's records."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"components.shipping" in command and str(root.resolve() / "tracking").encode() in command:
            found.append(int(process.name))
    return found
