"""Delimited text: a header line names the columns, or the spec does; values may stand in double quotes."""

from collections import Counter
from collections.abc import Iterator

import polars as pl

from components.dataset import DatasetSpec
from components.formats.columns import guess_kind, label_column
from components.formats.layout import Format, Layout
from components.formats.text import first_lines, read_lines, split_header, split_quoted
from components.rejects import Rejects
from trainer.errors import UserError
from trainer.schema import FieldKind

_DELIMITERS = [",", "\t", ";", "|", "::", " "]
_SAMPLE = 20_000


def describe(spec: DatasetSpec, urls: list[str]) -> Layout:
    names = _names(spec, urls[0])
    for url in urls[1:]:
        if _names(spec, url) != names:
            raise UserError(f"{url}:1: its columns {_names(spec, url)} differ from {names} in {urls[0]}")
    return Layout(_kinds(spec, urls[0]), label=label_column(spec, urls[0], names))


def rows(spec: DatasetSpec, layout: Layout, url: str, rejects: Rejects) -> Iterator[pl.DataFrame]:
    separator, names = delimiter(spec, url), _names(spec, url)
    header = not spec.columns
    for lines in read_lines(url, rejects):
        if header and lines.height:
            lines, header = lines.slice(1), False
        yield split_quoted(lines, separator, names, rejects)


def sample(spec: DatasetSpec, url: str) -> pl.DataFrame:
    """The first rows as text, LINE and TEXT included."""
    layout = Layout({}, label="")
    return next((frame.head(_SAMPLE) for frame in rows(spec, layout, url, Rejects(None))), pl.DataFrame())


def delimiter(spec: DatasetSpec, url: str) -> str:
    """The one that is set, or that cuts the first line into most columns."""
    line = first_lines(url)[0]
    return spec.delimiter or max(_DELIMITERS, key=line.count)


FORMAT = Format(describe, rows)


def _names(spec: DatasetSpec, url: str) -> list[str]:
    if spec.columns:
        return spec.columns
    names = [name.strip() for name in split_header(first_lines(url)[0], delimiter(spec, url))]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{url}:1: column {twice[0]!r} stands there twice; rename one")
    return names


def _kinds(spec: DatasetSpec, url: str) -> dict[str, FieldKind]:
    frame = sample(spec, url)
    kinds: dict[str, FieldKind] = {}
    for name in _names(spec, url):
        declared = spec.fields[name].kind if name in spec.fields else None
        kind = declared or guess_kind(name, frame[name])
        if kind is not None:
            kinds[name] = kind
    return kinds
