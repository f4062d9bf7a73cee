"""The process that brings tracking spools to MLflow: started with the run, outlives it if it must, ends by itself.

A process of its own, because importing MLflow takes seconds and hundreds of megabytes, and creating its SQLite database
seconds more: no step should pay for that, and nothing MLflow does can reach the training loop. One process serves one
pipeline; later ones wait for its lock and go away when there is nothing left to do.

Replaying is idempotent, so that a kill at any moment logs nothing twice: a run is found again by its key (tag
`dalil.key`), a model version likewise; metrics carry the time of their event, and MLflow keeps one of equal ones.

State, in `runs/<pipeline>/tracking/`:

    target.json          where the records go: {"uri", "artifacts"}
    sent-<target>.json   what has arrived there (`_State`)
    shipping.log         attempts that failed, and what MLflow refused and why
"""

import fcntl
import hashlib
import json
import logging
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from components.artifacts import write_whole
from components.tracking import KEY_FILE
from trainer.errors import UserError

if TYPE_CHECKING:
    from components.replay import Replay

POLL_SECONDS = 0.5
RETRY_SECONDS = 15.0
"""Longest pause between two attempts to reach an MLflow that does not answer."""
BLOCK_BYTES = 1 << 20

log = logging.getLogger("dalil.shipping")


class TrackingAwayError(UserError):
    """Not everything has reached MLflow, and nobody comes after this process who would send the rest."""

    exit_code = 4


def start(root: Path, uri: str | None) -> None:
    """Start shipping the spools of `root` (`runs/<pipeline>`), what earlier runs left behind included. Returns at once.

    `uri` None: MLFLOW_TRACKING_URI if set, otherwise `sqlite:///<runs>/mlflow.db`, artifacts in `<runs>/mlartifacts`.
    """
    folder = root.resolve() / "tracking"
    folder.mkdir(parents=True, exist_ok=True)
    target = tracking_uri(root, uri)
    artifacts = (root.resolve().parent / "mlartifacts").as_uri() if target.startswith("sqlite:") else None
    write_whole(folder / "target.json", json.dumps({"uri": target, "artifacts": artifacts}))
    _launch(folder)


_launched: dict[Path, list[subprocess.Popen[bytes]]] = {}
"""Shipping processes of this process by folder. Each stays as long as we hold the pipe to its input open."""
_started: dict[Path, float] = {}


def _launch(folder: Path) -> None:
    with (folder / "shipping.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "components.shipping", str(folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": _python_path()},
            start_new_session=True,  # Ctrl-C and the end of the step are not its end: it has records to bring home
        )
    _launched.setdefault(folder, []).append(process)
    _started[folder] = time.time()


def wait(root: Path, seconds: float) -> str | None:
    """The end of what `start` began: wait until everything is with MLflow.

    Returns None when it is, otherwise one line that says why not; whoever calls `start` next sends the rest.
    """
    folder = root.resolve() / "tracking"
    if all(process.poll() is not None for process in _launched.get(folder, [])):
        _launch(folder)
    deadline = time.time() + seconds
    # An outage that lasts at the end of the run is not waited for again.
    since = max(_started[folder], time.time() - 2 * RETRY_SECONDS)
    while (trouble := _trouble(folder, since)) == "" and time.time() < deadline:
        time.sleep(0.1)
    for process in _launched[folder]:
        assert process.stdin is not None
        process.stdin.close()  # it goes as soon as it has nothing left to do
    if trouble is None:
        return None
    reason = trouble or f"it took longer than {seconds:.0f} s"
    return f"not everything has reached MLflow at {_Target.load(folder).uri} ({reason})"


def _trouble(folder: Path, since: float) -> str | None:
    """None: everything has arrived. Empty: not yet. Otherwise why an attempt after `since` failed."""
    state = _State.load(_Target.load(folder).state_file(folder))
    if not any(spool.stat().st_size > state.offsets.get(spool.name, 0) for spool in _spools(folder)):
        return None
    return (state.error or "") if state.failed_at > since else ""


def spools(root: Path) -> list[str]:
    """The spools of `root`, as paths below it."""
    return [spool.relative_to(root.resolve()).as_posix() for spool in _spools(root.resolve() / "tracking")]


def tracking_uri(root: Path, uri: str | None) -> str:
    """Where the records of `root` go (see `start`); for the hints at the end of a run."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve().parent / 'mlflow.db'}"


def run_url(root: Path, step: Path) -> str | None:
    """The page of the pipeline's run in MLflow, once it is known there; `step` is the folder of one of its steps."""
    folder = root.resolve() / "tracking"
    target = _Target.load(folder)
    state = _State.load(target.state_file(folder))
    key_file = step / KEY_FILE
    run = state.runs.get(json.loads(key_file.read_text())["parent"]) if key_file.exists() else None
    if run is None or not state.experiments or not target.uri.startswith("http"):
        return None
    return f"{target.uri.rstrip('/')}/#/experiments/{next(iter(state.experiments.values()))}/runs/{run}"


_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # retries are ours: the spool is the buffer
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "OMP_NUM_THREADS": "1",
}


def _python_path() -> str:
    package = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))


@dataclass(frozen=True)
class _Target:
    uri: str
    artifacts: str | None
    """Artifact folder of new experiments; None leaves it to the server."""

    @staticmethod
    def load(folder: Path) -> "_Target":
        return _Target(**json.loads((folder / "target.json").read_text()))

    def state_file(self, folder: Path) -> Path:
        return folder / f"sent-{hashlib.sha256(self.uri.encode()).hexdigest()[:8]}.json"


