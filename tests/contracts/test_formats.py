"""One suite that every dataset format passes."""

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pytest

from components.dataset import DatasetSpec
from components.encode import Encoder
from components.formats import FORMATS
from components.ingest import ingest
from tests.contracts.format_samples import SAMPLES, Sample
from trainer.errors import UserError
from trainer.schema import TIME, DatasetSchema

SPLITS = ("train", "valid", "test")


def _put(sample: Sample, folder: str, packed: bool) -> str:
    """Write the sample's files under the URL `folder`; the URL of the main one."""
    files = {
        name: "".join(f"{line}\n" for line in lines).encode(sample.encoding) for name, lines in sample.beside.items()
    }
    ending = ".gz" if packed else ""
    for name, content in {**files, sample.name: sample.content()}.items():
        with fsspec.open(f"{folder}/{name}{ending}", "wb") as file:
            file.write(gzip.compress(content) if packed else content)
    return f"{folder}/{sample.name}{ending}"


def _spec(case: str, source: str, **more: Any) -> DatasetSpec:
    settings = {"source": source, "format": case.split("-")[0], "max_rejected": 0.05, **SAMPLES[case]().spec, **more}
    return DatasetSpec.model_validate(settings)


def _run(spec: DatasetSpec, output: Path) -> DatasetSchema:
    return ingest(spec, output, lambda done, total, stage: None)


def _shards(folder: Path) -> dict[str, pl.DataFrame]:
    return {split: pl.read_parquet(folder / split) for split in SPLITS}


