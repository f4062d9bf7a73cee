"""The last pass of ingest: encoded rows into one folder of Parquet files per split."""

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from components.check import LABEL
from components.encode import Encoder
from components.learn import SPLITS, Progress
from components.splits import Assign
from components.stage import Stage

EXAMPLES = 1000
"""Raw test rows that are kept as examples.parquet."""
_PART_ROWS = 1 << 20


class Shards:
    """part-00000.parquet, part-00001.parquet, ... of about _PART_ROWS rows each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: pq.ParquetWriter | None = None
        self._parts = self._rows = 0
        folder.mkdir()

    def append(self, frame: pl.DataFrame) -> None:
        table = frame.to_arrow()
        if self._writer is None:
            path = self._folder / f"part-{self._parts:05d}.parquet"
            self._writer = pq.ParquetWriter(path, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._rows += frame.height
        if self._rows >= _PART_ROWS:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer, self._rows, self._parts = None, 0, self._parts + 1


def write_shards(
    stage: Stage, encoder: Encoder, assign: Assign, output: Path, keep: list[str], progress: Progress
) -> pl.DataFrame:
    """Encode every row into output/train, valid and test, and write examples.parquet.

    Returns:
        The columns `keep` of the test rows, in order.
    """
    shards = [Shards(output / split) for split in SPLITS]
    tests, examples, wanted, done = [], [], EXAMPLES, 0
    for frame in stage.frames():
        codes = assign(frame)
        encoded = encoder.encode(frame).with_columns(frame[LABEL].cast(pl.Float32).alias("label"))
        for code, shard in enumerate(shards):
            shard.append(encoded.filter(pl.Series(codes == code)))
        test = frame.filter(pl.Series(codes == 2))
        tests.append(test.select(keep))
        examples.append(test.head(wanted).select(*encoder.inputs, pl.col(LABEL).alias("label")))
        wanted -= examples[-1].height
        done += frame.height
        progress(done, stage.rows, "encoding")
    for shard in shards:
        shard.close()
    pq.write_table(pl.concat(examples).with_row_index("row").to_arrow(), output / "examples.parquet")
    return pl.concat(tests)
