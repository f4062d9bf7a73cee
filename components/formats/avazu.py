"""Avazu click logs: comma separated with header, 24 columns, all categorical.

The id is left out (it exceeds int64 and says nothing); `hour` (YYMMDDHH, UTC) is read as two fields, `hour_of_day`
and `weekday` (1 is Monday), and orders the rows.
"""

from collections.abc import Iterator

import polars as pl

from components.dataset import DatasetSpec
from components.encode import taken
from components.formats.layout import Format, Layout
from components.formats.text import first_lines, read_lines, split_columns
from components.rejects import LINE, Rejects
from trainer.errors import UserError
from trainer.schema import TimePart

_HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
    "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)
_COLUMNS = _HEADER.split(",")
_PARTS: dict[str, tuple[str, TimePart]] = {"hour_of_day": ("hour", "hour_of_day"), "weekday": ("hour", "weekday")}
_FIELDS = [*_PARTS, *_COLUMNS[3:]]


def describe(spec: DatasetSpec, urls: list[str]) -> Layout:
    for url in urls:
        if first_lines(url)[0] != _HEADER:
            raise UserError(f"{url}:1: the header is not Avazu's 'id,click,hour,C1,...,C21'; use format: csv")
    return Layout(dict.fromkeys(_FIELDS, "categorical"), label="click", time="hour", parts=_PARTS)


def rows(spec: DatasetSpec, layout: Layout, url: str, rejects: Rejects) -> Iterator[pl.DataFrame]:
    for lines in read_lines(url, rejects):
        frame = split_columns(lines.filter(pl.col(LINE) > 1), ",", _COLUMNS, rejects)
        yield rejects.drop(frame, taken(frame["hour"], "hour_of_day") == "", "hour is not YYMMDDHH")


FORMAT = Format(describe, rows)
