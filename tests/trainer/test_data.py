"""Reading shards and cutting batches: against plain Python on the same rows."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from trainer import data
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
def test_processes_share_each_batch_equally(world: int) -> None:
    table = data.from_arrow(frame(100).to_arrow(), schema(100))
    shares = [list(table.batches(32, seed_epoch=(7, 1), rank=rank, world=world)) for rank in range(world)]
    whole = list(table.batches(32, seed_epoch=(7, 1)))
    for step, batch in enumerate(whole):
        sizes = {share[step].size for share in shares}
        assert sizes == {batch.size // world}
        joined = torch.stack([share[step].categorical for share in shares], 1).flatten(0, 1)
        assert torch.equal(joined, batch.categorical[: joined.shape[0]])


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
