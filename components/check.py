"""Every row is checked once: parsed columns become typed ones, and rows that cannot be read are rejected."""

import polars as pl

from components.dataset import DatasetSpec
from components.encode import as_token_lists, as_tokens
from components.plan import Plan, PlannedField
from components.rejects import LINE, TEXT, Rejects
from trainer.schema import TIME

LABEL, GROUP, TRUTH = "__label", "__group", "__truth"
"""Columns of a checked frame beside its fields and TIME: Float64, String, Float64."""


def checked(frame: pl.DataFrame, spec: DatasetSpec, plan: Plan, rejects: Rejects) -> pl.DataFrame:
    """The good rows: categorical String ("" is missing), numeric Float64, sequence List(String), LABEL, and TIME,
    GROUP, TRUTH where the plan has them."""
    frame = _label(frame, spec, plan, rejects)
    if spec.task == "next_item" and plan.label is not None:
        frame = frame.filter(pl.col(LABEL) == 1)
    frame = _all_numbers(frame, [field.column for field in plan.read if field.kind == "numeric"], rejects)
    if plan.time is not None:
        frame = _time(frame, plan.time, rejects)
    columns = [_column(frame, field) for field in plan.read]
    extra = [frame[name] for name in (LABEL, TIME) if name in frame.columns]
    if plan.group is not None:
        extra.append(as_tokens(frame[plan.group]).alias(GROUP))
    if plan.truth is not None:
        extra.append(frame[plan.truth].alias(TRUTH))
    rows = pl.DataFrame([*columns, *extra, *(frame[name] for name in (LINE, TEXT) if name in frame.columns)])
    if plan.group is not None and _uses_group(spec, plan):
        rows = rejects.drop(rows, rows[GROUP] == "", f"no {plan.group}")
    if plan.target is not None:
        rows = rejects.drop(rows, rows[plan.target.column] == "", f"no {plan.target.column}")
    return rows.drop(LINE, TEXT, strict=False)


def _uses_group(spec: DatasetSpec, plan: Plan) -> bool:
    return spec.split.by == "leave_last_out" or bool(plan.histories)


def _column(frame: pl.DataFrame, field: PlannedField) -> pl.Series:
    raw = frame[field.column]
    if field.kind == "numeric":
        return raw
    if field.kind == "categorical":
        return as_tokens(raw)
    if raw.dtype == pl.String:
        raw = raw.str.split(field.settings.separator).list.eval(pl.element().filter(pl.element() != ""))
    return as_token_lists(raw)


def _label(frame: pl.DataFrame, spec: DatasetSpec, plan: Plan, rejects: Rejects) -> pl.DataFrame:
    if plan.label is None:
        return frame.with_columns(pl.lit(1.0).alias(LABEL))
    frame = _numbers(frame.with_columns(_truth_values(frame[plan.label])), plan.label, LABEL, rejects)
    frame = rejects.drop(frame, frame[LABEL].is_null(), "no label")
    if spec.task == "rating":
        return frame
    if spec.label.threshold is not None:
        return frame.with_columns((pl.col(LABEL) >= spec.label.threshold).cast(pl.Float64))
    return rejects.drop(frame, ~frame[LABEL].is_in([0.0, 1.0]), "label is not 0 or 1 (label.threshold makes it so)")


def _truth_values(raw: pl.Series) -> pl.Series:
    """true and false as 1 and 0; numbers as they are."""
    if raw.dtype == pl.Boolean:
        return raw.cast(pl.Float64)
    if raw.dtype != pl.String or not raw.cast(pl.Float64, strict=False).null_count():
        return raw
    if raw.str.contains("(?i)^(true|false)$").any():
        return raw.str.replace("(?i)^true$", "1").str.replace("(?i)^false$", "0")
    return raw


def _all_numbers(frame: pl.DataFrame, names: list[str], rejects: Rejects) -> pl.DataFrame:
    """`_numbers` of these columns: all are read at once, and only those once more that hold something odd."""
    numbers = frame.select(pl.col(names).cast(pl.Float64, strict=False))
    odd = [name for name in names if _is_odd(frame[name], numbers[name])]
    frame = frame.with_columns(numbers.drop(odd).fill_nan(None))
    for name in odd:
        frame = _numbers(frame, name, name, rejects)
    return frame


def _is_odd(raw: pl.Series, numbers: pl.Series) -> bool:
    """Is there something that may have to be rejected: neither missing nor plainly a finite number?"""
    missing = int((raw == "").sum()) if raw.dtype == pl.String else 0
    return numbers.null_count() != raw.null_count() + missing or bool(numbers.is_infinite().any())


def _numbers(frame: pl.DataFrame, name: str, target: str, rejects: Rejects) -> pl.DataFrame:
    """Column `name` as Float64, called `target`: null where missing; unreadable and infinite ones are rejected."""
    raw = frame[name]
    numbers = raw.cast(pl.Float64, strict=False)
    if not _is_odd(raw, numbers):
        return frame.with_columns(numbers.fill_nan(None).alias(target))
    text = raw.dtype == pl.String
    numbers = (raw.str.strip_chars() if text else raw).cast(pl.Float64, strict=False)
    unreadable = numbers.is_null() & (raw.str.strip_chars() != "") if text else numbers.is_null() & raw.is_not_null()
    unreadable = unreadable.fill_null(False) | numbers.is_infinite().fill_null(False)
    frame = frame.with_columns(numbers.fill_nan(None).alias(target))
    return rejects.drop(frame, unreadable, f"{name} is not a number")


def _time(frame: pl.DataFrame, name: str, rejects: Rejects) -> pl.DataFrame:
    raw = frame[name]
    if raw.dtype.is_temporal():
        raw = raw.cast(pl.Datetime("us")).cast(pl.Int64)
    elif raw.dtype == pl.String and raw.str.contains(r"^\s*\d{4}-\d").any():
        raw = raw.str.to_datetime(time_unit="us", strict=False).cast(pl.Int64)
    time = (raw.str.strip_chars() if raw.dtype == pl.String else raw).cast(pl.Float64, strict=False).fill_nan(None)
    frame = frame.with_columns(time.alias(TIME))
    return rejects.drop(frame, time.is_null(), f"{name} is neither a number nor an ISO date")
