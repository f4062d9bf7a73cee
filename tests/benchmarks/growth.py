"""How rate and peak memory of training grow with rows, categories, fields and candidates in flight.

    python -m tests.benchmarks.growth [--output runs/growth] [--only rows categories fields candidates] [--quick]

DeepFM (dim 16, MLP 400x3, batch 4096) on Criteo-shaped rows. Every point is a process of its own with two threads and
is written to OUTPUT/growth.csv as soon as it is known; points that stand there are not measured again. OUTPUT also gets
growth.svg. Of each sweep the work (seconds of a pass, or of a row where rows do not change) and the peak memory are
fitted as a power of x; an exponent above 1 grows faster than linearly, and is marked.

    rows         an epoch of `fit` with its default settings, its end included; 1 million categories
    categories   the same over 500,000 rows
    fields       the same over 200,000 rows, with 40,000 categories per field and no counts
    candidates   small DeepFMs (8 fields, 50,000 rows) in so many workers of one pool

A point that would leave the machine less than 1.5 GB of memory is stopped, and stands in the table without figures.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.benchmarks.criteo_shaped import Arrays, Criteo, deepfm
from tests.benchmarks.measure import quiet, result

BATCH, THREADS = 4096, 2
SPARE = 1.5e9
"""Bytes that a point must leave to the rest of the machine."""
STRAIGHT = 1.1
"""An exponent from here on is marked: single timings are good to about a tenth."""
SWEEPS: dict[str, tuple[int, ...]] = {
    "rows": (100_000, 300_000, 1_000_000, 3_000_000, 5_000_000),
    "categories": (1_000_000, 3_000_000, 10_000_000, 25_000_000, 50_000_000),
    "fields": (10, 25, 50, 100, 200),
    "candidates": (1, 2, 4, 8),
}
QUICK: dict[str, tuple[int, ...]] = {
    "rows": (20_000, 60_000),
    "categories": (200_000, 600_000),
    "fields": (4, 8),
    "candidates": (1, 2),
}
CANDIDATE_ROWS, CANDIDATE_EPOCHS = 50_000, 12


@dataclass(frozen=True)
class Point:
    """One measurement. Seconds are those of a pass over `rows` rows (by each candidate); no figures: out of memory."""

    sweep: str
    x: int
    rows: int = 0
    seconds: float = float("nan")
    samples_per_s: float = float("nan")
    peak_mb: float = float("nan")

    def work(self) -> float:
        """What must not grow faster than x."""
        return self.seconds if self.sweep in ("rows", "candidates") else self.seconds / self.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/growth"))
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--quick", action="store_true", help="tiny points, to see that everything runs")
    parser.add_argument("--point", nargs=2, metavar=("SWEEP", "X"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        sweep, x = arguments.point
        print(json.dumps(asdict(measure(sweep, int(x), quick=arguments.quick))))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / "growth.csv"
    points = _read(file)
    for sweep in arguments.only:
        for x in (QUICK if arguments.quick else SWEEPS)[sweep]:
            if (sweep, x) not in points:
                points[sweep, x] = _apart(sweep, x, quick=arguments.quick)
                _write(file, list(points.values()))
    report(list(points.values()), arguments.output)


def measure(sweep: str, x: int, *, quick: bool) -> Point:
    if sweep == "rows":
        return _epoch(sweep, x, Criteo(200_000 if quick else 1_000_000).arrays(x))
    if sweep == "categories":
        return _epoch(sweep, x, Criteo(x).arrays(20_000 if quick else 500_000))
    if sweep == "fields":
        return _epoch(sweep, x, Criteo(40_000 * x, fields=x, counts=0).arrays(20_000 if quick else 200_000))
    return _candidates(x)


def _epoch(sweep: str, x: int, data: Arrays) -> Point:
    """The second epoch of a training, its end (average, validation) included."""
    import torch

    from trainer.build import build
    from trainer.fit import fit
    from trainer.settings import TrainSettings

    torch.set_num_threads(THREADS)
    train, valid = data.table(), data.head(BATCH).table()
    settings = TrainSettings(batch_size=BATCH, epochs=2, patience=2)
    model = build(deepfm(train.schema), label_mean=train.schema.label_mean, table_init=settings.table_init, seed=1)
    epoch = fit(model, train, valid, settings, task="ctr", seed=1).history[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Point(sweep, x, epoch.samples, epoch.seconds, epoch.samples / epoch.seconds, peak)


def _candidates(workers: int) -> Point:
    """As many trainings as workers, timed from when all have ended an epoch until the first ends its last."""
    from trainer.candidate import Candidate
    from trainer.settings import TrainSettings
    from trainer.workers import Epoch, Job, Message, run_jobs

    data = Criteo(130_000, counts=0).arrays(CANDIDATE_ROWS)
    small = Arrays(data.ids[:, :8], data.numbers, data.label, data.cardinalities[:8])
    training = TrainSettings(batch_size=BATCH, epochs=CANDIDATE_EPOCHS, patience=CANDIDATE_EPOCHS)
    candidate = Candidate(architecture=deepfm(small.schema(), units=(128, 128)), training=training).to_dict()
    ended: list[tuple[float, str]] = []
    peak = 0.0

    def on_message(message: Message) -> None:
        nonlocal peak
        if isinstance(message, Epoch):
            ended.append((time.perf_counter(), message.key))
            peak = max(peak, _tree_mb())

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_dataset(small, folder / "dataset")
        jobs = [Job(str(n), folder / "dataset", candidate, n, folder / f"checkpoints{n}") for n in range(workers)]
        run_jobs(lambda: jobs.pop() if jobs else None, workers, on_message)
    first = {key: time for time, key in reversed(ended)}
    last = {key: time for time, key in ended}
    start, stop = max(first.values()), min(last.values())
    passes = sum(start < time <= stop for time, _ in ended)
    rate = passes * CANDIDATE_ROWS / (stop - start) if passes else float("nan")
    return Point("candidates", workers, CANDIDATE_ROWS, workers * CANDIDATE_ROWS / rate, rate, peak)


def _tree_mb() -> float:
    """Memory of this process and its workers; pages that they share count once."""
    me = psutil.Process()
    return float(sum(process.memory_full_info().pss for process in (me, *me.children(recursive=True)))) / 2**20


def _write_dataset(data: Arrays, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = data.schema()
    columns = {field.name: data.ids[:, column] for column, field in enumerate(schema.fields)}
    rows = pa.table({**columns, "label": data.label})
    for split, part in (("train", rows), ("valid", rows.slice(0, BATCH))):
        (folder / split).mkdir(parents=True)
        pq.write_table(part, folder / split / "part-0.parquet")
    (folder / "schema.json").write_text(schema.model_dump_json())


def _apart(sweep: str, x: int, *, quick: bool) -> Point:
    """The point in a process of its own, which is ended before it takes the machine's last memory."""
    command = [sys.executable, "-m", "tests.benchmarks.growth", "--point", sweep, str(x)]
    threads = 1 if sweep == "candidates" else THREADS
    process = subprocess.Popen(command + ["--quick"] * quick, stdout=subprocess.PIPE, text=True, env=quiet(threads))
    while process.poll() is None:
        if psutil.virtual_memory().available < SPARE:
            process.kill()
        time.sleep(0.1)
    assert process.stdout is not None
    said = process.stdout.read()
    if process.returncode == -9:
        print(f"{sweep} {x:,}: stopped, it needs more memory than this machine has free", file=sys.stderr)
        return Point(sweep, x)
    if process.returncode:
        raise RuntimeError(f"{sweep} {x} ended with exit code {process.returncode}; its reason stands above")
    return Point(**json.loads(said.splitlines()[-1]))


