"""AutoCTR's space and evolution against others: `python tests/benchmarks/autoctr.py TABLE --source FILE`.

    movielens  MovieLens-1M as clicks
    criteo     a sample of Criteo's rows as CSV with header

AutoCTR's space is searched at random, by the evolution with and without its guide, and by NSGA-II; AutoRec's by its own
samplers. Each search is made with several seeds of the search itself. Searches are compared at the same number of
trained samples: the least that any of them needed for its trials. Printed are the best validation losses on the way
there and those of the models found on test rows, and the Pareto front of each search over all seeds. A killed command
goes on where it stood when it is given again.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from results import CRITEO_CSV, run

TRIALS, SEEDS = 60, 5
SHARES = (0.25, 0.5, 0.75, 1.0)
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "movielens": ("movielens-ctr.yaml", {}),
    "criteo": ("criteo.yaml", CRITEO_CSV),
}
SEARCHES = [
    *(("autoctr", sampler) for sampler in ("random", "evolution", "unguided_evolution", "nsga2")),
    *(("autorec", sampler) for sampler in ("random", "greedy", "bayesian")),
]
Report = Mapping[str, Any]
Trial = Mapping[str, Any]


def main() -> None:
    """Run the pipelines of a table and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=FILES)
    parser.add_argument("--source", required=True, help="URL of the rows")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each search")
    parser.add_argument("--epochs", type=int, default=None, help="at most, of a training; the file's if not set")
    arguments = parser.parse_args()
    started = time.monotonic()
    file, changes = FILES[arguments.table]
    changes = {**changes, "dataset.source": arguments.source, "search.trials": arguments.trials}
    changes |= {"search.prune": False, "train.baselines": [], "train.seeds": 1}
    changes |= {"train.epochs": arguments.epochs} if arguments.epochs else {}
    reports: dict[str, list[Report]] = {}
    for seed in range(arguments.seeds):
        for method, sampler in SEARCHES:
            folder = arguments.output / f"autoctr-{arguments.table}-{method}-{sampler}-{seed}"
            chosen = {"search.methods": [method], "search.sampler": sampler, "search.seed": 2026 + seed}
            reports.setdefault(f"{method}, {sampler}", []).append(run(file, folder, {**changes, **chosen}))
    budget = min(sum(trial["samples"] for trial in trials(report)) for one in reports.values() for report in one)
    print(f"\n{arguments.table}: {arguments.trials} trials, {arguments.seeds} seeds, {budget:,} samples\n")
    print("\n".join([*best_table(reports, budget), "", *front_table(reports)]))
    print(f"\nwall time {(time.monotonic() - started) / 60:.1f} min")


def trials(report: Report) -> list[Trial]:
    """Those of the method, as they were proposed."""
    return [trial for trial in report["trials"] if trial["study"] == report["searches"][0]["method"]]


def best_within(report: Report, samples: float) -> float:
    """The lowest loss of the trials that fit into so many trained samples."""
    spent, best = 0, float("inf")
    for trial in trials(report):
        spent += trial["samples"]
        if spent > samples:
            break
        best = min(best, float("inf") if trial["value"] is None else trial["value"])
    return best


def best_table(reports: Mapping[str, Sequence[Report]], budget: int) -> list[str]:
    """A line per search: its best so far at shares of the budget, and its model on test rows."""
    heads = ["search", *(f"valid at {share:.0%}" for share in SHARES), "test log loss", "test AUC", "multiply-adds"]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for name, of_seeds in reports.items():
        cells = [_spread([best_within(report, share * budget) for report in of_seeds]) for share in SHARES]
        entries = [report["leaderboard"][0] for report in of_seeds]
        for metric in ("logloss", "auc"):
            cells.append(_spread([entry["metrics"]["test"][metric]["mean"] for entry in entries]))
        cells.append(f"{mean(entry['flops'] for entry in entries):,.0f}")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    if not all(map(math.isfinite, values)):  # no trial fits into the budget
        return "–"
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def front_table(reports: Mapping[str, Sequence[Report]]) -> list[str]:
    """The Pareto front of each search over all seeds: loss and multiply-adds, the fewest multiply-adds first."""
    lines = ["| search | Pareto front: validation loss (multiply-adds) |", "| --- | --- |"]
    for name, of_seeds in reports.items():
        points = [(trial["flops"], trial["value"]) for report in of_seeds for trial in trials(report) if trial["value"]]
        shown = ", ".join(f"{value:.4f} ({flops:,})" for flops, value in front(points))
        lines.append(f"| {name} | {shown} |")
    return lines


def front(points: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """Those with a lower loss than all that need no more."""
    best = float("inf")
    for flops, value in sorted(points):
        if value < best:
            best = value
            yield flops, value


if __name__ == "__main__":
    main()
