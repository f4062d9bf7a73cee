"""Netflix prize: `combined_data_*.txt`, a line `movie:` and under it lines `customer,rating,date`."""

from collections.abc import Iterator

import polars as pl

from components.dataset import DatasetSpec
from components.formats.layout import Format, Layout
from components.formats.text import read_lines, split_columns
from components.rejects import TEXT, Rejects

_MOVIE = r"^(\d+):$"


def describe(spec: DatasetSpec, urls: list[str]) -> Layout:
    return Layout({"user": "categorical", "item": "categorical"}, label="rating", time="date", group="user")


def rows(spec: DatasetSpec, layout: Layout, url: str, rejects: Rejects) -> Iterator[pl.DataFrame]:
    movie = ""
    for lines in read_lines(url, rejects):
        item = lines[TEXT].str.extract(_MOVIE)
        frame = lines.with_columns(item=item.fill_null(strategy="forward").fill_null(movie)).filter(item.is_null())
        movie = str(item.drop_nulls().last() or movie)  # a movie's ratings may go on in the next block
        frame = rejects.drop(frame, frame["item"] == "", "no line 'movie:' above it")
        yield split_columns(frame, ",", ["user", "rating", "date"], rejects)


FORMAT = Format(describe, rows, files="combined_data_*")