@dataclass
class _State:
    """What has arrived at one target."""

    offsets: dict[str, int] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    experiments: dict[str, str] = field(default_factory=dict)
    running: dict[str, list[str]] = field(default_factory=dict)
    """Keys of the runs that have no end yet, by spool."""
    error: str | None = None
    failed_at: float = 0.0

    @staticmethod
    def load(path: Path) -> "_State":
        return _State(**json.loads(path.read_text())) if path.exists() else _State()


def main(folder: Path) -> None:
    """Ship until no step of the pipeline lives and everything is sent, or MLflow does not answer."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    os.nice(10)
    with (folder / "shipping.lock").open("w") as lock:
        # Until there is something to ship MLflow is not even imported. And while another process ships, this one stays
        # on: the other may be on the point of leaving.
        while not ((work := _has_work(folder)) and _try_lock(lock)):
            if not work and not _run_lives():
                return
            time.sleep(POLL_SECONDS)
        _Shipper(folder).run()


def _try_lock(file: IO[Any], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _spools(folder: Path) -> list[Path]:
    """Spools by the time of their first events (a later model version is registered later), a step's own one first."""
    begun = [spool for spool in folder.glob("*.jsonl") if _first_line(spool).endswith(b"\n")]
    return sorted(begun, key=lambda spool: (opening(spool)["time"], spool.name))


@cache
def opening(spool: Path) -> dict[str, Any]:
    """The first event of a spool: which run of which experiment it belongs to."""
    return dict(json.loads(_first_line(spool)))


def _first_line(spool: Path) -> bytes:
    with spool.open("rb") as file:
        return file.readline()


def _writers(folder: Path) -> list[Path]:
    """Spools whose step is alive: it holds a lock on its spool."""
    return [spool for spool in _spools(folder) if _locked(spool)]


def _locked(spool: Path) -> bool:
    with spool.open("rb") as file:
        return not _try_lock(file, fcntl.LOCK_SH)


def _has_work(folder: Path) -> bool:
    return bool(_writers(folder)) or _trouble(folder, 0.0) is not None


def _run_lives() -> bool:
    """Whether the process that launched us still holds the other end of our input."""
    return not select.select([sys.stdin], [], [], 0)[0]


class _Shipper:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = _Target.load(folder)
        self.state = _State.load(self.target.state_file(folder))
        self.replay: Replay | None = None
        from components.system_metrics import SystemMetrics  # imports MLflow, for which the run itself must not wait

        self.system_metrics = SystemMetrics()

    def run(self) -> None:
        pause, retry_at = 1.0, 0.0
        while True:
            writers = _writers(self.folder)
            alone = not writers and not _run_lives()
            for spool in writers:
                self.system_metrics.sample(spool, opening(spool))
            if alone or time.monotonic() >= retry_at:
                if self._ship():
                    pause, retry_at = 1.0, 0.0
                else:
                    pause, retry_at = min(2 * pause, RETRY_SECONDS), time.monotonic() + pause
            if alone:  # all is sent, or must wait for the next run
                return
            time.sleep(POLL_SECONDS)

    def _ship(self) -> bool:
        """One pass over all spools; False when MLflow did not answer."""
        try:
            replay = self._connect()
            for spool in _spools(self.folder):
                while self._ship_block(replay, spool):
                    self._save()
                self._end_killed(replay, spool)
            self.state.error = None
        except Exception as error:  # whatever MLflow's client raises, the records stay and the next attempt tries again
            self.state.error = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            self.state.failed_at = time.time()
            log.warning("will try again: %s", self.state.error)
        self._save()
        return self.state.error is None

    def _connect(self) -> "Replay":
        target = _Target.load(self.folder)
        if target != self.target:
            self.target, self.replay = target, None
            self.state = _State.load(target.state_file(self.folder))
        if self.replay is None:
            from components.replay import Replay

            self.replay = Replay(target.uri, target.artifacts, self.state.runs, self.state.experiments)
        return self.replay

    def _save(self) -> None:
        write_whole(self.target.state_file(self.folder), json.dumps(asdict(self.state)))

    def _ship_block(self, replay: "Replay", spool: Path) -> bool:
        """Replay the next lines of a spool; False when there are none. The offset moves after all have arrived."""
        offset = self.state.offsets.get(spool.name, 0)
        with spool.open("rb") as file:
            file.seek(offset)
            block = file.read(BLOCK_BYTES)
        block = block[: block.rfind(b"\n") + 1]
        if not block:
            return False
        events = [json.loads(line) for line in block.splitlines()]
        replay.replay(opening(spool), events)
        for event in events:
            self._note_running(spool, event)
        self.state.offsets[spool.name] = offset + len(block)
        return True

    def _note_running(self, spool: Path, event: dict[str, Any]) -> None:
        if event["op"] not in ("run", "status"):
            return
        if opening(spool).get("part") is not None and not event["run"].startswith(f"{opening(spool)['run']}/"):
            return  # the step's run outlives its parts
        running = self.state.running.setdefault(spool.name, [])
        if event.get("status", "RUNNING") == "RUNNING":
            running += [event["run"]] if event["run"] not in running else []
        elif (
            event["run"] == opening(spool)["run"]
        ):  # the step's own run has ended, and the pipeline's run is no longer its business
            running.clear()
        elif event["run"] in running:
            running.remove(event["run"])

    def _end_killed(self, replay: "Replay", spool: Path) -> None:
        """Runs of a step that was killed get their end from here; a resumed step sets them running again."""
        running = self.state.running.get(spool.name)
        if running and not _locked(spool):
            now = int(time.time() * 1000)
            replay.replay(
                opening(spool), [{"op": "status", "run": run, "status": "KILLED", "time": now} for run in running]
            )
            running.clear()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
