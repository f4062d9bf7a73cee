"""What ingest promises beyond the formats: splits, histories, negatives, encodings, and one line for every mistake."""

import errno
import json
import os
import stat
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from components import histories, shards, stage
from components.dataset import DatasetSpec
from components.encode import Encoder
from components.ingest import ingest
from trainer.errors import NoSpaceError, UserError
from trainer.schema import TIME, DatasetSchema

SPLITS = ("train", "valid", "test")


class Ingested:
    """A dataset folder, read back."""

    def __init__(self, folder: Path, schema: DatasetSchema) -> None:
        self.folder, self.schema = folder, schema
        self.rows = {split: pl.read_parquet(folder / split) for split in SPLITS}
        self.statistics = json.loads((folder / "statistics.json").read_text())

    def tokens(self, field: str) -> list[str]:
        """By id; id 0 is unknown."""
        return ["?", *pl.read_parquet(self.folder / "vocabulary" / f"{field}.parquet")["token"]]

    def raw(self, split: str, field: str) -> list[Any]:
        """The column as tokens."""
        schema = self.schema.field(field)
        tokens = self.tokens(schema.of or field)
        column = self.rows[split][field].to_list()
        return [[tokens[k] for k in ids] if schema.kind == "sequence" else tokens[ids] for ids in column]


