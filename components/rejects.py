"""Bad rows: none is lost silently. Each goes with file, line and reason to `rejected.parquet`."""

from collections import Counter
from pathlib import Path
from types import TracebackType

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import UserError

LINE, TEXT = "__line", "__text"
"""Columns of a parsed frame: where the row stands in its file (from 1), and what it said there."""

_SCHEMA = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("text", pa.string())])
_TEXT_LENGTH = 1000


class Rejects:
    """Writes rejected rows and counts them; `file` names the file being read."""

    def __init__(self, path: Path | None) -> None:
        """Args: path: where to write; None only counts (a look at the first rows)."""
        self.file = ""
        self.reasons: Counter[str] = Counter()
        self._first: list[str] = []
        self._writer = None if path is None else pq.ParquetWriter(path, _SCHEMA)

    def __enter__(self) -> "Rejects":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    @property
    def count(self) -> int:
        return self.reasons.total()

    def drop(self, frame: pl.DataFrame, bad: pl.Series, reason: str) -> pl.DataFrame:
        """The frame without the rows where `bad` is true; those are rejected for `reason`."""
        if not bad.any():
            return frame
        self.add(frame.filter(bad), reason)
        return frame.filter(~bad)

    def add(self, frame: pl.DataFrame, reason: str) -> None:
        """Reject every row of a frame that has the columns LINE and TEXT (or any, if it has no TEXT)."""
        self.reasons[reason] += frame.height
        text = frame[TEXT] if TEXT in frame.columns else _as_text(frame.drop(LINE))
        table = pl.DataFrame(
            {
                "file": [self.file] * frame.height,
                "line": frame[LINE].cast(pl.Int64),
                "reason": [reason] * frame.height,
                "text": text.str.slice(0, _TEXT_LENGTH),
            }
        )
        if self._writer is not None:
            self._writer.write_table(table.to_arrow().cast(_SCHEMA))
        for row in table.head(5 - len(self._first)).iter_rows(named=True):
            self._first.append(f"{row['file']}:{row['line']}: {reason}: {row['text'][:60]!r}")

    def check(self, rows: int, allowed: float, source: str) -> None:
        """Raises UserError if more than the share `allowed` of `rows` good and the bad rows were bad."""
        if self.count > allowed * (rows + self.count):
            raise UserError(
                f"{source}: {self.count:,} of {rows + self.count:,} rows are bad, above max_rejected {allowed:g};"
                f" the first: {'; '.join(self._first)}"
            )


class HeldRejects(Rejects):
    """For a thread that reads ahead: what it rejects waits until the rows before are checked."""

    def __init__(self, file: str) -> None:
        super().__init__(None)
        self.file = file
        self._held: list[tuple[str, pl.DataFrame, str]] = []

    def add(self, frame: pl.DataFrame, reason: str) -> None:
        self._held.append((self.file, frame, reason))

    def release(self) -> list[tuple[str, pl.DataFrame, str]]:
        """What was rejected since the last call: file, rows, reason."""
        held, self._held = self._held, []
        return held


def _as_text(frame: pl.DataFrame) -> pl.Series:
    return pl.Series([str(row) for row in frame.iter_rows(named=True)], dtype=pl.String)
