"""What a pod says about its step in the pipeline object's status: progress and the best so far, and nothing else.

The operator owns the rest of the status. A word that does not reach the API server is dropped: the next one is newer.
"""

import logging
import time
from typing import Any

from pipelines.process import Event
from pipelines.spec import Metadata

PAUSE_SECONDS = 2.0
GROUP, VERSION, PLURAL = "dalil.dev", "v1alpha1", "searchpipelines"

log = logging.getLogger("dalil.status")


class Status:
    """Progress of one step, told to the API server at most every `PAUSE_SECONDS`."""

    def __init__(self, about: Metadata, step: str) -> None:
        self.about, self.step = about, step
        self._told = 0.0
        self._waiting: dict[str, Any] = {}
        self._api: Any = None

    def event(self, event: Event) -> bool:
        """Take in an event of the step (`components.events`); whether it is one that says how the step ended."""
        if event["event"] == "progress" and self.step == "search":
            counts = {key: event[key] for key in ("done", "running", "failed", "total")}
            self._waiting |= {"trials": counts, "trialsDone": f"{event['done']}/{event['total']}"}
            if event["best"] is not None:
                self._waiting |= {"bestValue": _shown(event["best"]), "bestModel": event["best_trial"]}
        elif event["event"] == "progress" and self.step == "ingest":
            self._waiting["rows"] = event["done"]
        elif event["event"] == "champion":
            self._waiting |= {"bestValue": _shown(event["value"]), "bestModel": event["name"]}
            self._waiting |= {"registeredModel": event["registered_as"]} if event["registered_as"] else {}
        kind = event["event"]
        final = bool(kind == "champion" or (kind == "progress" and event["done"] == event["total"]))
        if self._waiting and (final or time.monotonic() - self._told > PAUSE_SECONDS):
            self.tell(self._waiting)
            self._waiting = {}
        return final

    def tell(self, status: dict[str, Any]) -> None:
        """Merge `status` into the object's."""
        self._told = time.monotonic()
        try:
            self._patch(status)
        except Exception as error:  # the API server's troubles are not the step's
            log.warning("the status was not told: %s", error)

    def _patch(self, status: dict[str, Any]) -> None:
        from kubernetes import client, config

        if self._api is None:
            config.load_incluster_config()
            self._api = client.CustomObjectsApi()
        self._api.patch_namespaced_custom_object_status(
            GROUP, VERSION, self.about.namespace, PLURAL, self.about.name, {"status": status}, _request_timeout=5
        )


def _shown(value: float) -> float:
    return float(f"{value:.5g}")
