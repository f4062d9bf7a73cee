"""Trials that begin with the tables of the best trial before them."""

from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.trainer import opened
from tests.trainer.small_spaces import mlp_and_cross
from tests.trainer.test_autoctr import candidates
from trainer.candidate import Candidate
from trainer.errors import UserError
from trainer.search import run_studies
from trainer.settings import FidelitySettings
from trainer.space import fill_params
from trainer.storage import JournalFile
from trainer.study import Study, Trial
from trainer.workers import Job, Outcome, train


@pytest.fixture(name="dataset", scope="module")
def folder_of_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for split, made in (("train", opened.table()), ("valid", opened.table(80, seed=1))):
        (folder / split).mkdir()
        columns = {name: made.categorical[:, place].numpy() for place, name in enumerate(opened.SIZES)}
        columns |= {name: made.numeric[:, place].numpy() for place, name in enumerate(("price", "age"))}
        pl.DataFrame({**columns, "label": made.label.numpy()}).write_parquet(folder / split / "part-00000.parquet")
    (folder / "schema.json").write_text(opened.schema().model_dump_json())
    return folder


def job(dataset: Path, home: Path, name: str, *, dims: int = 4, rate: float = 0.01, **others: Any) -> Job:
    space = candidates(opened.schema(), blocks=2, units=[4], dims=[dims])
    candidate = Candidate.from_dict(fill_params(space, {}))
    slow = candidate.training.model_copy(update={"learning_rate": rate, "epochs": 1, "table_l2": 0.0, "average": 0.0})
    made = candidate.model_copy(update={"training": slow}).to_dict()
    return Job(name, dataset, made, 3, home / name, tables=home / "tables" / f"{name}.safetensors", **others)


def done(job: Job) -> Outcome:
    outcome = train(job, lambda epoch: None)
    assert outcome.error is None
    return outcome


def tables(job: Job) -> dict[str, Any]:
    assert job.tables is not None
    return {name: value.tolist() for name, value in load_file(job.tables).items()}


def test_a_trial_begins_with_the_tables_of_its_parent(dataset: Path, tmp_path: Path) -> None:
    """One that hardly learns ends with them; its own start is another."""
    parent = job(dataset, tmp_path, "parent")
    done(parent)
    alone = job(dataset, tmp_path, "alone", rate=1e-12)
    heir = job(dataset, tmp_path, "heir", rate=1e-12, parent=parent.tables)
    first, second = done(alone), done(heir)
    assert set(tables(parent)) == set(tables(heir)) != set()
    for name, rows in tables(parent).items():
        assert tables(heir)[name] == [pytest.approx(row, abs=1e-6) for row in rows]
        assert tables(alone)[name] != [pytest.approx(row, abs=1e-6) for row in rows]
    assert first.value != second.value


def test_tables_of_another_width_stay_as_they_are(dataset: Path, tmp_path: Path) -> None:
    wide = job(dataset, tmp_path, "wide", dims=8)
    done(wide)
    alone, heir = job(dataset, tmp_path, "alone"), job(dataset, tmp_path, "heir", parent=wide.tables)
    assert done(alone).value == done(heir).value
    assert tables(alone) == tables(heir)


def test_at_low_fidelity_tables_are_small_and_are_inherited(dataset: Path, tmp_path: Path) -> None:
    parent = job(dataset, tmp_path, "parent", fidelity=FidelitySettings(hash=5))
    done(parent)
    heir = job(dataset, tmp_path, "heir", rate=1e-12, fidelity=FidelitySettings(hash=5), parent=parent.tables)
    done(heir)
    for name, rows in tables(parent).items():
        assert len(rows) <= 5 * len(opened.SIZES)
        assert tables(heir)[name] == [pytest.approx(row, abs=1e-6) for row in rows]


def test_a_lost_file_is_an_error_and_not_another_search(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        done(job(dataset, tmp_path, "heir", parent=tmp_path / "gone"))


# ---- who inherits from whom -----------------------------------------------------------------------------------------

SPACE = mlp_and_cross()


def study(path: Path, **others: Any) -> Study:
    storage = JournalFile(path)
    return Study(storage, "s", SPACE, sampler="random", trials=14, lag=5, seed=1, inherit=True, prune=False, **others)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_parents_do_not_depend_on_which_trial_ends_first_and_their_files_are_kept(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """The parent of n is the best that ended well of the trials up to n - 5."""
    search, random = study(tmp_path_factory.mktemp("s") / "s.journal"), Random(seed)
    values = [None if number % 5 == 3 else Random(number).random() for number in range(14)]
    running: list[Trial] = []
    kept: set[int] = set()
    while True:
        while len(running) < 3 and isinstance(trial := search.next(), Trial):
            known = [number for number in range(trial.number - 4) if values[number] is not None]
            assert trial.parent == min(known, key=lambda number: values[number] or 0.0, default=None)
            assert trial.parent is None or trial.parent in kept
            running.append(trial)
        if not running:
            return
        ended = random.sample(running, random.randint(1, len(running)))
        kept |= {trial.number for trial in ended}  # written before anybody knows of their end
        for trial in ended:
            running.remove(trial)
            search.finish(trial.number, values[trial.number], curve=[0.5])
            kept &= search.possible_parents()
        assert all(other.parent is None or other.parent in kept for other in running)


def test_few_files_are_kept(tmp_path: Path) -> None:
    search = study(tmp_path / "s.journal")
    while isinstance(trial := search.next(), Trial):
        search.finish(trial.number, 1.0 + trial.number, curve=[0.5])
        assert search.possible_parents() <= {0}


def test_a_study_is_not_continued_without(tmp_path: Path) -> None:
    study(tmp_path / "s.journal")
    with pytest.raises(UserError, match="begun with another inherit"):
        Study(JournalFile(tmp_path / "s.journal"), "s", SPACE, sampler="random", trials=2, lag=5, seed=1)


@pytest.mark.slow
def test_11_a_search_that_was_cut_ends_like_one_left_alone(dataset: Path, tmp_path: Path) -> None:
    """With as many trials as are wanted first and the others later, files of tables and all."""
    space = candidates(opened.schema(), blocks=2, units=[4, 8], dims=[4])

    def search(home: Path, trials: int) -> list[float | None]:
        made = Study(
            JournalFile(home / "s.journal"), "s", space, sampler="random", trials=trials, lag=3, seed=1, inherit=True
        )
        run_studies([made], dataset, home / "checkpoints", seed=1, workers=2, on_end=lambda *ended: None)
        return [record.value for record in made.records()]

    whole = search(tmp_path / "whole", 7)
    search(tmp_path / "cut", 4)
    assert search(tmp_path / "cut", 7) == whole
