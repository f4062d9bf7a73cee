"""Does ingest's memory grow with rows? Generates Criteo-shaped files of two sizes and ingests each in a fresh process.

    python tests/benchmarks/ingest_memory.py [--rows 1000000 5000000]

Categories are Zipf distributed over fixed sets of values, so that both sizes meet nearly the same vocabulary: what is
left of the difference in peak memory is what rows cost.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from components.dataset import DatasetSpec
from components.ingest import ingest

_CARDINALITIES = [1400, 550, 50_000, 30_000, 300, 20, 12_000, 630, 3, 60_000, 5_000, 50_000, 3_100]
_CARDINALITIES += [26, 11_000, 40_000, 10, 4_600, 2_000, 4, 50_000, 18, 15, 40_000, 90, 30_000]
_CHUNK = 50_000


def generate(path: Path, rows: int, seed: int = 2026) -> None:
    """A file of `rows` rows like Criteo's: a label, 13 counts, 26 hashes; some are missing."""
    rng = np.random.default_rng(seed)
    cumulated = []
    for cardinality in _CARDINALITIES:
        weights = np.arange(1, cardinality + 1) ** -1.05
        cumulated.append(np.cumsum(weights / weights.sum())[:-1])
    with path.open("wb") as file:
        for first in range(0, rows, _CHUNK):
            _chunk(min(_CHUNK, rows - first), cumulated, rng).write_csv(file, include_header=False, separator="\t")


def _chunk(rows: int, cumulated: list[np.ndarray], rng: np.random.Generator) -> pl.DataFrame:
    columns = {"label": pl.Series((rng.random(rows) < 0.256).astype(np.int8))}
    for number in range(13):
        counts = pl.Series(rng.geometric(0.02, rows))
        columns[f"I{number}"] = counts.set(pl.Series(rng.random(rows) < 0.2), None)
    for number, shares in enumerate(cumulated):
        category = np.searchsorted(shares, rng.random(rows))
        hashed = pl.Series((category * 2_654_435_761 + number * 97) % (1 << 32))
        tokens = pl.select(pl.format("{}", hashed)).to_series().str.zfill(10).str.slice(2)
        columns[f"C{number}"] = tokens.set(pl.Series(rng.random(rows) < 0.1), None)
    return pl.DataFrame(columns)


def measure(path: Path) -> None:
    """Ingest one file and print what it took, as JSON."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        start = time.perf_counter()
        spec = DatasetSpec(source=str(path), format="criteo", min_count=2)
        schema = ingest(spec, Path(folder) / "dataset", lambda done, total, stage: None)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    table = sum(field.cardinality for field in schema.fields)
    rows = sum(schema.rows.values())
    print(json.dumps({"rows": rows, "peak_mb": peak, "categories": table, "rows_per_second": rows / seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--measure", type=Path, help="ingest this file and print JSON")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    print(f"{'rows':>12} {'peak memory':>12} {'categories':>12} {'rows/s':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.rows:
            path = Path(folder) / "rows.tsv"
            generate(path, rows)
            command = [sys.executable, __file__, "--measure", str(path)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{found['rows']:>12,} {found['peak_mb']:>9,.0f} MB {found['categories']:>12,}"
                f" {found['rows_per_second']:>10,.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