def _read(file: Path) -> dict[tuple[str, int], Point]:
    if not file.exists():
        return {}
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    points = [
        Point(row["sweep"], int(row["x"]), int(row["rows"]), *(float(row[f.name]) for f in fields(Point)[3:]))
        for row in rows
    ]
    return {(point.sweep, point.x): point for point in points}


def _write(file: Path, points: Sequence[Point]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def report(points: Sequence[Point], output: Path) -> None:
    """Print the table and the exponents, draw the plot."""
    exponents: dict[str, dict[str, float]] = {}
    for sweep in SWEEPS:
        swept = sorted((point for point in points if point.sweep == sweep), key=lambda point: point.x)
        if not swept:
            continue
        print(f"\n{sweep:>12} {'samples/s':>12} {'s per pass':>12} {'peak memory':>14}")
        for point in swept:
            print(f"{point.x:>12,} {point.samples_per_s:>12,.0f} {point.seconds:>12.2f} {point.peak_mb:>11,.0f} MB")
        known = [point for point in swept if np.isfinite(point.peak_mb)]
        if len(known) > 1:
            exponents[sweep] = _exponents(known)
            print("  " + ", ".join(_said(name, value) for name, value in exponents[sweep].items()))
    _plot(points, output / "growth.svg")
    print(f"\nwritten: {output / 'growth.csv'}, {output / 'growth.svg'}")
    result({"growth": {"points": [asdict(point) for point in points], "exponents": exponents}})


def _exponents(points: Sequence[Point]) -> dict[str, float]:
    """Of the fit over all points, and of the last two alone, where what bends shows first."""
    x = np.log([point.x for point in points])
    found = {}
    for name, values in (("work", [p.work() for p in points]), ("memory", [p.peak_mb for p in points])):
        y = np.log(values)
        found[name] = float(np.polyfit(x, y, 1)[0])
        found[f"{name}, last two"] = float((y[-1] - y[-2]) / (x[-1] - x[-2]))
    return found


def _said(name: str, exponent: float) -> str:
    return f"{name} ~ x^{exponent:.2f}" + (" FASTER THAN LINEAR" if exponent > STRAIGHT else "")


def _plot(points: Sequence[Point], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"  # text, not outlines: smaller, and in the reader's own font
    from matplotlib import pyplot, ticker

    sweeps = [sweep for sweep in SWEEPS if any(point.sweep == sweep for point in points)]
    figure, axes = pyplot.subplots(2, len(sweeps), figsize=(3.4 * len(sweeps), 5.6), squeeze=False)
    rows: list[tuple[str, str]] = [("samples_per_s", "samples/s"), ("peak_mb", "peak memory, MB")]
    for column, sweep in enumerate(sweeps):
        swept = sorted((point for point in points if point.sweep == sweep), key=lambda point: point.x)
        for row, (name, label) in enumerate(rows):
            axis: Any = axes[row][column]
            values = [getattr(point, name) for point in swept]
            axis.plot([point.x for point in swept], values, "o-")
            axis.set_xscale("log")
            axis.set_xticks([point.x for point in swept], [_short(point.x) for point in swept])
            axis.xaxis.set_minor_locator(ticker.NullLocator())
            if row:
                _beside_linear(axis, swept)
            else:
                axis.set_ylim(0, 1.1 * np.nanmax(values))
            axis.yaxis.set_major_formatter(lambda value, _: _short(round(value)))
            axis.grid(visible=True, alpha=0.3)
            axis.set_xlabel(sweep if row else "")
            axis.set_ylabel("" if column else label)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def _beside_linear(axis: Any, swept: Sequence[Point]) -> None:
    """Both axes logarithmic: what grows linearly is as steep as the dashed line."""
    linear = [swept[0].peak_mb * point.x / swept[0].x for point in swept]
    axis.plot([point.x for point in swept], linear, "--", color="grey", linewidth=0.8)
    peaks = [point.peak_mb for point in swept]
    axis.set_yscale("log")
    axis.set_ylim(0.7 * np.nanmin(peaks), 1.4 * np.nanmax(peaks))
    axis.yaxis.set_minor_formatter(lambda value, _: _short(round(value)) if str(value)[0] in "25" else "")


def _short(x: int) -> str:
    return f"{x / 1_000_000:g}M" if x >= 1_000_000 else f"{x / 1000:g}k" if x >= 1000 else str(x)


if __name__ == "__main__":
    main()
