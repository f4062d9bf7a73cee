"""Trials on fewer rows and smaller tables."""

from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tests.trainer import opened, small
from tests.trainer.small_spaces import two_dims
from tests.trainer.test_autoctr import candidates, trained
from trainer.candidate import Candidate
from trainer.data import Table
from trainer.errors import UserError
from trainer.fidelity import hashed, reduced, share
from trainer.settings import FidelitySettings
from trainer.shapes import count
from trainer.space import fill
from trainer.storage import JournalFile
from trainer.study import Study


@given(st.integers(1, 300), st.floats(0.01, 1, allow_subnormal=False))
def test_a_share_is_blind_and_keeps_the_order(rows: int, part: float) -> None:
    table = small.table(rows)
    some = share(table, FidelitySettings(rows=part), seed=3)
    assert some.rows == max(1, round(part * rows))
    again = share(table, FidelitySettings(rows=part), seed=3)
    assert torch.equal(some.categorical, again.categorical)
    every = list(map(tuple, table.categorical.tolist()))
    places = iter(every)
    assert all(row in places for row in map(tuple, some.categorical.tolist()))  # a subsequence


def test_a_share_is_drawn_from_all_rows() -> None:
    table = small.table(1000)
    some = share(table, FidelitySettings(rows=0.2), seed=3)
    first = {tuple(row) for row in table.categorical[:200].tolist()}
    assert sum(tuple(row) in first for row in some.categorical.tolist()) < 120


@given(st.integers(2, 60))
def test_hashed_rows_fit_the_reduced_model(size: int) -> None:
    """Every id below the cardinality, those that were below it as they were, and 0 for 0 alone."""
    table, fidelity = small.table(50), FidelitySettings(hash=size)
    few = hashed(table, fidelity)
    model = reduced(small.architecture(), fidelity)
    for column, name in enumerate(few.schema.names("categorical")):
        ids, before = few.categorical[:, column], table.categorical[:, column]
        assert model.fields[name].cardinality == few.schema.field(name).cardinality
        assert int(ids.max()) < model.fields[name].cardinality
        assert torch.equal(ids == 0, before == 0)
        assert torch.equal(ids[before < size], before[before < size])
    steps = few.sequences["history"].values
    assert steps.numel() == 0 or int(steps.max()) < model.fields["history"].cardinality
    assert few.schema.field("history").cardinality == few.schema.field("item").cardinality


def test_ids_beyond_are_taken_modulo_among_the_known() -> None:
    table = small.table(400)
    few = hashed(table, FidelitySettings(hash=11))
    before = table.categorical[:, 0]
    assert torch.equal(few.categorical[:, 0], torch.where(before > 0, 1 + (before - 1) % 10, 0))


def test_full_fidelity_changes_nothing() -> None:
    table, full = small.table(30), FidelitySettings()
    assert full.full
    assert share(table, full, seed=1) is table
    assert hashed(table, full) is table
    assert reduced(small.architecture(), full) == small.architecture()


def test_a_reduced_model_has_smaller_tables_and_the_same_multiply_adds() -> None:
    whole = small.architecture()
    few = reduced(whole, FidelitySettings(hash=5))
    assert count(few).tables < count(whole).tables
    assert (count(few).dense, count(few).flops) == (count(whole).dense, count(whole).flops)


def test_a_study_is_not_continued_at_another_fidelity(tmp_path: Path) -> None:
    def open_study(fidelity: FidelitySettings | None) -> Study:
        storage = JournalFile(tmp_path / "s.journal")
        return Study(storage, "s", two_dims(), sampler="random", trials=2, lag=1, seed=1, fidelity=fidelity)

    open_study(FidelitySettings(rows=0.5))
    open_study(FidelitySettings(rows=0.5, sample=2))
    for other in (None, FidelitySettings(rows=0.4)):
        with pytest.raises(UserError, match="begun with another fidelity"):
            open_study(other)


@pytest.mark.slow
def test_10_a_tenth_of_the_rows_ranks_architectures_as_all_do() -> None:
    """Twenty random ones."""
    train, valid = opened.table(2000), opened.table(400, seed=1)
    space, random = candidates(train.schema, blocks=3, units=[2, 8], dims=[4]), Random(4)
    drawn = [Candidate.from_dict(fill(space, lambda choice: random.randrange(len(choice.labels)))) for _ in range(20)]

    def values(rows: Table) -> list[float]:
        return [trained(one, rows, valid) for one in drawn]

    low = share(train, FidelitySettings(rows=0.1), seed=1)
    assert spearmanr(values(low), values(train))[0] > 0
