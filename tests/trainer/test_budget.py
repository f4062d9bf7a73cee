"""Searches that end when they have spent a budget, instead of after so many trials."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.small_spaces import mlp_and_cross, two_dims
from trainer.settings import Budget
from trainer.storage import JournalFile
from trainer.study import FRUITLESS, WAIT, Study, Trial

COST = 100


def study(path: Path, budget: Budget, *, lag: int = 3, trials: int | None = None, space: object = None) -> Study:
    space = mlp_and_cross() if space is None else space
    return Study(JournalFile(path), "s", space, sampler="random", trials=trials, budget=budget, lag=lag, seed=1)


def cost(trial: Trial, spread: int) -> int:
    """Samples of a trial: what its candidate alone decides."""
    return COST + int(trial.candidate.hash[:4], 16) % (spread + 1)


def run(search: Study, workers: int, *, seed: int = 0, spread: int = 0) -> None:
    """Train with `workers` at a time; which of them ends first is drawn with `seed`."""
    random, running = Random(seed), []
    while True:
        while len(running) < workers and isinstance(trial := search.next(), Trial):
            running.append(trial)
        if not running:
            assert search.next() is None
            return
        trial = running.pop(random.randrange(len(running)))
        samples = cost(trial, spread)
        search.finish(trial.number, 0.5, curve=[0.5], samples=samples, seconds=samples / 10)


def trained(search: Study) -> int:
    return sum(record.duplicate_of is None for record in search.records())


@pytest.mark.parametrize(("budget", "trials"), [(1, 1), (COST, 1), (2 * COST - 1, 1), (2 * COST, 2), (7 * COST, 7)])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_trials_of_one_cost_fill_the_budget_and_do_not_exceed_it(
    tmp_path: Path, budget: int, trials: int, workers: int
) -> None:
    search = study(tmp_path / "j", Budget(samples=budget), lag=2 * workers - 1)
    run(search, workers)
    assert trained(search) == trials


def test_seconds_count_as_well_and_the_first_limit_ends_it(tmp_path: Path) -> None:
    for name, budget, trials in (
        ("seconds", Budget(seconds=3.5 * COST / 10), None),
        ("both", Budget(seconds=3.5 * COST / 10, samples=100 * COST), None),
        ("trials", Budget(samples=100 * COST), 3),
    ):
        search = study(tmp_path / name, budget, trials=trials)
        run(search, 1)
        assert trained(search) == 3, name


@settings(deadline=None, max_examples=25)
@given(budget=st.integers(1, 12), spread=st.integers(0, 150), workers=st.integers(1, 4))
def test_the_trials_do_not_depend_on_which_ends_first(
    tmp_path_factory: pytest.TempPathFactory, budget: int, spread: int, workers: int
) -> None:
    folder = tmp_path_factory.mktemp("budget")
    searches = []
    for order in range(2):
        search = study(folder / f"{order}", Budget(samples=budget * COST), lag=2 * workers - 1)
        run(search, workers, seed=order, spread=spread)
        searches.append([(record.number, record.candidate.hash, record.samples) for record in search.records()])
    assert searches[0] == searches[1]
    # What a trial costs is known from those before it, so that the last ones may cost more than was expected.
    assert sum(samples for _, _, samples in searches[0][:-workers]) <= budget * COST


def test_with_a_budget_nothing_begins_before_it_is_known_what_a_trial_costs(tmp_path: Path) -> None:
    search = study(tmp_path / "j", Budget(samples=10 * COST), lag=5)
    first = search.next()
    assert isinstance(first, Trial)
    assert search.next() == WAIT
    search.finish(first.number, 0.5, curve=[0.5], samples=COST)
    assert isinstance(search.next(), Trial)
    assert isinstance(search.next(), Trial)


def test_a_search_goes_on_when_its_budget_is_raised(tmp_path: Path) -> None:
    run(study(tmp_path / "j", Budget(samples=3 * COST)), 2)
    more = study(tmp_path / "j", Budget(samples=6 * COST))
    run(more, 2)
    assert trained(more) == 6
    less = study(tmp_path / "j", Budget(samples=2 * COST))
    assert less.next() is None
    assert (less.expected(), trained(less)) == (6, 6)


def test_a_space_without_anything_new_ends_before_the_budget(tmp_path: Path) -> None:
    search = study(tmp_path / "j", Budget(samples=10**9), space=two_dims(), lag=1)
    run(search, 1)
    records = search.records()
    assert len({record.candidate.hash for record in records}) == trained(search) == 4
    assert len(records) == 4 + FRUITLESS


def test_trials_that_all_fail_end_it_too(tmp_path: Path) -> None:
    search = study(tmp_path / "j", Budget(samples=10**9), lag=1)
    while isinstance(trial := search.next(), Trial):
        search.finish(trial.number, None, attrs={"error": "diverged"})
    assert len(search.records()) == FRUITLESS


def test_how_many_trials_are_expected_follows_from_what_they_cost(tmp_path: Path) -> None:
    search = study(tmp_path / "j", Budget(samples=8 * COST), lag=1)
    assert search.expected() == 1
    for number in range(3):
        trial = search.next()
        assert isinstance(trial, Trial)
        search.finish(number, 0.5, curve=[0.5], samples=COST)
    assert search.expected() == 8
