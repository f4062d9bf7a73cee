"""A real cluster with Dalil in it: the one that KUBECONFIG points to, with the images already on its nodes.

`make kind` makes such a cluster where there is docker. What the API server does not serve (an old one has no
policy/v1) is left out, which the output says.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NAMESPACE = "dalil"

Object = dict[str, Any]

BUSY = (
    "unable to handle the request",
    "oo many requests",
    "TooManyRequests",
    "connection refused",
    "handshake timeout",
    "i/o timeout",
    "etcdserver: request timed out",
)
"""Signs of an API server that has done nothing, since it is overloaded or just coming up."""


class Cluster:
    """kubectl in Dalil's namespace, with answers as data."""

    def kubectl(
        self, *arguments: str, text: str | None = None, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        command = ["kubectl", "--namespace", NAMESPACE, *arguments]
        for pause in (1, 2, 4, 8, 0):
            done = subprocess.run(command, input=text, capture_output=True, text=True)
            if done.returncode == 0 or not any(sign in done.stderr for sign in BUSY):
                break
            time.sleep(pause)
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def get(self, kind: str, name: str) -> Object:
        return dict(json.loads(self.kubectl("get", kind, name, "-o", "json").stdout))

    def all(self, kind: str, **labels: str) -> list[Object]:
        selector = ",".join(f"dalil.dev/{key}={value}" for key, value in labels.items())
        return list(json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json").stdout)["items"])

    def apply(self, pipeline: Object) -> None:
        self.kubectl("apply", "-f", "-", text=yaml.safe_dump(pipeline))

    def status(self, name: str) -> Object:
        return dict(self.get("searchpipeline", name).get("status", {}))

    def until(self, true: Callable[[], Any], seconds: float, what: str) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := true()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.5)
        return value

    def finish(self, name: str, seconds: float = 900) -> Object:
        """Wait for the pipeline's end; its status."""
        ended = ("Succeeded", "Failed")
        self.until(lambda: self.status(name).get("phase") in ended, seconds, f"{name} ends")
        return self.status(name)

    def pods(self, app: str) -> list[str]:
        """Pods of one of the services."""
        found = json.loads(self.kubectl("get", "pods", "-l", f"app.kubernetes.io/name={app}", "-o", "json").stdout)
        return [pod["metadata"]["name"] for pod in found["items"]]

    def at_work(self, name: str) -> list[str]:
        """Pods of a pipeline that have not ended."""
        pods = self.all("pods", pipeline=name)
        return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]

    def in_store(self, command: str) -> str:
        """Run a shell command where the artefacts are mounted."""
        return self.kubectl("exec", "deployment/mlflow", "--", "sh", "-c", command).stdout

    def copy(self, folder: Path, target: str) -> None:
        """A folder of this machine to where the artefacts are mounted."""
        self.kubectl("cp", str(folder), f"{self.pods('mlflow')[0]}:{target}")

    def read(self, path: str) -> str:
        """A file of this namespace's artefacts."""
        return self.in_store(f"cat /artifacts/{NAMESPACE}/{path}")

    def free_bytes(self) -> int:
        return 1024 * int(self.in_store("df -k /artifacts | tail -1").split()[3])

    @contextmanager
    def forwarded(self, target: str, port: int) -> Iterator[str]:
        """A port of a Service, on this machine while the context lasts; gives its address."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            here = free.getsockname()[1]
        command = ["kubectl", "--namespace", NAMESPACE, "port-forward", target, f"{here}:{port}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            process.stdout.readline()  # "Forwarding from ..."
            yield f"http://127.0.0.1:{here}"
        finally:
            process.terminate()
            process.wait()

    def operator_work(self) -> dict[str, float]:
        """What the operator has done so far (`pipelines.operator`)."""
        time.sleep(11)  # kopf answers with what it knew up to 10 s ago
        with self.forwarded("deployment/dalil-operator", 8080) as address:
            answer: dict[str, float] = json.loads(urlopen(f"{address}/healthz").read())["work"]
            return answer

    def refused(self, name: str, patch: Object) -> str:
        """What the API server says to a patch that it must not take."""
        done = self.kubectl("patch", "searchpipeline", name, "--type=merge", "-p", json.dumps(patch), check=False)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def events(self, name: str) -> list[str]:
        """What the operator has said about a pipeline."""
        selector = f"involvedObject.kind=SearchPipeline,involvedObject.name={name}"
        found = json.loads(self.kubectl("get", "events", "--field-selector", selector, "-o", "json").stdout)
        return [event["message"] for event in found["items"]]

    def logs(self, name: str) -> str:
        return self.kubectl("logs", "-l", f"dalil.dev/pipeline={name}", "--tail", "30", check=False).stdout


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster with everything installed and ready."""
    if "DALIL_TEST_CLUSTER" not in os.environ:  # KUBECONFIG alone may lead to a cluster that others work with
        pytest.skip("no cluster: DALIL_TEST_CLUSTER=1 says that Dalil may be put into that of KUBECONFIG")
    made = Cluster()
    served = set(made.kubectl("api-versions").stdout.split())
    rendered = made.kubectl("kustomize", str(ROOT / "manifests" / "overlays" / "kind")).stdout
    for thing in yaml.safe_load_all(rendered):
        if thing["kind"] == "CustomResourceDefinition" and "dalil.dev/v1alpha1" in served:
            continue
        if thing["apiVersion"] not in served:
            print(f"left out: {thing['kind']} {thing['metadata']['name']}: no {thing['apiVersion']} here")
            continue
        made.kubectl("apply", "-f", "-", text=yaml.safe_dump(thing))
    for workload in ("statefulset/postgresql", "deployment/mlflow", "deployment/dalil-operator"):
        made.kubectl("rollout", "status", workload, "--timeout=300s")
    return made
