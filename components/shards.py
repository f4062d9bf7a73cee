"""The last pass of ingest: encoded rows into one folder of Parquet files per split."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from components.check import LABEL
from components.encode import Encoder
from components.learn import SPLITS, Progress
from components.source import ahead
from components.splits import Assign
from components.stage import Stage
from trainer.schema import TIME, Split

EXAMPLES = 1000
"""Raw test rows that are kept as examples.parquet."""
_PART_ROWS = 1 << 18
"""A part has about so many rows, in one row group: of several processes each reads the row groups of its share."""
_WRITERS = 3
"""Parts that are written at a time, each by one thread, and held in memory until then."""


class Shards:
    """part-00000.parquet, part-00001.parquet, ... of about _PART_ROWS rows each, in the order of the rows."""

    def __init__(self, folder: Path, write: Callable[[pl.DataFrame, Path], None]) -> None:
        self._folder, self._write = folder, write
        self._frames: list[pl.DataFrame] = []
        self._parts = self._rows = 0
        folder.mkdir()

    def append(self, frame: pl.DataFrame) -> None:
        self._frames.append(frame)
        self._rows += frame.height
        if self._rows >= _PART_ROWS:
            self.close()

    def close(self) -> None:
        if self._rows:
            self._write(pl.concat(self._frames), self._folder / f"part-{self._parts:05d}.parquet")
            self._frames, self._rows, self._parts = [], 0, self._parts + 1


@dataclass(frozen=True)
class Written:
    """What became of all rows."""

    test: pl.DataFrame
    """The columns that were asked for of the test rows, in order."""
    unknown: dict[Split, int]
    """Rows left out because their target is unknown: no training row, or too few, have it."""


def write_shards(
    stage: Stage,
    encoder: Encoder,
    assign: Assign,
    output: Path,
    keep: list[str],
    target: str | None,
    progress: Progress,
) -> Written:
    """Encode every row into output/train, valid and test, and write examples.parquet.

    Args:
        keep: columns to return of the test rows.
        target: the field that is predicted, which takes the place of the label.
    """
    tests, examples, wanted, done = [], [], EXAMPLES, 0
    unknown: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    labels = [] if target else [pl.col(LABEL).alias("label")]
    writing: deque[Future[None]] = deque()

    def write(part: pl.DataFrame, path: Path) -> None:
        """Beside the encoding of what follows; errors come out here or in the end."""
        if len(writing) == _WRITERS:
            writing.popleft().result()
        writing.append(threads.submit(_write, part, path))

    def encoded() -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        for frame in stage.frames():
            beside = [] if target else [frame[LABEL].cast(pl.Float32).alias("label")]
            beside += [frame[name] for name in (TIME,) if name in frame.columns]
            yield frame, encoder.encode(frame).with_columns(beside)

    with ThreadPoolExecutor(_WRITERS) as threads:
        shards = [Shards(output / split, write) for split in SPLITS]
        for frame, rows in ahead(encoded()):
            height = frame.height
            codes = pl.Series(assign(frame))
            if target is not None:
                known = rows[target] > 0
                for code, split in enumerate(SPLITS):
                    unknown[split] += int((~known & (codes == code)).sum())
                frame, rows, codes = frame.filter(known), rows.filter(known), codes.filter(known)
            for code, shard in enumerate(shards):
                shard.append(rows.filter(codes == code))
            test = frame.filter(codes == 2)
            tests.append(test.select(keep))
            raw = stage.texted(test.head(wanted))
            examples.append(raw.select(*encoder.inputs, *labels))
            wanted -= raw.height
            done += height
            progress(done, stage.rows, "encoding")
        for shard in shards:
            shard.close()
        for written in writing:
            written.result()
    pq.write_table(pl.concat(examples).with_row_index("row").to_arrow(), output / "examples.parquet")
    return Written(pl.concat(tests), unknown)


def _write(part: pl.DataFrame, path: Path) -> None:
    """Nobody reads statistics of such columns, and what cannot be null needs no marks of what is."""
    table = part.to_arrow()
    table = table.cast(pa.schema([column.with_nullable(False) for column in table.schema]))
    pq.write_table(table, path, row_group_size=_PART_ROWS, compression="zstd", write_statistics=False)
