"""libFM text: `label index:value index:value ...`, one pair per field, as the papers on field-wise FM ship it.

The k-th pair of every row is field `fk`. A categorical field takes the index and asks for the value 1; a field that
the user declares numeric takes the value. Label -1 is read as 0.
"""

from collections.abc import Iterator

import polars as pl

from components.dataset import DatasetSpec
from components.formats.layout import Format, Layout
from components.formats.text import first_lines, one_space, read_lines, split_columns
from components.rejects import Rejects
from trainer.errors import UserError

_PAIR = r"^\d+:[-+]?[.\d]+([eE][-+]?\d+)?$"
_ONE = r"^1(\.0*)?$"


def describe(spec: DatasetSpec, urls: list[str]) -> Layout:
    pairs = first_lines(urls[0])[0].split()[1:]
    if not pairs or not all(":" in pair for pair in pairs):
        raise UserError(f"{urls[0]}:1: this is not libFM text; write lines such as '1 12:1 340:1'")
    names = [f"f{number}" for number in range(1, len(pairs) + 1)]
    return Layout(dict.fromkeys(names, "categorical"), label="target", transform="none")


def rows(spec: DatasetSpec, layout: Layout, url: str, rejects: Rejects) -> Iterator[pl.DataFrame]:
    numeric = {name for name, field in spec.fields.items() if field.kind == "numeric"}
    for lines in read_lines(url, rejects):
        frame = split_columns(one_space(lines), " ", ["target", *layout.kinds], rejects)
        frame = frame.with_columns(target=pl.col("target").str.replace(r"^-1(\.0*)?$", "0"))
        for name in layout.kinds:
            frame = rejects.drop(frame, ~frame[name].str.contains(_PAIR), f"{name} is not index:value")
            pair = frame[name].str.split_exact(":", 1)
            index, value = pair.struct.field("field_0"), pair.struct.field("field_1")
            frame = frame.with_columns((value if name in numeric else index).alias(name))
            if name not in numeric:
                frame = rejects.drop(frame, ~value.str.contains(_ONE), f"{name} is not 1: declare it numeric")
        yield frame


FORMAT = Format(describe, rows)
