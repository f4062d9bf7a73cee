"""Rows in memory: one dataset split as contiguous tensors, and the batches cut from it.

Of several processes each reads and holds its share of a split, a run of rows. Which rows make up which batch does not
depend on the number of processes (`Lanes`), so a training goes on with more or fewer as if nothing had happened.

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

from trainer.errors import UserError
from trainer.schema import TIME, DatasetSchema, Split

_READ_ROWS = 262_144
_LANE_ROWS, _MOST_LANES = 16, 1024
"""Rows of a lane at least, and lanes of a split at most (so many processes can share it)."""


@dataclass(frozen=True)
class Batch:
    """B rows as a model takes them. Columns are in the order of `DatasetSchema.names(kind)`."""

    categorical: Tensor
    """(B, n_categorical) int64 ids; 0 is unknown."""
    numeric: Tensor
    """(B, n_numeric) float32; NaN is missing."""
    label: Tensor
    """(B,) float32, NaN where the rows carry no label; next_item: the ids of the target, int64."""
    sequences: dict[str, Tensor] = field(default_factory=dict)
    """Field -> (B, T) int64 ids, oldest first, padded on the right with 0; T is the batch's longest, at least 1."""
    lengths: dict[str, Tensor] = field(default_factory=dict)
    """Field -> (B,) int64 number of valid steps, 0..T."""
    of: int = 0
    """Rows of the whole batch, of which this process has B."""

    @property
    def size(self) -> int:
        return self.label.shape[0]

    def at(self, place_N: Tensor) -> "Batch":
        """The rows at these places, (N,) int64, as part of the same whole batch."""
        return replace(
            self,
            categorical=self.categorical.index_select(0, place_N),
            numeric=self.numeric.index_select(0, place_N),
            label=self.label.index_select(0, place_N),
            sequences={name: ids.index_select(0, place_N) for name, ids in self.sequences.items()},
            lengths={name: lengths.index_select(0, place_N) for name, lengths in self.lengths.items()},
        )

    def to(self, device: torch.device) -> "Batch":
        """The same rows there; on a GPU they arrive while it computes."""
        if self.label.device == device:
            return self

        def moved(value: Tensor) -> Tensor:
            value = value.pin_memory() if device.type == "cuda" else value
            return value.to(device, non_blocking=True)

        return replace(
            self,
            categorical=moved(self.categorical),
            numeric=moved(self.numeric),
            label=moved(self.label),
            sequences={name: moved(ids) for name, ids in self.sequences.items()},
            lengths={name: moved(lengths) for name, lengths in self.lengths.items()},
        )


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


