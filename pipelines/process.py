"""One step as a process: its events come back as they are said, and it never outlives the run that started it."""

import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer.workers import die_with_parent

Event = dict[str, Any]

STOP_SECONDS = 5.0
"""How long a step may take to stop by itself when the run is interrupted."""
TAIL_LINES = 40

_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    # Spinning OpenMP threads on busy cores are many times slower than sleeping ones; read when torch is imported.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
}


@dataclass(frozen=True)
class Ending:
    """How a step's process ended."""

    code: int
    """Exit code; negative: the signal that killed it."""
    tail: tuple[str, ...]
    """Last lines of its log."""


def run_process(
    command: Sequence[str], log: Path, on_event: Callable[[Event], None], keep_open: Sequence[int] = ()
) -> Ending:
    """Run a command to its end; JSON lines of its standard output go to `on_event`, all else to the log.

    `keep_open` are file descriptors (the run's lock) that the process holds as long as it lives. If this function is
    left by an exception (Ctrl-C, an error in `on_event`), the process and all it started are stopped first.
    """
    parent = os.getpid()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**_ENVIRONMENT, **os.environ},
        pass_fds=keep_open,
        start_new_session=True,  # Ctrl-C reaches the run alone, which then stops the whole session
        preexec_fn=lambda: die_with_parent(parent),
    )
    lines: queue.Queue[Event] = queue.Queue()
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with _Log(log) as kept:
        kept.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n")
        readers = [
            threading.Thread(target=_read_events, args=(process.stdout, lines, kept), daemon=True),
            threading.Thread(target=_read_log, args=(process.stderr, tail, kept), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            while process.poll() is None:
                with contextlib.suppress(queue.Empty):
                    on_event(lines.get(timeout=0.1))
        except BaseException:
            _stop(process)
            raise
        finally:
            # Whatever the step started must not go on beside the next step, or keep the pipes open.
            _signal(process, signal.SIGKILL)
            for reader in readers:
                reader.join(timeout=STOP_SECONDS)
        while not lines.empty():
            on_event(lines.get())
        kept.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} exit code {process.returncode}\n")
    return Ending(process.returncode, tuple(tail))


def _stop(process: subprocess.Popen[bytes]) -> None:
    _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class _Log:
    """The step's log file. A full disk costs the log, not the run: the run itself meets it soon enough."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", errors="replace")
        self._lock = threading.Lock()

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def write(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._file.write(line)
            self._file.flush()


def _read_events(stream: IO[bytes], lines: "queue.Queue[Event]", log: _Log) -> None:
    for raw in stream:
        line = raw.decode(errors="replace")
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, Mapping) and "event" in event:
            lines.put(dict(event))
        else:
            log.write(line)


def _read_log(stream: IO[bytes], tail: deque[str], log: _Log) -> None:
    for raw in stream:
        line = raw.decode(errors="replace")
        tail.append(line.rstrip())
        log.write(line)
