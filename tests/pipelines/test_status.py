"""What a pod tells of its step: seldom, the newest, and in the end everything."""

from typing import Any

import pytest

from pipelines import status
from pipelines.spec import Metadata
from pipelines.status import Status


class Told(Status):
    """Keeps what would be sent."""

    def __init__(self, step: str) -> None:
        super().__init__(Metadata(name="p", namespace="n"), step)
        self.patches: list[dict[str, Any]] = []

    def _patch(self, status: dict[str, Any]) -> None:
        self.patches.append(dict(status))


def progress(done: int, *, total: int = 5, best: float | None = None) -> dict[str, Any]:
    event = {"event": "progress", "done": done, "total": total, "running": 1, "failed": 0}
    return event | {"best": best, "best_trial": None if best is None else f"autorec-{done}"}


def test_much_is_told_seldom_and_the_end_at_once() -> None:
    said = Told("search")
    endings = [said.event(progress(done, best=0.5 / (done + 1))) for done in range(6)]
    assert endings == [False] * 5 + [True]
    assert len(said.patches) == 2
    last = said.patches[-1]
    assert last["trials"] == {"done": 5, "running": 1, "failed": 0, "total": 5}
    assert (last["trialsDone"], last["bestModel"], last["bestValue"]) == ("5/5", "autorec-5", 0.083333)


def test_what_comes_too_soon_is_told_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Told("ingest")
    said.event(progress(1, total=90))
    said.event(progress(2, total=90))
    monkeypatch.setattr(status, "PAUSE_SECONDS", 0.0)
    said.event(progress(3, total=90))
    assert said.patches == [{"rows": 1}, {"rows": 3}]


def test_the_champion_is_the_best_model() -> None:
    said = Told("evaluate")
    assert said.event({"event": "champion", "name": "fm", "metric": "mse", "value": 0.7123456, "registered_as": None})
    assert said.patches == [{"bestValue": 0.71235, "bestModel": "fm"}]


def test_an_api_server_that_is_away_stops_nothing() -> None:
    said = Status(Metadata(name="p", namespace="n"), "search")
    assert not said.event(progress(1))