@pytest.fixture(params=SAMPLES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(case: str, tmp_path: Path) -> str:
    (tmp_path / "source").mkdir()
    return _put(SAMPLES[case](), str(tmp_path / "source"), packed=False)


def test_every_format_has_a_sample() -> None:
    assert {name.split("-")[0] for name in SAMPLES} | {"planted"} == set(FORMATS)


@pytest.mark.parametrize("scheme", ["memory", "file"])
@pytest.mark.parametrize("packed", [False, True])
def test_reads_the_original_layout(case: str, packed: bool, scheme: str, tmp_path: Path) -> None:
    sample = SAMPLES[case]()
    if packed and sample.table is not None:
        pytest.skip("Parquet compresses its own pages")
    folder = f"memory://{tmp_path.name}-{case}" if scheme == "memory" else f"file://{tmp_path}"
    schema = _run(_spec(case, _put(sample, folder, packed)), tmp_path / "out")
    unknown = json.loads((tmp_path / "out" / "statistics.json").read_text()).get("unknown_target", {})
    assert sum(schema.rows.values()) + sum(unknown.values()) == sample.rows
    assert tuple(field.name for field in schema.fields) == sample.fields
    assert DatasetSchema.load(tmp_path / "out") == schema
    for split, rows in _shards(tmp_path / "out").items():
        assert rows.height == schema.rows[split]
        assert rows.columns == [*sample.fields, *([] if schema.target else ["label"]), *[TIME] * sample.timed]


def test_rejects_bad_rows_with_line_and_reason(case: str, source: str, tmp_path: Path) -> None:
    schema = _run(_spec(case, source), tmp_path / "out")
    rejected = pl.read_parquet(tmp_path / "out" / "rejected.parquet")
    assert dict(zip(rejected["line"], rejected["reason"], strict=True)) == SAMPLES[case]().bad
    assert schema.rejected == len(SAMPLES[case]().bad)
    assert (rejected["text"].str.len_chars() > 0).all()


def test_splits_are_reproducible(case: str, source: str, tmp_path: Path) -> None:
    for name, seed in {"one": 1, "same": 1, "other": 2}.items():
        split = {**SAMPLES[case]().spec.get("split", {}), "seed": seed}
        _run(_spec(case, source, split=split), tmp_path / name)
    one, same, other = (_shards(tmp_path / name) for name in ("one", "same", "other"))
    assert all(one[split].equals(same[split]) for split in SPLITS)
    # The last rows of users are the same for any seed, unless negatives are drawn with it.
    drawn = SAMPLES[case]().spec.get("task") != "next_item"
    assert all(one[split].equals(other[split]) for split in SPLITS) != drawn


def test_gzip_changes_nothing(case: str, source: str, tmp_path: Path) -> None:
    sample = SAMPLES[case]()
    if sample.table is not None:
        pytest.skip("Parquet compresses its own pages")
    (tmp_path / "packed").mkdir()
    _run(_spec(case, source), tmp_path / "one")
    _run(_spec(case, _put(sample, str(tmp_path / "packed"), packed=True)), tmp_path / "two")
    one, two = _shards(tmp_path / "one"), _shards(tmp_path / "two")
    assert all(one[split].equals(two[split]) for split in SPLITS)


def test_statistics_are_of_training_rows_only(case: str, source: str, tmp_path: Path) -> None:
    schema = _run(_spec(case, source), tmp_path / "out")
    train = _shards(tmp_path / "out")["train"]
    label = train["label"] if schema.target is None else pl.Series([1.0])
    assert schema.label_mean == pytest.approx(label.mean())
    assert (schema.label_min, schema.label_max) == (label.min(), label.max())
    for name in schema.names("categorical"):
        vocabulary = pl.read_parquet(tmp_path / "out" / "vocabulary" / f"{name}.parquet")
        counts = np.bincount(train[name].to_numpy(), minlength=schema.field(name).cardinality)
        assert counts[0] == 0
        assert counts[1:].tolist() == vocabulary["count"].to_list()
        assert vocabulary["count"].is_sorted(descending=True)
    for name in schema.names("numeric"):
        assert schema.field(name).missing == bool(train[name].is_nan().any())


def test_encoding_raw_rows_gives_the_shards(case: str, source: str, tmp_path: Path) -> None:
    _run(_spec(case, source), tmp_path / "out")
    examples = pl.read_parquet(tmp_path / "out" / "examples.parquet")
    test = _shards(tmp_path / "out")["test"]
    assert examples.height == min(test.height, 1000)
    encoder = Encoder(tmp_path / "out")
    assert set(encoder.inputs) <= set(examples.columns)
    assert encoder.encode(examples).equals(
        test[examples["row"].to_list()].drop("label", TIME, strict=False), null_equal=True
    )


def test_unknown_and_missing_values_are_encoded(case: str, source: str, tmp_path: Path) -> None:
    schema = _run(_spec(case, source), tmp_path / "out")
    encoder = Encoder(tmp_path / "out")
    examples = pl.read_parquet(tmp_path / "out" / "examples.parquet").head(3)
    raw = {schema.field(name).raw for name in schema.names("categorical")}
    unknown = examples.with_columns(pl.lit("never seen").alias(name) for name in raw)
    for name in schema.names("categorical"):
        assert encoder.encode(unknown)[name].to_list() == [0] * unknown.height
    nothing = examples.with_columns(pl.lit(None).alias(name) for name in encoder.inputs)
    encoded = encoder.encode(nothing)
    for name in schema.names("numeric"):
        assert encoded[name].is_nan().all() == schema.field(name).missing
    for name in schema.names("sequence"):
        assert encoded[name].list.len().to_list() == [0] * nothing.height


def test_next_item_splits_every_user_at_the_end_and_predicts_what_follows_the_history(
    case: str, source: str, tmp_path: Path
) -> None:
    schema = _run(_spec(case, source), tmp_path / "out")
    if schema.task != "next_item":
        pytest.skip("another task")
    target, sequence = schema.target or "", schema.names("sequence")[0]
    assert schema.field(sequence).of == target == schema.fields[1].name
    shards = _shards(tmp_path / "out")
    for rows in shards.values():
        assert (rows[target] > 0).all()
    test = dict(shards["test"].select(schema.group, sequence).iter_rows())
    valid = dict(shards["valid"].select(schema.group, target).iter_rows())
    both = test.keys() & valid.keys()
    assert len(both) > 10
    assert all(test[user][-1] == valid[user] for user in both)
    train = shards["train"].group_by(schema.group).agg(pl.col(target).last()).rows()
    before = dict(shards["valid"].select(schema.group, sequence).iter_rows())
    assert all(before[user][-1] == last for user, last in train if user in before)


def test_avazu_models_take_the_hour_as_it_stands_in_the_files(tmp_path: Path) -> None:
    _run(_spec("avazu", _put(SAMPLES["avazu"](), str(tmp_path), packed=False)), tmp_path / "out")
    encoder = Encoder(tmp_path / "out")
    assert "hour" in encoder.inputs
    assert "weekday" not in encoder.inputs
    row = pl.read_parquet(tmp_path / "out" / "examples.parquet", n_rows=1)
    encoded = encoder.encode(row.with_columns(hour=pl.lit("14102103")))
    for name, part in {"hour_of_day": "3", "weekday": "2"}.items():
        tokens = pl.read_parquet(tmp_path / "out" / "vocabulary" / f"{name}.parquet")["token"]
        assert tokens[int(encoded[name][0]) - 1] == part


def test_part_of_a_time_is_no_column_to_group_by(tmp_path: Path) -> None:
    source = _put(SAMPLES["avazu"](), str(tmp_path), packed=False)
    with pytest.raises(UserError, match=r"dataset\.group: .* has no column 'weekday'"):
        _run(_spec("avazu", source, group="weekday"), tmp_path / "out")
