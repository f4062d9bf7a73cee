"""MovieLens 1M and 10M: `ratings.dat` as `user::item::rating::time`, Latin-1.

`users.dat` and `movies.dat` (gzip or not) are joined when they lie beside the ratings. Where the next item is predicted
movies are not: what describes the item of a row gives it away.
Source: the README that GroupLens ships with the files.
"""

from collections.abc import Iterator

import polars as pl

from components.dataset import DatasetSpec
from components.formats.layout import Format, Layout
from components.formats.text import read_lines, split_columns
from components.rejects import LINE, TEXT, Rejects
from components.source import beside

_RATINGS = ["user", "item", "rating", "time"]
_USERS = ["user", "gender", "age", "occupation", "zip"]
_MOVIES = ["item", "title", "genres"]
_YEAR = r"\((\d{4})\)\s*$"


def describe(spec: DatasetSpec, urls: list[str]) -> Layout:
    names = ["user", "item"]
    if _users_url(urls[0]):
        names += _USERS[1:]
    if _movies_url(urls[0]) and spec.task != "next_item":
        names += ["genres", "year"]
    return Layout(dict.fromkeys(names, "categorical"), label="rating", time="time", group="user")


def rows(spec: DatasetSpec, layout: Layout, url: str, rejects: Rejects) -> Iterator[pl.DataFrame]:
    users, movies = _users(url, rejects), _movies(url, rejects)
    for lines in read_lines(url, rejects, "latin-1"):
        frame = split_columns(lines, "::", _RATINGS, rejects)
        if users is not None:
            frame = frame.join(users, on="user", how="left", maintain_order="left")
        if movies is not None:
            frame = frame.join(movies, on="item", how="left", maintain_order="left")
        yield frame


FORMAT = Format(describe, rows, files="ratings.dat*")


def _users_url(url: str) -> str | None:
    return beside(url, "users.dat", "users.dat.gz")


def _movies_url(url: str) -> str | None:
    return beside(url, "movies.dat", "movies.dat.gz")


def _users(url: str, rejects: Rejects) -> pl.DataFrame | None:
    users = _users_url(url)
    return None if users is None else _table(users, _USERS, rejects)


def _movies(url: str, rejects: Rejects) -> pl.DataFrame | None:
    movies = _movies_url(url)
    if movies is None:
        return None
    table = _table(movies, _MOVIES, rejects)
    return table.with_columns(year=pl.col("title").str.extract(_YEAR)).drop("title")


def _table(url: str, names: list[str], rejects: Rejects) -> pl.DataFrame:
    """A small file whose first column is a key: one row per key."""
    ratings, rejects.file = rejects.file, url
    frames = [split_columns(lines, "::", names, rejects) for lines in read_lines(url, rejects, "latin-1")]
    rejects.file = ratings
    schema = dict.fromkeys(names, pl.String)
    table = pl.concat([pl.DataFrame(schema=schema), *(frame.drop(LINE, TEXT) for frame in frames)])
    return table.unique(names[0], keep="first", maintain_order=True)
