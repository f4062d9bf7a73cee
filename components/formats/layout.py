"""What every format tells ingest: which columns its rows have, and how to read them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import polars as pl

from components.dataset import DatasetSpec
from components.rejects import Rejects
from trainer.schema import FieldKind, TimePart, Transform


@dataclass(frozen=True)
class Layout:
    """The columns of a format's rows, in order, and what they mean unless the user says otherwise."""

    kinds: dict[str, FieldKind]
    """Every column that may be a field."""
    label: str | None
    """None: the rows have none."""
    others: tuple[str, ...] = ()
    """Columns that cannot be fields but may be the time."""
    time: str | None = None
    group: str | None = None
    transform: Transform = "standardize"
    """Of numeric columns."""
    parts: dict[str, tuple[str, TimePart]] = field(default_factory=dict)
    """Fields that are a part of a time: name -> (column, part)."""
    histories: dict[str, str] = field(default_factory=dict)
    """Sequence fields that ingest makes: name -> the field whose earlier values they hold."""
    truth: str | None = None
    """Generated rows: the column that holds the best possible prediction."""


@dataclass(frozen=True)
class Format:
    """One file format: two functions and a pattern, listed in `components.formats.FORMATS`."""

    describe: Callable[[DatasetSpec, list[str]], Layout]
    """(spec, URLs of the files) -> Layout"""
    rows: Callable[[DatasetSpec, Layout, str, Rejects], Iterator[pl.DataFrame]]
    """(spec, layout, URL of one file, rejects) -> frames of a few megabytes with LINE (and TEXT) and all columns.

    Columns are text ("" is missing) or typed; rows that cannot be cut into columns go to the rejects.
    """
    files: str = "*"
    """Which files of a folder belong to it."""
