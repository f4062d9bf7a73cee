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

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run_quickstart(home: Path) -> str:
    """What `dalil run` shows of the quickstart."""
    file = ROOT / "pipelines" / "gallery" / "quickstart.yaml"
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "run", str(file)],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("quickstart")
    (home / "output.txt").write_text(run_quickstart(home))
    return home


@pytest.fixture(scope="module")
def report(home: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((home / "runs" / "quickstart" / "report.json").read_text())
    return report


def test_the_champion_is_found_and_near_the_truth(report: dict[str, Any]) -> None:
    entries = {entry["name"]: entry for entry in report["leaderboard"]}
    losses = {name: entry["metrics"]["test"]["logloss"]["mean"] for name, entry in entries.items()}
    champion = report["champion"]
    assert entries[champion]["origin"] == "found"
    assert losses[champion] <= 1.01 * report["data"]["statistics"]["planted"]["logloss"]
    assert all(losses[champion] < loss for name, loss in losses.items() if name != champion)


def test_the_terminal_shows_leaderboard_report_and_next_commands(home: Path) -> None:
    output = (home / "output.txt").read_text()
    for part in ("autorec-1", "deepfm", "report.html", "mlflow ui", "mlflow models predict", "kubectl apply"):
        assert part in output


def test_the_registered_model_scores_raw_rows_as_the_evaluate_step_did(home: Path) -> None:
    run = home / "runs" / "quickstart"
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


def test_the_same_command_again_keeps_every_step(home: Path) -> None:
    before = (home / "runs" / "quickstart" / "report.json").read_bytes()
    assert run_quickstart(home).count("nothing has changed") == 4
    assert (home / "runs" / "quickstart" / "report.json").read_bytes() == before
