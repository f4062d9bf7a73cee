"""Rows in memory: one dataset split as contiguous tensors, and the batches cut from it.

Ids are kept as int32 (half the memory) and handed out as int64, the type embedding kernels are fastest with.
Sequences are kept jagged and padded per batch, so memory follows the data and not the longest history.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from trainer.schema import DatasetSchema, Split

_READ_ROWS = 262_144


@dataclass(frozen=True)
class Batch:
    """B rows as a model takes them. Columns are in the order of `DatasetSchema.names(kind)`."""

    categorical: Tensor
    """(B, n_categorical) int64 ids; 0 is unknown."""
    numeric: Tensor
    """(B, n_numeric) float32; NaN is missing."""
    label: Tensor
    """(B,) float32; NaN where the rows carry no label."""
    sequences: dict[str, Tensor] = field(default_factory=dict)
    """Field -> (B, T) int64 ids, oldest first, padded on the right with 0; T is the batch's longest, at least 1."""
    lengths: dict[str, Tensor] = field(default_factory=dict)
    """Field -> (B,) int64 number of valid steps, 0..T."""

    @property
    def size(self) -> int:
        return self.label.shape[0]


@dataclass(frozen=True)
class Jagged:
    """One sequence column: row i holds `values[offsets[i]:offsets[i + 1]]`."""

    values: Tensor
    """(total steps,) int32"""
    offsets: Tensor
    """(N + 1,) int64"""

    def pad(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The sequences of `rows` (B,) as ids (B, T) int64 and lengths (B,) int64."""
        start_B = self.offsets[rows]
        length_B = self.offsets[rows + 1] - start_B
        step_T = torch.arange(max(int(length_B.max()) if rows.numel() else 0, 1))
        valid_BT = step_T < length_B[:, None]
        ids_BT = torch.zeros(valid_BT.shape, dtype=torch.int64)
        ids_BT[valid_BT] = self.values[(start_B[:, None] + step_T)[valid_BT]].long()
        return ids_BT, length_B


@dataclass(frozen=True)
class Table:
    """All rows of one split, one contiguous tensor per kind of field."""

    schema: DatasetSchema
    categorical: Tensor
    """(N, n_categorical) int32"""
    numeric: Tensor
    """(N, n_numeric) float32"""
    label: Tensor
    """(N,) float32"""
    sequences: dict[str, Jagged]

    @property
    def rows(self) -> int:
        return self.label.shape[0]

    def visits(self, fields: Iterable[str], cardinality: int) -> Tensor:
        """(cardinality,) float32: how often each id occurs in categorical or sequence `fields`."""
        columns = {name: column for column, name in enumerate(self.schema.names("categorical"))}
        counts = torch.zeros(cardinality)
        for name in fields:
            ids = self.categorical[:, columns[name]] if name in columns else self.sequences[name].values
            counts += torch.bincount(ids, minlength=cardinality)
        return counts

    def ids(self, name: str) -> Tensor:
        """(N,) int32: the column of a categorical field."""
        return self.categorical[:, self.schema.names("categorical").index(name)]

    def take(self, rows: Tensor) -> Batch:
        """The rows with these positions (B,) int64, in that order."""
        padded = {name: column.pad(rows) for name, column in self.sequences.items()}
        return Batch(
            categorical=self.categorical.index_select(0, rows).long(),
            numeric=self.numeric.index_select(0, rows),
            label=self.label.index_select(0, rows),
            sequences={name: ids for name, (ids, _) in padded.items()},
            lengths={name: lengths for name, (_, lengths) in padded.items()},
        )

    def steps(self, batch_size: int) -> int:
        """Number of batches of one pass."""
        return -(-self.rows // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        seed_epoch: tuple[int, int] | None = None,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """Cut one pass over the rows into batches.

        Args:
            batch_size: rows per batch over all processes; the last batch may be smaller.
            seed_epoch: (seed, epoch) of the permutation, the same on every process; None keeps the rows' order.
            start: number of batches to leave out at the beginning.
            rank, world: with `world` processes each gets every world-th row of a batch. Shares are equal: the last
                batch leaves out what `world` does not divide (at most world - 1 rows of a pass).
        """
        order_N = torch.arange(self.rows) if seed_epoch is None else _permutation(self.rows, *seed_epoch)
        for first in range(start * batch_size, self.rows, batch_size):
            rows = order_N[first : first + batch_size]
            rows = rows[rank : rows.shape[0] - rows.shape[0] % world : world]
            if rows.shape[0]:
                yield self.take(rows)

    def select(self, rows: Tensor) -> "Table":
        """A smaller table of these positions (n,) int64."""
        return replace(
            self,
            categorical=self.categorical[rows],
            numeric=self.numeric[rows],
            label=self.label[rows],
            sequences={name: _select_jagged(column, rows) for name, column in self.sequences.items()},
        )


def load(folder: Path, split: Split, schema: DatasetSchema) -> Table:
    """Read the Parquet shards of `split` in a dataset folder; rows are in the order of the shards' names."""
    shards = sorted((folder / split).glob("*.parquet"))
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    return _fill(rows, schema, _record_batches(shards))


def from_arrow(table: pa.Table, schema: DatasetSchema) -> Table:
    """The same from columns in memory (as `Encoder.encode` gives them). Without a label column labels are NaN."""
    return _fill(table.num_rows, schema, table.to_batches(max_chunksize=_READ_ROWS))


def _permutation(rows: int, seed: int, epoch: int) -> Tensor:
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> 1))
    return torch.randperm(rows, generator=generator)


