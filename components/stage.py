"""The working file between the passes of ingest: checked rows, read frame by frame as often as wanted."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from components.check import LABEL
from components.splits import SPLIT

_MANY_VALUES = 1000
"""A label with more distinct values than this is continuous: its values are not counted."""


class LabelCounts:
    """Rows per label value, as long as there are few values."""

    def __init__(self) -> None:
        self.rows = 0
        self._values: Counter[float] | None = Counter()

    def add(self, labels: pl.Series) -> None:
        self.rows += len(labels)
        if self._values is not None:
            self._values.update(dict(labels.value_counts().iter_rows()))
            if len(self._values) > _MANY_VALUES:
                self._values = None

    @property
    def by_value(self) -> dict[float, int] | None:
        """Value -> rows, by value; None for a continuous label."""
        return None if self._values is None else dict(sorted(self._values.items()))


class Stage:
    """Append frames, close, then read them back in the same frames."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self.rows = 0
        self.labels = LabelCounts()
        """Of the rows that are not settled to be valid or test."""

    def append(self, frame: pl.DataFrame) -> None:
        if frame.is_empty():
            return
        table = frame.to_arrow()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="lz4", write_statistics=False)
        self._writer.write_table(table)
        self.rows += frame.height
        self.labels.add((frame.filter(pl.col(SPLIT) == 0) if SPLIT in frame.columns else frame)[LABEL])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def frames(self, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
        with pq.ParquetFile(self._path) as file:
            for group in range(file.num_row_groups):
                yield pl.DataFrame(file.read_row_group(group, columns=columns))

    def delete(self) -> None:
        self._path.unlink()
