"""What a search costs beside its trainings: AutoRec on MovieLens-1M, the step's wall time against its trainings' sum.

    python -m tests.benchmarks.search_overhead --source ml-1m/ratings.dat [--trials 10] [--workers 2] [--epochs 20]

The search step runs as in a pipeline, in a process of its own, after an ingest that is not timed. The ratio is wall
time x workers / sum of the trainings' seconds (training and validating, as trials record them): 1 would be machinery
that costs nothing. Every second in which a worker trains nothing is put down to what keeps it from that.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from pipelines.graph import STEPS
from pipelines.spec import load
from pipelines.step import StepRun
from tests.benchmarks.measure import result

GALLERY = Path(__file__).parents[2] / "pipelines" / "gallery"
TIMELINE = "timeline.json"


def main() -> None:
    """Run the step and print where its time went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="URL of MovieLens-1M's ratings")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20, help="at most, of each training (default: 20)")
    chosen = parser.parse_args()
    sets = {
        "dataset.source": chosen.source,
        "search.trials": chosen.trials,
        "search.workers": chosen.workers,
        "train.epochs": chosen.epochs,
        "train.baselines": [],
    }
    pipeline = load(GALLERY / "movielens.yaml", tuple(f"{key}={json.dumps(value)}" for key, value in sets.items()))
    with tempfile.TemporaryDirectory() as root:
        steps = {step.name: step for step in STEPS}
        ingest = StepRun(pipeline, Path(root), steps["ingest"])
        ingest.prepare()
        ingest.work(lambda event: None)
        ingest.commit()
        command = (sys.executable, "-m", "tests.benchmarks.search_overhead", "--watched")
        step = StepRun(pipeline, Path(root), steps["search"], command=command)
        step.prepare()
        started = time.time()
        step.work(lambda event: None)
        ended = time.time()
        watched = json.loads((step.partial / TIMELINE).read_text())
    show(watched, started, ended, chosen.workers)


def watched_step() -> None:
    """The step's own process: as `python -m components search ...`, but that it notes who did what when."""
    process = time.time()
    from components import __main__ as entry
    from components import search as step
    from components.tracking import Tracker
    from trainer import search, study
    from trainer.workers import Epoch, Message, NextJob, run_jobs

    events: list[dict[str, Any]] = []
    spent: dict[str, float] = defaultdict(float)
    depth = 0

    def note(what: str, **more: Any) -> None:
        events.append({"what": what, "time": time.time(), **more})

    def timed(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """`act`, its seconds summed up; what it calls of the other timed functions counts to it alone."""

        @wraps(act)
        def timing(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            begun = time.perf_counter()
            try:
                return act(*args, **kwargs)
            finally:
                depth -= 1
                spent[name] += (time.perf_counter() - begun) if depth == 0 else 0.0

        return timing

    def watched_jobs(next_job: NextJob, workers: int, on_message: Callable[[Message], None], **more: Any) -> None:
        def next_noted() -> Any:
            answer = next_job()
            note("job", key=answer.key) if answer is not None and answer != study.WAIT else note("wait")
            return answer

        def message_noted(message: Message) -> None:
            if not isinstance(message, Epoch):
                note("outcome", key=message.key, seconds=message.seconds, epochs=len(message.curve))
            on_message(message)

        note("pool")
        run_jobs(next_noted, workers, message_noted, **more)

    search.run_jobs = watched_jobs
    study.propose = timed("proposing", study.propose)
    for name in ("report", "finish", "_record"):
        setattr(study.Study, name, timed("writing the study", getattr(study.Study, name)))
    for name in ("records", "record", "best"):
        setattr(study.Study, name, timed("reading the study", getattr(study.Study, name)))
    for name in ("log_epoch", "log_trial"):
        setattr(Tracker, name, timed("tracking", getattr(Tracker, name)))
    step.count = timed("counting parameters", step.count)
    sys.argv.remove("--watched")
    code = entry.main()
    output = Path(sys.argv[sys.argv.index("--output") + 1])
    (output / TIMELINE).write_text(json.dumps({"process": process, "events": events, "spent": spent}))
    sys.exit(code)


def show(watched: dict[str, Any], started: float, ended: float, workers: int) -> None:
    lost, trainings = account(watched["events"], started, ended, workers)
    wall, total = ended - started, sum(trainings)
    ratio = wall * workers / total
    print(f"{len(trainings)} trainings of {min(trainings):.1f} to {max(trainings):.1f} s, {workers} workers")
    print(f"wall {wall:.1f} s, sum of the trainings {total:.1f} s, wall x workers / sum = {ratio:.3f}")
    print("\nworker seconds that were no training")
    for name, seconds in lost.items():
        print(f"  {name:<58} {seconds:7.2f} {seconds / total:7.1%}")
    print("\nseconds of the step's own process, beside the workers")
    for name, seconds in watched["spent"].items():
        print(f"  {name:<58} {seconds:7.2f}")
    machinery = sum(seconds for name, seconds in lost.items() if name not in (TAIL, RESULTS))
    data = {"ratio": ratio, "machinery": 1 + machinery / total, "wall": wall, "trainings": total, "lost": lost}
    result({**data, "spent": watched["spent"]})


START = "start of the step's process, until the first job"
FIRST = "start of the workers: imports, the dataset, first building"
LATER = "later jobs: building, checkpoints, messages"
HANDED = "between two jobs: proposing, records"
RESULTS = "a proposal that waits for another trial's result"
TAIL = "tail: no trial left for this worker"
END = "end of the step"


def account(
    events: list[dict[str, Any]], started: float, ended: float, workers: int
) -> tuple[dict[str, float], list[float]]:
    """Worker seconds by what they were lost to, and the seconds of each training."""
    lost = dict.fromkeys((START, FIRST, LATER, HANDED, RESULTS, TAIL, END), 0.0)
    trainings: list[float] = []
    free = [(started, START)] * workers  # since when, and what for, each idle worker is idle
    begun: dict[str, tuple[float, str]] = {}
    for event in events:
        now = event["time"]
        if event["what"] == "job":
            since, kept = free.pop()
            lost[kept] += now - since
            begun[event["key"]] = (now, FIRST if kept == START else LATER)
        elif event["what"] == "wait":
            for place, (since, kept) in enumerate(free):
                if kept == HANDED:
                    lost[HANDED] += now - since
                    free[place] = (now, RESULTS)
        elif event["what"] == "outcome":
            since, kept = begun.pop(event["key"])
            lost[kept] += now - since - event["seconds"]
            trainings.append(event["seconds"])
            free.append((now, HANDED))
    last = max(event["time"] for event in events if event["what"] == "outcome")
    for since, _ in free:
        lost[TAIL] += last - since
        lost[END] += ended - last
    return lost, trainings


if __name__ == "__main__":
    watched_step() if "--watched" in sys.argv else main()
