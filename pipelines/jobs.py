"""The Kubernetes objects that a part of a step runs as: plain data made from the pipeline, without any client.

Every pod fits the "restricted" Pod Security profile: no root, no capabilities, a read-only root file system. What it
needs to know of the services (databases, stores, credentials) comes from one ConfigMap and one Secret by name, so that
no password ever stands in an object that the operator makes.
"""

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from components.shipping import TrackingAwayError
from pipelines.reconcile import Ending, JobState, Wanted
from pipelines.spec import SearchPipeline
from trainer.distributed import ADDRESS, NODE, PORT
from trainer.errors import NoSpaceError, UserError

Object = dict[str, Any]

MANAGED = {"app.kubernetes.io/managed-by": "dalil"}
PIPELINE, STEP, PART, KEY = "dalil.dev/pipeline", "dalil.dev/step", "dalil.dev/part", "dalil.dev/key"
ONLY = "only"
"""Label of the part of a step that has but one."""
SERVICES = "dalil-services"
"""The ConfigMap and the Secret with the services' addresses and passwords."""
STORE: Object = {"secretRef": {"name": "dalil-store", "optional": True}}
"""The Secret with the object store's credentials and endpoint, as their libraries read them."""
ACCOUNT = "dalil-step"
USER = 10001


def config_map(pipeline: SearchPipeline, owner: Object) -> Object:
    """The pipeline as its pods read it, every default written out."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _about(pipeline, pipeline.metadata.name, owner, {}),
        "data": {"pipeline.json": json.dumps(pipeline.model_dump(mode="json"), indent=1)},
    }


@dataclass(frozen=True)
class Surroundings:
    """What every pod gets from where the operator runs, whatever the pipeline."""

    image: str
    pull_secrets: list[Object]
    claim: str | None
    """Of the volume with the artefacts; None: they are in an object store."""


def job(pipeline: SearchPipeline, wanted: Wanted, owner: Object, around: Surroundings) -> Object:
    """The Job of one part."""
    labels = {STEP: wanted.step, PART: wanted.part or ONLY, KEY: wanted.key}
    nodes = _nodes(pipeline, wanted)
    spec: Object = {
        "backoffLimit": 0,  # whether a part is tried again is decided by how it ended
        "template": {
            "metadata": {"labels": _labels(pipeline, labels)},
            "spec": _pod(pipeline, wanted, around),
        },
    }
    if nodes > 1:
        spec |= {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _about(pipeline, wanted.name, owner, labels),
        "spec": spec,
    }


def _nodes(pipeline: SearchPipeline, wanted: Wanted) -> int:
    return pipeline.spec.train.nodes if wanted.step == "train" else 1


def service(pipeline: SearchPipeline, wanted: Wanted, owner: Object) -> Object:
    """The headless Service by which the pods of a training on several nodes find the first of them."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _about(pipeline, wanted.name, owner, {STEP: wanted.step}),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"job-name": wanted.name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def state(job: Object, pods: list[Object]) -> JobState:
    """A Job and its pods as the reconciliation sees them."""
    about, status = job["metadata"], job.get("status", {})
    labels = about["labels"]
    conditions = {one["type"]: one for one in status.get("conditions", []) if one["status"] == "True"}
    ended = conditions.get("Complete") or conditions.get("Failed")
    ending, message = _ending(pods, complete="Complete" in conditions, failed="Failed" in conditions)
    part = labels[PART]
    return JobState(
        name=about["name"],
        step=labels[STEP],
        part="" if part == ONLY else part,
        key=labels[KEY],
        ending=ending,
        message=message,
        started=_moment(status.get("startTime")),
        finished=_moment(ended.get("lastTransitionTime")) if ended else None,
        deleting="deletionTimestamp" in about,
    )


_WEIGHTIEST_FIRST: tuple[Ending, ...] = ("mistake", "no space", "no tracking", "out of memory", "failed", "lost")
"""Of several pods one may have failed and the others been stopped for it."""


