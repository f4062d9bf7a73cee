from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from components.dataset import DatasetSpec
from components.infer import infer
from components.ingest import ingest
from tests.contracts.format_samples import SAMPLES
from trainer.errors import UserError


def _log(rows: int = 500) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "row_id": np.arange(rows),
            "user_id": rng.integers(1, 90, rows),
            "itemId": rng.integers(1, 90, rows),
            "price": np.round(rng.lognormal(2, 2, rows), 2),
            "temperature": np.round(rng.normal(15, 3, rows), 1),
            "country": rng.choice(["ye", "om", "sa"], rows),
            "version": ["1"] * rows,
            "Clicked": rng.integers(0, 2, rows),
            "event_time": np.arange(rows) + 1_700_000_000,
        }
    )


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.parquet"])
def test_a_proposal_runs_as_it_is(name: str, tmp_path: Path) -> None:
    path, log = tmp_path / name, _log()
    if name == "log.parquet":
        log.write_parquet(path)
    else:
        log.write_csv(path, separator="\t" if name == "log.tsv" else ",")
    proposal = yaml.safe_load(infer(str(path)))["dataset"]
    assert proposal["task"] == "ctr"
    assert proposal["label"] == {"column": "Clicked"}
    assert (proposal["time"], proposal["group"]) == ("event_time", "user_id")
    assert proposal["drop"] == ["row_id", "version"]
    assert proposal["fields"] == {
        "user_id": {"kind": "categorical"},
        "itemId": {"kind": "categorical"},
        "price": {"kind": "numeric", "transform": "log"},
        "temperature": {"kind": "numeric", "transform": "standardize"},
        "country": {"kind": "categorical"},
    }
    schema = ingest(DatasetSpec.model_validate(proposal), tmp_path / "out", lambda done, total, stage: None)
    assert [field.name for field in schema.fields] == list(proposal["fields"])


def test_a_table_without_a_likely_label_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    _log().drop("Clicked").write_csv(path)
    text = infer(str(path))
    assert "write the one to predict at label.column" in text
    assert yaml.safe_load(text)["dataset"]["label"] == {"column": "?"}


@pytest.mark.parametrize("case", [name for name in SAMPLES if name not in ("csv", "parquet")])
def test_known_formats_are_recognised(case: str, tmp_path: Path) -> None:
    sample = SAMPLES[case]()
    good = [line for number, line in enumerate(sample.lines, 1) if number not in sample.bad]
    path = tmp_path / sample.name
    path.write_text("\n".join(good))
    proposal = yaml.safe_load(infer(str(path)))["dataset"]
    assert proposal["format"] == case.split("-")[0]
    assert (proposal["task"] == "next_item") == (proposal["format"] == "sequence")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        infer(str(tmp_path / "log.csv"))
