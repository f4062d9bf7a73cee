"""AMEIR against hand-made models and blind draws: `python tests/benchmarks/ameir.py TABLE --source FILE`.

    clicks   MovieLens-1M as clicks with histories: DeepFM, DCNv2, DIN, AMEIR, and its space drawn blindly
    items    a sequence file, the next item: pooling, GRU4Rec, SASRec, AMEIR, and its space drawn blindly

All models have embeddings of one width, layers of one size, and a trial for each of the same values of the tables' L2.
A trial of AMEIR trains its supernets and then what was found; blind draws get as many trials as make about as many rows
of training as AMEIR has seen in all. A killed command goes on where it stood when it is given again.
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

SEEDS = 3
LAYERS = {"embedding.dim": 16, "mlp.units": [128, 128], "mlp.dropout": 0.0}
CLICKS = {
    "search.tune": {"table_l2": [4e-4, 1e-3]},
    "train.table_l2": 4e-4,
    "search.ameir.dims": [16],
    "search.ameir.units": [[128, 128]],
    "search.ameir.dropout": [0.0],
    "train.baseline_settings": {
        "deepfm": {"choices": LAYERS},
        "dcnv2": {"choices": {**LAYERS, "cross.layers": 2}},
        "din": {"choices": {**LAYERS, "attention.units": [32]}},
    },
}
ITEMS = {
    "search.tune": {"table_l2": [3e-5, 1e-4]},
    "search.ameir.dims": [64],
    "search.ameir.units": [[128]],
    "search.ameir.dropout": [0.2],
    "train.baseline_settings": {
        "pooling": {"choices": {"embedding.dim": 64, "pool.kind": "mean"}},
        "gru4rec": {"choices": {"embedding.dim": 64}},
        "sasrec": {"choices": {"embedding.dim": 64, "attention.heads": 1, "attention.dropout": 0.2}},
    },
}
FILES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "clicks": ("movielens-ameir.yaml", ("auc", "logloss"), CLICKS),
    "items": ("beauty-ameir.yaml", ("ndcg_at_10", "hr_at_10"), ITEMS),
}

Report = Mapping[str, Any]


def main() -> None:
    """Run the pipelines of a table and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=FILES)
    parser.add_argument("--source", required=True, help="URL of the rows")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--epochs", type=int, default=None, help="at most, of a training; the file's if not set")
    arguments = parser.parse_args()
    started = time.monotonic()
    file, metrics, pinned = FILES[arguments.table]
    changes = {"dataset.source": arguments.source, "search.ameir.sample": 0, "train.seeds": SEEDS, **pinned}
    changes |= {"train.epochs": arguments.epochs} if arguments.epochs else {}
    folder = arguments.output / f"ameir-{arguments.table}"
    l2 = pinned["search.tune"]["table_l2"]
    searched = run(file, folder, {**changes, "search.sampler": "grid", "search.trials": len(l2)})
    trials = blind_trials(searched)
    drawn = {"search.ameir.select": "random", "search.trials": trials}
    drawn |= {"train.baselines": [], "train.baseline_settings": {}}
    blind = run(file, folder.with_name(f"{folder.name}-blind"), {**changes, **drawn})
    entries = [(_name(entry), entry) for entry in searched["leaderboard"]]
    entries += [(f"blind draws ({trials} trials)", entry) for entry in blind["leaderboard"]]
    print("\n".join(["", f"{arguments.table}: {SEEDS} seeds, {len(l2)} trials", "", *table(entries, metrics)]))
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