def _ending(pods: list[Object], *, complete: bool, failed: bool) -> tuple[Ending, str]:
    """How a Job stands. A mistake is known before the Job has failed, while its other pods still run."""
    if complete:
        return "succeeded", ""
    ends = [end for pod in pods for end in _ends(pod)]
    if not failed:
        return next((end for end in ends if end[0] == "mistake"), ("active", ""))
    if ends:
        return min(ends, key=lambda end: _WEIGHTIEST_FIRST.index(end[0]))
    reasons = [pod["status"].get("reason") or "" for pod in pods if pod.get("status", {}).get("phase") == "Failed"]
    return "lost", next(filter(None, reasons), "its pod is gone")


def _ends(pod: Object) -> Iterator[tuple[Ending, str]]:
    """How the pod's container ended, if it did and badly."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        end = container.get("state", {}).get("terminated")
        if end is None or end["exitCode"] == 0:
            continue
        message = end.get("message") or end.get("reason") or f"exit code {end['exitCode']}"
        if end.get("reason") == "OOMKilled":
            yield "out of memory", message
        else:
            yield _ENDINGS.get(end["exitCode"], "failed"), message


_ENDINGS: dict[int, Ending] = {
    UserError.exit_code: "mistake",
    NoSpaceError.exit_code: "no space",
    TrackingAwayError.exit_code: "no tracking",
    128 + signal.SIGKILL: "lost",
    128 + signal.SIGTERM: "lost",
}


def _pod(pipeline: SearchPipeline, wanted: Wanted, around: Surroundings) -> Object:
    resources = pipeline.spec.resources
    command = ["python", "-m", "pipelines.pod", wanted.step, *(["--part", wanted.part] if wanted.part else [])]
    limits: Object = {"cpu": f"{resources.cpu:g}", "memory": resources.memory}
    placed: Object = {}
    if resources.gpus:
        limits["nvidia.com/gpu"] = resources.gpus
        placed["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if _nodes(pipeline, wanted) > 1:
        placed["subdomain"] = wanted.name
    claim = {"persistentVolumeClaim": {"claimName": around.claim}} if around.claim else {"emptyDir": {}}
    return {
        **placed,
        "serviceAccountName": ACCOUNT,
        "imagePullSecrets": around.pull_secrets,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 20,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "step",
                "image": around.image,
                "imagePullPolicy": "IfNotPresent",
                "command": command,
                "envFrom": [{"configMapRef": {"name": SERVICES}}, {"secretRef": {"name": SERVICES}}, STORE],
                "env": [
                    {"name": "DALIL_PIPELINE", "value": "/etc/dalil/pipeline.json"},
                    {"name": "DALIL_SCRATCH", "value": "/scratch"},
                    {"name": "DALIL_LAST_WORD", "value": "/dev/termination-log"},
                    {"name": "OMP_NUM_THREADS", "value": str(_threads(pipeline, wanted))},
                    *_place(pipeline, wanted),
                ],
                "resources": {"requests": limits, "limits": limits},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": "pipeline", "mountPath": "/etc/dalil", "readOnly": True},
                    {"name": "artifacts", "mountPath": "/artifacts"},
                    {"name": "scratch", "mountPath": "/scratch"},
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "pipeline", "configMap": {"name": pipeline.metadata.name}},
            {"name": "artifacts", **claim},
            {"name": "scratch", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _threads(pipeline: SearchPipeline, wanted: Wanted) -> int:
    """What the pod's cores allow each of its processes: a container sees the cores of the whole machine."""
    processes = pipeline.spec.train.processes if wanted.step == "train" else 1
    return max(1, int(pipeline.spec.resources.cpu / processes))


def _place(pipeline: SearchPipeline, wanted: Wanted) -> list[Object]:
    """Environment: where among several machines a pod of a training stands (`trainer.distributed.World`)."""
    if _nodes(pipeline, wanted) == 1:
        return []
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    return [{"name": NODE, "valueFrom": index}, {"name": ADDRESS, "value": f"{wanted.name}-0.{wanted.name}"}]


def _about(pipeline: SearchPipeline, name: str, owner: Object, labels: Object) -> Object:
    return {
        "name": name,
        "namespace": pipeline.metadata.namespace,
        "labels": _labels(pipeline, labels),
        "ownerReferences": [owner],
    }


def _labels(pipeline: SearchPipeline, labels: Object) -> Object:
    return {**MANAGED, PIPELINE: pipeline.metadata.name, **labels}


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
