"""A small file of every format in its original layout, generated, with rows that must be rejected."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

ROWS = 400


@dataclass(frozen=True)
class Sample:
    name: str
    """File name, with the ending the format's files have."""
    lines: list[str]
    bad: dict[int, str] = field(default_factory=dict)
    """Line number (from 1) -> reason of its rejection"""
    fields: tuple[str, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, list[str]] = field(default_factory=dict)
    """Other files of the same folder"""
    rows: int = ROWS
    timed: bool = False
    """Whether the spec or the format says what orders the rows"""
    encoding: str = "utf-8"
    table: pl.DataFrame | None = None
    """Instead of lines: the rows of a Parquet file"""

    def content(self) -> bytes:
        if self.table is None:
            return "".join(f"{line}\n" for line in self.lines).encode(self.encoding)
        buffer = io.BytesIO()
        self.table.write_parquet(buffer)
        return buffer.getvalue()


def movielens() -> Sample:
    rng = np.random.default_rng(1)
    lines = [
        f"{rng.integers(1, 40)}::{rng.integers(1, 30)}::{rng.integers(1, 6)}::{978300000 + k}" for k in range(ROWS)
    ]
    lines.insert(2, "1::2::3")
    lines.insert(5, "1::2::five::978300000")
    users = [f"{user}::{'FM'[user % 2]}::25::{user % 7}::{10000 + user}" for user in range(1, 41)]
    movies = [f"{item}::Amélie {item} ({1990 + item})::Drama|Comedy" for item in range(1, 25)]  # some are unknown
    return Sample(
        "ratings.dat",
        lines,
        bad={3: "3 columns instead of 4", 6: "rating is not a number"},
        fields=("user", "item", "gender", "age", "occupation", "zip", "genres", "year"),
        spec={"task": "rating"},
        beside={"users.dat": users, "movies.dat": movies},
        timed=True,
        encoding="latin-1",
    )


def netflix() -> Sample:
    rng = np.random.default_rng(2)
    lines = ["1,3,2005-09-06"]
    for movie in range(1, 21):
        lines.append(f"{movie}:")
        lines += [f"{rng.integers(1, 99)},{rng.integers(1, 6)},2005-09-{rng.integers(10, 30)}" for _ in range(20)]
    lines.append("17,,2005-09-06")
    bad = {1: "no line 'movie:' above it", len(lines): "no label"}
    return Sample("combined_data_1.txt", lines, bad, fields=("user", "item"), spec={"task": "rating"}, timed=True)


