"""What survives what: a fault in mid-run, and then the same trials, artefacts and champion as without it.

Each test prints what was done and seen; docs/kubernetes.md has the table. Faults of a node need a hand on the node:
KUBELET_STOP and KUBELET_START are commands for that (`docker exec dalil-control-plane systemctl stop kubelet`), and a
full volume needs one that can be filled (at most 4 GiB); without them these tests are skipped.
"""

import json
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.cluster.conftest import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SPEC = {
    "dataset": {
        "format": "planted",
        "planted": {
            "rows": 60_000,
            "fields": {
                "a": {"cardinality": 40, "effect": 1},
                "b": {"cardinality": 30, "effect": 1},
                "c": {"effect": 1},
            },
            "interactions": [{"fields": ["a", "b"], "strength": 1}],
        },
    },
    "search": {
        "sampler": "greedy",
        "trials": 4,
        "workers": 2,
        "autorec": {"parallel": [1, 2], "blocks": [1], "mlp_units": [16, 32]},
    },
    "train": {"seeds": 1, "epochs": 6, "batch_size": 256},
    "resources": {"cpu": 0.8, "memory": "1500Mi"},
}


def apply(cluster: Cluster, name: str, **spec: Any) -> None:
    data = {"apiVersion": "dalil.dev/v1alpha1", "kind": "SearchPipeline", "metadata": {"name": name}}
    cluster.apply({**data, "spec": {**SPEC, "evaluate": {"register": name}, **spec}})


def outcome(cluster: Cluster, name: str) -> dict[str, Any]:
    """What must not depend on faults: the champion, every model's figures, the trials, the artefacts."""
    status = cluster.status(name)
    assert status["phase"] == "Succeeded", (status, cluster.logs(name))
    report = json.loads(cluster.read(f"{name}/evaluate/report.json"))
    return {
        "champion": (status["bestModel"], status["bestValue"]),
        "models": {entry["name"]: (entry["hash"], entry["metrics"]) for entry in report["leaderboard"]},
        "trials": [(trial["study"], trial["number"], trial["state"], trial["hash"]) for trial in report["trials"]],
        "counts": status["trials"],
        "files": {step: sorted(files(cluster, f"{name}/{step}")) for step in ("ingest", "search", "train", "evaluate")},
    }


def files(cluster: Cluster, folder: str) -> Iterator[str]:
    return iter(json.loads(cluster.read(f"{folder}/manifest.json"))["files"])


@pytest.fixture(scope="module")
def calm(cluster: Cluster) -> dict[str, Any]:
    """The outcome without any fault."""
    apply(cluster, "calm")
    cluster.finish("calm")
    return outcome(cluster, "calm")


