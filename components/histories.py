"""Rows brought together by group (user): what each chose before, which row was its last, and what it never chose.

Rows are dealt by a hash of the group into files small enough to sort in memory, so memory does not grow with rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from components.check import GROUP, LABEL
from components.encode import Vocabulary, jagged, stable_hash
from components.plan import PlannedField
from components.splits import SPLIT
from trainer.schema import TIME

Ints = npt.NDArray[np.int64]
ITEM = "item"
BUCKET_ROWS = 1 << 19
_FRAME_ROWS = 1 << 14
"""Rows whose histories are spelled out at a time: these hold up to `max_len` values each."""
_DRAWS = 100


@dataclass(frozen=True)
class Grouping:
    """What is made of a group's rows."""

    histories: tuple[PlannedField, ...]
    clicks: bool
    """A history holds only rows with label 1 (ctr), else all of them."""
    last_out: bool
    """Settle SPLIT: the last row of a group is test, the one before it valid; groups below three rows train."""
    negatives: int
    """Rows with label 0 per row, differing in the column ITEM."""
    seed: int


def grouped(frames: Iterator[pl.DataFrame], rows: int, folder: Path, grouping: Grouping) -> Iterator[pl.DataFrame]:
    """All rows, group by group and oldest first, with history columns, SPLIT and negatives as `grouping` asks.

    Args:
        rows: how many rows the frames hold.
        folder: for working files; removed by the caller.
    """
    items = None
    rng = np.random.default_rng(grouping.seed)
    paths, seen = _deal(frames, -(-rows // BUCKET_ROWS), folder, grouping.negatives > 0)
    if grouping.negatives:
        items = Vocabulary(seen.sort())
    order = [GROUP, TIME]
    for path in paths:
        frame = pl.read_parquet(path)
        path.unlink()
        frame = frame.sort([name for name in order if name in frame.columns], maintain_order=True)
        yield from _bucket(frame, grouping, items, rng)


def _deal(frames: Iterator[pl.DataFrame], buckets: int, folder: Path, items: bool) -> tuple[list[Path], pl.Series]:
    """Write each group's rows, in order, to one of the bucket files; collects the distinct items on the way."""
    paths = [folder / f"bucket-{number:05d}.parquet" for number in range(buckets)]
    writers: dict[int, pq.ParquetWriter] = {}
    seen = pl.Series(dtype=pl.String)
    for frame in frames:
        if items:
            seen = pl.concat([seen, frame[ITEM]]).unique()
        bucket = pl.Series(stable_hash(frame[GROUP]) % buckets)
        for number in bucket.unique():
            table = frame.filter(bucket == number).to_arrow()
            if number not in writers:
                writers[number] = pq.ParquetWriter(paths[number], table.schema, compression="lz4")
            writers[number].write_table(table)
    for writer in writers.values():
        writer.close()
    return [paths[number] for number in sorted(writers)], seen


def _bucket(
    frame: pl.DataFrame, grouping: Grouping, items: Vocabulary | None, rng: np.random.Generator
) -> Iterator[pl.DataFrame]:
    group = frame[GROUP].rle_id().to_numpy().astype(np.int64)
    if grouping.last_out:
        frame = frame.with_columns(pl.Series(SPLIT, _last_out(group)))
    windows = [_windows(frame, group, field, grouping.clicks) for field in grouping.histories]
    chosen = None if items is None else _Chosen(group, items.ids(frame[ITEM]).astype(np.int64) - 1, len(items))
    for first in range(0, frame.height, _FRAME_ROWS):
        rows = slice(first, first + _FRAME_ROWS)
        part = frame[rows].with_columns(window.column(rows) for window in windows)
        if items is not None and chosen is not None:
            part = _with_negatives(part, grouping, items, chosen, group[rows], rng)
        yield part


def _last_out(group: Ints) -> npt.NDArray[np.int8]:
    """(N,) sorted group numbers -> split codes"""
    sizes = np.bincount(group)
    from_end = np.cumsum(sizes)[group] - 1 - np.arange(len(group))
    codes = np.where(from_end == 0, 2, np.where(from_end == 1, 1, 0))
    return np.where(sizes[group] < 3, 0, codes).astype(np.int8)


@dataclass(frozen=True)
class _Windows:
    """Row i's history is `values[start[i]:end[i]]`."""

    name: str
    values: pl.Series
    start: Ints
    end: Ints

    def column(self, rows: slice) -> pl.Series:
        start, lengths = self.start[rows], self.end[rows] - self.start[rows]
        offset = np.cumsum(lengths) - lengths
        at = np.arange(lengths.sum()) + np.repeat(start - offset, lengths)
        return jagged(self.name, self.values.gather(at), lengths)


def _windows(frame: pl.DataFrame, group: Ints, field: PlannedField, clicks: bool) -> _Windows:
    """The newest `max_len` values of the field `of` in earlier rows of the group; missing values are left out."""
    assert field.of is not None
    counts = (frame[field.of] != "").to_numpy()
    if clicks:
        counts = counts & (frame[LABEL].to_numpy() == 1)
    before = np.cumsum(counts) - counts
    group_start = before[np.searchsorted(group, group, side="left")]
    start = np.maximum(group_start, before - field.settings.max_len)
    return _Windows(field.name, frame[field.of].filter(pl.Series(counts)), start, before)


class _Chosen:
    """Which items each group chose, as sorted numbers `group * items + item`."""

    def __init__(self, group: Ints, item: Ints, items: int) -> None:
        self.items = items
        self._pairs = np.unique(group * items + item)

    def contains(self, group: Ints, item: Ints) -> npt.NDArray[np.bool_]:
        pair = group * self.items + item
        place = np.minimum(np.searchsorted(self._pairs, pair), len(self._pairs) - 1)
        return np.asarray(self._pairs[place] == pair)


def _with_negatives(
    part: pl.DataFrame, grouping: Grouping, items: Vocabulary, chosen: _Chosen, group: Ints, rng: np.random.Generator
) -> pl.DataFrame:
    """Each event followed by its negatives: the same row with an item, uniform among those the group never chose.

    A group that chose nearly everything may get fewer: what clashes after many draws is left out.
    """
    rows = np.repeat(np.arange(part.height), 1 + grouping.negatives)
    negative = np.arange(len(rows)) % (1 + grouping.negatives) > 0
    drawn = rng.integers(0, chosen.items, len(rows))
    clash = negative & chosen.contains(group[rows], drawn)
    for _ in range(_DRAWS):
        if not clash.any():
            break
        drawn[clash] = rng.integers(0, chosen.items, clash.sum())
        clash = negative & chosen.contains(group[rows], drawn)
    item = pl.when(pl.Series(negative)).then(items.tokens.gather(drawn)).otherwise(pl.col(ITEM))
    label = pl.when(pl.Series(negative)).then(0.0).otherwise(pl.col(LABEL))
    return part[rows].with_columns(item.alias(ITEM), label.alias(LABEL)).filter(pl.Series(~clash))