def _record_batches(shards: list[Path]) -> Iterator[pa.RecordBatch]:
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            yield from file.iter_batches(batch_size=_READ_ROWS)


def _fill(rows: int, schema: DatasetSchema, batches: Iterable[pa.RecordBatch]) -> Table:
    """Copy record batches into tensors of their final size, so that reading needs no second copy of the split."""
    categorical, numeric = schema.names("categorical"), schema.names("numeric")
    ids = np.empty((rows, len(categorical)), dtype=np.int32)
    values = np.empty((rows, len(numeric)), dtype=np.float32)
    label = np.full(rows, np.nan, dtype=np.float32)
    pieces: dict[str, list[_Piece]] = {name: [] for name in schema.names("sequence")}
    first = 0
    for batch in batches:
        here = slice(first, first + batch.num_rows)
        for position, name in enumerate(categorical):
            ids[here, position] = batch.column(name).to_numpy(zero_copy_only=False)
        for position, name in enumerate(numeric):
            values[here, position] = batch.column(name).to_numpy(zero_copy_only=False)
        for name, parts in pieces.items():
            parts.append(_piece(batch.column(name)))
        if "label" in batch.schema.names:
            label[here] = batch.column("label").to_numpy(zero_copy_only=False)
        first = here.stop
    sequences = {name: _jagged(parts) for name, parts in pieces.items()}
    return Table(schema, torch.from_numpy(ids), torch.from_numpy(values), torch.from_numpy(label), sequences)


_Piece = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]


def _piece(column: Any) -> _Piece:
    """Values and lengths of a list column."""
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    values = np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.int32)
    return values, np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


def _jagged(parts: list[_Piece]) -> Jagged:
    values = np.concatenate([values for values, _ in parts] or [np.empty(0, np.int32)])
    lengths = np.concatenate([lengths for _, lengths in parts] or [np.empty(0, np.int64)])
    return Jagged(torch.from_numpy(values), torch.from_numpy(np.concatenate([[0], lengths.cumsum()])))


def _select_jagged(column: Jagged, rows: Tensor) -> Jagged:
    ids_BT, length_B = column.pad(rows)
    valid_BT = torch.arange(ids_BT.shape[1]) < length_B[:, None]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), length_B.cumsum(0)])
    return Jagged(ids_BT[valid_BT].int(), offsets)