class Lanes:
    """How a pass over a split's rows is cut into batches, whoever holds which of them.

    The rows stand in runs of nearly equal length, the lanes, and a pass takes one row of every lane in turn, from each
    lane in a random order of its own. A batch is thus the next `batch_size` rows of this pass, and spread evenly over
    the lanes, so that a process which holds some neighbouring lanes has its even part of every batch. The turn of lane
    `l` is `l` with its bits reversed (van der Corput's sequence), which spreads any few consecutive turns evenly too.
    """

    def __init__(self, total: int) -> None:
        """`total`: rows of the split."""
        self.total = total
        bits = max(min(total // _LANE_ROWS, _MOST_LANES), 1).bit_length() - 1
        self.count = 1 << bits
        lanes = np.arange(self.count)
        self.turn_L = sum(((lanes >> bit) & 1) << (bits - 1 - bit) for bit in range(bits)) + np.zeros_like(lanes)
        """The turn of each lane, 0..count - 1."""
        size_L = total // self.count + (self.turn_L < total % self.count)
        self.first_L = np.concatenate([[0], size_L.cumsum()])
        """The first row of each lane, and `total`."""

    def share(self, rank: int, world: int) -> tuple[slice, slice]:
        """The lanes and the rows of one process.

        Raises UserError if there are fewer lanes than processes.
        """
        if world > self.count:
            raise UserError(f"{self.total} rows are too few to be shared by {world} processes; lower train.processes")
        lanes = slice(self.count * rank // world, self.count * (rank + 1) // world)
        return lanes, slice(int(self.first_L[lanes.start]), int(self.first_L[lanes.stop]))

    def order(self, lanes: slice, seed: int, epoch: int) -> Tensor:
        """The rows of some lanes in the order of a pass, counted from the first lane's first row."""
        first, last = self.first_L[lanes.start], self.first_L[lanes.stop]
        keys = _keys(np.arange(first, last, dtype=np.uint64), seed, epoch)
        longest = -(-self.total // self.count)
        # A lane may lack the last row; the greatest key stands for it, and is cut off below.
        key_LK = np.full((lanes.stop - lanes.start, longest), np.iinfo(np.uint64).max)
        held_LK = np.arange(longest) < np.diff(self.first_L[lanes.start : lanes.stop + 1])[:, None]
        key_LK[held_LK] = keys
        row_LK = key_LK.argsort(axis=1) + (self.first_L[lanes] - first)[:, None]
        in_turn = np.argsort(self.turn_L[lanes])
        return torch.from_numpy(row_LK[in_turn].T[held_LK[in_turn].T])

    def before(self, lanes: slice, position: int) -> int:
        """How many of the first `position` rows of a pass are in these lanes."""
        rounds, turns = divmod(min(position, self.total), self.count)
        turn_L = self.turn_L[lanes]
        return rounds * len(turn_L) + int((turn_L < turns).sum())


def _keys(row_N: npt.NDArray[np.uint64], seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    """Random numbers that depend on (row, seed, epoch) alone."""
    start = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    # The greatest number is left to places without a row.
    result: npt.NDArray[np.uint64] = np.minimum(mixed(row_N, start), np.iinfo(np.uint64).max - 1)
    return result


def mixed(number_N: npt.NDArray[np.uint64], start: int = 0) -> npt.NDArray[np.uint64]:
    """A random number for each number: SplitMix64's output function (Steele et al., 2014)."""
    key_N = number_N * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key_N = (key_N ^ (key_N >> np.uint64(shift))) * np.uint64(factor)
    result: npt.NDArray[np.uint64] = key_N ^ (key_N >> np.uint64(31))
    return result


@dataclass(frozen=True)
class Table:
    """The rows of one split that this process holds, one contiguous tensor per kind of field."""

    schema: DatasetSchema
    categorical: Tensor
    """(N, n_categorical) int32"""
    numeric: Tensor
    """(N, n_numeric) float32"""
    label: Tensor
    """(N,) float32; next_item: the ids of the target, int64"""
    sequences: dict[str, Jagged]
    process: tuple[int, int] = (0, 1)
    """The rank whose share this is, and the number of processes."""
    all_rows: int | None = None
    """Rows of the split, where this is a share of them."""

    @property
    def rows(self) -> int:
        """Rows held here."""
        return self.label.shape[0]

    @property
    def total(self) -> int:
        """Rows of the split, over all processes."""
        return self.rows if self.all_rows is None else self.all_rows

    @property
    def first(self) -> int:
        """The position in the split of the first row held here."""
        _, rows = Lanes(self.total).share(*self.process)
        return int(rows.start)

    def visits(self, fields: Iterable[str], held: range | Tensor) -> Tensor:
        """(len(held),) float32: how often each of these ids occurs here in categorical or sequence `fields`."""
        if isinstance(held, Tensor):
            return self.visits(fields, range(int(held.max()) + 1))[held]
        columns = {name: column for column, name in enumerate(self.schema.names("categorical"))}
        counts = torch.zeros(len(held))
        for name in fields:
            ids = self.categorical[:, columns[name]] if name in columns else self.sequences[name].values
            counts += torch.bincount(ids, minlength=held.stop)[held.start : held.stop]
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
            of=rows.shape[0],
        )

    def steps(self, batch_size: int) -> int:
        """Number of batches of one pass."""
        return -(-self.total // batch_size)

    def batches(self, batch_size: int, *, seed_epoch: tuple[int, int] | None = None, start: int = 0) -> Iterator[Batch]:
        """This process's part of the batches of one pass over the rows of all.

        Args:
            batch_size: rows per batch over all processes; the last batch may be smaller.
            seed_epoch: (seed, epoch) of the order, the same on every process; None keeps the rows' order.
            start: number of batches to leave out at the beginning.
        """
        lanes = Lanes(self.total)
        mine, _ = lanes.share(*self.process)
        order_N = torch.arange(self.rows) if seed_epoch is None else lanes.order(mine, *seed_epoch)

        def held(position: int) -> int:
            return position if seed_epoch is None else lanes.before(mine, position)

        for first in range(start * batch_size, self.total, batch_size):
            last = min(first + batch_size, self.total)
            yield replace(self.take(order_N[held(first) : held(last)]), of=last - first)

    def share(self, rank: int, world: int) -> "Table":
        """What `load` would have given to one of so many processes."""
        _, rows = Lanes(self.rows).share(rank, world)
        part = self.select(torch.arange(rows.start, rows.stop))
        return replace(part, process=(rank, world), all_rows=self.rows)

    def select(self, rows: Tensor) -> "Table":
        """A smaller table of these positions (n,) int64."""
        return replace(
            self,
            categorical=self.categorical[rows],
            numeric=self.numeric[rows],
            label=self.label[rows],
            sequences={name: _select_jagged(column, rows) for name, column in self.sequences.items()},
            process=(0, 1),
            all_rows=None,
        )


def load(folder: Path, split: Split, schema: DatasetSchema, process: tuple[int, int] = (0, 1)) -> Table:
    """Read the Parquet shards of `split` in a dataset folder; rows are in the order of the shards' names.

    Of several processes (`process`: rank and number) each reads only the row groups that hold its share.
    """
    shards = sorted((folder / split).glob("*.parquet"))
    total = sum(pq.read_metadata(shard).num_rows for shard in shards)
    _, rows = Lanes(total).share(*process)
    columns = [field.name for field in schema.fields] + ([] if schema.target else ["label"])
    table = _fill(rows.stop - rows.start, schema, _record_batches(shards, rows, columns))
    return replace(table, process=process, all_rows=total)


def in_time_order(table: Table, folder: Path, split: Split) -> Table:
    """The rows of a split as they came: sorted by time, rows of one time and rows without times as they are.

    Raises UserError where several processes share the rows, for none of them sees what came before.
    """
    if table.process[1] > 1:
        raise UserError("rows in time order are for one process: leave out train.processes")
    shards = sorted((folder / split).glob("*.parquet"))
    if not shards or TIME not in pq.read_schema(shards[0]).names:
        return table
    time_N = pq.read_table(shards, columns=[TIME])[TIME].to_numpy()
    return table.select(torch.from_numpy(time_N.argsort(kind="stable")))


def from_arrow(table: pa.Table, schema: DatasetSchema) -> Table:
    """The same from columns in memory (as `Encoder.encode` gives them). Without a label column labels are NaN."""
    return _fill(table.num_rows, schema, table.to_batches(max_chunksize=_READ_ROWS))


def _record_batches(shards: list[Path], rows: slice, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """These rows of all shards, a row group at a time."""
    first = 0
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                start, stop = max(rows.start - first, 0), min(rows.stop - first, size)
                if start < stop:
                    yield from file.read_row_group(group, columns).slice(start, stop - start).to_batches(_READ_ROWS)
                first += size


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
    table = Table(schema, torch.from_numpy(ids), torch.from_numpy(values), torch.from_numpy(label), sequences)
    return table if schema.target is None else replace(table, label=table.ids(schema.target).long())


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
