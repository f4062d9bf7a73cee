"""Parquet files (one, a pattern, or a folder of parts) with typed columns."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from components.dataset import DatasetSpec
from components.formats.columns import guess_kind, label_column
from components.formats.layout import Format, Layout
from components.rejects import LINE, Rejects
from components.source import explained, open_binary
from trainer.schema import FieldKind

_ROWS = 1 << 16
_SAMPLE = 20_000


def describe(spec: DatasetSpec, urls: list[str]) -> Layout:
    frame = sample(urls[0])
    kinds: dict[str, FieldKind] = {}
    for name in frame.columns:
        declared = spec.fields.get(name)
        kind = (declared and declared.kind) or guess_kind(name, frame[name])
        if kind == "sequence" and (declared is None or declared.of is None):
            continue  # a list says nothing until 'of' names the field whose values it holds
        if kind is not None:
            kinds[name] = kind
    others = tuple(name for name in frame.columns if name not in kinds)
    return Layout(kinds, label=label_column(spec, urls[0], frame.columns), others=others)


def rows(spec: DatasetSpec, layout: Layout, url: str, rejects: Rejects) -> Iterator[pl.DataFrame]:
    line = 1
    with _opened(url) as file:
        batches = file.iter_batches(batch_size=_ROWS)
        while True:
            with explained(url):
                batch = next(batches, None)
            if batch is None:
                return
            frame = _frame(batch)
            yield frame.with_columns(pl.Series(LINE, np.arange(line, line + frame.height)))
            line += frame.height


def sample(url: str) -> pl.DataFrame:
    """The first rows."""
    with _opened(url) as file:
        batch = next(file.iter_batches(batch_size=_SAMPLE), None)
        return _frame(pa.RecordBatch.from_pylist([], schema=file.schema_arrow) if batch is None else batch)


FORMAT = Format(describe, rows, files="*.parquet")


@contextmanager
def _opened(url: str) -> Iterator[pq.ParquetFile]:
    with open_binary(url) as raw:
        with explained(url):
            file = pq.ParquetFile(raw)
        yield file


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame
