"""Reading shards and cutting batches: against plain Python on the same rows."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from trainer import data
from trainer.errors import UserError
from trainer.schema import DatasetSchema, Field


def schema(rows: int) -> DatasetSchema:
    return DatasetSchema(
        task="ctr",
        label="click",
        fields=(
            Field(name="user", kind="categorical", cardinality=50),
            Field(name="price", kind="numeric", missing=True),
            Field(name="item", kind="categorical", cardinality=30),
            Field(name="history", kind="sequence", cardinality=30, of="item", max_len=5),
        ),
        rows={"train": rows, "valid": 0, "test": 0},
        label_mean=0.5,
        label_min=0,
        label_max=1,
    )


def frame(rows: int) -> pl.DataFrame:
    random = np.random.default_rng(rows)
    prices = [None if random.random() < 0.2 else float(random.normal()) for _ in range(rows)]
    return pl.DataFrame(
        {
            "history": [random.integers(1, 30, random.integers(0, 6)).tolist() for _ in range(rows)],
            "item": random.integers(0, 30, rows),
            "label": random.integers(0, 2, rows).astype(np.float32),
            "price": prices,
            "user": random.integers(0, 50, rows),
        },
        schema_overrides={
            "history": pl.List(pl.Int32),
            "item": pl.Int32,
            "user": pl.Int32,
            "price": pl.Float32,
        },
    )


def write(folder: Path, rows: pl.DataFrame, shards: int) -> None:
    (folder / "train").mkdir()
    for number, part in enumerate(rows.iter_slices(-(-rows.height // shards))):
        part.write_parquet(folder / "train" / f"part-{number:05d}.parquet")


def test_shards_are_read_as_written(tmp_path: Path) -> None:
    rows = frame(103)
    write(tmp_path, rows, shards=3)
    table = data.load(tmp_path, "train", schema(103))
    assert table.rows == 103
    assert table.categorical.tolist() == [list(pair) for pair in zip(rows["user"], rows["item"], strict=True)]
    assert table.ids("item").tolist() == rows["item"].to_list()
    np.testing.assert_array_equal(table.numeric[:, 0].numpy(), rows["price"].to_numpy())
    assert table.label.tolist() == rows["label"].to_list()
    batch = next(table.batches(103))
    for history, ids, length in zip(rows["history"], batch.sequences["history"], batch.lengths["history"], strict=True):
        assert ids[:length].tolist() == history.to_list()
        assert not ids[length:].any()


def test_rows_in_memory_equal_rows_on_disk(tmp_path: Path) -> None:
    rows = frame(40)
    write(tmp_path, rows, shards=1)
    on_disk, in_memory = data.load(tmp_path, "train", schema(40)), data.from_arrow(rows.to_arrow(), schema(40))
    torch.testing.assert_close(on_disk.numeric, in_memory.numeric, equal_nan=True)
    assert torch.equal(on_disk.categorical, in_memory.categorical)
    assert torch.equal(on_disk.sequences["history"].values, in_memory.sequences["history"].values)
    assert torch.equal(on_disk.sequences["history"].offsets, in_memory.sequences["history"].offsets)


def test_rows_without_label_carry_nan() -> None:
    assert data.from_arrow(frame(4).drop("label").to_arrow(), schema(4)).label.isnan().all()


def test_no_rows_at_all(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert list(data.load(tmp_path, "train", schema(0)).batches(8)) == []


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_read_their_shares_of_the_same_batches(tmp_path: Path, world: int) -> None:
    rows = frame(1000).with_columns(label=pl.Series(np.arange(1000, dtype=np.float32)))
    write(tmp_path, rows, shards=3)
    shares = [data.load(tmp_path, "train", schema(1000), (rank, world)) for rank in range(world)]
    assert torch.cat([share.label for share in shares]).tolist() == list(range(1000))
    table = data.load(tmp_path, "train", schema(1000))
    whole = list(table.batches(64, seed_epoch=(7, 1)))
    parts = [list(share.batches(64, seed_epoch=(7, 1))) for share in shares]
    assert {len(found) for found in parts} == {len(whole)} == {share.steps(64) for share in shares}
    for step, batch in enumerate(whole):
        assert batch.of == batch.size == sum(found[step].size for found in parts)
        assert {found[step].of for found in parts} == {batch.of}
        labels = torch.cat([found[step].label for found in parts])
        assert sorted(labels.tolist()) == sorted(batch.label.tolist())
        assert batch.size < 64 or all(abs(found[step].size - 64 / world) <= 64 / 32 for found in parts)
    for share, (rank, _) in zip(shares, (share.process for share in shares), strict=True):
        assert torch.equal(share.categorical, table.share(rank, world).categorical)


def test_too_few_rows_for_so_many_processes() -> None:
    with pytest.raises(UserError, match="100 rows are too few to be shared by 8 processes"):
        data.from_arrow(frame(100).to_arrow(), schema(100)).share(0, 8)


def test_only_row_groups_of_the_share_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    frame(1000).write_parquet(tmp_path / "train" / "part-00000.parquet", row_group_size=100)
    read: list[int] = []
    read_row_group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda file, group, *rest: (read.append(group), read_row_group(file, group, *rest))[1],
    )
    data.load(tmp_path, "train", schema(1000), (0, 4))
    assert read == [0, 1, 2]


def test_each_epoch_has_its_own_order_and_every_row_once() -> None:
    table = data.from_arrow(
        frame(100).with_columns(label=pl.Series(np.arange(100, dtype=np.float32))).to_arrow(), schema(100)
    )

    def order(seed: int, epoch: int, start: int = 0) -> list[float]:
        return torch.cat([b.label for b in table.batches(16, seed_epoch=(seed, epoch), start=start)]).tolist()

    assert order(1, 1) == order(1, 1)
    assert sorted(order(1, 1)) == list(range(100))
    assert order(1, 1) != order(1, 2) != order(2, 1)
    assert order(1, 1, start=3) == order(1, 1)[48:]
    assert len(list(table.batches(16))) == table.steps(16) == 7


def test_select_keeps_the_chosen_rows() -> None:
    table = data.from_arrow(frame(20).to_arrow(), schema(20))
    rows = torch.tensor([3, 3, 19, 0])
    chosen, expected = next(table.select(rows).batches(4)), table.take(rows)
    assert torch.equal(chosen.sequences["history"], expected.sequences["history"])
    assert torch.equal(chosen.lengths["history"], expected.lengths["history"])
    assert torch.equal(chosen.categorical, expected.categorical)


def test_rows_in_time_order_keep_their_order_where_times_are_equal(tmp_path: Path) -> None:
    times = np.random.default_rng(5).integers(0, 40, 200)
    write(tmp_path, frame(200).with_columns(pl.Series("__time", times, dtype=pl.Float64)), shards=3)
    table = data.load(tmp_path, "train", schema(200))
    ordered = data.in_time_order(table, tmp_path, "train")
    expected = sorted(range(200), key=lambda row: (times[row], row))
    assert ordered.categorical.tolist() == table.categorical[expected].tolist()
    assert ordered.label.tolist() == table.label[expected].tolist()


def test_rows_without_times_are_taken_as_they_came(tmp_path: Path) -> None:
    write(tmp_path, frame(50), shards=2)
    table = data.load(tmp_path, "train", schema(50))
    assert data.in_time_order(table, tmp_path, "train") is table


def test_a_share_of_the_rows_has_no_time_order(tmp_path: Path) -> None:
    write(tmp_path, frame(1000), shards=1)
    with pytest.raises(UserError, match="in time order are for one process"):
        data.in_time_order(data.load(tmp_path, "train", schema(1000), (0, 2)), tmp_path, "train")
