"""A run's folder in an object store: pods work in a folder of their own and keep a copy where others find it.

A `file:` URL needs none of this: its folder is used as it is. Elsewhere a step's folder is complete with its manifest,
which is sent last and fetched first, as on disk.
"""

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fsspec.core import url_to_fs

from components.artifacts import MANIFEST

PUSH_SECONDS = 20.0


def local_folder(url: str) -> Path | None:
    """The folder behind a `file:` URL; None for an object store."""
    return Path(url.removeprefix("file://")) if url.startswith(("file://", "/")) else None


class Mirror:
    """Copies below `url` of what lies below `root`. Use as a context: within it `watched` is sent every few seconds."""

    def __init__(self, url: str, root: Path, watched: str = "") -> None:
        self._files, path = url_to_fs(url)
        self._base, self._root, self._watched = path.rstrip("/"), root, watched
        self._known: dict[str, tuple[int, int]] = {}
        """Files that are the same here and there, and their state here."""
        self._one_at_a_time = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def pull(self, name: str) -> None:
        """Fetch what the store has of the file or folder `name` and this machine has not."""
        with self._one_at_a_time:
            self._files.invalidate_cache()
            theirs = self._remote(name)
            for path, size in sorted(theirs.items(), key=lambda item: item[0].endswith(MANIFEST)):
                target = self._root / path
                if not target.exists() or target.stat().st_size != size:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    aside = target.with_name(target.name + ".new")
                    self._files.get_file(f"{self._base}/{path}", str(aside))
                    aside.replace(target)
                self._known[path] = _state(target)

    def push(self, name: str) -> None:
        """Bring the store's copy of `name` up to date: new and changed files, the manifest last, then what is gone.

        Files that only others have sent stay.
        """
        with self._one_at_a_time:
            mine = self._local(name)
            manifest = f"{name}/{MANIFEST}"
            if mine and manifest not in mine:  # it must not stand there beside the files of another attempt
                self._remove(manifest)
            for path in sorted(mine, key=lambda path: (path == manifest, path)):
                with suppress(FileNotFoundError):  # a checkpoint that its training has dropped meanwhile
                    state = _state(self._root / path)
                    if self._known.get(path) != state:
                        self._files.put_file(str(self._root / path), f"{self._base}/{path}")
                        self._known[path] = state
            for path in [path for path in self._known if _within(path, name) and path not in mine]:
                self._remove(path)

    def remove(self, name: str) -> None:
        """Take the file `name` out of the store, if it has come from there or gone there."""
        with self._one_at_a_time:
            if name in self._known:
                self._remove(name)

    def _local(self, name: str) -> set[str]:
        place = self._root / name
        paths = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        return {path.relative_to(self._root).as_posix() for path in paths}

    def __enter__(self) -> Self:
        if self._watched:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._watched:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(PUSH_SECONDS):
            with suppress(OSError):  # the next round sends what this one could not
                self.push(self._watched)

    def _remote(self, name: str) -> dict[str, int]:
        """Path below the root -> size."""
        found: dict[str, Any] = {}
        with suppress(FileNotFoundError):
            found = self._files.find(f"{self._base}/{name}", detail=True)
        return {path[len(self._base) + 1 :]: int(facts["size"]) for path, facts in found.items()}

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(f"{self._base}/{path}")
        self._known.pop(path, None)


def _within(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}/")


def _state(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns
