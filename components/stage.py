"""The working file between the passes of ingest: checked rows, read frame by frame as often as wanted."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from components.check import LABEL
from components.splits import SPLIT

_FRAME_ROWS = 1 << 20
"""Longer frames are read back in pieces."""
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


class Numbering:
    """Numbers the distinct values of a text column 0, 1, ..., in any order. Memory: the distinct values."""

    def __init__(self) -> None:
        self._type = pl.Categorical(pl.Categories.random())
        self._alive = pl.Series(dtype=self._type)  # polars forgets categories that no series uses
        self._count = 0

    def numbers(self, name: str) -> pl.Expr:
        return pl.col(name).cast(self._type).to_physical()

    def seen(self, highest: int) -> None:
        self._count = max(self._count, highest + 1)

    def texts(self) -> pl.Series:
        """By number."""
        return pl.Series(np.arange(self._count, dtype=np.uint32)).cat.to(self._type).cast(pl.String)


class Stage:
    """Append frames, close, then read them back in the same frames.

    A text of few different values is compared, counted and encoded once and not in every row: the file holds its
    number instead.
    """

    def __init__(self, path: Path, numbered: Iterable[str]) -> None:
        """Args: numbered: String columns that are read back as numbers (UInt32) of their values in `texts`."""
        self._path = path
        self._numbered = {name: Numbering() for name in numbered}
        self._writer: Any = None
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        self.rows = 0
        self.labels = LabelCounts()
        """Of the rows that are not settled to be valid or test."""
        self.texts: dict[str, pl.Series] = {}
        """Column -> its distinct values, by number; complete once the stage is closed."""

    def append(self, frame: pl.DataFrame) -> None:
        if frame.is_empty():
            return
        frame = frame.with_columns(numbering.numbers(name) for name, numbering in self._numbered.items())
        for name, numbering in self._numbered.items():
            numbering.seen(int(frame[name].max()))  # type: ignore[arg-type]
        table = frame.rechunk().to_arrow()
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._path, table.schema)
        self._wait()
        self._written = self._thread.submit(self._writer.write_table, table, _FRAME_ROWS)
        self.rows += frame.height
        self.labels.add((frame.filter(pl.col(SPLIT) == 0) if SPLIT in frame.columns else frame)[LABEL])

    def close(self) -> None:
        self._wait()
        self._thread.shutdown()
        if self._writer is not None:
            self._writer.close()
        self.texts = {name: numbering.texts() for name, numbering in self._numbered.items()}
        self._numbered = {}

    def frames(self, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
        with pa.OSFile(str(self._path)) as file:
            schema = pa.ipc.open_file(file).schema
            wanted = None if columns is None else [schema.get_field_index(name) for name in columns]
            reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=wanted))
            for batch in range(reader.num_record_batches):
                yield pl.DataFrame(reader.get_batch(batch))

    def texted(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A frame of this stage as it was appended: with texts and not their numbers."""
        return frame.with_columns(
            self.texts[name].gather(frame[name]).alias(name) for name in frame.columns if name in self.texts
        )

    def delete(self) -> None:
        self._path.unlink()

    def _wait(self) -> None:
        """Writing goes on beside the work on the next frame; its errors come out here."""
        if self._written is not None:
            self._written.result()
