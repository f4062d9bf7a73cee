"""What the operator does about a pipeline, as a pure function of the object and its Jobs: nothing else is remembered.

A step is a set of parts, each a Job: the workers of the search, the trainings, one part for the other steps. The names
of Jobs follow from the pipeline, the step's settings, the part and the number of the attempt, so that an operator that
died while creating one, or two operators at once, cannot make the same Job twice.

How a Job's pod ended decides what becomes of its part (`pipelines.pod`): a user's mistake fails the pipeline at once, a
full volume waits for room and records wait for MLflow, a pod that was lost (to its node, to eviction, to want of
memory) is replaced, and anything else is tried again as often as `retries` allows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pipelines.graph import STEPS, keys
from pipelines.spec import SearchPipeline
from trainer import zoo

Phase = Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"]
Ending = Literal["active", "succeeded", "mistake", "no space", "no tracking", "lost", "out of memory", "failed"]

WAITED_FOR: dict[Ending, str] = {"no space": "NoSpace", "no tracking": "TrackingAway"}
"""Reasons of what another attempt has to wait for."""
PAUSE = 30.0
"""Seconds until that attempt."""
LOST_LIMIT = 20
"""A part whose pods were lost this often is given up."""


@dataclass(frozen=True)
class JobState:
    """A Job of the pipeline as it stands."""

    name: str
    step: str
    part: str
    key: str
    ending: Ending
    message: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    deleting: bool = False

    @property
    def attempt(self) -> int:
        return int(self.name.rsplit("-", 1)[1])


@dataclass(frozen=True)
class Wanted:
    """A Job that must be made."""

    name: str
    step: str
    part: str
    key: str


@dataclass(frozen=True)
class Said:
    """An event for the object."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """What to do now, and what the object's status becomes. `again`: seconds until the next look, if any."""

    create: list[Wanted] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)
    again: float | None = None


def reconcile(
    pipeline: SearchPipeline, generation: int, status: Mapping[str, Any], jobs: Sequence[JobState], now: datetime
) -> Decision:
    """The next actions for a pipeline whose object has `status` and whose Jobs are `jobs`."""
    look = _Look(pipeline, status, jobs, now)
    if pipeline.spec.suspend:
        look.stop_all()
    else:
        look.go_on()
    return look.decision(generation)


