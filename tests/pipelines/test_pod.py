"""Pods of a cluster without the cluster: processes with a store, a database and folders of their own."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import fsspec
import pytest
import yaml
from mlflow import MlflowClient

from components.mirror import Mirror
from components.shipping import TrackingAwayError
from pipelines.pod import _folder, _Pod
from pipelines.spec import SearchPipeline
from tests.object_store import object_store
from tests.pipelines.test_real_steps import PIPELINE, ROOT, finish, results
from tests.postgres import Postgres
from trainer.errors import UserError

pytestmark = pytest.mark.slow


class Pods:
    """Starts pods that share a store and a database, and nothing else."""

    def __init__(self, home: Path, pipeline: dict[str, Any], **environment: str) -> None:
        self.home, self.started, self.mlflow = home, 0, f"sqlite:///{home / 'mlflow.db'}"
        self.file = home / "pipeline.json"
        self.file.write_text(SearchPipeline.model_validate(pipeline).model_dump_json())
        self.environment = os.environ | environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(self, step: str, part: int | None = None) -> "subprocess.Popen[str]":
        self.started += 1
        own = self.home / f"pod-{self.started}"
        own.mkdir()
        environment = {
            "DALIL_PIPELINE": str(self.file),
            "DALIL_SCRATCH": str(own),
            "DALIL_LAST_WORD": str(own / "last-word"),
            "MLFLOW_TRACKING_URI": self.mlflow,
            "HOSTNAME": own.name,
        }
        command = [sys.executable, "-m", "pipelines.pod", step, *(["--part", str(part)] if part is not None else [])]
        return subprocess.Popen(
            command,
            cwd=own,
            env=self.environment | environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, step: str, *parts: int, code: int = 0) -> None:
        """Pods of a step at the same time, to their end."""
        running = [self.start(step, part) for part in parts] or [self.start(step)]
        for pod in running:
            _, log = pod.communicate(timeout=300)
            assert pod.returncode == code, log

    def last_word(self) -> str:
        return (self.home / f"pod-{self.started}" / "last-word").read_text()


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with Postgres() as running:
        yield running.url


@pytest.fixture
def store() -> Iterator[dict[str, str]]:
    """Environment of an empty object store."""
    with object_store() as environment:
        yield environment


def named(name: str, **dataset: Any) -> dict[str, Any]:
    """The small pipeline in a namespace."""
    pipeline: dict[str, Any] = yaml.safe_load(PIPELINE)
    pipeline["metadata"] |= {"name": name, "namespace": "team"}
    pipeline["spec"]["dataset"] = dataset or pipeline["spec"]["dataset"]
    return pipeline


def test_pods_with_an_object_store_come_to_what_one_machine_comes_to(
    tmp_path: Path, database: str, store: dict[str, str]
) -> None:
    keys = {"endpoint_url": store["AWS_ENDPOINT_URL"], "key": "test", "secret": "test"}
    files = fsspec.filesystem("s3", **keys)
    files.makedirs("store")
    pods = Pods(tmp_path, named("tiny"), DALIL_ARTIFACTS="s3://store/dalil", DALIL_STUDIES=database, **store)
    mlflow, pods.mlflow = pods.mlflow, "http://127.0.0.1:9"  # nobody is there
    pods.run("ingest")
    pods.run("search", 0, 1)
    pods.run("train", 0, 1)
    pods.run("train", 2)
    pods.run("train", 3)
    pods.run("evaluate", code=TrackingAwayError.exit_code)
    assert pods.last_word().startswith("not everything has reached MLflow at http://127.0.0.1:9 (")
    pods.mlflow = mlflow
    pods.run("evaluate")
    check_records(mlflow)

    here = tmp_path / "runs" / "tiny"
    here.mkdir(parents=True)
    (here / "report.json").write_bytes(files.cat_file("store/dalil/team/tiny/evaluate/report.json"))
    found = results(tmp_path)
    alone = tmp_path / "alone"
    code, _, errors = finish(alone)
    assert code == 0, errors
    assert found == results(alone)
    left = {path.split("/")[4] for path in files.find("store/dalil/team/tiny")}
    assert left == {"ingest", "search", "train", "evaluate"}


def check_records(uri: str) -> None:
    """Of all steps, and the model."""
    client = MlflowClient(uri, uri)
    assert int(client.get_model_version_by_alias("tiny", "champion").version) == 1
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    names = Counter(run.info.run_name for run in client.search_runs([experiment.experiment_id]))
    assert [names[name] for name in ("tiny", "ingest", "search", "train", "evaluate")] == [1] * 5
    assert sum(name.startswith("autorec-") for name in names) >= 4


class Shared:
    """A search that another pod ends while this one works on it."""

    name = "search"

    def __init__(self, root: Path, mirror: Mirror) -> None:
        self.final, self.partial, self.mirror = root / "search", root / "search.partial", mirror
        self.done = False

    def is_done(self) -> bool:
        return self.done

    def prepare(self) -> None:
        self.partial.mkdir()

    def work(self, *_: object, **__: object) -> None:
        (self.partial / "trial").touch()
        self.mirror.push("search.partial")  # as every few seconds
        self.done = True


def test_nothing_is_left_of_a_search_that_another_pod_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DALIL_STUDIES", "sqlite://")
    monkeypatch.setenv("HOSTNAME", "one")
    pipeline, root = SearchPipeline.model_validate(named("shared")), tmp_path / "own"
    root.mkdir()
    mirror = Mirror("memory://shared", root)
    one = _Pod(pipeline, root, mirror, "search", 0)
    monkeypatch.setattr(one.database, "lock", lambda name: nullcontext())
    one._bring_up_to_date(cast(Any, Shared(root, mirror)), 0)
    assert fsspec.filesystem("memory").find("/shared") == []


def test_a_step_that_is_done_stays_as_it_is(tmp_path: Path, database: str) -> None:
    store = tmp_path / "store"
    pods = Pods(tmp_path, named("again"), DALIL_ARTIFACTS=f"file://{store}", DALIL_STUDIES=database)
    pods.run("ingest")
    manifest = store / "team" / "again" / "ingest" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    pods.run("ingest")
    assert manifest.stat().st_mtime_ns == before


def test_tables_are_not_inherited_through_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker would look for them before they have arrived."""
    monkeypatch.setenv("DALIL_ARTIFACTS", "s3://store/dalil")
    data = named("tiny")
    data["spec"]["search"]["inherit"] = True
    with (
        pytest.raises(UserError, match=r"^spec.search.inherit: .* in an object store; leave it out$"),
        _folder(SearchPipeline.model_validate(data), "ingest"),
    ):
        raise AssertionError


def test_a_mistake_of_the_user_is_the_last_word(tmp_path: Path, database: str) -> None:
    missing = tmp_path / "nowhere.dat"
    pipeline = named("missing", format="movielens", task="rating", source=str(missing))
    pipeline["spec"]["evaluate"] = {}
    pods = Pods(tmp_path, pipeline, DALIL_ARTIFACTS=f"file://{tmp_path}", DALIL_STUDIES=database)
    pod = pods.start("ingest")
    pod.communicate(timeout=60)
    assert pod.returncode == 2
    assert json.dumps(str(missing))[1:-1] in pods.last_word()
    assert "\n" not in pods.last_word()
