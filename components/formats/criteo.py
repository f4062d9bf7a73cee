"""Criteo display advertising: tab separated, no header; label, I1..I13 (counts), C1..C26 (hashes)."""

from collections.abc import Iterator

import polars as pl

from components.dataset import DatasetSpec
from components.formats.layout import Format, Layout
from components.formats.text import read_lines, split_columns
from components.rejects import Rejects
from trainer.schema import FieldKind

_NUMERIC = [f"I{number}" for number in range(1, 14)]
_CATEGORICAL = [f"C{number}" for number in range(1, 27)]


def describe(spec: DatasetSpec, urls: list[str]) -> Layout:
    kinds: dict[str, FieldKind] = {
        **dict.fromkeys(_NUMERIC, "numeric"),
        **dict.fromkeys(_CATEGORICAL, "categorical"),
    }
    return Layout(kinds, label="click", transform="log")


def rows(spec: DatasetSpec, layout: Layout, url: str, rejects: Rejects) -> Iterator[pl.DataFrame]:
    for lines in read_lines(url, rejects):
        yield split_columns(lines, "\t", ["click", *_NUMERIC, *_CATEGORICAL], rejects)


FORMAT = Format(describe, rows)
