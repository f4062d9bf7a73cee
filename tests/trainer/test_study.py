import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.trainer.small_spaces import mlp_and_cross, two_dims
from trainer.errors import UserError
from trainer.propose import Past, Proposal, Sampler, propose
from trainer.shapes import count
from trainer.storage import JournalFile
from trainer.study import WAIT, Study, Trial, TrialRecord, prune_thresholds

SPACE = mlp_and_cross()
NARROW = [{"id": "m", "op": "mlp", "in": ["e"], "units": [2]}]


def study(path: Path, sampler: Sampler = "greedy", *, trials: int = 12, lag: int = 3, **others: Any) -> Study:
    return Study(JournalFile(path), "s", SPACE, sampler=sampler, trials=trials, lag=lag, seed=1, **others)


def curve(trial: Trial) -> list[float]:
    """Three epochs that end at the trial's value, which the architecture and the settings alone decide."""
    value = int(trial.candidate.hash[:6], 16) / 16**6
    return [value + 0.2, value + 0.1, value]


def run(search: Study, workers: int, seed: int = 0) -> None:
    """Train with `workers` at a time; which of them ends first, and when to look ahead, is drawn with `seed`."""
    random, running = Random(seed), []
    while True:
        while len(running) < workers and isinstance(trial := search.next(), Trial):
            running.append(trial)
        if not running:
            return
        if random.random() < 0.7:
            search.look_ahead()
        trial = running.pop(random.randrange(len(running)))
        search.finish(trial.number, curve(trial)[-1], curve=curve(trial), samples=10, seconds=0.5)


def facts(records: Sequence[TrialRecord]) -> list[tuple[Any, ...]]:
    return [(r.number, r.state, r.value, r.candidate.hash, r.params, r.curve, r.duplicate_of) for r in records]


@pytest.mark.parametrize("sampler", ["random", "greedy", "bayesian", "evolution", "nsga2"])
def test_the_search_does_not_depend_on_which_trial_ends_first(tmp_path: Path, sampler: Sampler) -> None:
    trials = {"bayesian": 8, "evolution": 26, "nsga2": 26}.get(sampler, 16)
    searches = []
    for order in range(3):
        search = study(tmp_path / f"{order}.journal", sampler, trials=trials)
        run(search, workers=3, seed=order)
        searches.append(facts(search.records()))
    assert searches[0] == searches[1] == searches[2]
    assert [fact[0] for fact in searches[0]] == list(range(trials))


def test_a_trial_proposed_ahead_is_handed_out_without_another_proposal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = study(tmp_path / "s.journal", "random", lag=1)
    first = search.next()
    assert isinstance(first, Trial)
    search.look_ahead()  # the second waits for the first
    search.finish(first.number, 0.5, curve=[0.5])
    search.look_ahead()
    monkeypatch.setattr("trainer.study.propose", None)
    second = search.next()
    assert isinstance(second, Trial)
    assert second.number == 1


