"""The served champion: raw rows in, the evaluate step's predictions out, through MLflow's own loading and parsing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from mlflow.pyfunc.scoring_server import _predict, invocations

from components import evaluate as step
from components import serve, shipping
from components.tracking import Tracker
from tests.components import evaluated
from trainer import data, space, zoo
from trainer.architecture import Architecture
from trainer.build import build
from trainer.checkpoint import save_weights
from trainer.fit import predict
from trainer.schema import DatasetSchema, Field, Split, Task

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder with all four steps complete."""
    root = tmp_path_factory.mktemp("runs") / "small"
    inputs = evaluated.steps(root, names=("deepfm", "fm"))
    output = root / "evaluate.partial"
    output.mkdir()
    with Tracker(output, pipeline="small", step="evaluate") as tracker:
        step.evaluate("small", evaluated.settings(register="small-ctr"), inputs, output, lambda *_, **__: None, tracker)
    output.rename(root / "evaluate")
    return root


@pytest.fixture(scope="module")
def raw(root: Path) -> pd.DataFrame:
    """Raw test rows as ingest saw them."""
    return pl.read_parquet(root / "ingest" / "examples.parquet").drop("label", "row").to_pandas()


@pytest.fixture(scope="module")
def expected(root: Path) -> np.ndarray[Any, Any]:
    rows = pl.read_parquet(root / "ingest" / "examples.parquet")["row"].to_numpy()
    return pl.read_parquet(root / "evaluate" / "predictions.parquet")["prediction"].to_numpy()[rows]


def served(root: Path, path: Path, kind: str) -> list[float]:
    output = path.with_suffix(".out")
    _predict(str(root / "evaluate" / "model"), str(path), str(output), kind)
    return [row["prediction"] for row in json.loads(output.read_text())["predictions"]]


def test_json_records_score_as_in_the_evaluate_step(root: Path, raw: Any, expected: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps({"dataframe_records": json.loads(raw.to_json(orient="records"))}))
    np.testing.assert_allclose(served(root, rows, "json"), expected, atol=TOLERANCE, rtol=0)


def test_csv_scores_as_in_the_evaluate_step(root: Path, raw: Any, expected: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    raw.to_csv(rows, index=False)
    np.testing.assert_allclose(served(root, rows, "csv"), expected, atol=TOLERANCE, rtol=0)


def test_a_running_server_takes_csv(root: Path, raw: Any, expected: Any) -> None:
    model = mlflow.pyfunc.load_model(str(root / "evaluate" / "model"))
    answer = invocations(raw.to_csv(index=False), "text/csv", model, model.metadata.get_input_schema())
    found = [row["prediction"] for row in json.loads(answer.response)["predictions"]]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_one_row_at_a_time_scores_as_a_batch(root: Path, raw: Any, expected: Any) -> None:
    model = mlflow.pyfunc.load_model(str(root / "evaluate" / "model"))
    single = [model.predict(raw.iloc[[i]])["prediction"].iloc[0] for i in range(20)]
    np.testing.assert_allclose(single, expected[:20], atol=TOLERANCE, rtol=0)


def test_unknown_categories_and_missing_values_are_scored(root: Path) -> None:
    model = mlflow.pyfunc.load_model(str(root / "evaluate" / "model"))
    rows = pd.DataFrame(
        [
            {"user": "nobody", "item": "7", "age": 0.5},
            {"user": None, "item": None, "age": None},
            {"user": 3, "item": 3.0, "age": "0.5"},
            {"user": "3", "item": "3", "age": 0.5},
        ]
    )
    first, nothing, mixed, plain = model.predict(rows)["prediction"]
    assert np.isfinite([first, nothing]).all()
    assert mixed == plain
    assert model.predict(pd.DataFrame({"item": ["7"]}))["prediction"].between(0, 1).all()


def test_numbers_and_gaps_become_the_tokens_of_the_source() -> None:
    frame = pd.DataFrame({"a": [3.0, None], "b": ["03", ""], "c": ["[1, 2.0, null]", None]})
    columns = serve.raw_columns(frame, {"a": "string", "b": "string", "c": "list", "absent": "double"})
    assert columns.to_dict(as_series=False) == {
        "a": ["3", None],
        "b": ["03", ""],
        "c": [["1", "2", ""], []],
        "absent": pytest.approx([float("nan")] * 2, nan_ok=True),
    }


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(["a", None, "03", ""]),
        pd.Series(["a", None, pd.NA, float("nan")], dtype=object),
        pd.Series([3, "3", 3.0, None], dtype=object),
        pd.Series([1, -2, 3])[::-1],
        pd.Series([2**63, 5], dtype="uint64"),
        pd.Series([1, None], dtype="Int64"),
        pd.Series([1.0, np.nan, -0.0, 3e9, -(2.0**63)]),
        pd.Series([1.5, 2.0, np.nan]),
        pd.Series([np.inf, 1.0, 2.0**63, 1e300]),
        pd.Series([True, False]),
        pd.Series(["a", "b", "a"]).astype("category"),
        pd.Series([], dtype=float),
    ],
)
def test_whole_columns_become_the_tokens_of_single_values(values: "pd.Series[Any]") -> None:
    tokens = serve.raw_columns(values.to_frame("a"), {"a": "string"})["a"]
    assert tokens.dtype == pl.String
    assert tokens.to_list() == [serve._token(value) for value in values.tolist()]


