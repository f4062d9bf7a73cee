"""Trainings in parallel processes on one machine: the one pool behind searches and final trainings.

Each worker process loads the dataset once and trains one job after another. A worker that dies (out of memory, killed)
is replaced and its job goes on from the job's own checkpoint. Workers die with the process that started them.
"""

import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer.candidate import Candidate
from trainer.errors import UserError, disk_errors
from trainer.schema import DatasetSchema
from trainer.settings import SAVE_SECONDS, FidelitySettings

if TYPE_CHECKING:
    from trainer.data import Table
    from trainer.fit import EpochRecord

BEAT_SECONDS = 10.0
POLL_SECONDS = 1.0
"""How often a worker with nothing to do asks whether others have made work for it."""
ATTEMPTS = 3
"""A job whose worker died this often is given up."""


@dataclass(frozen=True)
class Job:
    """One training from scratch; a candidate with a supernet is searched first, and what is derived from it trained.

    `thresholds[e]` is the validation value that the best of epochs 0..e must not exceed (see `study.prune_thresholds`).
    With `weights`, the best weights are written there.
    """

    key: str
    dataset: Path
    candidate: dict[str, Any]
    seed: int
    checkpoints: Path
    weights: Path | None = None
    thresholds: tuple[float, ...] = ()
    save_seconds: float = SAVE_SECONDS
    fidelity: FidelitySettings | None = None
    """Of a trial that is less than a whole training; there is no supernet then."""
    parent: Path | None = None
    """A file of tables to begin with."""
    tables: Path | None = None
    """Where tables go for trials that begin with them, unless the training is stopped as hopeless."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `error` is the reason where there is no model. Seconds and samples include the supernet's."""

    key: str
    value: float | None
    curve: tuple[float, ...] = ()
    valid: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    stopped: str = ""
    seconds: float = 0.0
    samples: int = 0
    found: dict[str, Any] | None = None
    """What the search on a supernet gave (`engines.supernet.Found.to_dict`)."""
    error: str | None = None
    fatal: bool = False
    """The error would meet every other job as well (a full disk), so the run has to stop."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Outcome":
        data = json.loads(text)
        return Outcome(**{**data, "curve": tuple(data["curve"])})


@dataclass(frozen=True)
class Epoch:
    """One finished epoch of a running job."""

    key: str
    stage: Literal["supernet", "training"]
    epoch: int
    train_loss: float
    valid: dict[str, float]
    best: float
    seconds: float


Message = Epoch | Outcome
NextJob = Callable[[], Job | Literal["wait"] | None]


def run_jobs(
    next_job: NextJob,
    workers: int,
    on_message: Callable[[Message], None],
    *,
    beat: Callable[[], None] = lambda: None,
    meanwhile: Callable[[], None] = lambda: None,
    alone: bool = True,
) -> None:
    """Train jobs until `next_job` returns None and all are done.

    `next_job` is asked whenever a worker is free; "wait" means: ask again after the next outcome. `on_message` sees
    every epoch and every outcome, in this process, so it may write to a study or a tracker without locks. `beat` is
    called every few seconds, and `meanwhile`, for what can be done ahead, while all workers are busy. Unless `alone`,
    outcomes may also come about elsewhere, and are waited for.
    """
    pool = [_Worker(number, workers) for number in range(workers)]
    try:
        while True:
            answer: Job | Literal["wait"] | None = "wait"
            for worker in pool:
                if worker.job is None:
                    answer = next_job()
                    if not isinstance(answer, Job):
                        break
                    worker.start(answer)
            busy = [worker for worker in pool if worker.job is not None]
            if not busy:
                if answer is None:
                    return
                if alone:
                    raise RuntimeError("every worker is free, yet the next job waits for one")
                time.sleep(POLL_SECONDS)
                continue
            if len(busy) == len(pool):
                meanwhile()
            ready = wait([worker.receiver for worker in busy], timeout=BEAT_SECONDS)
            beat()
            for worker in busy:
                if worker.receiver in ready:
                    for message in worker.receive():
                        on_message(message)
    finally:
        for worker in pool:
            worker.stop()


def threads(processes: int) -> int:
    """Threads of each of so many processes on this machine: OMP_NUM_THREADS, or else an even share of the cores."""
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, (os.cpu_count() or 1) // processes)


class _Worker:
    """The parent's end of one worker process, started on first use and again after a death."""

    def __init__(self, number: int, workers: int) -> None:
        self.number, self.threads = number, threads(workers)
        self.process: Any = None
        self.job: Job | None = None
        self.attempts = 0
        self.sender: Connection
        self.receiver: Connection

    def start(self, job: Job) -> None:
        self.job, self.attempts = job, 0
        self._send()

    def receive(self) -> list[Message]:
        """What the worker has said; a worker that died gets a successor with the same job."""
        assert self.job is not None
        try:
            message: Message = self.receiver.recv()
        except (EOFError, OSError):
            return self._died()
        if isinstance(message, Outcome):
            self.job = None
        return [message]

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def _send(self) -> None:
        if self.process is None:
            self._spawn()
        self.attempts += 1
        with suppress(OSError):  # it died while idle; the reader's end of file leads to `_died`
            self.sender.send(self.job)

    def _died(self) -> list[Message]:
        assert self.job is not None
        self.process.join()
        code, self.process = self.process.exitcode, None
        if self.attempts < ATTEMPTS:
            self._send()
            return []
        key, self.job = self.job.key, None
        reason = "killed, probably for want of memory" if code == -signal.SIGKILL else f"exit code {code}"
        return [Outcome(key, None, error=f"the worker process died {ATTEMPTS} times ({reason})")]

    def _spawn(self) -> None:
        context = _context()
        child_receiver, self.sender = context.Pipe(duplex=False)
        self.receiver, child_sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(child_receiver, child_sender, self.number, self.threads))
        self.process.start()
        child_receiver.close()
        child_sender.close()


