"""Next items from raw events to a served model: rows, what is left out, mistakes, the report, and raw names back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest
from mlflow.pyfunc.scoring_server import _predict

from components import report
from components.dataset import DatasetSpec
from components.ingest import ingest
from tests.components import evaluated
from trainer.errors import UserError
from trainer.schema import DatasetSchema

MODELS = ("sasrec", "pooling")


def events(users: int = 60, items: int = 20, seed: int = 0) -> dict[str, list[str]]:
    rng = np.random.default_rng(seed)
    return {f"u{user}": [f"i{item}" for item in rng.integers(0, items, rng.integers(4, 9))] for user in range(users)}


def pairs(chosen: dict[str, list[str]]) -> str:
    return "".join(f"{user} {item}\n" for user, items in chosen.items() for item in items)


Ingest = Callable[..., tuple[DatasetSchema, Path]]


@pytest.fixture
def made(tmp_path: Path) -> Ingest:
    numbers = iter(range(9))

    def made(text: str, **settings: Any) -> tuple[DatasetSchema, Path]:
        (tmp_path / "events.txt").write_text(text)
        spec = {"source": str(tmp_path / "events.txt"), "format": "sequence", "task": "next_item", **settings}
        out = tmp_path / f"out-{next(numbers)}"
        return ingest(DatasetSpec.model_validate(spec), out, lambda *_: None), out

    return made


def rows_of(folder: Path, split: str) -> list[tuple[str, list[str], str]]:
    """user, history, item of the split's rows, as text."""
    vocabulary = folder / "vocabulary"
    users, items = (["?", *pl.read_parquet(vocabulary / f"{name}.parquet")["token"]] for name in ("user", "item"))
    frame = pl.read_parquet(folder / split).select("user", "history", "item")
    return [(users[user], [items[one] for one in history], items[item]) for user, history, item in frame.rows()]


# ---- rows


def test_every_event_is_one_row_with_the_events_before_it(made: Ingest) -> None:
    chosen = events()
    schema, folder = made(pairs(chosen))
    found = [row for split in ("train", "valid", "test") for row in rows_of(folder, split)]
    expected = [(user, items[:place], item) for user, items in chosen.items() for place, item in enumerate(items)]
    assert sorted(found) == sorted(expected)
    assert {(user, item) for user, _, item in rows_of(folder, "test")} == {
        (u, items[-1]) for u, items in chosen.items()
    }
    assert (schema.target, schema.label, schema.field("history").max_len) == ("item", "item", 50)
    assert DatasetSchema.load(folder) == schema


def test_a_declared_history_is_the_one_that_is_made(made: Ingest) -> None:
    schema, folder = made(pairs(events()), fields={"history": {"kind": "sequence", "of": "item", "max_len": 2}})
    assert schema.names("sequence") == ("history",)
    assert max(len(history) for _, history, _ in rows_of(folder, "train")) == 2


def test_rows_whose_item_is_unknown_are_left_out_and_counted(made: Ingest) -> None:
    chosen = events() | {"late": ["i1", "i2", "i3", "new"], "odd": ["i1", "rare", "i2", "i3", "i4"]}
    schema, folder = made(pairs(chosen), fields={"item": {"min_count": 2}})
    rows = {split: rows_of(folder, split) for split in ("train", "valid", "test")}
    assert {split: len(found) for split, found in rows.items()} == schema.rows
    assert "late" not in {user for user, _, _ in rows["test"]}
    assert ("odd", ["i1", "?"], "i2") in rows["train"]  # an unknown step of a history stays
    statistics = json.loads((folder / "statistics.json").read_text())
    assert statistics["unknown_target"] == {"train": 1, "valid": 0, "test": 1}
    assert statistics["rows"] == schema.rows
    assert sum(schema.rows.values()) == sum(map(len, chosen.values())) - 2


def test_a_threshold_says_which_ratings_are_events(made: Ingest) -> None:
    rng = np.random.default_rng(1)
    text = "".join(f"{user}::{rng.integers(9)}::{1 + k % 5}::{k}\n" for user in range(20) for k in range(15))
    every, _ = made(text, format="movielens")
    liked, folder = made(text, format="movielens", label={"threshold": 4})
    assert sum(every.rows.values()) == 300
    assert sum(liked.rows.values()) == 120
    assert max(len(history) for _, history, _ in rows_of(folder, "test")) == 5


MISTAKES = [
    ({}, "u1 a\nu1 a\nu1 a\n" * 9, "training rows have 1 known values of 'item'"),
    ({}, "u1 a\nu2 b\nu3 c\n", "none of 3 rows falls into valid"),
    ({"fields": {"item": {"hash_buckets": 9}}}, pairs(events()), "what is predicted needs a name for every id"),
    ({"drop": ["history"]}, pairs(events()), "task next_item needs a sequence field"),
    ({"drop": ["item"]}, pairs(events()), "dataset.fields.history.of: 'item' is no categorical field"),
    (
        {"format": "csv", "columns": ["user", "item"], "fields": {"past": {"kind": "sequence", "of": "item"}}},
        pairs(events()),
        "a history needs dataset.group",
    ),
]


