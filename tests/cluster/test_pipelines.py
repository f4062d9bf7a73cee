"""Pipelines applied to a real cluster with kubectl, against the same files run on this machine."""

import base64
import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import ROOT, Cluster
from tests.cluster.test_faults import SPEC

Object = dict[str, Any]

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def gallery(name: str) -> Object:
    return dict(yaml.safe_load((ROOT / "pipelines" / "gallery" / f"{name}.yaml").read_text()))


def on_both(cluster: Cluster, folder: Path, pipeline: Object, *overrides: str) -> None:
    """Run the same file on the cluster and here (`overrides`: where it has its data); both find the same champion."""
    cluster.apply(pipeline)
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(pipeline, sort_keys=False))  # the API server sorts names, here they stand as written
    settings = [part for override in overrides for part in ("--set", override)]
    subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "run", str(file), "--output", str(folder / "run"), *settings],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    finds_the_same(cluster, pipeline["metadata"]["name"], folder / "run" / "report.json")


def finds_the_same(cluster: Cluster, name: str, report: Path) -> None:
    """A pipeline on the cluster ends with the champion of a report that was made here."""
    status = cluster.finish(name)
    assert status["phase"] == "Succeeded", (status, cluster.logs(name))
    here = champion(json.loads(report.read_text()))
    there = champion(json.loads(cluster.read(f"{name}/evaluate/report.json")))
    print(f"{name}: {here['name']} {here['hash']}, value {here['value']:.6f} here, {there['value']:.6f} there")
    assert (here["name"], here["hash"]) == (there["name"], there["hash"])
    assert there["value"] == pytest.approx(here["value"], abs=1e-4)
    assert (status["bestModel"], status["bestValue"]) == (there["name"], pytest.approx(there["value"], rel=1e-4))


def champion(report: Object) -> Object:
    entry = next(entry for entry in report["leaderboard"] if entry["name"] == report["champion"])
    return {**entry, "value": entry["metrics"]["test"][report["metric"]]["mean"]}


def test_the_quickstart_finds_on_the_cluster_what_it_finds_here(cluster: Cluster, newcomer: Path) -> None:
    cluster.apply(gallery("quickstart"))
    finds_the_same(cluster, "quickstart", newcomer / "runs" / "quickstart" / "report.json")


@pytest.mark.skipif("DALIL_TEST_DATA" not in os.environ, reason="no MovieLens-1M: DALIL_TEST_DATA names no folder")
def test_movielens_gives_on_the_cluster_what_it_gives_here(cluster: Cluster, tmp_path: Path) -> None:
    """The real rows with a corner of the gallery file's space, so that it is quick."""
    data = Path(os.environ["DALIL_TEST_DATA"]) / "ml-1m"
    cluster.in_store("mkdir -p /artifacts/data")
    cluster.copy(data, "/artifacts/data/ml-1m")
    [ratings] = data.glob("ratings.dat*")
    pipeline = gallery("movielens")
    spec = pipeline["spec"]
    spec["dataset"]["source"] = f"/artifacts/data/ml-1m/{ratings.name}"
    spec["search"] |= {"trials": 2, "tune": {"table_l2": []}}
    spec["search"]["autorec"] |= {"latent_dims": [8, 16], "parallel": [1], "blocks": [1], "mlp_layers": [1]}
    spec["train"] |= {"seeds": 1, "epochs": 2, "baselines": ["mf"], "baseline_settings": {"mf": {"trials": 1}}}
    spec["resources"] = {"memory": "3Gi"}
    on_both(cluster, tmp_path, pipeline, f"dataset.source={ratings}")


def test_a_comparison_finds_on_the_cluster_what_it_finds_here(cluster: Cluster, tmp_path: Path) -> None:
    """Methods side by side at one budget, which counts rows and not trials."""
    search = {"methods": ["autofis", "random"], "budget": {"samples": 600_000}, "workers": 2}
    search |= {"autofis": {"epochs": 2}, "autorec": {"parallel": [1, 2], "blocks": [1], "mlp_units": [16, 32]}}
    train = {**SPEC["train"], "baselines": ["fm"]}
    spec = {**SPEC, "search": search, "train": train, "evaluate": {"metric": "logloss"}}
    pipeline = {
        "apiVersion": "dalil.dev/v1alpha1",
        "kind": "SearchPipeline",
        "metadata": {"name": "compared"},
        "spec": spec,
    }
    on_both(cluster, tmp_path, pipeline)
    report = json.loads(cluster.read("compared/evaluate/report.json"))
    assert {entry["name"] for entry in report["leaderboard"]} == {"autofis-1", "random-1", "fm"}
    assert [search["method"] for search in report["searches"]] == ["autofis", "random"]


