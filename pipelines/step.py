"""One step of one run, on a laptop and in a pod alike: whether its result still stands, what it goes on from, its end.

<root>/<step>/             a complete step, with manifest.json
<root>/<step>.partial/     a step at work, or what a killed run has left of it
<root>/logs/<step>.log     what it printed
"""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from components import tracking
from components.artifacts import MANIFEST, Manifest, commit, publish, write_whole
from pipelines.graph import Step, plan
from pipelines.process import Ending, Event, run_process
from pipelines.spec import SearchPipeline
from trainer.errors import NoSpaceError, UserError

STEP_COMMAND = (sys.executable, "-P", "-m", "components")
"""`-P`: a folder named components where the user works must not be taken for ours."""
MARK = ".step.json"
"""In a partial folder: which digests the work in it belongs to."""


class StepError(Exception):
    """A step failed by no mistake of the user. `str(error)` says where to look."""


class StepRun:
    """One step of one pipeline below `root`. Whoever calls makes sure that nobody else does at the same time."""

    def __init__(
        self, pipeline: SearchPipeline, root: Path, step: Step, *, command: Sequence[str] = STEP_COMMAND
    ) -> None:
        """Its input steps are complete.

        Raises UserError: a source cannot be reached, or the result of an input step is not there.
        """
        self.pipeline, self.command = pipeline, command
        self.root = root.resolve()
        self.name = step.name
        self.item = plan(pipeline, step, {name: _result(self.root / name) for name in step.inputs})
        self.final = self.root / self.name
        self.partial = self.root / f"{self.name}.partial"

    def is_done(self) -> bool:
        """Whether the step's result is there and still good."""
        if self._is_complete(self.partial):  # killed between the last write and the rename
            publish(self.partial, self.final)
        return self._is_complete(self.final)

    def prepare(self) -> bool:
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
        tracking.keys(self.partial)
        return goes_on

    def work(
        self,
        on_event: Callable[[Event], None],
        *,
        part: str | None = None,
        worker: str | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        """Run the step, or a part of it, in the prepared folder. `worker` tells apart those who do the same part.

        Raises:
            UserError: a mistake that only the user can mend.
            StepError: it crashed.
        """
        (self.root / "logs").mkdir(exist_ok=True)
        name = "-".join(filter(None, (self.name, part, worker)))
        arguments = ["--settings", str(self._settings(name)), "--output", str(self.partial)]
        arguments += ["--part", part] if part is not None else []
        log = self.root / "logs" / f"{name}.log"
        ending = run_process([*self.command, self.name, *arguments], log, on_event, keep_open=keep_open)
        if ending.code != 0:
            raise self._failure(ending, log)

    def commit(self) -> None:
        """Turn the partial folder into the step's result."""
        item = self.item
        commit(self.partial, self.final, Manifest(self.name, item.digest, item.resume, item.inputs, item.parts))

    def why(self) -> str:
        """Why the step is made again; empty where there is no result yet."""
        manifest = Manifest.load(self.final)
        if manifest is None:
            return ""
        changed = [name for name, part in self.item.parts.items() if manifest.parts.get(name) != part]
        return f"made again, since {' and '.join(changed) or 'a file of its result'} changed"

    def _is_complete(self, folder: Path) -> bool:
        manifest = Manifest.load(folder)
        return manifest is not None and manifest.digest == self.item.digest and manifest.matches(folder)

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

    def _settings(self, name: str) -> Path:
        path = self.root / "logs" / f"{name}.settings.json"
        about = self.pipeline.metadata
        settings = {
            "pipeline": about.name,
            "step": self.name,
            "key": f"{about.namespace or 'default'}/{about.name}/{self.item.resume[:12]}",
            "settings": self.pipeline.spec.model_dump(mode="json"),
            "inputs": {name: str(self.root / name) for name in self.item.inputs},
        }
        write_whole(path, json.dumps(settings, indent=1))
        return path

    def _failure(self, ending: Ending, log: Path) -> Exception:
        said = [line.removeprefix("error: ") for line in ending.tail if line.startswith("error: ")]
        for kind in (UserError, NoSpaceError):
            if ending.code == kind.exit_code and said:
                return kind(f"{self.name}: {said[-1]}")
        if any(sign in line for line in ending.tail for sign in _FULL_DISK):
            return NoSpaceError(
                f"{self.root}: no space left for {self.name}; once there is room, a further run goes on from here"
            )
        how = f"was killed by signal {-ending.code}" if ending.code < 0 else f"failed with exit code {ending.code}"
        memory = ", perhaps for want of memory" if ending.code == -9 else ""
        last = next((line for line in reversed(ending.tail) if line.strip()), "")
        return StepError(f"{self.name} {how}{memory}{f' ({last[:200]})' if last else ''}; its log: {log}")


def _result(folder: Path) -> str:
    manifest = Manifest.load(folder)
    if manifest is None:
        raise UserError(f"{folder}: the result of step {folder.name} is not there; run the pipeline from there again")
    return manifest.result


_FULL_DISK = ("No space left on device", "Disk quota exceeded", "File too large", "database or disk is full")


def _clear(folder: Path) -> None:
    """Empty a folder but for the notes of the machinery, whose names begin with a dot."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("."):
            path.unlink()
