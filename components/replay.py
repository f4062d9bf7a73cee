"""Replays tracking events to MLflow; replaying one twice is as replaying it once (see `components.shipping`)."""

import json
import logging
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from components.tracking import KEY_FILE

Event = dict[str, Any]

KEY_TAG = "dalil.key"
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
LONGEST_VALUE = 6000
"""MLflow's limits."""
PERMANENT = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
"""MLflow's answers that another attempt would not change: the event is dropped and the reason logged."""

log = logging.getLogger("dalil.shipping")


class Replay:
    """Brings events to one MLflow. `runs` maps our keys to run ids and grows; a lost entry is found by its tag. So do
    `experiments`, by name.
    """

    def __init__(self, uri: str, artifacts: str | None, runs: dict[str, str], experiments: dict[str, str]) -> None:
        self._client = MlflowClient(uri, uri)
        self._artifacts = artifacts
        self._runs = runs
        self._experiments = experiments

    def replay(self, opening: Event, events: list[Event]) -> None:
        """Bring `events` of the spool that begins with `opening` to MLflow.

        Raises whatever the client raises when MLflow cannot be reached; then replay the same events again.
        """
        metrics: dict[str, list[Metric]] = {}
        for event in events:
            if event["op"] == "metrics":
                metrics.setdefault(event["run"], []).extend(_metrics(event))
            else:
                self._settle(event["op"], opening, event)
        for run, values in metrics.items():
            self._settle("metrics", opening, {"run": run, "values": values})

    def _settle(self, op: str, opening: Event, event: Event) -> None:
        try:
            self._apply(op, opening, event)
        except MlflowException as error:
            if error.error_code not in PERMANENT:
                raise
            log.warning("refused: %s", error.message)

    def _apply(self, op: str, opening: Event, event: Event) -> None:
        match op:
            case "run":
                self._run_id(opening, event["run"], event)
            case "status":
                self._status(self._run_id(opening, event["run"]), event)
            case "params":
                self._log_params(self._run_id(opening, event["run"]), event["params"])
            case "tags":
                tags = [RunTag(name, value) for name, value in event["tags"].items()]
                self._client.log_batch(self._run_id(opening, event["run"]), tags=tags)
            case "metrics":
                self._log_metrics(self._run_id(opening, event["run"]), event["values"])
            case "artifact":
                self._log_artifact(self._run_id(opening, event["run"]), opening, event["path"], event["to"])
            case "register":
                self._register(self._run_id(opening, event["run"]), event, opening)

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found and found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            self._experiments[name] = (
                found.experiment_id if found else self._client.create_experiment(name, self._artifacts)
            )
        return self._experiments[name]

    def _run_id(self, opening: Event, key: str, event: Event | None = None) -> str:
        """The run of a key: known, or found by its tag, or (with the event that opens it) created."""
        if key not in self._runs:
            experiment = self._experiment(opening["experiment"])
            found = self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
            if found:
                self._runs[key] = found[0].info.run_id
            elif event:
                self._runs[key] = self._create_run(experiment, opening, event)
            else:
                raise MlflowException(f"no run with the tag {KEY_TAG} = {key}", RESOURCE_DOES_NOT_EXIST)
        return self._runs[key]

    def _create_run(self, experiment: str, opening: Event, event: Event) -> str:
        tags = {KEY_TAG: event["run"]}
        if event["parent"]:
            tags["mlflow.parentRunId"] = self._run_id(opening, event["parent"])
        return str(self._client.create_run(experiment, event["time"], tags, event["name"]).info.run_id)

    def _status(self, run: str, event: Event) -> None:
        if event["status"] == "RUNNING":
            self._client.update_run(run, "RUNNING")
        else:
            self._client.set_terminated(run, event["status"], event["time"])

    def _log_params(self, run: str, params: dict[str, str]) -> None:
        items = [Param(name, value[:LONGEST_VALUE]) for name, value in params.items()]
        for start in range(0, len(items), PARAMS_PER_CALL):
            self._client.log_batch(run, params=items[start : start + PARAMS_PER_CALL])

    def _log_metrics(self, run: str, values: list[Metric]) -> None:
        for start in range(0, len(values), METRICS_PER_CALL):
            self._client.log_batch(run, metrics=values[start : start + METRICS_PER_CALL])

    def _log_artifact(self, run: str, opening: Event, relative: str, to: str) -> None:
        """Send a file or a folder of the step's output, once more if it has got its final name meanwhile."""
        while True:
            path = _find(opening, relative)
            try:
                if path.is_dir():
                    self._client.log_artifacts(run, str(path), to or path.name)
                else:
                    self._client.log_artifact(run, str(path), to or None)
            except FileNotFoundError:
                if path.exists():
                    raise
            if path.exists():  # else MLflow may have sent a part of a folder, without a word
                return

    def _register(self, run: str, event: Event, opening: Event) -> None:
        """A version per evaluate step, found again by its tag."""
        name, key = event["name"], opening["run"]
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self._client.search_model_versions(f"name = '{name}' and tags.`{KEY_TAG}` = '{key}'")
        version = found[0] if found else self._create_version(run, event, opening)
        self._client.set_registered_model_alias(name, event["alias"], version.version)

    def _create_version(self, run: str, event: Event, opening: Event) -> ModelVersion:
        self._log_artifact(run, opening, event["path"], "model")
        source = f"{self._client.get_run(run).info.artifact_uri}/model"
        return self._client.create_model_version(event["name"], source, run, tags={KEY_TAG: opening["run"]})


def _metrics(event: Event) -> list[Metric]:
    return [Metric(name, float(value), event["time"], event["step"]) for name, value in event["metrics"].items()]


def _find(opening: Event, relative: str) -> Path:
    """A file of the step's output, which may have got its final name since, or have been replaced by a newer output."""
    aside = Path(opening["folder"])
    for folder in (aside, aside.with_suffix("")):
        key_file = folder / KEY_FILE
        if key_file.exists() and json.loads(key_file.read_text())["key"] == opening["run"]:
            return folder / relative
    raise MlflowException(f"{relative} of {aside} is gone: a newer run has replaced it", RESOURCE_DOES_NOT_EXIST)
