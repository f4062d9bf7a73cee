"""Runs a pipeline on this machine, one step after another, so that the same command always continues where it stopped.

runs/<name>/<step>/             a complete step, with manifest.json
runs/<name>/<step>.partial/     a step at work, or what a killed run has left of it
runs/<name>/logs/<step>.log     what it printed
runs/<name>/report.html, .json  the result
"""

import errno
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components import shipping
from components.artifacts import MANIFEST, Manifest, commit, copy_whole, publish, write_whole
from pipelines.graph import Plan, plan
from pipelines.process import Ending, run_process
from pipelines.progress import Display, duration
from pipelines.spec import SearchPipeline
from trainer.errors import NoSpaceError, UserError

STEP_COMMAND = (sys.executable, "-P", "-m", "components")
"""`-P`: a folder named components where the user works must not be taken for ours."""
REPORTS = ("report.json", "report.html")
MARK = ".step.json"
"""In a partial folder: which digests the work in it belongs to."""
LOCK_SECONDS = 3.0
"""A run that was killed lets go of its lock within this time."""
SHIPPING_SECONDS = 120.0
"""How long the end of a run waits for MLflow to take the last records and the model."""


class StepError(Exception):
    """A step failed by no mistake of the user. `str(error)` says where to look."""


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
    with explained(folder):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        with _locked(folder) as lock:
            plans = plan(pipeline)
            if track:
                shipping.start(folder, pipeline.spec.tracking.uri)
            for item in plans:
                _Run(pipeline, folder, item, display, command, lock).bring_up_to_date()
            for name in REPORTS:
                copy_whole(folder / "evaluate" / name, folder / name)
            if track and (trouble := shipping.wait(folder, SHIPPING_SECONDS)):
                display.say(f"note: {trouble}")
            report: dict[str, Any] = json.loads((folder / "report.json").read_text())
            return report


class _Run:
    """One step of one run."""

    def __init__(
        self,
        pipeline: SearchPipeline,
        folder: Path,
        item: Plan,
        display: Display,
        command: Sequence[str],
        lock: int,
    ) -> None:
        self.pipeline, self.item, self.display, self.command, self.lock = pipeline, item, display, command, lock
        self.folder = folder.resolve()
        self.name = item.step.name
        self.final = self.folder / self.name
        self.partial = self.folder / f"{self.name}.partial"

    def bring_up_to_date(self) -> None:
        if self._is_complete(self.partial):  # killed between the last write and the rename
            publish(self.partial, self.final)
        if self._is_complete(self.final):
            self.display.say(f"{self.name}: nothing has changed since it was made, kept")
            return
        reason = self._reason()
        goes_on = self._prepare()
        self.display.begin(self.name, "goes on from what is there" if goes_on else reason)
        started = time.monotonic()
        ending = run_process(
            [*self.command, self.name, "--settings", str(self._settings()), "--output", str(self.partial)],
            self.folder / "logs" / f"{self.name}.log",
            self.display.event,
            keep_open=(self.lock,),
        )
        if ending.code != 0:
            raise self._failure(ending)
        item = self.item
        commit(self.partial, self.final, Manifest(self.name, item.digest, item.resume, item.inputs, item.parts))
        self.display.end(f"done in {duration(time.monotonic() - started)}")

    def _is_complete(self, folder: Path) -> bool:
        manifest = Manifest.load(folder)
        return manifest is not None and manifest.digest == self.item.digest and manifest.matches(folder)

    def _reason(self) -> str:
        """Why the step is made again; empty where there is no result yet."""
        manifest = Manifest.load(self.final)
        if manifest is None:
            return ""
        changed = [name for name, part in self.item.parts.items() if manifest.parts.get(name) != part]
        return f"made again, since {' and '.join(changed) or 'a file of its result'} changed"

    def _prepare(self) -> bool:
        """Make the partial folder ready. True: it holds work of an earlier run that the step goes on from."""
        self._reopen()
        goes_on = self._resume_digest() == self.item.resume
        if not goes_on:
            shutil.rmtree(self.partial, ignore_errors=True)
        elif not self.item.step.resumable:
            goes_on = False
            _clear(self.partial)
        self.partial.mkdir(exist_ok=True)
        write_whole(self.partial / MARK, json.dumps({"resume": self.item.resume}))
        (self.partial / MANIFEST).unlink(missing_ok=True)
        return goes_on

    def _reopen(self) -> None:
        """Take a complete result that this step can extend (more trials) as the work to go on from."""
        manifest = Manifest.load(self.final)
        if (
            self.item.step.resumable
            and manifest is not None
            and manifest.resume == self.item.resume
            and manifest.matches(self.final)
            and self._resume_digest() != self.item.resume
        ):
            shutil.rmtree(self.partial, ignore_errors=True)
            self.final.rename(self.partial)

    def _resume_digest(self) -> str | None:
        """What the work in the partial folder belongs to."""
        try:
            return str(json.loads((self.partial / MARK).read_text())["resume"])
        except (OSError, ValueError, KeyError):
            manifest = Manifest.load(self.partial)
            return manifest.resume if manifest else None

    def _settings(self) -> Path:
        path = self.folder / "logs" / f"{self.name}.settings.json"
        settings = {
            "pipeline": self.pipeline.metadata.name,
            "step": self.name,
            "settings": self.pipeline.spec.model_dump(mode="json"),
            "inputs": {name: str(self.folder / name) for name in self.item.inputs},
        }
        write_whole(path, json.dumps(settings, indent=1))
        return path

    def _failure(self, ending: Ending) -> Exception:
        mistakes = [line for line in ending.tail if line.startswith("error: ")]
        if ending.code == 2 and mistakes:
            return UserError(f"{self.name}: {mistakes[-1].removeprefix('error: ')}")
        if any(sign in line for line in ending.tail for sign in _FULL_DISK):
            return NoSpaceError(
                f"{self.folder}: no space left for {self.name}; make room and run the same command again"
            )
        how = f"was killed by signal {-ending.code}" if ending.code < 0 else f"failed with exit code {ending.code}"
        memory = ", perhaps for want of memory" if ending.code == -9 else ""
        last = next((line for line in reversed(ending.tail) if line.strip()), "")
        log = self.folder / "logs" / f"{self.name}.log"
        return StepError(f"{self.name} {how}{memory}{f' ({last[:200]})' if last else ''}; its log: {log}")


_FULL_DISK = ("No space left on device", "Disk quota exceeded", "File too large", "database or disk is full")


def _clear(folder: Path) -> None:
    """Empty a folder but for the notes of the machinery, whose names begin with a dot."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("."):
            path.unlink()


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


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what a folder can refuse (no room, no right) into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpaceError(f"{folder}: no space left; make room and run the same command again") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            reason = (error.strerror or str(error)).lower()
            place = error.filename or folder
            raise NoSpaceError(f"{place}: {reason}; choose a folder that can be written with --output") from error
        raise