Run = Callable[..., Ingested]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Ingest a CSV text (or the `source` given) with these settings."""
    count = iter(range(100))

    def run(text: str | None = None, **settings: Any) -> Ingested:
        number = next(count)
        if text is not None:
            path = tmp_path / f"rows-{number}.csv"
            path.write_text(text)
            settings = {"source": str(path), "format": "csv", **settings}
        settings = {"label": {"column": "y"}, **settings} if settings["format"] in ("csv", "parquet") else settings
        folder = tmp_path / f"out-{number}"
        return Ingested(folder, ingest(DatasetSpec.model_validate(settings), folder, lambda done, total, stage: None))

    return run


def _csv(rows: list[tuple[Any, ...]], header: str) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def _clicks(rows: int = 300, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return _csv([(rng.integers(9), rng.integers(7), int(rng.random() < 0.2)) for _ in range(rows)], "user,item,y")


# ---- splits


def test_stratified_shares_are_exact(run: Run) -> None:
    text = _csv([(k, int(k % 5 == 0)) for k in range(1000)], "a,y")
    done = run(text)
    assert {split: done.rows[split].height for split in SPLITS} == {"train": 800, "valid": 100, "test": 100}
    assert [done.rows[split]["label"].mean() for split in SPLITS] == pytest.approx([0.2] * 3)
    assert done.statistics["rows"] == {"train": 800, "valid": 100, "test": 100}


def test_every_row_is_in_exactly_one_split(run: Run) -> None:
    done = run(_csv([(f"t{k}", k % 2) for k in range(500)], "a,y"))
    known = done.raw("train", "a")
    assert len(set(known)) == 400
    assert sum(done.rows[split].height for split in SPLITS) == 500


def test_a_continuous_label_is_split_without_strata(run: Run) -> None:
    rng = np.random.default_rng(0)
    done = run(_csv([(k % 7, rng.random()) for k in range(3000)], "a,y"), task="rating")
    assert [done.rows[split].height for split in SPLITS] == [2400, 300, 300]


@pytest.mark.parametrize("date", [str, lambda t: f"2024-01-01T00:{t // 60:02d}:{t % 60:02d}", lambda t: -t / 8])
def test_time_split_keeps_moments_together(run: Run, date: Callable[[int], object]) -> None:
    rng = np.random.default_rng(1)
    moments = rng.integers(0, 1000, 2000)
    when = [date(int(t)) for t in moments]
    order = moments if when[0] == date(int(moments[0])) and not isinstance(when[0], float) else -moments
    rows = [(w, o, k % 2) for k, (w, o) in enumerate(zip(when, order, strict=True))]
    done = run(
        _csv(rows, "t,x,y"), time="t", split={"by": "time"}, fields={"x": {"kind": "numeric", "transform": "none"}}
    )
    x = {split: done.rows[split]["x"] for split in SPLITS}
    assert x["train"].max() < x["valid"].min()  # type: ignore[operator]
    assert x["valid"].max() < x["test"].min()  # type: ignore[operator]
    assert x["train"].max() == np.sort(order)[1599]
    assert done.schema.names("numeric") == ("x",)


def test_parts_hold_the_rows_in_order(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_FRAME_ROWS", 70)
    monkeypatch.setattr(shards, "_PART_ROWS", 100)
    fields = {"x": {"kind": "numeric", "transform": "none"}}
    done = run(_csv([(k, k % 2) for k in range(1000)], "x,y"), time="x", split={"by": "time"}, fields=fields)
    parts = [pl.read_parquet(path)["x"] for path in sorted((done.folder / "train").iterdir())]
    assert [len(part) for part in parts] == [140] * 5 + [100]
    assert pl.concat(parts).to_list() == list(range(800))


def test_leave_last_out(run: Run) -> None:
    rows = [(user, f"i{k}", k % 2, 100 - k) for k in range(5) for user in range(50)] + [
        (77, "i9", 1, 1),
        (77, "i8", 0, 2),
    ]
    fields = {"t": {"kind": "numeric", "transform": "none"}}
    done = run(_csv(rows, "user,item,y,t"), group="user", time="t", fields=fields, split={"by": "leave_last_out"})
    assert done.rows["test"]["t"].to_list() == [100.0] * 50
    assert done.rows["valid"]["t"].to_list() == [99.0] * 50
    assert sorted(done.raw("test", "user")) == sorted(map(str, range(50)))
    assert done.raw("train", "user").count("77") == 2  # too few rows to leave any out


def test_files_given_by_the_user(run: Run, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(_clicks(50, seed=1))
    (tmp_path / "valid.csv").write_text(_clicks(40, seed=2))
    test, valid = str(tmp_path / "test.csv"), str(tmp_path / "valid.csv")
    both = run(_clicks(), split={"by": "files", "valid": valid, "test": test})
    assert [both.rows[split].height for split in SPLITS] == [300, 40, 50]
    drawn = run(_clicks(), split={"by": "files", "test": test})
    assert drawn.rows["test"].height == 50
    assert drawn.rows["valid"].height == pytest.approx(300 / 9, abs=1)
    assert both.rows["test"]["label"].to_list() == pl.read_csv(test)["y"].cast(float).to_list()


# ---- histories and negatives


@pytest.mark.parametrize("bucket", [histories.BUCKET_ROWS, 40])
def test_histories_hold_earlier_clicks_of_the_same_user(run: Run, bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "BUCKET_ROWS", bucket)
    rng = np.random.default_rng(3)
    rows = [(rng.integers(8), f"i{rng.integers(12)}", int(rng.random() < 0.6), t) for t in rng.permutation(300)]
    past: dict[str, list[str]] = defaultdict(list)
    expected = {}
    for user, item, y, t in sorted(rows, key=lambda row: row[3]):
        expected[t] = past[str(user)][-4:]
        past[str(user)] += [item] * y
    done = run(
        _csv(rows, "user,item,y,t"),
        group="user",
        time="t",
        fields={"seen": {"kind": "sequence", "of": "item", "max_len": 4}, "t": {"kind": "categorical"}},
    )
    assert done.schema.field("seen").cardinality == done.schema.field("item").cardinality
    for t, seen in zip(done.raw("train", "t"), done.raw("train", "seen"), strict=True):
        assert seen == expected[int(t)]


def test_a_sequence_column_is_read(run: Run) -> None:
    rows = [(f"i{k % 5}", f"i{k % 3};i{k % 4};unseen", k % 2) for k in range(200)]
    settings = {"kind": "sequence", "of": "item", "max_len": 2, "separator": ";"}
    done = run(_csv(rows, "item,seen,y"), fields={"seen": settings})
    assert {seen[1] for seen in done.raw("train", "seen")} == {"?"}  # the newest two, of which one is unknown
    assert {seen[0] for seen in done.raw("train", "seen")} == {"i0", "i1", "i2", "i3"}


@pytest.mark.parametrize("bucket", [histories.BUCKET_ROWS, 50])
def test_negatives_are_never_chosen_items(
    run: Run, bucket: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "BUCKET_ROWS", bucket)
    rng = np.random.default_rng(4)
    chosen = {str(user): [str(item) for item in rng.permutation(20)[:12]] for user in range(30)}
    (tmp_path / "events.txt").write_text("".join(f"{u} {i}\n" for u, items in chosen.items() for i in items))
    done = run(source=str(tmp_path / "events.txt"), format="sequence", negatives=3, split={"by": "leave_last_out"})
    assert done.schema.label_mean == pytest.approx(0.25)
    for split in SPLITS:
        columns = (
            done.raw(split, "user"),
            done.raw(split, "item"),
            done.rows[split]["label"],
            done.raw(split, "history"),
        )
        for user, item, label, history in zip(*columns, strict=True):
            assert (item in chosen[user]) == bool(label)
            assert history == chosen[user][: len(history)]
            if label:
                assert history == chosen[user][: chosen[user].index(item)]
    assert done.rows["test"].height == 4 * 30


def test_a_user_who_chose_everything_gets_no_negatives(run: Run, tmp_path: Path) -> None:
    lines = [
        "all 1 2 3 4 5 6 7 8",
        *(f"{user} {1 + user % 8} {1 + (user + 3) % 8} {1 + (user + 5) % 8}" for user in range(20)),
    ]
    (tmp_path / "lists.txt").write_text("\n".join(lines))
    done = run(source=str(tmp_path / "lists.txt"), format="sequence")
    labels = []
    for split in SPLITS:
        users = pl.Series(done.raw(split, "user"))
        labels += done.rows[split].filter(users == "all")["label"].to_list()
    assert labels == [1.0] * 8


def test_shards_keep_what_orders_the_rows(run: Run) -> None:
    times = np.random.default_rng(1).permutation(300)
    text = _csv(
        [(k % 9, int(k % 5 == 0), f"2024-01-{1 + t // 24:02}T{t % 24:02}:00") for k, t in enumerate(times)], "a,y,at"
    )
    done = run(text, time="at", split={"stratify": False})
    kept = pl.concat([done.rows[split] for split in SPLITS])[TIME]
    assert sorted((kept - kept.min()) / 3.6e9) == list(range(300))
    assert done.schema.names("categorical") == ("a",)


# ---- encoding


def test_the_same_rows_make_the_same_files_wherever_they_lie(run: Run) -> None:
    """By which the steps behind ingest know that nothing has changed for them."""
    history = {"seen": {"kind": "sequence", "of": "item", "max_len": 4}}
    rows = [(t % 9, t * t % 7, int(t % 5 == 0), t) for t in range(300)]
    first, second = (
        {path.relative_to(made.folder): path.read_bytes() for path in sorted(made.folder.rglob("*")) if path.is_file()}
        for made in (run(_csv(rows, "user,item,y,t"), group="user", time="t", fields=history) for _ in range(2))
    )
    assert len(first) > 5
    assert first == second


def test_categories_are_numbered_by_falling_training_frequency(run: Run) -> None:
    values = ["rare"] * 2 + ["b"] * 30 + ["a"] * 30 + [""] * 60 + ["top"] * 200
    done = run(_csv([(v, k % 2) for k, v in enumerate(values)], "c,y"), min_count=3, split={"stratify": False})
    tokens = done.tokens("c")
    assert tokens[1:3] == ["top", ""]  # missing is a category of its own
    assert set(tokens[3:]) == {"a", "b"}
    assert done.schema.field("c").cardinality == 5
    assert done.statistics["fields"]["c"]["missing_share"] == pytest.approx(60 / 322, abs=0.05)


def test_hashed_ids_are_stable_and_need_no_vocabulary(run: Run) -> None:
    done = run(_clicks(), fields={"item": {"kind": "categorical", "hash_buckets": 5}})
    assert done.schema.field("item").cardinality == 6
    assert not (done.folder / "vocabulary" / "item.parquet").exists()
    ids = Encoder(done.folder).encode(pl.DataFrame({"user": ["1"], "item": ["3"]}))["item"]
    assert ids.to_list() == [1 + 0x6DD28E9B % 5]  # CRC-32 of "3"


@pytest.mark.parametrize(
    ("transform", "law"),
    [
        ("none", lambda x, train: x),
        ("log", lambda x, train: np.sign(x) * np.log1p(np.abs(x))),
        ("log_sq", lambda x, train: np.where(x > 2, np.floor(np.log(np.maximum(x, 2)) ** 2), x)),
        ("standardize", lambda x, train: (x - train.mean()) / train.std()),
        (
            "quantile",
            lambda x, train: np.where(np.isnan(x), x, [np.mean((train < v) + (train == v) / 2) for v in x]),
        ),
    ],
)
def test_transforms_use_training_rows_only(run: Run, transform: str, law: Callable[..., Any]) -> None:
    rng = np.random.default_rng(5)
    values = np.round(rng.standard_exponential(2000) * 50 - 20, 3)
    values[::7] = np.nan
    text = _csv([("" if np.isnan(v) else v, k % 2) for k, v in enumerate(values)], "x,y")
    plain = run(text, fields={"x": {"kind": "numeric", "transform": "none"}})
    done = run(text, fields={"x": {"kind": "numeric", "transform": transform}})
    train, test = (plain.rows[split]["x"].to_numpy().astype(float) for split in ("train", "test"))
    train = train[~np.isnan(train)]
    np.testing.assert_allclose(done.rows["test"]["x"], law(test, train), atol=5e-3 if transform == "quantile" else 1e-4)
    assert done.schema.field("x").missing


def test_serving_accepts_what_tables_make_of_ids(run: Run) -> None:
    done = run(_clicks())
    encoder = Encoder(done.folder)
    as_text = encoder.encode(pl.DataFrame({"user": ["3", None], "item": ["5", "no"]}))
    assert encoder.encode(pl.DataFrame({"item": [5, 99], "user": [3.0, None]})).equals(as_text)
    assert encoder.encode(pl.DataFrame({"item": [5, 99], "user": [3.0, float("nan")]})).equals(as_text)
    with pytest.raises(UserError, match=r"lack the columns \['item'\]"):
        encoder.encode(pl.DataFrame({"user": ["3"]}))


def test_fields_are_selected_and_dropped(run: Run) -> None:
    assert [field.name for field in run(_clicks(), select=["item"]).schema.fields] == ["item"]
    assert [field.name for field in run(_clicks(), drop=["item"]).schema.fields] == ["user"]
    assert run(_clicks(), group="user").schema.group == "user"
    assert run(_clicks(), group="user", drop=["user"]).schema.group is None


def test_csv_without_header_and_with_another_delimiter(run: Run) -> None:
    text = _clicks().replace(",", ";").split("\n", 1)[1]
    done = run(text, columns=["user", "item", "y"])
    assert sum(done.schema.rows.values()) == 300
    with_dates = run(text.replace(";", "::"), columns=["user", "item", "y"], delimiter="::")
    assert done.rows["test"].equals(with_dates.rows["test"])


# ---- planted rows


def _planted(**more: Any) -> dict[str, Any]:
    return {
        "rows": 60_000,
        "fields": {
            "u": {"cardinality": 50, "zipf": 1.0, "effect": 0.5},
            "i": {"cardinality": 30, "missing": 0.1},
            "x": {"effect": 0.4, "missing": 0.2},
            "noise": {"cardinality": 9},
        },
        "interactions": [
            {"fields": ["u", "i"], "rank": 3, "strength": 1.0},
            {"fields": ["u", "i", "x"], "strength": 0.5},
        ],
        **more,
    }


def test_planted_clicks_follow_their_truth(run: Run) -> None:
    done = run(format="planted", planted=_planted(mean=0.25, noise=0.1))
    truth = done.statistics["planted"]
    base = 0.25
    assert done.schema.label_mean == pytest.approx(base, abs=0.01)
    assert 0.3 < truth["logloss"] < -(base * np.log(base) + (1 - base) * np.log(1 - base)) - 0.03
    assert 0.65 < truth["auc"] < 0.95
    assert done.schema.field("x").missing
    assert done.rows["test"].equals(run(format="planted", planted=_planted(mean=0.25, noise=0.1)).rows["test"])


def test_planted_ratings_follow_their_truth(run: Run) -> None:
    done = run(format="planted", task="rating", planted=_planted(mean=3.5, noise=0.7))
    assert done.schema.label_mean == pytest.approx(3.5, abs=0.05)
    assert done.statistics["planted"]["mse"] == pytest.approx(0.49, rel=0.05)
    explained = 0.5**2 + 0.8 * 0.4**2 + 0.9 * 1.0 + 0.9 * 0.8 * 0.5**2
    assert done.rows["train"]["label"].var() == pytest.approx(0.49 + explained, rel=0.15)


# ---- mistakes: one line each

MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "", "the file is empty"),
    ({}, "a,y\n", "there are no rows"),
    ({}, "\n\n", "the file is empty"),
    ({"source": "/nowhere/rows.csv"}, _clicks(), "there is no such file"),
    ({"source": "s9://bucket/rows.csv"}, _clicks(), "unknown URL scheme 's9'"),
    ({"source": "memory://nowhere/*.csv"}, _clicks(), "no file there matches"),
    ({"label": {}}, _clicks(), "label.column is not set"),
    ({"label": {"column": "clicked"}}, _clicks(), "no column 'clicked'"),
    ({}, _csv([(k, 1) for k in range(50)], "a,y"), "label 'y' is 1 in every row"),
    ({}, _csv([(k, k % 2) for k in range(4)], "a,y"), "none of 4 rows falls into"),
    ({"fields": {"itme": {}}}, _clicks(), "no column 'itme'; did you mean 'item'"),
    ({"select": ["itme"]}, _clicks(), "did you mean 'item'"),
    ({"drop": ["user", "item"]}, _clicks(), "no field is left"),
    ({"group": "usr"}, _clicks(), "did you mean 'user'"),
    ({"time": "when"}, _clicks(), "no column 'when'"),
    ({"split": {"by": "time"}}, _clicks(), "needs dataset.time"),
    ({"split": {"by": "leave_last_out"}}, _clicks(), "needs dataset.group"),
    ({"fields": {"h": {"kind": "sequence", "of": "item"}}}, _clicks(), "a history needs dataset.group"),
    ({"fields": {"h": {"kind": "sequence", "of": "it"}}, "group": "user"}, _clicks(), "'it' is no categorical field"),
    ({"fields": {"y": {}}}, _clicks(), "no column 'y'"),
    ({}, "a,a,y\n1,2,0\n", "column 'a' stands there twice"),
    ({}, "a,label,y\n" + "1,2,0\n2,2,1\n" * 9, "cannot be named 'label'"),
    ({}, _clicks() + "1,2\n" * 9, "9 of 309 rows are bad"),
    ({"task": "ctr"}, _csv([(k, k % 5) for k in range(99)], "a,y"), "label.threshold makes it so"),
    ({"format": "criteo", "label": {}}, _clicks(), "1 columns instead of 40"),
    ({"format": "avazu", "label": {}}, _clicks(), "the header is not Avazu's"),
    ({"format": "libfm", "label": {}}, _clicks(), "this is not libFM text"),
    ({"format": "parquet"}, _clicks(), "cannot be read (ArrowInvalid"),
]


@pytest.mark.parametrize(("settings", "text", "message"), MISTAKES, ids=[message for _, _, message in MISTAKES])
def test_a_mistake_is_one_clear_line(run: Run, settings: dict[str, Any], text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(text, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_bad_rows_show_the_first_five(run: Run) -> None:
    with pytest.raises(UserError, match=r"rows-0.csv:302: 2 columns instead of 3: '1,2'") as caught:
        run(_clicks() + "1,2\n" * 9)
    assert str(caught.value).count("instead of 3") == 5
    assert run(_clicks() + "1,2\n" * 9, max_rejected=0.05).schema.rejected == 9


def test_bad_encoding_is_rejected(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes(_clicks().encode() + "3,caf\u00e9,1\n".encode("latin-1") + b"4,\x00,1\n")
    done = run(source=str(path), format="csv")
    rejected = pl.read_parquet(done.folder / "rejected.parquet")
    assert rejected.select("line", "reason").rows() == [(302, "not UTF-8")]


def test_windows_line_ends_and_byte_order_mark(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "windows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + _clicks().replace("\n", "\r\n").encode())
    assert run(source=str(path), format="csv").rows["test"].equals(run(_clicks()).rows["test"])


def test_damaged_gzip(run: Run, tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "rows.csv"
    path.write_bytes(gzip.compress(_clicks(5000).encode())[:-200])
    with pytest.raises(UserError, match="the gzip file is damaged"):
        run(source=str(path), format="csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_source_without_rights(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(_clicks())
    path.chmod(0)
    with pytest.raises(UserError, match="no right to read it"):
        run(source=str(path), format="csv")
    path.chmod(stat.S_IRUSR)


def test_storage_that_refuses_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(fsspec.filesystem("memory").__class__, "info", refuse)
    with pytest.raises(UserError, match=r"memory://rows.csv: no right to read it"):
        run(source="memory://rows.csv", format="csv")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "rows.csv").write_text(_clicks())
    spec = DatasetSpec.model_validate({"source": str(tmp_path / "rows.csv"), "format": "csv", "label": {"column": "y"}})
    with pytest.raises(UserError, match="choose a folder that can be written"):
        ingest(spec, tmp_path / "file" / "out", lambda done, total, stage: None)


def test_a_disk_that_the_working_file_fills_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pa.ipc.RecordBatchFileWriter, "write_table", full)
    with pytest.raises(NoSpaceError, match="no space left"):
        run(_clicks())


@pytest.mark.parametrize("name", ["user.parquet", "part-00000.parquet", "examples.parquet"])
def test_a_full_disk_is_one_line(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = pq.ParquetWriter.write_table

    def full(writer: Any, table: object, **more: Any) -> None:
        if Path(writer.where).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, table, **more)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(NoSpaceError, match="no space left"):
        run(_clicks())


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "csv"},
        {"format": "planted"},
        {"format": "excel", "source": "a"},
        {"format": "criteo", "source": "a", "negatives": 1},
        {"format": "criteo", "source": "a", "delimiter": ";"},
        {"format": "sequence", "source": "a", "task": "rating"},
        {"format": "sequence", "source": "a", "task": "next_item", "negatives": 2},
        {"format": "sequence", "source": "a", "task": "next_item", "label": {"threshold": 4}},
        {"format": "sequence", "source": "a", "task": "next_item", "split": {"by": "random"}},
        {"format": "movielens", "source": "a", "task": "next_item", "label": {"column": "rating"}},
        {"format": "movielens", "source": "a", "task": "next_item", "split": {"by": "files", "test": "b"}},
        {"format": "csv", "source": "a", "task": "next_item", "group": "user"},
        {"format": "planted", "planted": {"fields": {"a": {}}}, "task": "next_item"},
        {"format": "csv", "source": "a", "split": {"by": "files"}},
        {"format": "csv", "source": "a", "split": {"ratios": [1, 1]}},
        {"format": "csv", "source": "a", "split": {"ratios": [1, 0, 1]}},
        {"format": "csv", "source": "a", "fields": {"h": {"kind": "sequence"}}},
        {"format": "csv", "source": "a", "fields": {"h": {"kind": "categorical", "transform": "log"}}},
        {"format": "csv", "source": "a", "select": ["a"], "drop": ["b"]},
        {"format": "planted", "planted": {"fields": {"a": {}}, "interactions": [{"fields": ["a", "b"]}]}},
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DatasetSpec.model_validate(settings)
