"""AMEIR against hand-made models and blind draws: `python tests/benchmarks/ameir.py TABLE --source FILE`.

    clicks   MovieLens-1M as clicks with histories: DeepFM, DCNv2, DIN, AMEIR, and its space drawn blindly
    items    a sequence file, the next item: pooling, GRU4Rec, SASRec, AMEIR, and its space drawn blindly

The hand-made models have as many trials as AMEIR, over the same training settings. A trial of AMEIR trains its
supernets and then what was found; blind draws get as many trials as make about as many rows of training as AMEIR has
seen in all. A killed command goes on where it stood when it is given again.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from results import run

SEEDS, TRIALS = 3, 2
FILES = {
    "clicks": ("movielens-ameir.yaml", ("auc", "logloss")),
    "items": ("beauty-ameir.yaml", ("ndcg_at_10", "hr_at_10")),
}

Report = Mapping[str, Any]


def main() -> None:
    """Run the pipelines of a table and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=FILES)
    parser.add_argument("--source", required=True, help="URL of the rows")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--epochs", type=int, default=None, help="at most, of a training; the file's if not set")
    arguments = parser.parse_args()
    started = time.monotonic()
    file, metrics = FILES[arguments.table]
    changes = {"dataset.source": arguments.source, "search.ameir.sample": 0, "train.seeds": SEEDS}
    changes |= {"train.epochs": arguments.epochs} if arguments.epochs else {}
    folder = arguments.output / f"ameir-{arguments.table}"
    searched = run(file, folder, {**changes, "search.trials": arguments.trials})
    trials = blind_trials(searched)
    drawn = {"search.ameir.select": "random", "search.trials": trials, "train.baselines": []}
    blind = run(file, folder.with_name(f"{folder.name}-blind"), {**changes, **drawn})
    entries = [(_name(entry), entry) for entry in searched["leaderboard"]]
    entries += [(f"blind draws ({trials} trials)", entry) for entry in blind["leaderboard"]]
    print("\n".join(["", f"{arguments.table}: {SEEDS} seeds, {arguments.trials} trials", "", *table(entries, metrics)]))
    print(f"\nwall time {(time.monotonic() - started) / 60:.1f} min")


def blind_trials(report: Report) -> int:
    """Trainings that see as many rows as the search, by what those of the hand-made models see on average."""
    found = next(entry for entry in report["leaderboard"] if entry["origin"] == "found")
    others = [entry for entry in report["leaderboard"] if entry["origin"] != "found"]
    once = sum(entry["search_samples"] for entry in others) / sum(entry["search_trials"] for entry in others)
    return math.ceil(found["search_samples"] / once)


def _name(entry: Report) -> str:
    return "AMEIR" if entry["origin"] == "found" else str(entry["name"])


def table(entries: list[tuple[str, Report]], metrics: tuple[str, ...]) -> list[str]:
    """A line per model, with the rows that its search has seen."""
    heads = ["model", *metrics, "parameters", "search rows", "search s"]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for name, entry in entries:
        measured = [entry["metrics"]["test"][metric] for metric in metrics]
        cells = [name, *(f"{one['mean']:.4f} ± {one['std']:.4f}" for one in measured)]
        cells += [f"{sum(entry['parameters'].values()):,}", f"{entry['search_samples']:,}"]
        cells += [f"{entry['search_seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
