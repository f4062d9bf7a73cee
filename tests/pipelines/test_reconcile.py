"""What the operator decides, played through without a cluster: a world that creates, ends and loses Jobs as told."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipelines.reconcile import Decision, Ending, JobState, Wanted, reconcile
from pipelines.spec import SearchPipeline, check

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def pipeline(**spec: Any) -> SearchPipeline:
    planted = {"rows": 1000, "fields": {"a": {"cardinality": 4}}}
    data = {
        "apiVersion": "dalil.dev/v1alpha1",
        "kind": "SearchPipeline",
        "metadata": {"name": "p", "namespace": "dalil"},
        "spec": {
            "dataset": {"format": "planted", "planted": planted},
            "search": {"methods": [], "trials": 3, "workers": 2, **spec.pop("search", {})},
            "train": {"baselines": ["fm"], "seeds": 3},
            **spec,
        },
    }
    made, problems = check(data)
    assert made is not None, problems
    return made


class World:
    """A cluster as the operator sees it."""

    def __init__(self, **spec: Any) -> None:
        self.pipeline, self.status, self.now = pipeline(**spec), dict[str, Any](), BEGIN
        self.jobs: dict[str, JobState] = {}

    def look(self) -> Decision:
        self.now += timedelta(seconds=1)
        made = reconcile(self.pipeline, 1, self.status, list(self.jobs.values()), self.now)
        for wanted in made.create:
            assert wanted.name not in self.jobs, "a Job is made twice"
            self.jobs[wanted.name] = self._job(wanted)
        for name in made.delete:
            del self.jobs[name]
        self.status |= made.status
        return made

    def end(self, name: str, ending: Ending = "succeeded", message: str = "") -> None:
        self.now += timedelta(seconds=1)
        self.jobs[name] = replace(self.jobs[name], ending=ending, message=message, finished=self.now)

    def active(self) -> list[str]:
        return [name for name, job in self.jobs.items() if job.ending == "active"]

    def finish(self) -> None:
        """Let every Job succeed until nothing is left to do."""
        self.look()
        while names := self.active():
            for name in names:
                self.end(name)
            self.look()

    def condition(self) -> dict[str, Any]:
        return self.status["conditions"][0]  # type: ignore[no-any-return]

    def _job(self, wanted: Wanted) -> JobState:
        return JobState(wanted.name, wanted.step, wanted.part, wanted.key, "active", started=self.now)


def test_a_pipeline_runs_to_its_end() -> None:
    world = World()
    world.finish()
    assert world.status["phase"] == "Succeeded"
    assert world.condition()["status"] == "True"
    assert [step["phase"] for step in world.status["steps"]] == ["Succeeded"] * 4
    steps = [job.step for job in world.jobs.values()]
    assert steps == ["ingest", "search", "search", "train", "train", "train", "evaluate"]


def test_no_more_pods_than_workers_are_at_work() -> None:
    world = World()
    world.look()
    while names := world.active():
        assert len(names) <= 2
        world.end(names[0])
        world.look()
    assert world.status["phase"] == "Succeeded"


def test_looking_again_changes_nothing() -> None:
    world = World()
    world.look()
    again = world.look()
    assert (again.create, again.delete) == ([], [])


def test_a_users_mistake_fails_at_once_with_its_line() -> None:
    world = World()
    world.look()
    [name] = world.active()
    world.end(name, "mistake", "logs.csv: no such file")
    made = world.look()
    assert made.create == []
    assert world.status["phase"] == "Failed"
    condition = world.condition()
    assert (condition["status"], condition["reason"]) == ("False", "UserMistake")
    assert condition["message"] == "logs.csv: no such file"


@pytest.mark.parametrize("retries", [0, 2])
def test_a_failure_is_tried_again_as_often_as_allowed(retries: int) -> None:
    world = World(retries=retries)
    world.look()
    for _ in range(retries):
        [name] = world.active()
        world.end(name, "failed", "exit code 1")
        world.look()
    [name] = world.active()
    world.end(name, "failed", "exit code 1")
    world.look()
    assert world.active() == []
    assert world.condition()["reason"] == "RetriesExhausted"


def test_lost_pods_do_not_count_as_failures() -> None:
    world = World(retries=0)
    world.look()
    for _ in range(3):
        [name] = world.active()
        world.end(name, "lost")
        world.look()
    world.finish()
    assert world.status["phase"] == "Succeeded"


@pytest.mark.parametrize(("ending", "reason"), [("no space", "NoSpace"), ("no tracking", "TrackingAway")])
def test_what_is_missing_outside_is_waited_for(ending: Ending, reason: str) -> None:
    world = World(retries=0)
    world.look()
    [name] = world.active()
    world.end(name, ending, "what the step said")
    made = world.look()
    assert made.create == []
    assert made.again is not None
    assert (world.condition()["reason"], world.condition()["message"]) == (reason, "what the step said")
    assert world.condition()["status"] == "Unknown"
    world.now += timedelta(seconds=made.again)
    world.finish()
    assert world.status["phase"] == "Succeeded"


def test_suspending_stops_the_pods_and_going_on_loses_nothing() -> None:
    world = World()
    world.look()
    [name] = world.active()
    world.end(name)
    world.look()
    running = world.active()
    world.pipeline = pipeline(suspend=True)
    assert sorted(world.look().delete) == sorted(running)
    assert world.status["phase"] == "Suspended"
    world.pipeline = pipeline()
    world.finish()
    assert world.status["phase"] == "Succeeded"
    assert sum(job.step == "ingest" for job in world.jobs.values()) == 1


def test_more_trials_take_up_the_search_again_and_not_the_ingest() -> None:
    world = World()
    world.finish()
    world.pipeline = pipeline(search={"trials": 9})
    world.finish()
    assert world.status["phase"] == "Succeeded"
    steps = [job.step for job in world.jobs.values()]
    assert (steps.count("ingest"), steps.count("search")) == (1, 4)


def test_a_mistake_in_one_part_means_that_no_other_is_replaced() -> None:
    world = World()
    world.look()
    world.end(world.active()[0])
    world.look()
    first, second = world.active()
    world.end(first, "lost")
    world.end(second, "mistake", "no such model")
    made = world.look()
    assert made.create == []
    assert [said.reason for said in made.said] == ["UserMistake"]
