"""The dataset formats: one file each, and this table. A new format is a new file and a new line here."""

from components.dataset import FormatName
from components.formats import avazu, criteo, csv, libfm, movielens, netflix, parquet, planted, sequence
from components.formats.layout import Format, Layout

FORMATS: dict[FormatName, Format] = {
    "movielens": movielens.FORMAT,
    "netflix": netflix.FORMAT,
    "criteo": criteo.FORMAT,
    "avazu": avazu.FORMAT,
    "libfm": libfm.FORMAT,
    "sequence": sequence.FORMAT,
    "csv": csv.FORMAT,
    "parquet": parquet.FORMAT,
    "planted": planted.FORMAT,
}

__all__ = ["FORMATS", "Format", "Layout"]
