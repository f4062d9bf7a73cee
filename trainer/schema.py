"""What a dataset is, as seen by training and by serving: its fields, how each was encoded, and its splits.

`schema.json` beside the Parquet shards holds exactly one `DatasetSchema`. All statistics come from training rows.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

Task = Literal["ctr", "rating", "next_item"]
Split = Literal["train", "valid", "test"]
FieldKind = Literal["categorical", "numeric", "sequence"]
Transform = Literal["none", "log", "log_sq", "quantile", "standardize"]
TimePart = Literal["hour_of_day", "weekday"]
TIME = "__time"
"""Float64 column of the shards beside the fields: what orders the rows, if the dataset says what does."""


class Field(BaseModel):
    """One input column of the dataset.

    A categorical column holds int32 ids: 0 is unknown, 1.. are categories by falling training frequency.
    A numeric column holds float32 values after `transform`; NaN marks a missing value.
    A sequence column holds lists of ids of the field `of`, oldest first, at most `max_len` long.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: FieldKind
    column: str | None = None
    """The raw column, where its name is not the field's."""
    part: TimePart | None = None
    """Categorical: what the field takes of a time written YYMMDDHH (weekday: 1 is Monday)."""
    cardinality: int = 0
    """Categorical: number of table rows, row 0 (unknown) included. Sequence: that of the field `of`."""
    hash_buckets: int | None = None
    """Categorical: ids are 1 + hash(token) % hash_buckets, and there is no vocabulary file."""
    transform: Transform = "none"
    missing: bool = False
    """Numeric: training rows hold missing values, so encoders learn a parameter for "missing"."""
    statistics: tuple[float, ...] = ()
    """Numeric: what the transform needs (standardize: mean, std; quantile: the inner quantiles)."""
    of: str | None = None
    max_len: int = 0

    @property
    def raw(self) -> str:
        """The raw column that the field is read from."""
        return self.column or self.name


class DatasetSchema(BaseModel):
    """The contract between ingest and everything after it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    task: Task
    label: str
    """The column that is predicted; next_item: the raw column of `target`."""
    target: str | None = None
    """next_item: the categorical field that is predicted, of which the first sequence field holds earlier values."""
    fields: tuple[Field, ...]
    group: str | None = None
    """The field whose values group the rows for GAUC and for histories (the user), if there is one."""
    rows: dict[Split, int]
    rejected: int = 0
    label_mean: float
    """Mean of the label over training rows: the base rate (ctr) or mean rating; models start from it.

    next_item: every row is an event, and all three numbers are 1.
    """
    label_min: float
    label_max: float

    def field(self, name: str) -> Field:
        return next(field for field in self.fields if field.name == name)

    def names(self, kind: FieldKind) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields if field.kind == kind)

    @staticmethod
    def load(folder: Path) -> "DatasetSchema":
        return DatasetSchema.model_validate_json((folder / "schema.json").read_text())
