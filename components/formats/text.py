"""Lines of a text file as columns, vectorised, with the line number of every row."""

import csv
from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from components.rejects import LINE, TEXT, Rejects
from components.source import BLOCK, ahead, read_blocks
from trainer.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_LINE = 1 << 26
_LOOK = 1 << 16
_SHARE = 1 << 14
"""Rows that are cut into columns at a time: few enough to stay in a core's cache."""
_BEYOND = "__beyond"
"""What a row has after the columns it should have."""


def read_lines(url: str, rejects: Rejects, encoding: str = "utf-8", size: int = BLOCK) -> Iterator[pl.DataFrame]:
    """Frames of LINE and TEXT, without blank lines; lines that are not in the encoding are rejected.

    Raises:
        UserError: the file cannot be read, or is no text file.
    """
    line = 1
    for block in ahead(_whole_lines(url, size)):
        frame, count = _frame(block, line, encoding, rejects)
        line += count
        yield frame.filter(pl.col(TEXT) != "")


def split_columns(frame: pl.DataFrame, separator: str, names: list[str], rejects: Rejects) -> pl.DataFrame:
    """Cut TEXT into columns of text; rows with another number of columns are rejected."""
    columns = _cut(frame.select(TEXT), separator, [*names, _BEYOND])
    fits = columns[names[-1]].is_not_null() & columns[_BEYOND].is_null()
    if not fits.all():
        found = frame[TEXT].str.count_matches(separator, literal=True) + 1
        frame = reject_other_widths(frame, found, len(names), rejects)
        columns = columns.filter(fits)
    return pl.concat([frame, columns.drop(_BEYOND)], how="horizontal")


def split_quoted(frame: pl.DataFrame, separator: str, names: list[str], rejects: Rejects) -> pl.DataFrame:
    """`split_columns` for CSV: values may stand in double quotes. A row is one line."""
    quoted = frame[TEXT].str.contains('"', literal=True)
    if not quoted.any() or len(separator) > 1:
        return split_columns(frame, separator, names, rejects)
    rows = [_parse_quoted(text, separator) for text in frame[TEXT].filter(quoted)]
    broken = pl.Series([row is None for row in rows], dtype=pl.Boolean)
    inside = rejects.drop(frame.filter(quoted), broken, "misplaced quote")
    whole = [row for row in rows if row is not None]
    widths = pl.Series([len(row) for row in whole], dtype=pl.Int64)
    inside = reject_other_widths(inside, widths, len(names), rejects)
    values = [row for row in whole if len(row) == len(names)]
    parsed = pl.DataFrame(values, schema=dict.fromkeys(names, pl.String), orient="row")
    plain = split_columns(frame.filter(~quoted), separator, names, rejects)
    return pl.concat([plain, pl.concat([inside, parsed], how="horizontal")]).sort(LINE)


def split_header(line: str, separator: str) -> list[str]:
    """The column names of a header line."""
    if len(separator) > 1:
        return line.split(separator)
    return _parse_quoted(line, separator) or line.split(separator)


def one_space(lines: pl.DataFrame) -> pl.DataFrame:
    """Lines with a single space between any two words, and none around them."""
    return lines.with_columns(pl.col(TEXT).str.strip_chars().str.replace_all(r"\s+", " "))


def reject_other_widths(frame: pl.DataFrame, found: pl.Series, expected: int, rejects: Rejects) -> pl.DataFrame:
    """The frame without the rows whose number of columns `found` is not the expected one."""
    if (found == expected).all():
        return frame
    for width in found.filter(found != expected).unique().sort():
        rejects.add(frame.filter(found == width), f"{width} columns instead of {expected}")
    return frame.filter(found == expected)


def first_lines(url: str, count: int = 1, encoding: str = "utf-8") -> list[str]:
    """The first lines that are not blank.

    Raises:
        UserError: the file is empty or cannot be read.
    """
    found: list[str] = []
    for frame in read_lines(url, Rejects(None), encoding, _LOOK):
        found += frame[TEXT].head(count - len(found)).to_list()
        if len(found) == count:
            break
    if not found:
        raise UserError(f"{url}: the file is empty")
    return found


def _whole_lines(url: str, size: int) -> Iterator[bytes]:
    rest = b""
    for number, block in enumerate(read_blocks(url, size)):
        if number == 0:
            block = block.removeprefix(_BYTE_ORDER_MARK)
        rest += block
        end = rest.rfind(b"\n") + 1
        if end == 0 and len(rest) > _LONGEST_LINE:
            raise UserError(f"{url}: no line ends within {_LONGEST_LINE:,} bytes; this is no text file")
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest + b"\n"


def _cut(text: pl.DataFrame, separator: str, names: list[str]) -> pl.DataFrame:
    """The pieces of TEXT between separators, null after the last; what follows the last name is left out.

    A share of the rows for every thread: cutting one column of text is work for one.
    """
    # split_exact makes one column more than it is told cuts
    pieces = pl.col(TEXT).str.split_exact(separator, len(names) - 1).struct.rename_fields(names).alias(TEXT)
    share = min(max(-(-text.height // pl.thread_pool_size()), 1), _SHARE)
    shares = [text.lazy().slice(first, share).select(pieces) for first in range(0, max(text.height, 1), share)]
    return pl.concat(pl.collect_all(shares), rechunk=False).unnest(TEXT)


def _frame(block: bytes, line: int, encoding: str, rejects: Rejects) -> tuple[pl.DataFrame, int]:
    if encoding == "latin-1":
        block = block.decode("latin-1").encode()
    try:
        block.decode()
    except UnicodeDecodeError:
        return _frame_with_bad_bytes(block, line, rejects)
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends]).astype(np.int64)
    array = pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(block))
    text = pl.Series(TEXT, array).str.strip_chars_end("\r\n")
    return pl.DataFrame({LINE: np.arange(line, line + len(ends)), TEXT: text}), len(ends)


def _frame_with_bad_bytes(block: bytes, line: int, rejects: Rejects) -> tuple[pl.DataFrame, int]:
    """Line by line: only blocks that hold a bad line pay for it."""
    lines = [raw.rstrip(b"\r") for raw in block.split(b"\n")[:-1]]
    frame = pl.DataFrame(
        {LINE: np.arange(line, line + len(lines)), TEXT: [raw.decode(errors="replace") for raw in lines]}
    )
    bad = pl.Series([not _is_utf8(raw) for raw in lines], dtype=pl.Boolean)
    return rejects.drop(frame, bad, "not UTF-8"), len(lines)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parse_quoted(text: str, separator: str) -> list[str] | None:
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        return None