def running(cluster: Cluster, name: str, step: str) -> str:
    """A pod of the step that is at work."""

    def look() -> str | None:
        pods = cluster.all("pods", pipeline=name, step=step)
        return next((pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"), None)

    return str(cluster.until(look, 300, f"{name} runs {step}"))


def until_told(cluster: Cluster, name: str, reason: str, seconds: float) -> None:
    """The pipeline's condition gives this reason."""

    def told() -> bool:
        return str(cluster.status(name)["conditions"][0]["reason"]) == reason

    cluster.until(told, seconds, f"the reason is {reason}")


def kill(cluster: Cluster, pod: str) -> None:
    """As kill -9: without a chance to say goodbye."""
    cluster.kubectl("delete", "pod", pod, "--grace-period=0", "--force")


def kill_step(step: str) -> Callable[[Cluster, str], None]:
    def fault(cluster: Cluster, name: str) -> None:
        pod = running(cluster, name, step)
        time.sleep(6)  # in the midst of the work, after its imports
        kill(cluster, pod)

    return fault


def kill_operators_again_and_again(cluster: Cluster, name: str) -> None:
    """There are two, and every few seconds both are killed, so also while they make Jobs."""
    cluster.kubectl("scale", "deployment/dalil-operator", "--replicas=2")

    def strike() -> None:
        while cluster.status(name).get("phase") not in ("Succeeded", "Failed"):
            for pod in cluster.pods("dalil-operator"):
                kill(cluster, pod)
            time.sleep(10)
        cluster.kubectl("scale", "deployment/dalil-operator", "--replicas=1")

    threading.Thread(target=strike, daemon=True).start()


def kill_postgresql(cluster: Cluster, name: str) -> None:
    running(cluster, name, "search")
    time.sleep(6)
    kill(cluster, "postgresql-0")


def without_mlflow(cluster: Cluster, name: str) -> None:
    """It is away from the search on, and comes back when nothing but its answer is missing."""
    running(cluster, name, "search")
    cluster.kubectl("scale", "deployment/mlflow", "--replicas=0")
    until_told(cluster, name, "TrackingAway", 600)
    cluster.kubectl("scale", "deployment/mlflow", "--replicas=1")


def without_kubelet(cluster: Cluster, name: str) -> None:
    running(cluster, name, "search")
    subprocess.run(shlex.split(os.environ["KUBELET_STOP"]), check=True)
    time.sleep(30)
    subprocess.run(shlex.split(os.environ["KUBELET_START"]), check=True)


NEEDS_NODE = pytest.mark.skipif("KUBELET_STOP" not in os.environ, reason="no hand on the node: KUBELET_STOP is not set")

FAULTS = [
    pytest.param(kill_step("search"), id="search-worker"),
    pytest.param(kill_step("train"), id="trainer"),
    pytest.param(kill_operators_again_and_again, id="operator"),
    pytest.param(kill_postgresql, id="postgresql"),
    pytest.param(without_mlflow, id="mlflow"),
    pytest.param(without_kubelet, id="kubelet", marks=NEEDS_NODE),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_nothing(
    cluster: Cluster, calm: dict[str, Any], fault: Callable[[Cluster, str], None], request: pytest.FixtureRequest
) -> None:
    name = f"fault-{request.node.callspec.id}"
    started = time.monotonic()
    apply(cluster, name)
    fault(cluster, name)
    cluster.finish(name)
    print(f"{name}: {time.monotonic() - started:.0f} s")
    assert outcome(cluster, name) == calm
    with cluster.forwarded("service/mlflow", 5000) as address:
        assert int(MlflowClient(address, address).get_model_version_by_alias(name, "champion").version) == 1


def test_a_full_volume_is_waited_for(cluster: Cluster, calm: dict[str, Any]) -> None:
    free = cluster.free_bytes()
    if free > 4 << 30:
        pytest.skip(f"the artefact volume has {free >> 30} GiB free, too much to fill")
    apply(cluster, "fault-full")
    running(cluster, "fault-full", "search")
    cluster.in_store(f"dd if=/dev/zero of=/artifacts/filler bs=1M count={free >> 20} || true")
    try:
        until_told(cluster, "fault-full", "NoSpace", 300)
    finally:
        cluster.in_store("rm -f /artifacts/filler")
    cluster.finish("fault-full")
    assert outcome(cluster, "fault-full") == calm


def test_want_of_memory_is_told_and_can_be_mended(cluster: Cluster, calm: dict[str, Any]) -> None:
    name = "narrow"
    apply(cluster, name, resources={**SPEC["resources"], "memory": "120Mi"})  # type: ignore[dict-item]

    def told() -> list[str]:
        return [message for message in cluster.events(name) if "raise spec.resources.memory" in message]

    cluster.until(told, 120, "an event says that the memory is too small")
    apply(cluster, name)
    cluster.finish(name)
    assert outcome(cluster, name) == calm


def test_suspended_and_resumed(cluster: Cluster, calm: dict[str, Any]) -> None:
    name = "suspended"
    apply(cluster, name)
    running(cluster, name, "search")
    time.sleep(5)
    apply(cluster, name, suspend=True)
    cluster.until(lambda: cluster.status(name)["phase"] == "Suspended", 30, "it is suspended")
    cluster.until(lambda: not cluster.at_work(name), 60, "its pods are gone")
    apply(cluster, name)
    cluster.finish(name)
    assert outcome(cluster, name) == calm


def test_more_trials_go_on_from_what_there_is(cluster: Cluster, calm: dict[str, Any]) -> None:
    before = cluster.get("job", jobs(cluster, "calm", "ingest")[0])["metadata"]["uid"]
    apply(cluster, "calm", search={**SPEC["search"], "trials": 6})  # type: ignore[dict-item]
    cluster.until(lambda: cluster.status("calm")["phase"] == "Running", 30, "it runs again")
    cluster.finish("calm")
    made = outcome(cluster, "calm")
    own = [trial for trial in made["trials"] if trial[0] == "autorec"]
    assert len(own) == 6
    assert own[:4] == [trial for trial in calm["trials"] if trial[0] == "autorec"]
    assert cluster.get("job", jobs(cluster, "calm", "ingest")[0])["metadata"]["uid"] == before


def test_fewer_trials_end_a_search_with_what_it_has(cluster: Cluster, calm: dict[str, Any]) -> None:
    name = "shortened"
    apply(cluster, name)
    running(cluster, name, "search")
    cluster.until(lambda: cluster.status(name).get("trials", {}).get("done", 0) >= 2, 120, "two trials are done")
    apply(cluster, name, search={**SPEC["search"], "trials": 2})  # type: ignore[dict-item]
    cluster.finish(name)
    made = outcome(cluster, name)
    own = [trial for trial in made["trials"] if trial[0] == "autorec"]
    assert made["counts"]["done"] == made["counts"]["total"]
    assert own == [trial for trial in calm["trials"] if trial[0] == "autorec"][: len(own)]
    assert 2 <= len(own) <= 4
    assert {state for _, _, state, _ in own} <= {"complete", "pruned", "duplicate"}


def test_changes_of_a_running_pipeline_are_refused_with_the_reason(cluster: Cluster) -> None:
    apply(cluster, "steady")
    running(cluster, "steady", "ingest")
    refused = cluster.refused("steady", {"spec": {"train": {"epochs": 7}}})
    assert "spec.train cannot change while the pipeline runs" in refused
    refused = cluster.refused("steady", {"spec": {"dataset": {"planted": {"rows": 70_000}}}})
    assert "spec.dataset cannot change once the pipeline has started" in refused


def test_deleting_the_object_keeps_what_was_made(cluster: Cluster) -> None:
    running(cluster, "steady", "ingest")
    cluster.kubectl("delete", "searchpipeline", "steady")
    cluster.until(lambda: not cluster.all("pods", pipeline="steady"), 90, "its pods are gone")
    assert not cluster.all("jobs", pipeline="steady")
    assert "steady" in cluster.in_store("ls /artifacts/dalil")


def test_an_object_applied_again_takes_up_what_was_made(cluster: Cluster, calm: dict[str, Any]) -> None:
    cluster.kubectl("delete", "searchpipeline", "suspended")
    cluster.until(lambda: not cluster.all("jobs", pipeline="suspended"), 90, "its Jobs are gone")
    before = cluster.read("suspended/train/manifest.json")
    apply(cluster, "suspended")
    cluster.finish("suspended")
    assert outcome(cluster, "suspended") == calm
    assert cluster.read("suspended/train/manifest.json") == before


def jobs(cluster: Cluster, name: str, step: str) -> list[str]:
    return [job["metadata"]["name"] for job in cluster.all("jobs", pipeline=name, step=step)]
