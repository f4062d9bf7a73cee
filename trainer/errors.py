"""The one error style: one line that says what is wrong, where, and what to write instead."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake that only the user can mend. Commands print its one line and exit with code 2.

    `str(error)` is the whole message; it names the file, row or key and what to write instead.
    """

    exit_code = 2
    """Of the process of a step that ends with it."""


class NoSpaceError(UserError):
    """The output folder is full. Nothing half-written is left that a later run would trust."""

    exit_code = 3


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk can refuse to one who writes into `folder` (no room, no right) into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpaceError(
                f"{folder}: no space left; once there is room, a further run goes on from here"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            reason = (error.strerror or str(error)).lower()
            place = error.filename or folder
            raise UserError(f"{place}: {reason}; choose a folder that can be written with --output") from error
        raise