def test_model_folder_holds_no_pickle_and_pins_what_is_installed(root: Path) -> None:
    model = root / "evaluate" / "model"
    assert not [path for path in model.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    pins = dict(line.split("==") for line in (model / "requirements.txt").read_text().splitlines())
    assert pins["mlflow"] == mlflow.__version__
    assert {"torch", "torchrec", "polars", "safetensors"} <= set(pins)


def test_model_names_its_raw_columns_and_its_output(root: Path) -> None:
    about = mlflow.models.get_model_info(str(root / "evaluate" / "model"))
    assert about.metadata == {"inputs": {"user": "string", "item": "string", "age": "double"}}
    assert about.signature.outputs.input_names() == ["prediction"]


@pytest.mark.slow
def test_registered_champion_is_served_by_the_command_line(
    root: Path, raw: Any, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shipping.start(root, None)
    assert shipping.wait(root, 120) is None
    rows, output = tmp_path / "rows.json", tmp_path / "out.json"
    rows.write_text(json.dumps({"dataframe_records": json.loads(raw.to_json(orient="records"))}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shipping.tracking_uri(root, None))
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", "models:/small-ctr@champion"]
    command += ["--env-manager", "local", "-i", str(rows), "-t", "json", "-o", str(output)]
    # Away from the repository: the model must bring its own code.
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = [row["prediction"] for row in json.loads(output.read_text())["predictions"]]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def mixed_schema(task: Task) -> DatasetSchema:
    fields = (
        Field(name="user", kind="categorical", cardinality=50),
        Field(name="item", kind="categorical", cardinality=40),
        Field(name="age", kind="numeric", missing=True),
        Field(name="history", kind="sequence", of="item", max_len=6, cardinality=40),
    )
    rows: dict[Split, int] = {"train": 1, "valid": 1, "test": 1}
    mean, low, high = (3.6, 1, 5) if task == "rating" else (0.3, 0, 1)
    return DatasetSchema(
        task=task, label="y", fields=fields, group="user", rows=rows, label_mean=mean, label_min=low, label_max=high
    )


def random_table(schema: DatasetSchema, rows: int) -> data.Table:
    rng = np.random.default_rng(1)
    columns = {
        "user": pa.array(rng.integers(0, 50, rows, dtype=np.int32)),
        "item": pa.array(rng.integers(0, 40, rows, dtype=np.int32)),
        "age": pa.array(np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)).astype(np.float32)),
        "history": pa.array([rng.integers(0, 40, rng.integers(0, 7)).astype(np.int32) for _ in range(rows)]),
    }
    return data.from_arrow(pa.table(columns), schema)


@pytest.mark.parametrize("name", zoo.names())
def test_a_row_scores_the_same_alone_and_among_others(name: str, tmp_path: Path) -> None:
    task: Task = "rating" if name in ("mf", "mlp", "neumf") else "ctr"
    schema = mixed_schema(task)
    template = zoo.template(name, schema)
    architecture = Architecture.from_dict(space.fill(template, lambda choice: len(choice.labels) - 1))
    trained = build(architecture, label_mean=schema.label_mean, table_init=0.5, seed=3)
    save_weights(trained, tmp_path / "weights.safetensors")
    model = serve.load_model(architecture, schema, tmp_path / "weights.safetensors")
    table = random_table(schema, 300)
    together = serve.score(model, table)
    alone = [serve.score(model, table.select(torch.tensor([row])))[0] for row in range(20)]
    np.testing.assert_allclose(alone, together[:20], atol=1e-12, rtol=0)
    np.testing.assert_allclose(predict(trained, table), together, atol=1e-4, rtol=0)
