"""Records of a pipeline run for MLflow, written so that MLflow can never stop, slow or spoil a step.

A step only appends lines to a file, the *spool*; it neither imports MLflow nor waits for it. A process beside the run
(`components.shipping`) replays the spools to MLflow and keeps what cannot be sent for the next run.

Where things lie, for a step whose output folder is `runs/<pipeline>/<step>.partial`:

    runs/<pipeline>/tracking/pipeline.json          key of the parent run, until its evaluate step has finished
    runs/<pipeline>/tracking/<step>-<key>.jsonl     the spool: one event per line (parts have spools of their own)
    runs/<pipeline>/<step>.partial/.tracking.json   key of the step's run; lives and dies with the step's output

Runs are named by keys of ours, not by MLflow's ids, so a spool can be written before MLflow has ever answered. A step
that is killed and resumed finds its folder's key, reads its own spool and writes nothing that already stands there.
"""

import fcntl
import json
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Literal, Self

from components.artifacts import write_whole

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

KEY_FILE = ".tracking.json"
PIPELINE_FILE = "pipeline.json"
LAST_STEP = "evaluate"
"""The step that completes a pipeline run: the parent run ends with it, and the next step opens a new one."""


class Tracker:
    """Records of one step: its own run below the pipeline's run, and nested runs for trials and final trainings.

    All methods return at once and raise nothing that has to do with MLflow. Threads may share a tracker. `folder` is
    the step's output folder (`runs/<pipeline>/<step>.partial`); it must exist.
    """

    def __init__(self, folder: Path, *, pipeline: str, step: str, part: str | None = None) -> None:
        self.folder = folder
        self.step = step
        root = folder.parent / "tracking"
        self.key, self.parent = keys(folder)
        self._pipeline_file = root / PIPELINE_FILE
        self._part = part
        writer = f"{step}-{self.key}" if part is None else f"{step}-{self.key}-{part}-{socket.gethostname()}"
        self.spool = root / f"{writer}.jsonl"
        self._lock = Lock()
        self._file = self.spool.open("a+b")
        # The shipping process sees by this lock whether the step still lives, even after kill -9.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._seen = _recover(self._file)
        self._open_runs(pipeline)

    def _open_runs(self, pipeline: str) -> None:
        folder = str(self.folder.resolve())
        opening = {"op": "open", "experiment": pipeline, "run": self.key, "step": self.step, "folder": folder}
        self._write("open", opening | {"part": self._part})
        self._write(f"run {self.parent}", {"op": "run", "run": self.parent, "name": pipeline, "parent": None})
        self._write(f"run {self.key}", {"op": "run", "run": self.key, "name": self.step, "parent": self.parent})
        for run in (self.parent, self.key) if self._part is None else ():
            self._write(None, {"op": "status", "run": run, "status": "RUNNING"})

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Settings of the step; nested mappings become dotted names."""
        self._write("params", {"op": "params", "run": self.key, "params": flat(values)})

    def log_metrics(self, values: Mapping[str, float], *, on_parent: bool = False) -> None:
        """Figures of the whole step (or, `on_parent`, of the whole pipeline run)."""
        run = self.parent if on_parent else self.key
        names = " ".join(sorted(values))
        self._write(f"metrics {run} {names}", {"op": "metrics", "run": run, "metrics": dict(values), "step": 0})

    def log_epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """One epoch of the nested run `name` (such as `autorec-3` or `neumf-seed-2026`), opened by its first epoch."""
        run = self._child(name)
        self._write(f"epoch {name} {epoch}", {"op": "metrics", "run": run, "metrics": dict(metrics), "step": epoch})

    def log_trial(
        self,
        name: str,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        tags: Mapping[str, str] | None = None,
        status: Status = "FINISHED",
    ) -> None:
        """The end of a nested run; a second end of the same run is not written."""
        if f"trial {name}" in self._seen:
            return
        run = self._child(name)
        self._write(None, {"op": "params", "run": run, "params": flat(params)})
        self._write(None, {"op": "metrics", "run": run, "metrics": dict(metrics), "step": 0})
        self._write(None, {"op": "tags", "run": run, "tags": dict(tags or {})})
        self._write(f"trial {name}", {"op": "status", "run": run, "status": status})

    def log_training(self, name: str, valid: Mapping[str, float], seconds: float, samples: int) -> None:
        """The end of one final training (a candidate with one seed)."""
        self.log_trial(name, params={}, metrics={**valid, "seconds": seconds, "samples": samples})

    def log_artifact(self, path: Path, to: str = "") -> None:
        """Send a file or folder of the step's output; it may be sent after the step's folder has got its final name."""
        relative = str(path.relative_to(self.folder))
        self._write(f"artifact {relative}", {"op": "artifact", "run": self.key, "path": relative, "to": to})

    def register(self, model: Path, name: str, alias: str = "champion") -> None:
        """Make the model folder `model` the next version of the registered model `name`, and point `alias` at it."""
        relative = str(model.relative_to(self.folder))
        event = {"op": "register", "run": self.key, "path": relative, "name": name, "alias": alias}
        self._write(f"register {name}", event)

    def close(self, status: Status = "FINISHED") -> None:
        """End the step's run, and the parent run where the pipeline ends here. The end of a part ends nothing."""
        if self._part is not None and status == "FINISHED":
            self._file.close()
            return
        self._write(None, {"op": "status", "run": self.key, "status": status})
        if status != "FINISHED" or self.step == LAST_STEP:
            self._write(None, {"op": "status", "run": self.parent, "status": status})
        if status == "FINISHED" and self.step == LAST_STEP:
            self._pipeline_file.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _child(self, name: str) -> str:
        run = f"{self.key}/{name}"
        self._write(f"run {run}", {"op": "run", "run": run, "name": name, "parent": self.key})
        return run

    def _write(self, key: str | None, event: dict[str, Any]) -> None:
        """Append an event, unless one of the same `key` stands there already. `key` None: always append."""
        with self._lock:
            if key in self._seen:
                return
            if key is not None:
                self._seen.add(key)
            line = json.dumps({"key": key, "time": int(time.time() * 1000), **event}) + "\n"
            self._file.write(line.encode())
            self._file.flush()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names with text values, as MLflow's parameters want it."""
    items: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            items |= flat(value, f"{prefix}{name}.")
        else:
            items[prefix + name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return items


def keys(folder: Path) -> tuple[str, str]:
    """Keys of the run of the step at work in `folder`, and of its parent; those of a killed step that goes on, or
    fresh ones. Where several processes do parts of the step, one of them asks before the others begin.
    """
    root = folder.parent / "tracking"
    root.mkdir(exist_ok=True)
    pipeline_file = root / PIPELINE_FILE
    key_file = folder / KEY_FILE
    if key_file.exists():
        known = json.loads(key_file.read_text())
        return known["key"], known["parent"]
    if not pipeline_file.exists():
        write_whole(pipeline_file, json.dumps({"key": uuid.uuid4().hex}))
    keys = {"key": uuid.uuid4().hex, "parent": json.loads(pipeline_file.read_text())["key"]}
    write_whole(key_file, json.dumps(keys))
    return keys["key"], keys["parent"]


def _recover(file: Any) -> set[str]:
    """Keys of the events that a killed predecessor wrote; a torn last line is cut off."""
    file.seek(0)
    lines = file.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        file.truncate(sum(len(line) for line in lines[:-1]))
        lines.pop()
    return set(_event_keys(lines))


def _event_keys(lines: Iterable[bytes]) -> Iterable[str]:
    for line in lines:
        key = json.loads(line)["key"]
        if key is not None:
            yield key