@cache
def _context() -> Any:
    """How workers start: as forks of a process of their own, which has imported what trains and done nothing else.

    A worker then starts at once and shares that memory; importing TorchRec takes seconds and 250 MB in each process.
    Only on Linux: elsewhere system libraries do not bear a fork.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # looking for GPUs otherwise spoils them for forks
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.ancestor"])
    return context


def _work(receiver: Connection, sender: Connection, number: int, threads: int) -> None:
    """The worker process of this number: train each job that comes, until the run that started it is gone."""
    # On Linux its parent is the process that it was forked from, which dies with the run.
    die_with_parent(os.getppid())
    run = multiprocessing.parent_process()
    if run is None or not run.is_alive():  # it died before the line above
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    import torch

    from trainer.device import take

    torch.set_num_threads(threads)
    take(number)
    while True:
        try:
            job: Job = receiver.recv()
        except EOFError:
            return
        try:
            with disk_errors(job.checkpoints):
                outcome = train(job, sender.send)
        except (UserError, OSError) as error:
            outcome = Outcome(job.key, None, error=str(error), fatal=True)
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome(job.key, None, error=f"{type(error).__name__}: {error}".splitlines()[0])
        sender.send(outcome)


@cache
def _tables(dataset: Path) -> "tuple[DatasetSchema, Table, Table]":
    """The dataset's schema, and this process's share of the training and validation rows, read once."""
    from trainer.data import load
    from trainer.processes import rank_and_world

    schema = DatasetSchema.load(dataset)
    process = rank_and_world()
    return schema, load(dataset, "train", schema, process), load(dataset, "valid", schema, process)


@cache
def _lowered(dataset: Path, fidelity: FidelitySettings, seed: int) -> "tuple[Table, Table]":
    """Training and validation rows of trials at low fidelity."""
    from trainer.fidelity import hashed, share

    _, train, valid = _tables(dataset)
    return hashed(share(train, fidelity, seed), fidelity), hashed(valid, fidelity)


def train(job: Job, say: Callable[[Epoch], None]) -> Outcome:
    """Do a job in this process; under torchrun every process of the group calls this alike."""
    from trainer.architecture import Architecture
    from trainer.build import build
    from trainer.checkpoint import save_weights
    from trainer.fidelity import reduced
    from trainer.fit import Diverged, EpochRecord, fit
    from trainer.inheritance import inherit, save_tables
    from trainer.processes import rank_and_world
    from trainer.sharding import placed

    schema, train, valid = _tables(job.dataset)
    candidate = Candidate.from_dict(job.candidate)
    settings = candidate.training
    started = time.perf_counter()

    def tell(record: EpochRecord, stage: Literal["supernet", "training"]) -> None:
        say(Epoch(job.key, stage, record.epoch, record.train_loss, record.valid, record.best, record.seconds))

    def on_epoch(record: EpochRecord) -> bool:
        tell(record, "training")
        return record.epoch < len(job.thresholds) and record.best > job.thresholds[record.epoch]

    try:
        found = _search(job, candidate, train, valid, lambda record: tell(record, "supernet"))
        architecture = Architecture.from_dict(found["architecture"]) if found else candidate.architecture
        if job.fidelity is not None:
            architecture = reduced(architecture, job.fidelity)
            train, valid = _lowered(job.dataset, job.fidelity, job.seed)
        built = build(
            architecture,
            label_mean=schema.label_mean,
            table_init=settings.table_init,
            seed=job.seed,
            empty_tables=rank_and_world()[1] > 1,
        )
        model = placed(built, settings)
        if job.parent is not None:
            inherit(model, job.parent)
        result = fit(
            model,
            train,
            valid,
            settings,
            task=schema.task,
            seed=job.seed,
            checkpoints=job.checkpoints,
            save_seconds=job.save_seconds,
            on_epoch=on_epoch,
        )
    except (Diverged, UserError) as error:
        return Outcome(job.key, None, error=str(error), seconds=time.perf_counter() - started)
    if job.weights is not None:
        job.weights.parent.mkdir(parents=True, exist_ok=True)
        save_weights(model, job.weights)
    if job.tables is not None and result.stopped != "pruned":
        save_tables(model, job.tables)
    best = result.history[result.best_epoch]
    return Outcome(
        key=job.key,
        value=result.best_value,
        curve=tuple(record.best for record in result.history),
        valid=best.valid,
        best_epoch=result.best_epoch,
        stopped=result.stopped,
        seconds=result.seconds + (found["seconds"] if found else 0.0),
        samples=result.samples + (found["samples"] if found else 0),
        found=found,
    )


def _search(
    job: Job, candidate: Candidate, train: "Table", valid: "Table", on_epoch: Callable[["EpochRecord"], None]
) -> dict[str, Any] | None:
    """What the candidate's supernet gives, if it has one. Nothing is trained that its checkpoints hold."""
    if candidate.supernet is None:
        return None
    from trainer.data import in_time_order
    from trainer.methods.base import Opening
    from trainer.methods.table import METHODS

    method = METHODS[candidate.supernet["method"]]
    assert method.supernet is not None
    assert method.search is not None
    if method.in_order:
        train = in_time_order(train, job.dataset, "train")
    opening = Opening(candidate.architecture, candidate.supernet, candidate.training, train, valid, job.seed)
    found = method.search(
        method.supernet(opening),
        train,
        valid,
        candidate.training,
        seed=job.seed,
        checkpoints=job.checkpoints / "supernet",
        save_seconds=job.save_seconds,
        on_epoch=on_epoch,
    )
    return found.to_dict()


def discard(checkpoints: Path) -> None:
    """Remove a finished job's checkpoints."""
    shutil.rmtree(checkpoints, ignore_errors=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, so that a killed run leaves nothing running (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