def criteo() -> Sample:
    rng = np.random.default_rng(3)
    lines = []
    for k in range(ROWS):
        counts = ["" if rng.random() < 0.3 else str(rng.integers(-2, 5000)) for _ in range(13)]
        hashes = ["" if rng.random() < 0.2 else f"{rng.integers(0, 9):08x}" for _ in range(26)]
        lines.append("\t".join([str(k % 4 // 3), *counts, *hashes]))
    lines.insert(0, "\t".join(["1", *["x"] * 13, *["68fd1e64"] * 26]))
    lines.insert(7, "\t".join(["1", *["5"] * 13, *["68fd1e64"] * 25]))
    lines.insert(9, "\t".join(["", *["5"] * 13, *["68fd1e64"] * 26]))
    bad = {1: "I1 is not a number", 8: "39 columns instead of 40", 10: "no label"}
    names = (*(f"I{k}" for k in range(1, 14)), *(f"C{k}" for k in range(1, 27)))
    return Sample("train.txt", lines, bad, names)


def avazu() -> Sample:
    rng = np.random.default_rng(4)
    header = (
        "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,"
        "device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
    )
    names = ["hour_of_day", "weekday", *header.split(",")[3:]]
    lines = [header]
    for k in range(ROWS):
        values = [f"{rng.integers(0, 6):08x}" for _ in range(21)]
        lines.append(",".join([str(2**64 - 1 - k), str(int(k % 5 == 0)), f"1410{21 + k % 10}{k % 24:02d}", *values]))
    lines.insert(4, lines[1].replace(",14102100,", ",14109900,"))
    lines.insert(5, lines[1] + ",1")
    return Sample(
        "train.csv", lines, {5: "hour is not YYMMDDHH", 6: "25 columns instead of 24"}, tuple(names), timed=True
    )


def libfm() -> Sample:
    rng = np.random.default_rng(5)
    lines = [
        f"{(-1, 1)[k % 3 == 0]} {rng.integers(0, 20)}:1 {rng.integers(20, 40)}:1.0 40:0.{k % 9}" for k in range(ROWS)
    ]
    lines.insert(1, "1 3:1 21:1")
    lines.insert(2, "1 3:1 21;1 40:0.5")
    lines.insert(3, "1 3:0.5 21:1 40:0.5")
    bad = {2: "3 columns instead of 4", 3: "f2 is not index:value", 4: "f1 is not 1: declare it numeric"}
    return Sample("train.libfm", lines, bad, ("f1", "f2", "f3"), {"fields": {"f3": {"kind": "numeric"}}})


def pairs() -> Sample:
    rng = np.random.default_rng(6)
    lines = [f"{user} {item}" for user in range(1, 41) for item in rng.permutation(60)[:10]]
    lines.insert(3, "")
    lines.insert(5, "41 1 2 3 4")
    return Sample(
        "Beauty.txt",
        [*lines, ""],  # as the published file ends
        {6: "5 columns instead of 2"},
        ("user", "item", "history"),
        {"split": {"by": "leave_last_out"}},
        rows=2 * ROWS,
    )


def lists() -> Sample:
    rng = np.random.default_rng(7)
    lines = [" ".join(map(str, [user, *rng.permutation(60)[:10]])) for user in range(1, 41)]
    lines.insert(3, "99")
    return Sample(
        "Beauty_5core.txt",
        lines,
        {4: "a user without items"},
        ("user", "item", "history"),
        {"negatives": 2},
        rows=3 * ROWS,
    )


def csv() -> Sample:
    rng = np.random.default_rng(8)
    lines = ["user_id,item,price,clicked"]
    lines += [f'{rng.integers(1, 30)},"a, {rng.integers(9)}",{rng.random():.3f},{k % 2}' for k in range(ROWS)]
    lines.insert(1, '1,a "b" c,0.5,1')
    lines.insert(2, "1,2,0.5")
    lines.insert(4, "1,2,cheap,1")
    lines.insert(5, "1,2,0.5,7")
    bad = {
        3: "3 columns instead of 4",
        5: "price is not a number",
        6: "label is not 0 or 1 (label.threshold makes it so)",
    }
    return Sample("log.csv", lines, bad, ("user_id", "item", "price"), {"label": {"column": "clicked"}}, rows=ROWS + 1)


def parquet() -> Sample:
    rng = np.random.default_rng(9)
    table = pl.DataFrame(
        {
            "user_id": pl.Series(rng.integers(1, 30, ROWS + 2)),
            "price": pl.Series(rng.random(ROWS + 2)).set(pl.Series(rng.random(ROWS + 2) < 0.1), None),
            "when": pl.Series(["day", None] * (ROWS // 2 + 1)),
            "seen": pl.Series([[1, 2], [], None, [3]] * (ROWS // 4) + [[1], [2]]),
            "clicked": pl.Series([None, 2.0] + [0.0, 1.0] * (ROWS // 2)),
        }
    )
    return Sample(
        "part-0.parquet",
        [],
        {1: "no label", 2: "label is not 0 or 1 (label.threshold makes it so)"},
        ("user_id", "price", "when", "seen"),
        {"label": {"column": "clicked"}, "fields": {"seen": {"kind": "sequence", "of": "user_id"}}},
        table=table,
    )


NEXT = {"task": "next_item"}
"""Any format with groups in an order can do it: the spec says no more than the format needs."""


def pairs_next() -> Sample:
    return replace(pairs(), spec=NEXT, rows=ROWS)


def movielens_next() -> Sample:
    fields = (
        "user",
        "item",
        "gender",
        "age",
        "occupation",
        "zip",
        "history",
    )  # not genres and year: they tell the item
    return replace(movielens(), spec=NEXT, fields=fields, bad={3: "3 columns instead of 4"}, rows=ROWS + 1)


def netflix_next() -> Sample:
    sample = netflix()
    bad = {line: reason for line, reason in sample.bad.items() if reason != "no label"}
    return replace(sample, spec=NEXT, fields=("user", "item", "history"), bad=bad, rows=ROWS + 1)


def csv_next() -> Sample:
    rng = np.random.default_rng(10)
    lines = ["member,what,when,stars"]
    lines += [f"m{rng.integers(1, 30)},w{rng.integers(20)},{k},{1 + k % 5}" for k in range(ROWS)]
    lines.insert(2, "m1,,5,4")
    lines.insert(4, ",w3,5,4")
    lines.insert(6, "m1,w3,soon,4")
    spec = {
        **NEXT,
        "group": "member",
        "time": "when",
        "fields": {
            **{name: {"kind": "categorical"} for name in ("member", "what")},
            "seen": {"kind": "sequence", "of": "what", "max_len": 5},
        },
        "label": {"column": "stars", "threshold": 1},
    }
    bad = {3: "no what", 5: "no member", 7: "when is neither a number nor an ISO date"}
    return Sample("log.csv", lines, bad, ("member", "what", "seen"), spec, timed=True)


SAMPLES: dict[str, Callable[[], Sample]] = {
    "movielens": movielens,
    "netflix": netflix,
    "criteo": criteo,
    "avazu": avazu,
    "libfm": libfm,
    "sequence-pairs": pairs,
    "sequence-lists": lists,
    "sequence-next": pairs_next,
    "movielens-next": movielens_next,
    "netflix-next": netflix_next,
    "csv-next": csv_next,
    "csv": csv,
    "parquet": parquet,
}
"""The part of the name before "-" is the format."""