@pytest.mark.parametrize(("settings", "text", "message"), MISTAKES)
def test_a_mistake_is_one_clear_line(made: Ingest, settings: dict[str, Any], text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        made(text, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- from rows to a served model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder with all four steps complete."""
    root = tmp_path_factory.mktemp("runs")
    source = root / "events.txt"
    source.write_text(pairs(events(300, 40)))
    inputs = evaluated.steps(root, "next_item", MODELS, source)
    evaluated.evaluation(root, inputs, "next_item", "small-items", source).rename(root / "evaluate")
    return root


@pytest.fixture(scope="module")
def facts(root: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((root / "evaluate" / "report.json").read_text())
    return facts


def test_the_leaderboard_has_both_rankings_and_the_greatest_ndcg_first(facts: dict[str, Any]) -> None:
    assert facts["metric"] == "ndcg_at_10"
    tests = [entry["metrics"]["test"] for entry in facts["leaderboard"]]
    assert {name.removeprefix("sampled_") for name in tests[0]} == {"nll", "ndcg_at_10", "hr_at_10", "mrr"}
    means = [test["ndcg_at_10"]["mean"] for test in tests]
    assert means == sorted(means, reverse=True)
    valid = {entry["name"]: entry["metrics"]["valid"]["ndcg_at_10"]["mean"] for entry in facts["leaderboard"]}
    assert facts["champion"] == max(valid, key=lambda name: valid[name])
    loser = next(entry for entry in facts["leaderboard"] if entry["name"] != facts["champion"])
    champion = next(entry for entry in facts["leaderboard"] if entry["name"] == facts["champion"])
    gap = loser["metrics"]["test"]["nll"]["mean"] - champion["metrics"]["test"]["nll"]["mean"]
    assert loser["against_champion"]["difference"] == pytest.approx(gap)


def test_predictions_give_the_reported_hit_rate_and_ndcg(root: Path, facts: dict[str, Any]) -> None:
    predictions = pl.read_parquet(root / "evaluate" / "predictions.parquet")
    champion = next(entry for entry in facts["leaderboard"] if entry["name"] == facts["champion"])
    seed = [seed["seed"] for seed in champion["seeds"]].index(facts["shipped"]["seed"])
    places = [items.index(label) if label in items else None for label, items in predictions["label", "items"].rows()]
    test = champion["metrics"]["test"]
    assert test["hr_at_10"]["values"][seed] == pytest.approx(np.mean([place is not None for place in places]))
    gains = [0 if place is None else 1 / np.log2(place + 2) for place in places]
    assert test["ndcg_at_10"]["values"][seed] == pytest.approx(np.mean(gains))
    assert predictions["row"].to_list() == list(range(facts["data"]["rows"]["test"]))


def test_the_served_model_names_the_items_that_the_evaluate_step_found(root: Path, tmp_path: Path) -> None:
    model = root / "evaluate" / "model"
    raw = pl.read_parquet(root / "ingest" / "examples.parquet")
    expected = pl.read_parquet(root / "evaluate" / "predictions.parquet")[raw["row"].to_list()]
    frame = raw.select("history").to_pandas()
    (tmp_path / "rows.json").write_text(json.dumps({"dataframe_records": json.loads(frame.to_json(orient="records"))}))
    frame.assign(history=[json.dumps(list(one)) for one in frame["history"]]).to_csv(tmp_path / "rows.csv", index=False)
    for kind in ("json", "csv"):
        _predict(str(model), str(tmp_path / f"rows.{kind}"), str(tmp_path / "out"), kind)
        answers = json.loads((tmp_path / "out").read_text())["predictions"]
        assert [answer["items"] for answer in answers] == expected["items"].to_list()
        found = np.array([answer["probabilities"] for answer in answers])
        np.testing.assert_allclose(found, np.array(expected["probabilities"].to_list()), atol=1e-6, rtol=0)


def test_empty_and_unknown_histories_are_answered(root: Path) -> None:
    model = mlflow.pyfunc.load_model(str(root / "evaluate" / "model"))
    rows = pd.DataFrame({"history": [[], None, ["i1", "never seen"], ["i1"], "[]"]})
    answers = model.predict(rows)
    assert [len(items) for items in answers["items"]] == [10] * 5
    assert answers["items"][0] == answers["items"][1] == answers["items"][4]
    assert model.predict(pd.DataFrame({"user": ["u1"]}))["items"][0] == answers["items"][0]
    assert all(sorted(one, reverse=True) == one for one in answers["probabilities"])


def test_the_model_does_not_ask_for_what_it_predicts(root: Path) -> None:
    model = mlflow.models.get_model_info(str(root / "evaluate" / "model"))
    assert model.metadata == {"inputs": {"user": "string", "history": "list"}}
    assert model.signature.outputs.input_names() == ["items", "probabilities"]


def test_the_page_tells_both_rankings_and_what_is_predicted(facts: dict[str, Any]) -> None:
    page = report.page(facts)
    for words in ("next-item prediction", "test NDCG@10", "sampled HR@10", "Predicted: the next “item”", "every item"):
        assert words in page