def test_a_training_on_two_nodes_comes_to_what_one_comes_to(cluster: Cluster) -> None:
    """Sums of gradients are the same but for the order of their terms: 1e-4 is far below what seeds differ by."""
    values = []
    for name, nodes in (("one-node", 1), ("two-nodes", 2)):
        train = {"baselines": ["fm"], "seeds": 1, "epochs": 3, "batch_size": 256, "nodes": nodes}
        spec = {**SPEC, "search": {"methods": [], "trials": 1}, "train": train}
        cluster.apply(
            {"apiVersion": "dalil.dev/v1alpha1", "kind": "SearchPipeline", "metadata": {"name": name}, "spec": spec}
        )
        status = cluster.finish(name)
        assert status["phase"] == "Succeeded", (status, cluster.logs(name))
        values.append(status["bestValue"])
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    jobs = cluster.all("jobs", pipeline="two-nodes", step="train")  # more than one, where a pod was lost
    assert {job["spec"]["completions"] for job in jobs} == {2}
    weights = cluster.in_store("ls /artifacts/dalil/two-nodes/train/weights").split()
    assert weights == ["fm-seed-1.safetensors"]


def test_the_registered_model_scores_on_the_server_of_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.forwarded("svc/mlflow", 5000) as address:
        uri = "models:/quickstart@champion"
        rows = tmp_path / "rows.csv"
        rows.write_text("segment,topic,hour\ns1,t1,h1\ns2,t2,h2\n")
        scored = subprocess.run(
            [sys.executable, *f"-m mlflow models predict -m {uri} -t csv -i {rows} --env-manager local".split()],
            env={**os.environ, "MLFLOW_TRACKING_URI": address},
            capture_output=True,
            text=True,
            check=True,
        )
    predictions = json.loads(scored.stdout.splitlines()[-1])["predictions"]
    assert len(predictions) == 2


def test_twenty_pipelines_at_once(cluster: Cluster) -> None:
    """What the operator does for one pipeline does not grow with their number, neither of those at work nor of those
    that there are. The times are printed: twenty pods at once leave little of a small machine to anybody.
    """

    def cost(names: list[str]) -> float:
        """Calls of the API server for each."""
        before = cluster.operator_work()
        started = time.monotonic()
        for name in names:
            dataset = {"format": "movielens", "task": "rating", "source": "/artifacts/nowhere.dat"}
            spec = {"dataset": dataset, "search": {"methods": []}, "train": {"baselines": ["fm"]}}
            spec |= {"resources": {"cpu": 0.2, "memory": "400Mi"}}
            cluster.apply(
                {"apiVersion": "dalil.dev/v1alpha1", "kind": "SearchPipeline", "metadata": {"name": name}, "spec": spec}
            )
        for name in names:
            assert cluster.finish(name)["phase"] == "Failed"
        after = cluster.operator_work()
        calls = (after["calls"] - before["calls"]) / len(names)
        seconds = (after["seconds"] - before["seconds"]) / (after["looks"] - before["looks"])
        print(
            f"{len(names)} pipelines: {calls:.1f} calls of the API server each, {1000 * seconds:.0f} ms a look, "
            f"all ended after {time.monotonic() - started:.0f} s"
        )
        return calls

    alone = cost(["alone"])
    crowd = [f"crowd-{number}" for number in range(20)]
    assert cost(crowd) < 2 * alone
    assert cost(["late"]) < 2 * alone
    cluster.kubectl("delete", "searchpipeline", "alone", "late", *crowd)


def test_the_operator_loses_no_time_between_steps(cluster: Cluster) -> None:
    """A trace of the quickstart: when each Job was made, its pod started, and both ended."""
    jobs = cluster.all("jobs", pipeline="quickstart")
    pods = {pod["metadata"]["labels"]["job-name"]: pod for pod in cluster.all("pods", pipeline="quickstart")}
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for job in jobs:
        state = pods[job["metadata"]["name"]]["status"]["containerStatuses"][0]["state"]["terminated"]
        moments = (job["metadata"]["creationTimestamp"], state["startedAt"], state["finishedAt"])
        rows.setdefault(job["metadata"]["labels"]["dalil.dev/step"], []).append(
            tuple(datetime.fromisoformat(moment).timestamp() for moment in moments)  # type: ignore[arg-type]
        )
    ended = None
    for step in ("ingest", "search", "train", "evaluate"):
        made = min(row[0] for row in rows[step])
        started = min(row[1] for row in rows[step])
        finished = max(row[2] for row in rows[step])
        idle = made - ended if ended else 0.0
        print(
            f"{step}: made {idle:.0f} s after the step before, pod started in {started - made:.0f} s, "
            f"took {finished - started:.0f} s"
        )
        assert idle < 3, "2 s, and the fraction of a second that the time stamps leave out"
        ended = finished


def test_no_password_leaves_its_secret(cluster: Cluster) -> None:
    secret = cluster.get("secret", "postgresql")["data"]["password"]
    password = base64.b64decode(secret).decode()
    assert password
    kinds = "searchpipelines,jobs,pods,configmaps,services,deployments,statefulsets"
    shown = [cluster.kubectl("get", f"{kinds},events", "-o", "yaml").stdout]
    pods = json.loads(cluster.kubectl("get", "pods", "-o", "json").stdout)["items"]
    shown += [cluster.kubectl("logs", pod["metadata"]["name"], check=False).stdout for pod in pods]
    assert len(shown) > 10
    assert not [text for text in shown if password in text]
    assert cluster.in_store(f"grep -rlF {password} /artifacts || true") == ""
