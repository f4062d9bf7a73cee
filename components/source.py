"""Reads any fsspec URL, gzip or not, and turns every way it can fail into one line for the user."""

import gzip
import io
import posixpath
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any, TypeVar

import fsspec
from fsspec.core import url_to_fs

from trainer.errors import UserError

BLOCK = 1 << 24
"""Bytes (after decompression) that are held and parsed at a time."""

_GZIP_MAGIC = b"\x1f\x8b"

T = TypeVar("T")


def list_files(url: str, pattern: str = "*") -> list[str]:
    """The files behind a URL, sorted: itself, what its wildcards match, or those of a folder that match `pattern`.

    Raises:
        UserError: nothing there, no rights, or a scheme nobody reads.
    """
    with explained(url):
        files, path = url_to_fs(url)
        if url.startswith(("http://", "https://")):  # no folders there, and ? begins a query
            files.info(path)
            return [url]
        if any(mark in path for mark in "*?["):
            found = sorted(files.glob(path))
        elif files.isdir(path):
            names = sorted(files.ls(path, detail=False))
            found = [name for name in names if _is_data(posixpath.basename(name.rstrip("/")), pattern)]
        else:
            files.info(path)
            return [url]
    if not found:
        raise UserError(f"{url}: no file there matches {pattern!r}; name the file")
    return [str(files.unstrip_protocol(name)) for name in found]


def beside(url: str, *names: str) -> str | None:
    """The first of these names that lies in the same folder as `url`, as a URL."""
    with explained(url):
        files, path = url_to_fs(url)
        folder = posixpath.dirname(path)
        found = next((name for name in names if files.exists(f"{folder}/{name}")), None)
    return None if found is None else url[: url.rfind("/") + 1] + found


def read_blocks(url: str, size: int = BLOCK) -> Iterator[bytes]:
    """The decompressed bytes, cut alike for the same content, gzip or not: into blocks of `size`, the last is smaller.

    Raises:
        UserError: the file cannot be read, or its gzip stream is damaged.
    """
    with open_binary(url) as raw:
        buffered = io.BufferedReader(_Raw(raw, url), 1 << 20)
        packed = buffered.peek(2)[:2] == _GZIP_MAGIC
        stream: Any = gzip.GzipFile(fileobj=buffered) if packed else buffered
        while True:
            try:
                block = stream.read(size)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(f"{url}: the gzip file is damaged ({error}); fetch it again") from None
            if not block:
                return
            yield block


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items: while the caller works with one, a thread of its own makes the next."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


@contextmanager
def open_binary(url: str) -> Iterator[Any]:
    """The file as its storage library opens it, not decompressed."""
    with explained(url):
        opened = fsspec.open(url, "rb").open()
    with opened:
        yield opened


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Storage errors inside become a UserError that names the URL."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every storage library has exceptions of its own
        raise UserError(f"{url}: {_reason(url, error)}") from error


class _Raw(io.RawIOBase):
    """Gives `peek` to whatever a storage library opened, even where it cannot seek."""

    def __init__(self, opened: Any, url: str) -> None:
        self._opened, self._url = opened, url

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with explained(self._url):
            data = self._opened.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _is_data(name: str, pattern: str) -> bool:
    return not name.startswith((".", "_")) and fnmatch(name, pattern)


def _reason(url: str, error: Exception) -> str:
    name = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError) or "Credentials" in name:
        return "no right to read it; check the file's rights or the credentials in the environment"
    if isinstance(error, IsADirectoryError):
        return "this is a folder; name a file in it"
    if isinstance(error, ImportError):
        return f"its URL scheme needs another package ({error})"
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        scheme = url.split("://")[0]
        return f"unknown URL scheme {scheme!r}; write a path, or file://, s3://, gs://, hdfs:// or https://"
    return f"cannot be read ({name}: {(str(error).splitlines() or [''])[0]})"
