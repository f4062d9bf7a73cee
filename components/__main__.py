"""`python -m components STEP --settings FILE --output DIR`: one pipeline step, on a laptop and in a container alike.

FILE is JSON: {"pipeline": name, "settings": the whole spec with every default, "inputs": {step: folder}}.
Events go to standard output, one JSON object per line (`components.events`); the log goes to standard error. Exit code
2 means a user's mistake: the last line on standard error is `error: ` and the line to show.
"""

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.events import Emit, emitter
from components.tracking import Tracker
from trainer.errors import UserError
from trainer.workers import die_with_parent

Inputs = dict[str, Path]


def main() -> int:
    """Run the step that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m components")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    die_with_parent(os.getppid())
    emit = emitter(_take_stdout())
    task = json.loads(arguments.settings.read_text())
    inputs = {step: Path(folder) for step, folder in task["inputs"].items()}
    try:
        with Tracker(arguments.output, pipeline=task["pipeline"], step=arguments.step) as tracker:
            STEPS[arguments.step](task, inputs, arguments.output, emit, tracker)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        where = error.filename or arguments.output
        print(f"error: {where}: {error.strerror}: make room or rights there, then run again", file=sys.stderr)
        return 2
    return 0


def _ingest(task: dict[str, Any], inputs: Inputs, output: Path, emit: Emit, tracker: Tracker) -> None:
    from components.dataset import DatasetSpec
    from components.ingest import ingest

    spec = DatasetSpec.model_validate(task["settings"]["dataset"])
    tracker.log_params({"dataset": task["settings"]["dataset"]})

    def progress(done: int, total: int | None, stage: str) -> None:
        emit("progress", done=done, total=total, unit="rows", text=stage)

    schema = ingest(spec, output, progress)
    tracker.log_metrics({f"rows_{split}": rows for split, rows in schema.rows.items()})


def _search(task: dict[str, Any], inputs: Inputs, output: Path, emit: Emit, tracker: Tracker) -> None:
    from components.search import search
    from components.settings import SearchSpec, TrainSpec

    settings = task["settings"]
    tracker.log_params({"search": settings["search"], "train": settings["train"]})
    spec, train = SearchSpec.model_validate(settings["search"]), TrainSpec.model_validate(settings["train"])
    search(spec, train, inputs["ingest"], output, emit, tracker)


def _train(task: dict[str, Any], inputs: Inputs, output: Path, emit: Emit, tracker: Tracker) -> None:
    from components.settings import SearchSpec, TrainSpec
    from components.train import train

    settings = task["settings"]
    tracker.log_params({"train": settings["train"]})
    search, spec = SearchSpec.model_validate(settings["search"]), TrainSpec.model_validate(settings["train"])
    train(search, spec, inputs["ingest"], inputs["search"], output, emit, tracker)


def _evaluate(task: dict[str, Any], inputs: Inputs, output: Path, emit: Emit, tracker: Tracker) -> None:
    from components.evaluate import evaluate

    evaluate(task["pipeline"], task["settings"], inputs, output, emit, tracker)


STEPS: dict[str, Callable[[dict[str, Any], Inputs, Path, Emit, Tracker], None]] = {
    "ingest": _ingest,
    "search": _search,
    "train": _train,
    "evaluate": _evaluate,
}


def _take_stdout() -> Any:
    """The real standard output for events alone: whatever a library prints goes to standard error."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return events


if __name__ == "__main__":
    sys.exit(main())
