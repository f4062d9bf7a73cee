"""Runs a pipeline on this machine, one step after another, so that the same command always continues where it stopped.

runs/<name>/<step>/             see `pipelines.step`
runs/<name>/report.html, .json  the result
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from components import shipping
from components.artifacts import copy_whole
from pipelines.graph import STEPS
from pipelines.progress import Display, duration
from pipelines.spec import SearchPipeline
from pipelines.step import STEP_COMMAND, StepRun
from trainer.errors import UserError, disk_errors

REPORTS = ("report.json", "report.html")
LOCK_SECONDS = 3.0
"""A run that was killed lets go of its lock within this time."""
SHIPPING_SECONDS = 120.0
"""How long the end of a run waits for MLflow to take the last records and the model."""


def run(
    pipeline: SearchPipeline,
    folder: Path,
    display: Display,
    *,
    command: Sequence[str] = STEP_COMMAND,
    track: bool = True,
) -> dict[str, Any]:
    """Bring every step of the pipeline up to date in `folder` and return the report.

    Every step runs as `command STEP --settings FILE --output FOLDER`. `track`: bring the steps' records to MLflow.

    Raises:
        UserError: a mistake that only the user can mend (a bad source, a full disk, a second run at once).
        StepError: a step crashed; the same command continues where it stopped.
    """
    with disk_errors(folder):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        with _locked(folder) as lock:
            steps = (StepRun(pipeline, folder, step, command=command) for step in STEPS)
            first = next(steps)  # before anything is started, for its source may be missing
            if track:
                shipping.start(folder, pipeline.spec.tracking.uri)
            for step in chain([first], steps):
                _bring_up_to_date(step, display, lock)
            for name in REPORTS:
                copy_whole(folder / "evaluate" / name, folder / name)
            if track and (trouble := shipping.wait(folder, SHIPPING_SECONDS)):
                display.say(f"note: {trouble}; the next run sends the rest")
            report: dict[str, Any] = json.loads((folder / "report.json").read_text())
            return report


def _bring_up_to_date(run: StepRun, display: Display, lock: int) -> None:
    if run.is_done():
        display.say(f"{run.name}: nothing has changed since it was made, kept")
        return
    reason = run.why()
    goes_on = run.prepare()
    display.begin(run.name, "goes on from what is there" if goes_on else reason)
    started = time.monotonic()
    run.work(display.event, keep_open=(lock,))
    run.commit()
    display.end(f"done in {duration(time.monotonic() - started)}")


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the run's lock. Steps inherit it, so it is free only when nothing writes here any more.

    Raises:
        UserError: another run holds it.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                holder = os.pread(handle, 100, 0).decode() or "unknown"
                raise UserError(
                    f"{folder}: another run of this pipeline is at work (process {holder}); wait for its end, "
                    "or give this one another metadata.name or --output"
                )
            time.sleep(0.1)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield handle
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
