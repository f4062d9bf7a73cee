"""The quickstart as a newcomer runs it: the search finds what the planted rows were made of, and the model serves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.newcomer import SHOWN, run_quickstart

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(newcomer: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((newcomer / "runs" / "quickstart" / "report.json").read_text())
    return report


def test_the_champion_is_found_and_near_the_truth(report: dict[str, Any]) -> None:
    entries = {entry["name"]: entry for entry in report["leaderboard"]}
    losses = {name: entry["metrics"]["test"]["logloss"]["mean"] for name, entry in entries.items()}
    champion = report["champion"]
    assert entries[champion]["origin"] == "found"
    assert losses[champion] <= 1.01 * report["data"]["statistics"]["planted"]["logloss"]
    assert all(losses[champion] < loss for name, loss in losses.items() if name != champion)


def test_the_terminal_shows_leaderboard_report_and_next_commands(newcomer: Path) -> None:
    output = (newcomer / SHOWN).read_text()
    for part in ("autorec-1", "deepfm", "report.html", "mlflow ui", "mlflow models predict", "kubectl apply"):
        assert part in output


def test_the_registered_model_scores_raw_rows_as_the_evaluate_step_did(newcomer: Path) -> None:
    home, run = newcomer, newcomer / "runs" / "quickstart"
    examples = pl.read_parquet(run / "ingest" / "examples.parquet")
    assert examples.height == 1000
    rows = examples.drop("row", "label").to_dicts()
    (home / "rows.json").write_text(json.dumps({"dataframe_records": rows}))
    options = ["--env-manager", "local", "-i", "rows.json", "-t", "json", "-o", "answer.json"]
    subprocess.run(
        [sys.executable, "-m", "mlflow", "models", "predict", "-m", "models:/quickstart@champion", *options],
        cwd=home,
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'runs' / 'mlflow.db'}"},
        check=True,
        capture_output=True,
    )
    answer = [row["prediction"] for row in json.loads((home / "answer.json").read_text())["predictions"]]
    expected = pl.read_parquet(run / "evaluate" / "predictions.parquet")["prediction"].to_numpy()
    np.testing.assert_allclose(answer, expected[examples["row"].to_numpy()], atol=1e-6, rtol=0)


def test_the_same_command_again_keeps_every_step(newcomer: Path) -> None:
    before = (newcomer / "runs" / "quickstart" / "report.json").read_bytes()
    assert run_quickstart(newcomer).count("nothing has changed") == 4
    assert (newcomer / "runs" / "quickstart" / "report.json").read_bytes() == before
