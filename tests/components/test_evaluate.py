"""The evaluate step on real (small) models: its figures recomputed by other means, its choice, and what it writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from components import evaluate as step
from components import report
from tests.components import evaluated
from trainer.architecture import Architecture
from trainer.data import Table
from trainer.schema import DatasetSchema, Field, Split
from trainer.shapes import count


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("runs") / "small"
    inputs = evaluated.steps(root)
    output = evaluated.evaluation(root, inputs, register="small-ctr")
    return inputs, output, json.loads((output / "report.json").read_text())


def test_leaderboard_is_sorted_by_the_test_metric_and_holds_every_model(run: Any) -> None:
    leaderboard = run[2]["leaderboard"]
    means = [entry["metrics"]["test"]["logloss"]["mean"] for entry in leaderboard]
    assert means == sorted(means)
    assert {entry["name"] for entry in leaderboard} == {"autorec-1", "fm", "deepfm"}


def test_champion_is_chosen_on_the_validation_split(run: Any) -> None:
    models = json.loads((run[0]["train"] / "models.json").read_text())
    best = min(models, key=lambda model: np.mean([seed["valid"]["logloss"] for seed in model["seeds"]]))
    assert run[2]["champion"] == best["name"]


def test_predictions_give_the_reported_figures_of_the_shipped_seed(run: Any) -> None:
    _, output, report = run
    predictions = pl.read_parquet(output / "predictions.parquet")
    champion = next(entry for entry in report["leaderboard"] if entry["name"] == report["champion"])
    position = [seed["seed"] for seed in champion["seeds"]].index(report["shipped"]["seed"])
    label, prediction = predictions["label"].to_numpy(), predictions["prediction"].to_numpy()
    test = champion["metrics"]["test"]
    assert test["logloss"]["values"][position] == pytest.approx(log_loss(label, prediction), rel=1e-9)
    assert test["auc"]["values"][position] == pytest.approx(roc_auc_score(label, prediction), rel=1e-9)
    assert predictions["row"].to_list() == list(range(report["data"]["rows"]["test"]))


def test_deviation_over_seeds_is_that_of_a_sample(run: Any) -> None:
    for entry in run[2]["leaderboard"]:
        for summary in entry["metrics"]["test"].values():
            assert len(summary["values"]) == 2
            assert summary["std"] == pytest.approx(np.std(summary["values"], ddof=1))


def test_parameters_and_flops_are_those_of_the_description(run: Any) -> None:
    for entry in run[2]["leaderboard"]:
        counts = count(Architecture.from_dict(entry["architecture"]))
        assert entry["parameters"] == {"tables": counts.tables, "lifts": counts.lifts, "dense": counts.dense}
        assert entry["flops"] == counts.flops


def test_the_champion_alone_has_no_test_against_itself(run: Any) -> None:
    for entry in run[2]["leaderboard"]:
        assert (entry["against_champion"] is None) == (entry["name"] == run[2]["champion"])


def test_a_model_beats_only_those_with_a_greater_loss(run: Any) -> None:
    loss = {entry["name"]: entry["metrics"]["test"]["logloss"]["mean"] for entry in run[2]["leaderboard"]}
    for entry in run[2]["leaderboard"]:
        assert all(loss[name] > loss[entry["name"]] for name in entry["beats"])
    assert not list(run[1].glob("losses*"))


@pytest.mark.parametrize("metric", ["logloss", "auc"])
def test_pareto_marks_are_those_of_the_definition(metric: str) -> None:
    rng = np.random.default_rng(2)
    sign = -1 if metric == "auc" else 1
    entries = [
        {
            "metrics": {"test": {metric: {"mean": float(rng.integers(8))}}},
            "parameters": {"tables": int(rng.integers(8))},
        }
        for _ in range(30)
    ]
    for entry in step._ranked(entries, metric):
        quality, size = sign * entry["metrics"]["test"][metric]["mean"], entry["parameters"]["tables"]
        beaten = any(
            (sign * other["metrics"]["test"][metric]["mean"], other["parameters"]["tables"]) != (quality, size)
            and sign * other["metrics"]["test"][metric]["mean"] <= quality
            and other["parameters"]["tables"] <= size
            for other in entries
        )
        assert entry["pareto"] == (not beaten)


def test_report_page_needs_no_network_and_names_every_model(run: Any) -> None:
    page = (run[1] / "report.html").read_text()
    for word in ("http://", "https://", "@import", "src="):
        assert word not in page
    for entry in run[2]["leaderboard"]:
        assert entry["name"] in page
    assert "<desc" in page


def test_names_in_the_report_cannot_break_the_page(run: Any) -> None:
    facts = json.loads(json.dumps(run[2]))
    evil = "<script>alert(1)</script>"
    facts["pipeline"] = facts["data"]["label"]["name"] = facts["data"]["fields"][0]["name"] = evil
    for line in (facts["leaderboard"][-1], *facts["trials"]):
        line["name" if "name" in line else "study"] = evil
    assert "<script>alert" not in report.page(facts)


def test_rating_reports_squared_errors(tmp_path: Path) -> None:
    output = evaluated.evaluation(tmp_path, evaluated.steps(tmp_path, "rating", ("mf",)), "rating")
    facts = json.loads((output / "report.json").read_text())
    predictions = pl.read_parquet(output / "predictions.parquet")
    errors = (predictions["label"].cast(pl.Float64) - predictions["prediction"]).to_numpy()
    test = facts["leaderboard"][0]["metrics"]["test"]
    assert set(test) == {"mse", "rmse"}
    seed = facts["shipped"]["seed"] - 1
    assert test["mse"]["values"][seed] == pytest.approx(np.mean(errors**2), rel=1e-9)


def test_users_of_one_test_row_have_no_gauc() -> None:
    user = Field(name="user", kind="categorical", cardinality=5)
    rows: dict[Split, int] = {"train": 4, "valid": 4, "test": 4}
    schema = DatasetSchema(
        task="ctr", label="click", fields=(user,), group="user", rows=rows, label_mean=0.5, label_min=0, label_max=1
    )
    label, prediction = torch.tensor([0.0, 1.0, 0.0, 1.0]), np.array([0.2, 0.4, 0.3, 0.9])
    for ids, measured in (([1, 2, 3, 4], {"auc", "logloss"}), ([1, 1, 2, 2], {"auc", "logloss", "gauc"})):
        test = Table(schema, torch.tensor(ids, dtype=torch.int32)[:, None], torch.empty(4, 0), label, {})
        assert step._Comparison(schema, test, "auc", Path())._metrics(prediction).keys() == measured
