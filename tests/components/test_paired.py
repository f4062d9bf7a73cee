"""Paired tests of a comparison against scipy's and against the definition of the false discovery rate."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from components.paired import LEVEL, PairedLosses, Vector


def paired(file: Path, losses: dict[str, Vector]) -> PairedLosses:
    made = PairedLosses(file, list(losses), len(next(iter(losses.values()))))
    for name, values in losses.items():
        made[name] = values
    return made


def test_a_test_is_scipys_paired_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    mine, theirs = rng.random(500), rng.random(500)
    made = paired(tmp_path / "losses", {"mine": mine, "theirs": theirs}).test("theirs", "mine")
    expected = stats.ttest_rel(theirs, mine)
    assert made is not None
    assert (made["t"], made["p"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert made["difference"] == pytest.approx(theirs.mean() - mine.mean())


def test_equal_losses_have_no_test_and_no_winner(tmp_path: Path) -> None:
    made = paired(tmp_path / "losses", {"a": np.arange(9.0), "b": np.arange(9.0)})
    assert made.test("a", "b") is None
    assert made.beaten() == {"a": [], "b": []}


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), gap=st.integers(0, 30))
def test_wins_are_those_of_the_step_up_procedure(tmp_path_factory: pytest.TempPathFactory, seed: int, gap: int) -> None:
    """Benjamini and Hochberg: with the p values in order, all up to the last one with p_k <= k / m * level."""
    rng = np.random.default_rng(seed)
    rows = rng.random(200)
    losses = {name: rows + place * gap / 1000 + 0.1 * rng.random(200) for place, name in enumerate("abcde")}
    tests = {pair: stats.ttest_rel(losses[pair[0]], losses[pair[1]]) for pair in combinations(losses, 2)}
    ordered = sorted(tests, key=lambda pair: tests[pair].pvalue)
    passed = [
        k for k, pair in enumerate(ordered, start=1) if tests[pair].pvalue <= k / len(ordered) * LEVEL * (1 - 1e-9)
    ]
    expected: dict[str, set[str]] = {name: set() for name in losses}
    for one, other in ordered[: max(passed, default=0)]:
        winner, loser = (one, other) if tests[one, other].statistic < 0 else (other, one)
        expected[winner].add(loser)

    made = paired(tmp_path_factory.mktemp("paired") / "losses", losses).beaten()

    assert {name: set(losers) for name, losers in made.items()} == expected
