"""Found against hand-made models, one command per table: `python tests/benchmarks/results.py TABLE --source FILE`.

    rating   MovieLens-1M ratings: MF, MLP, NeuMF and AutoRec, each searched by random, greedy and Bayesian sampling
    ctr      MovieLens-1M as clicks: FM, DeepFM, DCNv2, AutoInt and AutoRec
    criteo   a sample of Criteo's rows, 13 numeric and some categorical columns, as CSV with header
    avazu    a sample of Avazu's rows

Every model of a table has the same number of search trials and the same seeds. Each pipeline resumes where a killed
one stopped, so the same command may be repeated. What is printed comes from the pipelines' report.json files.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GALLERY = Path(__file__).parents[2] / "pipelines" / "gallery"
CRITEO_CSV = {
    "dataset.format": "csv",
    "dataset.label.column": "Label",
    "dataset.fields": {f"I{n}": {"kind": "numeric", "transform": "log"} for n in range(1, 14)},
}
TABLES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "rating": (
        "movielens.yaml",
        {sampler: {"search.sampler": sampler} for sampler in ("random", "greedy", "bayesian")},
    ),
    "ctr": ("movielens-ctr.yaml", {"bayesian": {}}),
    "criteo": ("criteo.yaml", {"bayesian": CRITEO_CSV}),
    "avazu": ("avazu.yaml", {"bayesian": {}}),
}


def main() -> None:
    """Run the pipelines of a table and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--source", required=True, help="URL of the rows")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    arguments = parser.parse_args()
    file, variants = TABLES[arguments.table]
    started = time.monotonic()
    reports = {
        variant: run(
            file, arguments.output / f"{arguments.table}-{variant}", {**changes, "dataset.source": arguments.source}
        )
        for variant, changes in variants.items()
    }
    for variant, report in reports.items():
        print(f"\n{arguments.table}, {variant} ({report['searches'][0]['trials']} trials each)\n\n{markdown(report)}")
    print(f"\nwall time {(time.monotonic() - started) / 60:.1f} min on {os.cpu_count()} cores")


def run(file: str, output: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The report of one pipeline run."""
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", "pipelines.cli", "run", str(GALLERY / file), "--output", str(output), *sets]
    subprocess.run(command, check=True)
    report: dict[str, Any] = json.loads((output / "report.json").read_text())
    return report


def markdown(report: Mapping[str, Any]) -> str:
    """The leaderboard: test metrics as mean ± standard deviation over seeds."""
    names = [name for name in ("auc", "logloss", "mse", "rmse") if name in report["leaderboard"][0]["metrics"]["test"]]
    lines = [
        f"| model | origin | {' | '.join(names)} | parameters | search s | train s |",
        "| --- | --- |" + " ---: |" * (len(names) + 3),
    ]
    for entry in report["leaderboard"]:
        figures = [entry["metrics"]["test"][name] for name in names]
        cells = [f"{figure['mean']:.4f} ± {figure['std']:.4f}" for figure in figures]
        size = sum(entry["parameters"].values())
        seconds = f"{entry['search_seconds']:.0f} | {entry['train_seconds']:.0f}"
        lines.append(f"| {entry['name']} | {entry['origin']} | {' | '.join(cells)} | {size:,} | {seconds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
