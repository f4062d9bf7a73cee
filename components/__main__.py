"""`python -m components STEP --settings FILE --output DIR`: one pipeline step, on a laptop and in a container alike.

FILE is JSON: {"pipeline": name, "step": step, "key": what the work belongs to, "settings": the whole spec with every
default, "inputs": {step: folder}}.
Events go to standard output, one JSON object per line (`components.events`); the log goes to standard error. Exit code
2 means a user's mistake, 3 a full disk: the last line on standard error is `error: ` and the line to show.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.events import Emit, emitter
from components.tracking import Tracker
from trainer.errors import UserError, disk_errors
from trainer.workers import die_with_parent

STUDIES = "DALIL_STUDIES"
"""Environment: the database of the studies, where several machines search. Never in a file, for it holds a password."""


def main() -> int:
    """Run the step that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m components")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--part", help="do this part of the step only: trials (search), or the key of a training")
    arguments = parser.parse_args()
    die_with_parent(os.getppid())
    emit = emitter(_take_stdout())
    task = json.loads(arguments.settings.read_text())
    inputs = {step: Path(folder) for step, folder in task["inputs"].items()}
    try:
        with (
            disk_errors(arguments.output),
            Tracker(arguments.output, pipeline=task["pipeline"], step=arguments.step, part=arguments.part) as tracker,
        ):
            STEPS[arguments.step](Work(task, inputs, arguments.output, emit, tracker, arguments.part))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


@dataclass(frozen=True)
class Work:
    """What a step is given."""

    task: dict[str, Any]
    inputs: dict[str, Path]
    output: Path
    emit: Emit
    tracker: Tracker
    part: str | None


def _ingest(work: Work) -> None:
    from components.dataset import DatasetSpec
    from components.ingest import ingest

    settings = work.task["settings"]["dataset"]
    work.tracker.log_params({"dataset": settings})

    def progress(done: int, total: int | None, stage: str) -> None:
        work.emit("progress", done=done, total=total, unit="rows", text=stage)

    schema = ingest(DatasetSpec.model_validate(settings), work.output, progress)
    work.tracker.log_metrics({f"rows_{split}": rows for split, rows in schema.rows.items()})


def _search(work: Work) -> None:
    from components.search import Shared, search
    from components.settings import SearchSpec, TrainSpec

    settings, studies = work.task["settings"], os.environ.get(STUDIES)
    work.tracker.log_params({"search": settings["search"], "train": settings["train"]})
    search(
        SearchSpec.model_validate(settings["search"]),
        TrainSpec.model_validate(settings["train"]),
        work.inputs["ingest"],
        work.output,
        work.emit,
        work.tracker,
        part=work.part,
        shared=Shared(studies, work.task["key"]) if studies else None,
    )


def _train(work: Work) -> None:
    from components.settings import SearchSpec, TrainSpec
    from components.train import train
    from trainer.distributed import World

    settings = work.task["settings"]
    work.tracker.log_params({"train": settings["train"]})
    spec = TrainSpec.model_validate(settings["train"])
    train(
        SearchSpec.model_validate(settings["search"]),
        spec,
        work.inputs["ingest"],
        work.inputs["search"],
        work.output,
        work.emit,
        work.tracker,
        world=World.here(spec.nodes, spec.processes),
        part=work.part,
    )


def _evaluate(work: Work) -> None:
    from components.evaluate import evaluate

    evaluate(work.task["pipeline"], work.task["settings"], work.inputs, work.output, work.emit, work.tracker)


STEPS: dict[str, Callable[[Work], None]] = {
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
