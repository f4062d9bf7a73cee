"""Jobs as the operator makes them, and what their pods' ends mean."""

from typing import Any

import pytest

from pipelines import jobs
from pipelines.jobs import Surroundings
from pipelines.reconcile import Wanted
from tests.pipelines.test_reconcile import pipeline

OWNER = {"uid": "1"}
AROUND = Surroundings("dalil", [], "claim")
WANTED = Wanted("p-train-0-12345678-1", "train", "0", "12345678")


def made(wanted: Wanted = WANTED, **spec: Any) -> dict[str, Any]:
    return jobs.job(pipeline(**spec), wanted, OWNER, AROUND)


def pod(code: int | None = None, *, message: str = "", reason: str = "") -> dict[str, Any]:
    """A pod whose container has ended with `code`; None: it runs."""
    state = (
        {"running": {}} if code is None else {"terminated": {"exitCode": code, "message": message, "reason": reason}}
    )
    return {"status": {"phase": "Failed" if code else "Running", "containerStatuses": [{"state": state}]}}


def ended(*pods: dict[str, Any], condition: str = "Failed") -> tuple[str, str]:
    job = made() | {"status": {"conditions": [{"type": condition, "status": "True"}] if condition else []}}
    state = jobs.state(job, list(pods))
    assert (state.step, state.part, state.key, state.attempt) == ("train", "0", "12345678", 1)
    return state.ending, state.message


EVICTED = {"status": {"phase": "Failed", "reason": "Evicted"}}


@pytest.mark.parametrize(
    ("pods", "ending", "message"),
    [
        ([pod(2, message="logs.csv: no such file")], "mistake", "logs.csv: no such file"),
        ([pod(3, message="no space left")], "no space", "no space left"),
        ([pod(4, message="not everything has reached MLflow")], "no tracking", "not everything has reached MLflow"),
        ([pod(1, message="train failed")], "failed", "train failed"),
        ([pod(137, reason="OOMKilled")], "out of memory", "OOMKilled"),
        ([pod(1, reason="OOMKilled", message="train was killed")], "out of memory", "train was killed"),
        ([pod(137)], "lost", "exit code 137"),
        ([pod(143)], "lost", "exit code 143"),
        ([EVICTED], "lost", "Evicted"),
        ([], "lost", "its pod is gone"),
        ([pod(143), pod(1, message="its own fault")], "failed", "its own fault"),
    ],
)
def test_how_a_job_failed(pods: list[dict[str, Any]], ending: str, message: str) -> None:
    assert ended(*pods) == (ending, message)


def test_a_job_at_work_is_active_unless_a_pod_tells_a_mistake() -> None:
    assert ended(pod(), condition="") == ("active", "")
    assert ended(pod(1), pod(), condition="") == ("active", "")
    assert ended(pod(), pod(2, message="no such field"), condition="") == ("mistake", "no such field")
    assert ended(pod(0), condition="Complete") == ("succeeded", "")


def test_a_training_on_several_nodes_finds_its_first_pod_by_name() -> None:
    job = made(train={"nodes": 2, "processes": 2, "baselines": ["fm"]}, resources={"cpu": 4.0})
    assert {key: job["spec"][key] for key in ("completionMode", "completions", "parallelism")} == {
        "completionMode": "Indexed",
        "completions": 2,
        "parallelism": 2,
    }
    template = job["spec"]["template"]["spec"]
    environment = {entry["name"]: entry.get("value") for entry in template["containers"][0]["env"]}
    assert environment["DALIL_ADDRESS"] == f"{WANTED.name}-0.{WANTED.name}"
    assert template["subdomain"] == WANTED.name
    assert environment["OMP_NUM_THREADS"] == "2"
    service = jobs.service(pipeline(), WANTED, OWNER)
    assert service["metadata"]["name"] == WANTED.name
    assert service["spec"]["selector"] == {"job-name": WANTED.name}


def test_other_steps_have_one_pod_whatever_a_training_has() -> None:
    job = made(Wanted("p-search-0-12345678-0", "search", "0", "12345678"), train={"nodes": 2, "baselines": ["fm"]})
    assert "completionMode" not in job["spec"]


def test_pods_get_what_the_pipeline_asks_for() -> None:
    job = made(resources={"cpu": 0.5, "memory": "3Gi", "gpus": 1})
    [container] = job["spec"]["template"]["spec"]["containers"]
    wanted = {"cpu": "0.5", "memory": "3Gi", "nvidia.com/gpu": 1}
    assert container["resources"] == {"requests": wanted, "limits": wanted}


def test_an_object_store_needs_no_volume() -> None:
    job = jobs.job(pipeline(), WANTED, OWNER, Surroundings("dalil", [], None))
    volumes = {volume["name"]: volume for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert volumes["artifacts"] == {"name": "artifacts", "emptyDir": {}}
