"""`python -m pipelines.pod STEP [--part NUMBER]`: one step of a pipeline, or a part of it, in a pod of the operator's.

The step is brought up to date as on a laptop (`pipelines.step`), below the pipeline's own folder of the artefact store.
Several pods may work on parts of one step; what only one may do at a time (making the folder ready, committing it) is
done under a lock in the database.

Environment, set by the operator (`pipelines.jobs`):

    DALIL_PIPELINE    file with the pipeline, every default written out
    DALIL_ARTIFACTS   URL of the artefact store
    DALIL_STUDIES     database of studies and locks, for SQLAlchemy; holds a password, so it comes from a Secret
    DALIL_SCRATCH     folder to work in, where the store is not a mounted volume
    DALIL_LAST_WORD   file for the line that says why the pod failed; its Job's message

Exit code 0: done. 2: a user's mistake. 3: no space, and 4: no MLflow to send the last records to, worth another
attempt later. 1: anything else, worth another attempt now.
"""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from components import shipping
from components.__main__ import STUDIES
from components.artifacts import write_whole
from components.mirror import Mirror, local_folder
from components.tracking import LAST_STEP, PIPELINE_FILE
from pipelines.graph import STEPS
from pipelines.process import Event
from pipelines.spec import SearchPipeline
from pipelines.status import Status
from pipelines.step import StepError, StepRun
from trainer.errors import UserError, disk_errors
from trainer.storage import Database

FAILED = 1
TERMINATED = 128 + signal.SIGTERM
LAST_EVENT = ".last-event.json"
SHIPPING_SECONDS = 120.0


def main() -> int:
    """Run the step that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.pod")
    parser.add_argument("step", choices=[step.name for step in STEPS])
    parser.add_argument("--part", type=int)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # the first process of a container has no default
    pipeline = SearchPipeline.model_validate(json.loads(Path(os.environ["DALIL_PIPELINE"]).read_text()))
    try:
        with _folder(pipeline, arguments.step) as (folder, mirror), disk_errors(folder):
            _Pod(pipeline, folder, mirror, arguments.step, arguments.part).run()
    except UserError as error:
        return _end(error.exit_code, error)
    except StepError as error:
        return _end(FAILED, error)
    return 0


class _Pod:
    def __init__(
        self, pipeline: SearchPipeline, folder: Path, mirror: Mirror | None, step: str, part: int | None
    ) -> None:
        self.pipeline, self.folder, self.mirror, self.step, self.part = pipeline, folder, mirror, step, part
        self.database = Database(os.environ[STUDIES])
        self.status = Status(pipeline.metadata, step)

    def run(self) -> None:
        """Raises TrackingAwayError if this is the last step and MLflow does not answer: no model is registered yet."""
        last = self.step == LAST_STEP
        shipping.start(self.folder, self.pipeline.spec.tracking.uri)
        for step in STEPS:
            if step.name == self.step:
                self._bring_up_to_date(StepRun(self.pipeline, self.folder, step), self.part)
            elif step.name == "train" and last:
                # Its trainings are done: what is left is to put them together.
                self._bring_up_to_date(StepRun(self.pipeline, self.folder, step), None)
        if self.mirror or last:
            self._send_records(last)
        if url := shipping.run_url(self.folder, self.folder / self.step):
            self.status.tell({"runUrl": url})

    def _send_records(self, last: bool) -> None:
        """What is left is for the last step's pod: a volume has it there, an object store is given it."""
        trouble = shipping.wait(self.folder, SHIPPING_SECONDS)
        if self.mirror:
            for spool in shipping.spools(self.folder):
                if trouble:
                    self.mirror.push(spool)
                else:
                    self.mirror.remove(spool)
        if trouble and last:
            raise shipping.TrackingAwayError(trouble)
        if trouble:
            print(f"note: {trouble}; the last step's pod sends the rest", file=sys.stderr)

    def _bring_up_to_date(self, run: StepRun, number: int | None) -> None:
        with self._exclusively(run):
            if run.is_done():
                self._tell_again(run.final)
                return
            run.prepare()
            if number is None:
                run.work(partial(self._tell, run.partial))
                run.commit()
                return
        if (part := self._part(number)) is not None:
            run.work(partial(self._tell, run.partial), part=part, worker=os.environ["HOSTNAME"])
        if run.name == "search":  # whoever comes last has nothing left to do but this
            with self._exclusively(run):
                if not run.is_done():
                    run.work(partial(self._tell, run.partial))
                    run.commit()
                else:  # what this pod has of the work, and has sent, is in the result or of no use any more
                    shutil.rmtree(run.partial, ignore_errors=True)

    @contextmanager
    def _exclusively(self, run: StepRun) -> Iterator[None]:
        """Within it no other pod has this step of the pipeline in hand, and what others did to it is here."""
        about, mirror = self.pipeline.metadata, self.mirror
        with self.database.lock(f"{about.namespace}/{about.name}/{run.name}"):
            for folder in (run.final, run.partial):
                if mirror:
                    mirror.pull(folder.name)
            yield
            for folder in (run.final, run.partial):
                if mirror:
                    mirror.push(folder.name)

    def _part(self, number: int) -> str | None:
        """What the components call the part; None if there are fewer than the settings let expect."""
        from components import search, train

        if self.step == "search":
            return search.TRIALS
        keys = train.parts(self.folder / "search", self.pipeline.spec.train)
        return keys[number] if number < len(keys) else None

    def _tell(self, folder: Path, event: Event) -> None:
        print(json.dumps(event), file=sys.stderr)
        if self.status.event(event):
            write_whole(folder / LAST_EVENT, json.dumps(event))

    def _tell_again(self, folder: Path) -> None:
        """How a step ended that is found done, for an object that does not know it yet."""
        with suppress(FileNotFoundError):
            self.status.event(json.loads((folder / LAST_EVENT).read_text()))


@contextmanager
def _folder(pipeline: SearchPipeline, step: str) -> Iterator[tuple[Path, Mirror | None]]:
    """The pipeline's folder: in a mounted volume as it is, of an object store a copy that is sent back."""
    about = pipeline.metadata
    name = f"{about.namespace}/{about.name}"
    store = os.environ["DALIL_ARTIFACTS"]
    mounted = local_folder(store)
    if mounted is not None:
        folder = mounted / name
        folder.mkdir(parents=True, exist_ok=True)
        yield folder, None
        return
    if pipeline.spec.search.inherit:
        # What one worker has written another would find too late.
        message = "workers hand tables to each other on a volume, and the artefacts are in an object store"
        raise UserError(f"spec.search.inherit: {message}; leave it out")
    folder = Path(os.environ["DALIL_SCRATCH"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    run = f"tracking/{PIPELINE_FILE}"
    with Mirror(f"{store}/{name}", folder, watched=f"{step}.partial") as mirror:
        # The last step's pod also sends to MLflow what others had to leave.
        for known in (*(item.name for item in STEPS), "tracking" if step == LAST_STEP else run):
            mirror.pull(known)
        try:
            yield folder, mirror
        finally:
            for known in (f"{step}.partial", run):
                mirror.push(known)


def _end(code: int, error: Exception) -> int:
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr)
    if file := os.environ.get("DALIL_LAST_WORD"):
        Path(file).write_text(line[:4000])
    return code


if __name__ == "__main__":
    sys.exit(main())
