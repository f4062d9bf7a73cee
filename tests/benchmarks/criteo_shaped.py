"""Rows shaped like Criteo's: a label, 13 counts, 26 categories with Zipf frequencies and very unequal vocabularies.

The same rows come as arrays for training (`Criteo.arrays`) and as a TSV file for ingest (`Criteo.write_tsv`). The label
follows from the row: every category and every count has its share in a planted logit, and the rest is chance.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from trainer.data import Table
    from trainer.schema import DatasetSchema

COUNTS = 13
EXPONENT = 1.05
CLICKS = 0.256
"""The share of clicks in Criteo's rows, where the planted logit starts from."""
FLOOR = 10_000
"""A field of at most so many values keeps them, whatever the sum is to be."""
NATURAL: tuple[int, ...] = (1460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5683, 8_351_593, 3194)
NATURAL += (27, 14_992, 5_461_306, 10, 5652, 2173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572)
"""Distinct values of Criteo's 26 categories."""
_CHUNK = 50_000
_ODD = 2_654_435_761
"""Multiplying by it permutes the numbers below 2**32."""

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Arrays:
    """A dataset that any library can read: `ids` (N, fields) from 1, `numbers` (N, n), `label` (N,) of 0 and 1.

    `cardinalities`: rows of each field's table, row 0 included.
    """

    ids: Ints
    numbers: Floats
    label: Floats
    cardinalities: tuple[int, ...]

    @property
    def rows(self) -> int:
        return int(self.label.shape[0])

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("ids", "numbers", "label"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / "cardinalities.json").write_text(json.dumps(self.cardinalities))

    @staticmethod
    def load(folder: Path) -> "Arrays":
        parts = {name: np.load(folder / f"{name}.npy") for name in ("ids", "numbers", "label")}
        return Arrays(**parts, cardinalities=tuple(json.loads((folder / "cardinalities.json").read_text())))

    def head(self, rows: int) -> "Arrays":
        return Arrays(self.ids[:rows], self.numbers[:rows], self.label[:rows], self.cardinalities)

    def schema(self) -> "DatasetSchema":
        from trainer.schema import DatasetSchema, Field

        numbers = [Field(name=f"I{n}", kind="numeric") for n in range(self.numbers.shape[1])]
        fields = [
            Field(name=f"C{n}", kind="categorical", cardinality=size) for n, size in enumerate(self.cardinalities)
        ]
        return DatasetSchema(
            task="ctr",
            label="label",
            fields=(*numbers, *fields),
            rows={"train": self.rows, "valid": self.rows, "test": 0},
            label_mean=float(self.label.mean()),
            label_min=0,
            label_max=1,
        )

    def table(self) -> "Table":
        import torch

        from trainer.data import Table

        ids, numbers, label = (
            torch.from_numpy(np.ascontiguousarray(part)) for part in (self.ids, self.numbers, self.label)
        )
        return Table(self.schema(), ids, numbers, label, {})


def cardinalities(total: int, fields: int = len(NATURAL)) -> tuple[int, ...]:
    """Rows of so many tables, `total` together, in Criteo's proportions: small fields stay, large ones scale.

    With more than 26 fields Criteo's come again and again. Raises ValueError if the small fields alone need more.
    """
    natural = np.resize(np.array(NATURAL, np.float64), fields)
    least = np.minimum(natural, FLOOR)
    if total < least.sum():
        raise ValueError(f"{fields} fields have at least {int(least.sum()):,} categories, not {total:,}")
    low, high = 0.0, total / least.sum() + 1
    for _ in range(100):
        factor = (low + high) / 2
        sizes = np.where(natural > FLOOR, np.maximum(least, factor * natural), least).astype(np.int64)
        low, high = (factor, high) if sizes.sum() < total else (low, factor)
    sizes[sizes.argmax()] += total - sizes.sum()
    return tuple(int(size) for size in sizes)


