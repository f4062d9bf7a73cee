"""One study of several workers in a real PostgreSQL: the same search as in one process, whoever dies on the way."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Postgres
from tests.trainer.test_study import SPACE, curve, facts, run, study
from trainer import storage
from trainer.storage import Database
from trainer.study import WAIT, Study, Trial

TRIALS, LAG = 12, 3


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as running:
        yield running


def shared(postgres: Postgres, key: str) -> Study:
    database = Database(postgres.url)
    return Study(database, "s", SPACE, key=key, sampler="greedy", trials=TRIALS, lag=LAG, seed=1)


def work(search: Study) -> None:
    while (trial := search.next()) is not None:
        if trial == WAIT:
            time.sleep(0.02)
            continue
        assert isinstance(trial, Trial)
        search.finish(trial.number, curve(trial)[-1], curve=curve(trial), samples=10, seconds=0.5)


def test_workers_that_share_a_study_search_as_one_does(postgres: Postgres, tmp_path: Path) -> None:
    alone = study(tmp_path / "j")
    run(alone, workers=1)
    workers = [threading.Thread(target=work, args=(shared(postgres, "many"),)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert facts(shared(postgres, "many").records()) == facts(alone.records())


def test_a_trial_is_in_one_hand_until_its_worker_is_silent(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = shared(postgres, "hands"), shared(postgres, "hands")
    ours, theirs = first.next(), second.next()
    assert isinstance(ours, Trial)
    assert isinstance(theirs, Trial)
    assert (ours.number, theirs.number) == (0, 1)
    monkeypatch.setattr(storage, "STALE_SECONDS", 3.0)
    time.sleep(3.5)
    first.beat()
    taken = first.next()
    assert isinstance(taken, Trial)
    assert taken == theirs
    third = second.next()
    assert isinstance(third, Trial)
    assert third.number == 2
    assert first.next() == WAIT  # the fourth depends on the first


def test_a_worker_that_was_taken_for_dead_changes_nothing(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, other = shared(postgres, "slow"), shared(postgres, "slow")
    trial = slow.next()
    monkeypatch.setattr(storage, "STALE_SECONDS", 0.0)
    again = other.next()
    assert again == trial
    assert isinstance(again, Trial)
    other.finish(again.number, 0.5)
    slow.finish(again.number, 0.7)
    assert other.record(again.number).value == 0.5


def test_the_database_may_be_away_for_a_while(postgres: Postgres) -> None:
    search = shared(postgres, "outage")
    trial = search.next()
    assert isinstance(trial, Trial)
    postgres.kill()
    threading.Timer(2.0, postgres.start).start()
    search.finish(trial.number, 0.25)
    assert search.record(trial.number).value == 0.25
    assert isinstance(search.next(), Trial)


def test_messages_hold_no_password(postgres: Postgres) -> None:
    assert "secret" not in Database(postgres.url).place
