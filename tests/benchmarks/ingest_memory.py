"""Does ingest's memory grow with rows? Generates Criteo-shaped files of two sizes and ingests each in a fresh process.

    python -m tests.benchmarks.ingest_memory [--rows 1000000 5000000]

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

from components.dataset import DatasetSpec
from components.ingest import ingest
from tests.benchmarks.criteo_shaped import Criteo

CATEGORIES = 390_000


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
            Criteo(CATEGORIES).write_tsv(path, rows)
            command = [sys.executable, "-m", "tests.benchmarks.ingest_memory", "--measure", str(path)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{found['rows']:>12,} {found['peak_mb']:>9,.0f} MB {found['categories']:>12,}"
                f" {found['rows_per_second']:>10,.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