class Criteo:
    """A source of rows. The same arguments and the same calls give the same rows."""

    def __init__(self, categories: int, *, fields: int = len(NATURAL), counts: int = COUNTS, seed: int = 2026) -> None:
        """`categories`: rows of all tables together, each field's row 0 (unknown) included."""
        self.cardinalities = cardinalities(categories, fields)
        self._counts = counts
        self._random = np.random.default_rng(seed)
        self._cumulated = [_cumulated(size - 1) for size in self.cardinalities]

    def arrays(self, rows: int) -> Arrays:
        """The next rows; the ids of a field are in the order of frequency, as ingest numbers them."""
        chunks = list(self._chunks(rows))
        ids, counts, label = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        numbers = (np.log1p(counts) - 3.4).astype(np.float32)  # about centred
        return Arrays(ids, numbers, label, self.cardinalities)

    def write_tsv(self, path: Path, rows: int) -> None:
        """The next rows as Criteo writes them: tokens of 8 hexadecimal digits, some counts and categories missing."""
        import polars as pl

        with path.open("wb") as file:
            for ids, counts, label in self._chunks(rows):
                columns = {"label": pl.Series(label.astype(np.int8))}
                for field in range(counts.shape[1]):
                    columns[f"I{field}"] = self._with_gaps(pl.Series(counts[:, field]), 0.2)
                for field in range(ids.shape[1]):
                    columns[f"C{field}"] = self._with_gaps(_tokens(ids[:, field], field), 0.1)
                pl.DataFrame(columns).write_csv(file, include_header=False, separator="\t")

    def _chunks(self, rows: int) -> Iterator[tuple[Ints, npt.NDArray[np.int64], Floats]]:
        for first in range(0, rows, _CHUNK):
            size = min(_CHUNK, rows - first)
            ids = [np.searchsorted(shares, self._random.random(size)) + 1 for shares in self._cumulated]
            ids_BF = np.stack(ids, 1).astype(np.int32)
            counts_BN = self._random.geometric(0.02, (size, self._counts))
            chance = 1 / (1 + np.exp(-_logit(ids_BF, counts_BN)))
            yield ids_BF, counts_BN, (self._random.random(size) < chance).astype(np.float32)

    def _with_gaps(self, column: Any, share: float) -> Any:
        import polars as pl

        return column.set(pl.Series(self._random.random(len(column)) < share), None)


def _cumulated(size: int) -> npt.NDArray[np.float64]:
    """Cumulated Zipf shares of so many values, without the last, which is 1."""
    weights = np.arange(1, size + 1, dtype=np.float64) ** -EXPONENT
    shares: npt.NDArray[np.float64] = np.cumsum(weights / weights.sum())[:-1]
    return shares


def _logit(ids_BF: Ints, counts_BN: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Every value of a field has an effect of its own, spread evenly over -1/4 to 1/4."""
    effects_BF = (ids_BF.astype(np.int64) * _ODD + np.arange(ids_BF.shape[1]) * 97) % (1 << 32) / (1 << 32) - 0.5
    logit: npt.NDArray[np.float64] = effects_BF.sum(1) / 2 + 0.1 * (np.log1p(counts_BN) - 3.4).sum(1)
    logit += np.log(CLICKS / (1 - CLICKS))
    return logit


def _tokens(ids: Ints, field: int) -> Any:
    import polars as pl
    import pyarrow as pa

    hashed = (ids.astype(np.int64) * _ODD + field * 97) % (1 << 32)
    digits = pa.py_buffer(hashed.astype(">u4").tobytes().hex().encode())
    offsets = pa.py_buffer(np.arange(0, 8 * len(ids) + 1, 8, dtype=np.int32))
    return pl.Series(pl.from_arrow(pa.Array.from_buffers(pa.string(), len(ids), [None, offsets, digits])))


def deepfm(schema: "DatasetSchema", units: Sequence[int] = (400, 400, 400), dim: int = 16) -> Any:
    """The zoo's DeepFM as all benchmarks train it: an `Architecture`."""
    from trainer import zoo
    from trainer.architecture import Architecture
    from trainer.space import fill_params, pinned

    made = {"embedding.dim": dim, "mlp.units": list(units), "mlp.dropout": 0.0}
    return Architecture.from_dict(fill_params(pinned(zoo.template("deepfm", schema), made), {}))
