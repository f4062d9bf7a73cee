"""The table of a comparison as Markdown: `python tests/benchmarks/comparison.py runs/NAME-compare/report.json`.

The comparison itself is `dalil compare FILE --budget ROWS --seeds N`.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SHOWN = ("auc", "logloss", "mse", "ndcg_at_10", "hr_at_10", "mrr")


def main() -> None:
    """Print the leaderboard of a report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.json of a comparison")
    print("\n".join(lines(json.loads(parser.parse_args().report.read_text()))))


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Best first; ◇ is the Pareto front of quality and parameters."""
    names = [name for name in SHOWN if name in report["leaderboard"][0]["metrics"]["test"]]
    heads = ["model", *names, "beats", "parameters", "FLOPs", "trials", "M rows searched", "search s", "train s"]
    yield f"| {' | '.join(heads)} |"
    yield "| --- |" + " ---: |" * (len(heads) - 1)
    for entry in report["leaderboard"]:
        test = [entry["metrics"]["test"][name] for name in names]
        cells = [
            entry["name"] + (" ◇" if entry["pareto"] else ""),
            *(f"{one['mean']:.4f} ± {one['std']:.4f}" for one in test),
            f"{len(entry['beats'])}",
            f"{sum(entry['parameters'].values()):,}",
            f"{entry['flops']:,}",
            f"{entry['search_trials']}",
            f"{entry['search_samples'] / 1e6:.1f}",
            f"{entry['search_seconds']:.0f}",
            f"{entry['train_seconds']:.0f}",
        ]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