def test_samplers_are_told_the_multiply_adds_of_the_models_that_were_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a supernet led to where there is one, not of the backbone that it opened."""
    told: list[Sequence[Past]] = []

    def noting(space: Any, sampler: Sampler, seed: int, number: int, past: Sequence[Past]) -> Proposal:
        told.append(past)
        return propose(space, sampler, seed, number, past)

    monkeypatch.setattr("trainer.study.propose", noting)
    search = study(tmp_path / "j", "random", trials=4, lag=1)
    for number in range(3):
        trial = search.next()
        assert isinstance(trial, Trial)
        found = {**trial.candidate.architecture.to_dict(), "nodes": NARROW, "head": {"mode": "sum", "in": ["m"]}}
        attrs = {"found": {"architecture": found}} if number == 1 else {}
        search.finish(number, 0.5, curve=[0.5], attrs=attrs)
    assert isinstance(search.next(), Trial)
    records = search.records()
    assert [past.flops for past in told[-1]] == [count(record.found.architecture).flops for record in records[:3]]
    assert told[-1][1].flops != count(records[1].candidate.architecture).flops


def test_a_trial_waits_for_those_it_is_proposed_from(tmp_path: Path) -> None:
    search = study(tmp_path / "j", lag=2)
    first, second = search.next(), search.next()
    assert isinstance(first, Trial)
    assert isinstance(second, Trial)
    assert search.next() == WAIT
    search.finish(second.number, 0.5)
    assert search.next() == WAIT
    search.finish(first.number, 0.5)
    assert isinstance(search.next(), Trial)


def test_running_trials_are_handed_out_again_and_finished_ones_never(tmp_path: Path) -> None:
    killed = study(tmp_path / "j")
    trials = [killed.next(), killed.next(), killed.next()]
    assert all(isinstance(trial, Trial) for trial in trials)
    killed.report(0, 0, 0.7)
    killed.finish(1, 0.5, curve=[0.6, 0.5])
    resumed = study(tmp_path / "j")
    assert [resumed.next(), resumed.next()] == [trials[0], trials[2]]
    assert resumed.next() == WAIT
    assert [record.state for record in resumed.records()] == ["running", "complete", "running"]


def test_a_search_cut_anywhere_ends_like_one_left_alone(tmp_path: Path) -> None:
    """The journal as a kill may leave it: every prefix of lines, and torn lines."""
    whole = study(tmp_path / "whole")
    run(whole, workers=3)
    journal = (tmp_path / "whole").read_bytes()
    ends = [position + 1 for position, byte in enumerate(journal) if byte == ord("\n")]
    torn = [end - 7 for end in ends[::3]]
    for cut in [0, 1, *ends[::4], *torn[::3]]:
        path = tmp_path / f"cut{cut}"
        path.write_bytes(journal[:cut])
        resumed = study(path)
        run(resumed, workers=3, seed=cut)
        assert facts(resumed.records()) == facts(whole.records()), cut


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL in the middle of a write to the journal, at several writes."""
    whole = study(tmp_path / "whole")
    run(whole, workers=1)
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from tests.trainer.test_study import run, study
        left = int(sys.argv[2])
        def fsync(descriptor):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        os.fsync = fsync
        run(study(Path(sys.argv[1])), workers=1)
    """)
    for writes in (1, 9, 30):
        path, root = tmp_path / f"killed{writes}", Path(__file__).parents[2]
        died = subprocess.run([sys.executable, "-c", script, path, str(writes)], cwd=root, check=False)
        assert died.returncode == -signal.SIGKILL
        resumed = study(path)
        run(resumed, workers=1)
        assert facts(resumed.records()) == facts(whole.records())


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path) -> None:
    few, many = study(tmp_path / "j", trials=5), study(tmp_path / "k", trials=9)
    run(few, workers=2)
    assert few.next() is None
    more = study(tmp_path / "j", trials=9)
    run(more, workers=2)
    run(many, workers=2)
    assert facts(more.records()) == facts(many.records())


def test_a_study_of_another_search_is_refused(tmp_path: Path) -> None:
    study(tmp_path / "j")
    with pytest.raises(UserError, match="another sampler: delete it"):
        study(tmp_path / "j", "random")
    with pytest.raises(UserError, match="another space"):
        Study(JournalFile(tmp_path / "j"), "s", two_dims(), sampler="greedy", trials=1, lag=1, seed=1)


def test_one_journal_holds_several_studies(tmp_path: Path) -> None:
    first = study(tmp_path / "j")
    second = Study(JournalFile(tmp_path / "j"), "t", two_dims(), sampler="random", trials=2, lag=1, seed=1)
    run(first, workers=1)
    run(second, workers=1)
    assert len(study(tmp_path / "j").records()) == 12
    assert len(second.records()) == 2


def test_optuna_reads_the_study(tmp_path: Path) -> None:
    search = study(tmp_path / "j", trials=3)
    run(search, workers=1)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "j")))
    loaded = optuna.load_study(study_name="s", storage=storage)
    assert loaded.direction == optuna.study.StudyDirection.MINIMIZE
    assert loaded.best_trial.number == search.best()[0].number
    assert loaded.trials[0].params["head.mode"] == "linear"
    assert loaded.trials[0].params["mlp.dropout"] == 0.0
    assert loaded.trials[0].params["training.table_l2"] == 1e-5
    assert list(loaded.trials[0].intermediate_values) == [0, 1, 2]
    assert loaded.trials[0].user_attrs["samples"] == 10
    # Only choices that the candidate really made are its parameters.
    for trial in loaded.trials:
        assert ("mlp.units2" in trial.params) == (trial.params["mlp.layers"] == 2)


def test_duplicates_are_recorded_and_not_trained(tmp_path: Path) -> None:
    search = Study(JournalFile(tmp_path / "j"), "s", two_dims(), sampler="random", trials=7, lag=1, seed=1)
    run(search, workers=1)
    records = search.records()
    assert [record.state for record in records] == ["complete"] * 4 + ["duplicate"] * 3
    for record in records[4:]:
        assert record.duplicate_of is not None
        original = records[record.duplicate_of]
        assert (record.value, record.candidate) == (original.value, original.candidate)
        assert record.samples == 0
    assert len({record.candidate.hash for record in search.best(10)}) == 4


def test_failed_and_pruned_trials_are_not_among_the_best(tmp_path: Path) -> None:
    search = study(tmp_path / "j", trials=3)
    for value, pruned in ((None, False), (0.1, True), (0.9, False)):
        trial = search.next()
        assert isinstance(trial, Trial)
        search.finish(trial.number, value, pruned=pruned, attrs={"error": "diverged"} if value is None else None)
    assert [record.state for record in search.records()] == ["failed", "pruned", "complete"]
    assert [record.number for record in search.best(5)] == [2]
    assert search.records()[0].attrs == {"error": "diverged"}


def test_a_trial_is_pruned_by_the_upper_quartile_of_trials_it_may_know(tmp_path: Path) -> None:
    search = study(tmp_path / "j", "random", trials=6, lag=1)
    for number in range(4):
        assert search.next().thresholds == ()  # type: ignore[union-attr]
        search.finish(number, 0.1 * number, curve=[1.0, 1.0, 1.0, 0.1 * number])
    trial = search.next()
    assert isinstance(trial, Trial)
    assert trial.thresholds == (math.inf, math.inf, math.inf, pytest.approx(0.225))
    assert study(tmp_path / "j", "random", trials=6, lag=1).next() == trial


def test_pruning_can_be_switched_off(tmp_path: Path) -> None:
    search = study(tmp_path / "j", "random", trials=6, lag=1, prune=False)
    for number in range(6):
        assert search.next().thresholds == ()  # type: ignore[union-attr]
        search.finish(number, 0.1 * number, curve=[1.0, 0.1 * number])


curves = st.lists(
    st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=6).map(lambda c: sorted(c, reverse=True)),
    max_size=9,
)


@given(curves)
def test_the_best_of_the_earlier_trials_would_not_be_pruned(curves: list[list[float]]) -> None:
    thresholds = prune_thresholds(curves)
    assert (thresholds == ()) == (len(curves) < 4)
    if curves:
        best = min(curves, key=lambda curve: curve[-1])
        assert len(thresholds) in (0, max(map(len, curves)))
        assert thresholds[: len(best)] == () or best[-1] <= thresholds[len(best) - 1]


def test_a_trial_that_ended_early_counts_on_with_its_last_value() -> None:
    curves = [[4, 3], [5], [6, 2, 1], [7, 7, 7]]
    assert prune_thresholds(curves, percentile=50, warm_up=1) == (math.inf, 4.0, 4.0)


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    search = study(tmp_path / "j")
    if (child := os.fork()) == 0:
        search._storage._backend._lock.acquire()  # type: ignore[attr-defined]
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert isinstance(search.next(), Trial)
