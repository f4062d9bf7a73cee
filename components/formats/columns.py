"""What a column of unknown meaning holds: a guess from its name and first values, for the user to correct."""

import re

import polars as pl

from components.dataset import DatasetSpec
from trainer.errors import UserError
from trainer.schema import FieldKind

_IDENTIFIER = re.compile(
    r"(^|_|\b)(id|ids|uid|user|item|movie|product|sku|ad|site|app|device|zip|city|country|region|code|category|type|group"
    r"|gender|occupation|weekday|hour|hash)(_|\b|$)|[a-z]id$",
    re.IGNORECASE,
)
_FEW = 20
"""Whole numbers with no more distinct values than this are taken for codes."""

_ODD = 0.01
"""Share of values that are no numbers in a column of numbers: bad rows, to be rejected later."""


def guess_kind(name: str, values: pl.Series) -> FieldKind | None:
    """The kind of a column, or None where no field can be made of it (dates, structs).

    Text is categorical unless its values read as numbers; whole numbers are codes if the name says so (`user_id`)
    or there are few of them.
    """
    if isinstance(values.dtype, pl.List | pl.Array):
        return "sequence"
    if values.dtype == pl.Boolean:
        return "categorical"
    if values.dtype == pl.String:
        return _kind_of_numbers(name, as_numbers(values))
    if values.dtype.is_numeric():
        return _kind_of_numbers(name, values.cast(pl.Float64))
    return "categorical" if isinstance(values.dtype, pl.Categorical | pl.Enum) else None


def label_column(spec: DatasetSpec, url: str, names: list[str]) -> str | None:
    """The label's column; None where every row is an event.

    Raises:
        UserError: it is not set, or not among the names.
    """
    column = spec.label.column
    if column is None and spec.task == "next_item" and spec.label.threshold is None:
        return None
    if column is None:
        raise UserError(f"{url}: dataset.label.column is not set; write which of {names} is predicted")
    if column not in names:
        raise UserError(f"{url}: there is no column {column!r} (dataset.label.column); there are {names}")
    return column


def as_numbers(text: pl.Series) -> pl.Series:
    """Float64 of a text column: null where it is empty or no number, and all null if that is more than the odd one."""
    stripped = text.str.strip_chars()
    numbers = stripped.cast(pl.Float64, strict=False)
    unreadable = (numbers.is_null() & (stripped != "")).sum()
    return numbers if unreadable <= _ODD * len(text) else numbers.clear(len(text))


def _kind_of_numbers(name: str, numbers: pl.Series) -> FieldKind:
    present = numbers.drop_nulls()
    if present.is_empty():
        return "categorical"
    if (present != present.floor()).any():
        return "numeric"
    return "categorical" if _IDENTIFIER.search(name) or present.n_unique() <= _FEW else "numeric"
