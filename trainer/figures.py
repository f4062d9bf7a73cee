"""What a search saw, as plain data that the report draws without knowing the method (formats: docs/report.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]
Cell = str | int | float | None


def heatmap(
    title: str,
    note: str,
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    values: Sequence[Sequence[float | None]],
    marked: Sequence[tuple[int, int]] = (),
) -> Figure:
    """One number per row and column, both as (name of the axis, labels); None leaves a cell blank.

    Cells in `marked`, by their places (row, column), are outlined.
    """
    names = {"row_name": rows[0], "rows": list(rows[1]), "column_name": columns[0], "columns": list(columns[1])}
    return _figure("heatmap", title, note, **names, values=_short(values), marked=[list(place) for place in marked])


def scatter(title: str, note: str, x_name: str, y_name: str, points: Sequence[tuple[str, float, float]]) -> Figure:
    """Points, each with what it stands for: (words, x, y)."""
    shown = [{"name": name, "x": _short(x), "y": _short(y)} for name, x, y in points]
    return _figure("scatter", title, note, x_name=x_name, y_name=y_name, points=shown)


def curves(
    title: str, note: str, x: tuple[str, Sequence[float]], y_name: str, series: Mapping[str, Sequence[float | None]]
) -> Figure:
    """Lines over common places, None where one has no value: `x` is (name of the axis, places)."""
    lines = [{"name": name, "values": _short(values)} for name, values in series.items()]
    return _figure("curves", title, note, x_name=x[0], y_name=y_name, x=_short(x[1]), series=lines)


def table(title: str, note: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Figure:
    """Words and numbers."""
    return _figure("table", title, note, columns=list(columns), rows=_short(rows))


@dataclass(frozen=True)
class Alternative:
    """One option of a decision: its score, None if it has none, and whether it was taken."""

    name: str
    score: float | None
    taken: bool


@dataclass(frozen=True)
class Column:
    """A decision with its options, of which one or more are taken."""

    name: str
    options: Sequence[Alternative]


def stages(title: str, note: str, parts: Sequence[tuple[str, bool, Sequence[Column]]]) -> Figure:
    """Decisions side by side, stage below stage, each as (name, whether a greater score is better, decisions)."""
    shown = [
        {
            "name": name,
            "rising": rising,
            "columns": [
                {"name": column.name, "options": [vars(one) | {"score": _short(one.score)} for one in column.options]}
                for column in columns
            ],
        }
        for name, rising, columns in parts
    ]
    return _figure("stages", title, note, stages=shown)


def _figure(kind: str, title: str, note: str, **content: Any) -> Figure:
    return {"kind": kind, "title": title, "note": note, **content}


def _short(values: Any) -> Any:
    """Floats with five significant digits: figures travel with every trial."""
    if isinstance(values, float):
        return float(f"{values:.5g}")
    return values if values is None or isinstance(values, int | str) else [_short(value) for value in values]