class _Look:
    """One look at one pipeline."""

    def __init__(
        self, pipeline: SearchPipeline, status: Mapping[str, Any], jobs: Sequence[JobState], now: datetime
    ) -> None:
        self.pipeline, self.status, self.now = pipeline, status, now
        self.keys = keys(pipeline)
        self.jobs = [job for job in jobs if job.key == self.keys[job.step][:8]]
        self.outdated = [job for job in jobs if job.key != self.keys[job.step][:8]]
        self.create: list[Wanted] = []
        self.delete: list[str] = []
        self.said: list[Said] = []
        self.again: float | None = None
        self.phase: Phase = "Pending"
        self.reason, self.message = "Waiting", ""

    def stop_all(self) -> None:
        """Keep nothing but what is done; what failed gets another chance afterwards."""
        jobs = [*self.jobs, *self.outdated]
        self.delete = [job.name for job in jobs if job.ending != "succeeded" and not job.deleting]
        self.phase, self.reason, self.message = "Suspended", "Suspended", "spec.suspend is true"

    def go_on(self) -> None:
        """Bring the first step that is not done further; what is left of other settings goes first."""
        old = [job for job in self.outdated if job.ending == "active"]
        self.delete = [job.name for job in old if not job.deleting]
        if old:  # two generations of pods must not work in one folder
            self.phase, self.reason, self.message = "Running", "Changing", "pods of the former settings are stopping"
            return
        for step in STEPS:
            if not self._done(step.name):
                self._advance(step.name)
                break
        else:
            self.phase, self.reason, self.message = "Succeeded", "Done", "every step is done"

    def decision(self, generation: int) -> Decision:
        ended = {"Succeeded": "True", "Failed": "False"}.get(self.phase, "Unknown")
        steps = [self._shown(step.name) for step in STEPS]
        status = {
            "observedGeneration": generation,
            "phase": self.phase,
            "step": next((step["name"] for step in steps if step["phase"] != "Succeeded"), None),
            "steps": steps,
            "conditions": [self._condition("Succeeded", ended, self.reason, self.message)],
        }
        return Decision(self.create, self.delete, status, [*self._news(steps), *self.said], self.again)

    def _news(self, steps: Sequence[Mapping[str, Any]]) -> Iterator[Said]:
        """What is new against the status as it stands."""
        before = {step["name"]: step["phase"] for step in self.status.get("steps", [])}
        for step in steps:
            if step["phase"] == "Succeeded" and before.get(step["name"]) != "Succeeded":
                yield Said("Normal", "StepSucceeded", f"{step['name']} is done")
        known = self.status.get("conditions", [{}])[0].get("reason")
        if self.phase == "Failed" or self.reason in WAITED_FOR.values():
            if known != self.reason:
                yield Said("Warning", self.reason, self.message)
        elif self.phase in ("Suspended", "Succeeded") and self.phase != self.status.get("phase"):
            yield Said("Normal", self.phase, self.message)

    def _parts(self, step: str) -> list[str]:
        """The parts of a step, as many as there can be: a pod that has no part left ends at once."""
        spec = self.pipeline.spec
        if step == "search":
            return [str(number) for number in range(spec.search.workers)]
        if step == "train":
            task = spec.dataset.task
            found = spec.train.candidates * len(spec.search.named(task))
            tuned = len(spec.train.named(zoo.names(task)))
            return [str(number) for number in range((found + tuned) * spec.train.seeds)]
        return [""]

    def _of(self, step: str, part: str) -> list[JobState]:
        return [job for job in self.jobs if (job.step, job.part) == (step, part)]

    def _done(self, step: str) -> bool:
        return self._ended(step) == len(self._parts(step))

    def _ended(self, step: str) -> int:
        """How many parts of the step are done."""
        return sum(any(job.ending == "succeeded" for job in self._of(step, part)) for part in self._parts(step))

    def _advance(self, step: str) -> None:
        self.phase, self.reason = "Running", step.capitalize()
        active = sum(job.step == step and job.ending == "active" for job in self.jobs)
        limit = self.pipeline.spec.search.workers
        waiting = [(part, self._of(step, part)) for part in self._parts(step)]
        waiting = [entry for entry in waiting if not any(job.ending in ("active", "succeeded") for job in entry[1])]
        if not all(self._may_try(attempts) for _, attempts in waiting) or self.again is not None:
            return
        for part, attempts in waiting[: max(0, limit - active)]:
            self._try(step, part, attempts)

    def _try(self, step: str, part: str, attempts: Sequence[JobState]) -> None:
        if attempts:
            last = max(attempts, key=lambda job: job.attempt)
            advice = ""
            if last.ending == "out of memory":
                advice = f"; its pod had {self.pipeline.spec.resources.memory}: raise spec.resources.memory"
            said = f"{last.name} is replaced, since it ended as {last.ending}: {last.message}{advice}"
            self.said.append(Said("Warning", "PodReplaced", said))
        elif not any(job.step == step for job in self.jobs) and not self.create:
            self.said.append(Said("Normal", "StepStarted", f"{step} begins"))
        self.create.append(self._wanted(step, part, 1 + max((job.attempt for job in attempts), default=-1)))

    def _may_try(self, attempts: Sequence[JobState]) -> bool:
        """Whether another attempt is due; if the pipeline has failed instead, say so."""
        if not attempts:
            return True
        last = max(attempts, key=lambda job: job.attempt)
        failed = sum(job.ending == "failed" for job in attempts)
        lost = sum(job.ending in ("lost", "out of memory") for job in attempts)
        if last.ending == "mistake":
            self._fail("UserMistake", last.message)
        elif failed > self.pipeline.spec.retries:
            self._fail("RetriesExhausted", f"{last.name} failed {failed} times: {last.message}")
        elif lost > LOST_LIMIT:
            self._fail("PodsLost", f"{last.name}: its pods were lost {lost} times: {last.message}")
        elif last.ending in WAITED_FOR:
            waited = (self.now - (last.finished or self.now)).total_seconds()
            self.reason, self.message = WAITED_FOR[last.ending], last.message
            if waited < PAUSE:
                self.again = PAUSE - waited
        return self.phase != "Failed"

    def _fail(self, reason: str, message: str) -> None:
        self.phase, self.reason, self.message = "Failed", reason, message
        self.delete += [job.name for job in self.jobs if job.ending == "active" and not job.deleting]

    def _wanted(self, step: str, part: str, attempt: int) -> Wanted:
        key = self.keys[step][:8]
        middle = f"{step}-{part}" if part else step
        return Wanted(f"{self.pipeline.metadata.name}-{middle}-{key}-{attempt}", step, part, key)

    def _shown(self, step: str) -> dict[str, Any]:
        """The step as the status lists it."""
        jobs = [job for job in self.jobs if job.step == step]
        done = self._done(step)
        started = min((job.started for job in jobs if job.started), default=None)
        finished = max((job.finished for job in jobs if job.finished), default=None) if done else None
        phase = "Succeeded" if done else "Running" if any(job.ending == "active" for job in jobs) else "Pending"
        shown: dict[str, Any] = {"name": step, "phase": phase}
        parts = len(self._parts(step))
        shown |= {"parts": f"{self._ended(step)}/{parts}"} if parts > 1 else {}
        shown |= {"started": _time(started)} if started else {}
        return shown | ({"finished": _time(finished)} if finished else {})

    def _condition(self, kind: str, value: str, reason: str, message: str) -> dict[str, Any]:
        """A condition whose time of transition stays as long as its value does."""
        made = condition(kind, value, reason, message, self.now)
        known = next((one for one in self.status.get("conditions", []) if one["type"] == kind), None)
        if known and known["status"] == value:
            made["lastTransitionTime"] = known["lastTransitionTime"]
        return made


def condition(kind: str, value: str, reason: str, message: str, since: datetime) -> dict[str, Any]:
    """A condition as Kubernetes writes it."""
    return {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": _time(since)}


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
