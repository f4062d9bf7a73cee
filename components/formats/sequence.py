"""Event sequences without labels: SASRec's `user item` pairs, or a line `user item item ...` per user, oldest first.

Every event becomes a row; ingest adds the user's earlier items as `history`. For task ctr events have label 1, and
ingest draws negatives with label 0.
"""

from collections.abc import Iterator

import polars as pl

from components.dataset import HISTORY, ITEM, DatasetSpec
from components.formats.layout import Format, Layout
from components.formats.text import first_lines, one_space, read_lines, split_columns
from components.rejects import TEXT, Rejects

_LOOK = 1000
"""Lines that decide between pairs and lists."""


def describe(spec: DatasetSpec, urls: list[str]) -> Layout:
    return Layout({"user": "categorical", ITEM: "categorical"}, label="event", group="user", histories={HISTORY: ITEM})


def rows(spec: DatasetSpec, layout: Layout, url: str, rejects: Rejects) -> Iterator[pl.DataFrame]:
    words = [len(line.split()) for line in first_lines(url, _LOOK)]
    pairs = words.count(2) > len(words) / 2  # bad lines are in both
    for lines in read_lines(url, rejects):
        frame = _pairs(lines, rejects) if pairs else _lists(lines, rejects)
        yield frame.with_columns(event=pl.lit("1"))


FORMAT = Format(describe, rows)


def _pairs(lines: pl.DataFrame, rejects: Rejects) -> pl.DataFrame:
    return split_columns(one_space(lines), " ", ["user", "item"], rejects)


def _lists(lines: pl.DataFrame, rejects: Rejects) -> pl.DataFrame:
    lines = one_space(lines)
    lines = rejects.drop(lines, ~lines[TEXT].str.contains(" ", literal=True), "a user without items")
    words = lines[TEXT].str.split(" ")
    return lines.with_columns(user=words.list.first(), item=words.list.slice(1)).explode("item")
