"""`dalil infer FILE`: looks at the first rows of a file and proposes a `dataset:` section to edit."""

import re
from typing import Any

import polars as pl
import yaml

from components.dataset import DatasetSpec, FormatName, LabelSpec
from components.formats import csv, parquet
from components.formats.columns import as_numbers, guess_kind
from components.formats.text import first_lines
from components.rejects import LINE, TEXT
from components.source import list_files, read_blocks
from trainer.schema import Task

_FORMATS: dict[FormatName, str] = {
    "movielens": r"^[^:]+::[^:]+::[\d.]+::\d+$",
    "netflix": r"^\d+:$",
    "criteo": r"^[01](\t-?\d*){13}(\t[0-9a-f]*){26}$",
    "avazu": r"^id,click,hour,C1,",
    "libfm": r"^[-+.\d]+( \d+:[-+.\deE]+)+\s*$",
    "sequence": r"^\d+( \d+)+\s*$",
}
"""What the first line of a format looks like; csv is anything else."""
_TASKS: dict[FormatName, Task] = {"movielens": "rating", "netflix": "rating", "sequence": "next_item"}

_UNKNOWN = "?"
_LABELS = ["label", "click", "clicked", "is_click", "target", "y", "rating", "stars", "score", "conversion", "purchase"]
_TIMES = ["timestamp", "time", "datetime", "date", "event_time", "unix_time", "ts"]
_GROUPS = ["user", "user_id", "userid", "uid", "customer", "customer_id", "member_id", "session_id"]


def infer(url: str) -> str:
    """YAML of a proposed `dataset:` section.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    first = list_files(url)[0]
    name = _format(first)
    proposal: dict[str, Any] = {"source": url, "format": name}
    if name in ("csv", "parquet"):
        proposal |= _table(first, name)
        note = "# Kinds are guesses from the first rows: whole numbers may be codes (categorical) or amounts (numeric)."
        if proposal["label"]["column"] == _UNKNOWN:
            note += "\n# No column is named like a label: write the one to predict at label.column, and its task."
    else:
        proposal |= {"task": _TASKS.get(name, "ctr")}
        note = "# Fields are known for this format; `dalil render` shows every default."
    DatasetSpec.model_validate(proposal)
    return f"{note}\ndataset:\n" + "".join(f"  {key}:{_yaml(value)}\n" for key, value in proposal.items())


def _format(url: str) -> FormatName:
    head = next(read_blocks(url, 4), b"")
    if head == b"PAR1":
        return "parquet"
    line = first_lines(url, encoding="latin-1")[0]
    return next((name for name, pattern in _FORMATS.items() if re.search(pattern, line)), "csv")


def _table(url: str, name: FormatName) -> dict[str, Any]:
    """task, label, time, group, fields and drop of a table with named columns."""
    guess = DatasetSpec(source=url, format=name, label=LabelSpec(column=_UNKNOWN))
    frame = parquet.sample(url) if name == "parquet" else csv.sample(guess, url).drop(LINE, TEXT, strict=False)
    label = _named(frame.columns, _LABELS)
    time, group = _named(frame.columns, _TIMES), _named(frame.columns, _GROUPS)
    fields, drop = _fields(frame.drop(column for column in (label, time) if column))
    task = "ctr" if label is None or set(_numbers(frame[label]).unique()) <= {0.0, 1.0} else "rating"
    proposal: dict[str, Any] = {"task": task, "label": {"column": label or _UNKNOWN}}
    proposal |= {key: column for key, column in {"time": time, "group": group}.items() if column}
    return proposal | {"fields": fields} | ({"drop": drop} if drop else {})


def _fields(frame: pl.DataFrame) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Settings by field, and columns that say nothing: one value in all rows, or another in every row."""
    fields: dict[str, dict[str, str]] = {}
    drop = []
    for column in frame.iter_columns():
        kind = guess_kind(column.name, column)
        if kind in (None, "sequence"):
            continue
        distinct = column.n_unique()
        if distinct == 1 or (kind == "categorical" and distinct == frame.height > 100):
            drop.append(column.name)
        elif kind == "numeric":
            fields[column.name] = {"kind": kind, "transform": "log" if _is_skewed(column) else "standardize"}
        else:
            fields[column.name] = {"kind": "categorical"}
    return fields, drop


def _is_skewed(column: pl.Series) -> bool:
    """Counts and amounts: not negative, the largest far above the usual."""
    values = _numbers(column).drop_nulls().to_numpy()
    return bool(values.min() >= 0 and values.max() > 20 * max(float(values.mean()), 1e-12))


def _numbers(column: pl.Series) -> pl.Series:
    return as_numbers(column) if column.dtype == pl.String else column.cast(pl.Float64, strict=False)


def _yaml(value: Any) -> str:
    """One entry: a field per line, everything else in line."""
    if isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values()):
        return "".join(f"\n    {_flow(name)}:{_yaml(inner)}" for name, inner in value.items())
    return " " + _flow(value)


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _named(columns: list[str], wanted: list[str]) -> str | None:
    """The first wanted name among the columns, in any case and with any separators."""
    plain = {re.sub(r"[^a-z]", "", column.lower()): column for column in reversed(columns)}
    return next((plain[key] for name in wanted if (key := name.replace("_", "")) in plain), None)
