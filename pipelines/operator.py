"""The operator: watches pipelines and their Jobs and pods, and does what `pipelines.reconcile` decides.

It keeps no memory of its own. Whatever changes, the whole pipeline is looked at again, from what the API server has;
so it may die at any moment, and two of them do the same twice, which the names of Jobs make once.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import kopf
from kubernetes import client, config
from kubernetes.client import ApiException

from components.artifacts import digest_of
from components.mirror import local_folder
from pipelines import jobs
from pipelines.reconcile import Decision, JobState, Said, condition, reconcile
from pipelines.spec import SearchPipeline, check
from pipelines.status import GROUP, PLURAL, VERSION

RESYNC_SECONDS = 60.0
TROUBLE_SECONDS = 5.0
REQUEST_SECONDS = 30.0
CONFLICT, NOT_FOUND = 409, 404

log = logging.getLogger("dalil.operator")


class _Counting(client.ApiClient):  # type: ignore[misc]
    """Knows how often the API server was asked, and never waits for an answer for ever."""

    calls = 0

    def call_api(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return super().call_api(*arguments, **options | {"_request_timeout": REQUEST_SECONDS})


class Operator:
    """The handlers' shared state: the client, and one lock and one pending look per pipeline."""

    def __init__(self, namespace: str, around: jobs.Surroundings) -> None:
        self.namespace, self.around = namespace, around
        api = _Counting()
        self.objects, self.batch = client.CustomObjectsApi(api), client.BatchV1Api(api)
        self.core = client.CoreV1Api(api)
        self.api, self.looks, self.seconds = api, 0, 0.0
        self.locks: dict[str, asyncio.Lock] = {}
        self.waiting: set[str] = set()

    async def look(self, name: str) -> None:
        """Bring one pipeline further. Looks that are asked for while one waits are the same look."""
        if name in self.waiting:
            return
        self.waiting.add(name)
        async with self.locks.setdefault(name, asyncio.Lock()):
            self.waiting.discard(name)
            try:
                again = await asyncio.to_thread(self._look, name)
            except Exception as error:  # an API server that is away for a while must not end the operator
                log.warning("%s: will look again: %s", name, error)
                again = TROUBLE_SECONDS
        if again is not None:
            asyncio.get_running_loop().call_later(again, lambda: asyncio.ensure_future(self.look(name)))

    def unfinished(self) -> list[str]:
        """Pipelines that have not ended, or have been changed since: nothing else is left to be done about any."""
        try:
            found = self.objects.list_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL)
        except Exception as error:
            log.warning("will list again: %s", error)
            return []
        return [item["metadata"]["name"] for item in found["items"] if not _ended(item)]

    def _look(self, name: str) -> float | None:
        started = time.perf_counter()
        try:
            return self._bring_further(name)
        finally:
            self.looks += 1
            self.seconds += time.perf_counter() - started

    def _bring_further(self, name: str) -> float | None:
        try:
            found: dict[str, Any] = self.objects.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name
            )
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise
        if "deletionTimestamp" in found["metadata"]:
            return None
        pipeline, problems = check(found)
        if pipeline is None:
            self._refuse(found, problems)
            return None
        states = self._states(name)
        about = found["metadata"]
        decision = reconcile(pipeline, about["generation"], found.get("status", {}), states, datetime.now(UTC))
        self._act(pipeline, found, decision)
        return decision.again

    def _states(self, name: str) -> list[JobState]:
        selector = f"{jobs.PIPELINE}={name}"
        found = self.batch.list_namespaced_job(self.namespace, label_selector=selector).items
        pods: dict[str, list[dict[str, Any]]] = {}
        for pod in self.core.list_namespaced_pod(self.namespace, label_selector=selector).items:
            made = self._plain(pod)
            pods.setdefault(made["metadata"]["labels"].get("job-name", ""), []).append(made)
        return [jobs.state(job, pods.get(job["metadata"]["name"], [])) for job in map(self._plain, found)]

    def _act(self, pipeline: SearchPipeline, found: dict[str, Any], decision: Decision) -> None:
        owner = _owner(found)
        for name in decision.delete:
            self._forgiving(
                lambda name=name: self.batch.delete_namespaced_job(
                    name,
                    self.namespace,
                    propagation_policy="Foreground",  # it is there until its pods are gone
                )
            )
        if decision.create:
            self._apply_config(pipeline, owner)
        for wanted in decision.create:
            if wanted.step == "train" and pipeline.spec.train.nodes > 1:
                body = jobs.service(pipeline, wanted, owner)
                self._forgiving(lambda body=body: self.core.create_namespaced_service(self.namespace, body))
            job = jobs.job(pipeline, wanted, owner, self.around)
            self._forgiving(lambda job=job: self.batch.create_namespaced_job(self.namespace, job))
        for said in decision.said:
            self._say(found, said)
        if any(found.get("status", {}).get(key) != value for key, value in decision.status.items()):
            self.objects.patch_namespaced_custom_object_status(
                GROUP, VERSION, self.namespace, PLURAL, pipeline.metadata.name, {"status": decision.status}
            )

    def _apply_config(self, pipeline: SearchPipeline, owner: dict[str, Any]) -> None:
        body = jobs.config_map(pipeline, owner)
        name = body["metadata"]["name"]
        try:
            self.core.create_namespaced_config_map(self.namespace, body)
        except ApiException as error:
            if error.status != CONFLICT:
                raise
            self.core.patch_namespaced_config_map(name, self.namespace, {"data": body["data"]})

    def _forgiving(self, act: Any) -> None:
        """A thing that is there already, or gone already, is as it should be."""
        try:
            act()
        except ApiException as error:
            if error.status not in (CONFLICT, NOT_FOUND):
                raise

    def _plain(self, thing: Any) -> dict[str, Any]:
        return dict(self.batch.api_client.sanitize_for_serialization(thing))

    def _refuse(self, found: dict[str, Any], problems: str) -> None:
        """What admission could not see: the pipeline fails before its first pod."""
        failed = condition("Succeeded", "False", "Invalid", problems, datetime.now(UTC))
        status = {"phase": "Failed", "observedGeneration": found["metadata"]["generation"], "conditions": [failed]}
        if found.get("status", {}).get("observedGeneration") != status["observedGeneration"]:
            self.objects.patch_namespaced_custom_object_status(
                GROUP, VERSION, self.namespace, PLURAL, found["metadata"]["name"], {"status": status}
            )

    def _say(self, found: dict[str, Any], said: Said) -> None:
        about, now = found["metadata"], datetime.now(UTC)
        # The name follows from what is said, so that two operators say it once.
        what = digest_of(about["uid"], about["generation"], said.reason, said.message)[:16]
        body = {
            "metadata": {"name": f"{about['name']}-{what}", "namespace": self.namespace},
            "involvedObject": {
                "apiVersion": found["apiVersion"],
                "kind": found["kind"],
                "name": about["name"],
                "namespace": self.namespace,
                "uid": about["uid"],
            },
            "type": said.kind,
            "reason": said.reason,
            "message": said.message[:1000],
            "source": {"component": "dalil-operator"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        self._forgiving(lambda: self.core.create_namespaced_event(self.namespace, body))


def _ended(found: dict[str, Any]) -> bool:
    """Whether the pipeline succeeded or failed with the settings that it has now."""
    status = found.get("status", {})
    current = status.get("observedGeneration") == found["metadata"]["generation"]
    return current and status.get("phase") in ("Succeeded", "Failed")


def _owner(found: dict[str, Any]) -> dict[str, Any]:
    about = found["metadata"]
    owner = {"apiVersion": found["apiVersion"], "kind": found["kind"], "name": about["name"], "uid": about["uid"]}
    return {**owner, "controller": True, "blockOwnerDeletion": False}


def _surroundings(namespace: str) -> jobs.Surroundings:
    """Pods of steps run the operator's own image."""
    spec = client.CoreV1Api().read_namespaced_pod(os.environ["HOSTNAME"], namespace).spec
    secrets = [{"name": secret.name} for secret in spec.image_pull_secrets or []]
    claim = os.environ["DALIL_CLAIM"] if local_folder(os.environ["DALIL_ARTIFACTS"]) else None
    return jobs.Surroundings(spec.containers[0].image, secrets, claim)


def main() -> None:
    """Serve the namespace that this pod is in, until stopped."""
    config.load_incluster_config()
    namespace = os.environ["NAMESPACE"]
    operator = Operator(namespace, _surroundings(namespace))

    @kopf.on.startup()
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False  # events are ours to word
        settings.scanning.disabled = True  # it has no right to look at other kinds
        asyncio.get_running_loop().create_task(resync())

    async def resync() -> None:
        """Whatever a lost watch has missed is seen here."""
        while True:
            for name in await asyncio.to_thread(operator.unfinished):
                await operator.look(name)
            await asyncio.sleep(RESYNC_SECONDS)

    @kopf.on.event(GROUP, VERSION, PLURAL)
    async def changed(name: str, **_: Any) -> None:
        await operator.look(name)

    @kopf.on.event("batch", "v1", "jobs", labels=jobs.MANAGED)
    @kopf.on.event("v1", "pods", labels=jobs.MANAGED)
    async def worked(labels: Mapping[str, str], **_: Any) -> None:
        await operator.look(labels[jobs.PIPELINE])

    @kopf.on.probe(id="work")
    def work(**_: Any) -> dict[str, float]:
        """Shown at /healthz: looks at pipelines so far, their seconds, and calls of the API server in them."""
        return {"looks": operator.looks, "seconds": operator.seconds, "calls": operator.api.calls}

    kopf.run(namespaces=[namespace], liveness_endpoint="http://0.0.0.0:8080/healthz", standalone=True)


if __name__ == "__main__":
    main()
