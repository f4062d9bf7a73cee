"""Where studies are kept: a journal file of one process, or a database that many machines share.

Both are Optuna storages, so Optuna itself (and its dashboard) reads them. What is added is what parallel workers need:
one of them at a time may look and then write (`lock`), and a trial whose worker is gone must be told from one that is
slow (`stale`). In a database all use its clock.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial

STALE_SECONDS = 60.0
"""A worker counts as gone after this long without a word; it beats six times as often (`workers.BEAT_SECONDS`)."""
OUTAGE_SECONDS = 900.0
"""How long a database may be away before a worker gives up."""
BEAT = "beat"
"""Attribute of a running trial: when its worker was last heard of."""

T = TypeVar("T")


class StudyStorage(Protocol):
    """An Optuna storage with the manners of parallel workers."""

    place: str
    """For messages; without credentials."""
    optuna: BaseStorage
    shared: bool
    """Other processes may write to it at the same time."""

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Within it no other process holds the lock of this name."""

    def now(self) -> float:
        """Seconds, by a clock that all processes share."""

    def stale(self, trial: FrozenTrial) -> bool:
        """Whether the worker of a running trial is gone."""

    def patiently(self, act: Callable[[], T]) -> T:
        """What `act` returns, tried again while the storage is away. `act` must bear being repeated."""


class JournalFile:
    """A file of one process at a time: whatever it finds running there was left by a killed one."""

    shared = False

    def __init__(self, path: Path) -> None:
        self.place = str(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        _drop_torn_line(path)
        self.optuna: BaseStorage = JournalStorage(JournalFileBackend(str(path), lock_obj=_FileLock(path)))

    def lock(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def now(self) -> float:
        return time.time()

    def stale(self, trial: FrozenTrial) -> bool:
        return True

    def patiently(self, act: Callable[[], T]) -> T:
        return act()


class Database:
    """PostgreSQL, shared by any number of workers; `url` as SQLAlchemy takes it, credentials included."""

    shared = True

    def __init__(self, url: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.engine import make_url

        parsed = make_url(url)
        self.place = parsed.set(username=None, password=None).render_as_string()
        options: dict[str, Any] = {"pool_pre_ping": True}
        self._engine = create_engine(url, **options)
        self.optuna: BaseStorage = self.patiently(lambda: RDBStorage(url, engine_kwargs=options))

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """An advisory lock of the database: it falls with the connection, so a dead worker holds none."""
        from sqlalchemy.exc import OperationalError

        with self._engine.connect() as connection:
            self._ask(connection, "SELECT pg_advisory_lock(hashtextextended(:name, 0))", name=name)
            try:
                yield
            finally:
                with suppress(OperationalError):  # the database has let go of it by itself
                    self._ask(connection, "SELECT pg_advisory_unlock(hashtextextended(:name, 0))", name=name)

    def now(self) -> float:
        with self._engine.connect() as connection:
            return float(self._ask(connection, "SELECT extract(epoch FROM clock_timestamp())"))

    def stale(self, trial: FrozenTrial) -> bool:
        # A worker that the database did not hear, since it was away itself, is not silent.
        with self._engine.connect() as connection:
            started = float(self._ask(connection, "SELECT extract(epoch FROM pg_postmaster_start_time())"))
        heard = float(trial.user_attrs.get(BEAT, 0.0))
        return self.now() - max(heard, started) > STALE_SECONDS

    def patiently(self, act: Callable[[], T]) -> T:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import OperationalError

        deadline, pause = time.monotonic() + OUTAGE_SECONDS, 0.5
        while True:
            try:
                return act()
            except (OperationalError, StorageInternalError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 10.0)

    def _ask(self, connection: Any, question: str, **values: Any) -> Any:
        from sqlalchemy import text

        return connection.execute(text(question), values).scalar()


def _drop_torn_line(path: Path) -> None:
    """A writer killed in mid-line leaves a line that nobody can read."""
    with path.open("rb+") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


class _FileLock(JournalFileOpenLock):
    """A lock on the journal itself that dies with its process; Optuna's own locks would be waited for after a kill."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._descriptor = -1

    def acquire(self) -> bool:
        self._descriptor = os.open(self._path, os.O_RDONLY)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        os.close(self._descriptor)
