"""Warm starts: what samplers are told of an earlier search, and what that changes."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from components.earlier import earlier_trials
from components.search import _trials
from components.settings import SearchSpec
from tests.trainer.small_spaces import mlp_and_cross, two_dims
from trainer.errors import UserError
from trainer.evolution import POPULATION
from trainer.propose import Past
from trainer.space import choices
from trainer.storage import JournalFile
from trainer.study import Study, Trial

SPACE = mlp_and_cross()


def study(path: Path, name: str = "autoctr", **changes: Any) -> Study:
    settings = {"sampler": "evolution", "trials": POPULATION + 2, "lag": 1, "seed": 1} | changes
    return Study(JournalFile(path), name, settings.pop("space", SPACE), **settings)


def value(trial: Trial) -> float:
    return float(trial.params["cross.layers"]) + int(trial.candidate.hash[:4], 16) / 16**4 / 10  # type: ignore[arg-type]


def run(search: Study) -> Study:
    while isinstance(trial := search.next(), Trial):
        if trial.number == 3:
            search.finish(3, None, attrs={"error": "diverged"})
        else:
            search.finish(trial.number, value(trial), curve=[value(trial)], samples=5, seconds=1.0)
    return search


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    """The trials.parquet of a search and the search."""
    folder = tmp_path_factory.mktemp("before")
    search = run(study(folder / "j", sampler="random"))
    _trials([search]).write_parquet(folder / "trials.parquet")
    return folder / "trials.parquet", search


def test_earlier_trials_are_those_of_the_study_with_their_results(before: tuple[Path, Study]) -> None:
    file, search = before
    told = earlier_trials(str(file), "autoctr", SPACE)
    records = [record for record in search.records() if record.duplicate_of is None]
    assert [past.number for past in told] == list(range(-len(records), 0))
    assert [(past.hash, past.value) for past in told] == [(one.candidate.hash, one.value) for one in records]
    assert told[3].value is None
    assert all(past.finished and past.flops > 0 for past in told)
    found = choices(SPACE)
    for past, record in zip(told, records, strict=True):
        assert {name: found[name].labels[index] for name, index in past.params.items()} == record.params
    assert earlier_trials(str(file), "autorec", SPACE) == []


def test_trials_of_other_choices_are_left_out(before: tuple[Path, Study], tmp_path: Path) -> None:
    file, _ = before
    assert earlier_trials(str(file), "autoctr", two_dims()) == []
    rows = pl.read_parquet(file)
    fewer = rows.with_columns(params=pl.col("params").str.replace('"cross.layers": 4', '"cross.layers": 9'))
    fewer.write_parquet(tmp_path / "other.parquet")
    changed = int((rows["params"] != fewer["params"]).sum())
    kept = earlier_trials(str(tmp_path / "other.parquet"), "autoctr", SPACE)
    assert changed > 0
    assert len(kept) == len(earlier_trials(str(file), "autoctr", SPACE)) - changed


def test_what_is_no_table_of_trials_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "words.parquet").write_text("no parquet at all")
    with pytest.raises(UserError, match=r"^search.warm_start: .*words.parquet is no trials.parquet of a search step$"):
        earlier_trials(str(tmp_path / "words.parquet"), "autoctr", SPACE)
    with pytest.raises(UserError, match="nowhere"):
        earlier_trials(str(tmp_path / "nowhere.parquet"), "autoctr", SPACE)
    assert SearchSpec(warm_start="runs/a/search/trials.parquet").warm_start


def test_an_evolution_is_guided_from_its_second_trial_on(
    before: tuple[Path, Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first takes the defaults; a cold start is random until a population has finished."""
    asked: list[int] = []

    def scores(encoding: Any, past: Any, losses: Any, points: Any, seed: int) -> list[float]:
        asked.append(len(past))
        return [0.0] * len(points)

    monkeypatch.setattr("trainer.evolution.scores", scores)
    told = earlier_trials(str(before[0]), "autoctr", SPACE)
    run(study(tmp_path / "cold", trials=6))
    assert asked == []
    warm = run(study(tmp_path / "warm", trials=6, earlier=told))
    assert asked == [len(told) + number for number in range(1, 6)]
    assert len(warm.records()) == 6  # earlier trials are nobody's trials here


def test_a_search_that_was_begun_cold_does_not_go_on_warm(before: tuple[Path, Study], tmp_path: Path) -> None:
    told = earlier_trials(str(before[0]), "autoctr", SPACE)
    run(study(tmp_path / "j", trials=2))
    with pytest.raises(UserError, match="begun with another warm_start"):
        study(tmp_path / "j", trials=4, earlier=told)


def test_a_candidate_of_the_earlier_search_may_be_tried_again(tmp_path: Path) -> None:
    """For here it has no weights yet."""
    first = study(tmp_path / "a", space=two_dims(), sampler="random", trials=1).next()
    assert isinstance(first, Trial)
    earlier = [Past(-1, {"e.dim": 0, "training.table_l2": 0}, first.candidate.hash, finished=True, value=0.1)]
    again = study(tmp_path / "b", space=two_dims(), sampler="random", trials=1, earlier=earlier).next()
    assert isinstance(again, Trial)
    assert again.candidate.hash == first.candidate.hash
