"""Raw columns to the ids and numbers that models take: the same code writes the shards and serves requests."""

import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from trainer.errors import UserError
from trainer.schema import DatasetSchema, Field, TimePart, Transform

Floats = npt.NDArray[np.float64]
InputType = Literal["string", "double", "list"]

_INPUT_TYPES: dict[str, InputType] = {"categorical": "string", "numeric": "double", "sequence": "list"}


class Vocabulary:
    """The categories of a field: token -> 1, 2, ... in the order given; 0 for any other.

    A binary search over 64-bit hashes: unlike a join it costs nothing per call for the table's size.
    """

    def __init__(self, tokens: pl.Series) -> None:
        self.tokens = tokens
        hashes = tokens.hash(0).to_numpy()
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        return len(self.tokens)

    def ids(self, tokens: pl.Series) -> npt.NDArray[np.int32]:
        """(N,) tokens, none null -> (N,) ids"""
        if len(self) == 0:
            return np.zeros(len(tokens), np.int32)
        place = np.searchsorted(self._hashes, tokens.hash(0).to_numpy())
        candidate = self._order[np.minimum(place, len(self) - 1)]
        same = (self.tokens[candidate] == tokens).to_numpy()
        return np.where(same, candidate + 1, 0).astype(np.int32)


class Encoder:
    """Encodes frames as a dataset's shards are encoded.

    `inputs` names the raw columns and what they hold. Unknown categories become 0; a missing one has an id of its own
    where training rows had it (its token is ""), else 0. A missing number stays NaN where training rows had missing
    ones; elsewhere no model has learned what it means, and 0 stands in.
    """

    def __init__(self, folder: Path) -> None:
        """Args: folder: what ingest wrote, or at least its schema.json and vocabulary/."""
        schema = DatasetSchema.load(folder)
        self._set(schema.fields, read_vocabularies(folder, schema.fields))

    @classmethod
    def of(
        cls, fields: tuple[Field, ...], vocabularies: dict[str, Vocabulary], texts: dict[str, pl.Series]
    ) -> "Encoder":
        """Args: texts: values by number, of the raw columns that will come as numbers (`Stage`)."""
        encoder = cls.__new__(cls)
        encoder._set(fields, vocabularies)
        encoder._by_number = {
            field.name: encoder._ids(field, taken(texts[field.raw], field.part))
            for field in fields
            if field.kind == "categorical" and field.raw in texts
        }
        return encoder

    def _set(self, fields: tuple[Field, ...], vocabularies: dict[str, Vocabulary]) -> None:
        self._fields = {field.name: field for field in fields}
        self._vocabularies = vocabularies
        self._by_number: dict[str, npt.NDArray[np.int32]] = {}
        self.inputs: dict[str, InputType] = {field.raw: _INPUT_TYPES[field.kind] for field in fields}

    def encode(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Raw columns (any order, others ignored) -> Int32, Float32 and List(Int32) columns in the schema's order.

        Raises:
            UserError: a column is missing.
        """
        absent = [name for name in self.inputs if name not in frame.columns]
        if absent:
            raise UserError(f"the rows lack the columns {absent}; give {list(self.inputs)}")
        return pl.DataFrame([self._column(field, frame[field.raw]) for field in self._fields.values()])

    def _column(self, field: Field, raw: pl.Series) -> pl.Series:
        if field.name in self._by_number:
            return pl.Series(field.name, self._by_number[field.name].take(raw.to_numpy()))
        if field.kind == "categorical":
            return pl.Series(field.name, self._ids(field, taken(as_tokens(raw), field.part)))
        if field.kind == "numeric":
            return pl.Series(field.name, self._numbers(field, raw))
        return self._lists(field, raw)

    def _ids(self, field: Field, tokens: pl.Series) -> npt.NDArray[np.int32]:
        if field.hash_buckets is not None:
            return (1 + stable_hash(tokens) % field.hash_buckets).astype(np.int32)
        return self._vocabularies[field.name].ids(tokens)

    def _numbers(self, field: Field, raw: pl.Series) -> npt.NDArray[np.float32]:
        values = transform(raw.cast(pl.Float64, strict=False).to_numpy(), field.transform, field.statistics)
        return (values if field.missing else np.nan_to_num(values, nan=0.0)).astype(np.float32)

    def _lists(self, field: Field, raw: pl.Series) -> pl.Series:
        assert field.of is not None
        lists = as_token_lists(raw).list.tail(field.max_len)
        lengths = lists.list.len().fill_null(0).to_numpy()
        tokens = lists.explode(empty_as_null=False, keep_nulls=False).fill_null("")
        ids = self._ids(self._fields[field.of], tokens)
        return jagged(field.name, pl.Series(ids), lengths)


def read_vocabularies(folder: Path, fields: tuple[Field, ...]) -> dict[str, Vocabulary]:
    """Field -> its vocabulary, for the categorical fields that have one."""
    with_one = (field.name for field in fields if field.kind == "categorical" and field.hash_buckets is None)
    return {name: read_vocabulary(folder, name) for name in with_one}


def read_vocabulary(folder: Path, name: str) -> Vocabulary:
    """Of one field that has one."""
    return Vocabulary(pl.read_parquet(folder / "vocabulary" / f"{name}.parquet")["token"])


def as_tokens(raw: pl.Series) -> pl.Series:
    """Text of each value, "" where it is missing. 3.0 is "3": a gap turns a table's whole numbers into floats."""
    if raw.dtype.is_float():
        whole = raw.cast(pl.Int64, strict=False)
        text = pl.select(pl.when(whole == raw).then(whole.cast(pl.String)).otherwise(raw.cast(pl.String)))
        return text.to_series().set(raw.is_nan().fill_null(False), "").fill_null("").alias(raw.name)
    tokens = raw.cast(pl.String)
    return tokens.fill_null("") if tokens.null_count() else tokens


def taken(tokens: pl.Series, part: TimePart | None) -> pl.Series:
    """The `part` of times written YYMMDDHH, "" where one cannot be read; without a part the tokens themselves."""
    if part is None:
        return tokens
    whole = pl.select(pl.when(tokens.str.contains(r"^\d{8}$")).then(tokens + "00")).to_series()
    time = whole.str.to_datetime("%y%m%d%H%M", strict=False)
    number = time.dt.hour() if part == "hour_of_day" else time.dt.weekday()
    return number.cast(pl.String).fill_null("").alias(tokens.name)


def as_token_lists(raw: pl.Series) -> pl.Series:
    """List(String), "" where an element is missing."""
    if raw.dtype == pl.List(pl.String):
        return raw
    if not isinstance(raw.dtype, pl.List):
        return pl.Series(raw.name, [[]] * len(raw), dtype=pl.List(pl.String))
    lengths = raw.list.len().fill_null(0).to_numpy()
    return jagged(raw.name, as_tokens(raw.explode(empty_as_null=False, keep_nulls=False)), lengths)


def jagged(name: str, values: pl.Series, lengths: npt.NDArray[np.generic]) -> pl.Series:
    """A list column: row i takes the next `lengths[i]` of `values`."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pl.Series(name, pa.LargeListArray.from_arrays(offsets, values.to_arrow()))


def stable_hash(tokens: pl.Series) -> npt.NDArray[np.int64]:
    """CRC-32 of each token: the same on every machine and version, unlike the hashes of data libraries."""
    return np.fromiter((zlib.crc32(token.encode()) for token in tokens), np.int64, count=len(tokens))


def transform(values: Floats, kind: Transform, statistics: tuple[float, ...]) -> Floats:
    """The transform of a numeric field; NaN stays NaN.

    log: sign(x) log(1 + |x|). log_sq: floor(log(x)^2) where x > 2 (the Criteo winners' rule), x elsewhere.
    quantile: the share of inner quantiles below x, in [0, 1]. standardize: (x - mean) / std.
    """
    if kind == "log":
        logarithms = np.abs(values)
        return np.copysign(np.log1p(logarithms, out=logarithms), values, out=logarithms)
    if kind == "log_sq":
        return np.where(values > 2, np.floor(np.log(np.maximum(values, 2)) ** 2), values)
    if kind == "standardize":
        mean, deviation = statistics
        return (values - mean) / deviation
    if kind == "quantile":
        below = np.searchsorted(statistics, values, side="left") + np.searchsorted(statistics, values, side="right")
        return np.where(np.isnan(values), np.nan, below / (2 * len(statistics)))
    return values
